"""Whatever is changed of a version's files and records is found, named, and told apart. All of it is real."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.audit.faults import Kind, Link
from pipeline.audit.verification import verify
from pipeline.digest import canonical_json, sha256_file
from pipeline.environment import quiet_environment
from pipeline.errors import RegistryError
from pipeline.register import versions
from tests.audit.verification import faults, flip, kinds, lock_file, record
from tests.audit.verify_world import World

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
