"""The stages as DVC starts them, on an encoder-decoder: sources and targets in, a judged, registered, served prefix out."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipeline import stages
from pipeline.data.splits import row_id
from pipeline.digest import digest
from pipeline.files import write_json
from pipeline.judge import gate
from pipeline.params import (
    BaseModelParams,
    DataParams,
    EvaluationParams,
    GateParams,
    PrefixParams,
    SplitParams,
    TrainingParams,
)
from pipeline.pins import Pins
from pipeline.register import registration
from pipeline.register.lineage import code_identity
from pipeline.register.registry import start_run
from tests import mlflow_world, tiny
from tests.line import ANIMALS, COLOURS

KEY = "b" * 64


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
    import mlflow

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PREFIXLINE_WORKSPACE", str(tmp_path))
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"):
        monkeypatch.setenv(name, "")
    base = mlflow_world.base_record(tiny.tiny_t5(tmp_path / "base"), tmp_path)
    content = rows(72)
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content))
    pins = Pins(
        name="words",
        run_key=KEY,
        task="generation",
        base_name="tiny",
        base=BaseModelParams(source=base["source"], digest=base["digest"]),
        code=code_identity(),
        dataset={"md5": "d" * 32, "manifest": {}},
        data=DataParams(path="rows.jsonl", splits=SplitParams(train=0.4, validation=0.2, test=0.4)),
        prefix=PrefixParams(length=4),
        training=TrainingParams(
            epochs=14, batch_size=16, learning_rate=0.1, gradient_accumulation=2, threads=1
        ),
        evaluation=EvaluationParams(max_new_tokens=8, beams=2),
    )
    (tmp_path / "pins").mkdir()
    write_json(tmp_path / "pins" / "words.json", pins.to_json())

    for stage in ("prepare", "train", "evaluate"):
        assert stages.main([stage, "words"]) == 0, capsys.readouterr().err

    artifacts = tmp_path / "artifacts" / "words"
    evaluated = json.loads((artifacts / "evaluated.json").read_text())
    assert json.loads((artifacts / "prepared.json").read_text())["max_tokens"] == 64
    assert evaluated["systems"]["prefix"]["loss"] < evaluated["systems"]["base"]["loss"] - 1
    scored = artifacts / "evaluation" / "rows.parquet"
    verdict = gate.judge(scored, GateParams(resamples=200, floors={"loss": 3.0}), pins.task, pins.evaluation)
    assert verdict.passed, verdict.reasons

    registry = mlflow_world.database(tmp_path / "registry")
    run_id = start_run(registry, "words", KEY, params={})
    params = {"task": pins.task, "data": pins.data.model_dump(), "evaluation": pins.evaluation.model_dump()}
    adapter = artifacts / "adapter"
    record = mlflow_world.record(adapter, run_id, KEY, base, pins.task, params=params, prefix="words")
    assert record.adapter_digest == digest(dict(record.files))
    registration.register(
        registry,
        run_id=run_id,
        record=record,
        adapter=adapter,
        example=["red blue cat dog"],
        actor=mlflow_world.ACTOR,
    )

    registry.activate()
    model = mlflow.pyfunc.load_model("models:/words@candidate")
    written = pq.read_table(scored, filters=[("system", "=", "prefix")]).to_pylist()
    sources = {row_id(str(row["source"]), row["target"]): row["source"] for row in content}
    answers = model.predict([sources[row["row_id"]] for row in written])
    assert len(written) > 20
    assert list(answers["text"]) == [row["hypothesis"] for row in written]
    assert len(set(answers["text"])) > 1
