"""Zero-shot classification: which of a few continuations of a text a language model finds likeliest.

Nothing is trained and nothing generated: the probability of each continuation is read off one forward pass.

Source: Radford et al. 2018, "Improving Language Understanding by Generative Pre-Training", section 5.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os.path import commonprefix
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor, ops

from ms_gpt.compile_cache import CachedGraph
from ms_gpt.data import Dataset
from ms_gpt.data.batches import IGNORE_INDEX, Batches, choose_buckets
from ms_gpt.data.encode import clean_text
from ms_gpt.data.splits import check_labels
from ms_gpt.errors import UserError, suggest
from ms_gpt.heads import GPTLMHeadModel
from ms_gpt.layers import positions
from ms_gpt.losses import log_softmax
from ms_gpt.training.metrics import single_label_metrics
from ms_gpt.training.perplexity import check_vocabulary, fitting_batch_size, start_token


@dataclass(frozen=True)
class Task:
    """A classification that a language model can do as it is.

    Args:
        data: Name of its data set, as for ``load_dataset``.
        part: The part that results are reported on.
        verbalizers: Name of each class, in the order of their numbers, to the continuation that stands for it; with
            the blank that parts it from the text.
    """

    data: str
    part: str
    verbalizers: Mapping[str, str]

    @property
    def label2id(self) -> dict[str, int]:
        """Name of each class to its number."""
        return {name: number for number, name in enumerate(self.verbalizers)}


# Given the text, "very" is as likely in one as in the other: as in the paper, the last word decides.
_SENTIMENT = {"negative": " very negative", "positive": " very positive"}

TASKS = {
    # The labels of its test part are not public.
    "sst2": Task("sst2", "validation", _SENTIMENT),
    "imdb": Task("imdb", "test", _SENTIMENT),
    "sample": Task("sample", "test", _SENTIMENT),
}


def find_task(name: str) -> Task:
    """Return a task by name.

    Args:
        name: A key of ``TASKS``.

    Returns:
        The task.

    Raises:
        UserError: There is no such task.
    """
    if name not in TASKS:
        raise UserError(f"zero_shot={name!r} is not a task: known are {', '.join(TASKS)}.{suggest(name, TASKS)}")
    return TASKS[name]


class ContinuationLogProbs(CachedGraph):
    """Log-probabilities of what follows in a row, for several choices of it.

    Only the states that predict a scored token meet the vocabulary: logits of every position would fill the memory.

    Args:
        model: The language model.

    Inputs:
        input_ids: int Tensor (B, T), padded on the right.
        starts: int Tensor (B,), the position in front of the first scored token.
        targets: int Tensor (B, K, C), the next K tokens of each of C choices; -100 where it does not count.

    Outputs:
        float32 Tensor (B, K, C), in nats; 0 where the target does not count.

    Source: GPT-1 paper, section 5 (zero-shot behaviors).
    """

    def __init__(self, model: GPTLMHeadModel) -> None:
        super().__init__(auto_prefix=False)
        self.model = model

    def construct(self, input_ids: Tensor, starts: Tensor, targets: Tensor) -> Tensor:
        """Return the log-probabilities."""
        hidden_states = self.model.transformer(input_ids)[0]  # (B, T, D)
        batch, length, width = hidden_states.shape
        count, choices = targets.shape[1:]
        position = starts.reshape((batch, 1)) + positions(count)
        last = ops.full_like(position, length - 1)
        rows = positions(batch).reshape((batch, 1)) * length
        flat = (ops.where(position < length, position, last) + rows).reshape((-1,))
        picked = ops.gather(hidden_states.reshape((batch * length, width)), flat, 0)
        logits = self.model.lm_logits(picked.reshape((batch, count, width))).reshape((batch * count, -1))
        counted = targets != IGNORE_INDEX
        safe = ops.where(counted, targets, ops.zeros_like(targets)).reshape((batch * count, choices))
        chosen = ops.GatherD()(log_softmax(logits.astype(ms.float32)), 1, safe).reshape(targets.shape)
        return ops.where(counted, chosen, ops.zeros_like(chosen))


@dataclass
class _Rows:
    """What the model reads: choices that share all but their last token share a row.

    Args:
        inputs: Token ids of each of R rows.
        starts: int32 array (R,), as in ``ContinuationLogProbs``.
        targets: int32 array (R, K, C), likewise.
        row_of: int array (N, C), the row that scores a choice for a text.
    """

    inputs: list[list[int]]
    starts: np.ndarray
    targets: np.ndarray
    row_of: np.ndarray


class ContinuationScorer:
    """Scores fixed continuations of texts.

    The score of a continuation is the log-probability of all its tokens, given the text: what it takes several tokens
    to write is the sum over them, not their mean. Its tokens are those of text and continuation together that come
    after the beginning they share with the text alone, so a tokenizer may join the two as it likes. A text too long
    for the model loses its beginning, and an empty one is taken for the start of a document.

    Args:
        model: The language model.
        tokenizer: Its tokenizer.
        continuations: What may follow a text, each with the blank in front of it.
        batch_size: Rows in a batch; by default as many as fit the memory of a small machine.

    Raises:
        UserError: ``batch_size`` is no size of a batch.
    """

    def __init__(self, model: GPTLMHeadModel, tokenizer: Any, continuations: Sequence[str],
                 batch_size: int | None = None) -> None:
        if batch_size is not None and batch_size < 1:
            raise UserError(f"batch_size={batch_size} is not a whole number of at least 1")
        self.model, self.tokenizer, self.continuations = model, tokenizer, list(continuations)
        self.batch_size = batch_size
        self.step = ContinuationLogProbs(model).set_train(False)
        self.truncated = 0

    def score(self, texts: Sequence[str]) -> np.ndarray:
        """Score every continuation of every text; ``truncated`` counts the texts that were cut.

        Args:
            texts: At least one.

        Returns:
            Log-probabilities in nats, float64 array (N, C).

        Raises:
            UserError: There is no text, or the model or the tokenizer does not fit the continuations.
        """
        rows = self._rows(self.encode(texts))
        lengths = [len(row) for row in rows.inputs]
        buckets = choose_buckets(lengths, self.model.config.n_positions)
        batch_size = self.batch_size or fitting_batch_size(self.model.config, buckets[-1])
        batches = Batches(rows.inputs, [0] * len(rows.inputs), batch_size, buckets)
        found = np.zeros((len(rows.inputs), len(self.continuations)))
        self.model.set_train(False)
        for length, indices in batches.plan(0):
            full = np.resize(indices, batch_size)
            input_ids = batches.collate(length, full)[0]
            parts = self.step(Tensor(input_ids), Tensor(rows.starts[full]), Tensor(rows.targets[full])).asnumpy()
            found[indices] = parts[: len(indices)].sum(1, dtype=np.float64)
        return np.take_along_axis(found, rows.row_of, 0)

    def encode(self, texts: Sequence[str]) -> list[tuple[list[int], list[list[int]]]]:
        """Turn texts into contexts and continuations, as token ids that fit the model.

        Args:
            texts: At least one.

        Returns:
            A pair for each text, of the context and its C continuations.

        Raises:
            UserError: As for ``score``.
        """
        if not len(texts):
            raise UserError("there is no text to score: the data set is empty")
        texts = [clean_text(text).rstrip() for text in texts]
        alone = self.tokenizer.encode_batch(texts)
        joined = [self.tokenizer.encode_batch([text + ending for text in texts]) for ending in self.continuations]
        pairs, longest = [], 1
        for ids, *whole in zip(alone, *joined, strict=True):
            shared = len(commonprefix([ids, *whole]))
            endings = [item[shared:] for item in whole]
            if not all(endings) or len(set(map(tuple, endings))) < len(endings):
                raise UserError(f"the tokenizer cannot tell {self.continuations} apart: its vocabulary lacks the "
                                "words, so give a model that knows more of them")
            longest = max(longest, *map(len, endings))
            pairs.append((ids[:shared] or [start_token(self.tokenizer)], endings))
        check_vocabulary(max(max(*context, *sum(endings, [])) for context, endings in pairs), self.model.config)
        # The last token is predicted and not read.
        room = self.model.config.n_positions + 1 - longest
        if room < 1:
            raise UserError(f"a continuation of {longest} tokens leaves no room for text in n_positions="
                            f"{self.model.config.n_positions} of this model")
        self.truncated = sum(len(context) > room for context, _ in pairs)
        return [(context[-room:], endings) for context, endings in pairs]

    def _rows(self, pairs: Sequence[tuple[list[int], list[list[int]]]]) -> _Rows:
        inputs, starts, scored = [], [], []
        row_of = np.zeros((len(pairs), len(self.continuations)), np.int64)
        for number, (context, endings) in enumerate(pairs):
            found: dict[tuple[int, ...], int] = {}
            for choice, ending in enumerate(endings):
                read = tuple(ending[:-1])
                if read not in found:
                    found[read] = len(inputs)
                    inputs.append([*context, *read])
                    starts.append(len(context) - 1)
                row_of[number, choice] = found[read]
                scored.append((found[read], choice, ending))
        targets = np.full((len(inputs), max(len(item[2]) for item in scored), len(self.continuations)), IGNORE_INDEX,
                          np.int32)
        for row, choice, ending in scored:
            targets[row, : len(ending), choice] = ending
        return _Rows(inputs, np.array(starts, np.int32), targets, row_of)


def score_zero_shot(scorer: ContinuationScorer, dataset: Dataset) -> dict[str, Any]:
    """Score labelled texts.

    Args:
        scorer: Has one continuation for each class, in their order.
        dataset: Columns ``text`` and ``label``, the number of the class.

    Returns:
        ``loss`` (cross-entropy in nats, with the probabilities of the continuations scaled to sum up to 1),
        ``accuracy``, ``f1``, ``confusion`` and ``n``.

    Raises:
        UserError: A label is not the number of a class, or as for ``ContinuationScorer.score``.
    """
    check_labels(dataset["label"], len(scorer.continuations), "single_label_classification")
    return single_label_metrics(scorer.score(dataset["text"]), np.asarray(dataset["label"]))
