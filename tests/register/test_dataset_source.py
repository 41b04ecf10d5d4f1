"""The dataset source gives back the exact bytes, or says why it will not. Real git and DVC repositories."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipeline.digest import digest, manifest
from pipeline.errors import DataError, IntegrityError, WorkspaceError
from pipeline.register import dataset_source
from pipeline.register.dataset_source import DvcDatasetSource, remote_address
from tests import git_dvc

ROWS = [{"text": "the cat", "label": "a"}, {"text": "é\u2028", "label": "b"}]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with a data file (two versions) and a data folder under DVC, and a local DVC remote."""
    root = git_dvc.workspace(tmp_path_factory.mktemp("source") / "ws")
    (root / "data" / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (root / "data" / "parts" / "b").mkdir(parents=True)
    (root / "data" / "parts" / "a.csv").write_text("text,label\nnull,01\n")
    (root / "data" / "parts" / "b" / "c.csv").write_text("text,label\ny,2\n")
    git_dvc.run(
        root, sys.executable, "-m", "dvc", "remote", "add", "-q", "-d", "store", str(root.parent / "store")
    )
    git_dvc.snapshot(root, "data/rows.jsonl", "data/parts")
    git_dvc.run(root, sys.executable, "-m", "dvc", "push", "-q")
    return root


@pytest.fixture
def workspace(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "ws"
    shutil.copytree(made, root)
    monkeypatch.setenv("PREFIXLINE_WORKSPACE", str(root))
    return root


def source(root: Path, path: str) -> DvcDatasetSource:
    return DvcDatasetSource.of_version(
        root, path=path, rev=git_dvc.head(root), md5=git_dvc.md5(root, path), manifest=manifest(root / path)
    )


def test_a_version_loads_after_the_data_moved_on(workspace: Path) -> None:
    old = source(workspace, "data/rows.jsonl")
    before = (workspace / "data" / "rows.jsonl").read_bytes()
    (workspace / "data" / "rows.jsonl").unlink()
    (workspace / "data" / "rows.jsonl").write_text('{"text": "new", "label": "a"}\n')
    git_dvc.snapshot(workspace, "data/rows.jsonl")
    assert Path(old.load()).read_bytes() == before
    assert old.to_dataset().to_list() == ROWS
    assert old.to_pandas().to_dict("records") == ROWS
    assert source(workspace, "data/rows.jsonl").to_dataset().to_list() == [{"text": "new", "label": "a"}]


def test_a_folder_loads_with_every_file(workspace: Path) -> None:
    parts = source(workspace, "data/parts")
    expected = manifest(workspace / "data" / "parts")
    shutil.rmtree(workspace / "data" / "parts")
    loaded = Path(parts.load())
    assert manifest(loaded) == expected
    assert parts.md5.endswith(".dir")
    assert parts.to_pandas().to_dict("records") == [
        {"text": "null", "label": "01"},
        {"text": "y", "label": "2"},
    ]


def test_the_source_survives_the_round_trip_and_names_no_path_of_this_machine(workspace: Path) -> None:
    recorded = source(workspace, "data/rows.jsonl")
    assert DvcDatasetSource.from_json(recorded.to_json()) == recorded
    assert str(workspace) not in recorded.to_json()
    assert recorded.repo is None


def test_a_manifest_too_long_for_mlflow_is_recorded_and_checked_by_its_digest(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dataset_source, "SOURCE_LIMIT", 10)
    parts = source(workspace, "data/parts")
    assert parts.manifest is None
    loaded = Path(parts.load())
    assert digest(manifest(loaded)) == parts.manifest_digest
    (loaded / "a.csv").write_text("text,label\nx,3\n")
    with pytest.raises(IntegrityError, match=parts.manifest_digest):
        parts.load()


def test_what_was_fetched_is_hashed_again_on_every_load(workspace: Path) -> None:
    rows = source(workspace, "data/rows.jsonl")
    Path(rows.load()).write_text("tampered\n")
    with pytest.raises(IntegrityError, match=r"rows\.jsonl: SHA-256 is"):
        rows.load()


def test_a_tampered_cache_object_is_refused_and_nothing_is_kept(workspace: Path) -> None:
    rows = source(workspace, "data/rows.jsonl")
    cached = workspace / ".dvc" / "cache" / "files" / "md5" / rows.md5[:2] / rows.md5[2:]
    cached.chmod(0o644)
    cached.write_text('{"text": "evil", "label": "a"}\n')
    with pytest.raises(IntegrityError, match="tampered or corrupted"):
        rows.load()
    assert not (workspace / ".prefixline" / "fetched" / rows.manifest_digest).exists()


@pytest.mark.parametrize("escape", ["../../../escaped.csv", "b/../../../escaped.csv", "/tmp/escaped.csv"])
def test_a_dir_entry_that_escapes_is_refused_and_writes_nothing(workspace: Path, escape: str) -> None:
    parts = source(workspace, "data/parts")
    md5 = parts.md5.removesuffix(".dir")
    listing = workspace / ".dvc" / "cache" / "files" / "md5" / md5[:2] / f"{md5[2:]}.dir"
    entries = json.loads(listing.read_text())
    entries[0]["relpath"] = escape
    listing.chmod(0o644)
    listing.write_text(json.dumps(entries))
    with pytest.raises((IntegrityError, WorkspaceError)):
        parts.load()
    assert not list(workspace.parent.rglob("escaped.csv"))
    assert not Path("/tmp/escaped.csv").exists()


def test_missing_data_names_the_hash_and_the_way_out(workspace: Path) -> None:
    rows = source(workspace, "data/rows.jsonl")
    shutil.rmtree(workspace / ".dvc" / "cache")
    git_dvc.run(
        workspace, sys.executable, "-m", "dvc", "config", "-q", "remote.store.url", str(workspace / "gone")
    )
    with pytest.raises(WorkspaceError, match=f"dvc fetch.*{rows.md5}"):
        rows.load()


def test_a_path_the_commit_does_not_have_is_named(workspace: Path) -> None:
    rows = source(workspace, "data/rows.jsonl")
    elsewhere = DvcDatasetSource.from_dict({**rows.to_dict(), "path": "data/nothing"})
    with pytest.raises(WorkspaceError, match="data/nothing"):
        elsewhere.load()


@pytest.mark.parametrize("where", ["empty", "missing"])
def test_a_folder_without_the_commit_is_refused(workspace: Path, tmp_path: Path, where: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(WorkspaceError, match="set PREFIXLINE_WORKSPACE"):
        source(workspace, "data/rows.jsonl").load(tmp_path / where)


def test_a_clone_is_used_where_the_folder_does_not_know_the_commit(workspace: Path, tmp_path: Path) -> None:
    rows = source(workspace, "data/rows.jsonl")
    (tmp_path / "empty").mkdir()
    away = DvcDatasetSource.from_dict({**rows.to_dict(), "repo": workspace.as_uri()})
    assert (
        Path(away.load(tmp_path / "empty")).read_bytes() == (workspace / "data" / "rows.jsonl").read_bytes()
    )


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        (
            "r.ndjson",
            b'\xef\xbb\xbf{"when": "2026-01-02", "n": 7}\n\n{"n": 8}\n',
            [("2026-01-02", 7), (None, 8)],
        ),
        ("r.csv", b'\xef\xbb\xbfwhen,n\r\nNA,07\r\n"a\nb",\r\n', [("NA", "07"), ("a\nb", "")]),
    ],
)
def test_no_value_is_turned_into_another(
    workspace: Path, name: str, content: bytes, expected: list[tuple[Any, Any]]
) -> None:
    (workspace / "data" / name).write_bytes(content)
    git_dvc.snapshot(workspace, f"data/{name}")
    rows = source(workspace, f"data/{name}").to_dataset().to_list()
    assert [(row["when"], row["n"]) for row in rows] == expected


def test_a_column_that_mixes_types_has_no_table(workspace: Path) -> None:
    (workspace / "data" / "m.jsonl").write_text('{"n": 1}\n{"n": "one"}\n')
    git_dvc.snapshot(workspace, "data/m.jsonl")
    with pytest.raises(DataError, match="cannot be read as one table"):
        source(workspace, "data/m.jsonl").to_dataset()


def test_files_that_hold_no_rows_are_named(workspace: Path) -> None:
    (workspace / "data" / "parts" / "notes.txt").write_text("x")
    git_dvc.snapshot(workspace, "data/parts")
    with pytest.raises(DataError, match=r"notes\.txt: got \.txt; expected"):
        source(workspace, "data/parts").to_dataset()


@pytest.mark.parametrize(
    ("url", "recorded"),
    [
        ("https://user:secret@example.org/team/repo.git", "https://example.org/team/repo.git"),
        ("https://example.org/team/repo.git", "https://example.org/team/repo.git"),
        ("https://user:pa@ss/word@example.org/team/repo.git", "https://example.org/team/repo.git"),
        ("ssh://alice:secret@example.org/team/repo.git", "ssh://alice@example.org/team/repo.git"),
        ("git@example.org:team/repo.git", "git@example.org:team/repo.git"),
        ("ssh://git@example.org/team/repo.git", "ssh://git@example.org/team/repo.git"),
        ("/srv/git/repo.git", None),
        ("file:///srv/git/repo.git", None),
        ("../repo.git", None),
    ],
)
def test_only_an_address_others_can_reach_is_recorded_and_no_password(
    tmp_path: Path, url: str, recorded: str | None
) -> None:
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    subprocess.run(["git", "remote", "add", "origin", url], cwd=tmp_path, check=True)
    assert remote_address(tmp_path) == recorded


@pytest.mark.parametrize("first", ["pipeline.register.dataset_source", "mlflow"])
def test_mlflow_finds_the_source_whichever_is_imported_first(first: str) -> None:
    code = (
        f"import warnings; warnings.simplefilter('error', UserWarning); import {first}; import mlflow.data\n"
        "from pipeline.register.dataset_source import DvcDatasetSource as D\n"
        "from mlflow.data.dataset_source_registry import get_dataset_source_from_json as g\n"
        "s = D('p', 'r', 'm', 'd'); assert g(s.to_json(), 'dvc') == s; print('found')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.stdout.strip().endswith("found"), done.stderr


def test_a_bare_string_is_never_taken_for_a_version() -> None:
    assert not DvcDatasetSource._can_resolve("data/rows.jsonl")
    with pytest.raises(NotImplementedError, match="does not name a version"):
        DvcDatasetSource._resolve("data/rows.jsonl")
