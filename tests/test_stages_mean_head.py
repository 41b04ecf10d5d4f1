"""The stages as DVC starts them, with a head on the mean of the tokens: texts in, a judged, registered, served prefix out."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from pipeline.data.splits import row_id
from pipeline.params import EvaluationParams, TrainingParams
from pipeline.prefix.adapter import adapter_facts
from tests import mlflow_world, stage_line, tiny
from tests.line import ANIMALS, COLOURS


def rows(count: int) -> dict[str, str]:
    """Colours around one of three animals, which decides the label."""
    draw = random.Random(0)
    made: dict[str, str] = {}
    while len(made) < count:
        animal, label = draw.choice(list(zip(ANIMALS, mlflow_world.LABELS, strict=True)))
        words = [*draw.choices(COLOURS, k=draw.randint(1, 4)), animal]
        draw.shuffle(words)
        made[" ".join(words)] = label
    return made


def test_a_prefix_with_a_head_on_the_mean_is_trained_judged_registered_and_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    content = rows(120)
    line = stage_line.run(
        tmp_path,
        monkeypatch,
        capsys,
        base=tiny.tiny_encoder(tmp_path / "base", scale=0.3),
        lines="".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in content.items()),
        task="classification",
        training=TrainingParams(
            epochs=12, batch_size=16, learning_rate=0.1, dropout=0.1, head_pooling="mean", threads=1
        ),
        evaluation=EvaluationParams(),
    )
    assert adapter_facts(line.artifacts / "adapter").pooling == "mean"
    evaluated = json.loads((line.artifacts / "evaluated.json").read_text())
    assert evaluated["systems"]["prefix"]["accuracy"] > 0.8  # guessing: a third

    record, model = line.registered(["red cat"])
    labels = record.dataset["labels"]
    assert evaluated["labels"] == labels
    texts = {row_id(text, [label]): text for text, label in content.items()}
    scores = line.scores()
    answers = model.predict([texts[row["row_id"]] for row in scores])
    assert len(scores) > 30
    assert list(answers["label"]) == [labels[row["prediction"]] for row in scores]
