"""The prefix's parameters: layout, initialisation, reparameterisation."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
import torch
from peft import PrefixTuningConfig
from peft.tuners.prefix_tuning import PrefixEncoder

from pipeline.errors import PrefixError
from pipeline.prefix.architecture import LayerShape
from pipeline.prefix.tuning import Prefix, PrefixShape

SHAPE = PrefixShape.uniform(3, heads=2, head_size=4)


def drawn(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_a_row_holds_layer_after_layer_the_keys_and_then_the_values_as_in_peft() -> None:
    rows = torch.randn((5, SHAPE.size), generator=drawn())
    # PEFT: view(P, L*2, H, D), then two entries a layer
    theirs = rows.view(5, 6, 2, 4)
    layers = SHAPE.per_layer(rows)
    assert len(layers) == 3
    for layer, (keys, values) in enumerate(layers):
        assert torch.equal(keys, theirs[:, 2 * layer])
        assert torch.equal(values, theirs[:, 2 * layer + 1])


def test_layers_may_have_shapes_of_their_own() -> None:
    shape = PrefixShape((LayerShape(2, 3, 3), LayerShape(4, 6, 5), LayerShape(4, 6, 5)))
    assert shape.size == 2 * 6 + 2 * (4 * 11)
    assert str(shape) == "1 layer of 2 heads of 3, then 2 layers of 4 heads of 6 (keys) and 5 (values)"
    rows = torch.arange(2.0 * shape.size).view(2, -1)
    sizes = [(tuple(keys.shape), tuple(values.shape)) for keys, values in shape.per_layer(rows)]
    assert sizes == [((2, 2, 3), (2, 2, 3)), ((2, 4, 6), (2, 4, 5)), ((2, 4, 6), (2, 4, 5))]
    back = [part.flatten(1) for layer in shape.per_layer(rows) for part in layer]
    assert torch.equal(torch.cat(back, dim=1), rows)
    stacked = shape.per_layer(torch.stack([rows, -rows]))
    assert torch.equal(stacked[2][1][1], -shape.per_layer(rows)[2][1])


def test_a_projection_computes_what_pefts_prefix_encoder_computes() -> None:
    prefix = Prefix(SHAPE, 5, projection=7)
    prefix.init_random(0.3, drawn())
    config = PrefixTuningConfig(
        task_type="CAUSAL_LM",
        num_virtual_tokens=5,
        token_dim=8,
        num_layers=3,
        num_attention_heads=2,
        num_transformer_submodules=1,
        encoder_hidden_size=7,
        prefix_projection=True,
    )
    theirs = PrefixEncoder(config)
    theirs.embedding.load_state_dict(prefix.embedding.state_dict())
    theirs.transform[0].load_state_dict(prefix.widen.state_dict())
    theirs.transform[2].load_state_dict(prefix.spread.state_dict())
    expected = theirs(torch.arange(5)[None])[0]
    assert (prefix.key_values() - expected).abs().max() == 0


@pytest.mark.parametrize("projection", [None, 16])
def test_random_vectors_have_the_scale_and_follow_the_seed(projection: int | None) -> None:
    shape = PrefixShape.uniform(6, 4, 8)
    first, again, other = (Prefix(shape, 16, projection=projection) for _ in range(3))
    for prefix, seed in ((first, 3), (again, 3), (other, 4)):
        prefix.init_random(0.25, drawn(seed))
    assert first.key_values().std().item() == pytest.approx(0.25, rel=0.03)
    assert torch.equal(first.key_values(), again.key_values())
    assert not torch.equal(first.key_values(), other.key_values())


@pytest.mark.parametrize("projection", [None, 16])
def test_values_can_start_on_a_scale_of_their_own_beside_the_same_keys(projection: int | None) -> None:
    shape = PrefixShape((LayerShape(4, 8, 16),) * 6)
    alike, apart = (Prefix(shape, 16, projection=projection) for _ in range(2))
    alike.init_random(0.25, drawn(3))
    apart.init_random(0.25, drawn(3), value_scale=0.01)
    for (keys, values), (same_keys, own_values) in zip(
        shape.per_layer(alike.key_values()), shape.per_layer(apart.key_values()), strict=True
    ):
        assert torch.equal(keys, same_keys)
        assert own_values.allclose(0.04 * values, atol=1e-7)


@pytest.mark.parametrize("projection", [None, 5, 32])
def test_given_vectors_are_taken_over(projection: int | None) -> None:
    vectors = torch.randn((5, SHAPE.size), generator=drawn())
    prefix = Prefix(SHAPE, 5, projection=projection)
    prefix.init_from(vectors)
    assert (prefix.key_values() - vectors).abs().max() <= (0 if projection is None else 1e-5)
    assert (prefix.folded().key_values() - prefix.key_values()).abs().max() == 0


def test_folding_copies_and_drops_the_projection() -> None:
    prefix = Prefix(SHAPE, 5, projection=6)
    prefix.init_random(0.3, drawn())
    folded = prefix.folded()
    before = folded.key_values().clone()
    with torch.no_grad():
        prefix.spread.weight.add_(1)
    assert [name for name, _ in folded.named_parameters()] == ["vectors"]
    assert folded.vectors.is_leaf
    assert torch.equal(folded.key_values(), before)


def test_a_narrow_projection_is_refused_rather_than_fitted_nearly() -> None:
    with pytest.raises(PrefixError, match="width 4 cannot yield 5 given vectors"):
        Prefix(SHAPE, 5, projection=4).init_from(torch.ones((5, SHAPE.size)))


def test_a_projection_that_misses_the_vectors_is_refused() -> None:
    huge = torch.randn((5, SHAPE.size), generator=drawn()) * 1e38
    huge[0] *= 1e-30
    prefix = Prefix(SHAPE, 5, projection=5)
    with pytest.raises(PrefixError, match="width 5 misses the given vectors by"):
        prefix.init_from(torch.nan_to_num(huge * 3.0))


def test_vectors_of_another_shape_or_non_finite_are_refused() -> None:
    prefix = Prefix(SHAPE, 5)
    with pytest.raises(PrefixError, match=r"got shape \[6, 40\]; expected \[5, 48\]"):
        prefix.init_from(torch.zeros((6, 40)))
    with pytest.raises(PrefixError, match=r"got 6 positions .* for a prefix of 5"):
        prefix.init_from(torch.zeros((6, SHAPE.size)))
    with pytest.raises(PrefixError, match="NaN or infinity"):
        prefix.init_from(torch.full((5, SHAPE.size), torch.nan))


@pytest.mark.parametrize("length", [0, -1, 2.5, "5", True, None])
def test_a_length_that_is_no_whole_number_of_one_or_more_is_refused(length: Any) -> None:
    with pytest.raises(
        PrefixError, match=re.escape(f"prefix length: got {length!r}; expected a whole number")
    ):
        Prefix(SHAPE, length)


@pytest.mark.parametrize("wrong", [0.0, -0.5, math.nan, math.inf, "0.5"])
@pytest.mark.parametrize("name", ["scale", "value_scale"])
def test_a_random_start_without_a_finite_deviation_above_zero_is_refused_and_draws_nothing(
    name: str, wrong: Any
) -> None:
    prefix = Prefix(SHAPE, 5)
    with pytest.raises(PrefixError, match=f"random start: {name}: got {wrong!r}; expected a finite number"):
        prefix.init_random(**{"scale": 0.5, name: wrong, "generator": drawn()})
    assert not prefix.vectors.any()


@pytest.mark.parametrize("projection", [0, -1, "8", 2.5])
def test_a_projection_that_is_no_width_is_refused(projection: Any) -> None:
    with pytest.raises(PrefixError, match=re.escape(f"projection: got {projection!r}; expected a width")):
        Prefix(SHAPE, 5, projection=projection)


@pytest.mark.parametrize("generator", [None, 7])
def test_a_random_start_without_a_generator_is_refused(generator: Any) -> None:
    with pytest.raises(PrefixError, match=f"generator: got {generator}; expected a torch.Generator"):
        Prefix(SHAPE, 5).init_random(0.5, generator)


def test_vectors_that_a_projection_misses_leave_it_as_it_was() -> None:
    prefix = Prefix(SHAPE, 5, projection=5)
    prefix.init_random(0.5, drawn())
    before = {name: tensor.clone() for name, tensor in prefix.state_dict().items()}
    huge = torch.randn((5, SHAPE.size), generator=drawn()) * 1e38
    huge[0] *= 1e-30
    with pytest.raises(PrefixError, match="misses the given vectors"):
        prefix.init_from(torch.nan_to_num(huge * 3.0))
    assert all(torch.equal(tensor, before[name]) for name, tensor in prefix.state_dict().items())


def test_vectors_beyond_what_the_prefixs_numbers_hold_are_refused() -> None:
    prefix = Prefix(SHAPE, 5)
    with pytest.raises(PrefixError, match="NaN or infinity"):
        prefix.init_from(torch.full((5, SHAPE.size), 1e60, dtype=torch.float64))
    assert not prefix.vectors.any()
