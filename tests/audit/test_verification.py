"""Whatever is changed of a version, or of what it was made from, is found, named, and told apart. All of it is real."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from pipeline.audit.faults import Fault, Gone, Kind, Link, Verification
from pipeline.audit.verification import verify
from pipeline.cli import main
from pipeline.digest import canonical_json, digest, sha256_file
from pipeline.environment import quiet_environment
from pipeline.errors import RegistryError
from pipeline.ledger.registration import enter
from pipeline.register import registration, versions
from pipeline.register.lineage import LineageRecord
from pipeline.show.terminal import show_verification
from pipeline.versioning.experiment import anchor
from tests import git_dvc, mlflow_world
from tests.audit.verify_world import CODE, DATA, World
from tests.workspaces import cached, stored, tamper

FILES = [
    "MLmodel",
    "artifacts/adapter/adapter_config.json",
    "artifacts/adapter/adapter_model.safetensors",
    "artifacts/lineage.json",
    "conda.yaml",
    "input_example.json",
    "manifest.json",
    "python_env.yaml",
    "requirements.txt",
    "serving_input_example.json",
    "serving_model.py",
]
"""Everything a version's folder holds."""
RUN = "from pipeline.cli import main; main()"


def faults(found: Verification, version: str = "alpha:1") -> list[Fault]:
    """What was found of one version."""
    (one,) = [v for v in found.versions if f"{v.name}:{v.version}" == version]
    return list(one.faults)


def kinds(found: list[Fault]) -> set[tuple[str, str, str]]:
    return {(str(fault.kind), str(fault.link), fault.where) for fault in found}


def record(world: World, version: str = "alpha:1") -> LineageRecord:
    path = world.artefact(*version.split(":")) / "artifacts/lineage.json"
    return LineageRecord.from_json(path.read_bytes())


def flip(path: Path) -> None:
    """Change one bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    tamper(path, bytes(content))


def database(world: World, statement: str, *values: str) -> None:
    """What somebody who can write MLflow's database does to it."""
    with sqlite3.connect(world.root / ".prefixline/mlflow.db") as connection:
        assert connection.execute(statement, values).rowcount >= 1
    connection.close()


def test_nothing_is_wrong_with_versions_as_the_line_makes_them(untouched: World) -> None:
    found = verify(untouched.root)
    assert found.sound
    assert [(v.name, v.version, v.stages, v.faults, v.unchecked) for v in found.versions] == [
        ("alpha", "1", (), (), ()),
        ("alpha", "2", ("candidate",), (), ()),
        ("beta", "1", ("candidate",), (), ()),
    ]
    assert found.gone == ()


def test_a_file_that_versions_share_is_hashed_once(untouched: World) -> None:
    one, both = verify(untouched.root, "alpha:1"), verify(untouched.root, "alpha")
    base = sum(path.stat().st_size for path in (untouched.root / "base").iterdir())
    lock = len(canonical_json(json.loads(lock_file(untouched, "1").read_bytes())))
    own = sum(path.stat().st_size for path in untouched.artefact("alpha", "1").rglob("*") if path.is_file())
    assert one.bytes > base + lock + own
    second = verify(untouched.root, "alpha:2")
    # Three files of the base are in both, and small outputs that are the same bytes are one object of the cache.
    assert both.files < one.files + second.files - 2
    assert both.bytes <= one.bytes + second.bytes - base


def lock_file(world: World, version: str) -> Path:
    run = world.registry.client.get_model_version("alpha", version).run_id
    uri = world.registry.client.get_run(run).info.artifact_uri
    return Path(uri.removeprefix("file://")) / "lock.json"


@pytest.mark.parametrize(
    ("reference", "expected"),
    [
        ("alpha", ["alpha:1", "alpha:2"]),
        ("alpha:1", ["alpha:1"]),
        ("alpha@candidate", ["alpha:2"]),
        ("beta@candidate", ["beta:1"]),
        # As every other command takes them.
        ("alpha:candidate", ["alpha:2"]),
        ("alpha@1", ["alpha:1"]),
    ],
)
def test_a_reference_chooses_versions(untouched: World, reference: str, expected: list[str]) -> None:
    assert [f"{v.name}:{v.version}" for v in verify(untouched.root, reference).versions] == expected


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("gamma", "gamma: nothing is registered under this name; available: alpha, beta"),
        ("alpha:3", "alpha: no version ':3'; available: 1, 2 @candidate"),
        ("alpha@production", "alpha: no version '@production'; available: 1, 2 @candidate"),
        ("alpha/1", "is no version's name; expected NAME, NAME:NUMBER or NAME@STAGE"),
    ],
)
def test_a_reference_to_nothing_says_what_there_is(untouched: World, reference: str, message: str) -> None:
    with pytest.raises(RegistryError) as error:
        verify(untouched.root, reference)
    assert message in str(error.value)


def test_every_change_of_every_file_of_a_version_is_found(world: World) -> None:
    folder, other = world.artefact("alpha", "1"), world.artefact("alpha", "2")
    assert sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()) == FILES
    tried = dict.fromkeys(("flipped", "removed", "renamed", "symlink", "swapped"), 0)

    def found(name: str, kind: str, how: str) -> set[tuple[str, str, str]]:
        tried[how] += 1
        told = kinds(faults(verify(world.root, "alpha:1")))
        assert (kind, "artefact", name) in told, (how, name, told)
        return told

    for name in FILES:
        path, content = folder / name, (folder / name).read_bytes()
        flip(path)
        found(name, "tampered", "flipped")
        path.unlink()
        found(name, "missing", "removed")
        path.with_name("other.txt").write_bytes(content)
        told = found(name, "missing", "renamed")
        if name != "manifest.json":  # without it nothing says which files belong here
            extra = Path(name).with_name("other.txt").as_posix()
            assert ("tampered", "artefact", extra) in told
        path.with_name("other.txt").rename(world.root / ".prefixline/elsewhere")
        path.symlink_to(world.root / ".prefixline/elsewhere")  # the very same bytes
        found(name, "tampered", "symlink")
        path.unlink()
        theirs = (other / name).read_bytes()
        if theirs != content:
            path.write_bytes(theirs)
            (other / name).write_bytes(content)
            found(name, "tampered", "swapped")
            assert ("tampered", "artefact", name) in kinds(faults(verify(world.root, "alpha:2"), "alpha:2"))
            (other / name).write_bytes(theirs)
        path.write_bytes(content)
    assert tried == {
        **dict.fromkeys(("flipped", "removed", "renamed", "symlink"), len(FILES)),
        # Model, weights, record and manifest; the others are the same in both.
        "swapped": 4,
    }
    assert verify(world.root).sound


@pytest.mark.parametrize("place", ["", "artifacts", "artifacts/adapter", "new/folder"])
def test_a_file_added_anywhere_in_a_version_is_found(world: World, place: str) -> None:
    folder = world.artefact("alpha", "1") / place
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "more.py").write_text("")
    name = f"{place}/more.py" if place else "more.py"
    told = faults(verify(world.root))
    assert ("tampered", "artefact", name) in kinds(told)
    assert {fault.expected for fault in told} == {"no such file"}


@pytest.mark.parametrize("uri", ["models:/alpha/1", "models:/alpha@first"])
def test_the_mark_that_mlflow_leaves_when_it_loads_a_version_is_no_fault_and_another_is(
    world: World, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow.artifacts import download_artifacts

    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"):
        monkeypatch.setenv(name, "")  # MLflow exports its addresses; this takes them back out afterwards
    world.registry.activate()
    world.registry.client.set_registered_model_alias("alpha", "first", "1")
    folder = world.artefact("alpha", "1")
    assert Path(download_artifacts(uri)) == folder
    mark = folder / "registered_model_meta"
    assert mark.is_file()
    assert verify(world.root).sound
    mark.write_bytes(mark.read_bytes() + b"# more\n")
    assert kinds(faults(verify(world.root))) == {("tampered", "artefact", mark.name)}


def test_a_name_that_is_no_text_and_a_file_that_is_no_file_are_told(world: World) -> None:
    folder = world.artefact("alpha", "1")
    (folder / os.fsdecode(b"caf\xe9")).write_text("")
    os.mkfifo(folder / "pipe")
    (folder / "linked").symlink_to("artifacts")
    told = {fault.where: fault.actual for fault in faults(verify(world.root))}
    assert told.keys() == {r"caf\xe9", "pipe", "linked"}
    assert (told["pipe"], told["linked"]) == ("no regular file (p)", "symbolic link to artifacts")


@pytest.mark.parametrize("deep", [False, True])
def test_a_version_whose_folder_is_gone_or_a_link_is_told_as_that(world: World, deep: bool) -> None:
    folder = world.artefact("alpha", "1")
    folder.rename(world.root / ".prefixline/moved")
    if deep:
        folder.symlink_to(world.root / ".prefixline/moved")
    told = kinds(faults(verify(world.root)))
    assert ("tampered" if deep else "missing", "artefact", folder.as_uri()) in told
    assert ("missing", "adapter", "artifacts/adapter/adapter_config.json") in told
    assert faults(verify(world.root), "alpha:2") == []


def test_whole_folders_swapped_between_versions_are_found(world: World) -> None:
    one, two, aside = world.artefact("alpha", "1"), world.artefact("alpha", "2"), world.root / ".prefixline/x"
    one.rename(aside)
    two.rename(one)
    aside.rename(two)
    found = verify(world.root, "alpha")
    for version in ("alpha:1", "alpha:2"):
        assert ("tampered", "artefact", "manifest.json") in kinds(faults(found, version))
        assert ("tampered", "adapter", "artifacts/adapter/adapter_model.safetensors") in kinds(
            faults(found, version)
        )


def test_a_folder_that_cannot_be_read_is_unreachable(world: World) -> None:
    here = Path.cwd()
    try:
        os.chdir(world.artefact("alpha", "1"))
        for _ in range(30):  # deeper than a path may be long
            Path("d" * 200).mkdir()
            os.chdir("d" * 200)
    finally:
        os.chdir(here)
    told = faults(verify(world.root, "alpha:1"))
    assert ("unreachable", "artefact") in {(str(f.kind), str(f.link)) for f in told}
    shutil.rmtree(world.artefact("alpha", "1") / ("d" * 200))


def test_a_record_edited_in_one_place_is_found_and_the_other_copy_is_gone_by(world: World) -> None:
    path = world.artefact("alpha", "1") / "artifacts/lineage.json"
    raw = json.loads(path.read_bytes())
    path.write_bytes(canonical_json({**raw, "seed": 8}))
    found = verify(world.root, "alpha:1")
    assert kinds(faults(found)) == {("tampered", "artefact", "artifacts/lineage.json")}
    assert found.versions[0].unchecked == ()


def test_a_record_edited_everywhere_is_trusted_for_nothing(world: World) -> None:
    path = world.artefact("alpha", "1") / "artifacts/lineage.json"
    forged = canonical_json({**json.loads(path.read_bytes()), "seed": 8})
    path.write_bytes(forged)
    lock_file(world, "1").with_name("lineage.json").write_bytes(forged)
    (version,) = verify(world.root, "alpha:1").versions
    assert kinds(list(version.faults)) == {
        ("tampered", "artefact", "artifacts/lineage.json"),
        ("tampered", "run", "lineage.json of the run"),
        ("tampered", "lineage", "lineage record"),
    }
    assert version.unchecked == (Link.ADAPTER, Link.DATASET, Link.BASE_MODEL, Link.EXPERIMENT, Link.CODE)


def test_a_record_of_another_format_is_told_as_that(world: World) -> None:
    path = world.artefact("alpha", "1") / "artifacts/lineage.json"
    other = canonical_json({**json.loads(path.read_bytes()), "format_version": 2})
    path.write_bytes(other)
    world.registry.client.set_model_version_tag("alpha", "1", versions.LINEAGE_DIGEST, sha256_file(path))
    told = [f for f in faults(verify(world.root, "alpha:1")) if f.link is Link.LINEAGE]
    assert [(f.kind, f.actual) for f in told] == [
        (Kind.OUT_OF_STEP, "lineage record: format version is 2; this release reads 1")
    ]


@pytest.mark.parametrize("name", ["lineage.json", "lock.json"])
@pytest.mark.parametrize("how", ["flipped", "removed", "symlink"])
def test_what_the_run_keeps_is_verified_too(world: World, name: str, how: str) -> None:
    path = lock_file(world, "1").with_name(name)
    if how == "flipped":
        flip(path)
    else:
        path.rename(world.root / ".prefixline/elsewhere")
    if how == "symlink":
        path.symlink_to(world.root / ".prefixline/elsewhere")
    kind = "missing" if how == "removed" else "tampered"
    assert kinds(faults(verify(world.root, "alpha:1"))) == {(kind, "run", f"{name} of the run")}


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


def test_the_data_in_the_cache_is_fetched_from_the_remote_where_it_is_gone(world: World) -> None:
    shutil.rmtree(world.root / ".dvc/cache")
    assert verify(world.root).sound
    assert cached(world.workspace, record(world).dataset["md5"]).exists()


def test_data_that_is_gone_from_cache_and_remote_is_missing(world: World) -> None:
    md5 = record(world).dataset["md5"]
    cached(world.workspace, md5).unlink()
    stored(world.workspace, md5).unlink()
    told = faults(verify(world.root))
    assert kinds(told) == {("missing", "dataset", DATA["alpha"])}
    assert told[0].actual == f"neither DVC's cache nor its remote has {md5}"
    assert faults(verify(world.root), "alpha:2") == []


def test_data_whose_remote_is_gone_altogether_is_unreachable(world: World) -> None:
    md5 = record(world).dataset["md5"]
    cached(world.workspace, md5).unlink()
    shutil.rmtree(world.workspace.state / "dvc-remote")
    assert kinds(faults(verify(world.root))) == {("unreachable", "dataset", DATA["alpha"])}


def test_data_that_the_remote_holds_tampered_is_told_as_that(world: World) -> None:
    md5 = record(world).dataset["md5"]
    cached(world.workspace, md5).unlink()
    flip(stored(world.workspace, md5))
    assert kinds(faults(verify(world.root))) == {("tampered", "dataset", DATA["alpha"])}


def test_every_object_of_the_cache_that_a_version_needs_is_hashed(world: World) -> None:
    objects = sorted(path for path in (world.root / ".dvc/cache/files").rglob("*") if path.is_file())
    # DVC's run cache has copies of the stages' records; versions go by those in git.
    needed = [path for path in objects if not path.read_bytes().startswith(b'{"manifest"')]
    for path in needed:
        content = path.read_bytes()
        flip(path)
        assert {fault.kind for _, fault in verify(world.root).faults()} == {Kind.TAMPERED}, path
        tamper(path, content)
    # Data, folders' listings and outputs; three records of each of three experiments are left out.
    assert (len(needed), len(objects)) == (34, 43)
    assert verify(world.root).sound


def test_a_folder_whose_listing_names_something_outside_is_tampered_with(world: World) -> None:
    made = record(world, "beta:1")
    md5 = made.dataset["md5"]
    listing = cached(world.workspace, md5)
    entries = json.loads(listing.read_bytes())
    assert len(entries) == 2
    cached(world.workspace, entries[0]["md5"]).unlink()
    stored(world.workspace, entries[0]["md5"]).unlink()
    told = faults(verify(world.root), "beta:1")
    assert kinds(told) == {("missing", "dataset", f"data/folder/{entries[0]['relpath']}")}
    tamper(listing, json.dumps(entries[:1]).encode())
    assert kinds(faults(verify(world.root), "beta:1")) == {("tampered", "dataset", "data/folder")}


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_base_of_the_same_shape_with_other_bytes_is_found_at_every_version(world: World, name: str) -> None:
    path = world.root / "base" / name
    content = path.read_bytes()
    expected = {f"tiny: {name}"}
    if name == "model.safetensors":
        path.write_bytes(bytes(reversed(content)))  # as many weights, other ones
    else:
        path.write_bytes(content.replace(b" ", b"\n"))  # JSON of the same meaning
    found = verify(world.root)
    for version in ("alpha:1", "alpha:2", "beta:1"):
        told = faults(found, version)
        assert {(f.kind, f.link) for f in told} == {(Kind.TAMPERED, Link.BASE_MODEL)}
        assert {f.where for f in told} == expected
        assert {f.expected for f in told} == {record(world).base_model["files"][name]}


def test_a_base_that_lost_or_gained_a_file_or_is_gone_is_told(world: World) -> None:
    base = world.root / "base"
    (base / "vocab.txt").write_text("x")
    (base / "README.md").write_text("no part of the model")
    assert kinds(faults(verify(world.root))) == {("tampered", "base model", "tiny: vocab.txt")}
    (base / "vocab.txt").unlink()
    (base / "config.json").write_text("{")
    told = kinds(faults(verify(world.root)))
    assert told == {
        ("tampered", "base model", "base model tiny"),
        ("tampered", "base model", "tiny: config.json"),
    }
    shutil.rmtree(base)
    told = kinds(faults(verify(world.root)))
    assert told == {("missing", "base model", "base model tiny")}


@pytest.mark.parametrize(
    "source",
    [
        {"package": "no_such_package", "folder": "model"},
        {"hub": "no-such-owner/no-such-model", "revision": "a" * 40},
    ],
)
def test_a_base_that_is_in_no_package_or_hub_is_missing(world: World, source: dict[str, str]) -> None:
    rewrite_record(world, base_model={**record(world).base_model, "source": source})
    told = [f for f in faults(verify(world.root, "alpha:1")) if f.link is Link.BASE_MODEL]
    assert [(f.kind, f.where) for f in told] == [(Kind.MISSING, "base model tiny")]


def test_an_experiment_whose_reference_is_deleted_or_moved_is_found(world: World) -> None:
    reference = anchor("alpha", world.run_key("alpha", "1"))
    commit = record(world).experiment["commit"]
    git_dvc.run(world.root, "git", "update-ref", reference, "HEAD")
    told = faults(verify(world.root))
    assert kinds(told) == {("out of step", "experiment", reference)}
    git_dvc.run(world.root, "git", "update-ref", "-d", reference)
    assert kinds(faults(verify(world.root))) == {("missing", "experiment", reference)}
    for line in git_dvc.run(
        world.root, "git", "for-each-ref", "--format=%(refname)", "refs/exps"
    ).splitlines():
        git_dvc.run(world.root, "git", "update-ref", "-d", line)
    git_dvc.run(world.root, "git", "reflog", "expire", "--expire=now", "--all")
    git_dvc.run(world.root, "git", "gc", "-q", "--prune=now")
    told = faults(verify(world.root))
    assert kinds(told) == {
        ("missing", "experiment", reference),
        ("missing", "experiment", f"commit {commit}"),
    }
    assert faults(verify(world.root), "alpha:2") == []


def test_a_workspace_without_the_history_misses_code_data_and_experiment(world: World) -> None:
    shutil.rmtree(world.root / ".git")
    git_dvc.run(world.root, "git", "init", "-q")
    made = record(world)
    told = kinds(faults(verify(world.root)))
    assert told == {
        ("missing", "dataset", f"commit {made.dataset['git_commit']}"),
        ("missing", "code", f"commit {made.code['commit']}"),
        ("missing", "experiment", anchor("alpha", world.run_key("alpha", "1"))),
        ("missing", "experiment", f"commit {made.experiment['commit']}"),
    }


def test_a_damaged_git_object_is_tampered_with(world: World) -> None:
    commit = record(world).experiment["commit"]
    for path, part in ((f"{commit}", "commit"), (f"{commit}:pins/alpha.json", "pins")):
        oid = git_dvc.run(world.root, "git", "rev-parse", path)
        loose = world.root / ".git/objects" / oid[:2] / oid[2:]
        if not loose.exists():
            git_dvc.run(world.root, "git", "unpack-objects", "-q") if part == "pack" else None
        content = loose.read_bytes()
        flip(loose)
        told = [f for f in faults(verify(world.root, "alpha:1")) if f.link is Link.EXPERIMENT]
        assert {f.kind for f in told} == {Kind.TAMPERED}, (part, told)
        tamper(loose, content)
    assert verify(world.root).sound


def rewrite_record(world: World, **changes: Any) -> None:
    """Forge alpha's first record everywhere: record, its copy, manifest and tags, so that it is whole again."""
    client, folder = world.registry.client, world.artefact("alpha", "1")
    made = json.loads((folder / "artifacts/lineage.json").read_bytes())
    forged = canonical_json({**made, **changes})
    (folder / "artifacts/lineage.json").write_bytes(forged)
    lock_file(world, "1").with_name("lineage.json").write_bytes(forged)
    manifest = json.loads((folder / "manifest.json").read_bytes())
    manifest["artifacts/lineage.json"] = sha256_file(folder / "artifacts/lineage.json")
    (folder / "manifest.json").write_bytes(canonical_json(manifest))
    run = client.get_model_version("alpha", "1").run_id
    (model,) = [output.model_id for output in client.get_run(run).outputs.model_outputs]
    tags = {
        versions.LINEAGE_DIGEST: digest(json.loads(forged)),
        versions.MANIFEST_DIGEST: sha256_file(folder / "manifest.json"),
    }
    client.set_logged_model_tags(model, tags)
    for tag, value in tags.items():
        client.set_model_version_tag("alpha", "1", tag, value)


@pytest.mark.parametrize(
    ("field", "change", "where"),
    [
        ("dataset", {"rows": {"train": 9, "validation": 1, "test": 1, "total": 11}}, "prepared.json: rows"),
        ("dataset", {"labels": ["x"]}, "prepared.json: labels"),
        ("dataset", {"splits": {"train": "0", "validation": "0", "test": "0"}}, "prepared.json: splits"),
        ("dataset", {"row_ids": "0" * 64}, "prepared.json: row_ids"),
        ("dataset", {"row_root": "0" * 64}, "prepared.json: row_root"),
        ("dataset", {"row_root": "0" * 64}, "Merkle root of the row ids"),
        ("dataset", {"md5": "0" * 32}, "pins/alpha.json: data.md5"),
        ("dataset", {"md5": "0" * 32}, "md5 of data/rows.jsonl.dvc"),
        ("dataset", {"manifest": {"rows.jsonl": "0" * 64}}, "pins/alpha.json: data.manifest"),
        ("dataset", {"manifest": {"rows.jsonl": "0" * 64}}, "data/rows.jsonl.manifest.json"),
        ("base_model", {"digest": "0" * 64}, "pins/alpha.json: base_model.digest"),
        ("base_model", {"digest": "0" * 64}, "base_model.digest"),
        ("code", {"digest": "0" * 64}, "pins/alpha.json: code"),
        ("params", {"training": {"learning_rate": 0.2}}, "pins/alpha.json: params"),
        ("params", {"task": "generation"}, "pins/alpha.json: params"),
        ("params", {"gate": {"floors": {"accuracy": 0.0}}}, "run_key"),
        ("metrics", {"prefix": {"accuracy": 1.0}}, "evaluated.json: systems"),
        ("verdict", {"passed": False}, "the verdict"),
        ("runs", {"mlflow": "0" * 32}, "the version's run"),
        ("run_key", "0" * 64, "pins/alpha.json: run_key"),
        ("run_key", "0" * 64, "tag prefixline.run_key"),
        ("prefix", "beta", "the record's prefix"),
        ("warm_start", {"adapter_digest": "0", "adapter": "x"}, "pins/alpha.json: warm_start"),
    ],
)  # fmt: skip
def test_a_record_that_is_whole_but_says_something_else_than_the_experiment_is_found(
    world: World, field: str, change: Any, where: str
) -> None:
    made = json.loads(record(world).to_json())
    rewrite_record(world, **{field: {**made[field], **change} if isinstance(made[field], dict) else change})
    told = {f.where: f.kind for f in faults(verify(world.root, "alpha:1"))}
    assert told[where] is Kind.OUT_OF_STEP


def test_another_code_commit_or_adapter_in_the_record_is_found(world: World) -> None:
    made = record(world)
    head = git_dvc.head(world.root)
    files = {**made.files, "adapter_config.json": "0" * 64}
    rewrite_record(
        world,
        code={"commit": head, "dirty": False, **CODE},
        files=files,
        adapter_digest=digest(files),
    )
    told = kinds(faults(verify(world.root, "alpha:1")))
    assert ("out of step", "experiment", f"parent of commit {made.experiment['commit']}") in told
    assert ("out of step", "experiment", "trained.json: adapter") in told
    assert ("tampered", "adapter", "artifacts/adapter/adapter_config.json") in told
    rewrite_record(world, code={"commit": "0" * 40, "dirty": False, **CODE})
    assert ("missing", "code", f"commit {'0' * 40}") in kinds(faults(verify(world.root, "alpha:1")))


def commit_as_experiment(world: World, change: Callable[[Path], None]) -> str:
    """Alpha's first experiment with something else in it, and the record rewritten to name it."""
    made = record(world)
    copy = world.root / ".prefixline/forge"
    git_dvc.run(world.root, "git", "worktree", "add", "-q", "--detach", str(copy), made.experiment["commit"])
    change(copy)
    git_dvc.run(copy, "git", "add", "-A")
    git_dvc.run(copy, "git", "commit", "-q", "--amend", "-m", "Forged")
    commit = git_dvc.head(copy)
    git_dvc.run(world.root, "git", "update-ref", anchor("alpha", world.run_key("alpha", "1")), commit)
    rewrite_record(world, experiment={**made.experiment, "commit": commit})
    return commit


def test_an_experiment_that_contradicts_itself_is_found(world: World) -> None:
    def change(copy: Path) -> None:
        (copy / "artifacts/alpha/trained.json").write_text("no JSON")
        (copy / "artifacts/alpha/evaluated.json").unlink()
        (copy / "pins/alpha.json").write_text("[]")

    commit = commit_as_experiment(world, change)
    told = kinds(faults(verify(world.root, "alpha:1")))
    assert ("out of step", "experiment", "artifacts/alpha/trained.json by dvc.lock") in told
    assert ("out of step", "experiment", "trained.json: adapter") in told
    assert ("missing", "experiment", f"artifacts/alpha/evaluated.json in commit {commit}") in told
    assert ("out of step", "experiment", "pins/alpha.json: run_key") in told


@pytest.mark.parametrize("content", ["stages: {}\n", "a: [\n"])
def test_an_experiment_whose_lock_lacks_its_stages_is_found(world: World, content: str) -> None:
    commit = commit_as_experiment(world, lambda copy: (copy / "dvc.lock").write_text(content) and None)
    told = [f for f in faults(verify(world.root, "alpha:1")) if f.where == f"dvc.lock in commit {commit}"]
    assert {f.kind for f in told} == {Kind.MISSING}
    assert {f.expected for f in told} == {"stage prepare", "stage train", "stage evaluate"}


def test_the_command_prints_what_is_wrong_and_exits_5(world: World) -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", RUN, "-w", str(world.root), "verify", *arguments],
            cwd=Path(__file__).parents[2],
            env={**os.environ, **quiet_environment()},
            capture_output=True,
            text=True,
            check=False,
            timeout=200,
        )

    done = run()
    assert done.returncode == 0, done.stderr  # where a bar shows if it takes long
    assert "alpha version 2 │ candidate │ sound" in done.stdout
    assert "nothing is wrong: 3 versions" in done.stdout
    flip(world.artefact("alpha", "2") / "artifacts/adapter/adapter_model.safetensors")
    done = run("alpha@candidate")
    assert done.returncode == 5
    assert "tampered adapter: artifacts/adapter/adapter_model.safetensors" in done.stdout
    assert record(world, "alpha:2").files["adapter_model.safetensors"] in done.stdout
    done = run("--json")
    assert done.returncode == 5
    told = json.loads(done.stdout)
    assert told["sound"] is False
    assert [len(version["faults"]) for version in told["versions"]] == [0, 2, 0]
    assert run("gamma").returncode == 1
