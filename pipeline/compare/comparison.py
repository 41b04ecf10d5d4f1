"""`prefixline compare`: prepare, train every method, score, time, and say what came of it.

Nothing of the workspace is changed but the output folder, and nothing is registered.
"""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
import platform
import shutil
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.base import base_model
from pipeline.compare import quality, terms, worker
from pipeline.compare.job import ROWS, SCORED, Setting
from pipeline.compare.methods import METHODS, chosen, headline
from pipeline.compare.sweep import Swept, sweep
from pipeline.data import dataset
from pipeline.data.card import CARD
from pipeline.data.splits import SPLITS
from pipeline.digest import sha256_file
from pipeline.errors import CompareError, DataError
from pipeline.files import write_json
from pipeline.locks import exclusive
from pipeline.params import PrefixEntry, TrainingParams
from pipeline.register.lineage import code_identity
from pipeline.show import compare_page
from pipeline.show.pages import REPORTS
from pipeline.versioning.workspace import Workspace, find_workspace

RESULT = "compare.json"
Say = Callable[[str], None]


def default_folder(root: Path, name: str) -> Path:
    """Where a comparison goes unless told otherwise: among the pages, which git does not see."""
    return root / REPORTS / name / "compare"


def compare(
    folder: Path,
    name: str,
    *,
    names: Sequence[str] | None = None,
    rates: Mapping[str, Sequence[float]] | None = None,
    seeds: int = 1,
    max_steps: int | None = None,
    lora_rank: int | None = None,
    out: Path | None = None,
    say: Say,
) -> dict[str, Any]:
    """Compare the methods `names` on the data of the prefix `name`.

    Args:
        folder: in the workspace.
        names: of `METHODS`; None for all that the task has.
        rates: method → learning rates to try instead of its usual ones.
        seeds: trainings with the chosen rate; their seeds count from the prefix's own.
        max_steps: optimiser steps of each training, at most.
        lora_rank: None for the one nearest to the prefix's number of trainable parameters.
        out: where everything goes; None for `default_folder`.
        say: told what begins.

    Returns:
        The content of compare.json.

    Raises:
        ParamsError, WorkspaceError, BaseModelError, DataError, IntegrityError: before anything is trained.
        CompareError: the methods or rates asked for make no sense, or a training failed.
        KeyboardInterrupt: interrupted; what is finished is kept, and the same call goes on.
    """
    workspace = find_workspace(folder)
    entry = workspace.params().prefix(name)
    methods = chosen(names, entry.task)
    tried = _rates(methods, rates or {})
    if lora_rank is not None and "lora" not in methods:
        raise CompareError(
            "a rank for LoRA was given, and LoRA is not among the methods: add lora to --methods, or leave --lora-rank out"
        )
    out = (out or default_folder(workspace.root, name)).expanduser().resolve()
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CompareError(
            f"{out}: the folder cannot be made: {error.strerror}; choose another with --out"
        ) from None
    with exclusive(
        out / ".lock", waiting=lambda: say(f"{out}: another comparison is at work here; waiting for it")
    ):
        say(f"preparing {entry.data.path}")
        setting, rows = _prepared(workspace, name, entry, out, max_steps)
        _check_room(setting, [method for method in methods if method in ("prompt", "ptuning")])
        wanted = [entry.training.seed + i for i in range(seeds)]
        total = sum(len(tried[method]) + seeds - 1 if METHODS[method].rates else 1 for method in methods)
        count = iter(range(1, total + 1))
        swept = [
            sweep(
                setting, method, tried[method], wanted, out,
                lora_rank=lora_rank, say=lambda text: say(f"training {next(count)} of {total}: {text}"),
            )
            for method in methods
        ]  # fmt: skip
        say("scoring the test rows, then measuring latency, all methods in turns")
        files, folders = {}, []
        for one in swept:
            places = [job.folder(out) for job, _ in one.chosen]
            for place, (job, _) in zip(places, one.chosen, strict=True):
                job.write(place)  # with today's evaluation settings, which leave the training as it is
            files[one.method] = [place / SCORED / "content" / ROWS for place in places]
            folders += places
        latencies = worker.start("serve", folders, what="scoring and latency")
        judged = quality.judged(files, entry.task, entry.evaluation, entry.gate)
        result = _result(name, entry, setting, rows, swept, judged, latencies, wanted)
        result["page"] = str(out / compare_page.PAGE)
        write_json(out / RESULT, result)
        compare_page.write(result, out)
    return result


def _rates(methods: Sequence[str], asked: Mapping[str, Sequence[float]]) -> dict[str, tuple[float, ...]]:
    limit = 100  # as training.learning_rate has it
    for method, rates in asked.items():
        if method not in methods:
            raise CompareError(f"rates: got {method!r}; expected one of {', '.join(methods)}")
        if not METHODS[method].rates:
            raise CompareError(f"rates: {METHODS[method].title} has no learning rate")
        if not rates or not all(math.isfinite(rate) and 0 < rate <= limit for rate in rates):
            raise CompareError(
                f"rates: got {', '.join(map(str, rates)) or 'none'} for {method}; expected numbers above 0, at most {limit}"
            )
    return {method: tuple(dict.fromkeys(asked.get(method, METHODS[method].rates))) for method in methods}


def _prepared(
    workspace: Workspace, name: str, entry: PrefixEntry, out: Path, max_steps: int | None
) -> tuple[Setting, dict[str, int]]:
    """The splits as a retraining would prepare them from the files that are there now, and what all trainings share."""
    raw = workspace.root / entry.data.path
    if entry.data.imported_from is not None and not raw.exists():
        raise DataError(
            [
                f"{raw}: is not here yet; it is imported from {entry.data.imported_from} by `prefixline retrain {name}`"
            ]
        )
    params = workspace.params().base_model(name)
    base = base_model.resolve(entry.base_model, params, workspace.root)
    for left in out.glob(".prepared.*"):  # by a process that was killed
        shutil.rmtree(left)
    prepared = out / "prepared"
    summary = dataset.prepare(
        raw,
        entry.data,
        entry.task,
        tokenizer=base_model.tokenizer(base),
        window=base_model.window(base),
        prefix_length=entry.prefix.length,
        encoder_decoder=base_model.is_encoder_decoder(base),
        out=prepared,
    )
    training = entry.training
    if max_steps is not None:
        training = TrainingParams.model_validate({**training.model_dump(), "max_steps": max_steps})
    libraries = {
        library: importlib.metadata.version(library) for library in ("torch", "transformers", "scikit-learn")
    }
    setting = Setting(
        task=entry.task,
        base_name=entry.base_model,
        base=params,
        workspace=workspace.root,
        prepared=prepared,
        labels=summary.labels,
        prefix=entry.prefix,
        training=training,
        evaluation=entry.evaluation,
        # The rows alone: what datasets writes beside them may differ from one preparation to the next.
        rows={
            split: [sha256_file(file) for file in sorted((prepared / split).glob("*.arrow"))]
            for split in SPLITS
        },
        versions={"code": code_identity()["digest"], **libraries},
    )
    return setting, dict(summary.rows)


def _check_room(setting: Setting, soft: Sequence[str]) -> None:
    """Refuse soft prompts that do not fit in front of an encoder-decoder's sources, beside which a prefix takes nothing.

    Raises:
        CompareError: naming what to set.
    """
    base = setting.resolve()
    window = base_model.window(base)
    if not soft or window is None or not base_model.is_encoder_decoder(base):
        return
    card = json.loads((setting.prepared / CARD).read_text(encoding="utf-8"))
    longest = max(found["max"] for found in card["tokens"]["input"]["quantiles"].values())
    length = setting.prefix.length
    if longest + length > window:
        raise CompareError(
            f"{', '.join(soft)}: {length} virtual tokens in front of a source of {longest} need {longest + length} "
            f"positions, and the base's encoder has {window}. Set data.max_tokens to {window - length}, or leave these "
            "methods out with --methods"
        )


def _result(
    name: str,
    entry: PrefixEntry,
    setting: Setting,
    rows: Mapping[str, int],
    swept: Sequence[Swept],
    judged: Mapping[str, Mapping[str, Any]],
    latencies: Mapping[str, Sequence[float]],
    seeds: Sequence[int],
) -> dict[str, Any]:
    records = {one.method: one.chosen[0][1] for one in swept}
    steps = {record["steps"] for one in swept for _, record in one.chosen if record["steps"] is not None}
    if len(steps) != 1:
        raise CompareError(
            f"methods were trained for {sorted(steps)} steps; this is a fault of prefixline, please report it"
        )
    return {
        "prefix": name,
        "task": entry.task,
        "metric": headline(entry.task),
        "rows": dict(rows),
        "base": {
            "name": setting.base_name,
            "digest": setting.base.digest,
            "parameters": records["prefix"]["base_parameters"],
        },
        "budget": {"steps": steps.pop(), "batch_size": setting.training.batch_size, "seeds": list(seeds)},
        "confidence": entry.gate.confidence,
        "methods": [_method(one, judged[one.method], latencies) for one in swept],
        "base_latency_ms": _spread(latencies["base"]),
        "equal": terms.equal(setting, swept, max(r["steps"] or 0 for r in records.values()), seeds),
        "not_equal": terms.not_equal(setting, swept, records),
        "machine": {
            "system": f"{platform.system()} {platform.machine()}",
            "cpus": os.cpu_count(),
            "threads": setting.training.threads or os.environ.get("OMP_NUM_THREADS"),
        },
    }


def _method(
    one: Swept, judged: Mapping[str, Any], latencies: Mapping[str, Sequence[float]]
) -> dict[str, Any]:
    records = [record for _, record in one.chosen]
    first = records[0]
    above = [record["above_base_bytes"] for record in records]
    mine, prefix = latencies[one.method], latencies["prefix"]
    return {
        "method": one.method,
        "title": METHODS[one.method].title,
        "source": METHODS[one.method].source,
        "rate": one.rate,
        "at_the_end": one.at_the_end,
        "tried": [
            {
                key: record.get(key)
                for key in ("rate", "validation_loss", "validation_accuracy", "best_step", "diverged")
            }
            for record in one.tried
        ],
        "details": first["details"],
        "trainable_parameters": first["trainable_parameters"],
        "head_parameters": first["head_parameters"],
        "artefact_bytes": first["artefact_bytes"],
        "seconds": [record["seconds"] for record in records],
        "peak_bytes": max(record["peak_bytes"] for record in records),
        "above_base_bytes": None if None in above else max(above),
        "latency_ms": {
            **_spread(mine),
            "to_prefix": statistics.median(a / b for a, b in zip(mine, prefix, strict=True)),
        },
        "quality": {
            metric: {key: value for key, value in found.items() if key != "difference"}
            for metric, found in judged.items()
        },
        "difference": None
        if one.method == "prefix"
        else {metric: found["difference"] for metric, found in judged.items()},
    }


def _spread(figures: Sequence[float]) -> dict[str, float]:
    """Median and quartiles of milliseconds a row."""
    low, middle, high = statistics.quantiles(figures, n=4)
    return {"median": middle, "low": low, "high": high}
