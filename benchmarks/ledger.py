"""The ledger: folding and reading many events, and how long a promotion takes.

    python -m benchmarks.ledger [--events 100000] [--promotions 40] [--store sqlite|postgresql] [--through direct|server]

Folding and reading are of a made-up chain in memory, in processor seconds: what MLflow's own reading of its database takes
comes on top. Promotions are real ones, of two versions in turns, in a workspace in a temporary folder, in seconds by the clock.
Their checks are looking the version up with its lineage record, and hashing all files of its model. Prints JSON.
"""

from __future__ import annotations

import argparse
import json
import signal
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from benchmarks.verify import NAME, make
from pipeline import promotion
from pipeline.environment import quiet_environment
from pipeline.ledger import chain, log
from pipeline.ledger.events import NOTHING, Event, Promoted, Registered, Stage, new_id, now
from pipeline.ledger.fold import fold
from tests import mlflow_world

ACTOR, REASON = "benchmark <benchmark@localhost>", "measured"
ADAPTER_BYTES = 300_000
"""Of a prefix of 16 positions on a base of 6 layers of 384."""

CHECKS = ("check: the version and its lineage record", "check: the files of its model")
PARTS: dict[str, tuple[Any, str]] = {
    CHECKS[0]: (promotion, "_verified"),
    CHECKS[1]: (promotion, "_check_files"),
    "reading the ledger (also in the first check)": (log, "read"),
    "claiming the epoch": (log, "claim"),
    "noting the newest event at the model": (log, "mark"),
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--events", type=int, default=100_000)
    parser.add_argument("--promotions", type=int, default=40)
    parser.add_argument("--store", choices=["sqlite", "postgresql"], default="sqlite")
    parser.add_argument("--through", choices=["direct", "server"], default="direct")
    arguments = parser.parse_args()
    print(
        json.dumps(
            {
                "events": many_events(arguments.events),
                "promotions": promotions(arguments.promotions, arguments.store, arguments.through),
            },
            indent=2,
        )
    )


def many_events(count: int) -> dict[str, Any]:
    """Two versions that go to staging in turns, `count` events in all."""
    contents: dict[int, bytes] = {}
    previous = NOTHING
    for epoch in range(1, count + 1):
        event = made(epoch, previous)
        contents[epoch], previous = event.to_json(), event.digest
    started = time.process_time()
    events = chain.check(NAME, contents)
    read = time.process_time()
    state = fold(events)
    folded = time.process_time()
    assert state.epoch == count
    return {
        "count": count,
        "read_and_verified_cpu_seconds": round(read - started, 3),
        "folded_cpu_seconds": round(folded - read, 3),
    }


def made(epoch: int, previous: str) -> Event:
    """Event number `epoch`: the first two register, the others promote."""
    kind: type[Event] = Registered if epoch <= 2 else Promoted
    stage: Stage = "candidate" if epoch <= 2 else "staging"
    stands = {1: None, 2: "1", 3: None}.get(epoch, str(1 + (epoch - 1) % 2))
    return kind(
        prefix=NAME, epoch=epoch, previous=previous, id=new_id(), actor=ACTOR, time=now(), reason=REASON,
        version=str(epoch if epoch <= 2 else 1 + epoch % 2), stage=stage, expected=stands,
        lineage_digest="a" * 64, verdict_digest="b" * 64,
    )  # fmt: skip


def promotions(count: int, store: mlflow_world.Store, through: str) -> dict[str, Any]:
    """Two versions promoted to staging in turns."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory())).resolve()
        uri = mlflow_world.backend(folder / "mlflow.db", store)
        if through == "server":
            uri = stack.enter_context(mlflow_world.server(folder, mlflow_world.free_port(), uri=uri))
        connection = make(folder / "workspace", 2, ADAPTER_BYTES, 10_000, 100, uri)
        parts: dict[str, list[float]] = {}
        for what, (module, name) in PARTS.items():
            parts[what] = stack.enter_context(watched(module, name))
        whole: list[float] = []
        for number in range(count):
            for seconds in parts.values():
                seconds.append(0.0)
            started = time.perf_counter()
            promotion.promote(connection, NAME, str(1 + number % 2), to="staging", reason=REASON, actor=ACTOR)
            whole.append(time.perf_counter() - started)
    rest = [
        each - sum(checks) for each, *checks in zip(whole, *(parts[what] for what in CHECKS), strict=True)
    ]
    return {
        "count": count, "store": store, "through": through, "whole": spread(whole), "besides its checks": spread(rest),
        "of these": {what: spread(seconds) for what, seconds in parts.items()},
    }  # fmt: skip


@contextmanager
def watched(module: Any, name: str) -> Iterator[list[float]]:
    """Seconds spent in a function, added to the last of what is given."""
    inner = getattr(module, name)
    seconds: list[float] = []

    def timed(*arguments: Any, **named: Any) -> Any:
        started = time.perf_counter()
        try:
            return inner(*arguments, **named)
        finally:
            seconds[-1] += time.perf_counter() - started

    setattr(module, name, timed)
    try:
        yield seconds
    finally:
        setattr(module, name, inner)


def spread(seconds: list[float]) -> dict[str, float]:
    """Smallest, median and largest."""
    return {
        "smallest": round(min(seconds), 3),
        "median": round(statistics.median(seconds), 3),
        "largest": round(max(seconds), 3),
    }


if __name__ == "__main__":
    import os

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the server ends, too
    os.environ.update(quiet_environment())
    main()
