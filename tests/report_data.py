"""Made-up retraining results for the tests of the report, as the stages would have written them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet

from pipeline.evaluate.metrics import score_hypothesis
from pipeline.evaluate.scored import schema
from pipeline.judge.gate import judge
from pipeline.params import Comparison, EvaluationParams, GateParams, SliceCriteria, Task
from pipeline.show.report_data import Outcome, ReportData

LIBRARIES = ("asyncio", "matplotlib", "networkx", "numpy", "pandas", "scikit-learn", "sqlalchemy", "sympy")
INTENTS = tuple(
    f"{verb}_{thing}"
    for verb in ("activate", "cancel", "change", "declined", "lost_or_stolen", "pending", "top_up_by", "verify", "why")
    for thing in ("card", "cash_withdrawal", "exchange_rate", "my_identity", "physical_card", "pin", "refund",
                  "transfer_fee", "virtual_card")
)[:77]  # fmt: skip


def sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def classification_rows(
    path: Path, classes: int, rows: int, accuracies: dict[str, float], *, seed: int = 0
) -> Path:
    """rows.parquet in which each system is right on about its share of the rows, and errs next door."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, classes, rows)
    hardness = generator.uniform(size=rows)
    bias = generator.normal(0, 0.09, classes)[labels]
    tables = []
    ids = [sha(f"row {i}") for i in range(rows)]
    slices = generator.choice(["short", "medium", "long"], rows, p=[0.5, 0.35, 0.15]).tolist()
    for system, accuracy in accuracies.items():
        noise = generator.uniform(-0.15, 0.15, rows)
        right = hardness + noise + bias < accuracy
        shift = generator.integers(1, min(4, classes), rows)
        prediction = np.where(right, labels, (labels + shift) % classes)
        confidence = np.clip(
            generator.beta(7, 2, rows) - 0.25 * ~right * generator.uniform(size=rows), 1 / classes, 1
        )
        loss = np.where(
            right, -np.log(confidence), -np.log(np.maximum((1 - confidence) / max(classes - 1, 1), 1e-4))
        )
        columns = {
            "row_id": ids, "system": [system] * rows, "slice.length": slices, "label": labels,
            "prediction": prediction, "confidence": confidence, "loss": loss,
        }  # fmt: skip
        tables.append(pa.table(columns).cast(schema("classification", ["length"], list(accuracies))))
    parquet.write_table(pa.concat_tables(tables), path)
    return path


SOURCES = (
    ("name[Blue Spice], eatType[coffee shop], area[city centre]",
     ["Blue Spice is a coffee shop in the city centre.", "In the city centre you find the coffee shop Blue Spice."],
     "Blue Spice is a coffee shop in the city centre.", "name[Blue Spice], name[Blue Spice], name[Blue"),
    ("name[The Mill], food[French], priceRange[cheap]",
     ["The Mill serves cheap French food."], "The Mill is a cheap place that serves French food.", "and the man went to"),
    ("name[Aromi], customer rating[low], familyFriendly[no]",
     ["Aromi has a low rating and is not for families.", "Aromi, rated low, is not family friendly."],
     "Aromi has a low customer rating and is not family friendly.", "Once upon a time there was a little"),
)  # fmt: skip


def generation_rows(path: Path, rows: int, losses: dict[str, float], *, seed: int = 0) -> Path:
    """rows.parquet of a generation task; every tenth row has no generated text."""
    generator = np.random.default_rng(seed)
    tokens = generator.integers(12, 60, rows)
    tables = []
    for number, (system, loss) in enumerate(losses.items()):
        columns: dict[str, list[Any]] = {
            name: [] for name in schema("generation", ["area"], ["prefix"]).names
        }
        per_token = generator.gamma(12, loss / 12, rows)
        for i in range(rows):
            _, references, ours, base = SOURCES[i % len(SOURCES)]
            hypothesis = base if system == "base" else (ours if i % 4 else references[0])
            scored = score_hypothesis(hypothesis, references) if i % 10 else None
            columns["row_id"].append(sha(f"row {i}"))
            columns["system"].append(system)
            columns["slice.area"].append(["city centre", "riverside"][i % 2])
            columns["nll"].append(float(per_token[i] * tokens[i]))
            columns["target_tokens"].append(int(tokens[i]))
            columns["hypothesis"].append(hypothesis if scored else None)
            for name in ("bleu_counts", "bleu_totals", "hypothesis_length", "reference_length", "chrf_statistics",
                         "chrf", "rouge_l"):  # fmt: skip
                value = getattr(scored, name) if scored else None
                columns[name].append(list(value) if isinstance(value, tuple) else value)
        tables.append(pa.table(columns, schema=schema("generation", ["area"], list(losses))))
        assert number < 3
    parquet.write_table(pa.concat_tables(tables), path)
    return path


def curves(path: Path, steps: int = 320, start: float = 2.1, end: float = 0.6) -> Path:
    generator = np.random.default_rng(1)
    lines = []
    for step in range(1, steps + 1):
        loss = end + (start - end) * np.exp(-step / (steps / 5)) + generator.normal(0, 0.08)
        rate = 0.03 * min(step / (0.06 * steps), (steps - step) / (0.94 * steps))
        lines.append({"kind": "step", "step": step, "epoch": 3 * step / steps, "loss": float(loss),
                      "learning_rate": rate, "grad_norm": 0.8, "targets_per_second": 210.0,
                      "seconds": 0.4 * step})  # fmt: skip
        if step % (steps // 8) == 0:
            loss = (
                end + 0.08 + (start - end) * np.exp(-step / (steps / 5)) + 0.06 * max(0, step / steps - 0.7)
            )
            lines.append({"kind": "validation", "step": step, "epoch": 3 * step / steps, "loss": float(loss)})
    path.write_text("\n".join(map(json.dumps, lines)) + "\n")
    return path


def samples(path: Path, labels: Sequence[str] | None) -> Path:
    found: list[dict[str, Any]] = [
        {"row_id": sha(source), "source": source, "references": references,
         "hypotheses": {"prefix": ours, "base": base}}
        for source, references, ours, base in SOURCES
    ]  # fmt: skip
    if labels is not None:
        texts = (
            "Compute the eigenvalues of a symmetric matrix.",
            "Return the current event loop of this thread.",
        )
        found = [
            {"row_id": sha(text), "text": text, "label": labels[1], "right": right, "confidence": 0.97,
             "predictions": {"prefix": labels[int(right)], "base": labels[0], "champion": None}}
            for text, right in zip(texts, (False, True), strict=True)
        ]  # fmt: skip
    path.write_text(json.dumps(found))
    return path


def card(labels: Sequence[str] | None, rows: int) -> dict[str, Any]:
    quantiles = {
        "min": 4,
        "p5": 8,
        "p25": 15,
        "median": 23,
        "p75": 41,
        "p95": 96,
        "p99": 140,
        "max": 181,
        "mean": 31.2,
    }
    histogram = {"edges": [0, 100, 200], "train": [9, 1], "validation": [9, 1], "test": [9, 1]}
    lengths = {"quantiles": dict.fromkeys(("train", "validation", "test"), quantiles), "histogram": histogram}
    made: dict[str, Any] = {
        "raw": {"format": "jsonl", "rows": 10 * rows + 31, "files": {"a.jsonl": {"rows": 9, "sha256": sha("a")}}},
        "rows": {"train": rows * 8, "validation": rows, "test": rows},
        "duplicates": {"dropped": 31, "near": 4, "slice_disagreements": 0},
        "tokens": {"window": 256, "prefix": 16, "limit": 240, "input": lengths},
        "too_long": {"policy": "truncate", "dropped": 0, "truncated": 12},
        "classes": None, "references": None, "conflicting_labels": None,
        "changes": {"previous": {"row_ids": sha("ids"), "rows": 9 * rows}, "kept": 9 * rows, "added": rows,
                    "removed": 0, "added_by_split": {"train": rows}, "labels_added": [], "labels_removed": []},
    }  # fmt: skip
    if labels:
        share = rows // len(labels)
        made["classes"] = {name: {"train": 8 * share, "validation": share, "test": share} for name in labels}
        made["conflicting_labels"] = {"texts": 3, "rows": 7, "examples": []}
    else:
        made["references"] = {"total": 21 * rows, "mean": 2.1, "max": 5, "sources": {"1": 3, "2": 9}}
        made["tokens"]["target"] = lengths
    return made


def lineage(prefix: str) -> dict[str, Any]:
    return {
        "prefix": prefix,
        "adapter_digest": sha("adapter"),
        "files": {"adapter_config.json": sha("config"), "adapter_model.safetensors": sha("model")},
        "base_model": {"name": "minilm", "digest": sha("base"), "source": {"package": "some_package", "folder": "."},
                       "files": {"config.json": sha("a"), "model.safetensors": sha("b"), "tokenizer.json": sha("c")}},
        "dataset": {"path": "data/docstrings.jsonl", "md5": "9f86d081884c7d659a2feaa0c55ad015",
                    "git_commit": sha("commit")[:40], "manifest": {"docstrings.jsonl": sha("raw")},
                    "rows": {"train": 3200, "validation": 400, "test": 400, "total": 4000}},
        "code": {"commit": sha("code")[:40], "version": "0.1.0", "digest": sha("tree"), "dirty": False},
        "environment": {"python": "3.11.9", "platform": "Linux x86_64",
                        "libraries": {"torch": "2.13.0", "transformers": "5.23.0"}},
        "experiment": {"commit": sha("experiment")[:40], "name": "muddy-lime"},
        "runs": {"mlflow": sha("run")[:32], "prefect": "0a8f6c1e-6a34-4f3a-9b1b-6d9a4ee0d0d3"},
        "params": {
            "base_model": "minilm", "task": "classification",
            "data": {"path": "data/docstrings.jsonl", "text": "text", "label": "label", "slices": ["length"],
                     "splits": {"train": 0.8, "validation": 0.1, "test": 0.1, "salt": ""}},
            "prefix": {"length": 16, "initialisation": "text", "text": None, "projection": None},
            "training": {"learning_rate": 0.03, "head_learning_rate": 0.001, "epochs": 3, "batch_size": 32,
                         "schedule": "linear", "warmup": 0.06, "patience": 3, "seed": 0},
        },
        "metrics": {}, "verdict": {}, "seed": 0, "created": "2026-01-05T03:12:44+00:00",
        "format_version": 1, "warm_start": None,
    }  # fmt: skip


TRAINED: dict[str, Any] = {
    "steps": 320, "best_step": 280, "best_validation_loss": 0.6931, "trainable_parameters": 76_808,
    "base_parameters": 22_713_216, "seconds": 133.4, "base_digest_before": sha("base"),
    "base_digest_after": sha("base"), "stopped": "epochs", "best_validation_accuracy": 0.741,
    "start": {"from": "text", "text": "This text is about asyncio, matplotlib or networkx.", "made_of": "given"},
}  # fmt: skip
TIMINGS = {"snapshot": 1.9, "prepare": 4.2, "train": 133.4, "evaluate": 21.7, "gate": 0.6, "register": 2.8}


def classification(
    folder: Path,
    *,
    labels: tuple[str, ...] = LIBRARIES,
    rows: int = 1200,
    accuracies: dict[str, float] | None = None,
    prefix: str = "docstrings",
    version: str | None = "3",
    floor: float = 0.55,
) -> ReportData:
    folder.mkdir(parents=True, exist_ok=True)
    scores = accuracies or {"prefix": 0.72, "base": 0.6, "champion": 0.7}
    gate = GateParams(
        floors={"accuracy": floor, "calibration_error": 0.2},
        better_than_base=Comparison(metric="accuracy"),
        not_worse_than_champion=Comparison(metric="macro_f1", margin=0.02),
        slices=(SliceCriteria(column="length", floors={"accuracy": 0.4}),),
        resamples=200,
    )
    path = classification_rows(folder / "rows.parquet", len(labels), rows, scores)
    return _data(folder, "classification", prefix, version, gate, path, labels, rows)


def generation(folder: Path, *, rows: int = 240, version: str | None = "1") -> ReportData:
    folder.mkdir(parents=True, exist_ok=True)
    gate = GateParams(
        floors={"loss": 2.6, "bleu": 20},
        better_than_base=Comparison(metric="loss"),
        not_worse_than_champion=Comparison(metric="loss", margin=0.05),
        resamples=200,
    )
    path = generation_rows(folder / "rows.parquet", rows, {"prefix": 2.2, "base": 4.0})
    return _data(folder, "generation", "restaurant-texts", version, gate, path, None, rows)


def rejected(folder: Path) -> ReportData:
    return classification(
        folder, accuracies={"prefix": 0.61, "base": 0.6, "champion": 0.7}, version=None, floor=0.65
    )


def bare(**changes: Any) -> ReportData:
    """A retraining of which nothing is known but that it failed."""
    given: dict[str, Any] = {
        "prefix": "docstrings", "outcome": "failed", "task": "classification", "created": "2026-01-05T03:12:44+00:00",
        **changes,
    }  # fmt: skip
    return ReportData(**given)


def _data(
    folder: Path, task: Task, prefix: str, version: str | None, gate: GateParams, rows: Path,
    labels: tuple[str, ...] | None, count: int,
) -> ReportData:  # fmt: skip
    evaluation = EvaluationParams()
    verdict = judge(rows, gate, task, evaluation)
    outcome: Outcome = "registered" if version else "rejected"
    assert verdict.passed == (outcome == "registered"), verdict.reasons
    return ReportData(
        prefix=prefix, outcome=outcome, task=task, created="2026-01-05T03:12:44+00:00", version=version,
        run_key=sha(prefix), verdict=verdict.to_json(), trained=TRAINED, card=card(labels, count),
        lineage=lineage(prefix), timings=TIMINGS, labels=labels, rows=rows,
        curves=curves(folder / "curves.jsonl"),
        samples=samples(folder / "samples.json", labels),
        gate=gate, evaluation=evaluation,
    )  # fmt: skip
