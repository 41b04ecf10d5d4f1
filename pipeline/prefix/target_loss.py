"""The loss of chosen positions of a language model, a few at a time: the logits of all never exist at once.

The layers are run once. What a model does after them (its output head, and whatever scaling or capping follows) is then
run for the target positions alone, in chunks, each with its gradient at once. So memory holds the logits of one chunk
instead of three times those of a whole batch, and positions that predict nothing cost no logits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from pipeline.prefix.architecture import anatomy
from pipeline.prefix.lean import last_layer_at

CHUNK = 2**23
"""Logits in a chunk at most: 32 MB in float32."""


def target_loss(
    model: PreTrainedModel, inputs: dict[str, torch.Tensor], positions: torch.Tensor, targets: torch.Tensor
) -> tuple[torch.Tensor, int | None]:
    """The negative log-likelihood of `targets`, and how many of them are the most likely token.

    Args:
        model: a causal language model or an encoder-decoder, with or without a prefix attached.
        inputs: what its layers are called with: input_ids [B, N], attention_mask, position_ids; those of an
            encoder-decoder's decoder, with the encoder's states among them.
        positions: where the targets' logits stand, as indices into B·N, [T].
        targets: token ids, [T].

    Returns:
        The sum over the targets in nats, a scalar with a graph where gradients are on; and the count, or None where they
        are on: nobody asks there, and to look for the most likely token costs 4 to 5 % of a step.
    """
    found = anatomy(model)
    base = found.base
    places, place = torch.unique(
        positions, return_inverse=True
    )  # several targets may be predicted at one place
    with last_layer_at(found, places, inputs["input_ids"].numel()):
        outputs = base(**inputs)
    order = place.argsort(stable=True)
    hidden = outputs.last_hidden_state.flatten(0, 1)[places]  # [places, hidden]
    size = max(1, CHUNK // model.get_output_embeddings().weight.shape[0])
    with _after(model, base, type(outputs)) as logits_of:
        total, right = _Loss.apply(hidden, place[order], targets[order], size, logits_of)  # type: ignore[no-untyped-call]
    return total, None if hidden.requires_grad else int(right)


@contextmanager
def _after(
    model: Any, base: Any, kind: Callable[..., Any]
) -> Iterator[Callable[[torch.Tensor], torch.Tensor]]:
    """A function from hidden states [T, hidden] to `model`'s logits [T, vocabulary], as its own forward makes them."""
    given: list[torch.Tensor] = []
    nothing: dict[str, Any] = {}
    if model.config.is_encoder_decoder:  # its own forward wants a source that was read, and a token
        token = torch.zeros((1, 1), dtype=torch.long, device=model.device)
        states = torch.zeros((1, 1, 1), device=model.device)
        nothing = {"decoder_input_ids": token, "encoder_outputs": BaseModelOutput(last_hidden_state=states)}

    def instead(*_: Any, **__: Any) -> Any:
        return kind(last_hidden_state=given[0][None])

    def logits_of(hidden: torch.Tensor) -> torch.Tensor:
        given[:] = [hidden]
        logits: torch.Tensor = model(**nothing).logits
        return logits.flatten(0, 1).float()  # a view: logits[0] would have a gradient with zeros around it

    before = base.__dict__.get("forward")
    base.__dict__["forward"] = instead
    try:
        yield logits_of
    finally:
        del base.__dict__["forward"]
        if before is not None:
            base.__dict__["forward"] = before


class _Loss(torch.autograd.Function):
    """Sum of the losses, whose gradient is made chunk by chunk on the way forward.

    The gradient of the logits is written down: probabilities minus ones at the targets. So a chunk needs two tensors
    of its logits' size, of which the second serves all chunks.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        place: torch.Tensor,
        targets: torch.Tensor,
        size: int,
        logits_of: Callable[[torch.Tensor], torch.Tensor],
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """`hidden` [places, hidden]; `targets` [T], and `place` [T], in rising order, the row each is predicted at."""
        wanted = ctx.needs_input_grad[0]
        total = torch.zeros((), device=hidden.device)
        right = torch.zeros((), dtype=torch.long, device=hidden.device)
        gradient = torch.empty_like(hidden) if wanted else None
        shared: torch.Tensor | None = None
        starts = range(0, len(hidden), size)
        bounds = torch.searchsorted(place, torch.tensor([*starts, len(hidden)], device=place.device)).tolist()
        for start, first, end in zip(starts, bounds, bounds[1:], strict=False):
            part = hidden[start : start + size].detach().requires_grad_(wanted)
            rows, labels = place[first:end] - start, targets[first:end]
            with torch.set_grad_enabled(wanted):
                logits = logits_of(part)
            with torch.no_grad():
                if shared is None:
                    shared = torch.empty_like(logits)
                likelihood = torch.log_softmax(logits, -1, out=shared[: len(part)])
                total -= likelihood[rows, labels].sum()
                if not wanted:
                    right += (logits.argmax(-1)[rows] == labels).sum()
            if gradient is not None:
                count = torch.bincount(rows, minlength=len(part))
                upstream = likelihood.exp_()
                several = (count > 1).nonzero()[:, 0]
                upstream[several] *= count[several, None]
                upstream.index_put_((rows, labels), upstream.new_tensor(-1.0), accumulate=True)
                gradient[start : start + size] = torch.autograd.grad(logits, part, upstream)[0]
        if gradient is not None:
            ctx.save_for_backward(gradient)
        ctx.mark_non_differentiable(right)
        return total, right

    @staticmethod
    def backward(ctx: Any, *upstream: torch.Tensor) -> tuple[torch.Tensor, None, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * upstream[0].to(gradient.dtype), None, None, None, None
