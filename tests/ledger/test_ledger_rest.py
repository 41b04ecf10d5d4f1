"""The same through a real `mlflow server`, and through one whose replies are lost."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline import promotion
from pipeline.ledger import log
from pipeline.ledger.projection import out_of_step
from pipeline.register import registry as mlflow_registry
from tests import mlflow_world
from tests.ledger import race, world

LONG = "over\nREST \N{PARTY POPPER} " * 1_000


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with mlflow_world.server(tmp_path_factory.mktemp("server"), mlflow_world.free_port()) as uri:
        yield uri


def test_through_a_server_too_one_wins_each_epoch_and_the_others_are_told(server: str, tmp_path: Path):
    race.check(mlflow_registry.connect(server), tmp_path)


def test_replies_lost_after_the_server_acted_leave_one_event_each_and_the_aliases_right(
    server: str, tmp_path: Path
):
    name = "lossy"
    direct = mlflow_registry.connect(server)
    version = world.register(direct, tmp_path, name=name)
    lost_ones = {"/runs/log-parameter", "/registered-models/alias", "/registered-models/set-tag"}
    with mlflow_world.losing_replies(server, lost_ones) as (uri, lost):
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
        assert log.claim(registry, event) == event
    assert set(lost) == lost_ones
    assert log.read(mlflow_registry.connect(server), "begun").events == (event,)
