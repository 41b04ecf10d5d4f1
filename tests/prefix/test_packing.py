"""Packed rows compute what a padded row per reference computes, on every decoder."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedModel

from pipeline.errors import PrefixError
from pipeline.prefix.architecture import anatomy
from pipeline.prefix.attention import attach
from pipeline.prefix.packing import Tree, pack, packs, share
from tests.prefix import models

SOURCES = [[5, 9, 14], [7], [3, 4, 12, 6, 8, 20, 21], [30, 31], [11, 12]]
REFERENCES = [
    [[8, 6, 2], [9, 2]],
    [[4, 2]],
    [[5, 6, 7, 8, 2], [3, 2], [2]],
    [[40, 41, 42, 2]],
    [[6, 7, 9, 2], [6, 7, 8, 2], [6, 7, 2], [6, 7, 8, 2]],
]
EXAMPLES = list(zip(SOURCES, REFERENCES, strict=True))


def array(tokens: list[int]) -> Any:
    return np.array(tokens, np.int64)


def trees() -> list[Tree]:
    return [Tree(array(s), tuple(array(r) for r in references)) for s, references in EXAMPLES]


def reference_loss(model: PreTrainedModel) -> torch.Tensor:
    """Every reference alone behind its source: transformers' own loss, in nats over all target tokens."""
    total = torch.zeros(())
    for source, references in EXAMPLES:
        for reference in references:
            labels = torch.tensor([[-100] * len(source) + reference])
            loss = model(input_ids=torch.tensor([source + reference]), labels=labels).loss
            total = total + loss * len(reference)
    return total


def packed_loss(model: PreTrainedModel) -> torch.Tensor:
    rows = pack(trees(), pad=0, width=32)
    logits = model(
        input_ids=rows.input_ids, position_ids=rows.position_ids, attention_mask=rows.mask(model)
    ).logits
    chosen = logits.flatten(0, 1)[rows.positions]
    return torch.nn.functional.cross_entropy(chosen, rows.targets, reduction="sum")


def test_every_decoder_of_the_tests_is_compared() -> None:
    assert len(models.PACKED) == 10


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("family", models.PACKED)
def test_losses_and_gradients_are_those_of_every_reference_alone(family: str, implementation: str) -> None:
    model = models.decoder(family, attn_implementation=implementation)
    prefix = models.random_prefix(model)
    with attach(model, prefix):
        gradients = []
        for loss in (reference_loss(model), packed_loss(model)):
            prefix.zero_grad()
            loss.backward()
            gradients.append((loss.item(), prefix.vectors.grad.clone()))
    (expected, gradient), (found, packed) = gradients
    assert found == pytest.approx(expected, rel=1e-6)
    assert models.least(prefix.shape, packed) > 0
    assert (packed - gradient).abs().max() <= 1e-5 * gradient.abs().max()


def test_without_a_prefix_the_base_computes_the_same_too() -> None:
    for implementation in ("sdpa", "eager"):
        model = models.decoder("Llama", attn_implementation=implementation)
        assert packed_loss(model).item() == pytest.approx(reference_loss(model).item(), rel=1e-6)


def test_trees_share_what_their_references_begin_with_and_lie_close() -> None:
    rows = pack(trees(), pad=99, width=16)
    # 7 + 4 + 1 + 0 tokens; then 3 + 2 + 1 beside 2 + 3, and 2 + 4 beside 1 + 1: 12 wide.
    assert [tree.size for tree in trees()] == [6, 2, 12, 5, 6]
    assert rows.input_ids.tolist() == [
        [3, 4, 12, 6, 8, 20, 21, 3, 5, 6, 7, 8],
        [5, 9, 14, 8, 6, 9, 30, 31, 40, 41, 42, 99],
        [11, 12, 6, 7, 8, 9, 7, 4] + [99] * 4,
    ]
    assert rows.position_ids.tolist() == [
        [0, 1, 2, 3, 4, 5, 6, 7, 7, 8, 9, 10],
        [0, 1, 2, 3, 4, 3, 0, 1, 2, 3, 4, 0],
        [0, 1, 2, 3, 4, 4, 0, 1] + [0] * 4,
    ]
    assert rows.end.tolist() == [
        [12, 12, 12, 12, 12, 12, 12, 8, 12, 12, 12, 12],
        [6, 6, 6, 5, 5, 6, 11, 11, 11, 11, 11, 0],
        [6, 6, 6, 6, 5, 6, 8, 8] + [0] * 4,
    ]
    # one place predicts what several references go on with
    by_place: dict[int, list[int]] = {}
    for place, target in zip(rows.positions.tolist(), rows.targets.tolist(), strict=True):
        by_place.setdefault(place, []).append(target)
    assert by_place[6] == [2, 3, 5]
    assert by_place[12 + 2] == [8, 9]
    assert by_place[24 + 1] == [6, 6, 6, 6]
    assert by_place[24 + 3] == [2, 8, 8, 9]
    assert by_place[24 + 4] == [2, 2]


@pytest.mark.parametrize(("width", "shape"), [(4, (3, 12)), (32, (2, 17)), (4096, (1, 31))])
def test_wide_models_have_few_full_rows_and_narrow_ones_short_rows(
    width: int, shape: tuple[int, int]
) -> None:
    assert pack(trees(), pad=0, width=width).input_ids.shape == shape


def test_a_token_sees_its_source_and_its_own_reference_alone() -> None:
    rows = pack([trees()[4], trees()[1]], pad=0, width=16)
    assert rows.input_ids.tolist() == [[11, 12, 6, 7, 8, 9, 7, 4]]
    model = models.decoder("Llama")
    assert rows.mask(model)[0, 0].long().tolist() == [
        [1, 0, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0, 0, 0],
        [1, 1, 1, 1, 0, 0, 0, 0],
        [1, 1, 1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 0, 1, 0, 0],
        [0, 0, 0, 0, 0, 0, 1, 0],
        [0, 0, 0, 0, 0, 0, 1, 1],
    ]
    padded = pack(trees(), pad=0, width=16)
    assert padded.mask(model)[1, 0, 11].nonzero().tolist() == [
        [11]
    ]  # itself: nothing at all would be no number


@given(st.lists(st.lists(st.integers(1, 3), min_size=1, max_size=5).map(tuple), min_size=1, max_size=7))
def test_whatever_the_references_share_each_is_read_along_its_own_path(
    references: list[tuple[int, ...]],
) -> None:
    tree = Tree(array([8, 9]), tuple(array(list(reference)) for reference in references))
    rows = pack([tree], pad=0, width=32)
    beginnings = {reference[:end] for reference in references for end in range(1, len(reference))}
    assert tree.size == rows.input_ids.shape[1] == 2 + len(beginnings)  # each beginning once
    visible = rows.mask(models.decoder("Llama"))[0, 0]
    found = []
    for place, target in zip(rows.positions.tolist(), rows.targets.tolist(), strict=True):
        seen = visible[place].nonzero()[:, 0]
        assert rows.position_ids[0, seen].tolist() == list(range(len(seen)))
        found.append((*rows.input_ids[0, seen].tolist(), target))
    whole = [(8, 9, *reference) for reference in references]
    assert sorted(found) == sorted(text[: end + 1] for text in whole for end in range(2, len(text)))


@pytest.mark.parametrize(
    ("width", "source", "count", "expected"),
    [
        (4096, 30, 8, [8]),  # wide models pay for the source: all references share one
        (64, 100, 8, [3, 3, 2]),  # narrow ones pay for attention
        (16, 5, 6, [1] * 6),
        (384, 30, 1, [1]),
    ],
)
def test_references_share_a_source_while_that_costs_less(
    width: int, source: int, count: int, expected: list[int]
) -> None:
    references = [np.arange(65, dtype=np.int64) for _ in range(count)]
    made = share(np.arange(source, dtype=np.int64), references, width)
    assert [len(tree.references) for tree in made] == expected


@pytest.mark.parametrize(
    ("family", "longest", "expected"),
    [("Llama", 60, True), ("Gemma3", 32, True), ("Gemma3", 33, False), ("GPT2", 64, True)],
)
def test_models_whose_layers_see_less_than_an_example_are_not_packed(
    family: str, longest: int, expected: bool
) -> None:
    assert packs(anatomy(models.decoder(family)), longest) is expected


def test_a_decoder_whose_layers_see_chunks_is_packed_within_them() -> None:
    small = {
        **models.SMALL,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "intermediate_size_mlp": 48,
        "num_local_experts": 2,
    }
    config = transformers.Llama4TextConfig(**small, pad_token_id=0, attention_chunk_size=6)
    found = anatomy(transformers.Llama4ForCausalLM(config))
    assert (packs(found, 6), packs(found, 7)) == (True, False)


def test_a_decoder_that_counts_positions_from_its_padding_is_not_packed() -> None:
    config = models.config_of("Roberta", {"is_decoder": True})
    assert not packs(anatomy(transformers.RobertaForCausalLM(config)), 10)


def test_an_encoder_is_not_packed() -> None:
    assert not packs(anatomy(models.encoder("Bert")), 10)


def test_a_row_may_be_longer_than_the_window_but_no_example_may() -> None:
    model = models.decoder("GPT2")  # 64 positions
    prefix = models.random_prefix(model)
    long = Tree(array([1] * 30), tuple(array([2 + i] * 20) for i in range(3)))
    rows = pack([long], pad=0, width=32)
    assert rows.input_ids.shape[1] == 87
    with attach(model, prefix):
        inputs = {"input_ids": rows.input_ids, "attention_mask": rows.mask(model)}
        assert torch.isfinite(model(**inputs, position_ids=rows.position_ids).logits).all()
        with pytest.raises(PrefixError, match=r"prefix of 5 \+ input of 60 tokens"):
            model(**inputs, position_ids=rows.position_ids + 11)


@pytest.mark.parametrize(
    ("source", "references", "counts"),
    [
        ([5, 6], [[], [8, 2]], r"2 tokens and references of \[0, 2\]"),
        ([], [[8, 2]], r"0 tokens and references of \[2\]"),
        ([5], [], r"1 tokens and references of \[\]"),
    ],
)
def test_a_source_or_reference_without_tokens_is_refused(
    source: list[int], references: list[list[int]], counts: str
) -> None:
    with pytest.raises(PrefixError, match=f"got a source of {counts}; expected a source and at least one"):
        Tree(np.array(source), tuple(np.array(reference) for reference in references))
