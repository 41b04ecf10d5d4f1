"""The whole line through the real command, on an encoder-decoder: sources and targets in, a registered prefix out."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path

import pytest

from pipeline import servers
from pipeline.base import base_files
from pipeline.data.splits import row_id
from pipeline.digest import digest
from pipeline.register import registry
from tests import tiny
from tests.line import ANIMALS, COLOURS, Line, init_line

PARAMS = """\
base_models:
  tiny:
    source: {{path: "{base}"}}
    digest: {digest}
prefixes:
  words:
    base_model: tiny
    task: generation
    data: {{path: data/words.jsonl, splits: {{train: 0.4, validation: 0.2, test: 0.4}}}}
    prefix: {{length: 4}}
    training: {{epochs: 14, batch_size: 16, learning_rate: 0.1, gradient_accumulation: 2, threads: 1}}
    evaluation: {{max_new_tokens: 8}}
    gate: {{resamples: 200, floors: {{loss: 3.0}}}}
"""


def rows(count: int) -> list[dict[str, object]]:
    """A colour and an animal, with one or two sentences about both."""
    draw = random.Random(0)
    made = {}
    while len(made) < count:
        words = draw.choices(COLOURS, k=2) + draw.choices(ANIMALS, k=2)
        targets = [f"the {words[0]} {words[2]} runs", f"a {words[2]} is {words[0]}"]
        made[" ".join(words)] = targets[: draw.randint(1, 2)]
    return [{"source": source, "target": target} for source, target in made.items()]


def test_a_generation_prefix_on_a_t5_is_trained_judged_registered_and_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow
    import pyarrow.parquet as pq

    base = tiny.tiny_t5(tmp_path / "base")
    line: Line = init_line(tmp_path / "workspace")
    (line.root / "params.yaml").write_text(
        PARAMS.format(base=base, digest=digest(base_files.identity_files(base)))
    )
    line.commit("Parameters")
    content = rows(72)
    line.write_rows(content)

    outcome = json.loads(line.run("retrain", "words", "--json").stdout)

    assert (outcome["outcome"], outcome["version"]) == ("registered", "1"), json.dumps(outcome["verdict"])
    assert outcome["metrics"]["prefix"]["loss"] < outcome["metrics"]["base"]["loss"]
    assert Path(outcome["report"]).is_file()
    assert re.search(r"Source and target may have.*64 each", _card(line, outcome), re.DOTALL)

    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"):
        monkeypatch.setenv(name, "")
    monkeypatch.setenv("PREFIXLINE_WORKSPACE", str(line.root))
    where = servers.endpoints(line.root)
    registry.connect(where.mlflow_uri, artifact_root=where.artifact_root).activate()
    model = mlflow.pyfunc.load_model("models:/words@candidate")
    scored = pq.read_table(
        line.root / ".prefixline/fetched" / outcome["run_key"] / "evaluate/evaluation/rows.parquet",
        filters=[("system", "=", "prefix")],
    ).to_pylist()
    sources = {row_id(str(row["source"]), row["target"]): row["source"] for row in content}
    answers = model.predict([sources[row["row_id"]] for row in scored])
    assert len(scored) > 3
    assert list(answers["text"]) == [row["hypothesis"] for row in scored]


def _card(line: Line, outcome: dict[str, object]) -> str:
    where = servers.endpoints(line.root)
    client = registry.connect(where.mlflow_uri, artifact_root=where.artifact_root).client
    runs = outcome["runs"]
    assert isinstance(runs, dict)
    stored = Path(client.download_artifacts(runs["mlflow"], "dataset_card.html"))
    return stored.read_text()
