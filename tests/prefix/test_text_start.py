"""A prefix that starts from a text is the base model's own keys and values.

That a decoder then answers as it would after the text is a column of the table of architectures.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pipeline.errors import PrefixError
from pipeline.prefix.text_start import text_key_values
from pipeline.prefix.tuning import Prefix, PrefixShape
from tests.prefix.models import decoder, encoder


def test_text_key_values_are_what_the_cache_holds() -> None:
    model = decoder()
    text = torch.tensor([7, 12, 9])
    cache = model(text[None], use_cache=True).past_key_values
    found = PrefixShape.of_model(model).per_layer(text_key_values(model, text))
    for kept, (keys, values) in zip(cache.layers, found, strict=True):
        assert torch.equal(kept.keys[0], keys.transpose(0, 1))
        assert torch.equal(kept.values[0], values.transpose(0, 1))


def test_text_key_values_of_an_encoder_are_its_own_projections() -> None:
    model = encoder()
    text = torch.tensor([7, 12, 9])
    hidden = model.bert(text[None], output_hidden_states=True).hidden_states
    got = PrefixShape.of_model(model).per_layer(text_key_values(model.train(), text))
    assert model.training
    for layer, block in enumerate(model.bert.encoder.layer):
        keys = block.attention.self.key(hidden[layer]).view(3, 4, 8)
        assert (got[layer][0] - keys).abs().max() < 1e-6


@pytest.mark.parametrize("text", [torch.empty(0, dtype=torch.long), torch.tensor([[1, 2]]), [1, 2], "a b"])
def test_text_that_is_no_row_of_tokens_is_refused(text: Any) -> None:
    with pytest.raises(PrefixError, match="text for the prefix"):
        text_key_values(decoder(), text)


@pytest.mark.parametrize(
    ("text", "got"),
    [
        (torch.tensor([7, 60]), r"\[7, 60\]"),
        (torch.tensor([-1, 7]), r"\[-1, 7\]"),
        (torch.tensor([7.5]), r"\[7.5\]"),
        (torch.tensor([True, False]), r"\[True, False\]"),
    ],
)
def test_text_of_tokens_that_the_base_does_not_have_is_refused(text: torch.Tensor, got: str) -> None:
    with pytest.raises(PrefixError, match=f"got {got}; expected tokens .* from 0 to 59$"):
        text_key_values(decoder(), text)


def test_a_text_shorter_than_the_prefix_is_refused_by_its_tokens() -> None:
    model = decoder()
    prefix = Prefix(PrefixShape.of_model(model), 5)
    with pytest.raises(PrefixError, match=r"got 3 positions \(of a text: tokens\) for a prefix of 5"):
        prefix.init_from(text_key_values(model, torch.tensor([7, 12, 9])))
    assert not prefix.vectors.any()


def test_text_longer_than_the_sliding_window_is_refused() -> None:
    with pytest.raises(PrefixError, match="layers that see 4"):
        text_key_values(decoder("Mistral", sliding_window=4), torch.ones(5, dtype=torch.long))


def test_text_longer_than_the_window_is_refused() -> None:
    with pytest.raises(PrefixError, match="the base model has 64"):
        text_key_values(decoder(), torch.ones(65, dtype=torch.long))


def test_every_module_is_in_the_mode_it_was_in() -> None:
    model = decoder()
    model.train()
    model.model.layers[1].eval()
    text_key_values(model, torch.tensor([7, 12]))
    assert model.training
    assert model.model.layers[0].training
    assert not model.model.layers[1].training
