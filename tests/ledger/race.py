"""Processes that promote different versions of one prefix at once, and what must come of it."""

from __future__ import annotations

import multiprocessing
import time
from pathlib import Path
from typing import Any

from pipeline import promotion
from pipeline.errors import ConflictError, RegistryError
from pipeline.ledger import log
from pipeline.ledger.events import Promoted, Refused
from pipeline.ledger.projection import out_of_step
from pipeline.register import registry as mlflow_registry
from pipeline.register.registry import Registry
from tests.ledger import world
from tests.ledger.world import NAME, aliases

PATIENCE = 900
"""Seconds until a process that does not come to the next round ends the race."""


def _race(uri: str, artifact_root: str | None, version: str, rounds: int, barrier: Any, results: Any) -> None:
    """Promote `version` to staging, with all others that do the same having read the same epoch; again and again."""
    registry = mlflow_registry.connect(uri, artifact_root=artifact_root)
    real = log.claim

    arrived = False

    def together(*arguments: Any) -> Any:
        nonlocal arrived
        if not arrived:  # not again for the refusal of whoever is second
            arrived = True
            barrier.wait(PATIENCE)
        return real(*arguments)

    log.claim = together
    for _ in range(rounds):
        arrived = False
        try:
            moved = promotion.promote(
                registry, NAME, version, to="staging", reason="a race", actor=f"actor {version}"
            )
            results.put((version, "won", moved.event.epoch))
        except ConflictError as error:
            results.put((version, "told", str(error)))
        except RegistryError as error:  # it stands there, having won the round before
            barrier.wait(PATIENCE)
            while log.read(registry, NAME).state.stages.get("staging") == version:
                time.sleep(0.2)  # until somebody has won this round, or it would stay in the next one too
            results.put((version, "stayed", str(error)))


def run(registry: Registry, processes: int, rounds: int) -> list[tuple[str, str, Any]]:
    """What came of every round of every process: (version, won | told | stayed, epoch or message)."""
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(processes), context.Queue()
    workers = [
        context.Process(
            target=_race,
            args=(registry.uri, registry.artifact_root, str(number + 1), rounds, barrier, results),
            daemon=True,  # none goes on without the others
        )
        for number in range(processes)
    ]
    for worker in workers:
        worker.start()
    answers = [results.get(timeout=PATIENCE) for _ in range(processes * rounds)]
    for worker in workers:
        worker.join()
    return answers


def register(registry: Registry, folder: Path, processes: int = 4) -> None:
    """A version for each process."""
    for number in range(processes):
        world.register(registry, folder, f"{number:02x}")


def check(registry: Registry, processes: int = 4, rounds: int = 4) -> dict[str, int]:
    """Let them race, and compare what each was told with the ledger; how many were."""
    answers = run(registry, processes, rounds)
    reading = log.read(registry, NAME)
    promoted = {event.epoch: event.version for event in reading.events if isinstance(event, Promoted)}
    assert promoted == {epoch: version for version, what, epoch in answers if what == "won"}
    assert len(promoted) == rounds
    told = [error for _, what, error in answers if what == "told"]
    stayed = [error for _, what, error in answers if what == "stayed"]
    assert (len(told), len(stayed)) == (rounds * (processes - 2) + 1, rounds - 1)
    assert all(" was first: version " in error for error in told)
    assert all("stands in staging and cannot go to staging" in error for error in stayed)
    refused = [event.version for event in reading.events if isinstance(event, Refused)]
    assert sorted(refused) == sorted(version for version, what, _ in answers if what == "told")
    assert len(reading.events) == processes + rounds + len(refused)
    assert [event.epoch for event in reading.events] == list(range(1, len(reading.events) + 1))
    assert out_of_step(reading) == ()
    assert aliases(registry) == dict(reading.state.stages)
    return {"won": len(promoted), "told": len(told), "stayed": len(stayed)}
