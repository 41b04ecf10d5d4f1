"""The prefix's parameters: layout, initialisation, reparameterisation."""

from __future__ import annotations

import pytest
import torch
from peft import PrefixTuningConfig
from peft.tuners.prefix_tuning import PrefixEncoder

from pipeline.errors import PrefixError
from pipeline.prefix.attention import attach
from pipeline.prefix.tuning import Prefix, PrefixShape, flatten, text_key_values, unflatten
from tests.prefix.models import DECODERS, decoder, encoder

SHAPE = PrefixShape(layers=3, heads=2, head_size=4)


def drawn(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_flatten_and_unflatten_are_inverse_and_in_pefts_order() -> None:
    vectors = torch.randn(SHAPE.key_values(5), generator=drawn())
    rows = flatten(vectors)
    assert torch.equal(unflatten(rows, SHAPE), vectors)
    # PEFT: view(P, L*2, H, D).permute(1, 2, 0, 3), then two entries a layer
    theirs = rows.view(5, 6, 2, 4).permute(1, 2, 0, 3)
    assert torch.equal(theirs[2 * 1 + 0], vectors[1, 0])
    assert torch.equal(theirs[2 * 2 + 1], vectors[2, 1])


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
    expected = unflatten(theirs(torch.arange(5)[None])[0], SHAPE)
    assert (prefix.key_values() - expected).abs().max() == 0


@pytest.mark.parametrize("projection", [None, 16])
def test_random_vectors_have_the_scale_and_follow_the_seed(projection: int | None) -> None:
    shape = PrefixShape(6, 4, 8)
    first, again, other = (Prefix(shape, 16, projection=projection) for _ in range(3))
    for prefix, seed in ((first, 3), (again, 3), (other, 4)):
        prefix.init_random(0.25, drawn(seed))
    assert first.key_values().std().item() == pytest.approx(0.25, rel=0.03)
    assert torch.equal(first.key_values(), again.key_values())
    assert not torch.equal(first.key_values(), other.key_values())


@pytest.mark.parametrize("projection", [None, 5, 32])
def test_given_vectors_are_taken_over(projection: int | None) -> None:
    vectors = torch.randn(SHAPE.key_values(5), generator=drawn())
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
        Prefix(SHAPE, 5, projection=4).init_from(torch.ones(SHAPE.key_values(5)))


def test_a_projection_that_misses_the_vectors_is_refused() -> None:
    huge = torch.randn(SHAPE.key_values(5), generator=drawn()) * 1e38
    huge[0] *= 1e-30
    prefix = Prefix(SHAPE, 5, projection=5)
    with pytest.raises(PrefixError, match="width 5 misses the given vectors by"):
        prefix.init_from(torch.nan_to_num(huge * 3.0))


def test_vectors_of_another_shape_or_non_finite_are_refused() -> None:
    prefix = Prefix(SHAPE, 5)
    with pytest.raises(PrefixError, match=r"got shape \[3, 2, 2, 6, 4\]; expected \[3, 2, 2, 5, 4\]"):
        prefix.init_from(torch.zeros(SHAPE.key_values(6)))
    with pytest.raises(PrefixError, match="NaN or infinity"):
        prefix.init_from(torch.full(SHAPE.key_values(5), torch.nan))


def test_a_prefix_of_no_length_is_refused() -> None:
    with pytest.raises(PrefixError, match="got 0; expected at least 1"):
        Prefix(SHAPE, 0)


@pytest.mark.parametrize("family", DECODERS)
def test_text_initialisation_answers_as_the_base_does_after_the_text(family: str) -> None:
    model = decoder(family)
    text, x = torch.tensor([7, 12, 9, 30]), torch.tensor([[5, 6, 40, 8, 21]])
    prefix = Prefix(PrefixShape.of_model(model), 4)
    prefix.init_from(text_key_values(model, text))
    expected = model(torch.cat([text[None], x], dim=1)).logits[:, 4:]
    with attach(model, prefix), torch.no_grad():
        ours = model(x).logits
    assert (ours - expected).abs().max() < 1e-5
    assert (ours - model(x).logits).abs().max() > 1e-2


def test_text_key_values_are_what_the_cache_holds() -> None:
    model = decoder()
    text = torch.tensor([7, 12, 9])
    cache = model(text[None], use_cache=True).past_key_values
    expected = torch.stack([torch.stack([layer.keys[0], layer.values[0]]) for layer in cache.layers])
    assert torch.equal(text_key_values(model, text), expected)


def test_text_key_values_of_an_encoder_are_its_own_projections() -> None:
    model = encoder()
    text = torch.tensor([7, 12, 9])
    hidden = model.bert(text[None], output_hidden_states=True).hidden_states
    got = text_key_values(model.train(), text)
    assert model.training
    for layer, block in enumerate(model.bert.encoder.layer):
        keys = block.attention.self.key(hidden[layer]).view(3, 4, 8).transpose(0, 1)
        assert (got[layer, 0] - keys).abs().max() < 1e-6


@pytest.mark.parametrize("text", [torch.empty(0, dtype=torch.long), torch.tensor([[1, 2]])])
def test_text_that_is_no_row_of_tokens_is_refused(text: torch.Tensor) -> None:
    with pytest.raises(PrefixError, match="text for the prefix"):
        text_key_values(decoder(), text)


def test_text_longer_than_the_window_is_refused() -> None:
    with pytest.raises(PrefixError, match="the base model has 64"):
        text_key_values(decoder(), torch.ones(65, dtype=torch.long))
