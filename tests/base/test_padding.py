"""Rows side by side: every token where it belongs, and the mask over what fills up."""

from __future__ import annotations

import pytest

from pipeline.base.padding import pad_token, padded
from tests.prefix import models


def test_rows_are_padded_on_the_side_that_was_asked_for() -> None:
    input_ids, mask = padded([[5], [6, 7]], 9)
    assert (input_ids.tolist(), mask.tolist()) == ([[5, 9], [6, 7]], [[1, 0], [1, 1]])
    input_ids, mask = padded([[5], [6, 7]], 9, left=True)
    assert (input_ids.tolist(), mask.tolist()) == ([[9, 5], [6, 7]], [[0, 1], [1, 1]])


@pytest.mark.parametrize(("given", "expected"), [(7, 7), (0, 0), (None, 0)])
def test_a_model_without_a_padding_token_is_filled_up_with_some_token(
    given: int | None, expected: int
) -> None:
    assert pad_token(models.encoder(pad_token_id=given)) == expected
