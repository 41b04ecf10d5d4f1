"""A training that is killed, interrupted, out of disk or done already ends with the bytes of one that was not."""

from __future__ import annotations

import logging
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.digest import manifest
from pipeline.errors import (
    PrefixlineError,
    TrainingError,
    TrainingInterruptedError,
)
from pipeline.train import checkpoints, training_loop
from pipeline.train.interruption import Interruption
from tests.train.bench import (
    PREFIX,
    Bench,
    CrashError,
    at_step,
    crash,
    figures,
)


def test_a_killed_training_resumes_to_the_same_bytes(bench: Bench) -> None:
    whole, killed = bench.beside("whole"), bench.beside("killed")
    whole.train()
    killed.train_until_killed(7)
    assert len(list(killed.checkpoints.glob("step-*"))) == 2

    summary = killed.train()

    assert [line["step"] for line in killed.lines if line["kind"] == "step"] == [7, 8, 9, 10]
    assert killed.adapter == whole.adapter
    assert figures(killed.root / "out" / "curves.jsonl") == figures(whole.root / "out" / "curves.jsonl")
    assert summary.steps == 10


KILLED_WHILE_SAVING = """
import os, signal, sys
from pathlib import Path
from pipeline.environment import quiet_environment
os.environ.update(quiet_environment())
import torch
torch.set_num_threads(1)
from tests.train.bench import Bench, resolved
task, base, prepared, root, kills = sys.argv[1:]
bench = Bench(task, resolved(Path(base)), Path(prepared), Path(root))
bench.model()  # what it imports need not be imported after every fork
flush = os.fsync
for kill in range(1, int(kills) + 1):
    if (child := os.fork()) == 0:  # one thread computes here, so none is missing after it
        left = kill
        def fsync(handle):
            global left
            flush(handle)
            left -= 1
            if not left:
                os.kill(os.getpid(), signal.SIGKILL)
        os.fsync = fsync
        bench.train()
        os._exit(0)
    _, status = os.waitpid(child, 0)
    written = sorted(path.name for path in bench.checkpoints.glob("step-*"))
    half = len(list(bench.checkpoints.glob(".*")))
    print(os.WTERMSIG(status), half, *written)
"""


def test_a_training_that_is_killed_at_every_moment_of_saving_ends_with_the_same_bytes(
    classification: Bench,
) -> None:
    """A checkpoint is flushed to the disk nine times while it is written: by the n-th kill, the n-th since it began."""
    whole, killed = classification.beside("whole"), classification.beside("killed")
    whole.train()
    base = classification.base.folder
    command = [
        sys.executable, "-c", KILLED_WHILE_SAVING, "classification", str(base), str(killed.prepared), str(killed.root), "12",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    kills = [line.split() for line in done.stdout.splitlines()]
    assert [int(number) for number, *_ in kills] == [signal.SIGKILL] * 12
    assert {int(half) for _, half, *_ in kills} == {0, 1}
    assert sum(int(half) for _, half, *_ in kills) >= 7  # most kills left a half-written checkpoint
    assert kills[0][2:] == []  # the first one before there was any

    killed.train()

    assert killed.adapter == whole.adapter
    assert figures(killed.root / "out" / "curves.jsonl") == figures(whole.root / "out" / "curves.jsonl")
    assert not list(killed.checkpoints.glob(".*"))


@pytest.mark.parametrize("prefix", [PREFIX, {"length": 3, "projection": 4, "initialisation": "random"}])
def test_a_training_that_crashes_at_every_step_ends_with_the_same_bytes(
    classification: Bench, prefix: dict[str, Any]
) -> None:
    whole, torn = classification.beside("whole"), classification.beside("torn")
    whole.train(prefix=prefix, dropout=0.1)
    for step in range(1, 11):
        with pytest.raises(CrashError):
            torn.train(prefix=prefix, dropout=0.1, on_curve=at_step(step, crash))
    torn.train(prefix=prefix, dropout=0.1)
    assert torn.adapter == whole.adapter
    assert figures(torn.root / "out" / "curves.jsonl") == figures(whole.root / "out" / "curves.jsonl")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_a_checkpoint_and_says_how_to_go_on(
    classification: Bench, number: signal.Signals
) -> None:
    whole, stopped = classification.beside("whole"), classification.beside("stopped")
    whole.train()
    before = signal.getsignal(number)
    with pytest.raises(
        TrainingInterruptedError, match=rf"{number.name} after step 4 of 10.*run the same command"
    ):
        stopped.train(on_curve=at_step(4, lambda: os.kill(os.getpid(), number)), checkpoint_seconds=1e9)
    assert signal.getsignal(number) is before
    assert [path.name for path in stopped.checkpoints.glob("step-*")] == ["step-00000004"]
    stopped.train()
    assert [line["step"] for line in stopped.lines if line["kind"] == "step"] == list(range(1, 11))
    assert stopped.adapter == whole.adapter


def test_a_signal_during_a_validation_makes_it_be_done_again(
    classification: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, stopped = classification.beside("whole"), classification.beside("stopped")
    whole.train()
    batches = training_loop.validation_batches

    def interrupted(*arguments: Any) -> Iterator[Any]:
        os.kill(os.getpid(), signal.SIGINT)
        yield from batches(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(training_loop, "validation_batches", interrupted)
        with pytest.raises(TrainingInterruptedError, match="after step 3 of 10"):
            stopped.train(checkpoint_seconds=1e9)
    stopped.train()
    assert stopped.adapter == whole.adapter
    assert figures(stopped.root / "out" / "curves.jsonl") == figures(whole.root / "out" / "curves.jsonl")


def test_a_second_interrupt_does_not_wait() -> None:
    with Interruption() as interruption:
        os.kill(os.getpid(), signal.SIGINT)
        assert interruption.name == "SIGINT"
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_training_works_outside_the_main_thread_where_no_signal_arrives(classification: Bench) -> None:
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(classification.train, max_steps=1).result().steps == 1


def spoil_tensors(path: Path) -> None:
    file = path / "content" / "state.safetensors"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize(
    "spoil",
    [
        spoil_tensors,
        lambda path: (path / "content" / "state.json").write_text('{"step": 1}'),
        lambda path: (path / "content" / "state.safetensors").unlink(),
        lambda path: (path / "manifest.json").unlink(),
        lambda path: (path / "manifest.json").write_text("{"),
        lambda path: (path / "manifest.json").write_text("{}"),
    ],
)
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(
    classification: Bench, spoil: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    whole, torn = classification.beside("whole"), classification.beside("torn")
    whole.train()
    with pytest.raises(CrashError):
        torn.train(on_curve=at_step(7, crash))
    spoil(torn.checkpoints / "step-00000006")
    torn.lines.clear()
    with caplog.at_level(logging.WARNING):
        torn.train()
    assert "a checkpoint is not used" in caplog.text
    assert "step-00000006" in caplog.text
    assert torn.lines[0]["step"] == 6  # done again, from checkpoint 5
    assert torn.adapter == whole.adapter


def test_without_a_usable_checkpoint_training_begins_again(classification: Bench) -> None:
    whole, torn = classification.beside("whole"), classification.beside("torn")
    whole.train()
    with pytest.raises(CrashError):
        torn.train(on_curve=at_step(7, crash))
    (torn.checkpoints / "curves.jsonl").write_bytes(b"")  # both checkpoints know of a longer curve
    half_written = torn.checkpoints / ".step-00000007.abc"
    half_written.mkdir()
    torn.lines.clear()
    torn.train()
    assert torn.lines[0]["step"] == 1
    assert torn.adapter == whole.adapter
    assert figures(torn.root / "out" / "curves.jsonl") == figures(whole.root / "out" / "curves.jsonl")
    assert not half_written.exists()


def test_a_resumed_training_continues_the_global_random_numbers(classification: Bench) -> None:
    def draw() -> torch.Tensor:
        return torch.get_rng_state()

    torch.manual_seed(11)
    with pytest.raises(CrashError):
        classification.train(on_curve=at_step(3, crash))
    kept = draw()
    torch.manual_seed(12)
    seen: list[torch.Tensor] = []
    classification.train(on_curve=at_step(3, lambda: seen.append(draw())))
    assert torch.equal(seen[0], kept)


def test_checkpoints_of_other_settings_are_refused_and_harmless_changes_are_not(
    classification: Bench,
) -> None:
    with pytest.raises(CrashError):
        classification.train(on_curve=at_step(7, crash))
    with pytest.raises(TrainingError, match="other settings, data or base"):
        classification.train(learning_rate=0.2)
    assert classification.train(threads=1, checkpoint_seconds=5).steps == 10


def test_only_the_newest_two_checkpoints_are_kept_and_none_after_the_end(classification: Bench) -> None:
    seen: list[list[str]] = []

    def look(line: Mapping[str, Any]) -> None:
        seen.append(sorted(path.name for path in classification.checkpoints.glob("step-*")))

    classification.train(on_curve=look)
    assert max(map(len, seen)) == 2
    assert ["step-00000005", "step-00000006"] in seen
    assert sorted(path.name for path in classification.checkpoints.iterdir()) == [
        "curves.jsonl",
        "finished",
        "lock",
    ]


def test_a_hidden_file_among_the_checkpoints_is_left_alone(classification: Bench) -> None:
    classification.checkpoints.mkdir(parents=True)
    (classification.checkpoints / ".DS_Store").write_text("a desktop's")
    (classification.checkpoints / ".step-00000001.half").mkdir()
    classification.train(max_steps=2)
    assert [entry.name for entry in classification.checkpoints.glob(".*")] == [".DS_Store"]


def test_nothing_in_the_checkpoint_folder_is_pickled(classification: Bench) -> None:
    with pytest.raises(CrashError):
        classification.train(on_curve=at_step(3, crash))
    names = {path.name for path in classification.checkpoints.rglob("*") if path.is_file()}
    assert names == {"lock", "curves.jsonl", "state.json", "state.safetensors", "manifest.json"}


def test_a_second_process_is_kept_out(classification: Bench) -> None:
    with (
        checkpoints.locked(classification.checkpoints),
        pytest.raises(TrainingError, match="another process is training in"),
    ):
        classification.train()
    assert classification.train(max_steps=1).steps == 1


# -- finished ------------------------------------------------------------------------------------------------


def test_a_finished_training_is_not_done_again(bench: Bench) -> None:
    first = bench.train()
    content = bench.adapter
    shutil.rmtree(bench.root / "out")
    bench.lines.clear()
    assert bench.train() == first
    assert bench.lines == []
    assert bench.adapter == content
    assert manifest(bench.root / "out") == first.manifest


def test_a_finished_training_of_other_settings_is_refused(classification: Bench) -> None:
    classification.train()
    with pytest.raises(TrainingError, match="other settings, data or base"):
        classification.train(seed=9)


def test_a_damaged_result_is_trained_again(classification: Bench, caplog: pytest.LogCaptureFixture) -> None:
    classification.train()
    content = classification.adapter
    (
        classification.checkpoints / "finished" / "content" / "adapter" / "adapter_model.safetensors"
    ).write_bytes(b"")
    with caplog.at_level(logging.WARNING):
        classification.train()
    assert "finished training is not used" in caplog.text
    assert classification.adapter == content


@pytest.fixture
def file_limit() -> Iterator[Callable[[int], None]]:
    """No file may grow beyond so many bytes: what a full disk does to a write, without a disk to fill."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_a_clear_error_and_the_checkpoint_before_is_used(
    classification: Bench, file_limit: Callable[[int], None]
) -> None:
    whole, full = classification.beside("whole"), classification.beside("full")
    whole.train()
    with pytest.raises(
        TrainingError, match=r"checkpoint after step 5 could not be saved.*File too large.*Free some"
    ):
        full.train(on_curve=at_step(5, lambda: file_limit(6000)))
    file_limit(resource.RLIM_INFINITY)
    assert (full.checkpoints / "step-00000004").exists()
    assert not list(full.checkpoints.glob(".*"))
    full.lines.clear()
    full.train()
    assert full.lines[0]["step"] == 5
    assert full.adapter == whole.adapter


@pytest.mark.parametrize("moment", [4, 10])
def test_a_disk_too_full_for_the_curve_or_the_result_is_a_clear_error(
    classification: Bench, file_limit: Callable[[int], None], moment: int
) -> None:
    longer = {"length": 12}  # an adapter larger than its curve
    whole, full = classification.beside("whole"), classification.beside("full")
    whole.train(prefix=longer)
    limit = at_step(moment, lambda: file_limit(1100 if moment == 4 else 4000))
    what, why = ("the curve", "No space left") if moment == 4 else ("adapter", "File too large")
    with pytest.raises(PrefixlineError, match=rf"{what}.*could not be saved.*{why}"):
        full.train(prefix=longer, on_curve=limit, checkpoint_seconds=1e9)
    file_limit(resource.RLIM_INFINITY)
    full.train(prefix=longer)
    assert full.adapter == whole.adapter
