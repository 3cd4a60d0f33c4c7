"""GPTConfig: what a model is, in Hugging Face's words, read from and written to ``config.json``."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

from ms_gpt.errors import UserError, suggest

ACTIVATIONS = ("gelu", "gelu_new", "gelu_exact", "gelu_pytorch_tanh", "relu", "silu", "swish", "tanh")
MODEL_TYPES = ("openai-gpt", "gpt2", "ms_gpt")
PROBLEM_TYPES = (None, "regression", "single_label_classification", "multi_label_classification")
_MAX_LAYERS, _MAX_LABELS = 10_000, 100_000
SUMMARY_TYPES = ("cls_index", "last", "first", "mean")

# Other names under which checkpoints and papers know the same field.
_SYNONYMS = {
    "afn": "activation_function",
    "block_size": "n_positions",
    "n_ctx": "n_positions",
    "hidden_size": "n_embd",
    "max_position_embeddings": "n_positions",
    "num_attention_heads": "n_head",
    "num_hidden_layers": "n_layer",
}

# transformers' name for an activation where it is another than ours, in pre-norm and in post-norm models.
_HF_ACTIVATIONS = {False: {"gelu_exact": "gelu"}, True: {"gelu_new": "gelu", "gelu_pytorch_tanh": "gelu"}}

_GPT3 = {"model_type": "ms_gpt", "n_positions": 2048, "window_size": 256}

PRESETS: dict[str, dict[str, Any]] = {
    "gpt1": {"model_type": "openai-gpt"},
    "gpt2": {"model_type": "gpt2"},
    "gpt2-medium": {"model_type": "gpt2", "n_layer": 24, "n_head": 16, "n_embd": 1024},
    "gpt2-large": {"model_type": "gpt2", "n_layer": 36, "n_head": 20, "n_embd": 1280},
    "gpt2-xl": {"model_type": "gpt2", "n_layer": 48, "n_head": 25, "n_embd": 1600},
    # GPT-3, with GPT-2's vocabulary. Two of the paper's rows do not divide: 1.3B (24 heads of 128 at 2,048 wide) has 16
    # heads here, 13B (5,140 wide) has 40 heads of 128.
    "gpt3-125m": {**_GPT3, "n_layer": 12, "n_head": 12, "n_embd": 768},
    "gpt3-350m": {**_GPT3, "n_layer": 24, "n_head": 16, "n_embd": 1024},
    "gpt3-760m": {**_GPT3, "n_layer": 24, "n_head": 16, "n_embd": 1536},
    "gpt3-1.3b": {**_GPT3, "n_layer": 24, "n_head": 16, "n_embd": 2048},
    "gpt3-2.7b": {**_GPT3, "n_layer": 32, "n_head": 32, "n_embd": 2560},
    "gpt3-6.7b": {**_GPT3, "n_layer": 32, "n_head": 32, "n_embd": 4096},
    "gpt3-13b": {**_GPT3, "n_layer": 40, "n_head": 40, "n_embd": 5120},
    "gpt3-175b": {**_GPT3, "n_layer": 96, "n_head": 96, "n_embd": 12288},
    "gopher-44m": {"model_type": "gpt2", "n_layer": 8, "n_head": 16, "n_embd": 512},
    "gpt-mini": {"model_type": "gpt2", "n_layer": 6, "n_head": 6, "n_embd": 192},
    "gpt-micro": {"model_type": "gpt2", "n_layer": 4, "n_head": 4, "n_embd": 128},
    "gpt-nano": {"model_type": "gpt2", "n_layer": 3, "n_head": 3, "n_embd": 48},
}

_FAMILY_DEFAULTS: dict[str, dict[str, Any]] = {
    "openai-gpt": {"vocab_size": 40478, "n_positions": 512, "activation_function": "gelu"},
    "gpt2": {"vocab_size": 50257, "n_positions": 1024, "activation_function": "gelu_new"},
    "ms_gpt": {"vocab_size": 50257, "n_positions": 1024, "activation_function": "gelu_new"},
}


@dataclass
class GPTConfig:
    """The shape and the behaviour of one GPT model; keys are those of Hugging Face's ``config.json``.

    The first two arguments are positional, as in minGPT. Fields left at ``None`` take the default of the family
    named by ``model_type``. Keys that this class does not know are kept in ``extra`` and written back.

    Args:
        vocab_size: Number of token ids, at least 1.
        n_positions: Longest sequence in tokens (also ``block_size``, ``n_ctx``).
        n_embd: Width of the hidden states; a multiple of ``n_head``.
        n_layer: Number of blocks.
        n_head: Attention heads in a block.
        model_type: ``"openai-gpt"`` (GPT-1: norm after each residual sum), ``"gpt2"`` (norm before, one more at
            the end) or ``"ms_gpt"`` (GPT-2 with settings that Hugging Face has no key for).
        activation_function: Activation of the MLP. As in transformers, ``"gelu"`` is the tanh form in GPT-1 (whose
            files call the key ``afn``) and the erf form in GPT-2; ``"gelu_new"`` and ``"gelu_pytorch_tanh"`` are the
            tanh form, ``"gelu_exact"`` the erf form everywhere.
        n_inner: Width of the MLP; ``None`` means ``4 * n_embd``.
        window_size: Every second layer, the first one not, attends to so many tokens only, the current one counted
            (GPT-3's locally banded attention); ``None`` lets all layers attend to all. Needs ``model_type="ms_gpt"``.
        resid_pdrop: Dropout rate on each residual branch, in [0, 1).
        embd_pdrop: Dropout rate on the embedding sum, in [0, 1).
        attn_pdrop: Dropout rate on the attention weights, in [0, 1).
        classifier_pdrop: Dropout rate in front of the classifier (GPT-1 paper, section 4.1: 0.1).
        layer_norm_epsilon: Added to the variance in LayerNorm.
        initializer_range: Standard deviation of the initial weights.
        scale_attn_weights: Divide attention scores by the square root of the head width.
        scale_attn_by_inverse_layer_idx: Divide them by the layer's number (from 1) as well.
        tie_word_embeddings: The language-model head is the token embedding.
        num_labels: Classes of a classifier; 1 means regression.
        id2label: Class index to name.
        problem_type: ``"regression"``, ``"single_label_classification"``, ``"multi_label_classification"`` or
            ``None`` to decide by ``num_labels``.
        lm_coef: Weight of the auxiliary language-model loss while fine-tuning (GPT-1 paper, equation 5).
        summary_type: What the multiple-choice head reads: ``"cls_index"``, ``"last"``, ``"first"`` or ``"mean"``.
        summary_use_proj: The multiple-choice head ends in a projection.
        summary_activation: Activation after that projection, or ``None``.
        summary_proj_to_labels: Project to ``num_labels`` and not to ``n_embd``.
        summary_first_dropout: Dropout rate in front of that projection.
        pad_token_id: Token that fills batches, or ``None``.
        bos_token_id: Token in front of a text, or ``None``.
        eos_token_id: Token at the end of a text, or ``None``.
        output_attentions: Models return the attention weights of every layer too.
        output_hidden_states: Models return the hidden states of every layer too.
        seed: Seed of the initial weights and of dropout.
        extra: Keys from ``config.json`` that are carried along untouched.

    Raises:
        UserError: A value is outside its range; the message names the key, the value and the rule.

    Source: GPT-1 (Radford et al. 2018), GPT-2 (Radford et al. 2019), GPT-3 (Brown et al. 2020, table 2.1);
    transformers' ``OpenAIGPTConfig`` and ``GPT2Config`` for the names.
    """

    vocab_size: int | None = None
    n_positions: int | None = None
    n_embd: int = 768
    n_layer: int = 12
    n_head: int = 12
    model_type: str = "openai-gpt"
    activation_function: str | None = None
    n_inner: int | None = None
    window_size: int | None = None
    resid_pdrop: float = 0.1
    embd_pdrop: float = 0.1
    attn_pdrop: float = 0.1
    classifier_pdrop: float = 0.1
    layer_norm_epsilon: float = 1e-5
    initializer_range: float = 0.02
    scale_attn_weights: bool = True
    scale_attn_by_inverse_layer_idx: bool = False
    tie_word_embeddings: bool = True
    num_labels: int = 2
    id2label: dict[int, str] | None = None
    problem_type: str | None = None
    lm_coef: float = 0.0
    summary_type: str = "cls_index"
    summary_use_proj: bool = True
    summary_activation: str | None = None
    summary_proj_to_labels: bool = True
    summary_first_dropout: float = 0.1
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | None = None
    output_attentions: bool = False
    output_hidden_states: bool = False
    seed: int = 0
    extra: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.model_type not in MODEL_TYPES:
            raise UserError(f"model_type={self.model_type!r} is not one of {', '.join(MODEL_TYPES)}."
                            f"{suggest(self.model_type, MODEL_TYPES)}")
        for key, value in _FAMILY_DEFAULTS[self.model_type].items():
            if getattr(self, key) is None:
                setattr(self, key, value)
        if self.id2label is not None:
            self.id2label = _numbered(self.id2label)
            self.num_labels = len(self.id2label)
        self.validate()

    @property
    def afn(self) -> str:
        """GPT-1's name for ``activation_function``."""
        return self.activation_function

    @property
    def block_size(self) -> int:
        """The longest sequence, by minGPT's name."""
        return self.n_positions

    @property
    def post_norm(self) -> bool:
        """Whether LayerNorm follows the residual sum (GPT-1) and not precedes the sub-block (GPT-2)."""
        return self.model_type == "openai-gpt"

    @property
    def inner_size(self) -> int:
        """Width of the MLP's hidden layer."""
        return self.n_inner or 4 * self.n_embd

    def is_local(self, layer: int) -> bool:
        """Say whether a layer (from 0) attends to ``window_size`` tokens only."""
        return self.window_size is not None and layer % 2 == 1

    @property
    def head_size(self) -> int:
        """Width of one attention head."""
        return self.n_embd // self.n_head

    @property
    def label2id(self) -> dict[str, int]:
        """Class name to index; ``LABEL_0`` and so on where no names were given."""
        return {name: index for index, name in self.label_names.items()}

    @property
    def label_names(self) -> dict[int, str]:
        """Class index to name, with ``LABEL_0`` and so on where no names were given."""
        return self.id2label or {i: f"LABEL_{i}" for i in range(self.num_labels)}

    def validate(self) -> None:
        """Check every value against its rule.

        Raises:
            UserError: One line that names the first key that breaks a rule.
        """
        for key in ("vocab_size", "n_positions", "n_embd", "n_head"):
            _check_int(key, getattr(self, key), minimum=1)
        # A false number in a file would have the names of so many parameters listed.
        _check_int("n_layer", self.n_layer, minimum=1, maximum=_MAX_LAYERS)
        # Every class is named in config.json.
        _check_int("num_labels", self.num_labels, minimum=1, maximum=_MAX_LABELS)
        _check_int("seed", self.seed, minimum=0)
        if self.n_inner is not None:
            _check_int("n_inner", self.n_inner, minimum=1)
        if self.window_size is not None:
            _check_int("window_size", self.window_size, minimum=1)
            if self.model_type != "ms_gpt":
                raise UserError(f"window_size={self.window_size} is a setting that Hugging Face's "
                                f"{self.model_type} lacks: leave it out, or set model_type='ms_gpt'")
        if self.n_embd % self.n_head:
            raise UserError(f"n_embd={self.n_embd} is not divisible by n_head={self.n_head}")
        _check_choice("activation_function", self.activation_function, ACTIVATIONS)
        if self.post_norm:
            # Hugging Face's GPT-1 cannot say these things, so a saved model would come back as another one.
            for key, values in (("n_inner", (None, 4 * self.n_embd)), ("scale_attn_weights", (True,)),
                                ("scale_attn_by_inverse_layer_idx", (False,)),
                                ("activation_function", tuple({*ACTIVATIONS} - {"gelu_exact", "tanh"}))):
                if getattr(self, key) not in values:
                    raise UserError(f"{key}={getattr(self, key)!r} is a setting of GPT-2: leave it out, or set "
                                    "model_type='gpt2'")
        for key in ("resid_pdrop", "embd_pdrop", "attn_pdrop", "classifier_pdrop", "summary_first_dropout"):
            _check_float(key, getattr(self, key), 0.0, 1.0)
        _check_float("layer_norm_epsilon", self.layer_norm_epsilon, 0.0, math.inf, open_low=True)
        _check_float("initializer_range", self.initializer_range, 0.0, math.inf)
        _check_float("lm_coef", self.lm_coef, 0.0, math.inf)
        _check_choice("summary_activation", self.summary_activation, (None, *ACTIVATIONS))
        _check_choice("problem_type", self.problem_type, PROBLEM_TYPES)
        _check_choice("summary_type", self.summary_type, SUMMARY_TYPES)
        for key in ("pad_token_id", "bos_token_id", "eos_token_id"):
            value = getattr(self, key)
            # -1 is how some published configurations say "none".
            if value is not None and not (isinstance(value, int) and -1 <= value < self.vocab_size):
                raise UserError(f"{key}={value!r} is outside the vocabulary: give an id in [0, {self.vocab_size})")
        if self.id2label is not None and sorted(self.id2label) != list(range(len(self.id2label))):
            raise UserError(f"id2label has the keys {sorted(self.id2label)}: number the classes from 0 without gaps")

    @classmethod
    def preset(cls, name: str, **overrides: Any) -> GPTConfig:
        """Build the configuration of a published or well-known model.

        Args:
            name: One of ``ms_gpt.config.PRESETS``, such as ``"gpt1"`` or ``"gpt2-medium"``.
            **overrides: Fields that differ from the preset.

        Returns:
            The configuration.

        Raises:
            UserError: The name is unknown, or a value breaks its rule.
        """
        if name not in PRESETS:
            raise UserError(f"preset {name!r} is unknown: choose one of {', '.join(PRESETS)}.{suggest(name, PRESETS)}")
        return cls.from_dict({**PRESETS[name], **overrides})

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> GPTConfig:
        """Build a configuration from ``config.json``'s content; unknown keys go to ``extra``.

        Args:
            values: Keys in Hugging Face's, minGPT's or this class's words.

        Returns:
            The configuration.

        Raises:
            UserError: A value breaks its rule.
        """
        known = {item.name for item in fields(cls)} - {"extra"}
        own: dict[str, Any] = {}
        extra: dict[str, Any] = {}
        for key, value in values.items():
            name = _SYNONYMS.get(key, key)
            if name not in known:
                extra[key] = value
            elif name == key or name not in values:
                own[name] = value
        for key in [key for key, value in own.items() if value is None]:
            if _field_default(key) is not None:
                del own[key]
        extra.pop("label2id", None)
        # transformers writes its default of 50256 whatever the vocabulary, and does without.
        for key in ("bos_token_id", "eos_token_id"):
            sizes = (own.get(key), own.get("vocab_size"))
            if all(isinstance(size, int) for size in sizes) and 0 < sizes[1] <= sizes[0]:
                del own[key]
        own["extra"] = {**extra, **values.get("extra", {})} if isinstance(values.get("extra"), dict) else extra
        own["extra"].pop("extra", None)
        return cls(**own)

    def to_dict(self) -> dict[str, Any]:
        """Return the content of ``config.json``: Hugging Face's keys, plain JSON values."""
        values = dict(self.extra)
        for item in fields(self):
            if item.name != "extra":
                values[item.name] = getattr(self, item.name)
        values["id2label"] = {str(key): name for key, name in self.label_names.items()}
        values["label2id"] = self.label2id
        del values["num_labels"]
        values["activation_function"] = _HF_ACTIVATIONS[self.post_norm].get(
            self.activation_function, self.activation_function)
        if self.model_type != "ms_gpt":
            del values["window_size"]
        if self.model_type == "openai-gpt":
            values["afn"] = values.pop("activation_function")
            del values["n_inner"], values["scale_attn_weights"], values["scale_attn_by_inverse_layer_idx"]
        return values

    @classmethod
    def from_json(cls, path: str | Path) -> GPTConfig:
        """Read a ``config.json``.

        Args:
            path: The file, or the folder that holds it.

        Returns:
            The configuration.

        Raises:
            UserError: The file is missing, is not JSON, is not an object, or holds a value that breaks its rule.
        """
        path = Path(path)
        path = path / "config.json" if path.is_dir() else path
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise UserError(f"{path} does not exist: give a model folder with a config.json") from None
        except (OSError, ValueError) as error:
            raise UserError(f"{path} cannot be read as JSON: {error}") from None
        if not isinstance(values, dict):
            raise UserError(f"{path} holds a JSON {type(values).__name__}: a model configuration is an object")
        return cls.from_dict(values)

    def to_json(self) -> str:
        """Return ``config.json``'s text, keys sorted, ending in a newline."""
        return json.dumps(self.to_dict(), indent=2, sort_keys=True, ensure_ascii=False) + "\n"

    def replace(self, **changes: Any) -> GPTConfig:
        """Return a copy with some fields changed, validated again.

        Args:
            **changes: Field names (or their synonyms) and new values.

        Returns:
            The new configuration.

        Raises:
            UserError: A name is not a field, or a value breaks its rule.
        """
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        if "num_labels" in changes:
            values["id2label"] = None
        for key, value in changes.items():
            name = _SYNONYMS.get(key, key)
            if name not in values:
                raise UserError(f"{key!r} is not a field of GPTConfig.{suggest(key, values)}")
            values[name] = value
        return GPTConfig(**values)


class GPT2Config(GPTConfig):
    """Makes a ``GPTConfig`` that is of the family GPT-2 where ``model_type`` is not given."""

    def __new__(cls, *args: Any, **values: Any) -> GPTConfig:
        """Return a ``GPTConfig``, so that it equals one of the same values."""
        return GPTConfig(*args, **({"model_type": "gpt2"} | values))


def _numbered(id2label: Any) -> dict[int, str]:
    try:
        return {int(key): str(value) for key, value in id2label.items()}
    except (AttributeError, TypeError, ValueError):
        raise UserError(f"id2label={id2label!r} is not a mapping from class numbers to names") from None


def _field_default(name: str) -> Any:
    item = next(item for item in fields(GPTConfig) if item.name == name)
    return None if item.default is MISSING else item.default


def _check_int(key: str, value: Any, minimum: int, maximum: int = 2**31 - 1) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
        raise UserError(f"{key}={value!r} is not a whole number of at least {minimum}")
    if value > maximum:
        raise UserError(f"{key}={value!r} is larger than {maximum}")


def _check_float(key: str, value: Any, low: float, high: float, open_low: bool = False) -> None:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not (low <= value < high) or (open_low and value == low) or value > sys.float_info.max:
        raise UserError(f"{key}={value!r} is outside {'(' if open_low else '['}{low:g}, {high:g})")


def _check_choice(key: str, value: Any, choices: tuple[Any, ...]) -> None:
    if value not in choices:
        names = [str(choice) for choice in choices if choice is not None]
        raise UserError(f"{key}={value!r} is not one of {', '.join(names)}.{suggest(value, names)}")
