"""The stages as DVC starts them, with a head on the mean of the tokens: texts in, a judged, registered, served prefix out."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipeline import stages
from pipeline.data.splits import row_id
from pipeline.files import write_json
from pipeline.params import (
    BaseModelParams,
    DataParams,
    EvaluationParams,
    PrefixParams,
    SplitParams,
    TrainingParams,
)
from pipeline.pins import Pins
from pipeline.prefix.adapter import adapter_facts
from pipeline.register import registration
from pipeline.register.lineage import code_identity
from pipeline.register.registry import start_run
from tests import mlflow_world, tiny
from tests.line import ANIMALS, COLOURS

KEY = "c" * 64


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
    import mlflow

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PREFIXLINE_WORKSPACE", str(tmp_path))
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"):
        monkeypatch.setenv(name, "")
    base = mlflow_world.base_record(tiny.tiny_encoder(tmp_path / "base", scale=0.3), tmp_path)
    content = rows(120)
    lines = [json.dumps({"text": text, "label": label}) + "\n" for text, label in content.items()]
    (tmp_path / "rows.jsonl").write_text("".join(lines))
    pins = Pins(
        name="words",
        run_key=KEY,
        task="classification",
        base_name="tiny",
        base=BaseModelParams(source=base["source"], digest=base["digest"]),
        code=code_identity(),
        dataset={"md5": "d" * 32, "manifest": {}},
        data=DataParams(path="rows.jsonl", splits=SplitParams(train=0.4, validation=0.2, test=0.4)),
        prefix=PrefixParams(length=4),
        training=TrainingParams(
            epochs=12, batch_size=16, learning_rate=0.1, dropout=0.1, head_pooling="mean", threads=1
        ),
        evaluation=EvaluationParams(),
    )
    (tmp_path / "pins").mkdir()
    write_json(tmp_path / "pins" / "words.json", pins.to_json())
    for stage in ("prepare", "train", "evaluate"):
        assert stages.main([stage, "words"]) == 0, capsys.readouterr().err

    artifacts = tmp_path / "artifacts" / "words"
    assert adapter_facts(artifacts / "adapter").pooling == "mean"
    evaluated = json.loads((artifacts / "evaluated.json").read_text())
    assert evaluated["systems"]["prefix"]["accuracy"] > 0.8  # guessing: a third

    registry = mlflow_world.database(tmp_path / "registry")
    run_id = start_run(registry, "words", KEY, params={})
    params = {"task": pins.task, "data": pins.data.model_dump(), "evaluation": pins.evaluation.model_dump()}
    record = mlflow_world.record(
        artifacts / "adapter", run_id, KEY, base, pins.task, params=params, prefix="words"
    )
    assert evaluated["labels"] == record.dataset["labels"]
    registration.register(
        registry,
        run_id=run_id,
        record=record,
        adapter=artifacts / "adapter",
        example=["red cat"],
        actor=mlflow_world.ACTOR,
    )
    registry.activate()
    model = mlflow.pyfunc.load_model("models:/words@candidate")
    scored = pq.read_table(
        artifacts / "evaluation" / "rows.parquet", filters=[("system", "=", "prefix")]
    ).to_pylist()
    texts = {row_id(text, [label]): text for text, label in content.items()}
    answers = model.predict([texts[row["row_id"]] for row in scored])
    assert len(scored) > 30
    assert list(answers["label"]) == [record.dataset["labels"][row["prediction"]] for row in scored]
