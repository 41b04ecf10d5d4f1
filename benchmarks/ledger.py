"""The ledger: folding and reading many events, and how long a promotion takes.

    python benchmarks/ledger.py [--events 100000] [--promotions 40]

Folding and reading are of a made-up chain in memory, in processor seconds: what MLflow's own reading of its database takes
comes on top. Promotions are real ones, of two versions in turns, in a workspace in a temporary folder with MLflow on sqlite,
in seconds by the clock; "checks" is the part that looks the version up and verifies its lineage record. Prints JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from verify import NAME, make

from pipeline import promotion
from pipeline.ledger import chain
from pipeline.ledger.events import NOTHING, Event, Promoted, Registered, new_id, now
from pipeline.ledger.fold import fold
from pipeline.register import registry, versions

ACTOR, REASON = "benchmark <benchmark@localhost>", "measured"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--events", type=int, default=100_000)
    parser.add_argument("--promotions", type=int, default=40)
    arguments = parser.parse_args()
    print(
        json.dumps(
            {"events": many_events(arguments.events), "promotions": promotions(arguments.promotions)},
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
    kind, stage = (Registered, "candidate") if epoch <= 2 else (Promoted, "staging")
    stands = {1: None, 2: "1", 3: None}.get(epoch, str(1 + (epoch - 1) % 2))
    return kind(
        prefix=NAME, epoch=epoch, previous=previous, id=new_id(), actor=ACTOR, time=now(), reason=REASON,
        version=str(epoch if epoch <= 2 else 1 + epoch % 2), stage=stage, expected=stands,
        lineage_digest="a" * 64, verdict_digest="b" * 64,
    )  # fmt: skip


def promotions(count: int) -> dict[str, Any]:
    """Two versions promoted to staging in turns."""
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch) / "workspace"
        make(root, 2, 10_000, 10_000, 100)
        connection = registry.connect(
            f"sqlite:///{root}/.prefixline/mlflow.db",
            artifact_root=(root / ".prefixline/mlartifacts").as_uri(),
        )
        whole, checks = [], []
        for number in range(count):
            version = str(1 + number % 2)
            started = time.perf_counter()
            versions.lookup(connection, NAME, version)
            looked = time.perf_counter()
            promotion.promote(connection, NAME, version, to="staging", reason=REASON, actor=ACTOR)
            whole.append(time.perf_counter() - looked)
            checks.append(looked - started)
    rest = [each - check for each, check in zip(whole, checks, strict=True)]
    return {"count": count, "whole": spread(whole), "checks": spread(checks), "besides_checks": spread(rest)}


def spread(seconds: list[float]) -> dict[str, float]:
    """Smallest, median and largest."""
    return {
        "smallest": round(min(seconds), 3),
        "median": round(statistics.median(seconds), 3),
        "largest": round(max(seconds), 3),
    }


if __name__ == "__main__":
    main()
