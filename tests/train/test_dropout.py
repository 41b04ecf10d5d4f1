"""What is dropped in a step, and that nothing is outside of one."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pipeline.base.base_model import head_parameters
from pipeline.prefix.attention import attach
from pipeline.prefix.tuning import Prefix, PrefixShape
from pipeline.train.dropout import Dropout, head_layers
from tests.prefix.models import decoder, encoder, random_prefix

INPUTS = torch.randint(4, 60, (24, 5), generator=torch.Generator().manual_seed(0))


def dropout(model: Any, prefix: Prefix, probability: float, *, seed: int = 3) -> Dropout:
    return Dropout(probability, seed, prefix, head_layers(model, head_parameters(model)))


def logits(model: Any, prefix: Prefix) -> torch.Tensor:
    with attach(model, prefix), torch.no_grad():
        return model(input_ids=INPUTS).logits


def test_a_step_drops_its_share_of_the_prefixs_numbers_and_scales_up_the_others() -> None:
    model = decoder()
    prefix = random_prefix(model, 64)
    whole = prefix.key_values().detach().clone()
    shares = []
    for step in range(1, 9):
        with dropout(model, prefix, 0.25).in_step(step):
            found = prefix.key_values().detach()
        kept = found != 0
        assert torch.allclose(found[kept], whole[kept] / 0.75)
        shares.append(1 - kept.float().mean().item())
    numbers = 8 * whole.numel()
    assert sum(shares) / 8 == pytest.approx(0.25, abs=5 * (0.25 * 0.75 / numbers) ** 0.5)


def test_what_is_dropped_follows_from_seed_and_step_alone() -> None:
    model = encoder()
    prefix = random_prefix(model)

    def found(step: int, seed: int) -> torch.Tensor:
        with dropout(model, prefix, 0.5, seed=seed).in_step(step):
            return logits(model, prefix)

    first = found(1, 3)
    torch.rand(5)  # whatever else draws random numbers
    assert torch.equal(found(1, 3), first)
    assert not torch.allclose(found(2, 3), first)
    assert not torch.allclose(found(1, 4), first)


def test_drawing_leaves_the_programs_own_random_numbers_alone() -> None:
    model = encoder()
    before = torch.get_rng_state()
    with dropout(model, random_prefix(model), 0.5).in_step(1):
        pass
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("family", "layers"), [("Bert", 1), ("Roberta", 2), ("DistilBert", 2), ("ModernBert", 2)]
)
def test_the_input_of_every_linear_layer_of_the_head_is_dropped_alike_in_all_rows(
    family: str, layers: int
) -> None:
    model = encoder(family)
    found = head_layers(model, head_parameters(model))
    assert len(found) == layers
    seen: list[torch.Tensor] = []
    prefix = random_prefix(model)
    with dropout(model, prefix, 0.5).of_head(1):
        for layer in found:  # after dropout's own hook
            layer.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        logits(model, prefix)
    assert len(seen) == layers
    for states in seen:
        dropped = (states == 0).flatten(0, -2).all(0)
        assert 0.2 < dropped.float().mean().item() < 0.8


def test_with_a_projection_its_vectors_are_dropped() -> None:
    model = decoder()
    prefix = Prefix(PrefixShape.of_model(model), 4, projection=8)
    prefix.init_random(0.5, torch.Generator().manual_seed(0))
    whole = prefix.key_values().detach()
    with dropout(model, prefix, 0.5).in_step(1):
        found = prefix.key_values().detach()
    assert torch.equal(found[found != 0], 2 * whole[found != 0])
    assert 0.4 < (found == 0).float().mean().item() < 0.6


@pytest.mark.parametrize("ends", ["in order", "by an error"])
def test_after_a_step_nothing_is_dropped_however_it_ends(ends: str) -> None:
    model = encoder("Roberta")
    prefix = random_prefix(model)
    before = logits(model, prefix)
    try:
        with dropout(model, prefix, 0.5).in_step(1):
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
    with dropout(model, prefix, 0.0).in_step(1):
        assert torch.equal(logits(model, prefix), before)
