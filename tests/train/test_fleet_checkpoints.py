"""A fleet that is killed, crashes or is told to stop goes on where it was, to the same bits."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.errors import NonFiniteLossError, TrainingError, TrainingInterruptedError
from pipeline.train import checkpoints
from pipeline.train.fleet import FleetJob, FleetResult, train_together
from tests.prefix.models import decoder, encoder
from tests.train.test_fleet import class_rows, job, refuse_computing, starts

MODELS: dict[str, Callable[[], Any]] = {"decoder": decoder, "encoder": encoder}
DROPPING = {"dropout": 0.2}


class CrashError(Exception):
    """Raised in the middle of a fleet's training."""


def jobs_for(model: Any) -> list[FleetJob]:
    return [job(model, number, **DROPPING) for number in range(3)]


def crashing(jobs: Sequence[FleetJob], step: int, act: Callable[[], Any]) -> list[FleetJob]:
    """`act` once the first prefix has taken this step."""

    def noticed(line: Mapping[str, Any]) -> None:
        if line["kind"] == "step" and line["step"] == step:
            act()

    return [replace(jobs[0], on_curve=noticed), *jobs[1:]]


def crash() -> None:
    raise CrashError


def told(result: FleetResult) -> dict[str, Any]:
    """All but the seconds."""
    counters = {key: value for key, value in vars(result.counters).items() if key != "seconds"}
    return {"counters": counters, "stopped": result.stopped, "error": str(result.error)}


def assert_equal(found: Sequence[FleetResult], expected: Sequence[FleetResult]) -> None:
    assert [told(result) for result in found] == [told(result) for result in expected]
    for mine, other in zip(found, expected, strict=True):
        assert mine.best.keys() == other.best.keys()
        assert all(torch.equal(mine.best[name], other.best[name]) for name in mine.best)


def written(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("step-*"))


@pytest.mark.parametrize("kind", MODELS)
def test_a_fleet_that_crashes_in_every_round_ends_with_the_same_bits(kind: str, tmp_path: Path) -> None:
    model = MODELS[kind]()
    whole = train_together(model, jobs_for(model))
    assert [result.counters.step for result in whole] == [6, 4, 2]
    torn = jobs_for(model)
    for step in range(1, 7):
        with pytest.raises(CrashError):
            train_together(model, crashing(torn, step, crash), folder=tmp_path, checkpoint_seconds=0)
    found = train_together(model, torn, folder=tmp_path, checkpoint_seconds=0)
    assert_equal(found, whole)
    for this, result in zip(torn, found, strict=True):
        for name, parameter in this.prefix.named_parameters():
            assert torch.equal(parameter, result.best[f"prefix.{name}"])


_KILLED = """
import os, signal, sys
from pathlib import Path
from pipeline.environment import quiet_environment
os.environ.update(quiet_environment())
import torch
torch.set_num_threads(1)
from pipeline.train.fleet import train_together
from tests.train.test_fleet_checkpoints import MODELS, crashing, jobs_for
model = MODELS["encoder"]()
jobs = crashing(jobs_for(model), 4, lambda: os.kill(os.getpid(), signal.SIGKILL))
train_together(model, jobs, folder=Path(sys.argv[1]), checkpoint_seconds=0)
"""


def test_a_killed_fleet_goes_on_and_ends_with_the_same_bits(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _KILLED, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert written(tmp_path) == ["step-00000002", "step-00000003"]
    model = encoder()
    taken: list[int] = []
    again = jobs_for(model)
    again[0] = replace(
        again[0], on_curve=lambda line: taken.append(line["step"]) if line["kind"] == "step" else None
    )
    found = train_together(model, again, folder=tmp_path)
    assert taken == [4, 5, 6]
    assert_equal(found, train_together(model, jobs_for(model)))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_a_checkpoint_and_the_prefixes_as_they_were(
    number: signal.Signals, tmp_path: Path
) -> None:
    model = decoder()
    torn = jobs_for(model)
    begun = [starts(this) for this in torn]
    before = signal.getsignal(number)
    with pytest.raises(TrainingInterruptedError, match=rf"stopped by {number.name} after round 3; .* go on"):
        train_together(
            model, crashing(torn, 3, lambda: os.kill(os.getpid(), number)), folder=tmp_path, checkpoint_seconds=1e9
        )  # fmt: skip
    assert signal.getsignal(number) is before
    assert written(tmp_path) == ["step-00000003"]
    for this, start in zip(torn, begun, strict=True):
        assert all(torch.equal(tensor, start[name]) for name, tensor in starts(this).items())
    found = train_together(model, torn, folder=tmp_path)
    assert_equal(found, train_together(model, jobs_for(model)))


def test_a_fleet_that_has_ended_gives_its_results_without_computing(tmp_path: Path) -> None:
    model = encoder()
    whole = train_together(model, jobs_for(model), folder=tmp_path, checkpoint_seconds=1e9)
    refuse_computing(model)
    assert_equal(train_together(model, jobs_for(model), folder=tmp_path), whole)


def test_one_that_overflowed_is_not_begun_again(tmp_path: Path) -> None:
    model = encoder()

    def fleet() -> list[FleetJob]:
        made = jobs_for(model)
        huge = made[2].params.model_copy(update={"learning_rate": 1e30, "validations_per_epoch": 1})
        made[2] = replace(made[2])
        object.__setattr__(made[2], "params", huge)  # params.yaml refuses a rate at which numbers overflow
        return made

    whole = train_together(model, fleet())
    assert isinstance(whole[2].error, NonFiniteLossError)
    torn = fleet()
    with pytest.raises(CrashError):
        train_together(model, crashing(torn, 5, crash), folder=tmp_path, checkpoint_seconds=0)
    again: list[Mapping[str, Any]] = []
    torn[2] = replace(torn[2], on_curve=again.append)
    assert_equal(train_together(model, torn, folder=tmp_path), whole)
    assert again == []


@pytest.mark.parametrize("what", ["settings", "rows", "labels", "start", "base", "fewer"])
def test_checkpoints_of_another_fleet_are_refused(what: str, tmp_path: Path) -> None:
    model = encoder()
    torn = jobs_for(model)
    with pytest.raises(CrashError):
        train_together(model, crashing(torn, 2, crash), folder=tmp_path, checkpoint_seconds=0)
    other = list(torn)
    if what == "settings":
        other[1] = job(model, 1, **DROPPING, learning_rate=0.011)
    elif what == "rows":
        other[1] = replace(other[1], rows=class_rows(11, 77, model.config.pad_token_id))
    elif what == "labels":
        changed = class_rows(5 + 1, 9 + 1, model.config.pad_token_id)
        changed._labels = (changed._labels + 1) % 2
        other[1] = replace(other[1], validation=changed)
    elif what == "start":
        with torch.no_grad():
            other[1].prefix.vectors[0, 0] += 1
    elif what == "base":
        model = encoder(seed=1)
    else:
        other.pop()
    refuse_computing(model)
    with pytest.raises(TrainingError, match=r"holds a training with other settings, data or base .* delete"):
        train_together(model, other, folder=tmp_path)


def test_what_does_not_decide_the_result_may_change(tmp_path: Path) -> None:
    model = encoder()
    torn = jobs_for(model)
    with pytest.raises(CrashError):
        train_together(model, crashing(torn, 2, crash), folder=tmp_path, checkpoint_seconds=0)
    more = [
        replace(this, params=this.params.model_copy(update={"checkpoint_seconds": 3.0, "threads": 2}))
        for this in torn
    ]
    assert_equal(train_together(model, more, folder=tmp_path), train_together(model, jobs_for(model)))


def test_a_spoilt_checkpoint_is_passed_over_for_the_one_before(tmp_path: Path) -> None:
    model = encoder()
    torn = jobs_for(model)
    with pytest.raises(CrashError):
        train_together(model, crashing(torn, 4, crash), folder=tmp_path, checkpoint_seconds=0)
    state = tmp_path / written(tmp_path)[-1] / "content" / "state.json"
    state.write_text(json.dumps({**json.loads(state.read_text()), "rounds": 9}))
    assert_equal(train_together(model, torn, folder=tmp_path), train_together(model, jobs_for(model)))


def test_two_fleets_in_one_folder_are_refused(tmp_path: Path) -> None:
    model = decoder()
    refuse_computing(model)
    with checkpoints.locked(tmp_path), pytest.raises(TrainingError, match="another process is training in"):
        train_together(model, jobs_for(model), folder=tmp_path)


def test_a_folder_that_cannot_be_written_is_told_and_the_prefixes_are_as_they_were(tmp_path: Path) -> None:
    model = decoder()
    (tmp_path / "file").write_text("")
    torn = jobs_for(model)
    begun = [starts(this) for this in torn]
    refuse_computing(model)
    with pytest.raises(TrainingError, match=r"could not be saved under .*file/below"):
        train_together(model, torn, folder=tmp_path / "file" / "below")
    for this, start in zip(torn, begun, strict=True):
        assert all(torch.equal(tensor, start[name]) for name, tensor in starts(this).items())
