"""The loss curve in MLflow: live while another process trains, and whole at the end.

A point is one line of curves.jsonl: {"kind": "step" | "validation", "step": int, "seconds"?: float, figure: number}.
Its figures become the metrics `train/FIGURE` and `validation/FIGURE`. A (metric, step) is logged once, whatever is
sent again: after a resume, after a lost reply, or by the final whole curve.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from pipeline.errors import DataError, RegistryError, UnreachableError

if TYPE_CHECKING:
    from mlflow.entities import Metric

    from pipeline.register.registry import Registry

_GROUP: Mapping[str, str] = {"step": "train", "validation": "validation"}
_NOT_FIGURES = frozenset({"kind", "step", "seconds"})
_BATCH = 1000  # MLflow's limit of metrics in one request


def read_curves(path: Path) -> list[dict[str, Any]]:
    """The points of a curves.jsonl.

    Raises:
        DataError: a line is not a point; the message names it.
    """
    return [_point(line, f"{path}:{i}") for i, line in enumerate(path.read_bytes().splitlines(), start=1)]


def log_curves(registry: Registry, run_id: str, points: Iterable[Mapping[str, Any]]) -> int:
    """Log what MLflow does not have yet of a curve.

    Returns:
        How many figures were sent.

    Raises:
        UnreachableError, RegistryError: not all could be logged; calling again completes it.
    """
    return _Sender(registry, run_id).send(points)


class LiveCurves:
    """Forwards the lines of a growing curves.jsonl to MLflow from a thread, as a context manager.

    No trouble with MLflow ends the block: points are kept and tried again, and what is still missing at the end is
    for `log_curves` to complete. The file may appear late, and may be rewritten by a resumed training.

    Attributes:
        trouble: the last error, None while all is well.
    """

    def __init__(self, registry: Registry, run_id: str, path: Path, *, every: float = 2.0) -> None:
        self.trouble: UnreachableError | RegistryError | DataError | None = None
        self._sender = _Sender(registry, run_id)
        self._path = path
        self._every = every
        self._offset = 0
        self._kept: list[dict[str, Any]] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._forward, name="live-curves", daemon=True)

    @property
    def waiting(self) -> int:
        """Points read from the file that MLflow has not got."""
        return len(self._kept)

    def __enter__(self) -> LiveCurves:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def _forward(self) -> None:
        while not self._stop.wait(self._every):
            self._round()
        self._round()

    def _round(self) -> None:
        try:
            self._kept += self._new_points()
            self._sender.send(self._kept)
        except (UnreachableError, RegistryError, DataError) as error:
            self.trouble = error
        else:
            self._kept = []
            self.trouble = None

    def _new_points(self) -> list[dict[str, Any]]:
        try:
            if self._path.stat().st_size < self._offset:
                self._offset = 0  # rewritten
            with self._path.open("rb") as file:
                file.seek(self._offset)
                whole, newline, _ = file.read().rpartition(
                    b"\n"
                )  # a line being written stays for the next round
        except FileNotFoundError:
            return []
        start, self._offset = self._offset, self._offset + len(whole) + len(newline)
        return [_point(line, f"{self._path} after byte {start}") for line in whole.splitlines()]


class _Sender:
    """Turns points into metrics and sends each (metric, step) once."""

    def __init__(self, registry: Registry, run_id: str) -> None:
        self._registry = registry
        self._run_id = run_id
        self._sent: dict[str, set[int]] = {}
        self._began: int | None = None
        self._seconds = 0.0

    def send(self, points: Iterable[Mapping[str, Any]]) -> int:
        client, run_id = self._registry.client, self._run_id
        with self._registry.errors(f"logging the curve of run {run_id}"):
            if self._began is None:
                self._began = int(client.get_run(run_id).info.start_time)
            new = self._unsent(points, self._began)
            for start in range(0, len(new), _BATCH):
                batch = new[start : start + _BATCH]
                client.log_batch(run_id, metrics=batch)
                for metric in batch:
                    self._sent[metric.key].add(metric.step)
        return len(new)

    def _unsent(self, points: Iterable[Mapping[str, Any]], began: int) -> list[Metric]:
        """Metrics with a timestamp that follows from the point, so that MLflow drops a repeated request."""
        from mlflow.entities import Metric

        new: dict[tuple[str, int], Metric] = {}
        for point in points:
            self._seconds = float(point.get("seconds", self._seconds))
            for figure, value in point.items():
                if figure in _NOT_FIGURES or not isinstance(value, int | float):
                    continue
                key, step = f"{_GROUP[point['kind']]}/{figure}", int(point["step"])
                if step not in self._known_steps(key):
                    new.setdefault(
                        (key, step), Metric(key, float(value), began + int(self._seconds * 1000), step)
                    )
        return list(new.values())

    def _known_steps(self, key: str) -> set[int]:
        if key not in self._sent:
            history = self._registry.client.get_metric_history(self._run_id, key)
            self._sent[key] = {metric.step for metric in history}
        return self._sent[key]


def _point(line: bytes, where: str) -> dict[str, Any]:
    try:
        point = json.loads(line)
    except ValueError as error:
        raise DataError([f"{where}: is not JSON ({error})"]) from None
    if (
        not isinstance(point, dict)
        or point.get("kind") not in _GROUP
        or not isinstance(point.get("step"), int)
    ):
        raise DataError([f"{where}: got {line[:80]!r}; expected a curve point with kind and step"])
    return point
