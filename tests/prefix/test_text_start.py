"""A prefix that starts from a text is the base model's own keys and values."""

from __future__ import annotations

import pytest
import torch

from pipeline.errors import PrefixError
from pipeline.prefix.attention import attach
from pipeline.prefix.text_start import text_key_values
from pipeline.prefix.tuning import Prefix, PrefixShape
from tests.prefix.models import DECODERS, decoder, encoder


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


def test_text_longer_than_the_sliding_window_is_refused() -> None:
    with pytest.raises(PrefixError, match="layers that see 4"):
        text_key_values(decoder("Mistral", sliding_window=4), torch.ones(5, dtype=torch.long))


def test_text_longer_than_the_window_is_refused() -> None:
    with pytest.raises(PrefixError, match="the base model has 64"):
        text_key_values(decoder(), torch.ones(65, dtype=torch.long))
