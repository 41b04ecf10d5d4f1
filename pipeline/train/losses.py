"""What a batch loses: the negative log-likelihood of its targets, and how many it got right."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

from pipeline.prefix.packing import PackedRows
from pipeline.train.batches import AnyBatch

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class BatchLoss:
    """Of one batch: `total` in nats, a scalar with a graph; `targets` labels or tokens, `right` of them."""

    total: torch.Tensor
    targets: int
    right: int


def batch_loss(model: PreTrainedModel, batch: AnyBatch) -> BatchLoss:
    """The loss of `batch` under `model` as it stands (with whatever prefix is attached).

    For generation the output head sees the target positions only: a hook hands it those alone, so that
    whatever the architecture does to logits afterwards (scaling, soft-capping) stays in force.
    """
    batch = _moved(batch, model.device)
    inputs = {"input_ids": batch.input_ids}
    if isinstance(batch, PackedRows):
        inputs |= {"attention_mask": batch.mask(model), "position_ids": batch.position_ids}
    else:
        inputs |= {"attention_mask": batch.attention_mask}
    positions = batch.positions
    if positions is None:
        logits = model(**inputs).logits  # [B, labels]
    else:

        def gather(module: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[Any, ...]:
            hidden = args[0]  # [B, N, hidden]
            return (hidden.reshape(-1, hidden.shape[-1])[positions][None], *args[1:])

        hook = model.get_output_embeddings().register_forward_pre_hook(gather)
        try:
            logits = model(**inputs).logits[0]  # [T, vocabulary]
        finally:
            hook.remove()
    logits = logits.float()
    total = functional.cross_entropy(logits, batch.targets, reduction="sum")
    return BatchLoss(total, len(batch.targets), int((logits.argmax(-1) == batch.targets).sum()))


def _moved(batch: AnyBatch, device: torch.device) -> AnyBatch:
    tensors = {field.name: getattr(batch, field.name) for field in fields(batch)}
    return replace(batch, **{name: t.to(device) for name, t in tensors.items() if t is not None})
