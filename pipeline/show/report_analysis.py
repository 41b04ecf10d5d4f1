"""What a report reads and counts, once for the page and for the PNG files alike."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import DataError
from pipeline.evaluate.scored import Scored, read
from pipeline.judge.gate import Estimate, estimates
from pipeline.params import TASK_METRICS
from pipeline.show import plots, report_rows

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from pipeline.show.report_data import ReportData

_TITLES = {
    "accuracy": "Accuracy", "macro_f1": "Macro F1", "calibration_error": "Calibration error", "loss": "Loss",
    "perplexity": "Perplexity", "bleu": "BLEU", "chrf": "chrF", "rouge_l": "ROUGE-L",
}  # fmt: skip
_DIGITS = {"bleu": 1, "chrf": 1, "perplexity": 2}


def metric_title(metric: str) -> str:
    """The metric's name as readers know it."""
    return _TITLES.get(metric, metric.replace("_", " ").capitalize())


def metric_number(metric: str, value: float | None, *, signed: bool = False) -> str:
    """A metric's figure with as many decimals as it deserves; a dash where there is none."""
    if value is None or not math.isfinite(value):
        return "–"
    return f"{value:{'+' if signed else ''}.{_DIGITS.get(metric, 3)}f}".replace("-", "−")


@dataclass(frozen=True)
class Analysis:
    """What is read and counted once, for the page and for the PNG files alike.

    Attributes:
        metrics: {metric: {system: estimate}}; without rows, figures without intervals.
        labels: class names by class number; class numbers where no names are known.
        confusion: counts [C, C + 1] of the prefix and of the base, where scored.
    """

    data: ReportData
    scored: Scored | None
    curves: Sequence[Mapping[str, Any]] | None
    metrics: Mapping[str, Mapping[str, Estimate]]
    labels: tuple[str, ...]
    confusion: Mapping[str, NDArray[np.int64]]
    bins: Mapping[str, Sequence[plots.ReliabilityBin]]

    @classmethod
    def of(cls, data: ReportData) -> Analysis:
        """Read the files of `data` and count.

        Raises:
            DataError: a file is there but cannot be read.
        """
        scored = _read_rows(data)
        classification = data.task == "classification"
        labels = _labels(data, scored) if classification else ()
        confusion = {}
        for system in ("prefix", "base"):
            if scored is not None and classification:
                matrix = report_rows.confusion(scored, system, len(labels))
                if matrix is not None:
                    confusion[system] = matrix
        bins = {}
        if scored is not None and classification:
            bins = report_rows.reliability(scored, data.evaluation.calibration_bins)
        return cls(data, scored, _read_curves(data.curves), _metrics(data), labels, confusion, bins)

    def bars(self, metric: str) -> plots.MetricBars:
        """The metric's figures, ready to be drawn."""
        bars = []
        for system, estimate in self.metrics[metric].items():
            if estimate.figure is not None:
                low, high = estimate.interval or (None, None)
                bars.append(plots.Bar(system, estimate.figure, low, high))
        return plots.MetricBars(metric, metric_title(metric), tuple(bars), _DIGITS.get(metric, 3))

    def figures(self, theme: plots.Theme) -> dict[str, Figure]:
        """{file name without ending: figure} of every picture whose data is there."""
        figures = {}
        for metric in self.metrics:
            bars = self.bars(metric)
            if bars.bars:
                figures[f"metric-{metric.replace('_', '-')}"] = plots.metric_figure(bars, theme)
        if self.curves:
            figures["loss"] = plots.loss_figure(
                self.curves, (self.data.trained or {}).get("best_step"), theme
            )
        if "prefix" in self.confusion:
            figures["confusion"] = plots.confusion_figure(self.confusion["prefix"], self.labels, theme)
        if self.bins.get("prefix"):
            figures["calibration"] = plots.reliability_figure(self.bins, theme)
        if self.scored is not None and self.data.task == "generation":
            losses = report_rows.losses_per_token(self.scored)
            if any(np.isfinite(values).any() for values in losses.values()):
                figures["loss-per-row"] = plots.loss_histogram(losses, theme)
        return figures


def _read_rows(data: ReportData) -> Scored | None:
    import pyarrow as pa

    if data.rows is None or not data.rows.exists():
        return None
    try:
        return read(data.rows, data.task)
    except pa.ArrowInvalid as error:
        raise DataError(
            [f"{data.rows}: is not a Parquet file ({error}); run the evaluation again"]
        ) from error


def _read_curves(path: Path | None) -> list[Mapping[str, Any]] | None:
    if path is None or not path.exists():
        return None
    curves = []
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        try:
            curves.append(json.loads(line))
        except ValueError as error:
            raise DataError([f"{path}:{number}: is not JSON ({error}); train again"]) from error
    return curves


def _metrics(data: ReportData) -> dict[str, dict[str, Estimate]]:
    """{metric: {system: estimate}} of the metrics that any system has, in the order of the task's metrics."""
    found: Mapping[str, Mapping[str, Estimate]]
    if data.rows is not None and data.rows.exists():
        found = estimates(data.rows, data.gate, data.task, data.evaluation)
    else:
        systems = (data.evaluated or {}).get("systems", {})
        found = {
            system: {metric: Estimate(value, None, 0) for metric, value in figures.items()}
            for system, figures in systems.items()
        }
    metrics = {}
    for metric in TASK_METRICS[data.task]:
        of = {
            system: found[system][metric] for system in plots.SYSTEM_NAMES if metric in found.get(system, {})
        }
        if any(estimate.figure is not None for estimate in of.values()):
            metrics[metric] = of
    return metrics


def _labels(data: ReportData, scored: Scored | None) -> tuple[str, ...]:
    labels = data.labels or tuple((data.evaluated or {}).get("labels") or ())
    if scored is None:
        return labels
    columns = scored.sample("prefix", "accuracy").columns
    seen = 1 + int(max(columns["label"].max(), columns["prediction"].max()))
    if labels and seen > len(labels):
        raise DataError([f"{data.rows}: has a class {seen - 1}; only {len(labels)} class names are known"])
    return labels or tuple(f"class {i + 1}" for i in range(seen))
