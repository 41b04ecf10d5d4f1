"""Rows side by side: every token where it belongs, and the mask over what fills up."""

from __future__ import annotations

import pytest
from transformers import BertConfig, BertForSequenceClassification

from pipeline.base.padding import pad_token, padded


def test_rows_are_padded_on_the_side_that_was_asked_for() -> None:
    input_ids, mask = padded([[5], [6, 7]], 9)
    assert (input_ids.tolist(), mask.tolist()) == ([[5, 9], [6, 7]], [[1, 0], [1, 1]])
    input_ids, mask = padded([[5], [6, 7]], 9, left=True)
    assert (input_ids.tolist(), mask.tolist()) == ([[9, 5], [6, 7]], [[0, 1], [1, 1]])


@pytest.mark.parametrize(("given", "expected"), [(7, 7), (0, 0), (None, 0)])
def test_a_model_without_a_padding_token_is_filled_up_with_some_token(
    given: int | None, expected: int
) -> None:
    config = BertConfig(
        vocab_size=9,
        hidden_size=4,
        num_attention_heads=1,
        num_hidden_layers=1,
        intermediate_size=4,
        pad_token_id=given,
    )
    assert pad_token(BertForSequenceClassification(config)) == expected
