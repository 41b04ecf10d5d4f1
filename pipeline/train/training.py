"""Training a prefix on prepared rows: from where it starts to an adapter on disk.

What is trained is the prefix and, for classification, the head on top of the base; the base itself is hashed
before and after, and stays in evaluation mode throughout (`pipeline.train.dropout`).
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from pipeline import digest, files
from pipeline.base.base_model import check_unchanged, head_parameters, weights_digest, window_of
from pipeline.base.padding import pad_token
from pipeline.data.dataset import load_prepared
from pipeline.data.splits import Split
from pipeline.errors import IntegrityError, PrefixError, TrainingError
from pipeline.params import PrefixParams, Task, TrainingParams
from pipeline.prefix.adapter import install_head, save_adapter
from pipeline.prefix.attention import attach
from pipeline.prefix.lean import lean
from pipeline.train import checkpoints, initialisation
from pipeline.train.batches import ClassificationRows, Rows, generation_rows
from pipeline.train.dropout import PrefixDropout
from pipeline.train.initialisation import Start, WarmStart, check_pooling
from pipeline.train.process_group import ProcessGroup, joined
from pipeline.train.training_loop import Ending, Loop, OnCurve

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

ADAPTER, SUMMARY = "adapter", "summary.json"
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainedSummary:
    """What a training came to.

    Attributes:
        manifest: {file: SHA-256} of the adapter and the curves, relative to the output folder.
        steps: optimiser steps done.
        best_step: the step whose prefix was kept, the one with the best validation loss.
        best_validation_loss: in nats; per row for classification, per target token for generation.
        best_validation_accuracy: share of rows (of target tokens) predicted right at that step.
        trainable_parameters: numbers trained (a projection counts whole, though it is folded away).
        base_parameters: numbers of the frozen base, without a head.
        seconds: in steps and validations, over all resumptions.
        base_digest_before, base_digest_after: `pipeline.base.base_model.weights_digest`.
        start: what the prefix was started from (`pipeline.train.initialisation.Start.record`).
        stopped: what ended it.
        processes: how many trained it together, since the last resumption.
    """

    manifest: Mapping[str, str]
    steps: int
    best_step: int
    best_validation_loss: float
    best_validation_accuracy: float
    trainable_parameters: int
    base_parameters: int
    seconds: float
    base_digest_before: str
    base_digest_after: str
    start: Mapping[str, Any]
    stopped: Ending
    processes: int

    def to_json(self) -> dict[str, Any]:
        """As trained.json holds it."""
        return asdict(self)


def train(
    model: PreTrainedModel,
    prefix_params: PrefixParams,
    training_params: TrainingParams,
    task: Task,
    prepared: Path,
    out: Path,
    checkpoint_folder: Path,
    *,
    tokenizer: PreTrainedTokenizerFast,
    labels: Sequence[str] | None,
    base_name: str,
    base_digest: str | None = None,
    warm_start: WarmStart | None = None,
    on_curve: OnCurve | None = None,
) -> TrainedSummary:
    """Train a prefix for `model`; write `adapter/` and `curves.jsonl` to `out`.

    The model is left as it was found, head included. Interrupted (Ctrl-C, SIGTERM, a kill), the same call goes
    on from the newest checkpoint, to the same bits; finished, it only writes the outputs again.

    Called in every process that torchrun started, with equal arguments, the processes train together, on this machine
    or several. Only that of rank 0 reads and writes `checkpoint_folder` and `out`, and calls `on_curve`; all return the
    same. `training_params.processes` is for who starts them (`pipeline.train.launch`).

    Args:
        model: from `pipeline.base.base_model.load`.
        prepared: the folder with train/ and validation/, each saved by `datasets.save_to_disk`.
        out: where the results go.
        checkpoint_folder: this training's own, kept between attempts.
        labels: the class names in the order of the label numbers; None for generation.
        base_name: what the adapter's config names as its base.
        base_digest: the base's identity, to be recorded in the adapter.
        warm_start: the adapter to go on from; None begins anew, as `prefix_params` say.
        on_curve: told each line of the curves; after a resumption steps since the checkpoint come again.

    Raises:
        PrefixError: the model or the rows cannot carry this prefix, or `warm_start` does not fit; before anything is
            computed.
        NonFiniteLossError, TrainingInterruptedError, TrainingError: see `pipeline.train.training_loop.Loop.run`.
        LostProcessError: another process has ended; its error says why.
        IntegrityError: the base's weights changed.
    """
    if task == "classification":
        check_pooling(model, training_params)
    with (
        joined(model.device) as group,
        _threads(training_params.threads, group.local_size),
        checkpoints.locked(checkpoint_folder) if group.first else nullcontext(),
    ):
        job = _Job(
            model, prefix_params, training_params, task, prepared, checkpoint_folder, tokenizer, labels, base_name,
            base_digest, weights_digest(model), group, warm_start,
        )  # fmt: skip
        job.check_equal()
        summary = job.finished() or job.run(on_curve)
        if group.first:
            with checkpoints.saving("the trained prefix", out):
                content = checkpoints.opened(job.result)
                with files.new_folder(out / ADAPTER) as fresh:
                    shutil.copytree(content / ADAPTER, fresh, dirs_exist_ok=True)
                files.write_bytes(out / checkpoints.CURVES, (content / checkpoints.CURVES).read_bytes())
        group.share(b"")  # no process returns before the outputs are there
    return summary


@dataclass(frozen=True)
class _Job:
    """The arguments of `train`, and what is done with them."""

    model: PreTrainedModel
    prefix_params: PrefixParams
    training_params: TrainingParams
    task: Task
    prepared: Path
    folder: Path
    tokenizer: PreTrainedTokenizerFast
    labels: Sequence[str] | None
    base_name: str
    base_digest: str | None
    weights: str
    group: ProcessGroup
    warm_start: WarmStart | None

    @property
    def result(self) -> Path:
        """Where a finished training is kept."""
        return self.folder / "finished"

    @cached_property
    def identity(self) -> str:
        """Of all that decides the result: what a checkpoint must share to be resumed."""
        return digest.digest(
            {
                "prefix": self.prefix_params.model_dump(),
                "training": self.training_params.deciding(),
                "task": self.task,
                "labels": None if self.labels is None else list(self.labels),
                # The rows alone: what datasets writes beside them may differ from one preparation to the next.
                "rows": [
                    digest.sha256_file(file)
                    for split in ("train", "validation")
                    for file in sorted((self.prepared / split).glob("*.arrow"))
                ],
                "base": [self.base_name, self.base_digest, self.weights],
                "head": {name: tensor.tolist() for name, tensor in head_parameters(self.model).items()},
                "warm_start": None if self.warm_start is None else self.warm_start.adapter_digest,
            }
        )

    def check_equal(self) -> None:
        """Refuse processes that were not given the same base, rows and settings.

        Raises:
            TrainingError: naming those that differ from the process of rank 0.
        """
        found = self.group.gather(self.identity)
        others = [str(rank) for rank, identity in enumerate(found) if identity != found[0]]
        if others:
            raise TrainingError(
                f"the processes of rank {', '.join(others)} were given other settings, data or base weights than that "
                "of rank 0; expected the same files and settings on every machine"
            )

    def finished(self) -> TrainedSummary | None:
        """The summary of an earlier call that came to its end; None if there was none, or it was damaged."""
        recorded = self._recorded() if self.group.first else None
        recorded = json.loads(self.group.share(json.dumps(recorded).encode()))
        return None if recorded is None else TrainedSummary(**recorded)

    def _recorded(self) -> dict[str, Any] | None:
        if not self.result.exists():
            return None
        try:
            recorded: dict[str, Any] = json.loads(
                (checkpoints.opened(self.result) / SUMMARY).read_text(encoding="utf-8")
            )
        except IntegrityError as error:
            _log.warning("a finished training is not used, and done again: %s", error)
            shutil.rmtree(self.result)
            return None
        checkpoints.check_identity(self.folder, recorded.pop("identity"), self.identity)
        return recorded

    def run(self, on_curve: OnCurve | None) -> TrainedSummary:
        """Train, and keep the result."""
        identity = self.identity  # before a head to go on from is in the model
        rows, validation = self._split("train"), self._split("validation")
        begun = initialisation.start(
            self.model,
            self.prefix_params,
            self.task,
            tokenizer=self.tokenizer,
            labels=self.labels,
            rows=load_prepared(self.prepared, "train"),
            seed=self.training_params.seed,
            warm_start=self.warm_start,
        )
        prefix = begun.prefix
        groups = {"prefix": dict(prefix.named_parameters()), "head": head_parameters(self.model)}
        params = self.training_params
        recompute = params.gradient_checkpointing
        dropping = PrefixDropout(params.dropout, params.seed, prefix)
        with _trainable(groups["head"]), attach(self.model, prefix), lean(self.model, recompute=recompute):
            install_head(self.model, begun.head)
            loop = Loop(
                self.model,
                groups,
                rows=rows,
                validation=validation,
                params=params,
                folder=self.folder,
                identity=identity,
                on_curve=on_curve,
                unit="tokens" if self.task == "generation" else "examples",
                group=self.group,
                dropped=lambda step, _, examples: dropping.of(step, examples),
            )
            stopped = loop.run()
        for rank, after in enumerate(self.group.gather(weights_digest(self.model))):
            where = "" if self.group.size == 1 else f" in the process of rank {rank}"
            check_unchanged(self.weights, after, self.base_name, lost="the prefix is not kept", where=where)
        summary = self._keep(begun, groups, loop, stopped) if self.group.first else None
        shared = self.group.share(json.dumps(summary.to_json() if summary else None).encode())
        return summary or TrainedSummary(**json.loads(shared))

    def _keep(
        self,
        begun: Start,
        groups: Mapping[str, Mapping[str, torch.nn.Parameter]],
        loop: Loop,
        stopped: Ending,
    ) -> TrainedSummary:
        """Write the result to the folder of checkpoints, which are dropped then."""
        counters = loop.counters
        if counters.best_loss is None or counters.best_accuracy is None:
            raise TrainingError("no validation was done; this is a fault of prefixline, please report it")
        with torch.no_grad():
            for name, parameter in begun.prefix.named_parameters():
                parameter.copy_(loop.best[f"prefix.{name}"])
        with (
            checkpoints.saving("the trained prefix", self.folder),
            checkpoints.sealed(self.result) as content,
        ):
            save_adapter(
                content / ADAPTER,
                begun.prefix,
                self.model,
                head={name: loop.best[f"head.{name}"] for name in groups["head"]},
                task=self.task,
                base_name=self.base_name,
                base_digest=self.base_digest,
                labels=self.labels,
            )
            shutil.copy(self.folder / checkpoints.CURVES, content / checkpoints.CURVES)
            summary = TrainedSummary(
                manifest=digest.manifest(content),
                steps=counters.step,
                best_step=counters.best_step,
                best_validation_loss=counters.best_loss,
                best_validation_accuracy=counters.best_accuracy,
                trainable_parameters=sum(parameter.numel() for parameter in loop.trained.values()),
                base_parameters=_base_parameters(self.model),
                seconds=round(counters.seconds, 3),
                base_digest_before=self.weights,
                base_digest_after=self.weights,  # as `run` has just made sure of
                start=begun.record,
                stopped=stopped,
                processes=self.group.size,
            )
            files.write_json(content / SUMMARY, {"identity": self.identity, **summary.to_json()})
        checkpoints.drop(self.folder)
        return summary

    def _split(self, split: Split) -> Rows:
        """The rows of a split.

        Raises:
            TrainingError: there are none.
            PrefixError: one is too long for the base, beside the prefix where that takes positions.
        """
        if not any((self.prepared / split).glob("*.arrow")):
            raise TrainingError(
                f"{self.prepared / split} has no rows; add data, or give data.splits.{split} a larger share"
            )
        saved = load_prepared(self.prepared, split)
        pad = pad_token(self.model)
        rows: Rows
        if self.task == "classification":
            rows = ClassificationRows(saved, pad=pad)
        else:
            rows = generation_rows(saved, self.model, pad=pad)
        window, longest = window_of(self.model), int(rows.longest.max())
        length = 0 if self.model.config.is_encoder_decoder else self.prefix_params.length
        if window is not None and length + longest > window:
            row = int(rows.longest.argmax())
            beside = f"; with a prefix of {length} they need {length + longest} positions" if length else ""
            shorten = "prefix.length or data.max_tokens" if length else "data.max_tokens"
            raise PrefixError(
                f"{split} row {row} ({saved[row]['row_id']}) has {longest} tokens{beside}, and the base has {window}. "
                f"Shorten {shorten}"
            )
        return rows


def _base_parameters(model: PreTrainedModel) -> int:
    head = {id(parameter) for parameter in head_parameters(model).values()}
    return sum(parameter.numel() for parameter in model.parameters() if id(parameter) not in head)


@contextmanager
def _trainable(head: Mapping[str, torch.nn.Parameter]) -> Iterator[None]:
    """The head takes gradients inside the block, and is as before after it."""
    before = {name: parameter.detach().clone() for name, parameter in head.items()}
    for parameter in head.values():
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        for name, parameter in head.items():
            parameter.requires_grad_(False)
            parameter.grad = None
            parameter.copy_(before[name])


@contextmanager
def _threads(count: int | None, processes: int) -> Iterator[None]:
    """`count` CPU threads inside the block, shared out among the processes of this machine."""
    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(max(1, count // processes))
    try:
        yield
    finally:
        torch.set_num_threads(before)
