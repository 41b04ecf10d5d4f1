"""Greedy and beam search behind a prefix, against searches written out over whole forward passes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

from pipeline.errors import PrefixError
from pipeline.prefix.attention import attach
from pipeline.prefix.generation import generate
from pipeline.prefix.tuning import Prefix
from tests.prefix.models import batch, config_of, decoder, encoder, encoder_decoder, random_prefix

NEW = 6
END = 60  # not in the vocabulary of 60, so no search ends early by itself


def log_probabilities(model: Any, prefix: Prefix, tokens: list[int]) -> torch.Tensor:
    """Of the next token, without cache or padding."""
    with attach(model, prefix), torch.no_grad():
        logits: torch.Tensor = model(input_ids=torch.tensor([tokens])).logits[0, -1]
    return logits.log_softmax(-1)


def slow_search(model: Any, prefix: Prefix, prompt: list[int], beams: int) -> list[int]:
    """The best of `beams` continuations of NEW tokens (END is not among them), grown a token at a time."""
    alive: list[tuple[float, list[int]]] = [(0.0, [])]
    for _ in range(NEW):
        grown = [
            (score + gain, [*tokens, token])
            for score, tokens in alive
            for token, gain in enumerate(log_probabilities(model, prefix, prompt + tokens).tolist())
        ]
        alive = sorted(grown, reverse=True)[:beams]
    return alive[0][1]


def settings(**more: Any) -> dict[str, Any]:
    return {"max_new_tokens": NEW, "eos_token_id": END, "pad_token_id": 0, **more}


@pytest.mark.parametrize(
    ("family", "more"),
    [
        ("Llama", {}),
        ("Qwen3", {}),
        ("GPT2", {}),
        ("Gemma3", {}),
        ("OPT", {}),
        ("Mistral", {"sliding_window": 6}),
        ("Mistral", {"sliding_window": 12}),  # prefix and answer fit, and the prompt besides does not
    ],
)
@pytest.mark.parametrize("beams", [1, 3])
def test_the_search_finds_what_the_slow_search_finds(family: str, more: dict[str, Any], beams: int) -> None:
    model = decoder(family, **more)
    prefix = random_prefix(model, scale=3.0)
    inputs = batch(side="left")
    ours = generate(model, prefix, **inputs, **settings(beams=beams))
    assert ours.shape == (3, NEW)
    without = generate(model, None, **inputs, **settings(beams=beams))
    expected = [
        slow_search(model, prefix, tokens[mask == 1].tolist(), beams)
        for tokens, mask in zip(*inputs.values(), strict=True)
    ]
    assert ours.tolist() == expected
    assert ours.tolist() != without.tolist()


def test_without_a_prefix_it_is_the_bases_own_search() -> None:
    model = decoder()
    inputs = batch(side="left")
    expected = model.generate(
        **inputs, max_new_tokens=NEW, do_sample=False, eos_token_id=END, pad_token_id=0
    )[:, 9:]
    assert torch.equal(generate(model, None, **inputs, **settings()), expected)


def test_the_prefix_is_in_the_cache_once_and_the_model_free_during_the_search(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = decoder()
    prefix = random_prefix(model, 5)
    lengths = []
    model.model.layers[0].self_attn.register_forward_pre_hook(
        lambda module, args, kwargs: lengths.append(kwargs["past_key_values"].get_seq_length()),
        with_kwargs=True,
    )
    generate(model, prefix, **batch(side="left"), **settings())
    assert lengths == [5, *range(14, 14 + NEW - 1)]
    assert model.config._attn_implementation == "sdpa"


def test_a_row_that_ends_sooner_is_filled_with_padding() -> None:
    model = decoder()
    prefix = random_prefix(model)
    inputs = batch(side="left")
    free = generate(model, prefix, **inputs, **settings())
    end = int(free[0, 2])
    ended = generate(model, prefix, **inputs, **settings(eos_token_id=[end, END]))
    first = free[0].tolist().index(end)
    assert ended[0, : first + 1].tolist() == free[0, : first + 1].tolist()
    assert set(ended[0, first + 1 :].tolist()) <= {0}


def test_padding_on_the_right_is_refused() -> None:
    model = decoder()
    with pytest.raises(PrefixError, match=r"padding on the right, .* expected it on the left"):
        generate(model, random_prefix(model), **batch(side="right"), **settings())


def test_a_mask_of_another_shape_is_refused() -> None:
    model = decoder()
    with pytest.raises(PrefixError, match=r"mask of shape \[3, 2\] for prompts of shape \[3, 9\]"):
        generate(
            model,
            random_prefix(model),
            batch()["input_ids"],
            torch.ones(3, 2, dtype=torch.long),
            **settings(),
        )


def test_what_would_leave_the_window_is_refused_before_anything_is_computed() -> None:
    model = decoder()
    model.get_input_embeddings().register_forward_hook(lambda *_: pytest.fail("it computed"))
    told = r"prefix of 5 \+ prompt of 9 tokens \+ max_new_tokens of 51: more than the 64 positions .*; lower max_new_tokens"
    with pytest.raises(PrefixError, match=told):
        generate(model, random_prefix(model), **batch(side="left"), **settings(max_new_tokens=51))


def test_an_answer_longer_than_an_encoder_decoders_window_is_refused() -> None:
    model = encoder_decoder("Bart")
    with pytest.raises(
        PrefixError, match=r"max_new_tokens of 64 and the token .* the 64 positions of the base"
    ):
        generate(model, random_prefix(model), **batch(), **settings(max_new_tokens=64))


@pytest.mark.parametrize(
    ("name", "given", "got"),
    [
        ("input_ids", torch.tensor([5, 6]), r"shape \[2\]"),
        ("input_ids", torch.empty(3, 0, dtype=torch.long), r"shape \[3, 0\]"),
        ("input_ids", "Where is my card?", "a str"),
        ("attention_mask", None, "a NoneType"),
    ],
)
def test_prompts_that_are_no_rows_of_tokens_are_refused(name: str, given: Any, got: str) -> None:
    model = decoder()
    inputs: dict[str, Any] = {**batch(side="left"), name: given}
    with pytest.raises(PrefixError, match=rf"generation: {name}: got {got}; expected a tensor \[B, N\]"):
        generate(model, random_prefix(model), **inputs, **settings())


def test_a_decoder_that_counts_from_its_padding_is_refused() -> None:
    model = transformers.RobertaForCausalLM(config_of("Roberta", {"is_decoder": True})).eval()
    with pytest.raises(
        PrefixError, match=r"RobertaForCausalLM does not generate: it counts positions from the padding"
    ):
        generate(model, random_prefix(model), **batch(side="left"), **settings())


def test_the_decoders_first_token_is_that_of_whichever_config_names_it() -> None:
    model = encoder_decoder("Bart")
    prefix = random_prefix(model, scale=3.0)
    expected = generate(model, prefix, **batch(), **settings())
    model.generation_config.decoder_start_token_id = model.config.decoder_start_token_id
    model.config.decoder_start_token_id = None
    assert torch.equal(generate(model, prefix, **batch(), **settings()), expected)
    model.generation_config.decoder_start_token_id = None
    with pytest.raises(
        PrefixError, match=r"BartForCond\w+: decoder_start_token_id is missing; expected the token"
    ):
        generate(model, prefix, **batch(), **settings())


def test_a_search_without_a_token_to_fill_rows_up_is_refused() -> None:
    model = decoder()
    with pytest.raises(PrefixError, match="pad_token_id: got None; expected the token that fills rows"):
        generate(model, random_prefix(model), **batch(side="left"), **settings(pad_token_id=None))


@pytest.mark.parametrize("wrong", [{"beams": 0}, {"max_new_tokens": 0}])
def test_a_search_for_nothing_is_refused(wrong: dict[str, int]) -> None:
    model = decoder()
    with pytest.raises(PrefixError, match="expected at least 1 of each"):
        generate(model, random_prefix(model), **batch(side="left"), **settings(**wrong))


def test_an_encoder_does_not_generate() -> None:
    model = encoder()
    with pytest.raises(PrefixError, match="BertForSequenceClassification does not generate"):
        generate(model, random_prefix(model), **batch(side="left"), **settings())


def test_a_model_that_carries_another_prefix_is_refused() -> None:
    model = decoder()
    with attach(model, random_prefix(model)), pytest.raises(PrefixError, match="already has a prefix"):
        generate(model, random_prefix(model), **batch(side="left"), **settings())


def test_the_models_own_generation_config_changes_nothing_and_is_as_before() -> None:
    model = decoder()
    prefix = random_prefix(model)
    inputs = batch(side="left")
    expected = generate(model, prefix, **inputs, **settings())
    own = model.generation_config
    own.repetition_penalty, own.no_repeat_ngram_size = 5.0, 1
    assert torch.equal(generate(model, prefix, **inputs, **settings()), expected)
    assert model.generation_config is own
    assert own.repetition_penalty == 5.0


def test_a_base_alone_with_a_prefix_attached_is_refused() -> None:
    model = decoder()
    with attach(model, random_prefix(model)), pytest.raises(PrefixError, match="already has a prefix"):
        generate(model, None, **batch(side="left"), **settings())


def test_a_model_in_training_mode_is_refused() -> None:
    model = decoder("GPT2").train()
    with pytest.raises(PrefixError, match=r"in training mode, with dropout; call model\.eval\(\) first"):
        generate(model, random_prefix(model), **batch(side="left"), **settings())
