"""Which models can carry a prefix, and that the others are refused before anything is computed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

from pipeline.errors import PrefixError
from pipeline.prefix.architecture import LayerShape, anatomy
from pipeline.prefix.attention import attach
from pipeline.prefix.text_start import text_key_values
from pipeline.prefix.tuning import Prefix, PrefixShape
from tests.prefix.models import (
    DECODERS,
    REFUSED,
    SMALL,
    config_of,
    decoder,
    encoder,
    encoder_decoder,
    least,
    refused,
)

REASONS = {
    "Mamba": "has no attention layer that a prefix can enter",
    "Rwkv": "has no attention layer that a prefix can enter",
    "Deberta": "has no attention layer that a prefix can enter",
    "DiffLlama": "attends more than once in a layer, or with a mask of a layer's own \\(DiffLlamaAttention\\)",
    "Doge": "attends more than once in a layer, or with a mask of a layer's own \\(DogeAttention\\)",
    "SwitchTransformers": "routes tokens to experts in an encoder-decoder, whose outputs are of another kind",
    "CpmAnt": "puts a prompt of its own in front, and takes what is in its cache for that",
    "FalconH1": "has layers of kinds of which it is not known whether they attend \\(hybrid\\)",
    "Mllama": "has layers that attend to an image and not to the text",
    "Gemma3n": "shares keys and values between layers \\(num_kv_shared_layers = 1\\)",
}


def test_a_decoder_that_is_a_whole_language_model_is_refused() -> None:
    small = {**SMALL, "num_hidden_layers": 1}
    parts = [
        transformers.BertConfig(**small),
        transformers.BertConfig(**small, is_decoder=True, add_cross_attention=True),
    ]
    model = transformers.EncoderDecoderModel(
        transformers.EncoderDecoderConfig.from_encoder_decoder_configs(*parts)
    )
    with pytest.raises(PrefixError, match=r"has a whole language model \(BertLMHeadModel\) for its decoder"):
        PrefixShape.of_model(model)


@pytest.mark.parametrize("family", REFUSED)
def test_what_cannot_carry_a_prefix_is_refused_in_one_sentence(family: str) -> None:
    model = refused(family)
    sentence = (
        rf"^{family}\w+ cannot carry a prefix: it {REASONS[family]}; use a model whose attention goes through"
    )
    with pytest.raises(PrefixError, match=sentence):
        PrefixShape.of_model(model)


@pytest.mark.parametrize("family", DECODERS)
def test_a_decoder_is_causal_and_its_shape_is_that_of_its_cache(family: str) -> None:
    model = decoder(family)
    found = anatomy(model)
    assert found.causal
    assert found.window == (None if family == "Bloom" else 64)
    assert found.plain_cache is (family not in ("DeepseekV3", "Qwen3Next", "Lfm2"))
    if found.plain_cache:
        cache = model(torch.tensor([[5, 6, 7]]), use_cache=True).past_key_values
        kept = [(tuple(layer.keys.shape), tuple(layer.values.shape)) for layer in cache.layers]
        assert kept == [
            ((1, layer.heads, 3, layer.key_size), (1, layer.heads, 3, layer.value_size))
            for layer in found.layers
        ]


@pytest.mark.parametrize(
    ("family", "shape"),
    [
        ("DeepseekV3", "3 layers of 4 heads of 8 (keys) and 6 (values)"),
        ("Qwen3Next", "2 layers of 2 heads of 8"),
        ("Falcon", "3 layers of 1 heads of 8"),
        ("Falcon grouped", "3 layers of 4 heads of 8"),
    ],
)
def test_a_prefix_has_the_shape_of_what_attention_takes(family: str, shape: str) -> None:
    assert str(PrefixShape.of_model(decoder(family))) == shape


def test_an_encoder_and_a_decoder_have_three_kinds_of_layers_and_their_own_numbers_of_heads() -> None:
    found = anatomy(encoder_decoder("Bart unequal"))
    assert str(PrefixShape(found.layers)) == "2 layers of 4 heads of 8, then 6 layers of 2 heads of 16"
    decoder_layers = found.stacks[1].layers
    assert list(found.attention[2:5]) == [layer.self_attn for layer in decoder_layers]
    assert list(found.attention[5:]) == [layer.encoder_attn for layer in decoder_layers]
    assert not found.shifts


def test_modules_that_layers_share_are_there_for_each_layer() -> None:
    found = anatomy(encoder("Albert"))  # 4 layers of 2 modules each, in 2 groups
    groups = found.base.encoder.albert_layer_groups
    first, second = ([layer.attention for layer in group.albert_layers] for group in groups)
    assert list(found.attention) == [*first, *first, *second, *second]


@pytest.mark.parametrize(("family", "window"), [("Bert", 64), ("Roberta", 62), ("Electra", 64)])
def test_an_encoder_is_not_causal_and_roberta_loses_two_positions(family: str, window: int) -> None:
    found = anatomy(encoder(family))
    assert not found.causal
    assert found.window == window


def test_layers_come_in_their_order() -> None:
    model = decoder("Gemma3")
    assert [module.layer_idx for module in anatomy(model).attention] == [0, 1, 2]


def test_keys_that_are_no_whole_number_of_heads_are_refused() -> None:
    model = decoder()
    model.model.layers[1].self_attn.k_proj = torch.nn.Linear(32, 20)
    with pytest.raises(PrefixError, match="keys of 20 numbers in layer 1, of heads with 8"):
        anatomy(model)


def test_a_layer_without_a_place_for_a_prefix_is_missed() -> None:
    model = decoder()
    model.model.layers[1].self_attn = torch.nn.Identity()
    with pytest.raises(
        PrefixError, match="has 3 attention layers, of which 2 have their own attention module"
    ):
        anatomy(model)


def test_a_decoder_without_cross_attention_in_every_layer_is_refused() -> None:
    model = encoder_decoder("Bart")
    model.model.decoder.layers[0].encoder_attn = torch.nn.Identity()
    with pytest.raises(PrefixError, match="2 attention modules in its encoder and 5 in its decoder"):
        anatomy(model)


def test_where_a_model_takes_no_positions_its_tokens_stay() -> None:
    assert not anatomy(transformers.T5EncoderModel(encoder_decoder("T5").config)).shifts


def test_a_module_whose_source_cannot_be_read_is_not_taken_for_attention() -> None:
    space: dict[str, Any] = {"torch": torch}
    exec("class Odd(torch.nn.Module):\n    def forward(self): ...", space)
    model = decoder()
    model.odd = space["Odd"]()
    assert len(anatomy(model).attention) == 3


ODD: dict[str, tuple[dict[str, Any], set[LayerShape]]] = {
    "JetMoe": (
        {"num_key_value_heads": 2, "kv_channels": 8, "num_local_experts": 4, "num_experts_per_tok": 2},
        {LayerShape(4, 8, 8)},
    ),
    "MiMoV2Flash": (
        {"num_key_value_heads": 2, "head_dim": 8, "v_head_dim": 4},
        {LayerShape(2, 8, 4), LayerShape(4, 8, 4)},
    ),
    "GPTNeoXJapanese": ({"intermediate_multiple_size": 2}, {LayerShape(4, 8, 8)}),
}


@pytest.mark.parametrize("family", ODD)
def test_keys_and_values_of_unusual_shapes_are_carried(family: str) -> None:
    more, shapes = ODD[family]
    torch.manual_seed(0)
    config = config_of(family, {"initializer_range": 0.3, **more})
    model = getattr(transformers, f"{family}ForCausalLM")(config).eval().requires_grad_(False)
    assert set(anatomy(model).layers) == shapes
    text, tokens = torch.tensor([7, 12, 9, 30, 8]), torch.tensor([[5, 6, 40, 8, 21], [9, 30, 7, 12, 11]])
    prefix = Prefix(PrefixShape.of_model(model), 5)
    prefix.init_from(text_key_values(model, text))
    with torch.no_grad():
        expected = model(torch.cat([text.expand(2, -1), tokens], dim=1)).logits[:, 5:]
    with attach(model, prefix):
        found = model(tokens).logits
    found.pow(2).sum().backward()
    assert expected.std() > 0.05
    assert (found - expected).abs().max() < 1e-4
    assert prefix.vectors.grad is not None
    assert least(prefix.shape, prefix.vectors.grad) > 1e-4


def test_a_model_that_also_sees_images_is_refused_for_its_language_model() -> None:
    text = {**SMALL, "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0}
    seen = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": 28,
        "patch_size": 14,
    }
    config = transformers.Gemma3Config(text_config=text, vision_config=seen, mm_tokens_per_image=4)
    with torch.device("meta"):
        model = transformers.Gemma3ForConditionalGeneration(config)
    with pytest.raises(
        PrefixError, match=r"5 attention modules for 3 layers of text: .* load its language model alone"
    ):
        PrefixShape.of_model(model)
