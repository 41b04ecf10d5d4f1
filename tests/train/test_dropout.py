"""What is dropped in a step, and that nothing is outside of one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import LlamaForSequenceClassification

from pipeline.base.base_model import head_parameters
from pipeline.prefix.attention import attach
from pipeline.prefix.tuning import Prefix, PrefixShape
from pipeline.train.dropout import HeadDropout, PrefixDropout, head_layers
from tests.prefix.models import decoder, encoder, random_prefix

INPUTS = torch.randint(4, 60, (24, 5), generator=torch.Generator().manual_seed(0))
EXAMPLES = torch.randperm(500, generator=torch.Generator().manual_seed(0))[:24]


def of_prefix(prefix: Prefix, probability: float, *, seed: int = 3) -> PrefixDropout:
    return PrefixDropout(probability, seed, prefix)


def of_head(model: Any, probability: float, *, seed: int = 3) -> HeadDropout:
    return HeadDropout(probability, seed, head_layers(model, head_parameters(model)))


def logits(model: Any, prefix: Prefix, rows: Any = slice(None)) -> torch.Tensor:
    with attach(model, prefix), torch.no_grad():
        return model(input_ids=INPUTS[rows]).logits


@pytest.mark.parametrize("examples", [None, EXAMPLES], ids=["for all rows", "in each row"])
def test_a_step_drops_its_share_of_the_prefixs_numbers_and_scales_up_the_others(
    examples: torch.Tensor | None,
) -> None:
    model = decoder()
    prefix = random_prefix(model, 64)
    whole = prefix.key_values().detach().clone()
    shares = []
    for step in range(1, 9):
        with of_prefix(prefix, 0.25).of(step, examples):
            found = prefix.key_values().detach()
        kept = found != 0
        assert torch.allclose(found[kept], whole.expand_as(found)[kept] / 0.75)
        shares.append(1 - kept.float().mean().item())
        assert found.shape == (whole.shape if examples is None else (len(EXAMPLES), *whole.shape))
    numbers = 8 * found.numel()
    assert sum(shares) / 8 == pytest.approx(0.25, abs=5 * (0.25 * 0.75 / numbers) ** 0.5)


@pytest.mark.parametrize("what", ["prefix", "head"])
def test_what_is_dropped_of_an_example_follows_from_seed_and_step_alone(what: str) -> None:
    model = encoder()
    prefix = random_prefix(model)

    def found(step: int, seed: int) -> torch.Tensor:
        with (
            of_prefix(prefix, 0.5, seed=seed).of(step, EXAMPLES)
            if what == "prefix"
            else of_head(model, 0.5, seed=seed).of(step, EXAMPLES)
        ):
            return logits(model, prefix)

    first = found(1, 3)
    torch.rand(5)  # whatever else draws random numbers
    assert torch.equal(found(1, 3), first)
    assert not torch.allclose(found(2, 3), first)
    assert not torch.allclose(found(1, 4), first)


def test_drawing_leaves_the_programs_own_random_numbers_alone() -> None:
    model = encoder()
    before = torch.get_rng_state()
    with of_prefix(random_prefix(model), 0.5).of(1, None), of_head(model, 0.5).of(1, EXAMPLES):
        pass
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("family", "layers"), [("Bert", 1), ("Roberta", 2), ("DistilBert", 2), ("ModernBert", 2)]
)
def test_the_input_of_every_linear_layer_of_the_head_is_dropped_by_itself_in_each_row(
    family: str, layers: int
) -> None:
    model = encoder(family)
    found = head_layers(model, head_parameters(model))
    assert len(found) == layers
    whole: list[torch.Tensor] = []
    for layer in found:
        layer.register_forward_pre_hook(lambda _, args: whole.append(args[0]))
    seen: list[torch.Tensor] = []
    prefix = random_prefix(model)
    with of_head(model, 0.5).of(1, EXAMPLES):
        for layer in found:  # after dropout's own hook
            layer.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        logits(model, prefix)
    assert len(seen) == layers
    for before, after in zip(whole, seen, strict=True):
        kept = after != 0
        assert torch.equal(after[kept], 2 * before[kept])
        share = kept[before != 0].float()
        assert share.mean().item() == pytest.approx(0.5, abs=5 * 0.5 / len(share) ** 0.5)
        assert len(set(map(tuple, kept.tolist()))) == len(EXAMPLES)
    masks = [after != 0 for after in seen]
    assert all(not torch.equal(masks[0], other) for other in masks[1:])


@pytest.mark.parametrize("what", ["prefix", "head"])
def test_what_is_dropped_of_an_example_does_not_depend_on_the_batch(what: str) -> None:
    model = encoder()
    prefix = random_prefix(model)
    dropout = of_prefix(prefix, 0.5) if what == "prefix" else of_head(model, 0.5)
    with dropout.of(4, EXAMPLES):
        whole = logits(model, prefix)
    part = torch.tensor([17, 3, 8])
    with dropout.of(4, EXAMPLES[part]):
        assert torch.allclose(logits(model, prefix, part), whole[part], atol=1e-5)


@pytest.mark.parametrize(
    ("make", "family"),
    [
        *((encoder, family) for family in ("Bert", "Albert", "ModernBert", "DebertaV2")),
        *((decoder, family) for family in ("Llama", "GPTJ", "Bloom")),
    ],
)
@torch.no_grad()
def test_each_row_sees_the_prefix_with_its_own_numbers_dropped(make: Any, family: str) -> None:
    model = make(family).base_model.double()
    prefix = random_prefix(model).double()
    with of_prefix(prefix, 0.5).of(2, EXAMPLES):
        dropped = prefix.key_values() / prefix.vectors
        with attach(model, prefix):
            together = model(input_ids=INPUTS).last_hidden_state
    assert len({tuple(kept.flatten().tolist()) for kept in dropped != 0}) == len(EXAMPLES)
    for row, factors in enumerate(dropped[:4]):
        with prefix.keeping(factors != 0, 2.0), attach(model, prefix):
            alone = model(input_ids=INPUTS[row : row + 1]).last_hidden_state
        assert (together[row] - alone[0]).abs().max() < 1e-5  # GPT-J attends in float32
    assert (together[:1] - together[1:2]).abs().max() > 1e-3


def test_a_decoders_head_drops_alike_of_all_tokens_of_a_row() -> None:
    torch.manual_seed(0)
    model = LlamaForSequenceClassification(decoder().config).eval().requires_grad_(False)
    prefix = random_prefix(model)
    (layer,) = head_layers(model, head_parameters(model))
    seen: list[torch.Tensor] = []
    with of_head(model, 0.5).of(1, EXAMPLES):
        layer.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        logits(model, prefix)
    (states,) = seen
    assert states.dim() == 3
    kept = states != 0
    assert torch.equal(kept, kept[:, :1].expand_as(kept))
    assert len(set(map(tuple, kept[:, 0].tolist()))) == len(EXAMPLES)


def test_with_a_projection_its_vectors_are_dropped() -> None:
    model = decoder()
    prefix = Prefix(PrefixShape.of_model(model), 4, projection=8)
    prefix.init_random(0.5, torch.Generator().manual_seed(0))
    whole = prefix.key_values().detach()
    with of_prefix(prefix, 0.5).of(1, None):
        found = prefix.key_values().detach()
    assert torch.equal(found[found != 0], 2 * whole[found != 0])
    assert 0.4 < (found == 0).float().mean().item() < 0.6


@pytest.mark.parametrize("what", ["prefix", "head"])
@pytest.mark.parametrize("ends", ["in order", "by an error"])
def test_after_a_step_nothing_is_dropped_however_it_ends(ends: str, what: str) -> None:
    model = encoder("Roberta")
    prefix = random_prefix(model)
    before = logits(model, prefix)
    try:
        with (
            of_prefix(prefix, 0.5 if what == "prefix" else 0.0).of(1, None),
            of_head(model, 0.5 if what == "head" else 0.0).of(1, EXAMPLES),
        ):
            assert not torch.allclose(logits(model, prefix), before)
            if ends == "by an error":
                raise InterruptedError
    except InterruptedError:
        pass
    assert torch.equal(logits(model, prefix), before)


def test_with_a_probability_of_zero_a_step_is_as_without_dropout() -> None:
    model = encoder()
    prefix = random_prefix(model)
    before = logits(model, prefix)
    with of_prefix(prefix, 0.0).of(1, None), of_head(model, 0.0).of(1, EXAMPLES):
        assert torch.equal(logits(model, prefix), before)
