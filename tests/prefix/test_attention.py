"""A model with a prefix attached, against a hand-written loop and against PEFT."""

from __future__ import annotations

import copy
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Qwen2_5_VLTextConfig, Qwen2_5_VLTextModel, StaticCache
from transformers.models.llama.modeling_llama import LlamaAttention

from pipeline.errors import PrefixError
from pipeline.prefix.architecture import anatomy
from pipeline.prefix.attention import attach
from pipeline.prefix.generation import generate
from pipeline.prefix.several import attach_several
from pipeline.prefix.tuning import Prefix, PrefixShape
from tests.prefix import loop
from tests.prefix.models import (
    ENCODERS,
    SMALL,
    batch,
    decoder,
    encoder,
    encoder_decoder,
    in_peft,
    least,
    random_prefix,
    stacked,
)

TOLERANCE = 1e-5


def logits(model: Any, prefix: Prefix, **inputs: torch.Tensor) -> torch.Tensor:
    with attach(model, prefix), torch.no_grad():
        result: torch.Tensor = model(**inputs).logits
    return result


def difference(ours: torch.Tensor, expected: torch.Tensor) -> float:
    assert expected.std() > 0.05, "the reference has no opinion, so equality would say nothing"
    return float((ours - expected).abs().max())


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("side", ["right", "left"])
def test_llama_computes_what_the_hand_written_loop_computes(side: str, implementation: str) -> None:
    model = decoder(attn_implementation=implementation).double()
    prefix = random_prefix(model)
    inputs = batch(side=side)
    ours = logits(model, prefix, **inputs)
    for row, (tokens, mask) in enumerate(zip(*inputs.values(), strict=True)):
        expected = loop.llama_logits(model, stacked(prefix), tokens[mask == 1].tolist())
        assert difference(ours[row][mask == 1], torch.tensor(expected)) < TOLERANCE


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("padded", [True, False])
def test_bert_computes_what_the_hand_written_loop_computes(padded: bool, implementation: str) -> None:
    model = encoder(attn_implementation=implementation).double()
    prefix = random_prefix(model)
    inputs = batch()
    if not padded:
        inputs["attention_mask"] = torch.ones_like(inputs["attention_mask"])
    ours = logits(model, prefix, **inputs)
    for row, (tokens, mask) in enumerate(zip(*inputs.values(), strict=True)):
        expected = loop.bert_logits(model, stacked(prefix), tokens[mask == 1].tolist())
        assert difference(ours[row], torch.tensor(expected)) < TOLERANCE


@pytest.mark.parametrize("family", [*ENCODERS, "DistilBert", "Albert", "ModernBert", "NomicBert", "Esm"])
def test_tokens_stand_where_the_base_would_put_them_behind_as_many_tokens(family: str) -> None:
    model = encoder(family)
    seen: list[torch.Tensor] = []
    base = anatomy(model).base
    name = next(
        n for n, m in base.named_modules() if n.split(".")[-1] in ("position_embeddings", "rotary_emb")
    )

    def look(module: Any, args: Any, kwargs: Any) -> None:
        ids = [
            value
            for value in (*args, *kwargs.values())
            if torch.is_tensor(value) and value.dtype == torch.long
        ]
        seen.extend(ids[:1])

    base.get_submodule(name).register_forward_pre_hook(look, with_kwargs=True)
    tokens = torch.full((1, 12), 7)
    logits(model, random_prefix(model, 5), input_ids=tokens[:, 5:])
    with torch.no_grad():
        model(input_ids=tokens)
    shifted, whole = seen[0], seen[-1]
    assert torch.equal(shifted.flatten()[-7:], whole.flatten()[-7:])


@pytest.mark.parametrize("family", ["Bert", "Roberta"])
def test_given_embeddings_and_positions_are_counted_without_the_prefix(family: str) -> None:
    model = encoder(family)
    prefix = random_prefix(model)
    tokens = batch()["input_ids"][2:]
    expected = logits(model, prefix, input_ids=tokens)
    embedded = model.get_input_embeddings()(tokens)
    assert difference(logits(model, prefix, inputs_embeds=embedded), expected) < TOLERANCE
    first = 2 if family == "Roberta" else 0
    positions = torch.arange(first, first + 9)[None]
    assert difference(logits(model, prefix, input_ids=tokens, position_ids=positions), expected) < TOLERANCE


@pytest.mark.parametrize("family", ["Llama", "GPT2", "Gemma3"])
def test_a_mask_of_four_dimensions_gets_the_prefix_columns_too(family: str) -> None:
    model = decoder(family)
    prefix = random_prefix(model)
    tokens = batch()["input_ids"]
    mask = torch.ones(9, 9, dtype=torch.bool).tril()[None, None].expand(3, 1, 9, 9)
    given: Any = {"full_attention": mask, "sliding_attention": mask} if family == "Gemma3" else mask
    ours = logits(model, prefix, input_ids=tokens, attention_mask=given)
    assert difference(ours, logits(model, prefix, input_ids=tokens)) < TOLERANCE


def test_a_causal_layer_called_without_a_mask_stays_causal() -> None:
    model = decoder()
    prefix = random_prefix(model)
    tokens = batch()["input_ids"]
    expected = logits(model, prefix, input_ids=tokens)

    def without_mask(module: Any, args: Any, kwargs: Any) -> Any:
        return args, {**kwargs, "attention_mask": None}

    for layer in model.model.layers:
        layer.register_forward_pre_hook(without_mask, with_kwargs=True)
    assert difference(logits(model, prefix, input_ids=tokens), expected) < TOLERANCE


def test_a_sliding_window_hides_tokens_but_never_the_prefix() -> None:
    model = decoder("Mistral", sliding_window=3)
    prefix = random_prefix(model, 3)
    tokens = batch(tokens=12)["input_ids"][2:]
    ours = logits(model, prefix, input_ids=tokens)
    far, near = tokens.clone(), tokens.clone()
    far[0, 0], near[0, 10] = 5, 5
    # three layers of a window of 3 reach back 6 tokens
    assert torch.equal(logits(model, prefix, input_ids=far)[0, -1], ours[0, -1])
    assert not torch.equal(logits(model, prefix, input_ids=near)[0, -1], ours[0, -1])
    other = random_prefix(model, 3, seed=9)
    assert (logits(model, other, input_ids=tokens)[0, -1] - ours[0, -1]).abs().max() > 1e-2


def test_a_prefix_longer_than_the_sliding_window_is_refused() -> None:
    model = decoder("Mistral", sliding_window=3)
    attach(model, random_prefix(model, 3)).detach()
    with pytest.raises(
        PrefixError, match=r"prefix of 4 positions; .* layers that see 3 \(its sliding window\)"
    ):
        attach(model, random_prefix(model, 4))
    assert not model.model._forward_pre_hooks


@pytest.mark.parametrize("make", [decoder, encoder])
@pytest.mark.parametrize("projection", [None, 6])
def test_gradients_equal_pefts_and_none_reaches_the_base(make: Any, projection: int | None) -> None:
    model = make()
    prefix = Prefix(PrefixShape.of_model(model), 5, projection=projection)
    prefix.init_random(0.7, torch.Generator().manual_seed(0))
    inputs = batch()
    task = "SEQ_CLS" if make is encoder else "CAUSAL_LM"
    reference = in_peft(model, prefix, task)
    weight = torch.linspace(-1, 1, 5 if make is encoder else 60)
    chosen = slice(None) if make is encoder else inputs["attention_mask"] == 1
    (reference(**inputs).logits[chosen] * weight).sum().backward()
    expected = reference.prompt_encoder.default.embedding.weight.grad
    vectors = prefix.key_values()
    vectors.retain_grad()
    prefix.key_values = lambda: vectors  # type: ignore[method-assign]
    with attach(model, prefix):
        (model(**inputs).logits[chosen] * weight).sum().backward()
    assert vectors.grad is not None
    assert difference(vectors.grad, expected) < TOLERANCE
    assert all(parameter.grad is not None for parameter in prefix.parameters())
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("make", [decoder, encoder])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_every_layer_gets_a_gradient_also_after_an_evaluation_pass(make: Any, checkpointing: bool) -> None:
    def gradient(*, checkpointed: bool) -> torch.Tensor:
        model = make()
        model.train()
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        if checkpointed:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        prefix = random_prefix(model)
        inputs = batch()
        with attach(model, prefix):
            with torch.inference_mode():
                model(**inputs)
            first = model(**inputs).logits
            with torch.no_grad():
                model(**inputs)
            second = model(**inputs).logits
            with torch.no_grad():
                model(**inputs)
            (first.square().sum() + second.sum()).backward()
        grad: torch.Tensor = prefix.vectors.grad
        return grad

    ours = gradient(checkpointed=checkpointing)
    assert least(PrefixShape.of_model(make()), ours) > 1e-4
    assert (ours - gradient(checkpointed=False)).abs().max() < 1e-4 * ours.abs().max()


def test_checkpointing_that_loses_the_gradient_is_refused() -> None:
    model = encoder()
    model.gradient_checkpointing_enable({"use_reentrant": True})
    model.train()
    with attach(model, random_prefix(model)), pytest.raises(PrefixError, match="use_reentrant"):
        model(**batch())


def test_no_gradient_is_computed_below_the_first_attention() -> None:
    model = encoder()
    grad_at: dict[str, bool] = {}
    first, second = model.bert.encoder.layer[:2]
    for name, module in {
        "before": first.attention.self.key,
        "after": first.attention.output,
        "next": second,
    }.items():
        module.register_forward_hook(lambda m, i, o, name=name: grad_at.update({name: o.requires_grad}))
    with attach(model, random_prefix(model)):
        model(**batch())
    assert grad_at == {"before": False, "after": True, "next": True}


@pytest.mark.parametrize("make", [decoder, encoder])
def test_detaching_leaves_the_model_as_it_was(make: Any) -> None:
    model = make()
    inputs = batch()
    before_state = copy.deepcopy(model.state_dict())
    before_config, before_dict = model.config, copy.deepcopy(model.config.to_dict())
    before_attributes = {name: set(vars(module)) for name, module in model.named_modules()}
    before = model(**inputs).logits
    attachment = attach(model, random_prefix(model))
    assert model.config is not before_config
    assert model.state_dict().keys() == before_state.keys()  # the prefix is no part of the model
    during = model(**inputs).logits
    attachment.detach()
    attachment.detach()
    assert (during - before).abs().max() > 1e-2
    assert torch.equal(model(**inputs).logits, before)
    assert model.config is before_config
    assert model.config.to_dict() == before_dict
    assert all(torch.equal(tensor, before_state[name]) for name, tensor in model.state_dict().items())
    assert {name: set(vars(module)) for name, module in model.named_modules()} == before_attributes
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_an_error_in_the_block_detaches() -> None:
    model = decoder()
    before = model(**batch()).logits
    with pytest.raises(ZeroDivisionError), attach(model, random_prefix(model)):
        raise ZeroDivisionError
    assert torch.equal(model(**batch()).logits, before)


def test_a_model_with_the_same_config_is_not_touched() -> None:
    first = decoder()
    second = type(first)(first.config).eval()
    assert second.config is first.config
    before = second(**batch()).logits
    with attach(first, random_prefix(first)):
        first(**batch())
        assert torch.equal(second(**batch()).logits, before)
        assert second.config._attn_implementation == "sdpa"


def test_two_prefixes_on_two_models_of_one_config_in_two_threads_do_not_mix() -> None:
    first = decoder()
    second = type(first)(first.config).eval()
    models = (first, second)
    prefixes = (random_prefix(first, 5, seed=1), random_prefix(second, 3, seed=2))
    alone = [logits(model, prefix, **batch()) for model, prefix in zip(models, prefixes, strict=True)]
    wrong: list[int] = []

    def work(index: int) -> None:
        for _ in range(15):
            if not torch.equal(logits(models[index], prefixes[index], **batch()), alone[index]):
                wrong.append(index)

    threads = [threading.Thread(target=work, args=(index,)) for index in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_second_prefix_is_refused_and_the_first_stays() -> None:
    model = decoder()
    prefix = random_prefix(model)
    expected = logits(model, prefix, **batch())
    with attach(model, prefix), torch.no_grad():
        with pytest.raises(PrefixError, match="already has a prefix attached"):
            attach(model, random_prefix(model, seed=5))
        assert torch.equal(model(**batch()).logits, expected)


def test_a_prefix_of_another_shape_is_refused() -> None:
    model = decoder()
    with pytest.raises(
        PrefixError,
        match="the prefix is for 2 layers of 2 heads of 8; LlamaForCausalLM needs 3 layers of 2 heads of 8",
    ):
        attach(model, Prefix(PrefixShape.uniform(2, 2, 8), 5))


def test_keys_of_another_number_of_heads_than_the_config_says_are_refused() -> None:
    model = decoder("GPTNeoX")
    prefix = random_prefix(model)
    odd = model.gpt_neox.layers[1].attention
    odd.query_key_value, odd.dense = torch.nn.Linear(32, 2 * 3 * 8), torch.nn.Linear(2 * 8, 32)
    sentence = "layer 1: got keys of 2 × 8.*expected 4 × 8 and 4 × 8"
    with attach(model, prefix), pytest.raises(PrefixError, match=sentence):
        model(**batch())


@pytest.mark.parametrize("make", [decoder, encoder])
def test_what_does_not_fit_the_window_is_refused_before_anything_is_computed(make: Any) -> None:
    model = make()
    model.get_input_embeddings().register_forward_hook(lambda *_: pytest.fail("it computed"))
    with (
        attach(model, random_prefix(model, 5)),
        pytest.raises(
            PrefixError, match="prefix of 5 \\+ input of 60 tokens = 65 positions; the base model has 64"
        ),
    ):
        model(input_ids=torch.ones(1, 60, dtype=torch.long))
    with pytest.raises(PrefixError, match="the base model has 64"):
        attach(model, random_prefix(model, 64))


def test_a_prefix_and_a_text_that_just_fit_the_window_are_computed() -> None:
    model = encoder("Roberta")
    assert logits(model, random_prefix(model, 5), input_ids=torch.full((1, 57), 7)).isfinite().all()


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("make", [decoder, encoder])
def test_padding_takes_no_positions_where_the_tokens_alone_are_counted(make: Any, several: bool) -> None:
    """8 tokens in rows of 62 columns, with a prefix of 5 in a window of 64."""
    model, mask = make(), (torch.arange(62) < 8).long()[None]
    prefix, tokens = random_prefix(model, 5), torch.full((1, 62), 7)
    with attach(model, prefix), torch.no_grad():
        alone = model(input_ids=tokens[:, :8]).logits
    with attach_several(model, [prefix], [0]) if several else attach(model, prefix), torch.no_grad():
        wide = model(input_ids=tokens, attention_mask=mask).logits
    assert (wide[:, : alone.shape[1]] - alone).abs().max() < 1e-5


@pytest.mark.parametrize("several", [False, True])
def test_padding_takes_positions_where_the_base_counts_columns(several: bool) -> None:
    model = encoder_decoder("Bart")
    prefix, tokens = random_prefix(model, 5), torch.full((1, 65), 7)
    mask = (torch.arange(65) < 8).long()[None]
    with (
        attach_several(model, [prefix], [0]) if several else attach(model, prefix),
        pytest.raises(PrefixError, match="input of 65 tokens"),
    ):
        model(input_ids=tokens, attention_mask=mask, decoder_input_ids=tokens[:, :2])


def test_an_attention_implementation_that_cannot_be_wrapped_is_refused() -> None:
    model = decoder()
    model.config._attn_implementation_internal = "flash_attention_2"
    with pytest.raises(PrefixError, match="got 'flash_attention_2'; expected 'sdpa' or 'eager'"):
        attach(model, random_prefix(model))


def test_a_layer_called_on_its_own_is_refused() -> None:
    model = encoder()
    with (
        attach(model, random_prefix(model)),
        pytest.raises(PrefixError, match="layer 0 was called on its own"),
    ):
        model.bert.encoder.layer[0](torch.zeros(1, 3, 32))


def test_a_call_without_tokens_gets_the_models_own_error() -> None:
    model = encoder()
    with attach(model, random_prefix(model)), pytest.raises(ValueError, match="input_ids or inputs_embeds"):
        model()


CACHES = ("Llama", "GPTJ", "Bloom", "Falcon", "Mpt", "DeepseekV3", "Qwen3Next", "Lfm2")


@pytest.mark.parametrize("family", CACHES)
def test_a_cache_is_continued_behind_the_prefix_and_not_made_unasked(family: str) -> None:
    model = decoder(family).double()
    prefix = random_prefix(model).double()
    tokens = batch()["input_ids"]
    whole = logits(model, prefix, input_ids=tokens)
    with attach(model, prefix), torch.no_grad():
        assert model(input_ids=tokens).past_key_values is None
        start = model(input_ids=tokens[:, :6], use_cache=True)
        assert start.past_key_values.get_seq_length() == 6  # tokens only; the prefix is not in it
        found = [
            model(
                input_ids=tokens[:, i : i + 1], past_key_values=start.past_key_values, use_cache=True
            ).logits
            for i in range(6, 9)
        ]
        tuples = model(input_ids=tokens, use_cache=True, return_dict=False)
    assert start.past_key_values.get_seq_length() == 9
    # Qwen3-Next's linear attention has another formula for one token at a time, in float32.
    assert difference(torch.cat(found, dim=1), whole[:, 6:]) < (1e-4 if family == "Qwen3Next" else TOLERANCE)
    assert tuples[1].get_seq_length() == 9


@pytest.mark.parametrize("beams", [1, 2])
@pytest.mark.parametrize("family", CACHES)
def test_the_models_own_generate_continues_behind_an_attached_prefix(family: str, beams: int) -> None:
    model = decoder(family)
    prefix = random_prefix(model)
    tokens = batch()["input_ids"]
    settings: dict[str, Any] = {"max_new_tokens": 4, "eos_token_id": 60, "pad_token_id": 0}
    expected = generate(model, prefix, tokens, torch.ones_like(tokens), **settings, beams=beams)
    with attach(model, prefix):
        written = model.generate(
            tokens,
            attention_mask=torch.ones_like(tokens),
            **settings,
            num_beams=beams,
            do_sample=False,
            use_cache=True,
        )
    assert torch.equal(written[:, tokens.shape[1] :], expected)


def test_a_cache_made_longer_than_the_tokens_shows_none_of_its_empty_places() -> None:
    model = decoder()
    prefix = random_prefix(model)
    tokens = batch()["input_ids"]
    cache = StaticCache(config=model.config, max_cache_len=30)
    ours = logits(model, prefix, input_ids=tokens, past_key_values=cache)
    assert difference(ours, logits(model, prefix, input_ids=tokens)) < TOLERANCE


def test_the_prefix_takes_the_models_dtype() -> None:
    model = decoder().to(torch.bfloat16)
    prefix = random_prefix(model)
    ours = logits(model, prefix, **batch())
    assert ours.dtype == torch.bfloat16
    assert prefix.vectors.dtype == torch.float32
    assert difference(ours.float(), logits(decoder(), prefix, **batch())) < 0.5


def test_a_prefix_moves_and_lowers_the_loss_under_training() -> None:
    model = encoder()
    prefix = random_prefix(model, scale=0.1)
    inputs, labels = batch(rows=8), torch.arange(8) % 5
    optimiser = torch.optim.AdamW(prefix.parameters(), lr=0.1)
    losses = []
    start = prefix.vectors.detach().clone()
    with attach(model, prefix):
        for _ in range(40):
            optimiser.zero_grad()
            loss = torch.nn.functional.cross_entropy(model(**inputs).logits, labels)
            loss.backward()
            optimiser.step()
            losses.append(loss.item())
            with torch.no_grad():
                model(**inputs)
    assert losses[-1] < 0.5 * losses[0]
    assert least(prefix.shape, prefix.vectors - start) > 0.01


@pytest.mark.parametrize("family", ["Llama", "GPTJ"])
def test_a_copy_of_a_model_with_a_prefix_has_its_own(family: str) -> None:
    model = decoder(family)
    prefix = random_prefix(model)
    with attach(model, prefix), torch.no_grad():
        with torch.enable_grad():
            model(**batch())  # leaves tensors with a graph, which cannot be copied
        twin = copy.deepcopy(model)
        before = twin(**batch()).logits
        prefix.vectors.mul_(-1)
        assert torch.equal(twin(**batch()).logits, before)
        assert (model(**batch()).logits - before).abs().max() > 1e-2


def test_a_config_with_a_prefix_attached_can_be_written() -> None:
    model = decoder()
    with attach(model, random_prefix(model)):
        words = model.config.to_json_string()
    assert '"vocab_size": 60' in words


@pytest.mark.parametrize("family", ["Llama", "GPTJ", "Bloom"])
def test_a_cache_that_is_asked_for_under_checkpointing_changes_no_gradient(family: str) -> None:
    gradients = []
    for checkpointed in (False, True):
        model = decoder(family).train()
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        if checkpointed:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        prefix = random_prefix(model)
        with attach(model, prefix):
            model(**batch(), use_cache=True).logits.square().sum().backward()
        gradients.append(prefix.vectors.grad)
    plain, checkpointed_gradient = gradients
    assert (checkpointed_gradient - plain).abs().max() < 1e-4 * plain.abs().max()


def test_what_is_no_model_or_no_prefix_is_refused() -> None:
    model: Any = decoder()
    prefix: Any = random_prefix(model)
    with pytest.raises(PrefixError, match="got a Prefix; expected a loaded model"):
        attach(prefix, model)
    with pytest.raises(PrefixError, match="got a str; expected a loaded model"):
        PrefixShape.of_model("path/to/base")  # type: ignore[arg-type]
    with pytest.raises(PrefixError, match="got a PrefixShape to attach; expected a Prefix"):
        attach(model, prefix.shape)


@pytest.mark.parametrize("family", ["Roberta", "XLMRoberta", "Camembert", "Bert"])
@pytest.mark.parametrize("masked", [False, True])
def test_embedded_tokens_stand_where_the_tokens_would(family: str, masked: bool) -> None:
    model = encoder(family).double()
    prefix, tokens = random_prefix(model).double(), torch.tensor([[5, 6, 40, 8, 21], [9, 30, 7, 12, 11]])
    mask = torch.ones_like(tokens) if masked else None
    embedded = model.get_input_embeddings()(tokens)
    with attach(model, prefix), torch.no_grad():
        expected = model(input_ids=tokens, attention_mask=mask).logits
        found = model(inputs_embeds=embedded, attention_mask=mask).logits
    assert expected.std() > 0.05
    assert (found - expected).abs().max() < 1e-9


def test_positions_of_ones_own_may_be_those_of_a_base_that_counts_from_its_padding() -> None:
    """57 tokens and a prefix of 5 in RoBERTa's 62 places, which it counts from 2."""
    model, tokens = encoder("Roberta"), torch.full((1, 57), 7)
    with attach(model, random_prefix(model, 5)), torch.no_grad():
        expected = model(input_ids=tokens).logits
        found = model(input_ids=tokens, position_ids=torch.arange(2, 59)[None]).logits
        with pytest.raises(PrefixError, match=r"prefix of 5 \+ input of 58 tokens = 63 positions; .* has 62"):
            model(input_ids=tokens, position_ids=torch.arange(3, 60)[None])
    assert torch.equal(found, expected)


def test_positions_may_have_several_parts() -> None:
    small = {**SMALL, "num_key_value_heads": 2, "pad_token_id": 0, "initializer_range": 0.3}
    torch.manual_seed(0)
    rotary = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10_000.0}
    model = Qwen2_5_VLTextModel(Qwen2_5_VLTextConfig(**small, rope_parameters=rotary)).eval()
    tokens = torch.tensor([[5, 6, 40, 8, 21]])
    with attach(model, random_prefix(model, 5)), torch.no_grad():
        expected = model(input_ids=tokens).last_hidden_state
        parts = torch.arange(5)[None, None].expand(3, 1, 5)
        found = model(input_ids=tokens, position_ids=parts).last_hidden_state
        with pytest.raises(PrefixError, match="input of 60 tokens = 65 positions"):
            model(input_ids=tokens, position_ids=parts + 55)
    assert torch.equal(found, expected)


@pytest.mark.parametrize(
    ("make", "family"), [(decoder, "Llama"), (decoder, "Falcon"), (encoder, "DebertaV2")]
)
def test_a_model_that_was_compiled_before_sees_what_is_attached_and_detached(make: Any, family: str) -> None:
    model, tokens = make(family), torch.tensor([[5, 6, 40, 8, 21]])
    compiled = torch.compile(model, backend="eager")
    with torch.no_grad():
        before = compiled(input_ids=tokens).logits
        for seed in (1, 2):
            with attach(model, random_prefix(model, 3, seed=seed)):
                assert torch.equal(compiled(input_ids=tokens).logits, model(input_ids=tokens).logits)
        assert torch.equal(compiled(input_ids=tokens).logits, before)


def test_a_base_that_is_saved_with_a_prefix_on_it_is_saved_as_it_was(tmp_path: Path) -> None:
    model = decoder()
    model.save_pretrained(tmp_path / "before")
    with attach(model, random_prefix(model)):
        model.save_pretrained(tmp_path / "during")
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "during" / name).read_bytes() == (tmp_path / "before" / name).read_bytes()


def test_eager_attention_is_found_for_a_layer_of_a_class_derived_elsewhere() -> None:
    class Derived(LlamaAttention):
        pass

    model = decoder("Llama", attn_implementation="eager")
    prefix, tokens = random_prefix(model), torch.tensor([[5, 6, 40]])
    with attach(model, prefix), torch.no_grad():
        expected = model(input_ids=tokens).logits
    for layer in model.model.layers:
        layer.self_attn.__class__ = Derived
    with attach(model, prefix), torch.no_grad():
        assert torch.equal(model(input_ids=tokens).logits, expected)
