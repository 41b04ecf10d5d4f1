"""Python's bytecode does not stay beside a module that forgets it."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

from pipeline.serve import bytecode

FORGETS = "from pipeline.serve import bytecode\nbytecode.forget(__spec__)\nanswer = 42\n"


@pytest.fixture(autouse=True)
def python_keeps_bytecode(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    monkeypatch.setattr(sys, "pycache_prefix", None)


def load(path: Path) -> int:
    spec = importlib.util.spec_from_file_location("stored", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    answer: int = module.answer
    return answer


def test_a_module_that_forgets_leaves_its_folder_as_it_was(tmp_path: Path) -> None:
    for text, left in (("answer = 42\n", {"stored.py", "__pycache__"}), (FORGETS, {"stored.py"})):
        folder = tmp_path / str(len(left))
        folder.mkdir()
        (folder / "stored.py").write_text(text)
        assert load(folder / "stored.py") == 42
        assert {path.name for path in folder.iterdir()} == left


def test_what_others_keep_there_stays(tmp_path: Path) -> None:
    (tmp_path / "__pycache__").mkdir()
    (tmp_path / "__pycache__" / "other.pyc").write_bytes(b"theirs")
    (tmp_path / "stored.py").write_text(FORGETS)
    assert load(tmp_path / "stored.py") == 42
    assert [path.name for path in (tmp_path / "__pycache__").iterdir()] == ["other.pyc"]


def test_where_nothing_was_kept_there_is_nothing_to_forget(tmp_path: Path) -> None:
    (tmp_path / "stored.py").write_text("answer = 42\n")
    spec = importlib.util.spec_from_file_location("stored", tmp_path / "stored.py")
    assert spec is not None
    bytecode.forget(spec)
    spec.cached = None
    bytecode.forget(spec)
    assert [path.name for path in tmp_path.iterdir()] == ["stored.py"]
