"""Where a prefix starts: from a text, from noise, or from an adapter that was trained before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from pipeline.errors import IntegrityError, PrefixError
from pipeline.params import PrefixParams, Task, TrainingParams
from pipeline.prefix.adapter import adapter_digest, adapter_facts, head_pooling, load_adapter
from pipeline.prefix.architecture import anatomy, check_window
from pipeline.prefix.text_start import text_key_values
from pipeline.prefix.tuning import Prefix, PrefixShape
from pipeline.train import start_text

if TYPE_CHECKING:
    import datasets
    from transformers import PreTrainedModel, PreTrainedTokenizerFast


@dataclass(frozen=True)
class WarmStart:
    """The adapter to go on from.

    Attributes:
        folder: holds it.
        adapter_digest: the SHA-256 its files must have (`pipeline.prefix.adapter.adapter_digest`).
        source: who it is, for the record: {"prefix", "version"} or {"adapter"}.
    """

    folder: Path
    adapter_digest: str
    source: Mapping[str, str]


@dataclass(frozen=True)
class Start:
    """A prefix before its first step.

    Attributes:
        head: the head's parameters to begin with, by name; empty where the model's own are to be trained.
        record: plain JSON that says what it started from: {"from": "text", "text", "made_of"}, {"from": "random",
            "scale", and "value_scale" where the values have their own}, or {"from": "version" or "adapter",
            "adapter_digest", who it is, "head": "continued" or "new"}.
    """

    prefix: Prefix
    record: Mapping[str, Any]
    head: Mapping[str, torch.Tensor] = field(default_factory=dict)


def start(
    model: PreTrainedModel,
    params: PrefixParams,
    task: Task,
    *,
    tokenizer: PreTrainedTokenizerFast,
    labels: Sequence[str] | None,
    rows: datasets.Dataset,
    seed: int,
    warm_start: WarmStart | None = None,
) -> Start:
    """The prefix before its first step, and what it starts from.

    Where there is no version to go on from (`warm_start` is None), a text that is given or described is started from,
    else random vectors.

    Raises:
        PrefixError: the model cannot carry it, the text has too few tokens, or a projection cannot yield it.
        AdapterError: the adapter to go on from is not whole, or not of the model's layers, heads or the length.
        IntegrityError: its files are not those that were pinned.
    """
    prefix = Prefix(PrefixShape.of_model(model), params.length, projection=params.projection)
    check_window(anatomy(model), params.length, 1)
    prefix.to(model.device)
    if warm_start is not None:
        return _continued(prefix, model, warm_start, labels)
    if not params.from_text:
        values = params.random_value_scale
        prefix.init_random(params.random_scale, torch.Generator().manual_seed(seed), value_scale=values)
        record = {"from": "random", "scale": params.random_scale}
        return Start(prefix, record if values is None else {**record, "value_scale": values})
    text, made_of, ids = start_text.start_tokens(params, task, tokenizer=tokenizer, labels=labels, rows=rows)
    prefix.init_from(text_key_values(model, torch.tensor(ids, device=model.device)))
    return Start(prefix, {"from": "text", "text": text, "made_of": made_of})


def check_pooling(model: PreTrainedModel, params: TrainingParams, whose: str = "") -> None:
    """Raise PrefixError where `model`'s head reads other states than `params` say."""
    if (reads := head_pooling(model)) != params.head_pooling:
        raise PrefixError(
            f"{whose}training.head_pooling is {params.head_pooling!r}, and the head of {type(model).__name__} reads "
            f"{reads!r}; expected the same: load the base with pooling={params.head_pooling!r}"
        )


def _continued(
    prefix: Prefix, model: PreTrainedModel, warm_start: WarmStart, labels: Sequence[str] | None
) -> Start:
    """`prefix` with the adapter's vectors; and its head, where it says that it reads what ours does and has our labels."""
    folder = warm_start.folder
    found = adapter_digest(folder)
    if found != warm_start.adapter_digest:
        raise IntegrityError(
            [f"SHA-256 over its files is {found}, expected {warm_start.adapter_digest}"],
            heading=f"{folder} is not the adapter to go on from; run the retraining again to fetch it:",
        )
    facts = adapter_facts(folder)
    same = labels is not None and facts.labels == tuple(labels) and facts.pooling == head_pooling(model)
    saved, head = load_adapter(folder, model, head=same)
    prefix.init_from(saved.key_values().to(model.device))
    record = {
        "from": "adapter" if "adapter" in warm_start.source else "version",
        **warm_start.source,
        "adapter_digest": found,
    }
    if labels is not None:
        record["head"] = "continued" if same else "new"
    return Start(prefix, record, head)
