"""The loss of chosen positions of a causal language model, a few at a time: the logits of all never exist at once.

The layers are run once. What a model does after them (its output head, and whatever scaling or capping follows) is then
run for the target positions alone, in chunks, each with its gradient at once. So memory holds the logits of one chunk
instead of three times those of a whole batch, and positions that predict nothing cost no logits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn import functional
from transformers import PreTrainedModel

from pipeline.prefix.architecture import anatomy

CHUNK = 2**23
"""Logits in a chunk at most: 32 MB in float32."""


def target_loss(
    model: PreTrainedModel, inputs: dict[str, torch.Tensor], positions: torch.Tensor, targets: torch.Tensor
) -> tuple[torch.Tensor, int]:
    """The negative log-likelihood of `targets`, and how many of them are the most likely token.

    Args:
        model: a causal language model, with or without a prefix attached.
        inputs: what its layers are called with: input_ids [B, N], attention_mask, position_ids.
        positions: where the targets' logits stand, as indices into B·N, [T].
        targets: token ids, [T].

    Returns:
        The sum over the targets in nats, a scalar with a graph where gradients are on; and the count.
    """
    base = anatomy(model).base
    outputs = base(**inputs)
    hidden = outputs.last_hidden_state.flatten(0, 1)[positions]  # [T, hidden]
    size = max(1, CHUNK // model.get_output_embeddings().weight.shape[0])
    with _after(model, base, type(outputs)) as logits_of:
        total, right = _Loss.apply(hidden, targets, size, logits_of)  # type: ignore[no-untyped-call]
    return total, int(right)


@contextmanager
def _after(
    model: Any, base: Any, kind: Callable[..., Any]
) -> Iterator[Callable[[torch.Tensor], torch.Tensor]]:
    """A function from hidden states [T, hidden] to `model`'s logits [T, vocabulary], as its own forward makes them."""
    given: list[torch.Tensor] = []

    def instead(*_: Any, **__: Any) -> Any:
        return kind(last_hidden_state=given[0][None])

    def logits_of(hidden: torch.Tensor) -> torch.Tensor:
        given[:] = [hidden]
        logits: torch.Tensor = model().logits
        return logits[0].float()

    before = base.__dict__.get("forward")
    base.__dict__["forward"] = instead
    try:
        yield logits_of
    finally:
        del base.__dict__["forward"]
        if before is not None:
            base.__dict__["forward"] = before


class _Loss(torch.autograd.Function):
    """Sum of the losses, whose gradient is made chunk by chunk on the way forward."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        targets: torch.Tensor,
        size: int,
        logits_of: Callable[[torch.Tensor], torch.Tensor],
    ) -> tuple[torch.Tensor, torch.Tensor]:
        wanted = ctx.needs_input_grad[0]
        total = torch.zeros((), device=hidden.device)
        right = torch.zeros((), dtype=torch.long, device=hidden.device)
        gradients = []
        for chunk, labels in zip(torch.split(hidden, size), torch.split(targets, size), strict=True):
            part = chunk.detach().requires_grad_(wanted)
            with torch.set_grad_enabled(wanted):
                logits = logits_of(part)
                loss = functional.cross_entropy(logits, labels, reduction="sum")
            if wanted:
                gradients.append(torch.autograd.grad(loss, part)[0])
            total += loss.detach()
            right += (logits.detach().argmax(-1) == labels).sum()
        if wanted:
            ctx.save_for_backward(torch.cat(gradients))
        ctx.mark_non_differentiable(right)
        return total, right

    @staticmethod
    def backward(ctx: Any, *upstream: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * upstream[0].to(gradient.dtype), None, None, None
