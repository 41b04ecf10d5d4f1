"""Who moved what, when and why; and what stood where at a time."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from pipeline.ledger.events import STAGES, Event, Tainted
from pipeline.ledger.fold import Request, fold
from pipeline.ledger.log import Reading
from pipeline.ledger.projection import out_of_step


def history(reading: Reading, at: datetime | None = None) -> dict[str, Any]:
    """The events, and what they come to.

    Args:
        at: only up to this time: in the order of their epochs, to the last that was recorded at or before it. Clocks
            can be wrong, so an event whose clock is behind that of the event before it is marked.

    Returns:
        {prefix, at | null, stages {stage: version | null}, out_of_step [sentence] | null with `at`, requests: [{id,
        version, stage, expected, actor, key | null, epoch, reason, approvals: [{actor, key, epoch}]}] that are open, events:
        [{epoch, event, version, stage | null where it is about none, expected, actor, time, reason, request | null,
        row: the digest of what was to be erased | null, key | null, signature | null, lineage_digest, verdict_digest, id,
        previous, sha256, clock_behind}]}
    """
    events = reading.events if at is None else up_to(reading.events, at)
    state = fold(events)
    rows = []
    latest: datetime | None = None
    for event in events:
        time = datetime.fromisoformat(event.time)
        rows.append(
            {
                "epoch": event.epoch,
                "event": event.kind,
                "version": event.version,
                "stage": event.stage,
                "expected": event.expected,
                "actor": event.actor,
                "time": event.time,
                "reason": event.reason,
                "request": event.request,
                "key": event.key,
                "signature": event.signature,
                "row": event.row if isinstance(event, Tainted) else None,
                "lineage_digest": event.lineage_digest,
                "verdict_digest": event.verdict_digest,
                "id": event.id,
                "previous": event.previous,
                "sha256": event.digest,
                "clock_behind": latest is not None and time < latest,
            }
        )
        latest = time
    return {
        "prefix": reading.name,
        "at": None if at is None else at.isoformat(),
        "stages": {stage: state.stages.get(stage) for stage in STAGES},
        "out_of_step": None if at is not None else [str(each) for each in out_of_step(reading)],
        "requests": [_request(request) for request in state.requests.values()],
        "events": rows,
    }


def _request(request: Request) -> dict[str, Any]:
    asked = request.asked
    return {
        **{
            name: getattr(asked, name)
            for name in ("id", "version", "stage", "expected", "actor", "key", "epoch", "reason")
        },
        "approvals": [{"actor": a.actor, "key": a.key, "epoch": a.epoch} for a in request.approvals],
    }


def up_to(events: Sequence[Event], at: datetime) -> Sequence[Event]:
    """The events up to the last one that was recorded at or before `at`."""
    for count in range(len(events), 0, -1):
        if datetime.fromisoformat(events[count - 1].time) <= at:
            return events[:count]
    return ()
