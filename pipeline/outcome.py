"""What a retraining came to: one value for the command line, Prefect, MLflow and the pages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from pipeline.judge.verdict import TABLE_HEADER, Verdict, table


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The result of one retraining.

    Attributes:
        outcome: `unchanged` when data, base, parameters and code are those of an earlier retraining.
        version: the registered version; None where the gate rejected.
        run_key: identity of the retraining, 64 hex characters.
        dataset: {md5, rows, git_commit} of the dataset version.
        metrics: {system: {metric: value}} on the test split.
        verdict: `Verdict.to_json()`.
        runs: {mlflow, prefect} run ids; of the retraining that computed it.
        experiment: the DVC experiment's commit.
        seconds: {prepare, train, evaluate: seconds computed, total: of the whole retraining until registration}.
        earlier: what came of it the first time, where this is `unchanged`.
        report: path of the page.
    """

    prefix: str
    outcome: Literal["registered", "unchanged", "rejected"]
    version: str | None
    run_key: str
    dataset: Mapping[str, Any]
    metrics: Mapping[str, Mapping[str, float | None]]
    verdict: Mapping[str, Any]
    runs: Mapping[str, str | None]
    experiment: str
    seconds: Mapping[str, float]
    earlier: Literal["registered", "rejected"] | None = None
    report: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; `Outcome(**value)` gives back an equal one."""
        return asdict(self)

    @property
    def headline(self) -> str:
        """One sentence."""
        if self.outcome == "registered":
            return f"{self.prefix} version {self.version} is registered as candidate"
        if self.outcome == "rejected":
            failed = sum(not criterion["passed"] for criterion in self.verdict["criteria"])
            return f"{self.prefix} was rejected by the gate: {failed} of its criteria failed; nothing was registered"
        before = f"version {self.version}" if self.earlier == "registered" else "a rejection by the gate"
        return (
            f"{self.prefix} is unchanged: data, base model, parameters and code are those of {before}; "
            "nothing was trained or registered"
        )


def markdown(outcome: Outcome) -> str:
    """The outcome as Prefect shows it."""
    verdict = Verdict.from_json(outcome.verdict)
    lines = [
        f"# {outcome.headline}",
        "",
        f"- dataset: {outcome.dataset['rows']:,} rows, md5 `{outcome.dataset['md5']}`",
        f"- run key: `{outcome.run_key}`",
        f"- MLflow run: `{outcome.runs['mlflow']}`",
        f"- experiment: `{outcome.experiment}`",
        f"- report: `{outcome.report or 'none'}`",
        "",
        f"| {' | '.join(TABLE_HEADER)} |",
        f"|{' --- |' * len(TABLE_HEADER)}",
        *(f"| {' | '.join(cells)} |" for cells in table(verdict)),
    ]
    return "\n".join(lines) + "\n"
