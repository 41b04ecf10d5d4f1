"""What a batch loses: the negative log-likelihood of its targets, and how many it got right."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from pipeline.params import Dtype
from pipeline.prefix.target_loss import target_loss
from pipeline.train.batches import AnyBatch

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class BatchLoss:
    """Of one batch: `total` in nats, a scalar with a graph; `targets` labels or tokens, `right` of them.

    Of tokens, `right` is None where gradients are on (see `target_loss`).
    """

    total: torch.Tensor
    targets: int
    right: int | None


def batch_loss(model: PreTrainedModel, batch: AnyBatch, dtype: Dtype = "float32") -> BatchLoss:
    """The loss of `batch` under `model` as it stands (with whatever prefix is attached).

    With `dtype` bfloat16 the base's products of matrices are made in it (torch's autocast); its weights, the prefix,
    its gradient and the loss itself stay float32.
    """
    batch = _moved(batch, model.device)
    with torch.autocast(model.device.type, torch.bfloat16, enabled=dtype == "bfloat16"):
        return _loss(model, batch)


def _loss(model: PreTrainedModel, batch: AnyBatch) -> BatchLoss:
    inputs = batch.inputs(model)
    if batch.positions is not None:
        total, right = target_loss(model, inputs, batch.positions, batch.targets)
    else:
        logits = model(**inputs).logits.float()  # [B, labels]
        total = functional.cross_entropy(logits, batch.targets, reduction="sum")
        right = int((logits.argmax(-1) == batch.targets).sum())
    return BatchLoss(total, len(batch.targets), right)


def _moved(batch: AnyBatch, device: torch.device) -> AnyBatch:
    tensors = {field.name: getattr(batch, field.name) for field in fields(batch)}
    return replace(batch, **{name: t.to(device) for name, t in tensors.items() if t is not None})
