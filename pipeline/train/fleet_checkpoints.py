"""Checkpoints of several prefixes that are trained together: one for all of them, after a round.

So all are found after the same round, and a fleet that was killed and called again ends with the same bits as one that
was not (on the same machine, with the same number of threads and tokens in a pass).
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Protocol

import torch

from pipeline.digest import digest, tensors_digest
from pipeline.errors import NonFiniteLossError, TrainingInterruptedError
from pipeline.params import TrainingParams
from pipeline.train import checkpoints
from pipeline.train.batches import Rows, validation_batches
from pipeline.train.interruption import Interruption
from pipeline.train.training_loop import Counters


class Member(Protocol):
    """One prefix's own part of a fleet's training: a `Loop` that an error may have ended."""

    counters: Counters
    error: NonFiniteLossError | None

    def state(self) -> dict[str, torch.Tensor]:
        """See `Loop`."""

    def restore(self, counters: Counters, tensors: Mapping[str, torch.Tensor]) -> None:
        """See `Loop`."""


class FleetCheckpoints:
    """The checkpoints of `members` in a folder that is locked (`checkpoints.locked`).

    Args:
        identity: digest of all that decides the result; a checkpoint of another fleet is refused.
        seconds: from one checkpoint to the next, at least.
    """

    def __init__(
        self,
        folder: Path,
        members: Sequence[Member],
        identity: str,
        seconds: float,
        interruption: Interruption,
    ) -> None:
        self._folder, self._members, self._identity = folder, members, identity
        self._seconds, self._interruption = seconds, interruption
        self._rounds = 0
        self._saved = time.monotonic()

    def resume(self) -> None:
        """Go on from the newest checkpoint, if there is one.

        Raises:
            TrainingError: it is of another fleet, or cannot be read.
        """
        with checkpoints.saving("the checkpoints", self._folder):
            found = checkpoints.newest(self._folder)
        if found is None:
            return
        state, tensors = found
        checkpoints.check_identity(self._folder, state["identity"], self._identity)
        self._rounds = state["rounds"]
        for number, (member, own) in enumerate(zip(self._members, state["members"], strict=True)):
            start = f"{number}."
            mine = {name.removeprefix(start): t for name, t in tensors.items() if name.startswith(start)}
            member.restore(Counters(**own["counters"]), mine)
            member.error = None if own["error"] is None else NonFiniteLossError(own["error"])

    def after_round(self) -> None:
        """Write a checkpoint if it is time for one, or a signal came.

        Raises:
            TrainingInterruptedError: SIGINT or SIGTERM came; a checkpoint was written.
            TrainingError: it could not be written.
        """
        self._rounds += 1
        name = self._interruption.name
        if name is not None or time.monotonic() - self._saved >= self._seconds:
            self.save()
        if name is not None:
            raise TrainingInterruptedError(
                f"stopped by {name} after round {self._rounds}; a checkpoint is kept in {self._folder}: train the same "
                "prefixes together again, and all go on from there"
            )

    def save(self) -> None:
        """Write a checkpoint of all members as they are.

        Raises:
            TrainingError: it could not be written; those before are as they were.
        """
        tensors: dict[str, torch.Tensor] = {}
        for number, member in enumerate(self._members):
            tensors |= {f"{number}.{name}": tensor for name, tensor in member.state().items()}
        state = {
            "identity": self._identity,
            "rounds": self._rounds,
            "curve_bytes": 0,  # a fleet's curves are told, not written
            "members": [
                {
                    "counters": asdict(member.counters),
                    "error": None if member.error is None else str(member.error),
                }
                for member in self._members
            ],
        }
        checkpoints.write(self._folder, self._rounds, state, tensors)
        self._saved = time.monotonic()


def identity(base: str, jobs: Iterable[tuple[TrainingParams, Mapping[str, torch.Tensor], Rows, Rows]]) -> str:
    """The digest of all that decides what a fleet ends with.

    Args:
        base: the digest of the base's weights.
        jobs: of each prefix the settings, the tensors it starts from, the rows and those for validation.
    """
    return digest(
        [
            base,
            *(
                [params.deciding(), tensors_digest(start.items()), _rows(rows), _rows(validation)]
                for params, start, rows, validation in jobs
            ),
        ]
    )


def _rows(rows: Rows) -> str:
    parts = (
        (field.name, tensor)
        for batch in validation_batches(rows)
        for field in fields(batch)
        if (tensor := getattr(batch, field.name)) is not None
    )
    return tensors_digest(parts)
