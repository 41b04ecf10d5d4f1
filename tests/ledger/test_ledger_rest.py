"""The same through a real `mlflow server`, and through one whose replies are lost."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest

from pipeline import promotion
from pipeline.errors import UnreachableError
from pipeline.ledger import log
from pipeline.ledger.projection import out_of_step, project
from pipeline.register import registry as mlflow_registry
from tests import mlflow_world
from tests.ledger import race, world
from tests.ledger.world import NAME

LONG = "over\nREST \N{PARTY POPPER} " * 1_000


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, store: mlflow_world.Store) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("server")
    database = mlflow_world.backend(folder / "mlflow.db", store)
    with mlflow_world.server(folder, mlflow_world.free_port(), uri=database) as uri:
        yield uri


def test_through_a_server_too_one_wins_each_epoch_and_the_others_are_told(server: str, tmp_path: Path):
    registry = mlflow_registry.connect(server)
    race.register(registry, tmp_path)
    race.check(registry)


@pytest.mark.parametrize("how", ["503", "dropped"])
def test_replies_lost_after_the_server_acted_leave_one_event_each_and_the_aliases_right(
    server: str, tmp_path: Path, how: Literal["503", "dropped"]
):
    name = f"lossy{how}"
    direct = mlflow_registry.connect(server)
    version = world.register(direct, tmp_path, name=name)
    lost_ones = {"/runs/log-parameter", "/registered-models/alias", "/registered-models/set-tag"}
    with mlflow_world.losing_replies(server, lost_ones, how) as (uri, lost):
        registry = mlflow_registry.connect(uri)
        promotion.promote(registry, name, version, to="staging", reason=LONG, actor=mlflow_world.ACTOR)
    assert set(lost) == lost_ones
    reading = log.read(direct, name)
    assert [event.sentence for event in reading.events] == [
        "version 1 was registered",
        "version 1 was promoted to staging",
    ]
    assert reading.events[1].reason == LONG
    assert out_of_step(reading) == ()


def test_replies_lost_while_a_ledger_is_begun_leave_one_ledger(server: str, tmp_path: Path):
    lost_ones = {"/experiments/create", "/runs/create", "/runs/log-parameter"}
    with mlflow_world.losing_replies(server, lost_ones) as (uri, lost):
        registry = mlflow_registry.connect(uri)
        registry.client.create_registered_model("begun")
        event = world.follow([], world.Registered, "1", prefix="begun")
        assert log.claim(registry, event)
    assert set(lost) == lost_ones
    assert log.read(mlflow_registry.connect(server), "begun").events == (event,)


def test_a_server_killed_between_event_and_alias_is_told_and_put_right_when_it_is_back(
    store: mlflow_world.Store, tmp_path: Path
):
    port, database = mlflow_world.free_port(), mlflow_world.backend(tmp_path / "mlflow.db", store)
    process = mlflow_world.start_server(tmp_path, port, uri=database)
    try:
        uri = f"http://127.0.0.1:{port}"
        version = world.register(mlflow_registry.connect(uri), tmp_path)

        def between() -> None:
            mlflow_world.kill(process)

        event = {"/runs/log-parameter"}
        with mlflow_world.losing_replies(uri, event, "not at all", between) as (proxy, _):
            registry = mlflow_registry.connect(proxy)
            with pytest.raises(
                UnreachableError, match=r"The ledger has it \(version 1 was promoted to staging, epoch 2"
            ):
                promotion.promote(
                    registry, NAME, version, to="staging", reason="so", actor=mlflow_world.ACTOR
                )
        process = mlflow_world.start_server(tmp_path, port, uri=database)
        reading, repaired = project(mlflow_registry.connect(uri), NAME)
    finally:
        mlflow_world.kill(process)
    assert {str(each) for each in repaired} == {
        "candidate: the alias says 1, the ledger says none",
        "staging: the alias says none, the ledger says 1",
    }
    assert [event.sentence for event in reading.events] == [
        "version 1 was registered",
        "version 1 was promoted to staging",
    ]
    assert reading.aliases == {"staging": "1"}
