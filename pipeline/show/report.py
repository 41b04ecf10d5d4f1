"""One self-contained page per retraining, and an index of them.

A page loads nothing: pictures are inline SVG, and its content security policy forbids every connection and
every script but its own. All text is escaped. Equal data gives equal bytes.

    write_report(data, folder / "docstrings-3.html")   the page, and docstrings-3.report.json beside it
    write_plots(data, folder / "plots")                the pictures as PNG files
    write_index(folder)                                index.html over all *.report.json below `folder`
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

from pipeline.errors import DataError
from pipeline.files import write_bytes, write_json
from pipeline.show import plots
from pipeline.show.counted import counted
from pipeline.show.report_analysis import Analysis, metric_number, metric_title
from pipeline.show.report_data import ReportData
from pipeline.show.report_view import page_of, spoken_time, tone_of

SIDECAR = ".report.json"
"""What the small JSON file beside each page ends in."""


def write_report(data: ReportData, path: Path, *, plots_folder: Path | None = None) -> Path:
    """Write the page to `path` (ending in .html) and its sidecar for the index beside it.

    Args:
        plots_folder: also do `write_plots` there; the intervals are then drawn only once.

    Returns:
        `path`.

    Raises:
        DataError: rows, curves or samples are there but cannot be read.
    """
    analysis = Analysis.of(data)
    page = page_of(data, analysis)
    write_bytes(path, render("report.html.j2", page).encode())
    write_json(path.with_name(path.stem + SIDECAR), {"page": path.name, **page["sidecar"]})
    if plots_folder is not None:
        _save_plots(analysis, plots_folder)
    return path


def write_plots(data: ReportData, folder: Path) -> list[Path]:
    """Write the page's pictures as light PNG files, for artefact stores that show pictures.

    Returns:
        The files, sorted; only pictures whose data is there.

    Raises:
        DataError: rows or curves are there but cannot be read.
    """
    return _save_plots(Analysis.of(data), folder)


def _save_plots(analysis: Analysis, folder: Path) -> list[Path]:
    written = []
    for name, figure in analysis.figures(plots.LIGHT).items():
        write_bytes(folder / f"{name}.png", plots.png(figure))
        written.append(folder / f"{name}.png")
    return sorted(written)


def write_index(folder: Path) -> Path:
    """Write `folder`/index.html, a table of every report below `folder`, the newest first.

    A sidecar that cannot be read, or whose page is gone, is named on the page; the others are listed.

    Returns:
        The path of the index.
    """
    runs, problems = [], []
    for path in sorted(folder.rglob(f"*{SIDECAR}")):
        name = path.relative_to(folder).as_posix()
        try:
            run = _index_row(path, folder)
        except DataError as error:
            problems += [f"{name}: {problem}" for problem in error.problems]
        else:
            runs.append(run)
    runs.sort(key=lambda run: (run["created"], run["link"]), reverse=True)
    prefixes = len({run["prefix"] for run in runs})
    summary = f"{counted(len(runs), 'report')} of {counted(prefixes, 'prefix', 'prefixes')}"
    page = {"runs": runs, "problems": problems, "summary": summary}
    index = folder / "index.html"
    write_bytes(index, render("index.html.j2", page).encode())
    return index


def _index_row(path: Path, folder: Path) -> dict[str, Any]:
    try:
        sidecar = json.loads(path.read_bytes())
    except ValueError as error:
        raise DataError([f"is not JSON ({error}); write the report again"]) from error
    expected = {"page", "prefix", "version", "outcome", "created", "headline", "criteria"}
    if not isinstance(sidecar, dict) or (missing := expected - sidecar.keys()):
        lacking = ", ".join(sorted(missing)) if isinstance(sidecar, dict) else "everything"
        raise DataError([f"lacks {lacking}; write the report again"])
    page = path.parent / str(sidecar["page"])
    if page.name != sidecar["page"] or not page.is_file():
        raise DataError([f"its page {str(sidecar['page'])!r} is not beside it; write the report again"])
    headline, criteria = sidecar["headline"] or {}, sidecar["criteria"] or {}
    metric, total = headline.get("metric"), criteria.get("total")
    return {
        "prefix": sidecar["prefix"],
        "version": sidecar["version"],
        "created": sidecar["created"],
        "time": spoken_time(sidecar["created"]),
        "outcome": str(sidecar["outcome"]).capitalize(),
        "tone": tone_of(sidecar["outcome"]),
        "link": quote(page.relative_to(folder).as_posix()),
        "criteria": f"{criteria['passed']} of {total}" if total else "–",
        "passed_share": criteria["passed"] / total if total else "",
        "metric": metric_title(metric) if metric else "–",
        "ours": metric_number(metric, headline.get("prefix")) if metric else "–",
        "base": metric_number(metric, headline.get("base")) if metric else "–",
    }


def render(template: str, page: Mapping[str, Any]) -> str:
    """The page that `template` makes of `page`, with its script and that script's digest."""
    from markupsafe import Markup

    environment = _environment()
    script = (Path(__file__).parents[1] / "templates" / "page.js").read_text()
    sha256 = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    # The script is a file of this package, and holds nothing of the page's data.
    trusted = Markup(script)  # noqa: S704
    return str(
        environment.get_template(template).render(**page, script=trusted, script_hash=f"sha256-{sha256}")
    )


@cache
def _environment() -> Any:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parents[1] / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["soft"] = _soft
    return environment


def _soft(text: str) -> Any:
    """`text`, escaped, with places where a narrow table may break a name: after `_`, `/`, `.` and `-`."""
    from markupsafe import Markup, escape

    return Markup(re.sub(r"([_/.-])(?=\w)", r"\1<wbr>", str(escape(text))))  # noqa: S704  (escaped here)
