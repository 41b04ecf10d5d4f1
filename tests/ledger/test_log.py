"""The ledger in a real MLflow database: written once, read back whole, and found out when it is not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from pipeline.errors import IntegrityError, RegistryError
from pipeline.ledger import log
from pipeline.ledger.events import Event, Promoted, Registered
from pipeline.ledger.projection import project
from pipeline.register.registry import Registry
from tests.ledger import world
from tests.ledger.mutations import CASES, CHAIN

LONG = 'line one\nline two \N{PARTY POPPER}\r\n\ttab \x00 \u2028 "quoted" \\ ' + "\N{GRINNING FACE}x" * 5_000


@pytest.fixture
def registry(registry: Registry) -> Registry:
    registry.client.create_registered_model(world.NAME)
    return registry


def write(registry: Registry, *steps: str) -> list[Event]:
    chained = world.chain(*steps)
    for event in chained:
        assert log.claim(registry, event)
    return chained


def test_what_was_written_is_read_back_in_order(registry: Registry):
    assert log.read(registry, "reviews").events == ()
    written = write(registry, "register 1", "staging 1", "production 1")
    reading = log.read(registry, "reviews")
    assert reading.events == tuple(written)
    assert dict(reading.state.stages) == {"production": "1"}
    assert (reading.aliases, reading.anchor) == ({}, None)
    assert log.read(registry, "others").events == ()


def test_the_same_event_again_is_one_event_and_another_one_comes_second(registry: Registry):
    (first,) = write(registry, "register 1")
    assert log.claim(registry, first)
    other = replace(first, id="f" * 32)
    assert not log.claim(registry, other)
    assert log.read(registry, "reviews").events == (first,)


def test_a_reason_of_ten_thousand_characters_with_newlines_and_emoji_is_kept_exactly(registry: Registry):
    assert len(LONG) > 10_000
    first = world.follow([], Registered, "1", reason=LONG)
    long = world.follow([first], Promoted, "1", reason=LONG * 9)
    assert log.claim(registry, first)
    assert log.claim(registry, long)
    assert not log.claim(registry, replace(long, id="f" * 32))
    read = log.read(registry, "reviews").events
    assert [event.reason for event in read] == [LONG, LONG * 9]
    assert read == (first, long)
    assert (
        max(length for (length,) in world.ask(registry, "select length(value) from params"))
        == log.VALUE_LIMIT
    )


@pytest.mark.parametrize(
    ("statement", "problem"),
    [
        (
            "update params set value = replace(value, 'xx', 'xy') where length(value) = 6000",
            "epoch 1: its part .* changed",
        ),
        ("delete from params where length(value) = 6000", "epoch 1: its list of parts cannot be followed"),
        ("update params set value = '{\"parts\":[[]]}' where key = '000001'", "epoch 1: its list of parts"),
        ("update params set value = '{\"parts\":' where key = '000001'", "epoch 1: its list of parts"),
    ],
)
def test_a_part_that_was_changed_or_removed_is_found(registry: Registry, statement: str, problem: str):
    log.claim(registry, world.follow([], Registered, "1", reason="x" * 10_000))
    world.tamper(registry, statement)
    with pytest.raises(IntegrityError, match=problem):
        log.read(registry, "reviews")


def test_parts_of_somebody_who_came_second_do_no_harm(registry: Registry):
    (first,) = write(registry, "register 1")
    assert not log.claim(registry, replace(first, id="f" * 32, reason="x" * 10_000))
    assert log.read(registry, "reviews").events == (first,)


def test_a_chain_changed_in_the_database_is_found_and_its_epochs_are_named(registry: Registry):
    for event in CHAIN:
        log.claim(registry, event)
    run_id = registry.client.get_experiment_by_name("prefixline.ledger.reviews").tags[log.RUN_TAG]
    whole = {int(key): value.encode() for key, value in world.ask(registry, "select key, value from params")}
    assert whole == world.contents(CHAIN)
    for mutate, problems in CASES:
        kept = dict(whole)
        mutate(kept)
        world.tamper(registry, "delete from params")
        for epoch, content in kept.items():
            insert = "insert into params (key, value, run_uuid) values (:key, :value, :run)"
            world.tamper(registry, insert, key=f"{epoch:06d}", value=content.decode(), run=run_id)
        with pytest.raises(IntegrityError) as caught:
            log.read(registry, "reviews")
        for problem in problems:
            assert any(found.startswith(problem) for found in caught.value.problems), caught.value.problems


@pytest.mark.parametrize(
    ("statement", "problem"),
    [
        ("update params set value = replace(value, 'a test', 'a lie!') where key = '000002'", "epochs 2 and 3"),
        ("delete from params where key = '000002'", "epochs 2: missing"),
        ("delete from params where key = '000001'", "epochs 1: missing"),
        ("delete from params where key = '000004'", "epoch 4: is missing; the registered model was tagged"),
        ("update params set value = replace(value, 'a test', 'a lie!') where key = '000004'", "epoch 4: is"),
        ("update params set key = '000005' where key = '000004'", "epochs 4: missing"),
        ("update params set key = '7' where key = '000004'", "param '7': is neither an epoch nor a part"),
        ("delete from params", "epoch 4: is missing"),
        ("update params set value = substr(value, 1, 300) where key = '000004'", "epoch 4: not JSON"),
        ("delete from experiments where name = 'prefixline.ledger.reviews'", "tagged with run .*, the ledger is gone"),
        ("delete from runs where name = 'reviews'", "its run .* is gone from MLflow"),
        ("delete from experiment_tags", "has lost its tag prefixline.ledger"),
        ("update experiment_tags set value = 'f' where key = 'prefixline.ledger'", "tagged with run .*, the ledger is f"),
        ("update registered_model_tags set value = 'x' where key like '%anchor'", "ledger_anchor is 'x'"),
        ("update registered_model_tags set value = '9 ' || substr(value, 3) where key like '%anchor'", "epoch 9: is missing"),
    ],
)  # fmt: skip
def test_a_change_behind_mlflows_back_is_found_and_nothing_is_begun_anew(
    registry: Registry, statement: str, problem: str
):
    registry.client.create_model_version("reviews", "file:///nowhere", await_creation_for=0)
    written = write(registry, "register 1", "staging 1", "production 1", "archive 1")
    project(registry, "reviews")
    assert log.read(registry, "reviews").anchor is not None
    world.tamper(registry, statement)
    for _ in range(2):
        with pytest.raises(IntegrityError, match=problem):
            log.read(registry, "reviews")
        with pytest.raises(IntegrityError):
            project(registry, "reviews")
    assert len(written) == 4


def test_a_ledger_deleted_in_mlflow_is_reported_with_how_to_restore_it(registry: Registry):
    written = write(registry, "register 1")
    run_id = log.read(registry, "reviews").run_id
    assert run_id is not None
    registry.client.delete_run(run_id)
    with pytest.raises(IntegrityError, match=f"mlflow runs restore --run-id {run_id}"):
        log.read(registry, "reviews")
    with pytest.raises(RegistryError):
        log.claim(registry, world.follow(written, Promoted, "1"))
    registry.client.restore_run(run_id)
    pointer = registry.client.get_experiment_by_name("prefixline.ledger.reviews").experiment_id
    registry.client.delete_experiment(pointer)
    with pytest.raises(IntegrityError, match=f"mlflow experiments restore --experiment-id {pointer}"):
        log.read(registry, "reviews")
    with pytest.raises(IntegrityError, match="mlflow experiments restore"):
        log.claim(registry, world.follow(written, Promoted, "1"))
    registry.client.restore_experiment(pointer)
    assert log.read(registry, "reviews").events == tuple(written)


def test_two_that_begin_a_ledger_at_once_agree_on_one(registry: Registry, monkeypatch: pytest.MonkeyPatch):
    real = registry.client.create_experiment
    first, second = (world.follow([], Registered, "1") for _ in range(2))

    def interleaved(name: str, *arguments: Any, **named: Any) -> str:
        if name.startswith(log.POINTER):
            with monkeypatch.context() as patch:
                patch.setattr(registry.client, "create_experiment", real)
                assert log.claim(registry, first)
        return real(name, *arguments, **named)

    monkeypatch.setattr(registry.client, "create_experiment", interleaved)
    assert not log.claim(registry, second)
    assert log.read(registry, "reviews").events == (first,)
    ledgers = registry.client.get_experiment_by_name(log.LEDGERS).experiment_id
    (run,) = registry.client.search_runs([ledgers])
    assert run.info.run_id == log.read(registry, "reviews").run_id


def fail(*arguments: Any, **named: Any) -> None:
    from mlflow.exceptions import MlflowException

    raise MlflowException("no answer", error_code=1)  # INTERNAL_ERROR


def lost(real: Any) -> Any:
    """A write that is carried out and whose reply is lost."""

    def write(*arguments: Any, **named: Any) -> None:
        real(*arguments, **named)
        fail()

    return write


def test_a_reply_lost_after_the_commit_is_one_event_and_a_success(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
):
    event = world.follow([], Registered, "1")
    for name in ("create_experiment", "log_param"):
        monkeypatch.setattr(registry.client, name, lost(getattr(registry.client, name)))
    with pytest.raises(RegistryError):  # of the experiment that holds all ledgers, which is made first
        log.claim(registry, event)
    assert log.claim(registry, event)
    assert log.read(registry, "reviews").events == (event,)


def test_a_write_that_did_not_happen_is_an_error_and_no_event(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
):
    written = write(registry, "register 1")
    event = world.follow(written, Promoted, "1")
    with monkeypatch.context() as patch:
        patch.setattr(registry.client, "log_param", fail)
        with pytest.raises(RegistryError, match="writing epoch 2 of the ledger of reviews"):
            log.claim(registry, event)
        patch.setattr(registry.client, "get_run", fail)
        with pytest.raises(
            RegistryError, match="Whether this was recorded is not known; `prefixline history"
        ):
            log.claim(registry, event)
    assert log.read(registry, "reviews").events == tuple(written)
    monkeypatch.setattr(registry.client, "create_experiment", fail)
    with pytest.raises(RegistryError):
        log.claim(registry, replace(written[0], prefix="others"))
    assert log.read(registry, "others").run_id is None


def test_an_epoch_taken_by_what_is_no_event_is_reported(registry: Registry):
    written = write(registry, "register 1")
    run_id = log.read(registry, "reviews").run_id
    registry.client.log_param(run_id, "000002", "mine")
    assert not log.claim(registry, world.follow(written, Promoted, "1"))
    with pytest.raises(IntegrityError, match="epoch 2: not JSON"):
        log.read(registry, "reviews")


def follower(reading: log.Reading) -> Event:
    return world.follow(list(reading.events), Promoted, "1")


def test_one_who_comes_second_appends_to_the_ledger_as_it_is_then(registry: Registry):
    (first,) = write(registry, "register 1")
    stale = log.read(registry, "reviews")
    other = world.follow([first], Registered, "2")
    assert log.claim(registry, other)
    after = log.append(registry, stale, follower)
    assert after is not None
    assert after.events == log.read(registry, "reviews").events
    assert after.events[:2] == (first, other)
    assert log.append(registry, stale, lambda _: None) is None
    assert len(log.read(registry, "reviews").events) == 3


def test_an_epoch_that_is_taken_is_known_to_be_whatever_words_mlflow_has_for_it(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
):
    (first,) = write(registry, "register 1")
    with monkeypatch.context() as patch:  # by MLflow's words alone
        patch.setattr(registry.client, "get_run", fail)
        assert not log.claim(registry, replace(first, id="f" * 32))
    monkeypatch.setattr(log, "TAKEN", "in other words")  # by the ledger
    assert not log.claim(registry, replace(first, id="f" * 32))
    assert log.claim(registry, first)


def test_a_model_that_was_renamed_does_not_begin_a_ledger_anew(registry: Registry):
    write(registry, "register 1")
    registry.client.rename_registered_model("reviews", "opinions")
    with pytest.raises(IntegrityError, match="the ledger is gone"):
        log.read(registry, "opinions")
