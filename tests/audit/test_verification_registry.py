"""Whatever is changed of a version in MLflow, in its run, or in the ledger is found. All of it is real."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing

import pytest
from click.testing import CliRunner

from pipeline.audit.faults import Gone, Kind, Link
from pipeline.audit.verification import verify
from pipeline.cli import main
from pipeline.ledger.registration import enter
from pipeline.register import registration, versions
from pipeline.show.terminal import show_verification
from tests import mlflow_world
from tests.audit.verification import database, faults, kinds, lock_file
from tests.audit.verify_world import World


@pytest.mark.parametrize(
    "tag",
    [
        "run_key",
        "lineage_digest",
        "adapter_digest",
        "dataset_md5",
        "base_digest",
        "manifest_digest",
        "made_from",
    ],
)
@pytest.mark.parametrize("removed", [False, True])
def test_a_tag_edited_or_removed_is_found_and_the_files_are_not_blamed(
    world: World, tag: str, removed: bool
) -> None:
    client = world.registry.client
    if removed:
        client.delete_model_version_tag("alpha", "1", f"prefixline.{tag}")
    else:
        client.set_model_version_tag("alpha", "1", f"prefixline.{tag}", "0" * 64)
    told = faults(verify(world.root, "alpha:1"))
    assert any(f"prefixline.{tag}" in fault.where for fault in told)
    assert {fault.kind for fault in told} <= (
        {Kind.MISSING, Kind.OUT_OF_STEP} if removed else {Kind.OUT_OF_STEP}
    )


def test_a_version_without_any_of_its_tags_is_still_known_as_ours(world: World) -> None:
    for tag in versions.list_versions(world.registry, "alpha")[0].tags:
        world.registry.client.delete_model_version_tag("alpha", "1", tag)
    (version,) = verify(world.root, "alpha:1").versions
    assert not version.by_hand
    missing = [f.where for f in version.faults if (f.link, f.kind) == (Link.VERSION, Kind.MISSING)]
    assert len(missing) == 7
    assert not [f for f in version.faults if f.link in (Link.DATASET, Link.BASE_MODEL, Link.EXPERIMENT)]


@pytest.mark.parametrize(
    ("statement", "where"),
    [
        ("update model_versions set source = source || '/x' where name = 'alpha' and version = 1", "the version's source"),
        (
            "update model_versions set storage_location = "
            "(select storage_location from model_versions where name = 'alpha' and version = 2) "
            "where name = 'alpha' and version = 1",
            "where it is loaded from",
        ),
        (
            "update model_versions set run_id = (select run_id from model_versions where name = 'alpha' and "
            "version = 2) where name = 'alpha' and version = 1",
            "the version's run",
        ),
    ],
)  # fmt: skip
def test_a_version_pointed_elsewhere_in_the_database_is_found(
    world: World, statement: str, where: str
) -> None:
    database(world, statement)
    assert ("out of step", "version", where) in kinds(faults(verify(world.root, "alpha:1")))


def test_a_deleted_run_is_missing_and_the_rest_is_still_verified(world: World) -> None:
    run = world.registry.client.get_model_version("alpha", "1").run_id
    world.registry.client.delete_run(run)
    told = faults(verify(world.root, "alpha:1"))
    assert kinds(told) == {("missing", "run", f"run {run}")}
    assert told[0].actual == f"deleted; mlflow runs restore --run-id {run}"


def test_a_run_deleted_for_good_is_missing(world: World) -> None:
    run = world.registry.client.get_model_version("alpha", "1").run_id
    for table in ("tags", "metrics", "latest_metrics", "params", "runs"):
        with sqlite3.connect(world.root / ".prefixline/mlflow.db") as connection:
            connection.execute(f"delete from {table} where run_uuid = ?", (run,))
        connection.close()
    told = faults(verify(world.root, "alpha:1"))
    assert ("missing", "run", f"run {run}") in kinds(told)
    assert not [f for f in told if f.link in (Link.ARTEFACT, Link.DATASET, Link.ADAPTER)]


def test_a_run_whose_files_are_gone_is_told(world: World) -> None:
    folder = lock_file(world, "1").parent
    shutil.rmtree(folder)
    assert kinds(faults(verify(world.root, "alpha:1"))) == {("missing", "run", folder.as_uri())}


@pytest.mark.parametrize("tag", ["run_key", "outcome", "version"])
def test_a_runs_tag_edited_is_found(world: World, tag: str) -> None:
    run = world.registry.client.get_model_version("alpha", "1").run_id
    world.registry.client.set_tag(run, f"prefixline.{tag}", "9")
    told = kinds(faults(verify(world.root, "alpha:1")))
    assert ("out of step", "run", f"tag prefixline.{tag} of run {run}") in told


def test_a_logged_model_deleted_or_edited_is_found(world: World) -> None:
    client = world.registry.client
    run = client.get_model_version("alpha", "1").run_id
    (model,) = [output.model_id for output in client.get_run(run).outputs.model_outputs]
    client.set_logged_model_tags(model, {versions.LINEAGE_DIGEST: "0" * 64})
    where = f"tag {versions.LINEAGE_DIGEST} of the logged model {model}"
    assert kinds(faults(verify(world.root, "alpha:1"))) == {("out of step", "artefact", where)}
    database(world, "update logged_models set source_run_id = 'x' where model_id = ?", model)
    told = kinds(faults(verify(world.root, "alpha:1")))
    assert ("out of step", "artefact", f"run of logged model {model}") in told
    client.delete_logged_model(model)
    ((kind, link, where),) = kinds(faults(verify(world.root, "alpha:1")))
    assert (kind, link) == ("missing", "artefact")
    assert where.startswith("logged model at file:")


def test_a_version_that_was_deleted_is_missed(world: World) -> None:
    client = world.registry.client
    run = client.get_model_version("alpha", "1").run_id
    client.delete_model_version("alpha", "1")
    found = verify(world.root)
    assert found.gone == (Gone("alpha", "1", run),)
    assert not found.sound
    # What went on from it has lost what it came from.
    assert kinds(faults(found, "beta:1")) == {("missing", "warm start", "alpha version 1")}
    client.delete_run(run)  # as one is told to where the same is to be registered anew
    assert verify(world.root, "alpha").sound


def test_a_model_that_was_deleted_as_a_whole_is_missed_and_what_it_held_though_its_runs_went_too(
    world: World,
) -> None:
    client = world.registry.client
    runs = {version: client.get_model_version("alpha", version).run_id for version in "12"}
    client.delete_registered_model("alpha")
    expected = {Gone("alpha", version, run) for version, run in runs.items()}
    assert set(verify(world.root).gone) == set(verify(world.root, "alpha").gone) == expected
    for run in runs.values():
        client.delete_run(run)
    assert verify(world.root).gone == (Gone("alpha", "2", None),)  # the candidate
    done = CliRunner().invoke(main, ["-w", str(world.root), "verify", "alpha"])
    assert done.exit_code == 5
    assert "missing alpha version 2: the ledger has it in a stage" in done.stdout


def test_a_version_that_went_on_from_another_adapter_than_it_says_is_found(world: World) -> None:
    world.registry.client.set_model_version_tag("alpha", "1", versions.ADAPTER_DIGEST, "0" * 64)
    told = faults(verify(world.root, "beta"), "beta:1")
    assert kinds(told) == {("out of step", "warm start", "alpha version 1")}


def test_a_version_registered_by_hand_is_named_as_that(world: World) -> None:
    client, folder = world.registry.client, world.root / ".prefixline/by-hand"
    folder.mkdir()
    (folder / "MLmodel").write_text("{}")
    client.create_model_version("alpha", folder.as_uri())
    client.create_registered_model("gamma")
    client.create_model_version("gamma", "s3://nowhere/at/all")
    client.set_registered_model_alias("gamma", "production", "1")
    found = verify(world.root)
    assert [(v.name, v.version) for v in found.versions if v.by_hand] == [("alpha", "3"), ("gamma", "1")]
    assert kinds(faults(found, "alpha:3")) == {("missing", "lineage", "lineage record")}
    assert kinds(faults(found, "gamma:1")) == {
        ("missing", "lineage", "lineage record"),
        ("out of step", "alias", "@production"),
    }


def test_an_alias_moved_by_hand_is_told_at_both_versions(world: World) -> None:
    mlflow_world.promote(world.registry, "alpha", "1")
    assert verify(world.root).sound
    world.registry.client.set_registered_model_alias("alpha", "production", "2")
    found = verify(world.root)
    for number in ("1", "2"):
        (fault,) = faults(found, f"alpha:{number}")
        assert (fault.link, fault.kind, fault.where) == (Link.ALIAS, Kind.OUT_OF_STEP, "@production")
        assert (fault.expected, fault.actual) == ("1", "2")
    assert faults(found, "beta:1") == []


@pytest.mark.parametrize(
    "statement",
    [
        "update params set value = replace(value, 'passed the gate', 'was told to') where key = '000001'",
        "delete from params where key = '000001'",
        "update experiments set lifecycle_stage = 'deleted' where name = 'prefixline.ledger.alpha'",
    ],
)
def test_a_ledger_changed_behind_mlflows_back_is_told_at_each_of_its_versions(
    world: World, statement: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with closing(sqlite3.connect(world.root / ".prefixline/mlflow.db")) as database, database:
        assert database.execute(statement).rowcount > 0
    # Which version is in a stage cannot be told then, so a stage is all of them.
    for asked in (None, "alpha", "alpha@production"):
        found = verify(world.root, asked)
        for number in ("1", "2"):
            (fault,) = faults(found, f"alpha:{number}")
            assert (fault.link, fault.kind, fault.where) == (
                Link.LEDGER,
                Kind.TAMPERED,
                "the ledger of alpha",
            )
            assert "epoch" in fault.actual or "experiment" in fault.actual
        assert {version.stages for version in found.versions if version.name == "alpha"} == {None}
    show_verification(found.to_json())
    shown = capsys.readouterr().out
    assert "not known" in shown
    assert "none" not in shown


def test_a_version_that_the_ledger_never_entered_is_told(world: World) -> None:
    client = world.registry.client
    second = client.get_model_version("alpha", "2")
    tags = {**second.tags, "prefixline.run_key": "7" * 64}
    client.create_model_version("alpha", second.source, run_id=second.run_id, tags=tags)
    told = kinds(faults(verify(world.root, "alpha:3"), "alpha:3"))
    assert ("missing", "ledger", "its registration") in told


def test_a_version_that_is_not_the_one_the_ledger_entered_is_told(world: World) -> None:
    record = versions.lookup(world.registry, "alpha", "1").record
    enter(
        world.registry, "alpha", "7", lineage_digest="a" * 64, verdict_digest="b" * 64,
        actor=mlflow_world.ACTOR, reason="a test",
    )  # fmt: skip
    client = world.registry.client
    first = client.get_model_version("alpha", "1")
    for _ in range(5):
        client.create_model_version("alpha", first.source, run_id=first.run_id, tags=first.tags)
    told = faults(verify(world.root, "alpha:7"), "alpha:7")
    assert {(fault.where, fault.expected, fault.actual) for fault in told if fault.link is Link.LEDGER} == {
        ("epoch 3: lineage record", "a" * 64, record.digest),
        ("epoch 3: verdict", "b" * 64, record.verdict_digest),
    }


def test_a_version_of_ours_that_points_to_a_store_nobody_knows_is_unreachable(world: World) -> None:
    client = world.registry.client
    first = client.get_model_version("alpha", "1")
    tags = {**first.tags, "prefixline.duplicate_of": "1"}
    client.create_model_version("alpha", "nowhere://at/all", run_id=first.run_id, tags=tags)
    told = kinds(faults(verify(world.root, "alpha:3"), "alpha:3"))
    assert ("unreachable", "artefact", "nowhere://at/all") in told
    assert ("out of step", "version", "the version's source") in told


def test_a_duplicate_is_named_and_holds_no_stage(world: World) -> None:
    client = world.registry.client
    first = client.get_model_version("alpha", "1")
    client.create_model_version("alpha", first.source, run_id=first.run_id, tags=first.tags)
    told = faults(verify(world.root, "alpha:3"), "alpha:3")
    assert kinds(told) >= {("out of step", "version", "tag prefixline.duplicate_of")}
    registration.complete(world.registry, "alpha", world.run_key("alpha", "1"), actor=mlflow_world.ACTOR)
    (duplicate,) = verify(world.root, "alpha:3").versions
    assert (duplicate.duplicate_of, duplicate.faults) == ("1", ())
    client.set_registered_model_alias("alpha", "production", "3")
    assert kinds(faults(verify(world.root, "alpha:3"), "alpha:3")) == {
        ("out of step", "alias", "@production")
    }
