"""pins/NAME.json: what is written is read back equal, and anything else is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.errors import WorkspaceError
from pipeline.files import write_json
from pipeline.params import (
    BaseModelParams,
    DataParams,
    EvaluationParams,
    PathSource,
    PrefixParams,
    SplitParams,
    TrainingParams,
)
from pipeline.pins import Champion, Pins, WarmStart, read_pins

BASE = BaseModelParams(source=PathSource(path="bases/small"), digest="a" * 64)
PINS = Pins(
    name="words",
    run_key="b" * 64,
    task="classification",
    base_name="small",
    base=BASE,
    code={"version": "1", "digest": "c" * 64},
    dataset={"md5": "d" * 32, "manifest": {"words.jsonl": "e" * 64}},
    data=DataParams(path="data/words.jsonl", slices=("length",)),
    prefix=PrefixParams(length=3),
    training=TrainingParams(epochs=2),
    evaluation=EvaluationParams(),
    champion=Champion("3", "f" * 64, SplitParams(salt="s"), "small", BASE),
    warm_start=WarmStart("1" * 64, {"prefix": "words", "version": "2"}),
    previous="0" * 32,
)


@pytest.mark.parametrize(
    "pins",
    [
        PINS,
        replace(PINS, champion=None, previous=None, warm_start=None),
        replace(PINS, warm_start=WarmStart("1" * 64, {"adapter": "adapters/old"})),
    ],
)
def test_pins_are_read_back_equal(tmp_path: Path, pins: Pins):
    write_json(tmp_path / "pins" / "words.json", pins.to_json())
    assert read_pins(tmp_path, "words") == pins


def test_pins_from_before_there_were_warm_starts_are_read(tmp_path: Path):
    old = replace(PINS, warm_start=None)
    write_json(
        tmp_path / "pins" / "words.json", {k: v for k, v in old.to_json().items() if k != "warm_start"}
    )
    assert read_pins(tmp_path, "words") == old


def test_missing_pins_say_what_writes_them(tmp_path: Path):
    with pytest.raises(WorkspaceError, match="prefixline retrain words"):
        read_pins(tmp_path, "words")


@pytest.mark.parametrize(
    "content",
    ["{", "[]", json.dumps({**PINS.to_json(), "params": {}}), json.dumps({**PINS.to_json(), "champion": {}})],
)
def test_pins_of_another_form_are_refused(tmp_path: Path, content: str):
    (tmp_path / "pins").mkdir()
    (tmp_path / "pins" / "words.json").write_text(content)
    with pytest.raises(WorkspaceError, match="is not a pins file"):
        read_pins(tmp_path, "words")
