from __future__ import annotations

import json
import os
import shutil
import time
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest

from pipeline.errors import DataError, IntegrityError, WorkspaceError
from pipeline.params import DataParams
from pipeline.versioning import git
from pipeline.versioning.snapshot import current, snapshot
from pipeline.versioning.stored import dataset_hash, fetch_dataset
from pipeline.versioning.workspace import Workspace, open_workspace
from tests import workspaces
from tests.workspaces import FOLDER, ROWS, cached, stored, tamper


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return workspaces.make(tmp_path_factory.mktemp("workspaces") / "made")


@pytest.fixture
def workspace(made: Workspace, tmp_path: Path) -> Workspace:
    return workspaces.duplicate(made, tmp_path / "w")


def status(workspace: Workspace) -> str:
    """What git sees as changed or new, apart from raw data that has no version yet."""
    raw = ("?? data/rows.jsonl\n", "?? data/folder/deep/two.jsonl\n", "?? data/folder/one.jsonl\n")
    lines = git.run(workspace.root, "status", "--porcelain", "--untracked-files=all").splitlines(
        keepends=True
    )
    return "".join(line for line in lines if line not in raw)


def wipe_cache(workspace: Workspace) -> None:
    shutil.rmtree(workspace.root / ".dvc" / "cache")


def test_a_file_gets_a_version_a_manifest_and_a_commit(workspace: Workspace) -> None:
    content = (workspace.root / "data/rows.jsonl").read_bytes()
    version = snapshot(workspace, "alpha", ROWS)
    assert version.changed
    assert version.manifest == {"rows.jsonl": sha256(content).hexdigest()}
    assert version.git_commit == git.resolve(workspace.root, "HEAD")
    assert dataset_hash(workspace, version.git_commit, ROWS.path) == version.md5
    assert stored(workspace, version.md5).read_bytes() == content
    assert status(workspace) == ""
    assert set(git.run(workspace.root, "show", "--name-only", "--format=", "HEAD").split()) == {
        "data/.gitignore",
        "data/rows.jsonl.dvc",
        "data/rows.jsonl.manifest.json",
    }


def test_a_folder_gets_a_dir_hash_and_a_line_per_file(workspace: Workspace) -> None:
    version = snapshot(workspace, "beta", FOLDER)
    assert version.md5.endswith(".dir")
    assert list(version.manifest) == ["deep/two.jsonl", "one.jsonl"]


def test_unchanged_data_makes_no_commit_and_is_quick(workspace: Workspace) -> None:
    first = snapshot(workspace, "alpha", ROWS)
    started = time.perf_counter()
    second = snapshot(workspace, "alpha", ROWS)
    seconds = time.perf_counter() - started
    assert (second.md5, second.git_commit, second.manifest) == (first.md5, first.git_commit, first.manifest)
    assert not second.changed
    assert git.resolve(workspace.root, "HEAD") == first.git_commit
    assert seconds < 2  # 0.2 s alone on 2 cores


def test_changed_data_is_a_new_version_and_the_old_one_can_be_fetched(
    workspace: Workspace, tmp_path: Path
) -> None:
    first = snapshot(workspace, "alpha", ROWS)
    assert current(workspace, ROWS) is not None
    before = (workspace.root / "data/rows.jsonl").read_bytes()
    (workspace.root / "data/rows.jsonl").write_bytes(before + b'{"text": "new", "label": "y"}\n')
    assert current(workspace, ROWS) is None
    second = snapshot(workspace, "alpha", ROWS)
    assert current(workspace, ROWS) == replace(second, changed=False)
    assert second.changed
    assert second.md5 != first.md5
    fetched = fetch_dataset(workspace, first.git_commit, ROWS.path, first.manifest, tmp_path / "old")
    assert (fetched / "rows.jsonl").read_bytes() == before


def test_nothing_is_current_before_its_first_version(workspace: Workspace) -> None:
    assert current(workspace, ROWS) is None
    snapshot(workspace, "alpha", ROWS)
    (workspace.root / "data/rows.jsonl").unlink()
    assert current(workspace, ROWS) is None


def test_a_version_made_by_hand_is_not_current_until_it_has_a_manifest(workspace: Workspace) -> None:
    snapshot(workspace, "alpha", ROWS)
    path = workspace.root / "data/rows.jsonl.manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "md5": "0" * 32}))
    assert current(workspace, ROWS) is None
    git.commit(workspace.root, ["data/rows.jsonl.manifest.json"], "stale")
    assert current(workspace, ROWS) is None
    assert snapshot(workspace, "alpha", ROWS).changed
    assert current(workspace, ROWS) is not None


def test_a_folder_comes_back_from_the_remote_when_the_cache_is_gone(
    workspace: Workspace, tmp_path: Path
) -> None:
    version = snapshot(workspace, "beta", FOLDER)
    wipe_cache(workspace)
    fetched = fetch_dataset(workspace, version.git_commit, FOLDER.path, version.manifest, tmp_path / "f")
    assert (fetched / "deep/two.jsonl").read_text() == '{"text": "two"}\n'


def test_a_tampered_cache_object_is_refused_with_its_name(workspace: Workspace, tmp_path: Path) -> None:
    version = snapshot(workspace, "alpha", ROWS)
    tamper(cached(workspace, version.md5))
    destination = tmp_path / "f"
    destination.mkdir()
    (destination / "mine").write_text("as it was")
    with pytest.raises(
        IntegrityError, match=r"rows.jsonl: SHA-256 is .*, expected .* \(from .*/cache/files/md5"
    ):
        fetch_dataset(workspace, version.git_commit, ROWS.path, version.manifest, destination)
    assert [path.name for path in destination.iterdir()] == ["mine"]
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_cache_tampered_with_beforehand_is_noticed_by_the_snapshot(workspace: Workspace) -> None:
    version = snapshot(workspace, "alpha", ROWS)
    rows = workspace.root / "data/rows.jsonl"
    old = rows.read_bytes()
    rows.write_bytes(old * 2)
    snapshot(workspace, "alpha", ROWS)
    tamper(cached(workspace, version.md5))
    rows.write_bytes(old)  # back to the version whose object was tampered with
    head = git.resolve(workspace.root, "HEAD")
    with pytest.raises(IntegrityError, match=r"rows.jsonl: SHA-256"):
        snapshot(workspace, "alpha", ROWS)
    assert git.resolve(workspace.root, "HEAD") == head
    assert status(workspace) == ""
    assert rows.read_bytes() == old


def test_a_tampered_remote_is_refused(workspace: Workspace, tmp_path: Path) -> None:
    version = snapshot(workspace, "alpha", ROWS)
    wipe_cache(workspace)
    tamper(stored(workspace, version.md5))
    with pytest.raises(IntegrityError, match=f"remote holds objects.*\n.*{version.md5[2:]}"):
        fetch_dataset(workspace, version.git_commit, ROWS.path, version.manifest, tmp_path / "f")
    assert not (tmp_path / "f").exists()


def test_a_version_that_is_nowhere_any_more_is_said_to_be(workspace: Workspace, tmp_path: Path) -> None:
    version = snapshot(workspace, "alpha", ROWS)
    wipe_cache(workspace)
    stored(workspace, version.md5).unlink()
    with pytest.raises(WorkspaceError, match=f"neither DVC's cache nor its remote has {version.md5}"):
        fetch_dataset(workspace, version.git_commit, ROWS.path, version.manifest, tmp_path / "f")


@pytest.mark.parametrize("name", ["../../escaped", "{outside}/escaped", "..\\escaped", "a/../../b", "", "."])
def test_a_listing_that_names_files_outside_the_folder_writes_nothing(
    workspace: Workspace, tmp_path: Path, name: str
) -> None:
    from hashlib import md5

    version = snapshot(workspace, "beta", FOLDER)
    entries = json.loads(cached(workspace, version.md5).read_text())
    entries[0]["relpath"] = name.format(outside=tmp_path)
    listing = json.dumps(entries).encode()
    forged = md5(listing).hexdigest() + ".dir"
    cached(workspace, forged).parent.mkdir(exist_ok=True)
    cached(workspace, forged).write_bytes(listing)
    file = workspace.root / "data/folder.dvc"
    file.write_text(file.read_text().replace(version.md5, forged))
    git.commit(workspace.root, ["data/folder.dvc"], "forged")
    with pytest.raises(IntegrityError, match="names files outside of it"):
        fetch_dataset(workspace, "HEAD", FOLDER.path, version.manifest, tmp_path / "x" / "y" / "z")
    assert not [path for path in (tmp_path / "x").rglob("*") if path.is_file()]
    assert not list(tmp_path.rglob("escaped"))


def test_a_listing_that_is_not_what_its_hash_says_is_refused(workspace: Workspace, tmp_path: Path) -> None:
    version = snapshot(workspace, "beta", FOLDER)
    tamper(cached(workspace, version.md5), b"[]")
    with pytest.raises(IntegrityError, match=r"\.dir: is not what its name says"):
        fetch_dataset(workspace, version.git_commit, FOLDER.path, version.manifest, tmp_path / "f")


def test_fetching_what_was_never_versioned_is_an_error(workspace: Workspace, tmp_path: Path) -> None:
    with pytest.raises(WorkspaceError, match=r"data/rows.jsonl.dvc: is not in commit HEAD"):
        fetch_dataset(workspace, "HEAD", ROWS.path, {}, tmp_path / "f")
    (workspace.root / "data/rows.jsonl.dvc").write_text("outs: []\n")
    git.commit(workspace.root, ["data/rows.jsonl.dvc"], "broken")
    with pytest.raises(WorkspaceError, match=r"is not a \.dvc file"):
        fetch_dataset(workspace, "HEAD", ROWS.path, {}, tmp_path / "f")


@pytest.mark.parametrize(
    ("path", "complaint"),
    [
        ("data/missing.jsonl", "no such file or folder, named by prefixes.alpha.data.path"),
        ("data/empty.jsonl", "empty.jsonl: is empty"),
        ("data/hollow", "hollow: has no file with anything in it"),
        ("data/link/rows.jsonl", "is outside the workspace"),
    ],
)
def test_data_that_is_not_there_or_empty_is_refused(
    workspace: Workspace, tmp_path: Path, path: str, complaint: str
) -> None:
    (tmp_path / "rows.jsonl").write_text("x\n")
    (workspace.root / "data/link").symlink_to(tmp_path)
    (workspace.root / "data/empty.jsonl").write_text("")
    (workspace.root / "data/hollow").mkdir()
    (workspace.root / "data/hollow/nothing.csv").write_text("")
    with pytest.raises(DataError, match=complaint):
        snapshot(workspace, "alpha", DataParams(path=path))
    assert not (workspace.root / f"{path}.dvc").exists()


def test_lost_data_that_had_a_version_says_how_to_bring_it_back(workspace: Workspace) -> None:
    snapshot(workspace, "alpha", ROWS)
    (workspace.root / "data/rows.jsonl").unlink()
    with pytest.raises(DataError, match="`dvc checkout` or `dvc pull` brings it back"):
        snapshot(workspace, "alpha", ROWS)


def test_data_tracked_by_git_is_refused(workspace: Workspace) -> None:
    git.commit(workspace.root, ["data/rows.jsonl"], "by mistake")
    with pytest.raises(WorkspaceError, match=r"git rm -r --cached data/rows.jsonl"):
        snapshot(workspace, "alpha", ROWS)


def test_a_push_that_fails_leaves_everything_as_it_was_and_can_be_repeated(workspace: Workspace) -> None:
    first = snapshot(workspace, "alpha", ROWS)
    rows = workspace.root / "data/rows.jsonl"
    rows.write_text("changed\n")
    remote = workspace.state / "dvc-remote"
    shutil.rmtree(remote)
    remote.write_text("a file where the remote was")
    with pytest.raises(WorkspaceError, match=r"DVC stopped|pushing to the DVC remote failed"):
        snapshot(workspace, "alpha", ROWS)
    assert status(workspace) == ""
    assert git.resolve(workspace.root, "HEAD") == first.git_commit
    assert rows.read_text() == "changed\n"
    remote.unlink()
    assert snapshot(workspace, "alpha", ROWS).changed


def test_a_commit_that_fails_leaves_everything_as_it_was(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_COMMITTER_DATE", "no date")
    with pytest.raises(WorkspaceError, match="no date"):
        snapshot(workspace, "alpha", ROWS)
    monkeypatch.delenv("GIT_COMMITTER_DATE")
    assert not (workspace.root / "data/rows.jsonl.dvc").exists()
    open_workspace(workspace.root)
    assert snapshot(workspace, "alpha", ROWS).changed


def test_a_broken_manifest_file_is_named(workspace: Workspace) -> None:
    (workspace.root / "data/rows.jsonl.manifest.json").write_text('{"md5": 3}')
    with pytest.raises(WorkspaceError, match=r"rows.jsonl.manifest.json: is not a manifest of ours"):
        snapshot(workspace, "alpha", ROWS)


def test_data_that_changes_while_it_is_read_is_refused(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dvc.repo import Repo

    real = Repo.add

    def and_another_writes(repo: object, *arguments: object, **options: object) -> object:
        done = real(repo, *arguments, **options)
        with (workspace.root / "data/rows.jsonl").open("a") as file:
            file.write("another\n")
        return done

    monkeypatch.setattr(Repo, "add", and_another_writes)
    with pytest.raises(DataError, match="changed while it was read"):
        snapshot(workspace, "alpha", ROWS)


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_data_from_elsewhere_is_imported_updated_and_survives_a_lost_source(
    workspace: Workspace, tmp_path: Path, kind: str
) -> None:
    source = tmp_path / "elsewhere" / "export"
    one = source if kind == "file" else source / "one.jsonl"
    one.parent.mkdir(parents=True)
    one.write_text("first\n")
    taken = "data/taken" if kind == "folder" else "data/taken.jsonl"
    data = DataParams(path=taken, imported_from=str(source))
    local = workspace.root / taken if kind == "file" else workspace.root / taken / "one.jsonl"
    first = snapshot(workspace, "alpha", data)
    assert first.changed
    assert local.read_text() == "first\n"
    assert not snapshot(workspace, "alpha", data).changed
    one.write_text("second, longer\n")
    second = snapshot(workspace, "alpha", data)
    assert second.changed
    assert local.read_text() == "second, longer\n"
    assert status(workspace) == ""
    one.unlink()
    if kind == "folder":
        source.rmdir()
    with pytest.raises(WorkspaceError, match=r"does not exist|missing"):
        snapshot(workspace, "alpha", data)
    assert local.read_text() == "second, longer\n"
    assert status(workspace) == ""
    assert git.resolve(workspace.root, "HEAD") == second.git_commit


def test_an_import_never_overwrites_data_of_the_users(workspace: Workspace, tmp_path: Path) -> None:
    (tmp_path / "source.jsonl").write_text("theirs\n")
    mine = (workspace.root / ROWS.path).read_text()
    data = DataParams(path=ROWS.path, imported_from=os.fspath(tmp_path / "source.jsonl"))
    with pytest.raises(WorkspaceError, match="imported_from would overwrite it"):
        snapshot(workspace, "alpha", data)
    assert (workspace.root / ROWS.path).read_text() == mine


def test_another_source_replaces_the_first(workspace: Workspace, tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / f"{name}.jsonl").write_text(f"{name}\n")
        snapshot(
            workspace, "alpha", DataParams(path="data/t.jsonl", imported_from=str(tmp_path / f"{name}.jsonl"))
        )
        assert (workspace.root / "data/t.jsonl").read_text() == f"{name}\n"


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_imported_data_that_the_check_refuses_leaves_everything_as_it_was(
    workspace: Workspace, tmp_path: Path, kind: str
) -> None:
    source = tmp_path / "export"
    one = source if kind == "file" else source / "one.jsonl"
    one.parent.mkdir(exist_ok=True)
    taken = workspace.root / "data/taken"
    data = DataParams(path="data/taken", imported_from=str(source))
    checked: list[str] = []

    def check() -> None:
        content = (taken if kind == "file" else taken / "one.jsonl").read_text()
        checked.append(content)
        if "bad" in content:
            raise DataError(["bad rows"])

    one.write_text("bad from the start\n")
    head = git.resolve(workspace.root, "HEAD")
    with pytest.raises(DataError, match="bad rows"):
        snapshot(workspace, "alpha", data, check=check)
    assert not taken.exists()
    assert status(workspace) == ""
    assert git.resolve(workspace.root, "HEAD") == head

    one.write_text("good\n")
    good = snapshot(workspace, "alpha", data, check=check)
    assert snapshot(workspace, "alpha", data, check=check) == replace(good, changed=False)
    one.write_text("gone bad\n")
    with pytest.raises(DataError, match="bad rows"):
        snapshot(workspace, "alpha", data, check=check)
    assert (taken if kind == "file" else taken / "one.jsonl").read_text() == "good\n"
    assert status(workspace) == ""
    assert git.resolve(workspace.root, "HEAD") == good.git_commit
    # The version on record was not checked a second time.
    assert checked == ["bad from the start\n", "good\n", "gone bad\n"]


def test_data_that_the_check_refuses_never_reaches_dvc(workspace: Workspace) -> None:
    def refuse() -> None:
        raise DataError(["bad rows"])

    with pytest.raises(DataError, match="bad rows"):
        snapshot(workspace, "alpha", ROWS, check=refuse)
    assert status(workspace) == ""
    assert not [path for path in (workspace.root / ".dvc/cache").rglob("*") if path.is_file()]


def test_a_refused_import_leaves_changed_data_of_the_users_alone(
    workspace: Workspace, tmp_path: Path
) -> None:
    snapshot(workspace, "alpha", ROWS)
    (workspace.root / ROWS.path).write_text("edited since\n")
    (tmp_path / "source.jsonl").write_text("theirs\n")
    data = DataParams(path=ROWS.path, imported_from=os.fspath(tmp_path / "source.jsonl"))
    with pytest.raises(WorkspaceError, match="imported_from would overwrite it"):
        snapshot(workspace, "alpha", data)
    assert (workspace.root / ROWS.path).read_text() == "edited since\n"
