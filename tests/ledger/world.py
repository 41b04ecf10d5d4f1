"""Events, chains and registered versions for tests of the ledger."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import strategies as st

from pipeline.keys import SigningKey
from pipeline.ledger.events import (
    NOTHING,
    STAGES,
    Approved,
    Archived,
    Event,
    Promoted,
    Refused,
    Registered,
    Requested,
    RolledBack,
    Tainted,
    TimedOut,
    new_id,
    signed,
)
from pipeline.ledger.fold import fold
from pipeline.register import registration
from pipeline.register.registry import Registry, start_run
from tests import mlflow_world

NAME = "reviews"
WORDS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip)
HEX = st.text("0123456789abcdef", min_size=64, max_size=64)
KINDS = (Registered, Promoted, RolledBack, Archived, Requested, Approved, Refused, TimedOut, Tainted)


def key(number: int) -> SigningKey:
    """The same key for the same number."""
    return SigningKey(Ed25519PrivateKey.from_private_bytes(bytes([number]) * 32))


KEYS = [key(number) for number in range(3)]


@st.composite
def events(draw: st.DrawFn) -> Event:
    """Any event by itself, whether or not it makes sense anywhere."""
    kind = draw(st.sampled_from(KINDS))
    epoch = draw(st.integers(1, 10**7))
    number = st.integers(1, 10**6).map(str)
    identity = st.uuids().map(lambda drawn: drawn.hex)
    request = {"never": st.none(), "maybe": st.none() | identity, "always": identity}[kind.of_request]
    key = st.sampled_from(KEYS)
    return signed(
        kind,
        draw(key if kind.must_be_signed else st.none() | key),
        request=draw(request),
        prefix=draw(st.sampled_from([NAME, "other"])),
        epoch=epoch,
        previous=NOTHING if epoch == 1 else draw(HEX.filter(lambda text: text != NOTHING)),
        id=draw(st.uuids()).hex,
        actor=draw(WORDS),
        time=draw(st.datetimes()).isoformat(timespec="milliseconds") + "+00:00",
        reason=draw(WORDS),
        version=draw(number),
        stage=draw(st.sampled_from(kind.stages)),
        expected=draw(st.none() | number),
        lineage_digest=draw(HEX),
        verdict_digest=draw(HEX),
        **({"row": draw(HEX)} if kind is Tainted else {}),
    )


def follow(chain: list[Event], kind: type[Event], version: str, **changes: Any) -> Event:
    """The event that does this after those of `chain`, as it would be written; `sign` is the key for it."""
    sign = changes.pop("sign", None)
    state = fold(chain)
    content: dict[str, Any] = {
        "prefix": NAME,
        "epoch": state.epoch + 1,
        "previous": state.head,
        "id": new_id(),
        "actor": mlflow_world.ACTOR,
        "time": "2024-02-29T12:00:00.000+00:00",
        "reason": "a test",
        "version": version,
        "stage": kind.stages[0],
        "lineage_digest": "a" * 64,
        "verdict_digest": "b" * 64,
        **changes,
    }
    return signed(kind, sign, **{"expected": state.stages.get(content["stage"]), **content})


def chain(*steps: str) -> list[Event]:
    """The events of steps as `register 1`, `staging 1`, `production 1`, `rollback 1`, `archive 1`, `taint 1`."""
    made: list[Event] = []
    for step in steps:
        what, version = step.split()
        kinds = {"register": Registered, "rollback": RolledBack, "archive": Archived, "taint": Tainted}
        kind = kinds.get(what, Promoted)
        changes = {"stage": what} if what in STAGES else {"row": "c" * 64} if kind is Tainted else {}
        made.append(follow(made, kind, version, **changes))
    return made


def contents(chained: Iterable[Event]) -> dict[int, bytes]:
    """{epoch: JSON} as a store keeps it."""
    return {event.epoch: event.to_json() for event in chained}


def register(registry: Registry, folder: Path, key: str = "1", name: str = NAME, **changes: Any) -> str:
    """A version of `name` with a lineage record and an adapter of a few bytes; its number."""
    adapter = folder / "adapter"
    adapter.mkdir(exist_ok=True)
    (adapter / "adapter_config.json").write_text("{}")
    (adapter / "adapter_model.safetensors").write_bytes(b"weights")
    run_key = key * (64 // len(key))
    run_id = start_run(registry, name, run_key, params={})
    record = mlflow_world.record(adapter, run_id, run_key, prefix=name, **changes)
    return registration.register(
        registry,
        run_id=run_id,
        record=record,
        adapter=adapter,
        example=["the red cat runs"],
        actor=mlflow_world.ACTOR,
    ).version


def aliases(registry: Registry, name: str = NAME) -> dict[str, str]:
    """{alias: version} in MLflow."""
    found = registry.client.get_registered_model(name).aliases
    return {alias: str(version) for alias, version in found.items()}


def tamper(registry: Registry, statement: str, **values: Any) -> None:
    """Change MLflow's database behind its back; the statement must change something."""
    with _database(registry) as connection:
        if (
            connection.dialect.name == "postgresql"
        ):  # as sqlite, it is not to ask whether rows refer to each other
            connection.execute(sqlalchemy.text("set session_replication_role = replica"))
        assert connection.execute(sqlalchemy.text(statement), values).rowcount > 0


def ask(registry: Registry, query: str) -> list[tuple[Any, ...]]:
    """The rows that `query` finds in MLflow's database."""
    with _database(registry) as connection:
        return [tuple(row) for row in connection.execute(sqlalchemy.text(query))]


@contextmanager
def _database(registry: Registry) -> Iterator[sqlalchemy.Connection]:
    engine = sqlalchemy.create_engine(registry.uri, poolclass=sqlalchemy.NullPool)
    with engine.begin() as connection:
        yield connection
