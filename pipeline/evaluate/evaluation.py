"""Scores a trained prefix, the frozen base without it, and the version in production, on the same test rows.

Nothing is chosen here by the test rows: the probe's regularisation is chosen on the validation rows, and the test
rows are read once. What comes out is one line per row and system (`pipeline.evaluate.scored`), from which the figures, the
gate's verdict and the report all follow.

The frozen base without a prefix is, for classification, a linear probe on its features (`pipeline.evaluate.probe`), and for
generation the base itself. The version in production is scored only on rows that are test rows under its own split
parameters too: it may have been trained on the others.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.base import base_model
from pipeline.base.base_model import ResolvedBase
from pipeline.data.encoding import Encoder, encoder_for
from pipeline.data.splits import split_of
from pipeline.digest import manifest
from pipeline.errors import AdapterError, IntegrityError
from pipeline.evaluate import scoring, systems
from pipeline.evaluate.metrics import UNKNOWN_LABEL, confusion_matrix, figure, per_class
from pipeline.evaluate.scored import SLICE, SYSTEMS, Scored, read, schema
from pipeline.evaluate.systems import Examples, Lines
from pipeline.files import new_folder, write_json
from pipeline.params import TASK_METRICS, DataParams, EvaluationParams, SplitParams, Task
from pipeline.prefix.adapter import AdapterFacts, adapter_digest, adapter_facts, install_head, load_adapter

ROWS, SAMPLES = "rows.parquet", "samples.json"
_SAMPLES = 20
_UNLIMITED = 2**31
"""Tokens of a row that a base without a limit is asked to score."""


@dataclass(frozen=True)
class Champion:
    """The version in production.

    Attributes:
        folder: its adapter.
        adapter_digest: the SHA-256 its files must have (`pipeline.prefix.adapter.adapter_digest`).
        version: its number in the registry.
        splits: the split parameters it was trained with.
        base: its base model, where that is not the one of the prefix to be judged.
    """

    folder: Path
    adapter_digest: str
    version: str
    splits: SplitParams
    base: ResolvedBase | None = None


@dataclass(frozen=True)
class EvaluatedSummary:
    """What was found; the content of evaluated.json.

    Attributes:
        manifest: SHA-256 of every file written.
        task: what the rows are.
        rows: system → how many test rows it was scored on.
        generated_rows: system → how many of them have a generated text; empty for classification.
        labels: class names by label number; None for generation.
        systems: system → metric → figure; a figure that is not a finite number is left out.
        per_class: label → precision, recall, F1 and support of the prefix; empty for generation.
        slices: column → value → rows and every metric of the prefix.
        probe: how the linear probe came out; None for generation.
        champion: version, common rows and unknown labels of the version in production; None where there is none.
        seconds: wall clock.
    """

    manifest: Mapping[str, str]
    task: Task
    rows: Mapping[str, int]
    generated_rows: Mapping[str, int]
    labels: tuple[str, ...] | None
    systems: Mapping[str, Mapping[str, float]]
    per_class: Mapping[str, Mapping[str, float]]
    slices: Mapping[str, Mapping[str, Mapping[str, float]]]
    probe: Mapping[str, float] | None
    champion: Mapping[str, Any] | None
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Plain objects for evaluated.json."""
        return {**asdict(self), "labels": None if self.labels is None else list(self.labels)}


def evaluate(
    base: ResolvedBase,
    adapter: Path,
    prepared: Path,
    out: Path,
    *,
    task: Task,
    data: DataParams,
    params: EvaluationParams,
    labels: Sequence[str] | None,
    champion: Champion | None = None,
) -> EvaluatedSummary:
    """Score all systems and write rows.parquet and samples.json to the folder `out`, whole or not at all.

    Args:
        base: the frozen base model, verified.
        adapter: the trained prefix.
        prepared: the prepared data (`pipeline.data.dataset.prepare`).
        data: names the slice columns.
        labels: class names by label number; None for generation.
        champion: the version in production, if there is one.

    Raises:
        AdapterError: an adapter is malformed, or for another base, task or label set.
        IntegrityError: the champion's files are not those of the version in production.
        DataError: the prepared data lacks rows or columns.
    """
    started = time.monotonic()
    _check(adapter, base, task, labels)
    if champion is not None:
        _verify(champion)
    judged = _Evaluation(base, adapter, prepared, task, params, tuple(labels or ()), champion)
    test = systems.read_examples(prepared, "test", task, data.slices)
    lines, notes = judged.score(test)
    table = _table(test, lines, task, data.slices)
    with new_folder(out) as folder:
        pq.write_table(table, folder / ROWS, compression="zstd")
        write_json(folder / SAMPLES, _samples(test, lines, task, judged.labels))
    scored = read(table, task)
    return EvaluatedSummary(
        manifest=manifest(out),
        task=task,
        rows={name: len(made.rows) for name, made in lines.items()},
        generated_rows={
            name: sum(text is not None for text in made.columns["hypothesis"])
            for name, made in lines.items()
            if task == "generation"
        },
        labels=None if labels is None else tuple(labels),
        systems={name: _figures(scored, name, params) for name in lines},
        per_class=_per_class(lines["prefix"], judged.labels) if task == "classification" else {},
        slices={column: _by_value(scored, column, params) for column in data.slices},
        probe=notes.get("probe"),
        champion=notes.get("champion"),
        seconds=round(time.monotonic() - started, 3),
    )


@dataclass(frozen=True)
class _Made:
    """One system's columns, and which test rows they are for."""

    rows: Sequence[int]
    columns: Lines


@dataclass(frozen=True)
class _Evaluation:
    """The arguments of `evaluate`, and what is done with them."""

    base: ResolvedBase
    adapter: Path
    prepared: Path
    task: Task
    params: EvaluationParams
    labels: tuple[str, ...]
    champion: Champion | None

    def score(self, test: Examples) -> tuple[dict[str, _Made], dict[str, Any]]:
        everything = range(len(test))
        notes: dict[str, Any] = {}
        pooling = adapter_facts(self.adapter).pooling
        model = base_model.load(self.base, self.task, labels=self.labels or None, pooling=pooling)
        prefix, head = load_adapter(self.adapter, model)
        install_head(model, head)
        if self.task == "classification":
            found = scoring.class_log_probabilities(
                model, prefix, test.input_ids, self.params.batch_size, what="prefix: test rows"
            )
            ours = systems.classified(found, test.labels)
            theirs, fitted = systems.probed(model, self.prepared, test, len(self.labels), self.params)
            notes["probe"] = {
                "strength": fitted.strength,
                "validation_accuracy": fitted.validation_accuracy,
                "rows": fitted.rows,
            }
        else:
            tokenizer = base_model.tokenizer(self.base)
            chosen = self._to_generate(test)
            ours, theirs = (
                systems.written(
                    model, each, test, tokenizer, self.params,
                    chosen=chosen, reserved=prefix.length, system=system,
                )
                for system, each in (("prefix", prefix), ("base", None))
            )  # fmt: skip
        lines = {"prefix": _Made(everything, ours), "base": _Made(everything, theirs)}
        del model
        if self.champion is not None:
            lines["champion"], notes["champion"] = self._score_champion(self.champion, test)
        return lines, notes

    def _score_champion(self, champion: Champion, test: Examples) -> tuple[_Made, dict[str, Any]]:
        base = champion.base or self.base
        facts = _check(
            champion.folder, base, self.task, None, whose=f"version {champion.version}, in production,"
        )
        common = [i for i, text in enumerate(test.texts) if split_of(text, champion.splits) == "test"]
        theirs = facts.labels or ()
        notes = {
            "version": champion.version,
            "common_rows": len(common),
            "unknown_labels": [name for name in self.labels if name not in theirs],
        }
        rows = test.only(common)
        model = base_model.load(base, self.task, labels=theirs or None, pooling=facts.pooling)
        prefix, head = load_adapter(champion.folder, model)
        install_head(model, head)
        tokenizer = base_model.tokenizer(base)
        if base.digest != self.base.digest:
            window = base_model.window(base)
            encoder = encoder_for(
                tokenizer,
                window=_UNLIMITED if window is None else window,
                prefix_length=facts.length,
                max_tokens=None,
                encoder_decoder=base_model.is_encoder_decoder(base),
            )
            mine, rows = rows, _encoded(rows, encoder, self.task)
        else:
            mine = rows
        if self.task == "classification":
            found = scoring.class_log_probabilities(
                model, prefix, rows.input_ids, self.params.batch_size, what="champion: test rows"
            )
            return _Made(
                common, systems.classified(found, rows.labels, theirs=theirs, today=self.labels)
            ), notes
        generate = set(self._to_generate(test))
        lines = systems.written(
            model, prefix, rows, tokenizer, self.params,
            chosen=[k for k, i in enumerate(common) if i in generate],
            reserved=facts.length, system="champion", tokens=systems.target_tokens(mine),
        )  # fmt: skip
        return _Made(common, lines), notes

    def _to_generate(self, test: Examples) -> list[int]:
        """The rows to generate for: the first by row id, which is as good as at random, and the same every time."""
        order = sorted(range(len(test)), key=lambda i: test.row_ids[i])
        return sorted(order[: self.params.max_generated_rows])


def _check(
    adapter: Path,
    base: ResolvedBase,
    task: Task,
    labels: Sequence[str] | None,
    *,
    whose: str = "the trained prefix",
) -> AdapterFacts:
    """Refuse an adapter that would be scored on the wrong base, or with labels in the wrong order."""
    facts = adapter_facts(adapter)
    problems = []
    if facts.task != task:
        problems.append(f"is for {facts.task}; expected {task}")
    if facts.base_digest is not None and facts.base_digest != base.digest:
        problems.append(f"was trained on the base model {facts.base_digest}; got {base.name}, {base.digest}")
    if task == "classification" and facts.labels is None:
        problems.append("does not name its labels, so its predictions mean nothing")
    if labels is not None and facts.labels is not None and facts.labels != tuple(labels):
        problems.append("has other labels, or in another order, than the prepared data; train it again")
    if problems:
        raise AdapterError(f"{adapter}: {whose} " + "; and it ".join(problems))
    return facts


def _verify(champion: Champion) -> None:
    found = adapter_digest(champion.folder)
    if found != champion.adapter_digest:
        raise IntegrityError(
            [f"SHA-256 over its files is {found}, expected {champion.adapter_digest}"],
            heading=f"{champion.folder} is not the adapter of version {champion.version}; fetch it again:",
        )


def _encoded(rows: Examples, encoder: Encoder, task: Task) -> Examples:
    """The same rows for another base's tokenizer, cut where they do not fit beside its prefix."""
    if task == "classification":
        found = encoder.texts(rows.texts)
        texts = zip(found, rows.texts, strict=True)
        input_ids = [
            one.input_ids if one.length <= encoder.limit else encoder.cut_text(text) for one, text in texts
        ]
        target_ids: list[list[list[int]]] = []
    else:
        found = encoder.sources(rows.texts, rows.targets)
        parts = [
            (one.input_ids, one.target_ids)
            if one.length <= encoder.limit
            else encoder.cut_source(one, source, targets)
            for one, source, targets in zip(found, rows.texts, rows.targets, strict=True)
        ]
        input_ids, target_ids = [part[0] for part in parts], [part[1] for part in parts]
    return Examples(rows.row_ids, rows.texts, input_ids, rows.slices, rows.labels, rows.targets, target_ids)


def _table(test: Examples, lines: Mapping[str, _Made], task: Task, slices: Sequence[str]) -> pa.Table:
    wanted = schema(task, slices, [name for name in SYSTEMS if name in lines])
    tables = []
    for system, made in lines.items():
        columns: Lines = {
            "row_id": [test.row_ids[i] for i in made.rows],
            "system": [system] * len(made.rows),
            **{SLICE + name: [test.slices[name][i] for i in made.rows] for name in slices},
            **made.columns,
        }
        arrays = [pa.array(columns[field.name], type=field.type) for field in wanted]
        tables.append(pa.Table.from_arrays(arrays, schema=wanted))
    return pa.concat_tables(tables)


def _figures(scored: Scored, system: str, params: EvaluationParams, places: Any = None) -> dict[str, float]:
    found = {}
    for metric in TASK_METRICS[scored.task]:
        sample = scored.sample(system, metric)
        if places is not None:
            sample = sample.only(places)
        value = figure(metric, scored.task, sample.columns, bins=params.calibration_bins)
        if math.isfinite(value):
            found[metric] = value
    return found


def _by_value(scored: Scored, column: str, params: EvaluationParams) -> dict[str, dict[str, float]]:
    values = scored.slices[column]
    found = {}
    for value in np.unique(values):
        places = np.flatnonzero(values == value)
        found[str(value)] = {"rows": len(places), **_figures(scored, "prefix", params, places)}
    return found


def _per_class(made: _Made, labels: Sequence[str]) -> dict[str, dict[str, float]]:
    confusion = confusion_matrix(made.columns["label"], made.columns["prediction"], len(labels))
    return per_class(confusion, labels)


def _samples(
    test: Examples, lines: Mapping[str, _Made], task: Task, labels: Sequence[str]
) -> list[dict[str, Any]]:
    """What a person should look at: the surest mistakes and some right answers, or texts beside their references."""
    ours = lines["prefix"].columns
    by_id = sorted(range(len(test)), key=lambda i: test.row_ids[i])
    where = {name: {row: k for k, row in enumerate(made.rows)} for name, made in lines.items()}
    if task == "generation":
        chosen = [i for i in by_id if ours["hypothesis"][i] is not None][:_SAMPLES]
        return [
            {
                "row_id": test.row_ids[i],
                "source": test.texts[i],
                "references": test.targets[i],
                "hypotheses": {
                    name: made.columns["hypothesis"][where[name][i]]
                    for name, made in lines.items()
                    if i in where[name]
                },
            }
            for i in chosen
        ]

    def name(label: int) -> str | None:
        return None if label == UNKNOWN_LABEL else labels[label]

    right = ours["label"] == ours["prediction"]
    surest = sorted((i for i in by_id if not right[i]), key=lambda i: -ours["confidence"][i])[:_SAMPLES]
    return [
        {
            "row_id": test.row_ids[i],
            "text": test.texts[i],
            "label": labels[int(ours["label"][i])],
            "right": bool(right[i]),
            "confidence": float(ours["confidence"][i]),
            "predictions": {
                system: name(int(made.columns["prediction"][where[system][i]]))
                for system, made in lines.items()
                if i in where[system]
            },
        }
        for i in [*surest, *[i for i in by_id if right[i]][:_SAMPLES]]
    ]
