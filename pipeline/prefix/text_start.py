"""What the base model itself computes for a text, as the start of a prefix."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from pipeline.errors import PrefixError
from pipeline.prefix.architecture import anatomy, check_window
from pipeline.prefix.entries import enter, leave
from pipeline.prefix.source import Columns


def text_key_values(model: PreTrainedModel, input_ids: torch.Tensor) -> torch.Tensor:
    """The base model's own keys and values on a text: what to start a prefix from.

    For a decoder this is exact: with it the model answers x as it would [text + x]. (Behind a sliding window, as long
    as the text would still be in sight; the prefix always is.) Rotary keys are as the key/value cache holds them, at
    positions 0 to P − 1. An encoder's tokens would also have seen x, and the layers of a hybrid that are no attention
    would have read the text, so there it is only a good place to start. An encoder-decoder reads the text in its
    encoder and in its decoder.

    Args:
        model: the frozen base.
        input_ids: the text's tokens, [P].

    Returns:
        [P, S] in the model's dtype, without a graph (see `pipeline.prefix.tuning`).

    Raises:
        PrefixError: `model` cannot carry a prefix, or the text is empty, of tokens that it does not have, or longer than
            its window or sliding window.
    """
    if not isinstance(input_ids, torch.Tensor):
        raise PrefixError(
            f"text for the prefix: got a {type(input_ids).__name__}; expected its tokens as a tensor [P]"
        )
    if input_ids.dim() != 1 or len(input_ids) == 0:
        raise PrefixError(
            f"text for the prefix: got shape {list(input_ids.shape)}; expected [P] with P of 1 or more"
        )
    words = model.get_input_embeddings().weight.shape[0]
    if input_ids.dtype not in (torch.int64, torch.int32) or not bool(
        ((input_ids >= 0) & (input_ids < words)).all()
    ):
        raise PrefixError(
            f"text for the prefix: got {input_ids.tolist()}; expected tokens of the base model, whole numbers from 0 to "
            f"{words - 1}"
        )
    found = anatomy(model)
    check_window(found, len(input_ids), 0 if found.shifts else len(input_ids))
    recorder = _Recorder()
    entry = enter(model, found, recorder, Columns(0))
    modes = {module: module.training for module in model.modules()}
    rows = input_ids[None].to(next(model.parameters()).device)
    try:
        model.eval()
        with torch.no_grad():
            states = None
            for stack in found.stacks:
                inputs = {"input_ids": rows}
                if states is not None:
                    inputs["encoder_hidden_states"] = states
                entry.begin(inputs)
                states = stack(**inputs).last_hidden_state
    finally:
        for module, training in modes.items():
            module.training = training
        leave(found, entry)
    return torch.cat([recorder.layers[layer] for layer in range(len(found.layers))], dim=1)


class _Recorder:
    def __init__(self) -> None:
        self.layers: dict[int, torch.Tensor] = {}

    def given(self, layer: int) -> None:
        return None

    def seen(self, layer: int, key: torch.Tensor, value: torch.Tensor) -> None:
        parts = [part[0].transpose(0, 1).flatten(1) for part in (key, value)]  # each [P, H·D]
        self.layers[layer] = torch.cat(parts, dim=1).detach().clone()
