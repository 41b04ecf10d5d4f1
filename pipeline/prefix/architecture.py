"""Which models can carry a prefix, and where in them it goes.

A prefix has to enter each attention layer where its keys and values are finished. There are three such places,
and every model has one of them (see `Place`). A model qualifies if each of its attention layers has the same one.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, NoReturn

import torch
from torch import nn
from transformers import PreTrainedModel

from pipeline.errors import PrefixError

Place = Literal["interface", "cache", "projections"]
"""Where a prefix enters a layer: the call of the AttentionInterface, the update of the key/value cache (BLOOM,
Falcon, MPT, GPT-J), or the outputs of the key and value projections (DeBERTa-v2)."""

_WAY_OUT = (
    "use a model whose attention goes through transformers' AttentionInterface (BERT, RoBERTa, Llama, Qwen3, "
    "Gemma 3, GPT-2, T5, BART, ...), or hands its keys and values to a cache (BLOOM, Falcon, MPT, GPT-J)"
)
_ATTENTION_KINDS = {"full_attention", "sliding_attention", "chunked_attention"}
_OTHER_KINDS = {"linear_attention", "conv", "mamba", "moe", "mlp"}


@dataclass(frozen=True)
class LayerShape:
    """What one position of a prefix is in one attention layer: a key and a value for each of `heads`."""

    heads: int
    key_size: int
    value_size: int

    @property
    def size(self) -> int:
        """Numbers in one position: H·(Dk + Dv)."""
        return self.heads * (self.key_size + self.value_size)


@dataclass(frozen=True)
class Anatomy:
    """What the engine has to know of a model.

    Attributes:
        stacks: the innermost models around all layers, whose forward passes build the masks and the positions: one,
            or an encoder and a decoder.
        attention: the attention module of every layer in the order in which they run. With an encoder and a decoder
            it is the encoder's, then the decoder's self-attention, then its cross-attention. A module that several
            layers share (ALBERT) is there as often.
        layers: the shape of a prefix in each of them.
        place: where the prefix enters.
        window: the most positions the model can tell apart; None where nothing limits them.
        sliding_window: of a decoder, the shortest span of tokens that a layer sees; None where every layer sees all.
        causal: whether a token sees only what is before it; of an encoder and a decoder, the encoder's answer.
        padding_offset: RoBERTa counts real tokens from `padding_idx` + 1; this is `padding_idx`, else None.
        shifts: whether real tokens stand behind the prefix, from position P on, as they do in PEFT. Where a model
            cannot be told where its tokens stand (T5, BART), they stay where it puts them.
        told_positions: whether `position_ids` alone say where a token stands, and the mask alone what it sees.
        column_distances: whether distances count the columns of a row, padding among them (MPT, DeBERTa-v2): padding
            between the prefix and the text would then move the prefix away.
        every_layer: whether each of the model's layers is an attention layer.
        plain_cache: whether its key/value cache holds every layer's keys and values as attention takes them.
    """

    stacks: tuple[PreTrainedModel, ...]
    attention: tuple[nn.Module, ...]
    layers: tuple[LayerShape, ...]
    place: Place
    window: int | None
    sliding_window: int | None
    causal: bool
    padding_offset: int | None
    shifts: bool
    told_positions: bool
    column_distances: bool
    every_layer: bool
    plain_cache: bool

    @property
    def base(self) -> PreTrainedModel:
        """The stack whose states a head reads."""
        return self.stacks[-1]

    @property
    def encoder_decoder(self) -> bool:
        """Whether it is an encoder and a decoder."""
        return len(self.stacks) == 2


def anatomy(model: PreTrainedModel) -> Anatomy:
    """Look `model` (a transformers PreTrainedModel) over; nothing is computed with it.

    Raises:
        PrefixError: it cannot carry a prefix; the message says why and what can.
    """
    _check_is_model(model)
    config = model.config.get_text_config()
    if shared := getattr(config, "num_kv_shared_layers", None):
        _refuse(model, f"shares keys and values between layers (num_kv_shared_layers = {shared})")
    if getattr(config, "prompt_types", None):
        _refuse(model, "puts a prompt of its own in front, and takes what is in its cache for that")
    place, modules = _place(model)
    both = bool(getattr(model.config, "is_encoder_decoder", False))
    if both:
        stacks, attention = _encoder_and_decoder(model, modules)
    else:
        stacks, attention = _one_stack(model, config, modules)
    takes_positions = all(_takes(stack, "position_ids") for stack in stacks)
    hybrid = len(attention) < config.num_hidden_layers
    latent = any(hasattr(module, "kv_lora_rank") for module in attention)
    alibi = bool(getattr(config, "alibi", False))
    padding_offset = _padding_offset(stacks[0])
    window = getattr(config, "max_position_embeddings", None) or getattr(config, "max_seq_len", None)
    if window is not None and padding_offset is not None:
        window -= padding_offset + 1
    spans = [
        span
        for key in ("sliding_window", "attention_chunk_size")
        if isinstance(span := getattr(config, key, None), int) and span > 0
    ]
    causal = bool(getattr(attention[0], "is_causal", place != "projections"))
    return Anatomy(
        stacks=stacks,
        attention=attention,
        layers=tuple(_layer_shape(model, module, number) for number, module in enumerate(attention)),
        place=place,
        window=window,
        sliding_window=min(spans, default=None),
        causal=causal,
        padding_offset=padding_offset,
        shifts=place == "cache" or (takes_positions and not both),
        told_positions=takes_positions and place != "projections" and not (both or hybrid or alibi),
        column_distances=place == "projections"
        or (_takes(attention[0], "position_bias") and place == "cache"),
        every_layer=not hybrid,
        plain_cache=causal and place != "projections" and not (both or hybrid or latent),
    )


def _check_is_model(model: object) -> None:
    # By its config, not its class: what torch.compile makes of a model is no PreTrainedModel.
    if not isinstance(model, nn.Module) or not hasattr(model, "config"):
        raise PrefixError(f"got a {type(model).__name__}; expected a loaded model of transformers")


def _place(model: PreTrainedModel) -> tuple[Place, list[nn.Module]]:
    """Where a prefix enters `model`, and the modules with such a place."""
    modules: list[nn.Module] = list(model.modules())
    ways: dict[Place, Callable[[Callable[..., Any]], bool]] = {
        "interface": calls_the_interface,
        "cache": updates_a_cache,
        "projections": projects_keys_and_positions,
    }
    for place, goes in ways.items():
        if found := [module for module in modules if goes(type(module).forward)]:
            odd = {
                type(module)
                for module in found
                if place == "interface" and not asks_once(type(module).forward)
            }
            if odd:
                names = ", ".join(sorted(kind.__name__ for kind in odd))
                _refuse(
                    model, f"attends more than once in a layer, or with a mask of a layer's own ({names})"
                )
            return place, found
    return _refuse(model, "has no attention layer that a prefix can enter")


def _one_stack(
    model: PreTrainedModel, config: Any, modules: list[nn.Module]
) -> tuple[tuple[PreTrainedModel, ...], tuple[nn.Module, ...]]:
    attention = sorted(modules, key=lambda module: getattr(module, "layer_idx", None) or 0)
    if any(_takes(module, "cross_attention_states") for module in modules):
        _refuse(model, "has layers that attend to an image and not to the text")
    kinds = getattr(config, "layer_types", None)
    expected = config.num_hidden_layers
    if kinds is not None:
        expected = sum(kind in _ATTENTION_KINDS for kind in kinds)
    if groups := getattr(config, "num_hidden_groups", None):
        # ALBERT: each group of modules stands for several layers in a row
        inner = len(attention) // groups
        runs = config.num_hidden_layers / groups
        attention = [
            attention[int(layer / runs) * inner + i]
            for layer in range(config.num_hidden_layers)
            for i in range(inner)
        ]
        expected *= inner
    unknown = sorted(set(kinds or ()) - _ATTENTION_KINDS - _OTHER_KINDS)
    if len(attention) != expected and unknown:
        _refuse(
            model, f"has layers of kinds of which it is not known whether they attend ({', '.join(unknown)})"
        )
    if len(attention) > expected:
        _refuse(
            model,
            f"has {len(attention)} attention modules for {expected} layers of text: others see images or sound, say; load "
            "its language model alone",
        )
    if len(attention) < expected:
        _refuse(
            model,
            f"has {expected} attention layers, of which {len(attention)} have their own attention module that a "
            "prefix can enter",
        )
    # The innermost model around all layers: OPTForCausalLM goes past OPTModel, straight to its decoder.
    stacks = [
        part for part in model.modules() if isinstance(part, PreTrainedModel) and holds(part, attention)
    ]
    return (stacks[-1],), tuple(attention)


def _encoder_and_decoder(
    model: Any, modules: list[nn.Module]
) -> tuple[tuple[PreTrainedModel, ...], tuple[nn.Module, ...]]:
    encoder, decoder = model.get_encoder(), model.get_decoder()
    if hasattr(model.config.get_text_config(), "router_aux_loss_coef"):
        _refuse(model, "routes tokens to experts in an encoder-decoder, whose outputs are of another kind")
    if decoder.get_output_embeddings() is not None:
        _refuse(model, f"has a whole language model ({type(decoder).__name__}) for its decoder")
    inside = [module for module in modules if holds(encoder, [module])]
    of_decoder = [module for module in modules if holds(decoder, [module])]
    # A decoder's layer has its self-attention, then its cross-attention.
    own, cross = of_decoder[0::2], of_decoder[1::2]
    if not inside or len(own) != len(cross):
        _refuse(
            model,
            f"has {len(inside)} attention modules in its encoder and {len(of_decoder)} in its decoder that a prefix "
            "can enter; expected one for each layer of the encoder and two for each of the decoder",
        )
    return (encoder, decoder), (*inside, *own, *cross)


def _layer_shape(model: PreTrainedModel, module: Any, number: int) -> LayerShape:
    config = model.config.get_text_config()
    if hasattr(module, "kv_lora_rank"):  # keys and values as they come out of the latent
        return LayerShape(module.num_heads, module.qk_head_dim, module.v_head_dim)
    names = ("head_dim", "attention_head_size", "head_size", "key_value_proj_dim")
    size = next(
        (getattr(module, name) for name in names if isinstance(getattr(module, name, None), int)), None
    )
    size = size or getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    parts = (getattr(module, name, None) for name in ("k_proj", "key", "k", "key_proj", "k_lin"))
    projection = next((part for part in parts if isinstance(part, nn.Linear)), None)
    if projection is not None:
        heads, rest = divmod(projection.out_features, size)
        if rest:
            _refuse(
                model,
                f"has keys of {projection.out_features} numbers in layer {number}, of heads with {size}",
            )
    elif getattr(module, "new_decoder_architecture", False):  # Falcon copies its key/value heads to all heads
        heads = module.num_heads
    else:
        heads = (
            getattr(module, "num_kv_heads", None)
            or getattr(config, "num_key_value_heads", None)
            or config.num_attention_heads
        )
    heads *= getattr(module, "top_k", 1)  # JetMoE repeats its keys and values for each expert of a token
    value_size = getattr(module, "v_head_dim", size)
    return LayerShape(heads, size, value_size if isinstance(value_size, int) else size)


@cache
def calls_the_interface(forward: Callable[..., Any]) -> bool:
    """Whether a module class's `forward` calls an attention function it got from the AttentionInterface.

    Read off its source, as transformers itself decides whether a model's attention can be exchanged.
    """
    return "ALL_ATTENTION_FUNCTIONS.get_interface(" in _source(forward)


@cache
def asks_once(forward: Callable[..., Any]) -> bool:
    """Whether a `forward` on the AttentionInterface calls it once, with the mask that it was given.

    DiffLlama attends twice, to different values; Doge's mask is made of the values. One prefix for each layer in front
    of keys and values would not be what a cache holds there.
    """
    calls = re.findall(
        r"attention_interface\(\s*self,\s*\w+,\s*\w+,\s*\w+,\s*(?:attention_mask=)?(\w+)", _source(forward)
    )
    return calls in (["attention_mask"], ["mask"])


@cache
def updates_a_cache(forward: Callable[..., Any]) -> bool:
    """Whether a module class's `forward` hands its keys and values to the cache it is given, and goes on with those.

    A module with states of another kind updates a cache too, but not with keys and values.
    """
    return (
        re.search(r"key\w*, value\w* = (layer_past|past_key_values)\.update\(key", _source(forward))
        is not None
    )


@cache
def projects_keys_and_positions(forward: Callable[..., Any]) -> bool:
    """Whether a module class's `forward` is that of DeBERTa-v2's disentangled attention."""
    source = _source(forward)
    return "self.key_proj(hidden_states)" in source and "disentangled_attention_bias(" in source


def _takes(module: nn.Module, argument: str) -> bool:
    return argument in inspect.signature(module.forward).parameters


def _source(forward: Callable[..., Any]) -> str:
    try:
        return inspect.getsource(forward)
    except OSError:  # defined where no source is, as in an interactive session: not one of transformers'
        return ""


def holds(module: nn.Module, parts: Sequence[nn.Module]) -> bool:
    """Whether all of `parts` are somewhere within `module`."""
    return set(parts) <= set(module.modules())


def outside_backbone(model: PreTrainedModel) -> dict[str, nn.Parameter]:
    """{name: parameter} of what stands around `model`'s layers and embeddings: a head."""
    backbone = {id(parameter) for parameter in model.base_model.parameters()}
    return {name: p for name, p in model.named_parameters() if id(p) not in backbone}


def check_window(found: Anatomy, length: int, tokens: int) -> None:
    """Raise PrefixError where a prefix of `length` and `tokens` tokens need more positions than there are.

    Nor may a decoder's prefix alone be longer than what a layer with a sliding window sees: read from a cache, as PEFT
    does, its beginning would be out of sight from the first token on.
    """
    if found.causal and found.sliding_window is not None and length > found.sliding_window:
        raise PrefixError(
            f"prefix of {length} positions; the base model has layers that see {found.sliding_window} (its sliding "
            "window); expected at most as many: shorten the prefix"
        )
    if not found.shifts:
        length = 0
    if found.window is not None and length + tokens > found.window:
        raise PrefixError(
            f"prefix of {length} + input of {tokens} tokens = {length + tokens} positions; "
            f"the base model has {found.window}; shorten the prefix or the text"
        )


def check_padding(found: Anatomy, mask: torch.Tensor | None) -> None:
    """Raise PrefixError where `mask` [B, N] has padding on the left of a model that would take it for distance."""
    if found.column_distances and mask is not None and mask.dim() == 2 and not bool(mask[:, 0].all()):
        raise PrefixError(
            f"padding on the left: {type(found.base).__name__} would count it as distance between the prefix and the "
            "text; pad on the right"
        )


def _padding_offset(stack: PreTrainedModel) -> int | None:
    embeddings: Any = getattr(stack, "embeddings", None)
    maker = "create_position_ids_from_input_ids"  # a method in RoBERTa, a function of the file in ESM
    if hasattr(embeddings, maker) or hasattr(sys.modules[type(stack).__module__], maker):
        return int(embeddings.padding_idx)
    return None


def _refuse(model: PreTrainedModel, reason: str) -> NoReturn:
    raise PrefixError(f"{type(model).__name__} cannot carry a prefix: it {reason}; {_WAY_OUT}")
