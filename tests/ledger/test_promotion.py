"""Stages move by the ledger alone: checked, one winner an epoch, the aliases following. Real sqlite databases."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from pipeline import promotion
from pipeline.errors import ConflictError, IntegrityError, RegistryError, UnreachableError
from pipeline.ledger import fold, log, registration, tainting
from pipeline.ledger.events import STAGES, Archived, Promoted, Registered, RolledBack
from pipeline.ledger.history import history, up_to
from pipeline.ledger.projection import out_of_step, project
from pipeline.register import versions
from pipeline.register.registry import Registry
from tests.ledger import race, world
from tests.ledger.world import NAME, aliases

ALICE, BOB = "alice@localhost", "bob@localhost"


def promote(registry: Registry, version: str, to: Any, actor: str = ALICE, **named: Any) -> promotion.Moved:
    return promotion.promote(registry, NAME, version, to=to, reason=f"to {to}", actor=actor, **named)


def events(registry: Registry) -> list[str]:
    return [event.sentence for event in log.read(registry, NAME).events]


def test_a_version_goes_up_stage_by_stage_and_back_and_the_aliases_follow(registry: Registry, tmp_path: Path):
    world.register(registry, tmp_path, "1")
    assert aliases(registry) == {"candidate": "1"}
    moved = promote(registry, "1", "staging", expect="none")
    assert aliases(registry) == {"staging": "1"}
    record = versions.lookup(registry, NAME, "1").record
    assert isinstance(moved.event, Promoted)
    assert (moved.event.epoch, moved.event.actor, moved.event.reason) == (2, ALICE, "to staging")
    assert moved.event.lineage_digest == record.digest
    assert (moved.event.expected, moved.repaired) == (None, ())
    promote(registry, "1", "production")
    world.register(registry, tmp_path, "2")
    promote(registry, "2", "staging")
    assert aliases(registry) == {"production": "1", "staging": "2"}
    assert promote(registry, "2", "production", expect="1").event.expected == "1"
    assert aliases(registry) == {"production": "2", "archived": "1"}
    found = versions.production(registry, NAME)
    assert found is not None
    assert (found.version.version, found.version.stages) == ("2", ("production",))
    back = promotion.rollback(registry, NAME, reason="worse", actor=BOB, expect="2")
    assert isinstance(back.event, RolledBack)
    assert aliases(registry) == {"production": "1", "archived": "2"}
    put_away = promotion.archive(registry, NAME, "1", reason="old", actor=BOB)
    assert isinstance(put_away.event, Archived)
    assert aliases(registry) == {"archived": "1"}
    assert versions.production(registry, NAME) is None
    assert events(registry) == [
        "version 1 was registered",
        "version 1 was promoted to staging",
        "version 1 was promoted to production",
        "version 2 was registered",
        "version 2 was promoted to staging",
        "version 2 was promoted to production",
        "version 1 came back to production, instead of version 2",
        "version 1 was archived",
    ]
    assert [v.stages for v in versions.list_versions(registry, NAME)] == [("archived",), ()]


def test_what_the_stages_do_not_allow_is_refused_with_what_they_do(registry: Registry, tmp_path: Path):
    world.register(registry, tmp_path)
    allowed = "allowed: to staging from candidate, archived or no stage, to production from staging"
    with pytest.raises(RegistryError, match=f"stands in candidate and cannot go to production; {allowed}"):
        promote(registry, "1", "production")
    promote(registry, "1", "staging")
    with pytest.raises(RegistryError, match="stands in staging and cannot go to staging"):
        promote(registry, "1", "staging")
    promote(registry, "1", "production")
    with pytest.raises(RegistryError, match="stands in production and cannot go to staging"):
        promote(registry, "1", "staging")
    with pytest.raises(RegistryError, match="production held nothing before 1 that it could go back to"):
        promotion.rollback(registry, NAME, reason="worse", actor=ALICE)
    promotion.archive(registry, NAME, "1", reason="old", actor=ALICE)
    with pytest.raises(RegistryError, match=r"archived and cannot go to production.*`prefixline rollback`"):
        promote(registry, "1", "production")
    with pytest.raises(RegistryError, match="archived already"):
        promotion.archive(registry, NAME, "1", reason="old", actor=ALICE)
    with pytest.raises(RegistryError, match="knows no version '2'; it knows 1"):
        promotion.archive(registry, NAME, "2", reason="old", actor=ALICE)
    with pytest.raises(RegistryError, match="no version '2'; available: 1 @archived"):
        promote(registry, "2", "staging")
    with pytest.raises(RegistryError, match="got the version 'staging', expected its number"):
        promote(registry, "staging", "staging")
    with pytest.raises(RegistryError, match="reason: got ' ', expected some words"):
        promotion.rollback(registry, NAME, reason=" ", actor=ALICE)
    assert len(events(registry)) == 4


def test_a_version_registered_by_hand_is_never_promoted(registry: Registry, tmp_path: Path):
    world.register(registry, tmp_path)
    registry.client.create_model_version(NAME, "file:///nowhere", await_creation_for=0)
    with pytest.raises(RegistryError, match="version 2: has no lineage; it was not registered by prefixline"):
        promote(registry, "2", "staging")
    assert events(registry) == ["version 1 was registered"]


def test_a_version_whose_record_was_tampered_with_is_never_promoted_and_can_be_put_away(
    registry: Registry, tmp_path: Path
):
    world.register(registry, tmp_path)
    (path,) = (tmp_path / ".prefixline").rglob("lineage.json")
    content = path.read_bytes()
    path.write_bytes(content + b" ")
    with pytest.raises(IntegrityError, match="SHA-256"):
        promote(registry, "1", "staging")
    # Also where the tag was made to fit: the ledger knows the record that was registered.
    changed = content.replace(b'"accuracy":0.9', b'"accuracy":1.0')
    path.write_bytes(changed)
    registry.client.set_model_version_tag(
        NAME, "1", versions.LINEAGE_DIGEST, hashlib.sha256(changed).hexdigest()
    )
    with pytest.raises(IntegrityError, match="is not the one that the ledger entered at epoch 1"):
        promote(registry, "1", "staging")
    assert events(registry) == ["version 1 was registered"]
    promotion.archive(registry, NAME, "1", reason="tampered with", actor=ALICE)
    assert aliases(registry) == {"archived": "1"}


@pytest.mark.parametrize("file", ["adapter_model.safetensors", "MLmodel", "serving_model.py"])
def test_a_version_whose_files_in_mlflow_are_others_is_never_promoted_nor_rolled_back_to(
    registry: Registry, tmp_path: Path, file: str
):
    world.register(registry, tmp_path)
    (path,) = (tmp_path / ".prefixline").rglob(file)
    for version in "12":
        if version == "2":
            world.register(registry, tmp_path, "2")
        promote(registry, version, "staging")
        promote(registry, version, "production")
    path.write_bytes(path.read_bytes().swapcase())
    before = events(registry)
    problem = f"version 1 is not what was registered; do not use it:(.|\n)*{file}: SHA-256 is"
    with pytest.raises(IntegrityError, match=problem):
        promote(registry, "1", "staging")
    with pytest.raises(IntegrityError, match=problem):
        promotion.rollback(registry, NAME, reason="worse", actor=BOB)
    assert events(registry) == before


def test_a_verdict_that_did_not_pass_is_never_promoted_whoever_registered_it(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    world.register(registry, tmp_path)
    real = versions.lookup

    def failed(*arguments: Any, **named: Any) -> versions.VerifiedVersion:
        found = real(*arguments, **named)
        found.record.verdict["passed"] = False  # type: ignore[index]
        return found

    monkeypatch.setattr(versions, "lookup", failed)
    with pytest.raises(RegistryError, match="verdict did not pass; it is never promoted"):
        promote(registry, "1", "staging")


def test_a_duplicate_is_not_promoted_in_place_of_the_version_that_counts(registry: Registry, tmp_path: Path):
    world.register(registry, tmp_path)
    version = registry.client.get_model_version(NAME, "1")
    registry.client.create_model_version(
        NAME, version.source, tags={**version.tags, versions.DUPLICATE_OF: "1"}, await_creation_for=0
    )
    with pytest.raises(RegistryError, match="version 2 is a duplicate of version 1"):
        promote(registry, "2", "staging")


def test_a_version_made_before_there_was_a_ledger_is_entered_when_it_is_promoted(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.register.registration.enter", lambda *_, **__: None)
        world.register(registry, tmp_path)
    registry.client.set_registered_model_alias(NAME, "production", "1")
    assert log.read(registry, NAME).events == ()
    with pytest.raises(
        RegistryError, match="alias production is on version 1, but the ledger says that nothing"
    ):
        versions.production(registry, NAME)
    promote(registry, "1", "staging")
    # Somebody's service reads it, and the ledger has never spoken of production.
    assert aliases(registry) == {"staging": "1", "production": "1"}
    promote(registry, "1", "production")
    assert events(registry)[0] == "version 1 was registered"
    assert aliases(registry) == {"production": "1"}


def test_a_model_that_was_deleted_and_made_anew_does_not_inherit_the_stages(
    registry: Registry, tmp_path: Path
):
    world.register(registry, tmp_path, "1")
    promote(registry, "1", "staging")
    registry.client.delete_registered_model(NAME)
    with pytest.raises(IntegrityError, match="version 1 is not the one that the ledger entered at epoch 1"):
        world.register(registry, tmp_path, "2")


def test_whoever_expected_something_else_is_told_what_stands_there_and_who_moved_it(
    registry: Registry, tmp_path: Path
):
    world.register(registry, tmp_path, "1")
    world.register(registry, tmp_path, "2")
    promote(registry, "1", "staging")
    with pytest.raises(
        ConflictError, match=r"expected nothing in staging\. Now there is version 1 in staging, by alice"
    ):
        promote(registry, "2", "staging", BOB, expect="none")
    with pytest.raises(
        ConflictError, match=r"expected version 7 in production. Now there is nothing in production\."
    ):
        promotion.rollback(registry, NAME, reason="worse", actor=BOB, expect="7")
    assert len(events(registry)) == 3


def test_whoever_is_second_is_told_who_was_first_and_nothing_is_tried_again(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for key in "123":
        world.register(registry, tmp_path, key)
    real = log.claim

    def beaten(*arguments: Any) -> Any:
        monkeypatch.setattr(log, "claim", real)
        promote(registry, "2", "staging")
        return real(*arguments)

    monkeypatch.setattr(log, "claim", beaten)
    with pytest.raises(ConflictError) as caught:
        promote(registry, "1", "staging", BOB)
    said = str(caught.value)
    assert f"{ALICE} was first: version 2 was promoted to staging at epoch 4" in said
    assert f"Now there is version 2 in staging, by {ALICE} at epoch 4" in said
    assert events(registry)[3:] == ["version 2 was promoted to staging", "version 1 was refused for staging"]
    kept = log.read(registry, NAME).events[-1]
    assert (kept.actor, kept.request) == (BOB, None)
    assert kept.reason.startswith(f"{ALICE} was first: version 2 was promoted to staging at epoch 4")
    assert aliases(registry) == {"candidate": "3", "staging": "2"}

    def gone(*arguments: Any) -> Any:
        raise UnreachableError("no answer")

    def beaten_by_one_that_ends_the_server(*arguments: Any) -> Any:
        monkeypatch.setattr(log, "claim", real)
        promote(registry, "3", "staging")
        monkeypatch.setattr(log, "claim", gone)
        return real(*arguments)

    monkeypatch.setattr(log, "claim", beaten_by_one_that_ends_the_server)
    with pytest.raises(ConflictError, match="was first: version 3 was promoted to staging at epoch 6"):
        promote(registry, "1", "staging", BOB)


def test_a_registration_that_is_second_takes_the_next_epoch(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    world.register(registry, tmp_path, "1")
    real = log.claim

    def beaten(*arguments: Any) -> Any:
        monkeypatch.setattr(log, "claim", real)
        promote(registry, "1", "staging")
        return real(*arguments)

    monkeypatch.setattr(log, "claim", beaten)
    world.register(registry, tmp_path, "2")
    assert events(registry)[1:] == ["version 1 was promoted to staging", "version 2 was registered"]
    assert aliases(registry) == {"candidate": "2", "staging": "1"}


def test_a_registration_during_a_promotions_trial_is_nobody_who_was_first(registry: Registry, tmp_path: Path):
    world.register(registry, tmp_path, "1")

    def trial(_: Any) -> None:
        world.register(registry, tmp_path, "2")

    promote(registry, "1", "staging", trial=trial)
    assert events(registry)[1:] == ["version 2 was registered", "version 1 was promoted to staging"]
    assert aliases(registry) == {"candidate": "2", "staging": "1"}


class Killed(BaseException):
    pass


def kill(*arguments: Any, **named: Any) -> None:
    raise Killed


def test_killed_between_event_and_alias_the_next_command_puts_the_aliases_right(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    world.register(registry, tmp_path, "1")
    world.register(registry, tmp_path, "2")
    with monkeypatch.context() as patch:
        patch.setattr(registry.client, "set_registered_model_alias", kill)
        with pytest.raises(Killed):
            promote(registry, "1", "staging")
    reading = log.read(registry, NAME)
    assert [str(each) for each in out_of_step(reading)] == ["staging: the alias says none, the ledger says 1"]
    assert versions.lookup(registry, NAME, "@staging").version.version == "1"
    moved = promote(registry, "1", "production")
    assert [str(each) for each in moved.repaired] == ["staging: the alias says none, the ledger says 1"]
    assert aliases(registry) == {"candidate": "2", "production": "1"}
    assert out_of_step(log.read(registry, NAME)) == ()


def test_a_server_that_goes_between_event_and_alias_is_an_error_that_says_the_ledger_has_it(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from mlflow.exceptions import MlflowException

    def fail(*arguments: Any) -> None:
        raise MlflowException("no answer")

    world.register(registry, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(registry.client, "set_registered_model_alias", fail)
        with pytest.raises(
            RegistryError, match=r"The ledger has it \(version 1 was promoted to staging, epoch 2"
        ):
            promote(registry, "1", "staging")
    assert [each.stage for each in project(registry, NAME)[1]] == ["staging"]
    assert aliases(registry) == {"staging": "1"}


def test_an_alias_moved_by_hand_is_found_does_not_count_and_is_repaired(registry: Registry, tmp_path: Path):
    for key in "12":
        world.register(registry, tmp_path, key)
    promote(registry, "1", "staging")
    promote(registry, "1", "production")
    registry.client.set_registered_model_alias(NAME, "production", "2")
    registry.client.set_registered_model_alias(NAME, "archived", "2")
    registry.client.set_registered_model_alias(NAME, "champion", "2")  # theirs, and no stage
    found = [str(each) for each in out_of_step(log.read(registry, NAME))]
    assert found == [
        "production: the alias says 2, the ledger says 1",
        "archived: the alias says 2, the ledger says none",
    ]
    champion = versions.production(registry, NAME)
    assert champion is not None
    assert champion.version.version == "1"
    assert versions.lookup(registry, NAME, "champion").version.version == "2"
    reading, repaired = project(registry, NAME, stages=STAGES)
    assert [str(each) for each in repaired] == found
    assert out_of_step(reading) == ()
    assert aliases(registry) == {"candidate": "2", "production": "1", "champion": "2"}
    assert project(registry, NAME, stages=STAGES)[1] == ()


def test_a_version_deleted_in_mlflow_stays_out_of_step_and_holds_nobody_up(
    registry: Registry, tmp_path: Path
):
    for key in "12":
        world.register(registry, tmp_path, key)
    promote(registry, "1", "staging")
    promote(registry, "1", "production")
    registry.client.delete_model_version(NAME, "1")
    reading, repaired = project(registry, NAME)
    assert [str(each) for each in out_of_step(reading)] == [
        "production: the alias says none, the ledger says 1"
    ]
    assert repaired == ()  # it is not said that it was
    promote(registry, "2", "staging")
    promote(registry, "2", "production")
    assert aliases(registry) == {"production": "2"}
    with pytest.raises(RegistryError, match="no version '1'"):
        promotion.rollback(registry, NAME, reason="worse", actor=ALICE)


def test_a_late_writer_of_an_alias_does_not_undo_a_newer_one(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for key in "12":
        world.register(registry, tmp_path, key)
    real = registry.client.set_registered_model_alias

    def late(name: str, alias: str, version: str) -> None:
        monkeypatch.setattr(registry.client, "set_registered_model_alias", real)
        promote(registry, "2", "staging", BOB)
        real(name, alias, version)  # of epoch 3, after epoch 4 has been projected

    monkeypatch.setattr(registry.client, "set_registered_model_alias", late)
    moved = promote(registry, "1", "staging")
    assert moved.event.epoch == 3
    assert aliases(registry) == {"staging": "2"}
    anchor = log.read(registry, NAME).anchor
    assert anchor is not None
    assert anchor.epoch == 4


@pytest.mark.parametrize("hours", [-24, 24])
def test_a_clock_a_day_off_changes_no_order_and_is_marked(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hours: int
):
    world.register(registry, tmp_path, "1")
    wrong = (datetime.now(UTC) + timedelta(hours=hours)).isoformat(timespec="milliseconds")
    with monkeypatch.context() as patch:
        patch.setattr(fold, "now", lambda: wrong)
        promote(registry, "1", "staging")
    promote(registry, "1", "production")
    told = history(log.read(registry, NAME))
    assert [row["epoch"] for row in told["events"]] == [1, 2, 3]
    assert told["events"][1]["time"] == wrong
    assert [row["clock_behind"] for row in told["events"]] == [False, hours < 0, hours > 0]
    assert told["stages"] == {"candidate": None, "staging": None, "production": "1", "archived": None}
    assert aliases(registry) == {"production": "1"}


def test_history_says_what_stood_where_at_a_time_in_the_order_of_epochs():
    chained = world.chain("register 1", "staging 1", "production 1")
    days = ["2024-03-01", "2024-03-05", "2024-03-03"]  # the second one's clock is days ahead
    done: list[Any] = []
    for event, day in zip(chained, days, strict=True):
        time = f"{day}T00:00:00.000+00:00"
        done.append(world.follow(done, type(event), "1", stage=event.stage, time=time))
    reading = log.Reading(NAME, "run", tuple(done), {}, None)

    def at(day: int) -> dict[str, Any]:
        return history(reading, datetime(2024, 3, day, tzinfo=UTC))

    assert len(up_to(done, datetime(2024, 2, 29, tzinfo=UTC))) == 0
    assert (at(2)["stages"]["candidate"], len(at(2)["events"])) == ("1", 1)
    assert at(3)["stages"] == {"candidate": None, "staging": None, "production": "1", "archived": None}
    assert (at(3)["at"], at(3)["out_of_step"]) == ("2024-03-03T00:00:00+00:00", None)
    whole = history(reading)
    assert whole["out_of_step"] == ["production: the alias says none, the ledger says 1"]
    assert [row["clock_behind"] for row in whole["events"]] == [False, False, True]
    assert [row["previous"] for row in whole["events"][1:]] == [row["sha256"] for row in whole["events"][:-1]]


def test_of_several_processes_that_promote_at_once_one_wins_each_epoch_and_the_others_are_told(
    registry: Registry, tmp_path: Path
):
    race.register(registry, tmp_path)
    race.check(registry)


def test_entering_a_version_again_enters_nothing(registry: Registry, tmp_path: Path):
    world.register(registry, tmp_path)
    (entered,) = log.read(registry, NAME).events
    assert isinstance(entered, Registered)
    for _ in range(2):
        registration.enter(
            registry,
            NAME,
            "1",
            lineage_digest=entered.lineage_digest,
            verdict_digest=entered.verdict_digest,
            actor=BOB,
            reason="again",
        )
    assert log.read(registry, NAME).events == (entered,)


def taint(registry: Registry, version: str, row: str = "e" * 64) -> bool:
    return tainting.taint(registry, NAME, version, row=row, actor=BOB, reason="asked for")


def test_a_tainted_version_is_neither_promoted_nor_rolled_back_to(registry: Registry, tmp_path: Path):
    for number in ("1", "2", "3"):
        world.register(registry, tmp_path, number)
    for number in ("1", "2"):
        promote(registry, number, "staging")
        promote(registry, number, "production")
    promote(registry, "3", "staging")
    assert [taint(registry, number) for number in ("3", "1")] == [True, True]
    for to in ("staging", "production"):
        with pytest.raises(
            RegistryError, match=r"version 3 saw a row that was to be erased .*bob.*asked for.*never"
        ):
            promote(registry, "3", to)
    with pytest.raises(RegistryError, match=r"held nothing before 2.*passed over: 3, 1"):
        promotion.rollback(registry, NAME, reason="worse", actor=ALICE)
    assert aliases(registry) == {"archived": "1", "production": "2", "staging": "3"}
    assert (
        promotion.archive(registry, NAME, "3", reason="tainted", actor=ALICE).state.stages["archived"] == "3"
    )


def test_tainting_moves_nothing_happens_once_for_each_row_and_is_told_by_history(
    registry: Registry, tmp_path: Path
):
    world.register(registry, tmp_path, "1")
    before = log.read(registry, NAME)
    assert [taint(registry, "1"), taint(registry, "1"), taint(registry, "1", "f" * 64)] == [True, False, True]
    after = log.read(registry, NAME)
    assert (after.state.stages, after.aliases) == (before.state.stages, before.aliases)
    assert after.anchor is not None
    assert after.anchor.epoch == after.state.epoch == 3
    rows = [(row["event"], row["stage"], row["row"]) for row in history(after)["events"]]
    assert rows[1:] == [("tainted", None, "e" * 64), ("tainted", None, "f" * 64)]
    (version,) = versions.list_versions(registry, NAME)
    assert version.tainted
    with pytest.raises(RegistryError, match="knows no version 9"):
        taint(registry, "9")
