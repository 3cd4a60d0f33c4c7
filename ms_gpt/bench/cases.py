"""What is measured: the work of each case, its sizes, the weights and the batch that all sides are given."""

from __future__ import annotations

import zlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ms_gpt.errors import UserError

if TYPE_CHECKING:
    import numpy as np

CASES = {
    "classifier": "train step of a GPT-1 classifier: forward, loss, gradients, clipping, AdamW",
    "lm": "train step of a GPT-2 language model",
    "gradient": "forward, loss and gradients of a GPT-1 classifier, without an update",
    "forward": "logits of a GPT-1 language model at every position, without dropout or gradients",
    "prefill": "GPT-2 reads a prompt and says the next token",
    "decode": "GPT-2 reads a prompt and writes 128 tokens, greedily, with a cache",
}
NEW_TOKENS = 128
# Of the update, the same on all sides. Decay skips biases, LayerNorm and embeddings.
OPTIMIZER = {"learning_rate": 1e-4, "beta1": 0.9, "beta2": 0.95, "epsilon": 1e-8, "weight_decay": 0.1}
MAX_GRAD_NORM = 1.0
PAD_TOKEN_ID = 0
_FAMILIES = {"classifier": "openai-gpt", "gradient": "openai-gpt", "forward": "openai-gpt"}
_CLASSIFIERS = ("classifier", "gradient")
_TRAINED = ("classifier", "lm", "gradient")
_GENERATED = ("prefill", "decode")

# Small and medium are nanoGPT's settings for characters, on a CPU and on a GPU.
_MODELS = {
    "tiny": {"n_layer": 2, "n_head": 2, "n_embd": 32, "vocab_size": 65},
    "small": {"n_layer": 4, "n_head": 4, "n_embd": 128, "vocab_size": 65},
    "medium": {"n_layer": 6, "n_head": 6, "n_embd": 384, "vocab_size": 65},
    "base": {"n_layer": 12, "n_head": 12, "n_embd": 768},
}
SIZES = tuple(_MODELS)
_BATCHES = {"tiny": (2, 16), "small": (12, 64), "medium": (8, 256), "base": (4, 128)}
# The rows of the README's table: case, size, batch, length.
README_ROWS = (
    ("classifier", "base", 4, 128),
    ("lm", "medium", 8, 256),
    ("lm", "small", 12, 64),
    ("forward", "base", 8, 128),
    ("prefill", "base", 1, 64),
    ("decode", "base", 1, 64),
    ("decode", "base", 8, 64),
)


@dataclass(frozen=True)
class Case:
    """One row of the table.

    Args:
        name: One of ``CASES``.
        size: One of ``SIZES``.
        batch: Rows, at least 1.
        length: Tokens in a row, at least 2; of the prompt, where text is generated.
        new_tokens: Tokens that are generated for each row; 0 where none are.
    """

    name: str
    size: str
    batch: int
    length: int
    new_tokens: int = 0

    @classmethod
    def of(cls, name: str, size: str, batch: int | None = None, length: int | None = None) -> Case:
        """Build a case; batch and length, unless given, are those of the README's row, or go with the size.

        Args:
            name: One of the cases.
            size: One of the sizes.
            batch: Rows, at least 1; default as above.
            length: Tokens in a row, at least 1; default as above.

        Returns:
            The case.

        Raises:
            UserError: ``batch`` or ``length`` is out of its range.
        """
        usual_batch, usual_length = next((row[2:] for row in README_ROWS if row[:2] == (name, size)), _BATCHES[size])
        batch, length = usual_batch if batch is None else batch, usual_length if length is None else length
        case = cls(name, size, batch, length, {"prefill": 1, "decode": NEW_TOKENS}.get(name, 0))
        longest = (1024 if case.family == "gpt2" else 512) - case.new_tokens
        if batch < 1:
            raise UserError(f"batch={batch} is not a whole number of at least 1")
        if not 2 <= length <= longest:
            raise UserError(f"length={length} is outside 2 to {longest}, what the case {name!r} has room for")
        return case

    @property
    def family(self) -> str:
        """The model's family, ``"openai-gpt"`` or ``"gpt2"``."""
        return _FAMILIES.get(self.name, "gpt2")

    @property
    def architecture(self) -> str:
        """The model's class in transformers."""
        head = "ForSequenceClassification" if self.name in _CLASSIFIERS else "LMHeadModel"
        return {"openai-gpt": "OpenAIGPT", "gpt2": "GPT2"}[self.family] + head

    @property
    def trains(self) -> bool:
        """Whether gradients are computed, with dropout."""
        return self.name in _TRAINED

    @property
    def updates(self) -> bool:
        """Whether an optimizer moves the weights."""
        return self.trains and self.name != "gradient"

    @property
    def generates(self) -> bool:
        """Whether tokens are generated."""
        return self.name in _GENERATED

    @property
    def tokens(self) -> int:
        """Tokens that one step works through: those written by ``decode``, else those read."""
        return self.batch * (self.new_tokens if self.name == "decode" else self.length)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields, as a child process is told them."""
        return asdict(self)

    def model_settings(self) -> dict[str, Any]:
        """Return the fields of the model's ``GPTConfig``."""
        settings = {"model_type": self.family, **_MODELS[self.size]}
        if self.size != "base":
            settings["n_positions"] = self.length + self.new_tokens
        # transformers has no dropout in front of its classifier.
        return {**settings, "classifier_pdrop": 0.0, "pad_token_id": PAD_TOKEN_ID}


def readme_cases() -> list[Case]:
    """Return the rows of the README's table."""
    return [Case.of(*row) for row in README_ROWS]


def flops(case: Case) -> float:
    """Count the floating-point operations of one step's matrix products, a product and a sum being two.

    Counted is what the task needs: scores for the tokens that a query may see (half of T x T), logits where they are
    used, twice the forward pass for the gradients. What else a step does (softmax, LayerNorm, activations, dropout,
    the update) is not counted, so that a step that were nothing but products would reach the machine's limit.

    Args:
        case: The work.

    Returns:
        Operations in one step.
    """
    from ms_gpt.config import GPTConfig

    config = GPTConfig(**case.model_settings())
    width, layers = config.n_embd, config.n_layer
    # The last token that is generated is not read again.
    read = case.length + max(case.new_tokens - 1, 0)
    projections = 2 * layers * (4 * width * width + 2 * width * config.inner_size) * read
    attention = 2 * layers * 2 * width * (read * (read + 1) // 2)
    if case.name in _CLASSIFIERS:
        head = 2 * width * config.num_labels
    else:
        head = 2 * width * config.vocab_size * (case.new_tokens or case.length)
    return float(case.batch * (projections + attention + head) * (3 if case.trains else 1))


def write_inputs(case: Case, folder: Path) -> None:
    """Write the model and the batch of a case, from fixed seeds, for all sides to read.

    Args:
        case: The work.
        folder: Gets what ``save_pretrained`` would write, and ``batch.npz`` with ``input_ids`` int32 (B, T) and
            ``labels`` int32: (B,) classes, or (B, T) next tokens.
    """
    import numpy as np

    from ms_gpt import checkpoint
    from ms_gpt.config import GPTConfig

    config = GPTConfig(**case.model_settings())
    shapes = checkpoint.expected_shapes(config, case.architecture)
    weights = {name: _draw(name, shape) for name, shape in shapes.items()}
    checkpoint.write_folder(folder, config, weights, case.architecture)
    rng = np.random.default_rng(0)
    # No padding tokens among them: a classifier would look for the end of the text in front of one.
    ids = rng.integers(PAD_TOKEN_ID + 1, config.vocab_size, (case.batch, case.length + 1)).astype(np.int32)
    labels = rng.integers(0, 2, case.batch).astype(np.int32) if case.name in _CLASSIFIERS else ids[:, 1:]
    np.savez(folder / "batch.npz", input_ids=ids[:, :-1], labels=labels)


def read_batch(folder: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """Return ``input_ids`` and ``labels`` as ``write_inputs`` wrote them."""
    import numpy as np

    with np.load(Path(folder) / "batch.npz") as arrays:
        return arrays["input_ids"], arrays["labels"]


def _draw(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Draw a tensor: no bias is 0 and no gain 1, or a side that forgets one would not be found out."""
    import numpy as np

    values = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape, np.float32) * np.float32(0.02)
    return values + np.float32(1.0) if name.endswith("gamma") else values


def last_token_loss(logits: np.ndarray, labels: np.ndarray) -> float:
    """Return the mean loss of the last position: what the sides must agree on where no loss is computed.

    Args:
        logits: float array (B, V) of the last position.
        labels: int array (B, T) of next tokens.

    Returns:
        The loss in nats.
    """
    import numpy as np

    logits = logits.astype(np.float64)
    highest = logits.max(-1, keepdims=True)
    log_sum = np.log(np.exp(logits - highest).sum(-1)) + highest[:, 0]
    return float((log_sum - logits[np.arange(len(logits)), labels[:, -1]]).mean())
