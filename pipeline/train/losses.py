"""What a batch loses: the negative log-likelihood of its targets, and how many it got right."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

from pipeline.train.batches import Batch

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class BatchLoss:
    """Of one batch: `total` in nats, a scalar with a graph; `targets` labels or tokens, `right` of them."""

    total: torch.Tensor
    targets: int
    right: int


def batch_loss(model: PreTrainedModel, batch: Batch) -> BatchLoss:
    """The loss of `batch` under `model` as it stands (with whatever prefix is attached).

    For generation the output head sees the target positions only: a hook hands it those alone, so that
    whatever the architecture does to logits afterwards (scaling, soft-capping) stays in force.
    """
    device = model.device
    targets = batch.targets.to(device)
    inputs = {
        "input_ids": batch.input_ids.to(device),
        "attention_mask": batch.attention_mask.to(device),
    }
    if batch.positions is None:
        logits = model(**inputs).logits  # [B, labels]
    else:
        positions = batch.positions.to(device)

        def gather(module: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[Any, ...]:
            hidden = args[0]  # [B, N, hidden]
            return (hidden.reshape(-1, hidden.shape[-1])[positions][None], *args[1:])

        hook = model.get_output_embeddings().register_forward_pre_hook(gather)
        try:
            logits = model(**inputs).logits[0]  # [T, vocabulary]
        finally:
            hook.remove()
    logits = logits.float()
    total = functional.cross_entropy(logits, targets, reduction="sum")
    return BatchLoss(total, len(targets), int((logits.argmax(-1) == targets).sum()))
