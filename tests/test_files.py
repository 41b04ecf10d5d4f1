"""Writing: the old content or the new, never a part."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.files import new_folder, write_bytes, write_json

LIMITED = """
import resource, sys, signal
from pathlib import Path
from pipeline.files import new_folder, write_bytes
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
target = Path(sys.argv[1])
try:
    if sys.argv[2] == "file":
        write_bytes(target, b"x" * 5000)
    else:
        with new_folder(target) as folder:
            (folder / "big").write_bytes(b"x" * 5000)
except OSError as error:
    print(type(error).__name__)
"""


def write_beyond_the_limit(target: Path, kind: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, target, kind], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def test_a_file_is_replaced_whole(tmp_path: Path):
    write_bytes(tmp_path / "new" / "a", b"one")
    write_bytes(tmp_path / "new" / "a", b"two")
    assert [(p.name, p.read_bytes()) for p in (tmp_path / "new").iterdir()] == [("a", b"two")]


def test_a_full_disk_leaves_the_old_file_and_nothing_beside_it(tmp_path: Path):
    (tmp_path / "a").write_bytes(b"old")
    assert write_beyond_the_limit(tmp_path / "a", "file") == "OSError"
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("a", b"old")]


def test_a_full_disk_leaves_the_old_folder_and_nothing_beside_it(tmp_path: Path):
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "a").write_bytes(b"old")
    assert write_beyond_the_limit(tmp_path / "d", "folder") == "OSError"
    assert sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*")) == ["d", "d/a"]


def test_a_folder_takes_the_place_of_the_old_one(tmp_path: Path):
    for content in (b"one", b"two"):
        with new_folder(tmp_path / "d") as folder:
            (folder / content.decode()).write_bytes(content)
    assert sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*")) == ["d", "d/two"]


def test_an_interrupted_folder_is_removed(tmp_path: Path):
    def interrupted() -> None:
        with new_folder(tmp_path / "d") as folder:
            (folder / "a").write_bytes(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("renamed_before", [0, 1])
def test_an_interrupt_between_the_two_renames_puts_the_old_folder_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, renamed_before: int
):
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "old").touch()
    rename, calls = Path.replace, []

    def interrupted(path: Path, target: Path) -> Path:
        calls.append(path)
        if len(calls) == renamed_before + 1:
            raise KeyboardInterrupt
        return rename(path, target)

    monkeypatch.setattr(Path, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt), new_folder(tmp_path / "d") as folder:
        (folder / "new").touch()
    assert sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*")) == ["d", "d/old"]


def test_json_is_readable_and_refuses_nan(tmp_path: Path):
    write_json(tmp_path / "a.json", {"b": 1, "a": "ü"})
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": "ü", "b": 1}
    with pytest.raises(ValueError):
        write_json(tmp_path / "a.json", {"b": float("nan")})
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": "ü", "b": 1}
