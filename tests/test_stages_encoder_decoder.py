"""The stages as DVC starts them, on an encoder-decoder: sources and targets in, a judged, registered, served prefix out."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from pipeline.data.splits import row_id
from pipeline.digest import digest
from pipeline.judge import gate
from pipeline.params import EvaluationParams, GateParams, TrainingParams
from tests import stage_line, tiny
from tests.line import ANIMALS, COLOURS


def rows(count: int) -> list[dict[str, object]]:
    """A colour and an animal, each before another, with one or two sentences about the first of both."""
    draw = random.Random(0)
    made = {}
    while len(made) < count:
        words = draw.choices(COLOURS, k=2) + draw.choices(ANIMALS, k=2)
        targets = [f"the {words[0]} {words[2]} runs", f"a {words[2]} is {words[0]}"]
        made[" ".join(words)] = targets[: draw.randint(1, 2)]
    return [{"source": source, "target": target} for source, target in made.items()]


def test_a_generation_prefix_on_a_t5_is_trained_judged_registered_and_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    content = rows(72)
    line = stage_line.run(
        tmp_path,
        monkeypatch,
        capsys,
        base=tiny.tiny_t5(tmp_path / "base"),
        lines="".join(json.dumps(row) + "\n" for row in content),
        task="generation",
        training=TrainingParams(
            epochs=14, batch_size=16, learning_rate=0.1, gradient_accumulation=2, threads=1
        ),
        evaluation=EvaluationParams(max_new_tokens=8, beams=2),
    )
    evaluated = json.loads((line.artifacts / "evaluated.json").read_text())
    assert json.loads((line.artifacts / "prepared.json").read_text())["max_tokens"] == 64
    assert evaluated["systems"]["prefix"]["loss"] < evaluated["systems"]["base"]["loss"] - 1
    verdict = gate.judge(
        line.scored, GateParams(resamples=200, floors={"loss": 3.0}), line.pins.task, line.pins.evaluation
    )
    assert verdict.passed, verdict.reasons

    record, model = line.registered(["red blue cat dog"])
    assert record.adapter_digest == digest(dict(record.files))
    sources = {row_id(str(row["source"]), row["target"]): row["source"] for row in content}
    scores = line.scores()
    answers = model.predict([sources[row["row_id"]] for row in scores])
    assert len(scores) > 20
    assert list(answers["text"]) == [row["hypothesis"] for row in scores]
    assert len(set(answers["text"])) > 1
