"""The optimiser's loop: steps, validations, checkpoints, and how it ends early.

Everything that decides the result is a function of the settings and of what a checkpoint holds, so a training
that was killed and resumed ends with the same bits as one that was not (on the same machine, with the same
number of threads and processes).

Several processes train one prefix by the same loop (`pipeline.train.process_group`): each computes its share of the
step's examples, the sums of their gradients and losses are divided by the step's number of targets, and every process
clips and steps alike. With the gradients go the wishes to stop and to save, so that all do either after the same step.
"""

from __future__ import annotations

import errno
import io
import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import safetensors.torch
import torch

from pipeline.digest import tensors_digest
from pipeline.errors import NonFiniteLossError, TrainingError, TrainingInterruptedError
from pipeline.params import TrainingParams
from pipeline.train import checkpoints, dropout
from pipeline.train.batches import (
    AnyBatch,
    Indices,
    Rows,
    epoch_steps,
    examples_of,
    part_of,
    validation_batches,
)
from pipeline.train.interruption import SIGNALS, Interruption
from pipeline.train.losses import batch_loss
from pipeline.train.plan import Plan
from pipeline.train.process_group import ALONE, ProcessGroup
from pipeline.train.progress import TrainingProgress

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Ending = Literal["epochs", "max_steps", "patience"]
OnCurve = Callable[[Mapping[str, Any]], None]


@dataclass
class Counters:
    """What a checkpoint holds besides tensors.

    Attributes:
        step: optimiser steps done.
        validation_due: the last step asks for a validation that is not done yet.
        best_step, best_loss, best_accuracy: of the best validation so far.
        worse: validations since then.
        seconds: spent so far.
        curve_bytes: length of curves.jsonl.
    """

    step: int = 0
    validation_due: bool = False
    best_step: int = 0
    best_loss: float | None = None
    best_accuracy: float | None = None
    worse: int = 0
    seconds: float = 0.0
    curve_bytes: int = 0


class Loop:
    """One training of named tensors: those of the prefix and of the head.

    Args:
        model: the frozen base with the prefix attached, in evaluation mode.
        groups: {"prefix": {name: parameter}, "head": {name: parameter}}; all that is trained.
        rows, validation: the splits.
        folder: for checkpoints and curves.
        identity: digest of all that decides the result; a checkpoint of another is refused.
        on_curve: told each line of the curves as it is written, in the process that writes.
        group: the processes that train together; they must have been given equal arguments.
        dropped: what is dropped besides what the head reads.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        groups: Mapping[str, Mapping[str, torch.nn.Parameter]],
        *,
        rows: Rows,
        validation: Rows,
        params: TrainingParams,
        folder: Path,
        identity: str,
        on_curve: OnCurve | None,
        unit: str,
        group: ProcessGroup = ALONE,
        dropped: dropout.InBatch = dropout.nothing,
    ) -> None:
        self.counters = Counters()
        self.plan = Plan.of(params, len(rows.lengths))
        self._model, self._rows, self._validation = model, rows, validation
        self._params, self._folder, self._identity = params, folder, identity
        self._on_curve, self._unit, self._group = on_curve, unit, group
        self._dropped = dropped
        layers = dropout.head_layers(model, groups.get("head", {}))
        self._head_dropout = dropout.HeadDropout(params.dropout, params.seed, layers)
        self._curves: io.FileIO | None = None
        self._saved = 0.0
        self._save_due = False
        self._agreed: str | None = None
        self.trained = {
            f"{group}.{name}": p for group, members in groups.items() for name, p in members.items()
        }
        self.best = self._copied()
        rates = {"prefix": params.learning_rate, "head": params.head_learning_rate}
        self._optimiser = torch.optim.AdamW(
            [
                {"params": list(members.values()), "base": rates[group]}
                for group, members in groups.items()
                if members
            ],
            betas=(params.adam_beta1, params.adam_beta2),
            weight_decay=params.weight_decay,
        )
        self._epoch: tuple[int, list[Indices]] = (-1, [])

    # -- the loop ------------------------------------------------------------------------------------------

    def run(self) -> Ending:
        """Train to the end; the best tensors are then in `best`.

        Raises:
            NonFiniteLossError: a loss or gradient is NaN or infinite; no checkpoint of that step is kept.
            TrainingInterruptedError: SIGINT or SIGTERM came, to any of the processes; a checkpoint was written.
            LostProcessError: another process has ended.
            TrainingError: a checkpoint could not be written, those there are of another training, or the processes
                have come apart.
        """
        self._resume()
        self._saved = time.monotonic()
        counters, plan = self.counters, self.plan
        with (
            self._curves_opened(),
            TrainingProgress(plan.total, unit=self._unit, shown=self._group.first) as self._progress,
            Interruption() as self._interruption,
        ):
            if counters.step:
                self._progress.say(f"going on after step {counters.step} of {plan.total}")
            if counters.validation_due:
                self._validate()
            while True:
                if (ending := self.ending()) is not None:
                    self._check_alike()
                    return ending
                self._step()
                self._stop_if_interrupted()
                if counters.validation_due:
                    self._validate()
                if self._save_due:
                    self._save()

    def ending(self) -> Ending | None:
        """What has ended the training; None while there is a step to do."""
        plan = self.plan
        if self._params.patience is not None and self.counters.worse >= self._params.patience:
            return "patience"
        if self.counters.step < plan.total:
            return None
        return "epochs" if plan.total == plan.epoch_steps * self._params.epochs else "max_steps"

    def _step(self) -> None:
        began = time.monotonic()
        batches = self.begin_step()
        loss, targets = 0.0, 0.0
        for number, batch in enumerate(batches):
            dropped = self._dropped(self.counters.step + 1, number, examples_of(batch))
            with dropped, self.dropped_head(batch):
                piece = batch_loss(self._model, batch, self._params.dtype)
                piece.total.backward()  # type: ignore[no-untyped-call]
            loss, targets = loss + piece.total.item(), targets + piece.targets
        loss, targets = self._added([loss, targets], self._gradients())
        # By the targets of the whole step: so pieces, of one process or of several, add up to what one batch gives.
        loss /= targets
        for gradient in self._gradients():
            gradient /= targets
        rate = self.end_step(loss, targets, began)
        self._progress.step(self.counters.step, loss=loss, rate=rate)

    def begin_step(self) -> Sequence[AnyBatch]:
        """This process's batches of the next step, whose gradients are to be added up from zero."""
        self._optimiser.zero_grad()
        mine = self._examples(self.counters.step + 1)
        pieces = math.ceil(self._params.gradient_accumulation / self._group.size)
        return self._rows.batches(mine, pieces) if len(mine) else ()

    def dropped_head(self, batch: AnyBatch) -> AbstractContextManager[None]:
        """Inside the block the head drops what it does of `batch` in the step under way."""
        return self._head_dropout.of(self.counters.step + 1, examples_of(batch))

    def end_step(self, loss: float, targets: float, began: float) -> float:
        """Take the step that the gradients ask for; returns targets a second.

        Args:
            loss: of the step, in nats a target.
            targets: of all its batches.
            began: when the step began, by the monotonic clock.

        Raises:
            NonFiniteLossError: loss or gradients are NaN or infinite; no step was taken.
        """
        counters = self.counters
        step = counters.step + 1
        share = self.plan.rate(step)
        for group in self._optimiser.param_groups:
            group["lr"] = group["base"] * share
        norm = float(torch.nn.utils.clip_grad_norm_(self.trained.values(), self._params.max_grad_norm))
        if not (math.isfinite(loss) and math.isfinite(norm)):
            self._fail(step, f"the loss is {loss:g} and the gradient's norm {norm:g}")
        self._optimiser.step()
        counters.step = step
        counters.validation_due = self.plan.validates_after(step)
        seconds = time.monotonic() - began
        counters.seconds += seconds
        rate = targets / max(seconds, 1e-9)
        self._note(
            kind="step",
            loss=loss,
            learning_rate=self._params.learning_rate * share,
            grad_norm=norm,
            targets_per_second=round(rate, 1),
        )
        return rate

    @torch.no_grad()
    def _validate(self) -> None:
        began = time.monotonic()
        total, targets, right = 0.0, 0.0, 0.0
        for batch in validation_batches(self._validation, self._group.rank, self._group.size):
            piece = batch_loss(self._model, batch)
            assert piece.right is not None  # no gradients here
            total, targets, right = total + piece.total.item(), targets + piece.targets, right + piece.right
            if self._interruption.name is not None:
                break  # the sums below tell the other processes, and what they add up to is not used
        total, targets, right = self._added([total, targets, right])
        self._stop_if_interrupted()
        loss, accuracy = total / targets, right / targets
        self.end_validation(loss, accuracy, began)
        self._progress.say(
            f"step {self.counters.step}/{self.plan.total}  validation loss {loss:.4f}  accuracy {accuracy:.4f}"
            + ("  best so far" if not self.counters.worse else "")
        )

    def end_validation(self, loss: float, accuracy: float, began: float) -> None:
        """Keep the trained tensors if they are the best so far; `began` as in `end_step`.

        Raises:
            NonFiniteLossError: the loss is NaN or infinite.
        """
        counters = self.counters
        if not math.isfinite(loss):
            self._fail(counters.step, f"the validation loss is {loss:g}")
        counters.validation_due = False
        if counters.best_loss is None or loss < counters.best_loss:
            counters.best_step, counters.best_loss, counters.best_accuracy = counters.step, loss, accuracy
            counters.worse = 0
            self.best = self._copied()
        else:
            counters.worse += 1
        counters.seconds += time.monotonic() - began
        self._note(kind="validation", loss=loss, accuracy=accuracy)

    def _examples(self, step: int) -> Indices:
        """This process's share of step number `step`."""
        epoch, within = divmod(step - 1, self.plan.epoch_steps)
        if self._epoch[0] != epoch:
            params = self._params
            steps = epoch_steps(self._rows.lengths, params.batch_size, seed=params.seed, epoch=epoch)
            self._epoch = (epoch, steps)
        return part_of(self._epoch[1][within], self._rows.lengths, self._group.rank, self._group.size)

    def _gradients(self) -> list[torch.Tensor]:
        """Of all that is trained; zero where this process had nothing that depends on it."""
        for parameter in self.trained.values():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        return [parameter.grad for parameter in self.trained.values() if parameter.grad is not None]

    def _added(self, figures: Sequence[float], tensors: Sequence[torch.Tensor] = ()) -> list[float]:
        """Sums over all processes (see `ProcessGroup.sum`); on the way they agree whether to stop or to save."""
        due = self._group.first and time.monotonic() - self._saved >= self._params.checkpoint_seconds
        heard = [self._interruption.name == number.name for number in SIGNALS]
        *sums, due_sum, interrupts, terminations = self._group.sum(tensors, [*figures, due, *heard])
        self._save_due = due_sum > 0
        self._agreed = "SIGINT" if interrupts else "SIGTERM" if terminations else None
        return sums

    def _note(self, **figures: Any) -> None:
        if not self._group.first:
            return
        step = self.counters.step
        line = {
            "step": step,
            "epoch": round(step / self.plan.epoch_steps, 4),
            "seconds": round(self.counters.seconds, 3),
            **figures,
        }
        self._keep(line)
        if self._on_curve is not None:
            self._on_curve(line)

    def _keep(self, line: Mapping[str, Any]) -> None:
        assert self._curves is not None  # the first process has them open
        content = json.dumps(line).encode() + b"\n"
        with checkpoints.saving("the curve", self._folder):
            if self._curves.write(content) != len(content):  # the last bytes that the disk had room for
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _fail(self, step: int, what: str) -> None:
        rate = self._params.learning_rate * self.plan.rate(step)
        raise NonFiniteLossError(
            f"step {step} of {self.plan.total}: {what}, at learning rate {rate:.3g}. "
            f"Lower training.learning_rate (it is {self._params.learning_rate:g}) or training.max_grad_norm, or give "
            "training.warmup a larger share; no checkpoint of this step was kept"
        )

    def _stop_if_interrupted(self) -> None:
        # Of several processes none stops because of what it alone has heard: the others would wait for it.
        name = self._interruption.name if self._group.size == 1 else self._agreed
        if name is None:
            return
        self._save()
        raise TrainingInterruptedError(
            f"stopped by {name} after step {self.counters.step} of {self.plan.total}; "
            "a checkpoint is kept: run the same command again and training goes on from there"
        )

    # -- checkpoints ---------------------------------------------------------------------------------------

    def _copied(self) -> dict[str, torch.Tensor]:
        return {name: parameter.detach().clone() for name, parameter in self.trained.items()}

    def _save(self) -> None:
        """Write a checkpoint; every process returns when it is written."""
        if not all(torch.isfinite(parameter).all() for parameter in self.trained.values()):
            self._fail(self.counters.step, "the trained numbers are not finite")
        self._check_alike()
        if self._curves is not None:
            with checkpoints.saving("the curve", self._folder):
                os.fsync(self._curves.fileno())
            self.counters.curve_bytes = self._curves.tell()
            state = {"identity": self._identity, **asdict(self.counters)}
            tensors = self.state() | {"generator": torch.get_rng_state()}
            checkpoints.write(self._folder, self.counters.step, state, tensors)
        self._group.share(b"")
        self._saved = time.monotonic()

    def state(self) -> dict[str, torch.Tensor]:
        """What a checkpoint holds of this training in tensors."""
        tensors = {f"now.{name}": parameter.detach() for name, parameter in self.trained.items()}
        tensors |= {f"best.{name}": tensor for name, tensor in self.best.items()}
        for name, parameter in self.trained.items():
            for key, value in self._optimiser.state[parameter].items():
                tensors[f"adam.{key}.{name}"] = value
        return tensors

    def restore(self, counters: Counters, tensors: Mapping[str, torch.Tensor]) -> None:
        """Go on from there: `tensors` are what `state` was after as many steps."""
        self.counters = counters
        self._begin_from(tensors)
        for name, parameter in self.trained.items():
            self.best[name].copy_(tensors[f"best.{name}"])
            if not counters.step:
                continue  # the optimiser has nothing to remember yet
            for key in ("step", "exp_avg", "exp_avg_sq"):
                value = tensors[f"adam.{key}.{name}"]
                self._optimiser.state[parameter][key] = value if key == "step" else value.to(parameter.device)

    @torch.no_grad()
    def _begin_from(self, tensors: Mapping[str, torch.Tensor]) -> None:
        for name, parameter in self.trained.items():
            parameter.copy_(tensors[f"now.{name}"])
        self.best = self._copied()

    def _check_alike(self) -> None:
        """Refuse to go on where the processes do not hold the same numbers, to the bit.

        Raises:
            TrainingError: they have come apart.
        """
        if self._group.size == 1:
            return
        found = self._group.gather(tensors_digest(self.trained.items()))
        apart = [str(rank) for rank, digest in enumerate(found) if digest != found[0]]
        if apart:
            raise TrainingError(
                f"after step {self.counters.step} of {self.plan.total} the processes of rank {', '.join(apart)} hold "
                "other numbers than that of rank 0; expected the same to the bit. Train on machines of one kind, with "
                "equal libraries and numbers of threads"
            )

    def _resume(self) -> None:
        """Go on from the newest checkpoint, if there is one; every process from what that of rank 0 reads."""
        found = self._read() if self._group.first else None
        state, tensors = found or ({}, {})
        if self._group.size > 1:
            # Without a checkpoint too: where all start from is then the same to the bit.
            tensors = tensors or {
                f"now.{name}": parameter.detach() for name, parameter in self.trained.items()
            }
            state = json.loads(self._group.share(json.dumps(state).encode()))
            tensors = safetensors.torch.load(self._group.share(safetensors.torch.save(tensors)))
        if state:
            self.restore(Counters(**state), tensors)
            torch.set_rng_state(tensors["generator"])
        elif tensors:
            self._begin_from(tensors)
        else:
            self.best = self._copied()

    def _read(self) -> tuple[dict[str, Any], dict[str, torch.Tensor]] | None:
        """The newest checkpoint, the curves cut back to it."""
        with checkpoints.saving("the curve", self._folder):
            found = checkpoints.newest(self._folder)
            curves = self._folder / checkpoints.CURVES
            if found is None:
                curves.unlink(missing_ok=True)
                return None
            state, tensors = found
            checkpoints.check_identity(self._folder, state.pop("identity"), self._identity)
            os.truncate(curves, state["curve_bytes"])  # steps that will be done again
        return state, tensors

    @contextmanager
    def _curves_opened(self) -> Iterator[None]:
        """The curves can be written inside the block, by the process that writes."""
        if not self._group.first:
            yield
            return
        with (self._folder / checkpoints.CURVES).open("ab", buffering=0) as self._curves:
            yield
