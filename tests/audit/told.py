"""What an audit gathers, made up without MLflow: any number of versions and events, folded by the real ledger."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any

from pipeline.audit.ancestry import events_of, standing
from pipeline.audit.faults import Fault, Gone, Kind, Link, Verification, Verified
from pipeline.audit.prefix_audit import held
from pipeline.digest import digest
from pipeline.ledger.events import Archived, Event, Promoted, Registered, RolledBack
from pipeline.ledger.log import Reading
from pipeline.register.versions import RegisteredVersion
from pipeline.show.overview import told
from tests import records
from tests.ledger import world

NAME = world.NAME
HOSTILE = "<script>alert(1)</script>\"'&</title>{{ 7*7 }}\u202e\x1b[31m"


def criterion(kind: str, metric: str, figure: float, threshold: float, **changes: Any) -> dict[str, Any]:
    return {
        "kind": kind, "metric": metric, "slice": None, "figure": figure, "interval": [figure - 0.02, figure + 0.02],
        "threshold": threshold, "passed": True, "reason": f"{metric} is {figure:.4g}", "rows": 1390, "ours": None,
        "theirs": None, **changes,
    }  # fmt: skip


def record(number: int, when: datetime, **changes: Any) -> dict[str, Any]:
    """A version's record as `lineage_of` gives it; its accuracy grows with its number."""
    accuracy, loss = 0.74 + 0.001 * (number * 7 % 50), 0.9 - 0.002 * number
    stages, tainted = changes.pop("stages", []), changes.pop("tainted", False)
    content: dict[str, Any] = {
        "run_key": digest({"number": number}),
        "files": {"adapter_config.json": digest({"c": number}), "adapter_model.safetensors": digest({"w": number})},
        "created": when.isoformat(timespec="seconds"),
        "metrics": {
            "prefix": {"accuracy": accuracy, "loss": loss},
            "base": {"accuracy": 0.7, "loss": 1.1},
        },
        "verdict": {
            "passed": True,
            "criteria": [
                criterion("floor", "accuracy", accuracy, 0.72 if number < 40 else 0.735),
                criterion("floor", "accuracy", 0.8, 0.6, slice="language=en"),
                criterion("better_than_base", "accuracy", accuracy - 0.7, 0.0),
                criterion("not_worse_than_champion", "accuracy", 0.001, -0.03),
            ],
        },
        **changes,
    }  # fmt: skip
    made = records.lineage(**content)
    version = RegisteredVersion(
        name=made.prefix, version=str(number), stages=tuple(stages), run_id="6" * 32, run_key=made.run_key, tags={},
        tainted=tainted,
    )  # fmt: skip
    return told(version, made)


def ledger(
    versions: int, events: int, start: datetime, *, seed: int = 1, reason: str = "a test"
) -> list[Event]:
    """A chain in which every version is registered and many are promoted, rolled back and archived, in a growing
    rhythm."""
    random, made, time = Random(seed), list[Event](), start
    where: dict[str, str] = {}
    registered = 0

    def happen(kind: type[Event], version: str, **changes: Any) -> None:
        nonlocal time
        time += timedelta(minutes=random.choice([2, 30, 600, 3000]))
        stage = changes.get("stage", kind.stages[0])
        state = {stage: version for version, stage in where.items()}
        expected = state.get(stage)
        if kind in (Promoted, RolledBack) and stage == "production" and "production" in state:
            if state.get("archived"):
                del where[state["archived"]]
            where[state["production"]] = "archived"
        elif expected is not None:
            del where[expected]
        where[version] = stage
        content = {
            "prefix": NAME, "epoch": len(made) + 1, "previous": made[-1].digest if made else "0" * 64,
            "id": digest({"epoch": len(made), "seed": seed})[:32], "actor": random.choice(["approver <a@example.org>", "retraining"]),
            "time": time.astimezone(UTC).isoformat(timespec="milliseconds"), "reason": reason, "version": version,
            "stage": stage, "expected": expected, "lineage_digest": "a" * 64, "verdict_digest": "b" * 64,
        }  # fmt: skip
        made.append(kind(**content))

    while len(made) < events:
        if registered < versions and len(made) >= registered * events // versions:
            registered += 1
            happen(Registered, str(registered))
            continue
        version = str(random.randint(max(1, registered - 5), registered))
        if where.get(version) == "staging":
            happen(Promoted, version, stage="production")
        elif where.get(version) != "production" and random.random() < 0.8:
            happen(Promoted, version, stage="staging")
        elif where.get(version) != "archived":
            happen(Archived, version)
    return made


def audited(
    versions: int = 6,
    events: int = 20,
    *,
    reason: str = "passed the trial",
    verification: Mapping[str, Any] | None = None,
    **changes: Any,
) -> dict[str, Any]:
    """What `audit` gathers of a prefix whose versions share dataset versions and go on from each other by threes."""
    start = datetime(2025, 3, 3, 9, tzinfo=UTC)
    chained = ledger(versions, events, start, reason=reason)
    reading = Reading(NAME, "run", tuple(chained), {}, None)
    stages = {version: stage for stage, version in reading.state.stages.items()}
    registered = {
        event.version: datetime.fromisoformat(event.time) for event in chained if event.kind == "registered"
    }
    adapters: dict[int, str] = {}
    rows = []
    for number in range(1, versions + 1):
        warm = None
        if number % 3 == 2:
            warm = {"adapter_digest": adapters[number - 1], "prefix": NAME, "version": str(number - 1)}
        stage = stages.get(str(number))
        dataset = {
            **records.lineage().dataset,
            "md5": digest({"data": number // 2})[:32],
            "rows": {"train": 800 + number, "validation": 100, "test": 100, "total": 1000 + number},
        }
        made = record(number, registered[str(number)], warm_start=warm, dataset=dataset, stages=[stage] if stage else [], **changes)  # fmt: skip
        adapters[number] = made["adapter_digest"]
        rows.append({"version": str(number), "stages": made["stages"], "duplicate_of": None, "tainted": made["tainted"], "run_id": "6" * 32, "by_hand": False, "problem": None, "record": made})  # fmt: skip
    return {
        "prefix": NAME,
        "made": (datetime.fromisoformat(chained[-1].time) + timedelta(days=2)).isoformat(timespec="seconds"),
        "stages": standing(reading),
        "out_of_step": [],
        "events": events_of(reading),
        "held": held(reading.events),
        "versions": rows,
        "later": {"versions": [], "unknown": [], "problem": None},
        "verification": verification,
    }  # fmt: skip


def followed(**changes: Any) -> dict[str, Any]:
    """What `ancestry` gathers of version 3, whose training went on from version 2, which went on from another
    prefix's version 1; version 4 of a third prefix went on from it."""
    when = datetime(2025, 3, 3, 9, tzinfo=UTC)
    first = record(1, when, prefix="older")
    second = record(2, when + timedelta(days=7), warm_start={"adapter_digest": first["adapter_digest"], "prefix": "older", "version": "1"})  # fmt: skip
    third = record(3, when + timedelta(days=14), stages=["production"], **{
        "warm_start": {"adapter_digest": second["adapter_digest"], "prefix": NAME, "version": "2"}, **changes,
    })  # fmt: skip
    chained = ledger(3, 12, when)
    reading = Reading(NAME, "run", tuple(chained), {}, None)
    here = standing(reading)[0]
    return {
        "record": third,
        "standing": [{**here, "stage": "production", "version": "3"}],
        "earlier": [
            {"prefix": NAME, "version": "2", "problem": None, "record": second},
            {"prefix": "older", "version": "1", "problem": None, "record": first},
        ],
        "later": {
            "versions": [
                {"prefix": "tenant", "version": "4", "stages": ["staging"], "duplicate_of": None, "started_from": {"prefix": NAME, "version": "3"}},
                {"prefix": "tenant", "version": "5", "stages": [], "duplicate_of": "4", "started_from": {"prefix": "tenant", "version": "4"}},
            ],
            "unknown": [],
            "problem": None,
        },
    }  # fmt: skip


def faulty(versions: int) -> dict[str, Any]:
    """What a verification of these versions says that found two faults at version 1."""
    faults = (
        Fault(Link.ARTEFACT, Kind.TAMPERED, "artifacts/adapter/<b>", "a" * 64, "b" * 64),
        Fault(Link.RUN, Kind.MISSING, "run 7", "an active run", "deleted"),
    )
    found = [
        Verified(
            NAME,
            str(number),
            (),
            None,
            False,
            faults if number == 1 else (),
            (Link.CODE,) if number == 1 else (),
        )
        for number in range(1, versions + 1)
    ]
    return Verification(tuple(found), (Gone(NAME, "99", "r" * 32),), 12, 3456, 0.5).to_json()


def sound(versions: int) -> dict[str, Any]:
    """What a verification says that found nothing wrong."""
    found = tuple(Verified(NAME, str(number), (), None, False, ()) for number in range(1, versions + 1))
    return Verification(found, (), 12, 3456, 0.5).to_json()
