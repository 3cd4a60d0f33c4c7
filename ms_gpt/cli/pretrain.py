"""``ms-gpt pretrain``: any text in, a language model out."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ms_gpt.cli import to_json
from ms_gpt.cli.options import TrainingRuntimeOptions, option
from ms_gpt.cli.runs import place, resumable
from ms_gpt.cli.texts import downloading
from ms_gpt.console import Console
from ms_gpt.training.recipe import PRETRAIN_RECIPES, pretrain_recipe

HELP = "train a language model on any text"
EXAMPLES = f"""examples:
  ms-gpt pretrain                                      a small model of the built-in sample
  ms-gpt pretrain --data book.txt                      your text: a file, a folder or a .jsonl
  ms-gpt pretrain --recipe shakespeare-char            a recipe: {', '.join(PRETRAIN_RECIPES)}
  ms-gpt pretrain --recipe adder-2                     sums of two numbers, as in minGPT
  ms-gpt pretrain --model gpt2-folder --data book.txt  go on with a model
"""

_BY_RECIPE = "chosen by the recipe"


@dataclass(kw_only=True)
class PretrainOptions(TrainingRuntimeOptions):
    """What to train on, what to start from, how.

    Args:
        recipe: Settings that belong together; a flag beside it wins.
        data: sample, shakespeare, wikitext2, addition-2, addition-3, or a text file, a folder of texts, or a .jsonl,
            .csv or .tsv with a column of texts (each also .gz or .xz).
        eval_data: Text that chooses the best step, instead of a part of the data.
        test_data: Text that is scored once, at the end.
        text_column: Column that holds the text.
        shares: Shares of the data to train, validate and test on, where it is not in parts.
        model: Model to go on with: a folder or a name on the hub; left out, training starts from scratch.
        tokenizer: byte-bpe, bpe, words or characters, learnt on the training texts; or a folder; the model's own if
            there is one.
        vocab_size: Most tokens to learn.
        min_frequency: How often a word or a pair has to occur to become a token.
        output_dir: Folder of the run.
        cache_dir: Folder for token ids, which are kept from run to run.
        resume: Go on from last/ in the output folder.
        model_type: openai-gpt (GPT-1), gpt2, or ms_gpt (GPT-3: every second layer looks at a window).
        n_layer: Blocks of a model from scratch.
        n_head: Attention heads of a model from scratch.
        n_embd: Width of a model from scratch.
        window_size: Tokens that GPT-3's local layers look at.
        block_size: Tokens in a block.
        dropout: Dropout on embeddings and residual branches.
        attention_dropout: Dropout on attention weights.
        per_device_train_batch_size: Blocks in an update.
        per_device_eval_batch_size: Blocks in an evaluation batch.
        num_train_epochs: Passes over the training data.
        max_steps: Train for this many updates instead of whole epochs.
        learning_rate: Peak of the schedule.
        lr_scheduler_type: Shape of the schedule after the warm-up.
        warmup_steps: Updates over which the learning rate rises.
        min_lr_ratio: Rate at the end as a share of the peak.
        weight_decay: Decoupled decay of the weight matrices.
        decay_embeddings: Decay the embeddings too.
        adam_beta1: Decay of Adam's first moment.
        adam_beta2: Decay of Adam's second moment.
        max_grad_norm: Gradients are scaled down to this norm; 0 for never.
        batch_ramp_steps: Updates over which the batch grows from a quarter to its full size, as GPT-3's did.
        softmax_tokens: Tokens of a large vocabulary that each update scores, which is faster; 0 for all.
        eval_steps: Updates between two evaluations; 0 for one at the end of each epoch.
        save_steps: Updates between two saves of last/; 0 for one with each evaluation.
        logging_steps: Updates between two lines of metrics.jsonl.
        early_stopping_patience: Stop after this many evaluations without a better one.
        sample_prompt: What the samples printed during training begin with.
        sample_tokens: Length of those samples; 0 for none.
    """

    TITLE = "data, model and recipe"

    recipe: str = "small"
    data: str | None = option(None, shown_default="the recipe's; sample without one")
    eval_data: str | None = option(None, shown_default="the data's own, or a part of it")
    test_data: str | None = option(None, shown_default="the data's own, or a part of it")
    text_column: str | None = option(None, shown_default="guessed")
    shares: list[float] | None = option(None, shown_default="0.8 0.1 0.1")
    model: str | None = option(None, metavar="MODEL", shown_default="none, train from scratch")
    tokenizer: str | None = option(None, shown_default=_BY_RECIPE)
    vocab_size: int | None = option(None, shown_default=_BY_RECIPE)
    min_frequency: int | None = option(None, shown_default=_BY_RECIPE)
    output_dir: Path | None = option(None, shown_default="runs/NAME-OF-RECIPE-OR-DATA")
    cache_dir: Path | None = option(None, shown_default="the user's cache folder")
    resume: bool = False
    model_type: Literal["openai-gpt", "gpt2", "ms_gpt"] | None = option(None, shown_default=_BY_RECIPE)
    n_layer: int | None = option(None, shown_default=_BY_RECIPE)
    n_head: int | None = option(None, shown_default=_BY_RECIPE)
    n_embd: int | None = option(None, shown_default=_BY_RECIPE)
    window_size: int | None = option(None, shown_default=_BY_RECIPE)
    block_size: int | None = option(None, shown_default=_BY_RECIPE)
    dropout: float | None = option(None, shown_default=_BY_RECIPE)
    attention_dropout: float | None = option(None, shown_default=_BY_RECIPE)
    per_device_train_batch_size: int | None = option(None, shown_default=_BY_RECIPE)
    per_device_eval_batch_size: int | None = option(None, shown_default=_BY_RECIPE)
    num_train_epochs: float | None = option(None, shown_default=_BY_RECIPE)
    max_steps: int | None = option(None, shown_default=_BY_RECIPE)
    learning_rate: float | None = option(None, shown_default=_BY_RECIPE)
    lr_scheduler_type: Literal["linear", "cosine", "constant"] | None = option(None, shown_default=_BY_RECIPE)
    warmup_steps: int | None = option(None, shown_default=_BY_RECIPE)
    min_lr_ratio: float | None = option(None, shown_default=_BY_RECIPE)
    weight_decay: float | None = option(None, shown_default=_BY_RECIPE)
    decay_embeddings: bool | None = option(None, shown_default=_BY_RECIPE)
    adam_beta1: float | None = option(None, shown_default=_BY_RECIPE)
    adam_beta2: float | None = option(None, shown_default=_BY_RECIPE)
    max_grad_norm: float | None = option(None, shown_default=_BY_RECIPE)
    batch_ramp_steps: int | None = option(None, shown_default=_BY_RECIPE)
    softmax_tokens: int | None = option(None, shown_default=_BY_RECIPE)
    eval_steps: int | None = option(None, shown_default=_BY_RECIPE)
    save_steps: int = 0
    logging_steps: int = 10
    early_stopping_patience: int | None = option(None, shown_default="never")
    sample_prompt: str | None = option(None, shown_default=_BY_RECIPE)
    sample_tokens: int | None = option(None, shown_default=_BY_RECIPE)


OPTIONS = PretrainOptions
_ONLY_FROM_SCRATCH = ("n_layer", "n_head", "n_embd", "model_type", "window_size")


def run(options: PretrainOptions) -> dict[str, Any]:
    """Train, evaluate, write the run folder.

    Args:
        options: What the user asked for.

    Returns:
        ``output_dir``, ``best`` (figures on the validation text) and ``test`` (figures on the test text, or ``None``).
    """
    name = options.data if options.recipe == "small" else options.recipe
    options = with_recipe(place(options, "pretrain", name or "pretrain", _ONLY_FROM_SCRATCH))
    console = Console(options.quiet, options.json)
    from ms_gpt import plots, runtime
    from ms_gpt.checkpoint.atomic import make_folder, write_json
    from ms_gpt.training import pretraining as steps

    running = runtime.setup(options.device, options.mode, options.dtype, options.seed)
    with downloading(console, options.data) as progress:
        corpus = steps.load_corpus(options, progress)
    with console.progress(0, "tokenizing") as bar:
        data = steps.load_data(options, corpus, bar.update)
    model = steps.build_model(options, data)
    # Everything the user may have got wrong about data and model shows before the folder is made.
    trainer = steps.build_trainer(model, data, options, console)
    make_folder(options.output_dir)
    console.header("pre-training", _facts(options, data, model, trainer, running))
    if options.warmup_steps >= trainer.state.max_steps:
        console.warn(f"all {trainer.state.max_steps} steps are warm-up, after which the learning rate would be "
                     f"{options.learning_rate:g}: lower --warmup-steps, now {options.warmup_steps}")
    with resumable(options, "pretrain", console):
        best = trainer.train(resume=options.resume)["best"] or trainer.score(data.parts["validation"])
    trainer.save_model(options.output_dir / "best")
    test = trainer.score(data.parts["test"]) if "test" in data.parts else None
    plots.loss_plot(trainer.log.read(), options.output_dir / "loss.png")
    _report(console, options, data, best, test)
    result = {"output_dir": str(options.output_dir), "best": best, "test": test}
    write_json(options.output_dir / "results.json", to_json(result))
    return result


def _facts(options: PretrainOptions, data: Any, model: Any, trainer: Any, running: Any) -> dict[str, str]:
    config, state = model.config, trainer.state
    kind = "sums" if data.is_addition else f"blocks of {options.block_size} tokens"
    window = f", every second layer with a window of {config.window_size}" if config.window_size else ""
    return {
        "data": f"{options.data}: {' / '.join(f'{len(part):,}' for part in data.parts.values())} {kind} to "
                f"{' / '.join(data.parts)}",
        "tokens": f"{type(data.tokenizer).__name__}, vocabulary {config.vocab_size:,}",
        "model": f"{config.model_type} from {options.model or 'scratch'}: {config.n_layer} layers, {config.n_head} "
                 f"heads, {config.n_embd} wide{window}, {model.num_parameters():,} parameters",
        "recipe": f"{options.recipe}: {state.max_steps:,} steps, {state.max_steps / state.steps_per_epoch:.2g} epochs, "
                  f"batch {options.per_device_train_batch_size}, learning rate {options.learning_rate:g} "
                  f"({options.lr_scheduler_type})",
        "runs on": f"{running.device}, {running.mode} mode, {running.dtype}, seed {running.seed}",
        "folder": str(options.output_dir),
    }


def _report(console: Console, options: PretrainOptions, data: Any, best: dict, test: dict | None) -> None:
    headings = {"loss": "loss", "perplexity": "perplexity", "perplexity_per_word": "per word",
                "bits_per_character": "bits/character", "accuracy": "accuracy",
                "n": "sums" if data.is_addition else "tokens"}
    names = [name for name in headings if name in best]
    scored = [("validation", best), *([("test", test)] if test else [])]
    console.table(["part", *(headings[name] for name in names)],
                  [[part, *(figures[name] for name in names)] for part, figures in scored])
    prompt = [options.sample_prompt] if options.sample_prompt else []
    console.next_command("generate", "--model", options.output_dir / "best", *prompt,
                         *(["--greedy"] if data.is_addition else []))


def with_recipe(options: PretrainOptions) -> PretrainOptions:
    """Fill what the user left open from the recipe.

    Args:
        options: As the user, or the run that goes on, set them.

    Returns:
        Options without open settings.

    Raises:
        UserError: The recipe is unknown.
    """
    defaults = pretrain_recipe(options.recipe)
    if options.num_train_epochs is not None:
        # Whoever asks for epochs does not want the recipe's number of steps.
        defaults["max_steps"] = None
    if options.model is not None:
        # It has its own.
        defaults["tokenizer"] = None
    return dataclasses.replace(
        options, **{name: value for name, value in defaults.items() if getattr(options, name) is None})
