"""Rows with prefixes of their own in one batch, against each row alone."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import pytest
import torch

from pipeline.base.mean_pooled import MeanPooledForSequenceClassification
from pipeline.errors import PrefixError
from pipeline.prefix.attention import attach
from pipeline.prefix.generation import generate
from pipeline.prefix.several import attach_several, class_logits, generate_several
from pipeline.prefix.tuning import Prefix, PrefixShape
from tests.prefix.models import (
    BEYOND_PEFT,
    DECODERS,
    ENCODER_DECODERS,
    ENCODERS,
    batch,
    decoder,
    encoder,
    encoder_decoder,
    random_prefix,
)

TOLERANCE = 1e-5
ROWS = (1, None, 0, 2, 1)
LENGTHS = (5, 2, 7)
NEW, END = 6, 60  # END is not in the vocabulary of 60, so no search ends early by itself


def prefixes_of(model: Any, *, scale: float = 1.0) -> list[Prefix]:
    return [random_prefix(model, length, seed=length, scale=scale) for length in LENGTHS]


def alone(model: Any, prefixes: Sequence[Prefix], row: int | None, tokens: torch.Tensor) -> torch.Tensor:
    """The logits of one row without padding."""
    with nullcontext() if row is None else attach(model, prefixes[row]):
        logits: torch.Tensor = model(input_ids=tokens[None]).logits
    return logits[0]


def real(inputs: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    return [tokens[mask == 1] for tokens, mask in zip(*inputs.values(), strict=True)]


def test_every_family_of_the_table_is_tested() -> None:
    assert (len(DECODERS), len(ENCODERS), len(BEYOND_PEFT)) == (27, 5, 7)


def in_the_same_dtype(model: Any) -> tuple[Any, float]:
    """In float64 and a tolerance; in float32 where eager attention would turn float64's least number to infinity.

    Qwen3-Next computes its linear attention in float32 whatever its weights are.
    """
    if model.config._attn_implementation == "sdpa":
        return model.double(), 10 * TOLERANCE if model.config.model_type == "qwen3_next" else TOLERANCE
    return model, 10 * TOLERANCE


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize(
    ("family", "more"),
    [
        *((family, {}) for family in DECODERS),
        *((family, {"attn_implementation": "eager"}) for family in ("Llama", "GPT2", "Gemma3", "DeepseekV3")),
    ],
)
@torch.no_grad()
def test_a_decoder_gives_every_row_what_it_gives_it_alone(
    family: str, side: str, more: dict[str, Any]
) -> None:
    model, tolerance = in_the_same_dtype(decoder(family, **more))
    if family == "Mpt" and side == "left":
        with (
            pytest.raises(PrefixError, match="padding on the left"),
            attach_several(model, prefixes_of(model), ROWS),
        ):
            model(**batch(5, side=side))
        return
    prefixes, inputs = prefixes_of(model), batch(5, side=side)
    with attach_several(model, prefixes, ROWS):
        together = model(**inputs).logits
    for row, (which, tokens) in enumerate(zip(ROWS, real(inputs), strict=True)):
        expected = alone(model, prefixes, which, tokens)
        assert expected.std() > 0.05
        assert (together[row][inputs["attention_mask"][row] == 1] - expected).abs().max() < tolerance


@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize(
    ("family", "more"),
    [
        *((family, {}) for family in [*ENCODERS, *BEYOND_PEFT]),
        *((family, {"attn_implementation": "eager"}) for family in ("Bert", "Roberta", "ModernBert")),
    ],
)
@torch.no_grad()
def test_an_encoder_gives_every_row_what_it_gives_it_alone(
    family: str, padded: bool, more: dict[str, Any]
) -> None:
    model, tolerance = in_the_same_dtype(encoder(family, **more))
    prefixes, inputs = prefixes_of(model), batch(5, pad=model.config.pad_token_id)
    if not padded:
        inputs = batch(5 + 2)
        inputs = {name: tensor[2:] for name, tensor in inputs.items()}
    with attach_several(model, prefixes, ROWS):
        together = model(**inputs).logits
    for row, (which, tokens) in enumerate(zip(ROWS, real(inputs), strict=True)):
        expected = alone(model, prefixes, which, tokens)
        assert expected.std() > 0.05
        assert (together[row] - expected).abs().max() < tolerance


@pytest.mark.parametrize("family", ENCODER_DECODERS)
@torch.no_grad()
def test_an_encoder_decoder_gives_every_row_what_it_gives_it_alone(family: str) -> None:
    model = encoder_decoder(family).double()
    prefixes, inputs = prefixes_of(model), batch(5)
    said = torch.tensor([[2, 5, 6], [2, 7, 8], [2, 9, 4], [2, 5, 5], [2, 30, 31]])
    with attach_several(model, prefixes, ROWS):
        together = model(**inputs, decoder_input_ids=said).logits
    for row, (which, tokens) in enumerate(zip(ROWS, real(inputs), strict=True)):
        with nullcontext() if which is None else attach(model, prefixes[which]):
            expected = model(input_ids=tokens[None], decoder_input_ids=said[row][None]).logits[0]
        assert (together[row] - expected).abs().max() < TOLERANCE
    settings = {"max_new_tokens": NEW, "eos_token_id": END, "pad_token_id": 0, "beams": 2}
    ours = generate_several(model, prefixes, ROWS, **inputs, **settings)
    for row, (which, tokens) in enumerate(zip(ROWS, real(inputs), strict=True)):
        prefix = None if which is None else prefixes[which]
        text = generate(model, prefix, tokens[None], torch.ones_like(tokens)[None], **settings)
        assert ours[row].tolist() == text[0].tolist()


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize(
    ("family", "more"),
    [*((family, {}) for family in DECODERS), *(("Mistral", {"sliding_window": width}) for width in (9, 14))],
)
def test_generation_gives_every_row_what_it_gives_it_alone(
    family: str, more: dict[str, Any], beams: int
) -> None:
    model = decoder(family, **more)
    prefixes, inputs = prefixes_of(model, scale=3.0), batch(5, side="left")
    settings = {"max_new_tokens": NEW, "eos_token_id": END, "pad_token_id": 0, "beams": beams}
    ours = generate_several(model, prefixes, ROWS, **inputs, **settings)
    expected = []
    for which, tokens in zip(ROWS, real(inputs), strict=True):
        prefix = None if which is None else prefixes[which]
        expected += generate(model, prefix, tokens[None], torch.ones_like(tokens)[None], **settings).tolist()
    assert ours.tolist() == expected
    assert len({tuple(row) for row in expected}) > 1


@pytest.mark.parametrize("more", [{}, {"sliding_window": 9}])
def test_generation_leaves_the_model_as_it_was(more: dict[str, Any]) -> None:
    model = decoder("Mistral", **more)
    before = {name: set(vars(module)) for name, module in model.named_modules()}
    generate_several(
        model, prefixes_of(model), ROWS, **batch(5, side="left"), max_new_tokens=2, eos_token_id=END, pad_token_id=0
    )  # fmt: skip
    assert {name: set(vars(module)) for name, module in model.named_modules()} == before
    assert model.config._attn_implementation == "sdpa"


def test_rows_that_are_all_without_a_prefix_are_the_bases_own() -> None:
    model = decoder()
    inputs = batch(5, side="left")
    settings = {"max_new_tokens": NEW, "eos_token_id": END, "pad_token_id": 0}
    ours = generate_several(model, prefixes_of(model), [None] * 5, **inputs, **settings)
    assert torch.equal(ours, generate(model, None, **inputs, **settings))
    with torch.no_grad(), attach_several(model, prefixes_of(model), [None] * 5):
        attached = model(**batch(5)).logits
    expected = model(**batch(5)).logits
    assert (attached - expected)[batch(5)["attention_mask"] == 1].abs().max() < TOLERANCE


@pytest.mark.parametrize("make", [decoder, encoder])
def test_gradients_fall_apart_by_prefix(make: Any) -> None:
    model = make()
    prefixes, inputs = prefixes_of(model), batch(5)
    weight = torch.linspace(-1, 1, 60 if make is decoder else 5)
    chosen = inputs["attention_mask"] == 1
    with attach_several(model, prefixes, ROWS):
        logits = model(**inputs).logits
        ((logits[chosen] if make is decoder else logits) * weight).sum().backward()
    ours = [prefix.vectors.grad for prefix in prefixes]
    assert all(parameter.grad is None for parameter in model.parameters())
    for number, prefix in enumerate(prefixes):
        prefix.vectors.grad = None
        for which, tokens in zip(ROWS, real(inputs), strict=True):
            if which == number:
                (alone(model, prefixes, which, tokens) * weight).sum().backward()
        expected = prefix.vectors.grad
        assert expected is not None
        assert expected.abs().max() > 1e-2
        assert (ours[number] - expected).abs().max() < TOLERANCE * expected.abs().max()


def test_a_prefix_that_is_not_finite_spoils_its_own_rows_only() -> None:
    model = decoder()
    prefixes, inputs = prefixes_of(model), batch(5)
    with torch.no_grad():
        prefixes[0].vectors.fill_(float("nan"))
    with attach_several(model, prefixes, ROWS):
        logits = model(**inputs).logits
        logits[inputs["attention_mask"] == 1].sum().backward()
    finite = logits.isfinite().flatten(1).all(1).tolist()
    assert finite == [row != 0 for row in ROWS]
    assert [prefix.vectors.grad.isfinite().all().item() for prefix in prefixes] == [False, True, True]  # type: ignore[union-attr]


def test_rows_are_assigned_anew_and_a_prefix_nobody_uses_costs_no_columns() -> None:
    model = decoder()
    prefixes, inputs = prefixes_of(model), batch(3)
    widths: list[int] = []
    with attach_several(model, prefixes) as attached, torch.no_grad():
        model.model.layers[0].self_attn.register_forward_pre_hook(
            lambda module, args, kwargs: widths.append(kwargs["attention_mask"].shape[-1]), with_kwargs=True
        )
        for rows in ((0, 1, 1), (2, 2, None)):
            attached.assign(rows)
            together = model(**inputs).logits
            with attach_several(copy.deepcopy(decoder()), prefixes, rows) as fresh:
                assert torch.equal(fresh.model(**inputs).logits, together)
    assert widths == [5 + 9, 7 + 9]


def test_a_cache_is_continued_behind_every_rows_own_prefix() -> None:
    model = decoder()
    prefixes, tokens = prefixes_of(model), batch(5)["input_ids"]
    with attach_several(model, prefixes, ROWS), torch.no_grad():
        whole = model(input_ids=tokens).logits
        start = model(input_ids=tokens[:, :8], use_cache=True)
        rest = model(input_ids=tokens[:, 8:], past_key_values=start.past_key_values).logits
    assert (rest - whole[:, 8:]).abs().max() < TOLERANCE


@pytest.mark.parametrize(
    ("make", "implementation"),
    # without a mask, eager attention is not causal, with or without prefixes
    [(decoder, "sdpa"), (encoder, "sdpa"), (encoder, "eager")],
)
def test_a_layer_without_a_mask_still_hides_the_columns_of_other_rows(make: Any, implementation: str) -> None:
    model = make(attn_implementation=implementation)
    prefixes, tokens = prefixes_of(model), batch(5)["input_ids"]
    layers = model.model.layers if make is decoder else model.bert.encoder.layer

    def without_mask(module: Any, args: Any, kwargs: Any) -> Any:
        return args[:1], {**kwargs, "attention_mask": None}

    with attach_several(model, prefixes, ROWS), torch.no_grad():
        expected = model(input_ids=tokens).logits
        for layer in layers:
            layer.register_forward_pre_hook(without_mask, with_kwargs=True)
        assert (model(input_ids=tokens).logits - expected).abs().max() < TOLERANCE


# -- heads ---------------------------------------------------------------------------------------------------


def head_of(family: str, labels: int, seed: int) -> tuple[Any, dict[str, torch.Tensor]]:
    """The base of `encoder(family)` with another head, and that head."""
    model, other = encoder(family), encoder(family, labels=labels, seed=seed)
    inside = {id(p) for p in other.base_model.parameters()}
    head = {name: p.detach().clone() for name, p in other.named_parameters() if id(p) not in inside}
    other.base_model.load_state_dict(model.base_model.state_dict())
    return other, head


@pytest.mark.parametrize("family", [*ENCODERS, *BEYOND_PEFT])
@torch.no_grad()
def test_each_row_gets_the_logits_of_its_own_prefix_and_head(family: str) -> None:
    model = encoder(family)
    prefixes, inputs = prefixes_of(model), batch(5, pad=model.config.pad_token_id)
    rows = (1, 2, 0, 2, 1)
    others = [head_of(family, labels, seed) for labels, seed in ((5, 7), (3, 8), (4, 9))]
    before = {name: (id(p), p.clone()) for name, p in model.named_parameters()}
    with attach_several(model, prefixes, rows) as attached:
        ours = class_logits(attached, [head for _, head in others], **inputs)
    for row, (which, tokens) in enumerate(zip(rows, real(inputs), strict=True)):
        expected = alone(others[which][0], prefixes, which, tokens)
        assert ours[row].shape == expected.shape
        assert (ours[row] - expected).abs().max() < TOLERANCE
    assert all(
        before[name][0] == id(p) and torch.equal(before[name][1], p) for name, p in model.named_parameters()
    )


@torch.no_grad()
def test_each_row_gets_the_logits_of_its_own_prefix_and_head_on_the_mean() -> None:
    def on_the_mean(labels: int, seed: int) -> Any:
        made = MeanPooledForSequenceClassification(encoder(labels=labels).base_model).eval()
        generator = torch.Generator().manual_seed(seed)
        for parameter in made.mean_classifier.parameters():
            parameter.normal_(generator=generator)
        return made

    model, others = on_the_mean(2, 0), [on_the_mean(labels, labels) for labels in (5, 3, 4)]
    prefixes, inputs, rows = prefixes_of(model), batch(5, pad=0), (1, 2, 0, 2, 1)
    heads = [
        {f"mean_classifier.{name}": p for name, p in other.mean_classifier.named_parameters()}
        for other in others
    ]
    with attach_several(model, prefixes, rows) as attached:
        ours = class_logits(attached, heads, **inputs)
        with pytest.raises(
            PrefixError, match=r"got the tensors classifier\.bias, classifier\.weight; expected"
        ):
            class_logits(attached, [*heads[:2], heads_of(encoder())[0]], **inputs)
    for row, (which, tokens) in enumerate(zip(rows, real(inputs), strict=True)):
        expected = alone(others[which], prefixes, which, tokens)
        assert ours[row].shape == expected.shape
        assert (ours[row] - expected).abs().max() < TOLERANCE


def test_a_decoder_with_a_head_classifies_each_row_at_its_last_token() -> None:
    from transformers import LlamaForSequenceClassification

    def classifier(labels: int, seed: int) -> Any:
        config = copy.deepcopy(decoder().config)
        config.num_labels = labels
        torch.manual_seed(seed)
        made = LlamaForSequenceClassification(config).eval().requires_grad_(False)
        made.model.load_state_dict(decoder().model.state_dict())
        return made

    model, others = classifier(2, 0), [classifier(labels, labels) for labels in (5, 3, 4)]
    prefixes, inputs, rows = prefixes_of(model), batch(5), (1, 2, 0, 2, 1)
    with attach_several(model, prefixes, rows) as attached, torch.no_grad():
        ours = class_logits(attached, [{"score.weight": other.score.weight} for other in others], **inputs)
        for row, (which, tokens) in enumerate(zip(rows, real(inputs), strict=True)):
            expected = alone(others[which], prefixes, which, tokens)
            assert (ours[row] - expected).abs().max() < TOLERANCE


def heads_of(model: Any, **changed: torch.Tensor) -> list[dict[str, torch.Tensor]]:
    own = {"classifier.weight": model.classifier.weight, "classifier.bias": model.classifier.bias}
    return [own, own, own | {name.replace("_", "."): tensor for name, tensor in changed.items()}]


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        (
            {"classifier_weight": torch.zeros(5, 31)},
            r"prefix 2: classifier.weight: got shape \[5, 31\]; expected",
        ),
        ({"classifier_weight": torch.zeros(4, 32)}, "got tensors for 4 and for 5 labels; expected one"),
        (
            {"bert_pooler": torch.zeros(1)},
            "got the tensors bert.pooler, classifier.bias, classifier.weight; expected",
        ),
    ],
)
def test_a_head_of_another_model_is_refused_before_anything_is_computed(
    changed: dict[str, torch.Tensor], sentence: str
) -> None:
    model = encoder()
    with attach_several(model, prefixes_of(model), (0, 1, 2)) as attached:
        refuse_computing(model)
        with pytest.raises(PrefixError, match=sentence):
            class_logits(attached, heads_of(model, **changed), **batch())


def test_heads_that_are_too_few_and_rows_without_one_are_refused() -> None:
    model = encoder()
    with attach_several(model, prefixes_of(model), (0, None, 2)) as attached:
        refuse_computing(model)
        with pytest.raises(PrefixError, match="got 2 heads for 3 prefixes; expected one for each"):
            class_logits(attached, heads_of(model)[:2], **batch())
        with pytest.raises(PrefixError, match="row 1: has no prefix, so no head"):
            class_logits(attached, heads_of(model), **batch())


# -- what is refused -----------------------------------------------------------------------------------------


def refuse_computing(model: Any) -> None:
    model.get_input_embeddings().register_forward_hook(lambda *_: pytest.fail("it computed"))


def test_a_prefix_of_another_shape_is_refused_and_the_model_is_free() -> None:
    model = decoder()
    with pytest.raises(PrefixError, match=r"the prefix is for 2 layers"):
        attach_several(model, [random_prefix(model), Prefix(PrefixShape.uniform(2, 2, 8), 5)])
    with (
        attach(model, random_prefix(model)),
        pytest.raises(PrefixError, match="already has a prefix attached"),
    ):
        attach_several(model, prefixes_of(model), ROWS)


def test_no_prefix_at_all_is_refused() -> None:
    with pytest.raises(PrefixError, match="several prefixes: got none; expected at least one"):
        attach_several(decoder(), [])


@pytest.mark.parametrize("wrong", [3, -1])
def test_a_number_that_is_no_prefixs_is_refused(wrong: int) -> None:
    model = decoder()
    with pytest.raises(PrefixError, match=f"row 1: got prefix number {wrong}; expected 0 to 2, or None"):
        attach_several(model, prefixes_of(model), [0, wrong])
    attach_several(model, prefixes_of(model)).detach()  # nothing was left on the model


def test_another_number_of_rows_than_assigned_is_refused_before_anything_is_computed() -> None:
    model = decoder()
    refuse_computing(model)
    with attach_several(model, prefixes_of(model), ROWS) as attached:
        with pytest.raises(PrefixError, match="got a batch of 3 rows; expected 5"):
            model(**batch(3))
        attached.assign([0])
        with pytest.raises(PrefixError, match="got a batch of 3 rows; expected 1"):
            model(**batch(3))
    with attach_several(model, prefixes_of(model)), pytest.raises(PrefixError, match="call assign"):
        model(**batch(3))
    with pytest.raises(PrefixError, match="got prefixes for 5 rows; expected them for the 3 of the batch"):
        generate_several(
            model, prefixes_of(model), ROWS, **batch(3, side="left"), max_new_tokens=2, eos_token_id=1, pad_token_id=0
        )  # fmt: skip


@pytest.mark.parametrize("make", [decoder, encoder])
def test_each_row_has_the_window_beside_its_own_prefix(make: Any) -> None:
    """Prefixes of 5, 2 and 7 in a window of 64: 59, 62 and 57 tokens fit."""
    model = make()
    prefixes = prefixes_of(model)
    input_ids = torch.full((3, 62), 7)
    mask = (torch.arange(62) < torch.tensor([59, 62, 57])[:, None]).long()
    with attach_several(model, prefixes, (0, 1, 2)), torch.no_grad():
        assert model(input_ids=input_ids, attention_mask=mask).logits.isfinite().all()
        refuse_computing(model)
        mask[2, 57] = 1
        sentence = "row 2: prefix of 7 \\+ input of 58 tokens = 65 positions; the base model has 64"
        with pytest.raises(PrefixError, match=sentence):
            model(input_ids=input_ids, attention_mask=mask)
        with pytest.raises(PrefixError, match="row 0: prefix of 5 \\+ input of 62 tokens"):
            model(input_ids=input_ids)
        with pytest.raises(PrefixError, match="row 0: prefix of 5 \\+ input of 62 tokens"):
            model(input_ids=input_ids, position_ids=torch.arange(62)[None])


def test_generation_counts_every_rows_own_prefix_tokens_and_new_tokens() -> None:
    model = decoder()
    prefixes, inputs = prefixes_of(model), batch(5, side="left")
    refuse_computing(model)
    with pytest.raises(PrefixError, match="row 3: prefix of 7 \\+ input of 58 tokens"):
        generate_several(
            model, prefixes, ROWS, **inputs, max_new_tokens=49, eos_token_id=END, pad_token_id=0
        )  # fmt: skip


def test_an_encoder_does_not_generate() -> None:
    model = encoder()
    with pytest.raises(PrefixError, match="BertForSequenceClassification does not generate"):
        generate_several(
            model, prefixes_of(model), ROWS, **batch(5, side="left"), max_new_tokens=2, eos_token_id=1, pad_token_id=0
        )  # fmt: skip
