"""The two ways a text is cleaned before BPE: as transformers does it, and as GPT-1's authors did.

Of the 104,744 different words in 10,000 lines of film reviews and Wikipedia, 10,991 become other tokens. The kinds of
differences, each with a text and what the two make of it:

====================================  ==============  =====================  =================
kind                                  text            ``"hf"``               ``"original"``
====================================  ==============  =====================  =================
letters with accents                  naïve           naive                  naïve
typographic signs                     “so”…           <unk> so <unk> <unk>   " so " ...
contractions and apostrophes          didn't o'clock  didn ' t o ' clock     did n't o'clock
contractions written as one word      cannot          cannot                 can not
abbreviations, stops before words     Mr. U.S. .45    mr . u . s . . 45      mr. u.s. .45
signs in a row                        wait... --      wait . . . - -         wait ... --
signs within a word or number         2:37 @.@        2 : 37 @ . @           2:37 @.@
numbers with a unit                   35mm            35mm                   35 mm
smileys                               :D              : d                    :d
damaged encodings, HTML's names       cafÃ© &eacute;  cafa© & eacute ;       café é
line ends                             a (line end) b  a b                    a (line end) b
====================================  ==============  =====================  =================
"""

from __future__ import annotations

import re

from ms_gpt.errors import UserError, suggest
from ms_gpt.tokenizer.words import spaced_tokens

CLEANINGS = ("hf", "original")

_SAME_SIGN = str.maketrans({"—": "-", "–": "-", "―": "-", "…": "...", "´": "'"})
_SPACED_RUNS = re.compile("(" + "|".join(re.escape(sign) + "+" for sign in '-~!";?+,)(\\/*[]}{|_') + ")")
_NEWLINES = re.compile(r"\s*\n\s*")
_BLANKS = re.compile(r"[^\S\n]+")


def check_cleaning(cleaning: str) -> str:
    """Return ``cleaning`` if it is one of `CLEANINGS`.

    Args:
        cleaning: The name to check.

    Returns:
        The same name.

    Raises:
        UserError: ``cleaning`` is not known.
    """
    if cleaning not in CLEANINGS:
        known = " or ".join(map(repr, CLEANINGS))
        raise UserError(f"cleaning={cleaning!r} is not known: use {known}.{suggest(cleaning, CLEANINGS)}")
    return cleaning


def standardize(text: str) -> str:
    """Repair the encoding of ``text`` and put blanks around its punctuation, as for GPT-1's training.

    Args:
        text: Any text.

    Returns:
        The text in its case, with one dash, straight quotes, single blanks and each line end between two.

    Raises:
        UserError: ftfy is not installed.

    Source: openai/finetune-transformer-lm, ``text_utils.py``, ``text_standardize`` after ``ftfy.fix_text``.
    """
    try:
        import ftfy
    except ImportError as error:
        raise UserError("cleaning='original' needs ftfy, which is not installed: pip install ftfy") from error
    text = _SPACED_RUNS.sub(r" \1 ", ftfy.fix_text(text).translate(_SAME_SIGN))
    return _BLANKS.sub(" ", _NEWLINES.sub(" \n ", text)).strip()


def clean_original(text: str) -> str:
    """Clean ``text`` as GPT-1's authors did and split it into lower-case words.

    The words are spaCy 2.0's up to the rules named in `ms_gpt.tokenizer.words`.

    Args:
        text: Any text.

    Returns:
        The words, separated by single blanks; a line end is a word of its own.
    """
    return " ".join(map(spaced_tokens, standardize(text).split(" ")))
