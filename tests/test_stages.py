"""A stage as DVC starts it: what it refuses before it does anything, and how it ends."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline import stages
from pipeline.files import write_json
from pipeline.pins import Pins
from pipeline.register.lineage import code_identity
from tests.test_pins import PINS


@pytest.fixture
def copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with pins of the prefix `words`, made by the code that runs."""
    monkeypatch.chdir(tmp_path)
    write(code_identity())
    return tmp_path


def write(code: Mapping[str, str]) -> None:
    Path("pins").mkdir(exist_ok=True)
    write_json(Path("pins/words.json"), replace(PINS, code=code).to_json())


def test_code_that_is_not_the_pinned_one_is_refused_and_nothing_is_done(
    copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    done: list[str] = []

    def note(found: Pins, artifacts: Path) -> dict[str, Any]:
        done.append(found.name)
        return {}

    monkeypatch.setitem(stages.STAGES, "train", (note, "trained.json"))
    assert stages.main(["train", "words"]) == 0
    write({**code_identity(), "digest": "0" * 64})
    assert stages.main(["train", "words"]) == 1
    assert done == ["words"]
    said = capsys.readouterr().err
    assert f"pins/words.json names {'0' * 64}: prefixline was changed after the retraining began" in said


@pytest.mark.parametrize("stage", ["prepare", "train", "evaluate"])
@pytest.mark.parametrize(
    ("number", "is_disk"), [(errno.ENOSPC, True), (errno.EFBIG, True), (errno.EINVAL, False)]
)
def test_a_full_disk_is_one_line_that_names_the_file_and_leaves_no_record(
    copy: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    stage: str,
    number: int,
    is_disk: bool,
) -> None:
    def fail(found: Pins, artifacts: Path) -> dict[str, Any]:
        raise OSError(number, os.strerror(number), str(artifacts / "rows.parquet"))

    record = stages.STAGES[stage][1]
    monkeypatch.setitem(stages.STAGES, stage, (fail, record))
    if is_disk:
        assert stages.main([stage, "words"]) == 1
        said = capsys.readouterr().err
        assert said == (
            f"error: artifacts/words/rows.parquet: {os.strerror(number)}. Mend this and run the same command again\n"
        )
    else:
        with pytest.raises(OSError, match="Invalid argument"):
            stages.main([stage, "words"])
    assert not (copy / "artifacts/words" / record).exists()


def test_a_stage_that_is_none_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert stages.main(["bake", "words"]) == 2
    assert "usage: python -m pipeline.stages prepare|train|evaluate NAME" in capsys.readouterr().err
