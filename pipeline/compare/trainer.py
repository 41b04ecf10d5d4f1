"""One training, by whichever method, in this process: an artefact, and a record of what it took."""

from __future__ import annotations

import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline import files
from pipeline.base import base_model
from pipeline.base.base_model import check_unchanged, head_parameters, weights_digest
from pipeline.base.padding import pad_token
from pipeline.compare import memory, peft_models, probes
from pipeline.compare.job import ARTEFACT, RECORD, RESULT, Job
from pipeline.data.dataset import load_prepared
from pipeline.errors import NonFiniteLossError
from pipeline.evaluate import probe, scoring
from pipeline.evaluate.systems import read_examples
from pipeline.prefix.lean import lean
from pipeline.train import checkpoints, start_text, training
from pipeline.train.batches import ClassificationRows, Rows, generation_rows
from pipeline.train.dropout import InBatch, batch_seed
from pipeline.train.training_loop import Loop


def run(job: Job, folder: Path) -> None:
    """Train, and put artefact and record under `folder`/result, whole or not at all.

    Interrupted, the same call goes on from the newest checkpoint. A training whose loss is no longer finite has a
    record that says so, and no artefact: with that learning rate it will always end so.

    Raises:
        TrainingInterruptedError, TrainingError: see `pipeline.train.training_loop.Loop.run`.
        PrefixError, BaseModelError, DataError, IntegrityError: see the steps.
    """
    _import_all(job)
    for left in folder.glob(".*"):  # by a process that was killed
        shutil.rmtree(left)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".scratch.") as scratch:
        artefact = Path(scratch) / ARTEFACT
        try:
            found = {"prefix": _prefix, "probe": _probe}.get(job.method, _peft)(job, folder, artefact)
        except NonFiniteLossError as error:
            found = {"diverged": str(error)}
        size = sum(file.stat().st_size for file in artefact.rglob("*")) if "diverged" not in found else None
        with checkpoints.sealed(folder / RESULT) as content:
            if "diverged" not in found:
                shutil.copytree(artefact, content / ARTEFACT)
            record = {"key": job.key, "method": job.method, "rate": job.rate, "seed": job.seed}
            files.write_json(content / RECORD, {**record, "artefact_bytes": size, **found})
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)


def _import_all(job: Job) -> None:
    """Import what would otherwise be imported while memory is measured."""
    import datasets
    import rich.progress

    datasets.disable_progress_bars()
    rich.progress.Progress(disable=True)
    if job.method == "probe":
        import sklearn.linear_model
        import sklearn.preprocessing

        sklearn.linear_model.LogisticRegression()
        sklearn.preprocessing.StandardScaler()


def _prefix(job: Job, folder: Path, artefact: Path) -> dict[str, Any]:
    """Ours, as `prefixline retrain` trains it, but from its beginning: the others have no version to go on from."""
    shared = job.setting
    base = shared.resolve()
    model = shared.load(base, job.seed)
    head = sum(parameter.numel() for parameter in head_parameters(model).values())
    tokenizer = base_model.tokenizer(base)
    held = memory.begin()
    out = artefact.parent / "out"
    summary = training.train(
        model,
        shared.prefix,
        job.training,
        shared.task,
        shared.prepared,
        out,
        folder / "checkpoints",
        tokenizer=tokenizer,
        labels=shared.labels,
        base_name=shared.base_name,
        base_digest=base.digest,
    )
    peak = memory.peak()
    (out / training.ADAPTER).rename(artefact)
    return {
        **_memory(peak, held),
        "steps": summary.steps,
        "best_step": summary.best_step,
        "validation_loss": summary.best_validation_loss,
        "validation_accuracy": summary.best_validation_accuracy,
        "seconds": summary.seconds,
        "trainable_parameters": summary.trainable_parameters - head,
        "head_parameters": head,
        "base_parameters": summary.base_parameters,
        "details": {"length": shared.prefix.length, "start": summary.start["from"]},
    }


def _peft(job: Job, folder: Path, artefact: Path) -> dict[str, Any]:
    """One of PEFT's methods in our loop: the same optimiser, schedule, steps and rows."""
    shared, params = job.setting, job.training
    base = shared.resolve()
    model = shared.load(base, job.seed)
    before = weights_digest(model)
    adapted = peft_models.put_on(
        job.method,
        model,
        shared.task,
        shared.prefix,
        seed=job.seed,
        dropout=params.dropout,
        lora_rank=job.lora_rank,
        start_tokens=_start_tokens(job, base_model.tokenizer(base)) if job.method == "prompt" else None,
    )
    held = memory.begin()
    rows, validation = (_rows(job, model, split) for split in ("train", "validation"))
    with checkpoints.locked(folder / "checkpoints"):
        loop = Loop(
            adapted.model,
            {"prefix": adapted.own, "head": adapted.head},
            rows=rows,
            validation=validation,
            params=params,
            folder=folder / "checkpoints",
            identity=job.key,
            on_curve=None,
            unit="tokens" if shared.task == "generation" else "examples",
            dropped=_dropped(adapted, params.seed),
        )
        with lean(adapted.model, recompute=params.gradient_checkpointing):
            loop.run()
    peak, counters = memory.peak(), loop.counters
    with torch.no_grad():
        for group, members in (("prefix", adapted.own), ("head", adapted.head)):
            for name, parameter in members.items():
                parameter.copy_(loop.best[f"{group}.{name}"])
    adapted.save(artefact, shared.base_name)
    own, head = (sum(p.numel() for p in members.values()) for members in (adapted.own, adapted.head))
    after = weights_digest(adapted.bare())
    check_unchanged(before, after, shared.base_name, lost=f"{job.method} is not kept")
    return {
        **_memory(peak, held),
        "steps": counters.step,
        "best_step": counters.best_step,
        "validation_loss": counters.best_loss,
        "validation_accuracy": counters.best_accuracy,
        "seconds": round(counters.seconds, 3),
        "trainable_parameters": own,
        "head_parameters": head,
        "details": dict(adapted.details),
    }


def _dropped(adapted: peft_models.Adapted, seed: int) -> InBatch:
    """PEFT's own dropout, besides what every method's head drops alike."""
    return lambda step, number, _: adapted.in_training(batch_seed(seed, step, number))


def _probe(job: Job, folder: Path, artefact: Path) -> dict[str, Any]:
    """Logistic regression on the frozen base's features: not stepped, but fitted to its end."""
    shared = job.setting
    model = shared.load(shared.resolve(), job.seed)
    held, began = memory.begin(), time.monotonic()
    parts = []
    for split, most in (("train", probe.MOST_ROWS), ("validation", None)):
        rows = read_examples(shared.prepared, split, shared.task, at_most=most)  # type: ignore[arg-type]
        found = scoring.features(
            model, rows.input_ids, shared.evaluation.batch_size, what=f"probe: {split} rows"
        )
        parts.append((found, rows.labels))
    fitted = probe.fit(parts[0], parts[1], len(shared.labels or ()))
    seconds, peak = time.monotonic() - began, memory.peak()
    probes.save(fitted, artefact)
    features, labels = parts[1]
    losses = -fitted.log_probabilities(features)[np.arange(len(labels)), labels]
    return {
        **_memory(peak, held),
        "steps": None,
        "best_step": None,
        "validation_loss": float(losses.mean()),
        "validation_accuracy": fitted.validation_accuracy,
        "seconds": round(seconds, 3),
        "trainable_parameters": 0,
        "head_parameters": probes.parameters(fitted),
        "details": {"regularisation": fitted.strength, "rows": fitted.rows},
    }


def _memory(peak: int, held: int | None) -> dict[str, int | None]:
    return {"peak_bytes": peak, "above_base_bytes": None if held is None else peak - held}


def _start_tokens(job: Job, tokenizer: Any) -> list[int] | None:
    """The tokens of the text that the prefix starts from; None where it starts from noise."""
    shared = job.setting
    if not shared.prefix.from_text:
        return None
    rows = load_prepared(shared.prepared, "train")
    *_, ids = start_text.start_tokens(
        shared.prefix, shared.task, tokenizer=tokenizer, labels=shared.labels, rows=rows
    )
    return ids


def _rows(job: Job, model: Any, split: Any) -> Rows:
    """Plain padded rows: packing is a part of our engine, not of the method."""
    saved = load_prepared(job.setting.prepared, split)
    pad = pad_token(model)
    if job.setting.task == "classification":
        return ClassificationRows(saved, pad=pad)
    return generation_rows(saved, model, pad=pad, padded=True)
