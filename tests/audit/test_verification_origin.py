"""Whatever is changed of the data, the base and the experiment that a version came from is found. All of it is real."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from pipeline.audit.faults import Kind, Link
from pipeline.audit.verification import verify
from pipeline.digest import digest
from pipeline.versioning.experiment import anchor
from tests import git_dvc
from tests.audit.verification import commit_as_experiment, faults, flip, kinds, record, rewrite_record
from tests.audit.verify_world import CODE, DATA, World
from tests.workspaces import cached, stored, tamper


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
