"""What the base model itself computes for a text, as the start of a prefix."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from pipeline.errors import PrefixError
from pipeline.prefix.architecture import anatomy, check_window
from pipeline.prefix.interface import Columns, switch


def text_key_values(model: PreTrainedModel, input_ids: torch.Tensor) -> torch.Tensor:
    """The base model's own keys and values on a text: what to start a prefix from.

    For a decoder this is exact: with it the model answers x as it would [text + x]. Rotary keys are as the
    key/value cache holds them, at positions 0 to P − 1. An encoder's tokens would also have seen x, so there
    it is only a good place to start.

    Args:
        model: the frozen base.
        input_ids: the text's tokens, [P].

    Returns:
        [L, 2, H, P, D] in the model's dtype, without a graph.

    Raises:
        PrefixError: `model` cannot carry a prefix, or the text is empty or longer than its window.
    """
    if input_ids.dim() != 1 or len(input_ids) == 0:
        raise PrefixError(
            f"text for the prefix: got shape {list(input_ids.shape)}; expected [P] with P of 1 or more"
        )
    found = anatomy(model)
    check_window(found, 0, len(input_ids))
    recorder = _Recorder(len(found.attention))
    undo = switch(model, found, recorder, Columns(0))
    training = model.training
    try:
        model.eval()
        with torch.no_grad():
            device = next(model.parameters()).device
            found.base(input_ids=input_ids[None].to(device))
    finally:
        model.train(training)
        undo()
    return torch.stack([layer for layer in recorder.layers if layer is not None])


class _Recorder:
    def __init__(self, layers: int) -> None:
        self.layers: list[torch.Tensor | None] = [None] * layers

    def seen(self, layer: int, key: torch.Tensor, value: torch.Tensor) -> None:
        self.layers[layer] = torch.stack([key[0], value[0]]).detach().clone()
