"""Which models can carry a prefix, and that the others are refused before anything is computed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

from pipeline.errors import PrefixError
from pipeline.prefix.architecture import anatomy
from pipeline.prefix.tuning import PrefixShape
from tests.prefix.models import BEYOND_PEFT, DECODERS, ENCODERS, REFUSED, config_of, decoder, encoder


def test_the_tables_hold_the_architectures_they_are_meant_to() -> None:
    assert (len(DECODERS), len(ENCODERS), len(BEYOND_PEFT), len(REFUSED)) == (10, 5, 4, 11)


OFF_THE_INTERFACE = "of which 0 have their own attention module"
REASONS = {
    "Bloom": OFF_THE_INTERFACE,
    "Falcon": OFF_THE_INTERFACE,
    "Mpt": OFF_THE_INTERFACE,
    "GPTJ": OFF_THE_INTERFACE,
    "DebertaV2": OFF_THE_INTERFACE,
    "DeepseekV3": "compresses its keys and values \\(kv_lora_rank = 8\\)",
    "Mamba": "has layers of the kind linear_attention",
    "Qwen3Next": "has layers of the kind linear_attention",
    "Albert": "has 3 layers, of which 1 have their own attention module",
    "T5": "has an encoder and a decoder",
    "Bart": "has an encoder and a decoder",
}


@pytest.mark.parametrize("family", REFUSED)
def test_what_cannot_carry_a_prefix_is_refused_in_one_sentence(family: str) -> None:
    kind = "T5ForConditionalGeneration BartForConditionalGeneration AlbertModel DebertaV2Model".split()
    name = next((name for name in kind if name.startswith(family)), f"{family}ForCausalLM")
    with torch.device("meta"):
        model = getattr(transformers, name)(config_of(family, REFUSED[family]))
    sentence = rf"^{name} cannot carry a prefix: it .*{REASONS[family]}.*; use an encoder or decoder"
    with pytest.raises(PrefixError, match=sentence):
        PrefixShape.of_model(model)


@pytest.mark.parametrize("family", DECODERS)
def test_a_decoder_is_causal_and_its_shape_is_that_of_its_cache(family: str) -> None:
    model = decoder(family)
    shape, found = PrefixShape.of_model(model), anatomy(model)
    cache = model(torch.tensor([[5, 6, 7]]), use_cache=True).past_key_values
    assert len(cache.layers) == shape.layers
    assert {tuple(layer.keys.shape) for layer in cache.layers} == {(1, shape.heads, 3, shape.head_size)}
    assert found.causal
    assert found.window == 64


@pytest.mark.parametrize(("family", "window"), [("Bert", 64), ("Roberta", 62), ("Electra", 64)])
def test_an_encoder_is_not_causal_and_roberta_loses_two_positions(family: str, window: int) -> None:
    found = anatomy(encoder(family))
    assert not found.causal
    assert found.window == window


def test_layers_come_in_their_order() -> None:
    model = decoder("Gemma3")
    assert [module.layer_idx for module in anatomy(model).attention] == [0, 1, 2]


def test_layers_with_keys_of_different_sizes_are_refused() -> None:
    model = decoder()
    model.model.layers[1].self_attn.k_proj = torch.nn.Linear(32, 24)
    with pytest.raises(PrefixError, match="keys of 24 numbers in layer 1 and of 16 in its config"):
        anatomy(model)


def test_a_model_without_position_ids_is_refused() -> None:
    model = decoder()

    def forward(input_ids: Any) -> None: ...

    model.model.forward = forward
    with pytest.raises(PrefixError, match="takes no position_ids"):
        anatomy(model)


def test_a_module_whose_source_cannot_be_read_is_not_taken_for_attention() -> None:
    space: dict[str, Any] = {"torch": torch}
    exec("class Odd(torch.nn.Module):\n    def forward(self): ...", space)
    model = decoder()
    model.odd = space["Odd"]()
    assert len(anatomy(model).attention) == 3
