"""From what a store kept to a chain of events, or to everything that is wrong with it. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

from pipeline.errors import IntegrityError
from pipeline.ledger.events import NOTHING, Event, from_json

SHOWN = 20
"""Faults that are told one by one; the first is what matters, and the rest often follow from it."""


@dataclass(frozen=True)
class Anchor:
    """An event that is known to have happened, noted outside of the ledger: what comes after it may be missing there.

    Without it, cutting off or changing the newest events would leave a chain without a fault.
    """

    epoch: int
    digest: str


def check(prefix: str, contents: Mapping[int, bytes], anchor: Anchor | None = None) -> tuple[Event, ...]:
    """The events of `contents` in the order of their epochs.

    Args:
        contents: {epoch: JSON}, as the store kept it.

    Raises:
        IntegrityError: an epoch is missing, or an event is malformed, of another prefix, or does not follow the one
            before it; every fault names its epochs.
    """
    problems: list[str] = []
    events: list[Event] = []
    last = max(contents, default=0)
    if missing := [epoch for epoch in range(1, last + 1) if epoch not in contents]:
        problems.append(f"epochs {_listed(missing)}: missing, though there is an epoch {last}")
    previous: str | None = NOTHING
    digests: dict[int, str] = {}
    for epoch in sorted(contents):
        content = contents[epoch]
        before = previous if epoch == 1 or epoch - 1 in contents else None
        previous = digests[epoch] = hashlib.sha256(content).hexdigest()
        try:
            event = from_json(content)
        except IntegrityError as error:
            problems.append(f"epoch {epoch}: {'; '.join(error.problems)}")
            continue
        events.append(event)
        if event.epoch != epoch:
            problems.append(f"epoch {epoch}: holds an event of epoch {event.epoch}")
        if event.prefix != prefix:
            problems.append(f"epoch {epoch}: holds an event of the prefix {event.prefix!r}")
        if before is not None and event.previous != before:
            problems.append(
                f"epochs {epoch - 1} and {epoch}: epoch {epoch} follows an event of SHA-256 {event.previous}, "
                f"epoch {epoch - 1} is {before}; one of them is not what was written"
            )
    if anchor is not None and anchor.epoch > 0 and digests.get(anchor.epoch) != anchor.digest:
        found = digests.get(anchor.epoch, "missing")
        problems.append(
            f"epoch {anchor.epoch}: is {found}; the registered model was tagged when it was {anchor.digest}"
        )
    if problems:
        if len(problems) > SHOWN:
            problems = [*problems[:SHOWN], f"and {len(problems) - SHOWN:,} more"]
        raise IntegrityError(
            problems,
            heading=f"The ledger of {prefix} is not what was written (tampered or corrupted). Restore MLflow's "
            "database from a copy; until then no stage is moved:",
        )
    return tuple(events)


def _listed(epochs: list[int]) -> str:
    shown = ", ".join(map(str, epochs[:SHOWN]))
    return shown if len(epochs) <= SHOWN else f"{shown} and {len(epochs) - SHOWN:,} more"
