"""What happens around the train step: the log, the live bar, evaluation, saving, early stopping."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from mindspore.train import Callback, RunContext

from ms_gpt import checkpoint
from ms_gpt.checkpoint.atomic import explain_os_errors, make_folder
from ms_gpt.console import Console
from ms_gpt.errors import UserError
from ms_gpt.training.loss_scale import LossScaler
from ms_gpt.training.perplexity import perplexity

if TYPE_CHECKING:
    from ms_gpt.training.trainer import Trainer


def default_console() -> Console:
    """Return the terminal, for a trainer that was given no console."""
    return Console()


class MetricsLog:
    """``metrics.jsonl``: one JSON object a line, appended; lines after a resumed step are dropped first.

    Args:
        folder: Where the file lies; made if it does not exist.
        phase: Written into every record, such as ``"pretrain"``.
    """

    def __init__(self, folder: Path, phase: str) -> None:
        self.path, self.phase = Path(folder) / "metrics.jsonl", phase
        make_folder(folder)

    def read(self) -> list[dict[str, Any]]:
        """Return all records; a line cut short by a kill is passed over."""
        records = []
        if self.path.exists():
            for line in self.path.read_text(encoding="utf-8").splitlines():
                with contextlib.suppress(ValueError):
                    records.append(json.loads(line))
        return records

    def restart(self, step: int) -> None:
        """Forget this phase's records after a step.

        Args:
            step: The step that training goes on from; 0 for a new run.
        """
        kept = [item for item in self.read() if item.get("phase") != self.phase or item["step"] <= step]
        checkpoint.write_text(self.path, "".join(json.dumps(item) + "\n" for item in kept))

    def write(self, **record: Any) -> None:
        """Append a record."""
        with explain_os_errors(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"phase": self.phase, **record}) + "\n")


class Progress(Callback):
    """Draws the live bar, announces compilations and writes training records.

    Args:
        trainer: Whose state is shown.
        console: Where it is drawn.
        log: Where records go.
    """

    def __init__(self, trainer: Trainer, console: Console, log: MetricsLog) -> None:
        super().__init__()
        self.trainer, self.console, self.log = trainer, console, log
        self.seen_shapes: set[tuple[int, ...]] = set()
        self.stack = contextlib.ExitStack()
        self.compiling = contextlib.ExitStack()
        self.pending: list[tuple] = []
        self.batches, self.tokens, self.seconds = 0, 0, 0.0
        self.overflows = 0

    def on_train_begin(self, run_context: RunContext) -> None:
        """Open the bar."""
        state, scaler = self.trainer.state, self.trainer.scaler
        self.overflows = int(scaler.overflows.asnumpy()) if scaler is not None else 0
        self.bar = self.stack.enter_context(
            self.console.progress(state.max_steps, self.trainer.phase, start=state.step))

    def on_train_step_begin(self, run_context: RunContext) -> None:
        """Announce a compilation if this batch's shape is new."""
        # A batch in the device's queue cannot be seen; one of its shape stands for it.
        self.batch = run_context.original_args().train_dataset_element or self.trainer.sample_batch()
        shape = tuple(self.batch[0].shape)
        self.is_new = shape not in self.seen_shapes
        if self.is_new and self.trainer.args.mode == "graph":
            self.seen_shapes.add(shape)
            self.compiling.enter_context(self.console.compiling(f"the training graph for batches of {_shape(shape)}"))
        self.started = time.perf_counter()

    def on_train_step_end(self, run_context: RunContext) -> None:
        """Count the step; every ``logging_steps`` write a record."""
        state, args = self.trainer.state, self.trainer.args
        state.step += 1
        state.batch += 1
        self.pending.append(run_context.original_args().net_outputs)
        if self.is_new:
            self.pending[-1][0].asnumpy()
            self.compiling.close()
            self.bar.restart_clock()
        else:
            self.batches += 1
            self.tokens += self.trainer.count_tokens(self.batch)
            self.seconds += time.perf_counter() - self.started
        if state.step % args.logging_steps == 0 or state.step == state.max_steps:
            self.flush()
        elif self.is_new:
            self.bar.update(state.step)

    def flush(self) -> None:
        """Fetch the losses of the last steps from the device, show and write them."""
        state = self.trainer.state
        steps = [tuple(float(value.asnumpy()) for value in outputs) for outputs in self.pending]
        self.pending.clear()
        scaling = self.loss_scaling()
        # Batches that overflowed have changed nothing, and their losses mean nothing.
        good = [step for step in steps if not scaling or np.isfinite(step[1])]
        losses, norm, rate = [step[0] for step in good or steps], *(good or steps)[-1][1:]
        speed = self.tokens / self.seconds if self.seconds else None
        pace = 1000 * self.seconds / self.batches if self.batches else None
        self.batches, self.tokens, self.seconds = 0, 0, 0.0
        loss = float(np.mean(losses))
        if (good and not np.isfinite(loss)) or (not good and scaling["loss_scale"] <= LossScaler.smallest):
            last = self.trainer.output_dir / "last"
            saved = f"; {last} holds the last save" if checkpoint.has_state(last) else ""
            raise UserError(f"the loss is {loss} at step {state.step}: lower the learning rate "
                            f"({self.trainer.args.learning_rate:g}) or check the labels{saved}")
        # A classifier's loss has parts, and no perplexity.
        figures = {} if self.trainer.is_classifier or not good else {"perplexity": perplexity(loss)}
        loss, norm = (value if np.isfinite(value) else None for value in (loss, norm))
        self.log.write(step=state.step, epoch=round(state.epochs_done, 4), loss=loss, **figures, learning_rate=rate,
                       grad_norm=norm, ms_per_batch=pace, tokens_per_second=speed, **scaling)
        if "accuracy" in state.last_eval:
            figures["accuracy"] = state.last_eval["accuracy"]
        self.bar.update(state.step, loss=loss, learning_rate=rate, **figures, ms_per_batch=pace,
                        tokens_per_second=speed)

    def loss_scaling(self) -> dict[str, float]:
        """Return the figures of a run with loss scaling, and say so if there were overflows since the last time."""
        scaler = self.trainer.scaler
        if scaler is None:
            return {}
        scale, overflows = float(scaler.scale.asnumpy()), int(scaler.overflows.asnumpy())
        if overflows > self.overflows:
            self.trainer.console.note(f"{self.trainer.phase} step {self.trainer.state.step}: float16 overflowed, "
                                      f"{overflows} batches skipped so far; loss scale {scale:g}")
            self.overflows = overflows
        return {"loss_scale": scale, "overflows": overflows}

    def on_train_end(self, run_context: RunContext) -> None:
        """Close the bar."""
        if self.pending:
            self.flush()
        self.close()

    def close(self) -> None:
        """Close the bar, after an interruption too."""
        self.compiling.pop_all()
        self.stack.close()


class EvaluateAndSave(Callback):
    """Evaluates and saves at the end of each epoch or every N steps, keeps the best, stops early.

    Args:
        trainer: What evaluates and saves.
    """

    def __init__(self, trainer: Trainer) -> None:
        super().__init__()
        self.trainer = trainer

    def on_train_step_end(self, run_context: RunContext) -> None:
        """Do what is due after this step."""
        trainer, args, state = self.trainer, self.trainer.args, self.trainer.state
        ends_epoch = state.batch == state.steps_per_epoch
        is_last = state.step >= state.max_steps
        if ends_epoch:
            state.epoch, state.batch = state.epoch + 1, 0
        evaluates = _is_due(args.eval_strategy, args.eval_steps, state.step, ends_epoch, is_last)
        saves = _is_due(args.save_strategy, args.save_steps, state.step, ends_epoch, is_last)
        if evaluates and trainer.eval_batches is not None:
            state.stopped = trainer.evaluate_and_keep_best() or state.stopped
            # The model is shared with the train step, whose next bucket may be compiled only now.
            trainer.model.set_train()
            self.announce()
        if saves:
            trainer.save_state()
        if is_last or state.stopped:
            run_context.request_stop()

    def announce(self) -> None:
        """Say how the evaluation went."""
        state = self.trainer.state
        figures = {key: value for key, value in state.last_eval.items() if isinstance(value, float)}
        shown = "  ".join(f"{key} {value:.4f}" for key, value in figures.items())
        mark = "  (best so far)" if state.best_step == state.step else ""
        self.trainer.console.note(
            f"{self.trainer.phase} epoch {state.epochs_done:.2f}, step {state.step}: {shown}{mark}")


class Samples(Callback):
    """Prints a text that the model writes, after each evaluation.

    Args:
        trainer: Whose model writes.
        write: Returns the text.
    """

    def __init__(self, trainer: Trainer, write: Callable[[], str]) -> None:
        super().__init__()
        self.trainer, self.write = trainer, write

    def on_train_step_end(self, run_context: RunContext) -> None:
        """Write if an evaluation was due."""
        trainer, state = self.trainer, self.trainer.state
        if _is_due(trainer.args.eval_strategy, trainer.args.eval_steps, state.step, state.batch == 0,
                   state.step >= state.max_steps):
            trainer.model.set_train(False)
            trainer.console.note(f"  sample: {self.write()!r}")
            trainer.model.set_train()


def _is_due(strategy: str, every: int, step: int, ends_epoch: bool, is_last: bool) -> bool:
    return strategy != "no" and (is_last or (ends_epoch if strategy == "epoch" else step % every == 0))


def _shape(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
