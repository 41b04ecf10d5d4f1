"""The curve in MLflow is live, whole at the end, and has every (metric, step) once."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import DataError, RegistryError, UnreachableError
from pipeline.register.curves import LiveCurves, log_curves, read_curves
from pipeline.register.registry import Registry, start_run
from tests import mlflow_world


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return mlflow_world.database(tmp_path)


@pytest.fixture
def run_id(registry: Registry) -> str:
    return start_run(registry, "reviews", "1" * 64, params={})


def points(first: int, last: int) -> list[dict[str, Any]]:
    made: list[dict[str, Any]] = []
    for step in range(first, last + 1):
        made.append({"kind": "step", "step": step, "epoch": 0, "loss": 2.0 / step, "seconds": step / 10})
        if step % 5 == 0:
            made.append({"kind": "validation", "step": step, "epoch": 0, "loss": 1.0 / step, "accuracy": 0.5})
    return made


def append(path: Path, new: list[dict[str, Any]]) -> None:
    with path.open("a") as file:
        file.writelines(json.dumps(point) + "\n" for point in new)


def steps(registry: Registry, run_id: str, key: str) -> list[int]:
    return [metric.step for metric in registry.client.get_metric_history(run_id, key)]


def until(condition: Callable[[], bool], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "timed out"
        time.sleep(0.05)


def test_a_curve_sent_again_adds_only_what_is_new(registry: Registry, run_id: str) -> None:
    assert log_curves(registry, run_id, points(1, 10)) == 10 * 2 + 2 * 3
    assert log_curves(registry, run_id, points(1, 10)) == 0
    assert log_curves(registry, run_id, points(1, 12)) == 2 * 2
    assert steps(registry, run_id, "train/loss") == list(range(1, 13))
    assert steps(registry, run_id, "validation/accuracy") == [5, 10]
    history = registry.client.get_metric_history(run_id, "train/loss")
    began = registry.client.get_run(run_id).info.start_time
    assert [metric.value for metric in history] == [2.0 / step for step in range(1, 13)]
    assert [metric.timestamp - began for metric in history] == [100 * step for step in range(1, 13)]


def test_a_long_curve_goes_in_batches_mlflow_accepts(registry: Registry, run_id: str) -> None:
    assert log_curves(registry, run_id, points(1, 520)) == 520 * 2 + 104 * 3
    assert steps(registry, run_id, "train/loss") == list(range(1, 521))


def test_a_step_twice_in_a_file_is_logged_once(registry: Registry, run_id: str) -> None:
    again = [{**point, "loss": 99.0} for point in points(3, 4)]
    log_curves(registry, run_id, [*points(1, 4), *again])
    assert [m.value for m in registry.client.get_metric_history(run_id, "train/loss")] == [
        2.0,
        1.0,
        2 / 3,
        0.5,
    ]


def test_lines_reach_mlflow_while_the_file_grows_half_lines_wait(
    registry: Registry, run_id: str, tmp_path: Path
) -> None:
    path = tmp_path / "curves.jsonl"
    with LiveCurves(registry, run_id, path, every=0.05) as live:
        time.sleep(0.2)  # the file is not there yet
        append(path, points(1, 5))
        until(lambda: len(steps(registry, run_id, "train/loss")) == 5)
        with path.open("a") as file:
            file.write('{"kind": "step", "step": 6, ')
        time.sleep(0.2)
        assert live.trouble is None
        with path.open("a") as file:
            file.write('"loss": 0.25}\n')
        until(lambda: len(steps(registry, run_id, "train/loss")) == 6)
        append(path, points(7, 9))
    assert steps(registry, run_id, "train/loss") == list(range(1, 10))
    assert live.waiting == 0


def test_a_resumed_training_that_rewrites_its_file_adds_no_duplicates(
    registry: Registry, run_id: str, tmp_path: Path
) -> None:
    path = tmp_path / "curves.jsonl"
    append(path, points(1, 8))
    with LiveCurves(registry, run_id, path, every=0.05) as live:
        until(lambda: len(steps(registry, run_id, "train/loss")) == 8)
        path.unlink()
        slower = [{**point, "seconds": 100 + point["step"] / 7} for point in points(1, 12)]
        append(path, slower[:3])
        time.sleep(0.3)
        append(path, slower[3:])
    assert steps(registry, run_id, "train/loss") == list(range(1, 13))
    assert live.trouble is None


def test_what_mlflow_refuses_does_not_end_the_block(registry: Registry, run_id: str, tmp_path: Path) -> None:
    path = tmp_path / "curves.jsonl"
    append(path, points(1, 3))
    registry.client.delete_run(run_id)
    with LiveCurves(registry, run_id, path, every=0.05) as live:
        until(lambda: live.trouble is not None)
    assert isinstance(live.trouble, RegistryError)
    assert live.waiting == 3
    registry.client.restore_run(run_id)
    assert log_curves(registry, run_id, read_curves(path)) == 6


def test_an_unreachable_server_does_not_end_the_block(tmp_path: Path) -> None:
    path = tmp_path / "curves.jsonl"
    append(path, points(1, 3))
    away = Registry(f"http://127.0.0.1:{mlflow_world.free_port()}")
    with LiveCurves(away, "0" * 32, path, every=0.05) as live:
        until(lambda: live.trouble is not None)
    assert isinstance(live.trouble, UnreachableError)
    assert live.waiting == 3


def test_a_broken_line_is_reported_with_its_place_and_does_not_end_the_block(
    registry: Registry, run_id: str, tmp_path: Path
) -> None:
    path = tmp_path / "curves.jsonl"
    append(path, points(1, 2))
    with path.open("a") as file:
        file.write("{oops}\n")
    with LiveCurves(registry, run_id, path, every=0.05) as live:
        until(lambda: live.trouble is not None)
        assert isinstance(live.trouble, DataError)
        assert "curves.jsonl after byte 0" in str(live.trouble)
    with pytest.raises(DataError, match=r"curves\.jsonl:3: is not JSON"):
        read_curves(path)


@pytest.mark.parametrize("line", ['{"kind": "other", "step": 1}', '{"kind": "step"}', "[1]"])
def test_a_line_that_is_no_point_is_named(tmp_path: Path, line: str) -> None:
    (tmp_path / "curves.jsonl").write_text(line + "\n")
    with pytest.raises(DataError, match=r"curves\.jsonl:1: got .* expected a curve point"):
        read_curves(tmp_path / "curves.jsonl")
