"""From `ReportData` to what the template shows: words, numbers and pictures. `pipeline.show.report` writes the pages."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from pipeline.errors import DataError
from pipeline.params import METRICS
from pipeline.show import plots, report_rows
from pipeline.show.report_analysis import Analysis, metric_number, metric_title
from pipeline.show.report_tables import card_tables, facts, lineage_tables, tables

if TYPE_CHECKING:
    from pipeline.show.report_data import ReportData

_SAMPLES = 8
_SUMMARIES = {
    "registered": "Version {version} was registered",
    "rejected": "Rejected by the gate: nothing was registered",
    "unchanged": "Nothing has changed since an earlier run: nothing was trained or registered",
    "failed": "The retraining failed: nothing was registered",
}


def spoken_time(created: str) -> str:
    """`2026-01-05T03:12:44+00:00` as `5 January 2026, 03:12 UTC`; text that is no such time, unchanged."""
    try:
        time = datetime.fromisoformat(created)
    except ValueError:
        return created
    zone = time.strftime("%Z") if time.tzinfo else ""
    return f"{time.day} {time.strftime('%B %Y, %H:%M')} {zone}".rstrip()


def tone_of(outcome: str) -> str:
    """The style class of an outcome's badge."""
    return {"registered": "pass", "rejected": "fail", "failed": "fail"}.get(outcome, "")


def page_of(data: ReportData, analysis: Analysis) -> dict[str, Any]:
    """Every name that report.html.j2 uses, and `sidecar`, what the index needs."""
    figures = analysis.figures(plots.PAGE)
    headline = _headline(data, analysis)
    criteria = _criteria(data)
    systems = [
        name for name in plots.SYSTEM_NAMES if any(name in found for found in analysis.metrics.values())
    ]
    matrix = analysis.confusion.get("prefix")
    classes = (
        []
        if matrix is None
        else report_rows.class_rows(matrix, analysis.labels, analysis.confusion.get("base"))
    )
    slice_metric = "accuracy" if data.task == "classification" else "loss"
    slices = report_rows.slice_rows(analysis.scored, slice_metric) if analysis.scored is not None else []
    slice_systems = list(analysis.scored.systems) if analysis.scored is not None else []
    params = data.params if data.params is not None else (data.lineage or {}).get("params")
    samples = _samples(data)

    def svg(name: str, title: str) -> Any:
        from markupsafe import Markup

        # Escaped by the XML writer; matplotlib's text and our titles cannot close it.
        return Markup(plots.inline_svg(figures[name], name, title)) if name in figures else None  # noqa: S704

    return {
        "prefix": data.prefix,
        "version": data.version,
        "task": data.task,
        "outcome": data.outcome.capitalize(),
        "tone": tone_of(data.outcome),
        "time": spoken_time(data.created),
        "summary": _summary(data),
        "tiles": _tiles(data, analysis, headline),
        "criteria": criteria,
        "verdict_summary": _verdict_summary(criteria),
        "metrics": [_metric_row(analysis, metric, systems) for metric in analysis.metrics],
        "metrics_note": _metrics_note(data, analysis, systems),
        "metric_figures": [
            {"name": metric_title(metric), "better": METRICS[metric],
             "svg": svg(f"metric-{metric.replace('_', '-')}", _metric_alt(analysis, metric))}
            for metric in analysis.metrics if f"metric-{metric.replace('_', '-')}" in figures
        ],
        "systems": [{"key": name, "name": plots.SYSTEM_NAMES[name]} for name in systems],
        "loss_svg": svg("loss", _loss_alt(analysis)),
        "curves_absent": "No loss curves were recorded.",
        "training": _training(data),
        "timings": facts("Time by step", {name: duration(seconds) for name, seconds in (data.timings or {}).items()}),
        "rows_absent": "The results per row were not recorded, so this cannot be shown.",
        "confusion_svg": svg("confusion", f"Confusion matrix of {len(analysis.labels)} classes, true class by predicted class"),
        "numbered": len(analysis.labels) > plots.LABELLED_CLASSES,
        "confused": [] if matrix is None else report_rows.most_confused(matrix, analysis.labels),
        "reliability_svg": svg("calibration", "Share of right predictions by confidence, against perfect calibration"),
        "bins": analysis.bins.get("prefix", []),
        "classes": classes,
        "base_classes": "base" in analysis.confusion,
        "samples": samples,
        "samples_absent": "No samples were recorded.",
        "histogram_svg": svg("loss-per-row", "Test rows by loss per target token, one outline per system"),
        "slices": [
            {"column": row.column, "value": row.value, "rows": row.rows,
             "scores": [metric_number(slice_metric, row.scores[name]) for name in slice_systems]}
            for row in slices
        ],
        "slice_systems": [plots.SYSTEM_NAMES[name] for name in slice_systems],
        "slice_metric": metric_title(slice_metric),
        "slice_better": METRICS[slice_metric],
        "card": card_tables(data.card or {}),
        "params": tables(params or {}, "General"),
        "lineage": lineage_tables({**(data.lineage or {}), **({"run_key": data.run_key} if data.run_key else {})}),
        "sidecar": {
            "prefix": data.prefix,
            "version": data.version,
            "outcome": data.outcome,
            "created": data.created,
            "run_key": data.run_key,
            "headline": headline,
            "criteria": None if criteria is None
            else {"passed": sum(c["passed"] for c in criteria), "total": len(criteria)},
        },
    }  # fmt: skip


def duration(seconds: float) -> str:
    """Seconds in words: `0.8 s`, `42 s`, `2 min 13 s`, `1 h 05 min`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def _headline(data: ReportData, analysis: Analysis) -> dict[str, Any] | None:
    """The one figure of a run: what is compared with the base, else the task's first metric."""
    compared = [
        c["metric"] for c in (data.verdict or {}).get("criteria", ()) if c["kind"] == "better_than_base"
    ]
    for metric in [*compared, *analysis.metrics]:
        if metric in analysis.metrics:
            figures = {system: estimate.figure for system, estimate in analysis.metrics[metric].items()}
            return {"metric": metric, **figures}
    return None


def _summary(data: ReportData) -> str:
    summary = _SUMMARIES[data.outcome].format(version=data.version or "–")
    failed = [c for c in (data.verdict or {}).get("criteria", ()) if not c["passed"]]
    if data.outcome == "registered":
        return f"{summary}: every criterion of the gate was met."
    if failed:
        return f"{summary}. {_spoken(failed[0])}"
    return f"{summary}."


def _tiles(data: ReportData, analysis: Analysis, headline: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    tiles = []
    if headline is not None:
        metric = headline["metric"]
        notes = []
        for system, words in (("base", "Frozen base"), ("champion", "Champion")):
            if headline.get(system) is not None and headline.get("prefix") is not None:
                difference = metric_number(metric, headline["prefix"] - headline[system], signed=True)
                notes.append(f"{words} {metric_number(metric, headline[system])} ({difference})")
        figure = metric_number(metric, headline.get("prefix"))
        tiles.append({"name": f"{metric_title(metric)} on test rows", "figure": figure, "notes": notes})
    if data.verdict is not None:
        criteria = data.verdict["criteria"]
        met = sum(c["passed"] for c in criteria)
        tiles.append({"name": "Criteria met", "figure": f"{met} of {len(criteria)}",
                      "notes": ["the gate’s, on test rows"]})  # fmt: skip
    trained = data.trained or {}
    if (share := _trainable_share(trained)) is not None:
        count = f"{trained['trainable_parameters']:,} beside {trained['base_parameters']:,} frozen"
        tiles.append({"name": "Trained share", "figure": share, "notes": [count]})
    if trained.get("seconds") is not None:
        steps = [f"{trained['steps']:,} optimiser steps"] if trained.get("steps") is not None else []
        tiles.append({"name": "Training time", "figure": duration(trained["seconds"]), "notes": steps})
    return tiles


def _trainable_share(trained: Mapping[str, Any]) -> str | None:
    ours, base = trained.get("trainable_parameters"), trained.get("base_parameters")
    return f"{100 * ours / base:.2g} %" if ours and base else None


def _criteria(data: ReportData) -> list[dict[str, Any]] | None:
    if data.verdict is None:
        return None
    return [criterion_row(raw) for raw in data.verdict["criteria"]]


def criterion_row(raw: Mapping[str, Any]) -> dict[str, Any]:
    """A criterion of a verdict as macros.html.j2 shows it."""
    metric, kind, threshold = raw["metric"], raw["kind"], raw["threshold"]
    name, signed = metric_title(metric), kind != "floor"
    limit = "at least" if METRICS.get(metric, "higher") == "higher" else "at most"
    titles = {
        "floor": f"{name} {limit} {threshold:g}",
        "better_than_base": f"{name} better than the frozen base",
        "not_worse_than_champion": f"{name} not worse than the champion",
    }
    asked = {"floor": "≥" if limit == "at least" else "≤", "better_than_base": ">"}.get(kind, "≥")
    low, high = raw["interval"] or (None, None)
    shown = f"{metric_number(metric, low, signed=signed)} to {metric_number(metric, high, signed=signed)}"
    return {
        "title": titles.get(kind, f"{name}: {kind.replace('_', ' ')}"),
        "where": f"where {raw['slice'].replace('=', ' is ', 1)}" if raw["slice"] else "",
        "reason": _reason(raw),
        "figure": metric_number(metric, raw["figure"], signed=signed),
        "interval": shown if raw["interval"] else "–",
        "threshold": f"{asked} {metric_number(metric, threshold, signed=signed and threshold != 0)}",
        "passed": raw["passed"],
        "drawn": _drawn(raw, shown),
    }


def _drawn(raw: Mapping[str, Any], shown: str) -> dict[str, Any] | None:
    """Places in per cent of the little picture's width, from its own lowest to its own highest value."""
    if raw["figure"] is None:
        return None
    low, high = raw["interval"] or (None, None)
    ends = [value for value in (raw["figure"], raw["threshold"], low, high) if value is not None]
    least, span = min(ends), (max(ends) - min(ends)) or 1.0

    def place(value: float | None) -> str | None:
        return None if value is None else f"{4 + 92 * (value - least) / span:.2f}"

    return {
        "figure": place(raw["figure"]), "threshold": place(raw["threshold"]), "low": place(low), "high": place(high),
        "title": f"Figure {raw['figure']:.4g}, interval {shown}, threshold {raw['threshold']:.4g}",
    }  # fmt: skip


def _verdict_summary(criteria: Sequence[Mapping[str, Any]] | None) -> str:
    met, total = sum(c["passed"] for c in criteria or ()), len(criteria or ())
    which = "All criteria were met." if met == total else f"{total - met} of {total} criteria failed."
    return (
        f"{which} Differences are turned so that higher is better; the low end of their interval counts. "
        "In the pictures: dot, the figure; bar, its interval; dashed line, the threshold. Each has its own scale."
    )


def _metric_row(analysis: Analysis, metric: str, systems: Sequence[str]) -> dict[str, Any]:
    cells = []
    for system in systems:
        estimate = analysis.metrics[metric].get(system)
        interval = ""
        if estimate is not None and estimate.interval is not None:
            interval = " to ".join(metric_number(metric, end) for end in estimate.interval)
        cells.append(
            {"value": metric_number(metric, estimate.figure if estimate else None), "interval": interval}
        )
    arrow = "↑" if METRICS[metric] == "higher" else "↓"
    return {"name": f"{metric_title(metric)}\u00a0{arrow}", "cells": cells}


def _metrics_note(data: ReportData, analysis: Analysis, systems: Sequence[str]) -> str:
    base = (
        "a linear probe on the frozen base" if data.task == "classification" else "the base without a prefix"
    )
    parts = []
    if analysis.scored is not None:
        parts.append(
            f"{len(analysis.scored.row_ids):,} test rows. The whiskers are {100 * data.gate.confidence:g} % bootstrap "
            "intervals of each figure by itself; which system is better is judged on paired rows, above."
        )
    if "base" in systems:
        parts.append(f"“Frozen base” is {base}.")
    if "champion" not in systems:
        parts.append("There is no champion: no version was in production to compare with.")
    return " ".join(parts)


def _metric_alt(analysis: Analysis, metric: str) -> str:
    bars = analysis.bars(metric).bars
    shown = [f"{plots.SYSTEM_NAMES[bar.system]} {metric_number(metric, bar.value)}" for bar in bars]
    return f"{metric_title(metric)}: {', '.join(shown)}"


def _loss_alt(analysis: Analysis) -> str:
    losses = [line["loss"] for line in analysis.curves or () if line.get("kind") == "validation"]
    finite = [loss for loss in losses if isinstance(loss, int | float) and math.isfinite(loss)]
    if not finite:
        return "Training loss and learning rate by optimiser step"
    return (
        f"Training and validation loss by optimiser step; validation from {finite[0]:.3f} to {finite[-1]:.3f}"
    )


def _training(data: ReportData) -> dict[str, Any] | None:
    trained = data.trained
    if not trained:
        return None
    stopped = {
        "epochs": "All epochs were done",
        "max_steps": "The step limit was reached",
        "patience": "Validation got no better",
    }
    rows: dict[str, Any] = {"Optimiser steps": trained.get("steps"), "Kept step": trained.get("best_step")}
    rows["Best validation loss"] = trained.get("best_validation_loss")
    accuracy = trained.get("best_validation_accuracy")
    rows["Its accuracy"] = None if accuracy is None else metric_number("accuracy", accuracy)
    rows["Stopped because"] = stopped.get(str(trained.get("stopped")), trained.get("stopped"))
    rows["Trainable parameters"] = _thousands(trained.get("trainable_parameters"))
    rows["Base parameters, frozen"] = _thousands(trained.get("base_parameters"))
    rows["Trained share"] = _trainable_share(trained)
    if trained.get("seconds") is not None:
        rows["Time"] = duration(trained["seconds"])
    rows["Started from"] = _start(trained.get("start") or {})
    before, after = trained.get("base_digest_before"), trained.get("base_digest_after")
    if before is not None and after is not None:
        rows["Base after training"] = (
            "bitwise unchanged" if before == after else "CHANGED: do not use this version"
        )
    return facts("How the training went", {key: value for key, value in rows.items() if value is not None})


def _start(start: Mapping[str, Any]) -> str | None:
    """What the prefix began with, in words; None where that was not recorded."""
    match start.get("from"):
        case "text":
            made_of = {
                "given": "the text",
                "labels": "the labels",
                "words": "frequent words",
                "examples": "examples",
            }
            return f"{made_of[start['made_of']]}: {start['text']}"
        case "random":
            own = start.get("value_scale")
            values = "" if own is None else f" (values {own:g})"
            return f"random vectors of standard deviation {start['scale']:g}{values}"
        case "version":
            return f"version {start['version']} of {start['prefix']}{_head(start)}"
        case "adapter":
            return f"the adapter in {start['adapter']}{_head(start)}"
    return None


def _head(start: Mapping[str, Any]) -> str:
    return {"continued": " and its head", "new": ", with a new head"}.get(start.get("head", ""), "")


def _thousands(value: Any) -> str | None:
    return None if value is None else f"{value:,}"


def _samples(data: ReportData) -> list[dict[str, Any]]:
    """What samples.json holds, generated texts or single predictions, at most `_SAMPLES` of a kind."""
    if data.samples is None or not data.samples.exists():
        return []
    try:
        found = json.loads(data.samples.read_bytes())
    except ValueError as error:
        raise DataError([f"{data.samples}: is not JSON ({error}); run the evaluation again"]) from error
    if data.task == "generation":
        return [
            _sample(raw["source"], raw["references"], raw["hypotheses"], "(nothing)")
            for raw in found[:_SAMPLES]
        ]
    return [
        {**_sample(raw["text"], [raw["label"]], raw["predictions"], report_rows.NO_CLASS), "right": raw["right"],
         "confidence": metric_number("accuracy", raw["confidence"])}
        for right in (False, True)
        for raw in [raw for raw in found if raw["right"] is right][:_SAMPLES]
    ]  # fmt: skip


def _sample(
    source: str, wanted: Sequence[str], made: Mapping[str, str | None], nothing: str
) -> dict[str, Any]:
    systems = [
        {"key": system, "name": name, "text": made[system] or nothing}
        for system, name in plots.SYSTEM_NAMES.items()
        if system in made
    ]
    return {"source": source, "references": wanted, "systems": systems, "right": None, "confidence": None}


def _reason(raw: Mapping[str, Any]) -> str:
    """What the columns do not say: all of it where something failed, else both sides of a comparison and the rows."""
    if not raw["passed"] or raw["figure"] is None:
        return _spoken(raw)
    metric, other = raw["metric"], "base" if raw["kind"] == "better_than_base" else "champion"
    rows = f"{raw['rows']:,} rows"
    if raw.get("ours") is None or raw.get("theirs") is None:
        return rows
    ours, theirs = (metric_number(metric, raw[side]) for side in ("ours", "theirs"))
    return f"{ours}, {other} {theirs} · {rows}"


def _spoken(raw: Mapping[str, Any]) -> str:
    """The criterion's reason as a sentence, with the metric's name as readers know it."""
    text, metric = str(raw["reason"]).strip(), str(raw["metric"])
    if text.startswith(metric):
        text = metric_title(metric) + text.removeprefix(metric)
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "!", "?")) or not text else ".")
