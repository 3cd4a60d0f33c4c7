"""BPE vocabularies as pipelines of the ``tokenizers`` library."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, normalizers, pre_tokenizers

WORD_END = "</w>"
GPT1_UNKNOWN = "<unk>"
# GPT-2's one special token.
END_OF_TEXT = "<|endoftext|>"

# How GPT-2's byte alphabet writes the blank.
_BYTE_BLANK = "Ġ"


def is_byte_level(vocab: Mapping[str, int]) -> bool:
    """Tell GPT-2's byte-level vocabulary from GPT-1's, whose words end in ``</w>``.

    Args:
        vocab: Token to id.

    Returns:
        Whether the vocabulary is byte-level.
    """
    return not any(token.endswith(WORD_END) for token in vocab) and any(_BYTE_BLANK in token for token in vocab)


def build_backend(vocab: Mapping[str, int], merges: Sequence[tuple[str, str]], form: str) -> Backend:
    """Build the pipeline of one vocabulary.

    Args:
        vocab: Token to id.
        merges: The pairs in order of rank.
        form: ``"hf"`` (GPT-1 as transformers runs it), ``"original"`` (GPT-1 on words that `clean_original` has
            separated by blanks) or ``"byte-level"`` (GPT-2).

    Returns:
        A pipeline without added tokens.
    """
    if form == "byte-level":
        backend = Backend(models.BPE(vocab=dict(vocab), merges=list(merges)))
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        return backend
    model = models.BPE(vocab=dict(vocab), merges=list(merges), unk_token=GPT1_UNKNOWN, end_of_word_suffix=WORD_END)
    backend = Backend(model)
    backend.normalizer, backend.pre_tokenizer = word_splitter(form)
    backend.decoder = decoders.BPEDecoder(suffix=WORD_END)
    return backend


def word_splitter(form: str) -> tuple[normalizers.Normalizer | None, pre_tokenizers.PreTokenizer]:
    """Return what turns a text into words before GPT-1's BPE.

    Args:
        form: ``"hf"`` or ``"original"``.

    Returns:
        The normalizer, None if the text comes cleaned, and the pre-tokenizer.
    """
    if form == "hf":
        return normalizers.BertNormalizer(lowercase=True), pre_tokenizers.BertPreTokenizer()
    return None, pre_tokenizers.Split(" ", "removed")
