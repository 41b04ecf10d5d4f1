"""The report's pictures: drawn once with matplotlib, shown as themed inline SVG or saved as PNG.

Figures are made with matplotlib's object-oriented API; pyplot and its global list of figures are not used.
Every colour is a role of a `Theme`. `LIGHT` holds real colours, for PNG files. `PAGE` holds placeholders that
`inline_svg` turns into the page's CSS variables, so one picture follows the reader's light or dark setting.
"""

from __future__ import annotations

import io
import math
import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Matrix = npt.NDArray[np.int64]

WIDTH = 4.6
"""Inches of every figure: its 10 pt text then reads in half a desktop page and at the width of a phone."""

_TITLE_LINE = 48
"""Characters of a title that fit on one line of that width."""

LABELLED_CLASSES = 20
"""Confusion matrices up to this size carry class names; larger ones carry class numbers."""

NUMBERED_CELLS = 10
"""Confusion matrices up to this size carry the counts in their cells."""

HEAT = (75, 123, 229)
"""Red, green and blue of the heat map, laid over the page with more or less opacity."""

STRONGEST = 0.8
"""Opacity of a full cell of the heat map: the text in it stays readable on light and on dark (WCAG AA)."""

SMALL_BIN = 0.005
"""Share of the rows from which a bin of confidence is drawn as a point."""


@dataclass(frozen=True)
class Theme:
    """Colours by role, each `#rrggbb`."""

    ink: str
    muted: str
    line: str
    surface: str
    prefix: str
    base: str
    champion: str

    def of(self, system: str) -> str:
        """The colour of a system: prefix, base or champion."""
        return {"prefix": self.prefix, "champion": self.champion}.get(system, self.base)


LIGHT = Theme("#1b2027", "#5a6472", "#d9dee5", "#ffffff", "#2f5fd0", "#7d8896", "#b3711a")
PAGE = Theme("#0a0b01", "#0a0b02", "#0a0b03", "#0a0b04", "#0a0b05", "#0a0b06", "#0a0b07")
_VARIABLES = {getattr(PAGE, role): f"var(--{role})" for role in Theme.__dataclass_fields__}

SYSTEM_NAMES: Mapping[str, str] = {"prefix": "This prefix", "base": "Frozen base", "champion": "Champion"}


@dataclass(frozen=True)
class Bar:
    """One system's value of a metric; `low` and `high` bound its interval, or are None."""

    system: str
    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class MetricBars:
    """One metric of every system that has it."""

    metric: str
    name: str
    bars: tuple[Bar, ...]
    digits: int = 3


@dataclass(frozen=True)
class ReliabilityBin:
    """Rows whose confidence fell into one bin: their mean confidence and the share that was right."""

    confidence: float
    accuracy: float
    rows: int


def metric_figure(metric: MetricBars, theme: Theme = LIGHT) -> Figure:
    """Horizontal bars of one metric from zero, a whisker for each interval, the value in words at the end."""
    figure, axes = _figure(0.4 + 0.36 * len(metric.bars), theme)
    reach = max([0.0, *(_end(bar) for bar in metric.bars)]) or 1.0
    lowest = min([0.0, *(bar.value if bar.low is None else bar.low for bar in metric.bars)])
    for i, bar in enumerate(metric.bars):
        axes.barh(i, bar.value, height=0.6, color=theme.of(bar.system), linewidth=0)
        if bar.low is not None and bar.high is not None:
            axes.plot([bar.low, bar.high], [i, i], color=theme.ink, linewidth=1.6, solid_capstyle="butt")
            for end in (bar.low, bar.high):
                axes.plot([end, end], [i - 0.16, i + 0.16], color=theme.ink, linewidth=1.6)
        axes.annotate(
            f"{bar.value:.{metric.digits}f}",
            (max(_end(bar), 0.0), i),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            color=theme.ink,
            fontweight="bold" if bar.system == "prefix" else "normal",
        )
    _headed(figure, metric.name, theme)
    axes.set_yticks(
        range(len(metric.bars)), [SYSTEM_NAMES.get(bar.system, bar.system) for bar in metric.bars]
    )
    axes.set_ylim(len(metric.bars) - 0.5, -0.5)
    axes.set_xlim(lowest * 1.05, reach * 1.2)
    axes.tick_params(axis="y", length=0, labelcolor=theme.ink)
    axes.grid(axis="y", visible=False)
    axes.spines["bottom"].set_visible(False)
    axes.xaxis.get_major_locator().set_params(nbins=5)
    return figure


def difference_figure(metric: MetricBars, theme: Theme = LIGHT) -> Figure:
    """Points with their intervals to either side of zero, which is drawn: how much each system differs from one.

    The value is written at the right edge, signed. A bar without an interval is a point alone.
    """
    figure, axes = _figure(0.4 + 0.36 * len(metric.bars), theme)
    ends = [end for bar in metric.bars for end in (bar.low, bar.value, bar.high) if end is not None]
    lowest, highest = min([0.0, *ends]), max([0.0, *ends])
    reach = highest - lowest or 1.0
    axes.axvline(0, color=theme.ink, linewidth=1.2, linestyle=(0, (4, 3)))
    for i, bar in enumerate(metric.bars):
        colour = theme.of(bar.system)
        if bar.low is not None and bar.high is not None:
            axes.plot([bar.low, bar.high], [i, i], color=colour, linewidth=3.2, solid_capstyle="butt")
        axes.plot([bar.value], [i], color=colour, marker="o", markersize=8, markeredgecolor=theme.ink)
        axes.annotate(
            f"{bar.value:+.{metric.digits}f}".replace("-", "−"),
            (1.0, i),
            xycoords=("axes fraction", "data"),
            ha="right",
            va="center",
            color=theme.ink,
        )
    _headed(figure, metric.name, theme)
    axes.set_yticks(
        range(len(metric.bars)), [SYSTEM_NAMES.get(bar.system, bar.system) for bar in metric.bars]
    )
    axes.set_ylim(len(metric.bars) - 0.5, -0.5)
    axes.set_xlim(lowest - 0.05 * reach, highest + 0.35 * reach)
    axes.tick_params(axis="y", length=0, labelcolor=theme.ink)
    axes.grid(axis="y", visible=False)
    axes.xaxis.get_major_locator().set_params(nbins=5)
    return figure


def loss_figure(curves: Sequence[Mapping[str, Any]], best_step: int | None, theme: Theme = LIGHT) -> Figure:
    """Training and validation loss over steps, the learning rate below. Non-finite values leave a gap."""
    figure, (axes, rate) = _figure(3.3, theme, rows=2, heights=(3, 1))
    steps = [line for line in curves if line.get("kind") == "step"]
    validations = [line for line in curves if line.get("kind") == "validation"]
    x, y = _series(steps, "loss")
    many = len(x) > 60
    axes.plot(
        x, y, color=theme.base, linewidth=1.0, alpha=0.55 if many else 1.0, label=None if many else "Training"
    )
    if many:
        axes.plot(x, _smooth(y), color=theme.base, linewidth=1.8, label="Training (smoothed)")
    at, losses = _series(validations, "loss")
    axes.plot(at, losses, color=theme.prefix, linewidth=1.8, marker="o", markersize=4.5, label="Validation")
    if best_step is not None and best_step in at:
        best = losses[list(at).index(best_step)]
        axes.plot([best_step], [best], marker="o", markersize=10, markerfacecolor="none", color=theme.prefix,
                  linestyle="none", markeredgewidth=1.6, label=f"Kept: step {best_step}")  # fmt: skip
    axes.set_ylabel("Loss (nats)")
    axes.legend(frameon=False, labelcolor=theme.ink, loc="upper right", handlelength=1.6)
    axes.tick_params(labelbottom=False)
    rate_x, rates = _series(steps, "learning_rate")
    rate.plot(rate_x, rates, color=theme.champion, linewidth=1.6)
    rate.set_ylim(bottom=0)
    rate.set_ylabel("Learning\nrate")
    rate.set_xlabel("Optimiser step")
    rate.sharex(axes)
    rate.yaxis.get_major_locator().set_params(nbins=3)
    return figure


def confusion_figure(matrix: Matrix, labels: Sequence[str], theme: Theme = LIGHT) -> Figure:
    """A heat map, lines the true class, columns the predicted one, shades the share of the line.

    Args:
        matrix: counts [classes, classes + 1]; the last column, predictions of no known class, is not drawn but
            counts as a part of its line.
        labels: the names of the classes.
    """
    classes = len(labels)
    figure, axes = _figure(WIDTH * 0.92, theme, grid=False)
    shares = (matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1))[:, :classes]
    picture = np.empty((classes, classes, 4), dtype=np.uint8)
    picture[..., :3] = HEAT
    # The square root lets confusions of a few per cent be seen beside the diagonal.
    picture[..., 3] = np.round(np.sqrt(shares) * STRONGEST * 255)
    axes.imshow(picture, interpolation="none", aspect="equal")
    if classes <= LABELLED_CLASSES:
        names = [shorten(label) for label in labels]
        axes.set_xticks(
            range(classes), names, rotation=40, ha="right", rotation_mode="anchor", parse_math=False
        )
        axes.set_yticks(range(classes), names, parse_math=False)
    else:
        every = 5 * math.ceil(classes / 60)
        ticks = range(0, classes, every)
        axes.set_xticks(ticks, [str(tick + 1) for tick in ticks])
        axes.set_yticks(ticks, [str(tick + 1) for tick in ticks])
    if classes <= NUMBERED_CELLS:
        for row, column in np.argwhere(matrix[:, :classes] > 0):
            axes.text(
                column, row, str(matrix[row, column]), ha="center", va="center", color=theme.ink, fontsize=9
            )
    axes.set_xlabel("Predicted")
    axes.set_ylabel("True")
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(True)
    return figure


def reliability_figure(systems: Mapping[str, Sequence[ReliabilityBin]], theme: Theme = LIGHT) -> Figure:
    """Share right against confidence, per bin of each system, with the diagonal of perfect calibration.

    Bins with less than `SMALL_BIN` of a system's rows are left out of its line: they say little and jump a lot.
    """
    figure, (axes, counts) = _figure(4.2, theme, rows=2, heights=(3.2, 1))
    axes.plot([0, 1], [0, 1], color=theme.muted, linewidth=1.2, linestyle=(0, (4, 3)))
    for system, bins in reversed(list(systems.items())):
        total = sum(b.rows for b in bins)
        drawn = [b for b in bins if b.rows >= SMALL_BIN * total]
        axes.plot(
            [b.confidence for b in drawn],
            [b.accuracy for b in drawn],
            color=theme.of(system),
            marker="o",
            markersize=4.5,
            linewidth=1.8 if system == "prefix" else 1.2,
            label=SYSTEM_NAMES.get(system, system),
        )
    handles, names = axes.get_legend_handles_labels()
    figure.legend(
        handles[::-1], names[::-1], loc="outside upper left", ncols=3, frameon=False, labelcolor=theme.ink,
        handlelength=1.4, columnspacing=1.4, fontsize=10,
    )  # fmt: skip
    ours = systems.get("prefix", ())
    width = 0.8 / max(len(ours), 8)
    counts.bar(
        [b.confidence for b in ours], [b.rows for b in ours], width=width, color=theme.prefix, linewidth=0
    )
    axes.set_ylim(-0.02, 1.02)
    axes.set_ylabel("Share right")
    axes.tick_params(labelbottom=False)
    counts.set_xlabel("Confidence")
    counts.set_ylabel("Rows")
    counts.sharex(axes)
    counts.set_xlim(0, 1.02)
    counts.yaxis.get_major_locator().set_params(nbins=3, integer=True)
    return figure


def loss_histogram(losses: Mapping[str, npt.NDArray[np.float64]], theme: Theme = LIGHT) -> Figure:
    """How many test rows lie at which loss per target token, one outline per system."""
    figure, axes = _figure(2.6, theme)
    everything = np.concatenate([values[np.isfinite(values)] for values in losses.values()])
    low, high = (float(np.quantile(everything, q)) for q in (0.0, 0.995))
    edges = np.linspace(low, high if high > low else low + 1.0, 41)
    for system, values in reversed(list(losses.items())):
        heights, _ = np.histogram(np.clip(values[np.isfinite(values)], edges[0], edges[-1]), edges)
        colour = theme.of(system)
        axes.stairs(heights, edges, color=colour, linewidth=1.6, label=SYSTEM_NAMES.get(system, system))
        axes.stairs(heights, edges, color=colour, alpha=0.15, fill=True)
    axes.set_xlabel("Loss per target token (nats)")
    axes.set_ylabel("Rows")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, labelcolor=theme.ink, handlelength=1.6)
    return figure


def shorten(text: str, limit: int = 16) -> str:
    """`text` on one line, at most `limit` characters, an ellipsis for what was cut."""
    flat = " ".join(text.split()) or "(empty)"
    return flat if len(flat) <= limit else flat[: limit - 1] + "…"


def png(figure: Figure) -> bytes:
    """The figure as a PNG file's bytes, 160 dots per inch, with no time or tool version in it."""
    buffer = io.BytesIO()
    with _quiet_fonts():
        figure.savefig(buffer, format="png", dpi=160, metadata={"Software": None})
    return buffer.getvalue()


def inline_svg(figure: Figure, name: str, title: str) -> str:
    """The figure as an `<svg>` element to put into a page.

    Text stays text, colours of `PAGE` become `var(--role)`, and ids begin with `name`, because several
    pictures share one page. Equal figures give equal strings.

    Args:
        figure: drawn with the theme `PAGE`.
        name: unique in the page.
        title: what the picture says, for those who cannot see it.
    """
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}), _quiet_fonts():
        figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    root = ElementTree.fromstring(buffer.getvalue())  # noqa: S314  (written by matplotlib two lines above)
    for parent in list(root.iter()):
        for child in [c for c in parent if c.tag.endswith("}metadata") or c.tag.endswith("}style")]:
            parent.remove(child)
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        element.attrib = {
            key.rpartition("}")[2]: _themed(value, name, key.rpartition("}")[2])
            for key, value in element.items()
        }
    _, _, width, height = root.attrib["viewBox"].split()
    root.attrib |= {"role": "img", "aria-labelledby": f"{name}-title", "width": width, "height": height}
    root.attrib.pop("version", None)
    heading = ElementTree.Element("title", {"id": f"{name}-title"})
    heading.text = title
    root.insert(0, heading)
    return ElementTree.tostring(root, encoding="unicode")


def _themed(value: str, name: str, attribute: str) -> str:
    if attribute == "id":
        return f"{name}-{value}"
    if attribute == "href":
        return f"#{name}-{value[1:]}" if value.startswith("#") else value
    value = value.replace("url(#", f"url(#{name}-")
    if attribute in ("style", "fill", "stroke"):
        # The page's own font; matplotlib only laid the text out with DejaVu Sans, which is wider.
        value = re.sub(r"font: ((?:\w+ )*?)([\d.]+px) [^;]+", r"font: \1\2 var(--sans)", value)
        for colour, variable in _VARIABLES.items():
            value = value.replace(colour, variable)
    return value


def _figure(
    height: float, theme: Theme, *, rows: int = 1, heights: Sequence[float] = (1,), grid: bool = True
) -> tuple[Figure, Any]:
    """A figure of `WIDTH` by `height` inches with `rows` axes below each other, styled."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    FigureCanvasAgg(figure)
    figure.patch.set_facecolor(theme.surface)
    if theme is PAGE:
        figure.patch.set_alpha(0.0)
    axes = figure.subplots(rows, 1, height_ratios=heights)
    for one in np.atleast_1d(axes):
        _style(one, theme, grid=grid)
    return figure, axes


def _headed(figure: Figure, text: str, theme: Theme) -> None:
    """`text` above the picture, from its left edge, on as many lines as its width asks for; a page has a caption of its own."""
    if theme is PAGE:
        return
    lines = textwrap.wrap(text, _TITLE_LINE)
    figure.set_figheight(figure.get_figheight() + 0.2 * (len(lines) - 1))
    figure.suptitle("\n".join(lines), x=0.01, ha="left", color=theme.ink)


def _style(axes: Axes, theme: Theme, *, grid: bool) -> None:
    axes.set_facecolor("none")
    for spine in axes.spines.values():
        spine.set_color(theme.line)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.tick_params(colors=theme.line, labelcolor=theme.muted, labelsize=9.5)
    axes.xaxis.label.set_color(theme.muted)
    axes.yaxis.label.set_color(theme.muted)
    if grid:
        axes.grid(color=theme.line, linewidth=0.8)
    axes.set_axisbelow(True)


def _end(bar: Bar) -> float:
    return bar.value if bar.high is None else max(bar.high, bar.value)


def _series(lines: Sequence[Mapping[str, Any]], key: str) -> tuple[list[int], npt.NDArray[np.float64]]:
    """Steps and values of the lines that have `key`; what is not a finite number becomes a gap."""
    points = [(int(line["step"]), line.get(key)) for line in lines if line.get("step") is not None]
    values = [float(value) if isinstance(value, (int, float)) else math.nan for _, value in points]
    values = [value if math.isfinite(value) else math.nan for value in values]
    return [step for step, _ in points], np.array(values, dtype=np.float64)


def _smooth(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """A centred mean over about a thirtieth of the points, gaps left out."""
    half = max(1, len(values) // 60)
    finite = np.isfinite(values)
    kernel = np.ones(2 * half + 1)
    total = np.convolve(np.where(finite, values, 0.0), kernel)[half:-half]
    count = np.convolve(finite.astype(np.float64), kernel)[half:-half]
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _quiet_fonts() -> Any:
    """Class names may be in any script: a glyph the PNG's font lacks shows as a box, without a warning for each."""
    import warnings

    return warnings.catch_warnings(action="ignore", category=UserWarning)
