"""Where a retraining's page and pictures lie in the workspace: reports/NAME/RUN_KEY.html, and reports/index.html."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from pipeline.show import report
from pipeline.show.report_data import ReportData

REPORTS = "reports"
EXAMPLES = 3


@dataclass(frozen=True)
class Page:
    """The page, and the folder of its pictures as PNG files."""

    html: Path
    plots: Path


def page_path(root: Path, name: str, run_key: str) -> Path:
    """Where the page of a retraining lies."""
    return root / REPORTS / name / f"{run_key[:12]}.html"


def write(root: Path, data: ReportData) -> Page:
    """Write the page and the pictures of one retraining, and the index of all."""
    assert data.run_key is not None
    html = page_path(root, data.prefix, data.run_key)
    plots = html.with_suffix("") / "plots"
    report.write_report(data, html, plots_folder=plots)
    report.write_index(root / REPORTS)
    return Page(html, plots)


def example_texts(samples: Path) -> list[str]:
    """A few inputs, for the registered model's example."""
    content = json.loads(samples.read_text(encoding="utf-8"))
    rows = content if isinstance(content, list) else [row for group in content.values() for row in group]
    return [str(row.get("text") or row.get("source")) for row in rows[:EXAMPLES]]
