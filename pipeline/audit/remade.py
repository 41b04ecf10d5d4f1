"""Two makings of one thing side by side: what is not equal, and how far figures are apart."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

DEFAULT_TOLERANCE: Mapping[str, float] = {
    "accuracy": 0.005,
    "macro_f1": 0.005,
    "calibration_error": 0.005,
    "rouge_l": 0.005,
    "bleu": 0.5,
    "chrf": 0.5,
    "loss": 0.01,
    "perplexity": 0.1,
}
"""How far a metric may be off, in its own unit, where the files are not the same to the bit. Half a hundredth of its range
where it has one; a hundredth of a nat of the loss. Rounding alone, as of another processor, moves a loss by less."""


@dataclass(frozen=True)
class Difference:
    """Something that is not what was recorded; None for what was not there."""

    what: str
    recorded: str | None
    now: str | None


@dataclass(frozen=True)
class Figure:
    """One metric of one system, as it was recorded and as it is now; None where it could not be computed."""

    system: str
    metric: str
    recorded: float | None
    now: float | None
    tolerance: float

    @property
    def within(self) -> bool:
        """Whether they are no further apart than the tolerance."""
        if self.recorded is None or self.now is None:
            return self.recorded == self.now
        # A tolerance of 0 asks for equality, any other is met by what is written the same in decimals.
        slack = 1e-12 if self.tolerance else 0.0
        return math.isclose(self.recorded, self.now, rel_tol=0.0, abs_tol=self.tolerance + slack)


def unequal(prefix: str, recorded: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[Difference, ...]:
    """The entries that differ, by name; each name with `prefix` in front."""
    return tuple(
        Difference(f"{prefix}{name}", _text(recorded.get(name)), _text(now.get(name)))
        for name in sorted(recorded.keys() | now.keys())
        if recorded.get(name) != now.get(name)
    )


def figures(
    recorded: Mapping[str, Mapping[str, float | None]],
    now: Mapping[str, Mapping[str, float | None]],
    tolerances: Mapping[str, float],
) -> tuple[Figure, ...]:
    """Every metric of the systems recorded; one that was not computed now is None there."""
    return tuple(
        Figure(system, metric, value, now.get(system, {}).get(metric), tolerances.get(metric, 0.0))
        for system, metrics in recorded.items()
        for metric, value in metrics.items()
    )


def _text(value: Any) -> str | None:
    return None if value is None else str(value)
