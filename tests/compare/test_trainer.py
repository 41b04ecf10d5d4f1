"""One training by each method: the same steps over the same rows, and an artefact that is what the record says."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.base import base_model
from pipeline.compare import peft_models, serving, trainer
from pipeline.compare.job import ARTEFACT, RECORD, RESULT, Job, Setting, read
from pipeline.compare.methods import METHODS
from pipeline.errors import DataError, TrainingInterruptedError
from pipeline.evaluate.probe import fit
from pipeline.evaluate.systems import read_examples
from pipeline.params import Task
from pipeline.prefix.attention import attach
from pipeline.train import batches
from pipeline.train.batches import ClassificationRows, GenerationRows, validation_batches
from pipeline.train.losses import batch_loss
from tests.compare.world import setting, written

RATES = {"prefix": 0.1, "prompt": 0.1, "ptuning": 0.01, "lora": 0.02, "probe": None}
CASES = [(task, name) for name, method in METHODS.items() for task in method.tasks]


@pytest.fixture(scope="module")
def settings(
    encoder_folder: Path, decoder_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[Task, Setting]:
    folder = tmp_path_factory.mktemp("compare")
    return {
        "classification": setting(folder / "c", encoder_folder, "classification"),
        "generation": setting(folder / "g", decoder_folder, "generation"),
    }


def job_for(shared: Setting, method: str, **changed: Any) -> Job:
    return Job(shared, method, **{"rate": RATES[method], "seed": 1, **changed})


def run(job: Job, out: Path) -> tuple[Path, dict[str, Any]]:
    folder = written(job, out)
    trainer.run(job, folder)
    return folder, json.loads((folder / RESULT / "content" / RECORD).read_text())


@pytest.fixture(scope="module")
def trained(
    settings: dict[Task, Setting], tmp_path_factory: pytest.TempPathFactory
) -> dict[tuple[Task, str], tuple[Path, dict[str, Any]]]:
    """Of every pair of task and method the folder and the record."""
    out = tmp_path_factory.mktemp("trained")
    return {(task, name): run(job_for(settings[task], name), out) for task, name in CASES}


def test_nine_pairs_of_task_and_method_are_tested():
    assert len(CASES) == 9


def loss_of(job: Job, folder: Path, model: Any) -> float:
    """The artefact's loss on the validation rows, on a base with another head."""
    shared = job.setting
    ready = serving.loaded(job, folder, model)
    saved = serving.systems.load_prepared(shared.prepared, "validation")
    if ready.probe is not None:
        rows = read_examples(shared.prepared, "validation", shared.task)
        features = serving.scoring.features(model, rows.input_ids, 8, what="")
        found = ready.probe.log_probabilities(features)
        return float(-found[np.arange(len(rows)), rows.labels].mean())
    if ready.prefix is not None:
        attach(ready.model, ready.prefix)
    rows_of = ClassificationRows if shared.task == "classification" else GenerationRows
    with torch.no_grad():
        pieces = [batch_loss(ready.model, batch) for batch in validation_batches(rows_of(saved, pad=0))]
    return sum(float(piece.total) for piece in pieces) / sum(piece.targets for piece in pieces)


@pytest.mark.parametrize("name", ["prefix", "lora", "prompt", "ptuning"])
def test_with_a_head_on_the_mean_every_method_trains_that_head(
    encoder_folder: Path, tmp_path: Path, name: str
):
    shared = setting(tmp_path / "c", encoder_folder, "classification", head_pooling="mean")
    job = job_for(shared, name)
    folder, record = run(job, tmp_path)
    model = base_model.load(shared.resolve(), shared.task, labels=shared.labels, pooling="mean", seed=7)
    assert loss_of(job, folder, model) == pytest.approx(record["validation_loss"], abs=1e-5)
    assert record["head_parameters"] == 3 * 32 + 3
    serving.score(job, folder)
    assert (folder / "scored" / "content" / "rows.parquet").exists()
    assert serving.latencies([(job, folder)]).keys() == {"base", name}


@pytest.mark.parametrize(("task", "name"), CASES)
def test_the_artefact_on_disk_has_the_validation_loss_that_was_recorded(
    settings: dict[Task, Setting], trained: Any, task: Task, name: str
):
    shared = settings[task]
    folder, record = trained[task, name]
    model = base_model.load(shared.resolve(), task, labels=shared.labels, seed=7)
    assert loss_of(job_for(shared, name), folder, model) == pytest.approx(record["validation_loss"], abs=1e-5)
    files = list((folder / RESULT / "content" / ARTEFACT).iterdir())
    assert record["artefact_bytes"] == sum(file.stat().st_size for file in files)
    assert not (folder / "checkpoints").exists()
    assert record["peak_bytes"] > 50e6
    assert [record["method"], record["seed"], record["rate"]] == [name, 1, RATES[name]]


@pytest.mark.parametrize("task", ["classification", "generation"])
def test_all_methods_see_the_same_rows_in_the_same_order_and_do_as_many_steps(
    settings: dict[Task, Setting], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: Task
):
    seen: dict[str, list[list[int]]] = {}
    counts = {}
    for kind in (ClassificationRows, GenerationRows):
        original = kind.batches

        def noting(self: Any, examples: Any, pieces: int, original: Any = original) -> Any:
            seen[name].append(examples.tolist())
            return original(self, examples, pieces)

        monkeypatch.setattr(kind, "batches", noting)
    short = settings[task].training.model_copy(update={"max_steps": 7})
    shared = Setting(**{**vars(settings[task]), "training": short})
    for name in [name for t, name in CASES if t == task and name != "probe"]:
        seen[name] = []
        _, record = run(job_for(shared, name), tmp_path)
        counts[name] = record["steps"]
    assert len(seen["prefix"]) > record["steps"] > 5
    assert len(seen) == 4
    assert all(order == seen["prefix"] for order in seen.values())
    assert len(set(counts.values())) == 1


@pytest.mark.parametrize(
    ("task", "name"),
    [("classification", name) for name in ("prefix", "prompt", "ptuning", "lora")]
    + [("generation", name) for name in ("prefix", "lora")],  # without a head, so by dropout of their own
)
def test_every_method_drops_in_training_and_draws_the_same_again(
    settings: dict[Task, Setting], tmp_path: Path, task: Task, name: str
):
    def losses(number: int, dropout: float) -> dict[str, Any]:
        shared = settings[task]
        training = shared.training.model_copy(update={"max_steps": 3, "dropout": dropout})
        _, record = run(
            job_for(Setting(**{**vars(shared), "training": training}), name), tmp_path / str(number)
        )
        return record

    first, again, plain = (losses(i, dropout) for i, dropout in enumerate((0.4, 0.4, 0.0)))
    assert again["validation_loss"] == first["validation_loss"]
    assert plain["validation_loss"] != pytest.approx(first["validation_loss"], rel=1e-4)


def test_the_pieces_of_a_step_drop_different_numbers_of_loras(settings: dict[Task, Setting]):
    shared = settings["classification"]
    adapted = peft_models.put_on(
        "lora", shared.load(shared.resolve()), "classification", shared.prefix, seed=0, dropout=0.5
    )
    with torch.no_grad():
        for parameter in adapted.own.values():
            parameter.normal_(generator=torch.Generator().manual_seed(1))
    dropped = trainer._dropped(adapted, 3)

    def logits(step: int, piece: int) -> torch.Tensor:
        with dropped(step, piece, None), torch.no_grad():
            return adapted.model(input_ids=torch.tensor([[2, 7, 9, 3]])).logits

    assert torch.equal(logits(1, 0), logits(1, 0))
    assert not torch.allclose(logits(1, 0), logits(1, 1))
    assert not torch.allclose(logits(1, 0), logits(2, 0))


def test_the_seed_decides_the_order_of_the_rows(settings: dict[Task, Setting]):
    lengths = ClassificationRows(
        serving.systems.load_prepared(settings["classification"].prepared, "train"), pad=0
    ).lengths
    orders = [
        [step.tolist() for step in batches.epoch_steps(lengths, 8, seed=job.training.seed, epoch=0)]
        for job in (job_for(settings["classification"], "lora", seed=seed) for seed in (1, 2))
    ]
    assert orders[0] != orders[1]


def test_no_training_stops_early(settings: dict[Task, Setting]):
    assert settings["classification"].training.patience is not None
    assert job_for(settings["classification"], "prefix").training.patience is None


@pytest.mark.parametrize("name", ["prefix", "lora"])
def test_a_loss_that_is_not_finite_is_recorded_and_leaves_no_artefact(
    settings: dict[Task, Setting], tmp_path: Path, name: str
):
    shared = settings["classification"]
    exploding = shared.training.model_copy(update={"weight_decay": 1e38})
    folder, record = run(job_for(Setting(**{**vars(shared), "training": exploding}), name), tmp_path)
    assert "learning rate" in record["diverged"]
    assert record["artefact_bytes"] is None
    assert not (folder / RESULT / "content" / ARTEFACT).exists()


def test_trained_parameters_are_the_methods_own_and_the_heads_apart(trained: Any):
    found = {name: trained["classification", name][1] for name in RATES}
    head = 3 * 32 + 3
    assert {name: record["head_parameters"] for name, record in found.items()} == dict.fromkeys(RATES, head)
    own = {name: record["trainable_parameters"] for name, record in found.items()}
    # 2 layers, 32 wide, 4 positions; an MLP of three layers; rank 2 on 2 modules in each of 2 layers.
    assert own == {
        "prefix": 2 * 2 * 32 * 4,
        "prompt": 4 * 32,
        "ptuning": 4 * 32 + 3 * (32 * 32 + 32),
        "lora": 2 * 2 * 2 * (32 + 32),
        "probe": 0,
    }


def test_a_job_is_read_as_it_was_written(settings: dict[Task, Setting], tmp_path: Path):
    for task in settings:
        job = job_for(settings[task], "lora", lora_rank=3)
        assert read(written(job, tmp_path)) == job


def test_whatever_decides_the_result_changes_the_key_and_nothing_else_does(
    settings: dict[Task, Setting],
):
    shared = settings["classification"]
    job = job_for(shared, "lora")

    def changed(**fields: Any) -> Job:
        return job_for(Setting(**{**vars(shared), **fields}), "lora")

    def training(**fields: Any) -> Job:
        return changed(training=shared.training.model_copy(update=fields))

    other = [
        job_for(shared, "lora", seed=2),
        job_for(shared, "lora", rate=0.5),
        job_for(shared, "lora", lora_rank=3),
        job_for(shared, "prefix", rate=job.rate),
        training(max_steps=3),
        changed(prefix=shared.prefix.model_copy(update={"length": 5})),
        changed(rows={**shared.rows, "train": ["0"]}),
        changed(labels=("a", "b", "c")),
        changed(versions={"code": "1"}),
    ]
    same = [
        training(threads=2),
        training(checkpoint_seconds=1.0),
        training(patience=9),
        changed(rows={**shared.rows, "test": ["0"]}),
        changed(evaluation=shared.evaluation.model_copy(update={"batch_size": 3})),
        changed(workspace=Path("/elsewhere")),
    ]
    assert len({job.key, *(one.key for one in other)}) == 1 + len(other)
    assert {one.key for one in same} == {job.key}
    assert same[3].scored_key != job.scored_key != same[4].scored_key


@pytest.mark.parametrize("name", ["prefix", "lora", "ptuning"])
def test_an_interrupted_training_goes_on_to_the_same_bits(
    settings: dict[Task, Setting], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
):
    job = job_for(settings["classification"], name)
    whole, expected = run(job, tmp_path / "whole")
    original, calls = ClassificationRows.batches, []

    def interrupted(self: Any, examples: Any, pieces: int) -> Any:
        calls.append(None)
        if len(calls) == 7:
            os.kill(os.getpid(), signal.SIGINT)
        return original(self, examples, pieces)

    monkeypatch.setattr(ClassificationRows, "batches", interrupted)
    folder = written(job, tmp_path / "cut")
    with pytest.raises(TrainingInterruptedError):
        trainer.run(job, folder)
    assert not (folder / RESULT).exists()
    (folder / ".scratch.left").mkdir()  # as a process leaves it that is killed
    trainer.run(job, folder)
    assert len(calls) > 10
    assert not list(folder.glob(".*"))
    artefacts = [
        place / RESULT / "content" / ARTEFACT / "adapter_model.safetensors" for place in (whole, folder)
    ]
    assert artefacts[0].read_bytes() == artefacts[1].read_bytes()
    record = json.loads((folder / RESULT / "content" / RECORD).read_text())
    assert record["validation_loss"] == expected["validation_loss"]


def test_missing_data_is_an_error_and_leaves_no_result(settings: dict[Task, Setting], tmp_path: Path):
    shared = Setting(**{**vars(settings["classification"]), "prepared": tmp_path / "nowhere"})
    job = job_for(shared, "lora")
    folder = written(job, tmp_path)
    with pytest.raises(DataError, match="nowhere"):
        trainer.run(job, folder)
    assert sorted(path.name for path in folder.iterdir()) == ["job.json"]


def test_a_probe_read_from_disk_says_what_the_fitted_one_said(tmp_path: Path):
    draw = np.random.default_rng(0)
    for classes in (2, 4):
        features = draw.normal(size=(80, 5)).astype(np.float32)
        labels = draw.integers(0, classes, 80)
        fitted = fit((features, labels), (features, labels), classes + 1)  # one label was never seen
        trainer.probes.save(fitted, tmp_path / str(classes))
        again = trainer.probes.load(tmp_path / str(classes), classes + 1)
        np.testing.assert_allclose(
            again.log_probabilities(features), fitted.log_probabilities(features), atol=1e-5
        )
