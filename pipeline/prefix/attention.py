"""A prefix on a model: attached for training and scoring.

See `pipeline.prefix.entries` for how it gets there, and `pipeline.prefix.generation` for continuing a text behind one.
Two models may run in two threads, even with one config; one attached model belongs to one thread at a time while it
is trained.

Shape legend: B rows, N tokens, H key/value heads, P prefix positions, Dk and Dv numbers per key and value.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from functools import partial
from types import TracebackType
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from pipeline.errors import PrefixError
from pipeline.prefix.architecture import Anatomy, anatomy, check_padding, check_window
from pipeline.prefix.entries import Entry, enter, leave
from pipeline.prefix.source import Columns
from pipeline.prefix.tuning import Prefix, PrefixShape

Layers = tuple[tuple[torch.Tensor, torch.Tensor], ...]
"""Keys and values for each layer."""


class Attachment:
    """A prefix on a model, until `detach` (or the end of a `with` block)."""

    def __init__(self, model: PreTrainedModel, prefix: Prefix) -> None:
        self._enter(model, [prefix])
        self.prefix = prefix

    def _enter(self, model: PreTrainedModel, prefixes: Sequence[Prefix]) -> None:
        """Let the model's layers ask this attachment, with as many columns as the longest of `prefixes` needs."""
        found = anatomy(model)
        shape = PrefixShape(found.layers)
        for prefix in prefixes:
            check_fits(model, found, shape, prefix)
        self.model = model
        self._anatomy = found
        self._shape = shape
        self._columns = Columns(max(prefix.length for prefix in prefixes))
        self._layers: Layers = ()
        self._entry: Entry | None = enter(model, found, self, self._columns)
        self._hooks = [
            stack.register_forward_pre_hook(
                partial(self._before_forward, list(inspect.signature(stack.forward).parameters)),
                with_kwargs=True,
            )
            for stack in found.stacks
        ]

    def detach(self) -> None:
        """Take the prefix off; the model is again as it was. Doing it twice does nothing more."""
        if self._entry is None:
            return
        for hook in self._hooks:
            hook.remove()
        leave(self._anatomy, self._entry)
        self._entry = None
        self._layers = ()

    def __enter__(self) -> Attachment:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.detach()

    def __getstate__(self) -> dict[str, Any]:
        # A model may be copied while a prefix is on it; what the last pass left has a graph, which cannot be.
        return {**self.__dict__, "_layers": ()}

    def seen(self, layer: int, key: torch.Tensor, value: torch.Tensor) -> None:
        """Check that the keys and values of `layer` are of the prefix's shape."""
        shape = self._shape.layers[layer]
        if (key.shape[1], key.shape[3], value.shape[3]) != (shape.heads, shape.key_size, shape.value_size):
            raise PrefixError(
                f"layer {layer}: got keys of {key.shape[1]} × {key.shape[3]} and values of {value.shape[1]} × "
                f"{value.shape[3]} (heads × size); expected {shape.heads} × {shape.key_size} and "
                f"{shape.heads} × {shape.value_size}"
            )

    def given(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """This pass's prefix for `layer`, as `Source.given` says."""
        if not self._layers:
            raise PrefixError(
                f"layer {layer} was called on its own; call {type(self._anatomy.base).__name__} or a model around it"
            )
        return self._layers[layer]

    def _before_forward(
        self, parameters: list[str], stack: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Make this pass's prefix and place the tokens behind it."""
        assert self._entry is not None
        kwargs = {**dict(zip(parameters, args, strict=False)), **kwargs}
        self._refuse_reentrant_checkpointing()
        tokens = kwargs.get("input_ids")
        embedded = kwargs.get("inputs_embeds")
        like = tokens if tokens is not None or embedded is None else embedded[..., 0]
        if like is None:
            return (), kwargs  # the model itself says what is missing
        cache = kwargs.get("past_key_values")
        if cache is None and "use_cache" in parameters and kwargs.get("use_cache") is None:
            kwargs["use_cache"] = False  # a cache nobody asked for copies every key and value
        past = 0 if cache is None else int(cache.get_seq_length())
        self._check_room(like, past, kwargs)
        check_padding(self._anatomy, kwargs.get("attention_mask"))
        if self._anatomy.shifts and "position_ids" in parameters:
            kwargs["position_ids"] = self._positions(like, tokens, past, kwargs)
        self._entry.begin(kwargs)
        self._layers = self._of_this_pass()
        return (), kwargs

    def _of_this_pass(self) -> Layers:
        """For each layer its keys and values, as `given` returns them."""
        return layers_of(self.prefix, self.model)

    def _lengths(self) -> torch.Tensor | int:
        """P; [B, 1] where rows have prefixes of their own."""
        return self.prefix.length

    def _check_room(self, like: torch.Tensor, past: int, kwargs: dict[str, Any]) -> None:
        """Refuse tokens [B, N] behind `past` others that with the prefix do not fit the window."""
        check_window(self._anatomy, self.prefix.length, max(self._spans(like, past, kwargs)))

    def _spans(self, like: torch.Tensor, past: int, kwargs: dict[str, Any]) -> list[int]:
        """How many positions each row's tokens take, [B] or [1]."""
        found, given, mask = self._anatomy, kwargs.get("position_ids"), kwargs.get("attention_mask")
        if given is not None:  # then tokens that lie in one row do not all stand behind one another
            first = 0 if found.padding_offset is None else found.padding_offset + 1
            last = given.amax(
                -1
            )  # [B], or a dimension more where positions have several parts (multimodal rotary ones)
            return [int(position) + 1 - first for position in last.flatten()]
        width = past + like.shape[1]
        # Padding takes positions only where the base itself counts them.
        fits = found.window is None or self._columns.length + width <= found.window
        if fits or not found.shifts or not (isinstance(mask, torch.Tensor) and mask.dim() == 2):
            return [width]
        return [int(count) for count in mask.sum(1)]

    def _positions(
        self, like: torch.Tensor, tokens: torch.Tensor | None, past: int, kwargs: dict[str, Any]
    ) -> torch.Tensor:
        """[B or 1, N]: real tokens count from P on, whichever side the padding is on."""
        length = self._lengths()
        given: torch.Tensor | None = kwargs.get("position_ids")
        if given is not None:
            return given + length
        offset = self._anatomy.padding_offset
        if offset is not None and tokens is not None:
            real = tokens.ne(offset).long()
            return (real.cumsum(1) + past + length) * real + offset
        mask = kwargs.get("attention_mask")
        if offset is None and isinstance(mask, torch.Tensor) and mask.dim() == 2:
            return (mask.long().cumsum(1) - 1).clamp_(min=0)[:, past:] + length
        # RoBERTa's own way with embedded tokens, of which it cannot tell the padding: one after another.
        start = past + (0 if offset is None else offset + 1)
        return torch.arange(start, start + like.shape[1], device=like.device)[None] + length

    def _refuse_reentrant_checkpointing(self) -> None:
        for module in self.model.modules():
            function = module.__dict__.get("_gradient_checkpointing_func")
            if function is not None and getattr(function, "keywords", {}).get("use_reentrant"):
                raise PrefixError(
                    "gradient checkpointing with use_reentrant=True gives the prefix no gradient; use "
                    'gradient_checkpointing_enable({"use_reentrant": False})'
                )


def check_fits(model: PreTrainedModel, found: Anatomy, shape: PrefixShape, prefix: Prefix) -> None:
    """Raise PrefixError where `prefix` is not of `model`'s `shape`, or leaves no position for a token."""
    if not isinstance(prefix, Prefix):
        raise PrefixError(f"got a {type(prefix).__name__} to attach; expected a Prefix")
    if prefix.shape != shape:
        raise PrefixError(f"the prefix is for {prefix.shape}; {type(model).__name__} needs {shape}")
    check_window(found, prefix.length, 1)


def attach(model: PreTrainedModel, prefix: Prefix) -> Attachment:
    """Let `model` see `prefix` at every attention layer until `.detach()`, or as a context manager:

        with attach(model, prefix):
            logits = model(input_ids=input_ids, attention_mask=attention_mask).logits

    Real tokens take the positions from P on, as in PEFT; `position_ids`, where given, are counted without the
    prefix. Gradients reach the prefix; run `backward` before detaching if gradient checkpointing is on.

    Raises:
        PrefixError: the model's architecture cannot carry a prefix, the prefix has another shape, or one is
            already attached. During a pass: input + P longer than the window.
    """
    return Attachment(model, prefix)


def layers_of(prefix: Prefix, model: PreTrainedModel) -> Layers:
    """For each layer the prefix's keys [P, H, Dk] and values [P, H, Dv], in the model's dtype and on its device.

    [B, P, H, …] where rows see numbers of their own (`Prefix.keeping`).
    """
    weight = next(model.parameters())
    rows = prefix.key_values().to(device=weight.device, dtype=weight.dtype)
    return prefix.shape.per_layer(rows)
