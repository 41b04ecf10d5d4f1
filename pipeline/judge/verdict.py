"""The gate's answer, criterion by criterion, with the figures.

Laws (tested): `Verdict.from_json(verdict.to_json()) == verdict`, also after the trip through JSON text; a verdict
passes exactly when it has criteria and all of them passed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

from pipeline.errors import DataError

Kind = Literal["floor", "better_than_base", "not_worse_than_champion"]

TABLE_HEADER = ("criterion", "metric", "slice", "figure", "interval", "asked for", "rows", "result")
"""The columns of `table`."""


@dataclass(frozen=True)
class Criterion:
    """One thing that was asked, and what was found.

    Attributes:
        kind: against a fixed number, the frozen base, or the version in production.
        metric: a key of `pipeline.params.METRICS`.
        slice: "column=value", or None for all rows.
        figure: for a floor the metric itself; for a comparison ours − theirs, turned so that higher is better.
            None where it is not a number or nothing could be compared.
        interval: (low, high) of `figure` by the bootstrap; None where there is none.
        threshold: a floor is met at or above it (at or below for metrics where lower is better); the low end of a
            comparison's interval must be above it (base), or at or above it (champion, where it is −margin).
        passed: whether it was met.
        reason: one sentence in plain words.
        rows: how many rows were judged.
        ours: the metric of the prefix on these rows.
        theirs: the metric of the other system on the same rows.
    """

    kind: Kind
    metric: str
    slice: str | None
    figure: float | None
    interval: tuple[float, float] | None
    threshold: float
    passed: bool
    reason: str
    rows: int
    ours: float | None = None
    theirs: float | None = None

    def __post_init__(self) -> None:
        numbers = [self.figure, *(self.interval or ()), self.threshold, self.ours, self.theirs]
        if any(number is not None and not math.isfinite(number) for number in numbers):
            raise ValueError(
                f"{self.kind} {self.metric}: a criterion holds only finite figures; got {numbers}"
            )


@dataclass(frozen=True)
class Verdict:
    """Whether a version may be registered, and why.

    A gate without criteria lets nothing through: its verdict has no criteria and has not passed.
    """

    passed: bool
    criteria: tuple[Criterion, ...]

    def __post_init__(self) -> None:
        expected = bool(self.criteria) and all(criterion.passed for criterion in self.criteria)
        if self.passed != expected:
            raise ValueError(
                f"passed is {self.passed}; its {len(self.criteria)} criteria make it {expected}"
                " (a verdict passes when it has criteria and all of them passed)"
            )

    @classmethod
    def of(cls, criteria: tuple[Criterion, ...]) -> Verdict:
        """The verdict these criteria make."""
        return cls(bool(criteria) and all(criterion.passed for criterion in criteria), criteria)

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why it failed, one sentence for each failed criterion; empty when it passed."""
        if not self.criteria:
            return ("the gate has no criteria: name at least one under `gate` in params.yaml",)
        return tuple(criterion.reason for criterion in self.criteria if not criterion.passed)

    def to_json(self) -> dict[str, Any]:
        """Plain objects for `json.dumps`."""
        criteria = [asdict(criterion) for criterion in self.criteria]
        for criterion in criteria:
            criterion["interval"] = list(criterion["interval"]) if criterion["interval"] else None
        return {"passed": self.passed, "criteria": criteria}

    @classmethod
    def from_json(cls, value: Any) -> Verdict:
        """The verdict `to_json` gave.

        Raises:
            DataError: `value` is not one, or contradicts itself.
        """
        problems: list[str] = []
        criteria: list[Criterion] = []
        if not isinstance(value, Mapping) or value.keys() != {"passed", "criteria"}:
            raise DataError(
                [f"got {_shown(value)}; expected an object with passed and criteria"], heading=_HEADING
            )
        if not isinstance(value["criteria"], list) or not isinstance(value["passed"], bool):
            raise DataError(["passed must be true or false, and criteria a list"], heading=_HEADING)
        for i, raw in enumerate(value["criteria"]):
            fault = _fault(raw)
            if fault:
                problems.append(f"criteria.{i}: {fault}")
            else:
                criteria.append(_criterion(raw))
        if problems:
            raise DataError(problems, heading=_HEADING)
        try:
            return cls(value["passed"], tuple(criteria))
        except ValueError as error:
            raise DataError([str(error)], heading=_HEADING) from None


def table(verdict: Verdict) -> list[tuple[str, ...]]:
    """One line of cells (see `TABLE_HEADER`) per criterion, for a terminal, Markdown or HTML table."""
    return [
        (
            criterion.kind.replace("_", " "),
            criterion.metric,
            criterion.slice or "all rows",
            _cell(criterion.figure, signed=criterion.kind != "floor"),
            " to ".join(_cell(end, signed=criterion.kind != "floor") for end in criterion.interval or ())
            or "–",
            number(criterion.threshold),
            f"{criterion.rows:,}",
            "passed" if criterion.passed else "FAILED",
        )
        for criterion in verdict.criteria
    ]


def number(value: float) -> str:
    """Four significant digits, without an exponent where there need be none."""
    return f"{value:.4g}"


_HEADING = "this is not a verdict:"


def _cell(value: float | None, *, signed: bool) -> str:
    return "–" if value is None else f"{value:+.4g}" if signed else number(value)


def _shown(value: Any) -> str:
    return f"the keys {', '.join(map(str, value))}" if isinstance(value, Mapping) else type(value).__name__


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _fault(raw: Any) -> str | None:
    """What is wrong with one criterion's JSON, or None."""
    expected = {field.name for field in fields(Criterion)}
    if not isinstance(raw, Mapping) or raw.keys() != expected:
        return f"got {_shown(raw)}; expected the keys {', '.join(sorted(expected))}"
    interval = raw["interval"]
    checks = {
        "kind": raw["kind"] in get_args(Kind),
        "metric": isinstance(raw["metric"], str),
        "slice": raw["slice"] is None or isinstance(raw["slice"], str),
        "interval": interval is None
        or (isinstance(interval, list) and len(interval) == 2 and all(map(_is_number, interval))),
        "threshold": _is_number(raw["threshold"]),
        "passed": isinstance(raw["passed"], bool),
        "reason": isinstance(raw["reason"], str),
        "rows": isinstance(raw["rows"], int) and not isinstance(raw["rows"], bool) and raw["rows"] >= 0,
    }
    checks |= {name: raw[name] is None or _is_number(raw[name]) for name in ("figure", "ours", "theirs")}
    wrong = [f"{name} is {raw[name]!r}" for name, fine in checks.items() if not fine]
    return "; ".join(wrong) or None


def _criterion(raw: Mapping[str, Any]) -> Criterion:
    interval = raw["interval"]
    return Criterion(**{**raw, "interval": tuple(interval) if interval is not None else None})
