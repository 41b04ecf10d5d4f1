"""Training several prefixes at once on one copy of the base.

Every round each prefix takes one step of its own training: its own rows, learning rate, schedule, clipping, optimiser,
validations and ending are those it would have alone. Shared are the passes through the base's layers, forward and
backward, in which each row sees its own prefix. A row's loss depends on no other prefix than its own, so the gradients
fall apart by prefix, and all that is trained comes out as if each had been trained alone.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, fields
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pipeline.base.base_model import check_unchanged, head_parameters, weights_digest
from pipeline.base.padding import pad_token
from pipeline.errors import NonFiniteLossError, PrefixError, TrainingError
from pipeline.params import TrainingParams
from pipeline.prefix.architecture import anatomy, check_window
from pipeline.prefix.packing import PackedRows
from pipeline.prefix.several import Head, SeveralAttachment, attach_several, check_head, part_of, worn
from pipeline.prefix.tuning import Prefix
from pipeline.train import checkpoints
from pipeline.train.batches import AnyBatch, Rows, examples_of, validation_batches
from pipeline.train.dropout import HeadDropout, PrefixDropout, head_layers
from pipeline.train.fleet_checkpoints import FleetCheckpoints, identity
from pipeline.train.initialisation import check_pooling
from pipeline.train.interruption import Interruption
from pipeline.train.losses import BatchLoss, batch_loss
from pipeline.train.training_loop import Counters, Ending, Loop, OnCurve

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TOKENS = 8192
"""Tokens in a pass at most, padding included, unless one prefix's own batch has more."""


@dataclass(frozen=True)
class FleetJob:
    """One prefix to train.

    Attributes:
        prefix: where it starts. It is trained in place, and holds its best numbers at the end.
        rows, validation: the splits.
        params: as for a training alone; `threads`, `processes` and `checkpoint_seconds` have no meaning here.
        head: for classification, where the prefix's head starts, by the names in the model. {} for generation.
        on_curve: told each line of the curves.
    """

    prefix: Prefix
    rows: Rows
    validation: Rows
    params: TrainingParams
    head: Head
    on_curve: OnCurve | None = None


@dataclass(frozen=True)
class FleetResult:
    """What the training of one prefix came to.

    Attributes:
        counters: as of a training alone; `seconds` are those of the rounds it took part in, shared with the others.
        best: the tensors with the best validation loss: "prefix.<name>" and "head.<name>".
        stopped: what ended it; None where `error` did.
        error: its loss or gradients were NaN or infinite. The others went on.
    """

    counters: Counters
    best: Mapping[str, torch.Tensor]
    stopped: Ending | None
    error: NonFiniteLossError | None


def train_together(
    model: PreTrainedModel,
    jobs: Sequence[FleetJob],
    *,
    tokens: int = TOKENS,
    folder: Path | None = None,
    checkpoint_seconds: float = 30.0,
) -> list[FleetResult]:
    """Train the prefix of every job on `model`, all at once.

    What is worth keeping is in the results (`pipeline.prefix.adapter.save_adapter` writes one). With a `folder` it may be
    killed at any moment: called again with the same jobs it goes on from the last checkpoint, and a fleet that had ended
    gives its results at once. Without one, all of it is lost. An error leaves the prefixes as they were.

    Args:
        model: the frozen base in evaluation mode, without an attachment. Its own head is left alone; those of the jobs
            may be for other numbers of labels.
        jobs: all of one task. They may differ in everything else, and in how many steps they take.
        tokens: the most in one pass; less needs less memory.
        folder: for checkpoints, this fleet's alone; to be deleted once the results are kept elsewhere.
        checkpoint_seconds: from one checkpoint to the next, at least. A round is always finished first.

    Returns:
        One for each job, in their order.

    Raises:
        PrefixError: a prefix or head does not fit the model, or rows do not fit beside their prefix. Before anything
            is computed.
        TrainingError: no jobs, or one has no rows; or the base is an encoder-decoder. With a folder: another process is in
            it, it holds another fleet's checkpoints, or one could not be written.
        TrainingInterruptedError: with a folder: SIGINT or SIGTERM came; a checkpoint was written.
        IntegrityError: the base's weights changed.
    """
    _check(model, jobs)
    before = weights_digest(model)
    members = [_Member(model, job) for job in jobs]
    begun = [member.best for member in members]
    try:
        with ExitStack() as stack:
            kept = None
            if folder is not None:
                stack.enter_context(checkpoints.locked(folder))
                parts = zip(jobs, begun, strict=True)
                known = identity(
                    before, [(job.params, start, job.rows, job.validation) for job, start in parts]
                )
                interruption = stack.enter_context(Interruption())
                kept = FleetCheckpoints(folder, members, known, checkpoint_seconds, interruption)
            attached = stack.enter_context(attach_several(model, [job.prefix for job in jobs]))
            _train(_Fleet(attached, members, tokens), members, kept)
        check_unchanged(
            before, weights_digest(model), type(model).__name__, lost="the prefixes are as they were"
        )
    except BaseException:
        _put(jobs, begun)  # so that the same call begins from the same numbers
        raise
    _put(jobs, [member.best for member in members])
    return [FleetResult(member.counters, member.best, member.ending(), member.error) for member in members]


def _train(fleet: _Fleet, members: Sequence[_Member], kept: FleetCheckpoints | None) -> None:
    if kept is not None:
        kept.resume()
    while active := [i for i, member in enumerate(members) if member.goes_on()]:
        fleet.step(active)
        fleet.validate([i for i in active if members[i].validation_is_due()])
        if kept is not None:
            kept.after_round()
    if kept is not None:
        kept.save()


@torch.no_grad()
def _put(jobs: Sequence[FleetJob], tensors: Sequence[Mapping[str, torch.Tensor]]) -> None:
    for job, own in zip(jobs, tensors, strict=True):
        for name, parameter in job.prefix.named_parameters():
            parameter.grad = None
            parameter.copy_(own[f"prefix.{name}"])


def _check(model: PreTrainedModel, jobs: Sequence[FleetJob]) -> None:
    if not jobs:
        raise TrainingError("training together: got no jobs; expected at least one")
    found = anatomy(model)
    if found.encoder_decoder:
        raise TrainingError(
            f"{type(model).__name__} is an encoder-decoder, whose prefixes are trained one by one: use "
            "pipeline.train.training.train"
        )
    if model.training:
        raise TrainingError(
            f"{type(model).__name__} is in training mode, with dropout in the frozen base; call model.eval() first"
        )
    classifies = any(job.head for job in jobs)
    for number, job in enumerate(jobs):
        if job.params.dtype != "float32" or job.params.gradient_checkpointing:
            raise TrainingError(
                f"job {number}: got training.dtype {job.params.dtype} and gradient_checkpointing "
                f"{job.params.gradient_checkpointing}; a fleet trains in float32 without it: set neither, and make "
                "`tokens` smaller to save memory"
            )
        if classifies:
            check_head(model, job.head, f"job {number}: the head")
            check_pooling(model, job.params, f"job {number}: ")
        for split, rows in (("rows", job.rows), ("validation", job.validation)):
            if not len(rows.lengths):
                raise TrainingError(f"job {number}: {split}: got none; expected at least one")
            try:
                check_window(found, job.prefix.length, int(rows.longest.max()))
            except PrefixError as error:
                raise PrefixError(f"job {number}: {split}: {error}") from None


class _Member(Loop):
    """One prefix's own part of the training; the passes are made by `_Fleet`."""

    def __init__(self, model: PreTrainedModel, job: FleetJob) -> None:
        self.head = {name: torch.nn.Parameter(tensor.detach().clone()) for name, tensor in job.head.items()}
        self.validation = job.validation
        self.error: NonFiniteLossError | None = None
        params = job.params
        self._prefix_dropout = PrefixDropout(params.dropout, params.seed, job.prefix)
        super().__init__(
            model,
            {"prefix": dict(job.prefix.named_parameters()), "head": self.head},
            rows=job.rows,
            validation=job.validation,
            params=params,
            folder=Path(),
            identity="",
            on_curve=job.on_curve,
            unit="targets",
        )
        # The model's layers, in which the head's tensors are worn.
        layers = head_layers(model, head_parameters(model))
        self._head_dropout = HeadDropout(params.dropout, params.seed, layers)

    def dropped_prefix(self, batches: Sequence[AnyBatch]) -> AbstractContextManager[None]:
        """Inside the block the prefix drops what it does of the rows of `batches` in the step under way."""
        examples = [found for batch in batches if (found := examples_of(batch)) is not None]
        return self._prefix_dropout.of(self.counters.step + 1, torch.cat(examples) if examples else None)

    def ending(self) -> Ending | None:
        return None if self.error is not None else super().ending()

    def goes_on(self) -> bool:
        return self.error is None and self.ending() is None

    def validation_is_due(self) -> bool:
        return self.error is None and self.counters.validation_due

    def _keep(self, line: Mapping[str, Any]) -> None:
        """Curves are not written."""


@dataclass(frozen=True)
class _Piece:
    """A batch of one member."""

    owner: int
    batch: AnyBatch


class _Fleet:
    """The passes that members share."""

    def __init__(self, attached: SeveralAttachment, members: Sequence[_Member], tokens: int) -> None:
        self._attached, self._members, self._tokens = attached, members, tokens

    def step(self, active: Sequence[int]) -> None:
        """A step of every member of `active`."""
        began = time.monotonic()
        pieces = [_Piece(i, batch) for i in active for batch in self._members[i].begin_step()]
        targets = dict.fromkeys(active, 0)
        for piece in pieces:
            targets[piece.owner] += len(piece.batch.targets)
        losses = dict.fromkeys(active, 0.0)
        for part in _passes(pieces, self._tokens):
            found = self._losses(part, training=True)
            # By the targets of each member's own step, as in a training alone.
            shares = [loss.total / targets[piece.owner] for piece, loss in zip(part, found, strict=True)]
            torch.stack(shares).sum().backward()  # type: ignore[no-untyped-call]
            for piece, share in zip(part, shares, strict=True):
                losses[piece.owner] += share.item()
        for i in active:
            try:
                self._members[i].end_step(losses[i], targets[i], began)
            except NonFiniteLossError as error:
                self._members[i].error = error

    @torch.no_grad()
    def validate(self, due: Sequence[int]) -> None:
        """A validation of every member of `due`."""
        began = time.monotonic()
        sums = {i: np.zeros(3) for i in due}  # loss, targets, right
        for batches in zip_longest(*(validation_batches(self._members[i].validation) for i in due)):
            pieces = [_Piece(i, batch) for i, batch in zip(due, batches, strict=True) if batch is not None]
            for part in _passes(pieces, self._tokens):
                for piece, loss in zip(part, self._losses(part, training=False), strict=True):
                    assert loss.right is not None  # no gradients here
                    sums[piece.owner] += (loss.total.item(), loss.targets, loss.right)
        for i, (total, targets, right) in sums.items():
            try:
                self._members[i].end_validation(float(total / targets), float(right / targets), began)
            except NonFiniteLossError as error:
                self._members[i].error = error

    def _losses(self, pieces: Sequence[_Piece], *, training: bool) -> list[BatchLoss]:
        """The loss of each piece, from one pass for all of them; in training with its member's dropout."""
        attached = self._attached
        model = attached.model
        attached.assign([piece.owner for piece in pieces for _ in range(len(piece.batch.input_ids))])
        with ExitStack() as dropping:
            for owner in {piece.owner for piece in pieces} if training else ():
                batches = [piece.batch for piece in pieces if piece.owner == owner]
                dropping.enter_context(self._members[owner].dropped_prefix(batches))
            outputs = attached.run(**_inputs(model, [piece.batch for piece in pieces]))
        losses, start = [], 0
        for piece in pieces:
            rows, width = piece.batch.input_ids.shape
            own = part_of(outputs, slice(start, start + rows), width)
            member = self._members[piece.owner]
            dropped = member.dropped_head(piece.batch) if training else nullcontext()
            with attached.replaying(own), worn(model, member.head), dropped:
                losses.append(batch_loss(model, piece.batch))
            start += rows
        return losses


def _passes(pieces: Sequence[_Piece], tokens: int) -> Iterator[list[_Piece]]:
    """Pieces of like width and one kind together, at most `tokens` (padding included) in each pass."""
    order = sorted(
        pieces, key=lambda piece: (isinstance(piece.batch, PackedRows), piece.batch.input_ids.shape[1])
    )
    part: list[_Piece] = []
    rows = 0
    for piece in order:
        more, width = piece.batch.input_ids.shape
        other = bool(part) and type(part[0].batch) is not type(piece.batch)
        if part and (other or (rows + more) * width > tokens):
            yield part
            part, rows = [], 0
        part.append(piece)
        rows += more
    if part:
        yield part


def _inputs(model: PreTrainedModel, batches: Sequence[AnyBatch]) -> dict[str, torch.Tensor]:
    """What the model's layers are called with for all rows of `batches`, the narrower ones padded on the right."""
    first = batches[0]
    width = max(batch.input_ids.shape[1] for batch in batches)
    merged = {}
    for name in (field.name for field in fields(first)):
        if name in ("targets", "positions", "examples"):
            continue
        fill = pad_token(model) if name == "input_ids" else 0
        parts = [getattr(batch, name) for batch in batches]
        merged[name] = torch.cat(
            [torch.nn.functional.pad(part, (0, width - part.shape[1]), value=fill) for part in parts]
        ).to(model.device)
    if isinstance(first, PackedRows):
        none = merged["input_ids"].new_zeros(0)
        rows = PackedRows(**merged, targets=none, positions=none)
        return rows.inputs(model)
    return merged
