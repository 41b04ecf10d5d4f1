"""Trained methods as they are used: loaded from their artefacts, scored on the test rows, and timed in turns."""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from pipeline.base import base_model
from pipeline.base.base_model import head_parameters
from pipeline.base.padding import pad_token, padded
from pipeline.compare import peft_models, probes
from pipeline.compare.job import ARTEFACT, KEY, RESULT, ROWS, SCORED, Job, Setting
from pipeline.errors import IntegrityError
from pipeline.evaluate import scoring, systems
from pipeline.evaluate.probe import Probe
from pipeline.evaluate.scored import schema
from pipeline.evaluate.systems import Examples
from pipeline.files import write_json
from pipeline.prefix.adapter import install_head, load_adapter
from pipeline.prefix.architecture import anatomy
from pipeline.prefix.attention import attach
from pipeline.prefix.generation import fitting, generate
from pipeline.prefix.tuning import Prefix
from pipeline.train import checkpoints

ROUNDS, WARM_UP = 20, 2
"""Batches that each method is timed on, and batches before that."""

NEW_TOKENS = 16
"""Tokens that each method generates for a row when it is timed, whatever it would say."""


@dataclass(frozen=True)
class Loaded:
    """A base with what one method needs of it.

    Attributes:
        model: adapted in place, except for a prefix, which is attached when it is used.
        prefix, probe: of the methods of those names.
    """

    model: Any
    prefix: Prefix | None = None
    probe: Probe | None = None


def loaded(job: Job, folder: Path, model: Any) -> Loaded:
    """Put the artefact of the training in `folder` on `model`."""
    artefact = checkpoints.opened(folder / RESULT) / ARTEFACT
    if job.method == "prefix":
        prefix, head = load_adapter(artefact, model)
        install_head(model, head)
        return Loaded(model, prefix=prefix)
    if job.method == "probe":
        return Loaded(model, probe=probes.load(artefact, len(job.setting.labels or ())))
    return Loaded(peft_models.load(model, artefact))


def is_scored(job: Job, folder: Path) -> bool:
    """Whether `score` has been done for just this training, test rows and settings; damaged scores do not count."""
    if not (folder / SCORED).exists():
        return False
    try:
        content = checkpoints.opened(folder / SCORED)
    except IntegrityError:
        return False
    return bool(json.loads((content / KEY).read_text(encoding="utf-8")) == job.scored_key)


def score(job: Job, folder: Path) -> None:
    """Score the test rows once; write `folder`/scored/content/rows.parquet, whole or not at all."""
    shared = job.setting
    base = shared.resolve()
    ready = loaded(job, folder, shared.load(base, job.seed))
    test = systems.read_examples(shared.prepared, "test", shared.task)
    params, what = shared.evaluation, f"{job.method}: test rows"
    if shared.task == "generation":
        order = sorted(range(len(test)), key=lambda i: test.row_ids[i])
        lines = systems.written(
            ready.model,
            ready.prefix,
            test,
            base_model.tokenizer(base),
            params,
            chosen=sorted(order[: params.max_generated_rows]),
            reserved=shared.prefix.length,
            system=job.method,
        )
    elif ready.probe is not None:
        features = scoring.features(ready.model, test.input_ids, params.batch_size, what=what)
        lines = systems.classified(ready.probe.log_probabilities(features), test.labels)
    else:
        found = scoring.class_log_probabilities(
            ready.model, ready.prefix, test.input_ids, params.batch_size, what=what
        )
        lines = systems.classified(found, test.labels)
    # In the form in which a retraining keeps its scored rows: there the system that is judged is called prefix.
    wanted = schema(shared.task, (), ["prefix"])
    columns = {"row_id": test.row_ids, "system": ["prefix"] * len(test), **lines}
    table = pa.Table.from_arrays([pa.array(columns[f.name], type=f.type) for f in wanted], schema=wanted)
    with checkpoints.sealed(folder / SCORED) as content:
        pq.write_table(table, content / ROWS, compression="zstd")
        write_json(content / KEY, job.scored_key)


def latencies(jobs: Sequence[tuple[Job, Path]]) -> dict[str, list[float]]:
    """{method: milliseconds a row, one figure per batch}: all methods on the same batches, in turns.

    All share one copy of the base's weights. The entry `base` is the frozen base without anything.
    """
    shared = jobs[0][0].setting
    base = shared.load(shared.resolve())
    test = systems.read_examples(shared.prepared, "test", shared.task)
    batches = _batches(test, shared.evaluation.batch_size)
    asked: dict[str, Callable[[list[list[int]]], None]] = {}
    for job, folder in jobs:
        asked[job.method] = _asking(loaded(job, folder, _sharing(base)), shared)
    asked["base"] = _asking(Loaded(_sharing(base)), shared)
    names, found = list(asked), {name: list[float]() for name in asked}
    with torch.inference_mode():
        for number in range(WARM_UP + ROUNDS):
            rows = batches[number % len(batches)]
            first = number % len(names)
            for name in names[first:] + names[:first]:
                began = time.perf_counter()
                asked[name](rows)
                if number >= WARM_UP:
                    found[name].append(1000 * (time.perf_counter() - began) / len(rows))
    return found


def _batches(test: Examples, size: int) -> list[list[list[int]]]:
    """Test rows in the order of their ids, which is as good as at random; whole batches where there are."""
    order = sorted(range(len(test)), key=lambda i: test.row_ids[i])
    cuts = [order[i : i + size] for i in range(0, len(order), size)]
    whole = [cut for cut in cuts if len(cut) == size] or cuts
    return [[test.input_ids[i] for i in cut] for cut in whole]


def _sharing(model: Any) -> Any:
    """A copy of `model` with modules, config and head of its own, on the same weights."""
    head = {id(parameter) for parameter in head_parameters(model).values()}
    kept = {id(t): t for t in (*model.parameters(), *model.buffers()) if id(t) not in head}
    return copy.deepcopy(model, kept)


def _asking(ready: Loaded, shared: Setting) -> Callable[[list[list[int]]], None]:
    """A function that has the method answer a batch."""
    model = ready.model
    pad = pad_token(model)
    if shared.task == "generation":
        never = int(model.config.get_text_config().vocab_size)  # no token: all generate equally many
        found = anatomy(model)

        def generating(rows: list[list[int]]) -> None:
            input_ids, mask = padded(rows, pad, left=not found.encoder_decoder)
            new = fitting(found, input_ids.shape[1], NEW_TOKENS, shared.prefix.length)
            generate(
                model, ready.prefix, input_ids, mask, max_new_tokens=new, eos_token_id=never, pad_token_id=pad
            )

        return generating
    if ready.prefix is not None:
        attach(model, ready.prefix)

    def classifying(rows: list[list[int]]) -> None:
        input_ids, mask = padded(rows, pad)
        if ready.probe is not None:
            ready.probe.log_probabilities(scoring.pooled(model, input_ids, mask).float().numpy())
        else:
            model(input_ids=input_ids, attention_mask=mask).logits.argmax(-1)

    return classifying
