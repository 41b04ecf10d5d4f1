"""A prefix on a model: attached for training and scoring, or in the key/value cache for generation.

See `pipeline.prefix.interface` for how it gets there. Two models may run in two threads, even with one config;
one attached model belongs to one thread at a time while it is trained.

Shape legend: B rows, N tokens, L layers, H key/value heads, P prefix positions, D numbers per head.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from types import TracebackType
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from pipeline.errors import PrefixError
from pipeline.prefix.architecture import Anatomy, anatomy, check_window
from pipeline.prefix.interface import PREFIX_ATTENTION, Columns, switch
from pipeline.prefix.tuning import Prefix, PrefixShape

__all__ = ["PREFIX_ATTENTION", "Attachment", "attach", "generate", "per_layer"]


class Attachment:
    """A prefix on a model, until `detach` (or the end of a `with` block)."""

    def __init__(self, model: PreTrainedModel, prefix: Prefix) -> None:
        self._enter(model, [prefix])
        self.prefix = prefix

    def _enter(self, model: PreTrainedModel, prefixes: Sequence[Prefix]) -> None:
        """Let the model's layers ask this attachment, with as many columns as the longest of `prefixes` needs."""
        found = anatomy(model)
        shape = PrefixShape(len(found.attention), found.heads, found.head_size)
        for prefix in prefixes:
            check_fits(model, found, shape, prefix)
        self.model = model
        self._anatomy = found
        self._shape = shape
        self._columns = Columns(max(prefix.length for prefix in prefixes))
        self._layers: tuple[torch.Tensor, ...] = ()
        self._parameters = inspect.signature(found.base.forward).parameters
        self._undo = switch(model, found, self, self._columns)
        self._hook = found.base.register_forward_pre_hook(self._before_forward, with_kwargs=True)

    def detach(self) -> None:
        """Take the prefix off; the model is again as it was. Doing it twice does nothing more."""
        self._hook.remove()
        self._undo()
        self._undo = _nothing
        self._layers = ()

    def __enter__(self) -> Attachment:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.detach()

    def seen(self, layer: int, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """This pass's prefix for `layer`, each [P, H, D]."""
        shape = self._shape
        if not self._layers:
            raise PrefixError(
                f"layer {layer} was called on its own; call {type(self._anatomy.base).__name__} or a model around it"
            )
        if (
            key.shape[1] != shape.heads
            or key.shape[3] != shape.head_size
            or value.shape[3] != shape.head_size
        ):
            raise PrefixError(
                f"layer {layer}: got keys of {key.shape[1]} × {key.shape[3]} and values of {value.shape[1]} × "
                f"{value.shape[3]} (heads × size); expected {shape.heads} × {shape.head_size} for both"
            )
        return self._layers[2 * layer], self._layers[2 * layer + 1]

    def _before_forward(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Make this pass's prefix and place the tokens behind it."""
        kwargs = {**dict(zip(self._parameters, args, strict=False)), **kwargs}
        self._refuse_reentrant_checkpointing()
        tokens = kwargs.get("input_ids")
        embedded = kwargs.get("inputs_embeds")
        like = tokens if tokens is not None or embedded is None else embedded[..., 0]
        if like is None:
            return (), kwargs  # the model itself says what is missing
        cache = kwargs.get("past_key_values")
        past = 0 if cache is None else int(cache.get_seq_length())
        self._check_room(like, past, kwargs)
        kwargs["position_ids"] = self._positions(like, tokens, past, kwargs)
        if cache is None and "use_cache" in self._parameters and kwargs.get("use_cache") is None:
            kwargs["use_cache"] = False  # a cache nobody asked for copies every key and value
        self._layers = self._of_this_pass()
        return (), kwargs

    def _of_this_pass(self) -> tuple[torch.Tensor, ...]:
        """Keys and values of the layers by turns, each as `seen` returns them."""
        return per_layer(self.prefix.key_values(), self.model)

    def _lengths(self) -> torch.Tensor | int:
        """P; [B, 1] where rows have prefixes of their own."""
        return self.prefix.length

    def _check_room(self, like: torch.Tensor, past: int, kwargs: dict[str, Any]) -> None:
        """Refuse tokens [B, N] behind `past` others that with the prefix do not fit the window."""
        given = kwargs.get("position_ids")
        # Where the caller says so, tokens that lie in one row do not all stand behind one another.
        span = past + like.shape[1] if given is None else int(given.max()) + 1
        check_window(self._anatomy, self.prefix.length, span)

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
        if isinstance(mask, torch.Tensor) and mask.dim() == 2:
            return (mask.long().cumsum(1) - 1).clamp_(min=0)[:, past:] + length
        start = past + (0 if offset is None else offset + 1)
        return torch.arange(start, start + like.shape[1], device=like.device)[None] + length

    def _refuse_reentrant_checkpointing(self) -> None:
        for module in self._anatomy.base.modules():
            function = module.__dict__.get("_gradient_checkpointing_func")
            if function is not None and getattr(function, "keywords", {}).get("use_reentrant"):
                raise PrefixError(
                    "gradient checkpointing with use_reentrant=True gives the prefix no gradient; use "
                    'gradient_checkpointing_enable({"use_reentrant": False})'
                )


def check_fits(model: PreTrainedModel, found: Anatomy, shape: PrefixShape, prefix: Prefix) -> None:
    """Raise PrefixError where `prefix` is not of `model`'s `shape`, or leaves no position for a token."""
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


@torch.no_grad()
def generate(
    model: PreTrainedModel,
    prefix: Prefix | None,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    *,
    max_new_tokens: int,
    eos_token_id: int | Sequence[int],
    pad_token_id: int,
    beams: int = 1,
) -> torch.Tensor:
    """The most likely continuation by greedy or beam search, with `prefix` once in the key/value cache.

    Args:
        model: a causal language model without an attachment, in eval mode.
        prefix: what to put in front; None generates with the base alone.
        input_ids: prompts, padded on the left, [B, N].
        attention_mask: 1 for real tokens, [B, N].
        max_new_tokens: when to stop at the latest.
        eos_token_id: when to stop (each of them, where there are several).
        pad_token_id: what fills rows that stopped sooner.
        beams: width of the search; 1 is greedy.

    Returns:
        The new tokens only, [B, up to max_new_tokens].

    Raises:
        PrefixError: not a causal language model, padding on the right, or P + N + max_new_tokens longer than
            the window.
    """
    from transformers import DynamicCache, GenerationConfig

    found = anatomy(model)
    check_prompts(model, found, input_ids, attention_mask)
    length = 0 if prefix is None else prefix.length
    span = length + input_ids.shape[1] + max_new_tokens
    check_window(found, length, span - length)
    settings = GenerationConfig(
        max_new_tokens=max_new_tokens,
        num_beams=beams,
        do_sample=False,
        eos_token_id=eos_token_id,
        pad_token_id=pad_token_id,
    )
    if prefix is None:
        return continued(model, settings, input_ids, attention_mask)
    attachment = attach(model, prefix)
    if found.sliding_window is not None and span > found.sliding_window:
        # a cache would let the prefix slide out of sight, which it never does in training
        with attachment:
            return continued(model, settings, input_ids, attention_mask)
    attachment.detach()
    rows = len(input_ids) * beams
    layers = per_layer(prefix.key_values(), model)
    cache = DynamicCache()
    for layer in range(len(layers) // 2):
        key, value = (part.transpose(0, 1).expand(rows, -1, -1, -1) for part in layers[2 * layer :][:2])
        cache.update(key, value, layer)
    front = input_ids.new_full((len(input_ids), length), pad_token_id)  # stands for what the cache holds
    return continued(
        model,
        settings,
        torch.cat([front, input_ids], dim=1),
        torch.cat([torch.ones_like(front), attention_mask], dim=1),
        past_key_values=cache,
    )


def check_prompts(
    model: PreTrainedModel, found: Anatomy, input_ids: torch.Tensor, attention_mask: torch.Tensor
) -> None:
    """Raise PrefixError where `model` does not generate, or prompts and mask are not alike and padded on the left."""
    if not found.causal or not hasattr(model, "generate"):
        raise PrefixError(
            f"{type(model).__name__} does not generate; load the base as a causal language model"
        )
    if attention_mask.shape != input_ids.shape or not bool(attention_mask[:, -1].all()):
        raise PrefixError(
            f"generation: got a mask of shape {list(attention_mask.shape)} for prompts of shape "
            f"{list(input_ids.shape)}; expected both alike, with the padding on the left"
        )


def continued(
    model: Any, settings: Any, input_ids: torch.Tensor, attention_mask: torch.Tensor, **cache: Any
) -> torch.Tensor:
    """What `model.generate` puts behind `input_ids` [B, N], without them."""
    sequences: torch.Tensor = model.generate(
        input_ids=input_ids, attention_mask=attention_mask, generation_config=settings, **cache
    )
    return sequences[:, input_ids.shape[1] :]


def per_layer(key_values: torch.Tensor, model: PreTrainedModel) -> tuple[torch.Tensor, ...]:
    """[L, 2, H, P, D] → 2·L tensors [P, H, D], keys and values by turns, in the model's dtype and device."""
    weight = next(model.parameters())
    rows = key_values.to(device=weight.device, dtype=weight.dtype)
    return rows.transpose(2, 3).flatten(0, 1).unbind(0)


def _nothing() -> None:
    pass
