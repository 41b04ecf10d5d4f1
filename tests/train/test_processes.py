"""Several processes train one prefix: to the result of one, and all of them end when one does.

The processes are real ones. Starting some takes seconds, so those of `together` do many trainings one after the other.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

from pipeline import stages
from pipeline.base import base_model
from pipeline.digest import sha256_file
from pipeline.errors import LostProcessError, TrainingError
from pipeline.files import write_json
from pipeline.params import BaseModelParams, PathSource, TrainingParams
from pipeline.register.lineage import code_identity
from pipeline.train import launch, launched
from pipeline.train.batches import ClassificationRows, GenerationRows, part_of, validation_batches
from pipeline.train.process_group import ALONE, check_device
from pipeline.train.progress import TrainingProgress
from tests.test_pins import PINS
from tests.train.bench import Bench, CrashError, at_step, crash, resolved, sharpened
from tests.training_data import LABELS, classification_rows, generation_rows

HERE = str(Path(__file__).parents[2])

PATIENCE_SECONDS = 90.0
"""How long processes may take to come as far as a test waits for."""

UNEVEN: Mapping[str, Any] = {
    "batch_size": 7,
    "gradient_accumulation": 3,
    "max_grad_norm": 0.05,
    "patience": None,
}
"""12 steps over 40 rows: six of 7 examples, then one of 5, and so again; validations after steps 3, 6, 9 and 12."""


ONE_IN_THE_LAST: Mapping[str, Any] = {"batch_size": 3, "epochs": 1, "weight_decay": 0.1, "patience": None}
"""14 steps over 40 rows, one of which has a single example: the other process has none, nor one for validation."""

DROPPING: Mapping[str, Any] = {"dropout": 0.3, "max_steps": 4}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("processes")


@pytest.fixture(scope="module")
def generation(decoder_folder: Path, folder: Path) -> Bench:
    base = resolved(sharpened(decoder_folder, folder / "decoder"))
    rows = generation_rows(folder / "text", base_model.tokenizer(base), {"train": 40, "validation": 19})
    return Bench("generation", base, rows, folder)


@pytest.fixture(scope="module")
def classification(encoder_folder: Path, folder: Path) -> Bench:
    base = resolved(sharpened(encoder_folder, folder / "encoder"))
    rows = classification_rows(folder / "class", base_model.tokenizer(base), {"train": 40, "validation": 1})
    return Bench("classification", base, rows, folder)


def results(path: Path) -> list[list[dict[str, Any] | None]]:
    """Per run, what it came to in each of the two processes; None where it was killed."""
    ranks = [
        [json.loads(line) for line in path.with_suffix(f".{rank}.jsonl").read_text().splitlines()]
        for rank in (0, 1)
    ]
    return [list(run) for run in itertools.zip_longest(*ranks)]


def vectors(bench: Bench, root: str) -> dict[str, torch.Tensor]:
    return load_file(bench.root / root / "out" / "adapter" / "adapter_model.safetensors")


def curve(bench: Bench, root: str) -> list[dict[str, Any]]:
    return [
        json.loads(line) for line in (bench.root / root / "out" / "curves.jsonl").read_text().splitlines()
    ]


def assert_equal_result(bench: Bench, one: str, other: str) -> None:
    """Equal losses and an equal prefix, but for rounding."""
    mine, theirs = curve(bench, one), curve(bench, other)
    assert [(line["kind"], line["step"]) for line in mine] == [
        (line["kind"], line["step"]) for line in theirs
    ]
    for key in ("loss", "grad_norm", "accuracy"):
        figures = [[line[key] for line in lines if key in line] for lines in (mine, theirs)]
        assert figures[0] == pytest.approx(figures[1], rel=1e-5)
    first, second = vectors(bench, one), vectors(bench, other)
    assert first.keys() == second.keys()
    assert max((first[name] - second[name]).abs().max().item() for name in first) <= 1e-5


def wait_for(path: Path) -> str:
    end = time.monotonic() + PATIENCE_SECONDS
    while not (path.exists() and path.read_text()):
        assert time.monotonic() < end, f"{path} did not come"
        time.sleep(0.02)
    return path.read_text()


def all_end(pids: list[int]) -> bool:
    """Whether these processes end soon; they are killed if not."""
    end = time.monotonic() + 15
    while alive := [pid for pid in pids if Path(f"/proc/{pid}/exe").exists()]:
        if time.monotonic() > end:
            for pid in alive:
                os.kill(pid, signal.SIGKILL)
            return False
        time.sleep(0.05)
    return True


# -- the result of one process ---------------------------------------------------------------------------------

RUNS: list[dict[str, Any]] = [
    {"root": "two", "training": UNEVEN},
    {"root": "threads", "training": {"max_steps": 1, "threads": 5}},
    {"root": "apart", "training": UNEVEN, "act": [1, 3, "other_numbers"]},
    {"root": "other_settings", "training": UNEVEN, "rank1": {"training": {**UNEVEN, "seed": 5}}},
    {"root": "base_changed", "training": {"max_steps": 2}, "act": [1, 1, "other_base"]},
    {"root": "not_finite", "training": {"learning_rate": 1e37, "warmup": 0.0, "schedule": "constant"}},
    {"root": "stopped", "training": UNEVEN, "act": [1, 4, "SIGTERM"]},
    {"root": "stopped", "training": UNEVEN},
    {"root": "from_one", "training": UNEVEN},
    {"root": "to_one", "training": {**UNEVEN, "checkpoint_seconds": 1e9}, "act": [0, 8, "SIGINT"]},
    {"root": "full", "training": UNEVEN, "act": [0, 5, "full_disk"]},
    {"root": "full", "training": UNEVEN},
    {"root": "own_group", "training": UNEVEN, "own_group": True},
    {"root": "two", "training": UNEVEN},
    {"root": "two_heads", "training": ONE_IN_THE_LAST, "task": "classification"},
    {"root": "two_drop", "training": DROPPING, "task": "classification"},
    {"root": "lost", "training": UNEVEN, "act": [1, 12, "SIGKILL"]},
]


@pytest.fixture(scope="module")
def together(
    generation: Bench, classification: Bench, folder: Path
) -> dict[str, list[list[dict[str, Any] | None]]]:
    """{root: per run there, what it came to in each process} of `RUNS`, under torchrun."""
    with pytest.raises(CrashError):
        generation.beside("from_one").train(on_curve=at_step(6, crash), **UNEVEN)
    runs = []
    for run in RUNS:
        bench = classification if run.get("task") == "classification" else generation
        # Were rank 1 to write anything, it would be there.
        rank1 = {"root": str(folder / "rank1" / run["root"]), **run.get("rank1", {})}
        where = {
            "base": str(bench.base.folder),
            "prepared": str(bench.prepared),
            "root": str(folder / run["root"]),
        }
        runs.append({**run, **where, "task": bench.task, "rank1": rank1})
    path = folder / "together.json"
    path.write_text(json.dumps(runs))
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [sys.executable, *torchrun, "-m", "tests.train.process", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=2 * PATIENCE_SECONDS, check=False)
    assert done.returncode == 1, done.stderr  # the last run's
    found: dict[str, list[list[dict[str, Any] | None]]] = {}
    came_to = results(path)
    assert len(came_to) == len(RUNS), done.stderr
    for run, result in zip(RUNS, came_to, strict=True):
        found.setdefault(run["root"], []).append(result)
    return found


def test_two_processes_give_the_losses_and_the_prefix_of_one_on_steps_that_do_not_divide(
    generation: Bench, together: Any
) -> None:
    generation.beside("one").train(**UNEVEN)
    assert [part["summary"]["processes"] for part in together["two"][0]] == [2, 2]
    assert_equal_result(generation, "two", "one")
    assert len([line for line in curve(generation, "two") if line["kind"] == "step"]) == 12
    assert (
        min(line["grad_norm"] for line in curve(generation, "two") if line["kind"] == "step") > 0.05
    )  # clipped


def test_a_process_without_an_example_adds_nothing_and_the_head_is_trained_too(
    classification: Bench, together: Any
) -> None:
    ((first, second),) = together["two_heads"]
    assert first["trained"] == second["trained"]
    classification.beside("one_head").train(**ONE_IN_THE_LAST)
    assert_equal_result(classification, "two_heads", "one_head")
    assert any("classifier" in name for name in vectors(classification, "two_heads"))


def test_two_processes_drop_what_one_does(classification: Bench, together: Any) -> None:
    classification.beside("one_drops").train(**DROPPING)
    assert_equal_result(classification, "two_drop", "one_drops")
    classification.beside("one_does_not").train(**{**DROPPING, "dropout": 0.0})
    first, other = (curve(classification, root)[0]["loss"] for root in ("one_drops", "one_does_not"))
    assert first != pytest.approx(other, rel=1e-3)


def test_every_process_ends_with_the_same_bits_and_the_same_summary(together: Any) -> None:
    first, second = together["two"][0]
    assert first["trained"] == second["trained"]
    assert first["best"] == second["best"]
    assert first["summary"] == second["summary"]


def test_only_gradients_cross_the_network_once_a_step(together: Any) -> None:
    """Two layers, keys and values, 3 positions, 2 heads of 8: 192 numbers; then loss, targets and three wishes."""
    for part in together["two"][0]:
        assert [sent for sent in part["sent"] if sent[0] == "torch.float32"] == [
            ["torch.float32", 192 + 5]
        ] * 12
        assert [sent for sent in part["sent"] if sent[0] != "torch.float32"] == [["torch.float64", 3 + 3]] * 4


def test_only_the_first_process_writes_and_follows_the_curve(
    generation: Bench, together: Any, folder: Path
) -> None:
    assert (generation.root / "two" / "checkpoints" / "finished").is_dir()
    assert [part["lines"] for part in together["two"][0]] == [16, 0]
    assert not (folder / "rank1").exists()


def test_threads_are_shared_out_among_the_processes(together: Any) -> None:
    assert together["threads"][0][0]["threads"] == 2  # of 5


def test_a_group_that_the_program_has_formed_is_used_and_left(together: Any) -> None:
    ((first, second),) = together["own_group"]
    assert first["trained"] == second["trained"] == together["two"][0][0]["trained"]


def test_a_finished_training_is_not_done_again_by_any_process(together: Any) -> None:
    first, again = together["two"]
    assert [part["summary"] for part in again] == [part["summary"] for part in first]
    assert [part["sent"] for part in again] == [[], []]


# -- stopped, and gone on with by as many, or by more or fewer ----------------------------------------------------


def test_a_signal_to_one_process_stops_all_after_the_same_step_and_resumes_to_the_same_bits(
    generation: Bench, together: Any
) -> None:
    stopped, resumed = together["stopped"]
    for part in stopped:
        kind, message = part["error"]
        assert kind == "TrainingInterruptedError"
        assert message.startswith("stopped by SIGTERM after step 4 of 12; a checkpoint is kept")
    assert [part["trained"] for part in resumed] == [part["trained"] for part in together["two"][0]]
    assert vectors(generation, "stopped").keys() == vectors(generation, "two").keys()
    assert all(
        torch.equal(tensor, vectors(generation, "two")[name])
        for name, tensor in vectors(generation, "stopped").items()
    )


def test_what_one_process_began_two_finish(generation: Bench, together: Any) -> None:
    ((first, _),) = together["from_one"]
    assert first["lines"] == 16 - 6  # steps 6 to 12 with three validations
    assert_equal_result(generation, "from_one", "two")


def test_what_two_processes_began_one_finishes(generation: Bench, together: Any) -> None:
    ((first, _),) = together["to_one"]
    assert first["error"][1].startswith("stopped by SIGINT after step 8 of 12")
    alone = generation.beside("to_one")
    assert alone.train(**UNEVEN).processes == 1
    assert [line["step"] for line in alone.lines if line["kind"] == "step"] == [9, 10, 11, 12]
    assert_equal_result(generation, "to_one", "two")


# -- what goes wrong in one process ends all --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("root", "kind", "message"),
    [
        (
            "apart",
            "TrainingError",
            r"after step 3 of 12 the processes of rank 1 hold other numbers than that of rank 0",
        ),
        (
            "other_settings",
            "TrainingError",
            r"the processes of rank 1 were given other settings, data or base weights",
        ),
        (
            "base_changed",
            "IntegrityError",
            r"(?s)the frozen base changed during training.*in the process of rank 1",
        ),
        ("not_finite", "NonFiniteLossError", r"step 2 of 10: the loss is \S+ and the gradient's norm nan"),
    ],
)
def test_every_process_says_the_same_of_what_went_wrong(
    together: Any, root: str, kind: str, message: str, generation: Bench
) -> None:
    ((first, second),) = together[root]
    assert first["error"][0] == kind
    assert re.search(message, first["error"][1])
    if root != "base_changed":  # the process that changed it sees it in its own words
        assert second["error"] == first["error"]
    assert not (generation.root / root / "out").exists()


def test_a_disk_that_is_full_for_the_first_process_ends_both_and_costs_one_step(
    generation: Bench, together: Any
) -> None:
    (first, second), resumed = together["full"]
    assert first["error"][0] == "TrainingError"
    assert re.search(
        r"checkpoint after step 5 could not be saved.*File too large.*Free some", first["error"][1]
    )
    assert second["error"][0] == LostProcessError.__name__
    assert second["error"][1].startswith(
        "another process of this training has ended, and its own message says why"
    )
    assert resumed[0]["lines"] == 16 - 5  # steps 5 to 12 with three validations
    assert [part["trained"] for part in resumed] == [part["trained"] for part in together["two"][0]]


def test_a_process_that_is_killed_ends_the_others_and_costs_one_step(
    generation: Bench, together: Any
) -> None:
    ((first, second),) = together["lost"]
    assert second is None
    assert first["error"][0] == LostProcessError.__name__
    alone = generation.beside("lost")
    alone.train(**UNEVEN)
    assert [line["step"] for line in alone.lines if line["kind"] == "step"] == [12]
    assert_equal_result(generation, "lost", "two")


def test_the_launcher_ends_the_others_and_names_the_process_that_was_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = "import os, time; os.kill(os.getpid(), 9) if os.environ['RANK'] == '1' else time.sleep(600)"
    (tmp_path / "killed.py").write_text(program)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
    handlers = [signal.getsignal(number) for number in numbers]
    environment = dict(os.environ)
    with pytest.raises(
        TrainingError, match=r"process 2 of 2 was ended by SIGKILL \(out of memory.*goes on from"
    ):
        launch.launch(2, "killed", [], threads=2)
    assert [signal.getsignal(number) for number in numbers] == handlers
    assert dict(os.environ) == environment


def failure(rank: int, exitcode: int) -> ProcessFailure:
    return ProcessFailure(local_rank=rank, pid=1, exitcode=exitcode, error_file="none")


def test_of_processes_that_say_nothing_the_one_that_was_not_ended_by_the_launcher_is_named() -> None:
    failures = {0: failure(0, -signal.SIGTERM), 1: failure(1, 1)}
    error = launch._unreported(failures, 2)
    assert str(error).startswith(
        "process 2 of 2 ended with status 1; what it printed stands above. Run the same"
    )
    only = launch._unreported({0: failure(0, -signal.SIGTERM)}, 2)
    assert str(only).startswith("process 1 of 2 was ended by SIGTERM. Run the same")


def test_of_several_reports_the_one_of_the_process_that_failed_by_itself_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert launch._reported(tmp_path) is None
    for rank, kind in enumerate(("LostProcessError", "DataError", "LostProcessError")):
        (tmp_path / str(rank)).mkdir()
        monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / str(rank) / "error.json"))
        assert not launched.report(kind, f"{rank}: what {kind} says")
        if rank == 0:
            assert launch._reported(tmp_path) is None
    monkeypatch.setenv(launched.ALIVE, "pipe")
    assert launched.report("LostProcessError", "the launcher will say it")
    assert str(launch._reported(tmp_path)) == "1: what DataError says"


def test_two_processes_on_one_gpu_are_refused() -> None:
    check_device(1, 1)
    with pytest.raises(
        TrainingError, match=r"the model is on cuda:0, and this is process 1.*Put the model on cuda:1"
    ):
        check_device(0, 1)


# -- the stage ---------------------------------------------------------------------------------------------------

STEPS = 150


@pytest.fixture
def workspace(classification: Bench, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the train stage of the prefix `words` can run, with two processes; the current folder."""
    root = folder / "workspace"
    if not root.exists():
        (root / "artifacts" / "words").mkdir(parents=True)
        (root / "artifacts" / "words" / "prepared").symlink_to(classification.prepared)
        write_json(root / "artifacts" / "words" / "prepared.json", {"labels": list(LABELS)})
        base = classification.base
        pins = replace(
            PINS,
            base=BaseModelParams(source=PathSource(path=str(base.folder)), digest=base.digest),
            code=code_identity(),
            warm_start=None,
            training=TrainingParams(
                batch_size=3,
                epochs=STEPS,
                max_steps=STEPS,
                patience=None,
                checkpoint_seconds=0.0,
                processes=2,
                threads=2,
            ),
        )
        write_json(root / "pins" / "words.json", pins.to_json())
    monkeypatch.chdir(root)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [HERE, os.environ.get("PYTHONPATH", "")])))
    return root


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_sigterm_stops_the_stage_with_a_checkpoint_and_one_message(workspace: Path) -> None:
    folder = workspace / ".prefixline" / "checkpoints" / PINS.run_key
    command = [sys.executable, "-m", "pipeline.stages", "train", "words"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        end = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < end and process.poll() is None and not list(folder.glob("step-*")):
            time.sleep(0.02)
        watching = [
            any(link.resolve().name == "alive" for link in Path(f"/proc/{child}/fd").iterdir())
            for child in children(process.pid)
        ]
        process.terminate()
        _, said = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 1
    assert watching == [True, True]
    assert said.count("error: ") == 1
    step = re.search(rf"error: stopped by SIGTERM after step (\d+) of {STEPS}; a checkpoint is kept", said)
    assert step
    assert (folder / f"step-{int(step[1]):08d}").is_dir()
    assert "Traceback" not in said
    assert not (workspace / "artifacts" / "words" / "trained.json").exists()


def test_the_stage_run_again_goes_on_in_its_processes_and_writes_one_record(
    workspace: Path, classification: Bench, capfd: pytest.CaptureFixture[str]
) -> None:
    path = workspace / "pins" / "words.json"
    pins = json.loads(path.read_text())
    pins["params"]["training"]["checkpoint_seconds"] = 1e9
    write_json(path, pins)
    assert stages.main(["train", "words"]) == 0
    said = capfd.readouterr().err
    assert said.count(f"of {STEPS}") == said.count("going on after step") == 1
    artifacts = workspace / "artifacts" / "words"
    record = json.loads((artifacts / "trained.json").read_text())
    assert (record["processes"], record["steps"]) == (2, STEPS)
    assert record["stage_seconds"] >= record["seconds"] > 0
    assert {file: sha256_file(artifacts / file) for file in record["manifest"]} == record["manifest"]


@pytest.mark.skipif(
    not Path("/proc/self/task").is_dir(), reason="the test itself looks for the processes in /proc"
)
def test_a_launcher_that_is_killed_takes_its_processes_along(tmp_path: Path) -> None:
    waiting = (
        "import os, sys, time, pathlib; from pipeline.train import launched; launched.end_with_launcher(); "
        "pathlib.Path(os.environ['RANK']).write_text(str(os.getpid())); time.sleep(600)"
    )
    (tmp_path / "waiting.py").write_text(waiting)
    program = "from pipeline.train.launch import launch; launch(2, 'waiting', [], threads=2)"
    path = os.pathsep.join([str(tmp_path), HERE, os.environ.get("PYTHONPATH", "")])
    launcher = subprocess.Popen(
        [sys.executable, "-c", program], cwd=tmp_path, env={**os.environ, "PYTHONPATH": path}
    )
    try:
        started = [int(wait_for(tmp_path / str(rank))) for rank in (0, 1)]
    finally:
        launcher.kill()
        launcher.wait()
    assert all_end(started)


def test_a_process_whose_launcher_is_gone_before_it_looked_ends_too(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "alive")
    program = (
        "import time; from pipeline.train import launched; launched.end_with_launcher(); time.sleep(600)"
    )
    environment = {**os.environ, launched.ALIVE: str(tmp_path / "alive")}
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=HERE,
        env=environment,
        start_new_session=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL


# -- parts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [2, 3, 5])
def test_a_steps_examples_are_shared_out_whole_and_evenly(size: int) -> None:
    draw = np.random.default_rng(size)
    lengths = draw.integers(5, 60, 300)
    for count in (1, 2, 7, 32):
        examples = draw.choice(300, count, replace=False)
        parts = [part_of(examples, lengths, rank, size) for rank in range(size)]
        assert sorted(np.concatenate(parts)) == sorted(examples)
        tokens = [int(lengths[part].sum()) for part in parts]
        if count >= size:
            assert max(tokens) - min(tokens) <= lengths[examples].max()
    assert len(part_of(np.array([4]), lengths, size - 1, size)) == 0


@pytest.mark.parametrize("size", [2, 3])
def test_validation_rows_are_shared_out_each_once(
    generation: Bench, classification: Bench, size: int
) -> None:
    saved = datasets.load_from_disk(str(generation.prepared / "validation"))
    rows = GenerationRows(saved, pad=0)
    shares = [list(validation_batches(rows, rank, size)) for rank in range(size)]
    counts = [sum(len(batch.targets) for batch in share) for share in shares]
    assert sum(counts) == sum(len(target) for targets in saved["target_ids"] for target in targets)
    assert max(counts) < 2 * min(counts)
    one = ClassificationRows(datasets.load_from_disk(str(classification.prepared / "validation")), pad=0)
    assert [len(list(validation_batches(one, rank, size))) for rank in range(size)] == [1] + [0] * (size - 1)


def test_a_process_alone_adds_up_nothing_and_shares_with_nobody() -> None:
    tensor = torch.ones(3)
    assert ALONE.sum([tensor], [2.5, 3]) == [2.5, 3]
    assert torch.equal(tensor, torch.ones(3))
    assert ALONE.share(b"x") == b"x"
    assert ALONE.gather("ab") == ["ab"]


def test_a_progress_that_is_not_shown_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with TrainingProgress(10, unit="tokens", shown=False) as progress:
        progress.say("a line")
        progress.step(1, loss=1.0, rate=1.0)
    assert capsys.readouterr().err == ""
