"""Splits are sticky, duplicates never straddle, and row ids say what a row is."""

from __future__ import annotations

import hashlib
import unicodedata

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.data.splits import (
    DIGEST_BYTES,
    SPLITS,
    as_digests,
    content_digest,
    first_equal,
    normalise,
    row_id,
    sorted_digests,
    split_digest,
    split_numbers,
    split_of,
)
from pipeline.params import SplitParams

texts = st.text(st.characters(codec="utf-8"), max_size=40)
shares = st.tuples(st.integers(1, 98), st.integers(1, 98)).filter(lambda pair: sum(pair) < 100)


def params(validation: int = 10, test: int = 10, salt: str = "") -> SplitParams:
    return SplitParams(
        train=(100 - validation - test) / 100, validation=validation / 100, test=test / 100, salt=salt
    )


@given(st.lists(texts), texts, shares, texts)
def test_a_row_keeps_its_split_whatever_is_added_around_it(others, text, parts, salt):
    splits = params(*parts, salt=salt)
    alone = split_of(text, splits)
    rows = [*others, text, *others]
    digests = as_digests(b"".join(split_digest(row, salt)[:DIGEST_BYTES] for row in rows))
    assert SPLITS[split_numbers(digests, splits)[len(others)]] == alone == split_of(text, splits)


@given(texts)
def test_spellings_of_one_text_share_a_split(text):
    splits = params(30, 30)
    spellings = [
        f"  {text}\t\n",
        unicodedata.normalize("NFD", text),
        unicodedata.normalize("NFKC", text),
        text.replace(" ", " \u00a0 "),
    ]
    assert {split_of(spelling, splits) for spelling in spellings} == {split_of(text, splits)}


@given(st.text(st.characters(codec="latin-1"), max_size=40))
def test_case_does_not_matter(text):
    splits = params(30, 30)
    spellings = (text.upper(), text.lower(), text.casefold(), text.title())
    assert {split_of(spelling, splits) for spelling in spellings} == {split_of(text, splits)}


@given(texts)
def test_normalising_twice_changes_nothing(text):
    assert normalise(normalise(text)) == normalise(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("  Wo  ist\tmeine\nKarte? ", "wo ist meine karte?"),
        ("STRASSE", "strasse"),
        ("Straße", "strasse"),
        ("ﬁne Ａ①", "fine a1"),
        ("Cafe\u0301", "café"),
        ("İ", "i̇"),
    ],
)
def test_normal_forms_are_the_known_ones(text, expected):
    assert normalise(text) == expected


def test_bytes_are_taken_as_already_normalised():
    splits = params(30, 30)
    assert split_of(b"where is my card?", splits) == split_of("Where  is my CARD?", splits)


def test_the_split_follows_from_sha256_as_documented():
    digest = hashlib.sha256(b"pepper\0some text").digest()
    place = int.from_bytes(digest[:8]) / 2**64
    expected = "test" if place < 0.2 else "validation" if place < 0.5 else "train"
    assert split_of("Some  TEXT", params(30, 20, "pepper")) == expected


def test_shares_come_out_within_four_standard_deviations():
    count = 20_000
    splits = params(15, 5)
    digests = as_digests(b"".join(split_digest(f"row {n}", "")[:DIGEST_BYTES] for n in range(count)))
    found = np.bincount(split_numbers(digests, splits), minlength=3) / count
    for share, wanted in zip(found, (0.8, 0.15, 0.05), strict=True):
        assert abs(share - wanted) < 4 * (wanted * (1 - wanted) / count) ** 0.5


@given(texts, st.integers(1, 60))
def test_moving_the_border_of_train_and_validation_leaves_test_alone(text, validation):
    assert (split_of(text, params(validation, 30)) == "test") == (split_of(text, params(5, 30)) == "test")


def test_another_salt_draws_other_splits():
    rows = [f"row {n}" for n in range(200)]
    assert [split_of(row, params(salt="a")) for row in rows] != [
        split_of(row, params(salt="b")) for row in rows
    ]


def test_a_row_id_is_the_sha256_of_the_framed_content():
    framed = (5).to_bytes(8, "big") + "caf\u00e9".encode() + (1).to_bytes(8, "big") + b"x"
    assert row_id("café", ["x"]) == hashlib.sha256(framed).hexdigest()


@given(texts, st.lists(texts, max_size=4))
def test_targets_in_another_order_are_the_same_row(source, targets):
    assert row_id(source, targets) == row_id(source, targets[::-1])


@given(st.lists(texts, max_size=4), st.lists(texts, max_size=4))
def test_different_parts_have_different_digests(one, other):
    assert (content_digest(one) == content_digest(other)) == (one == other)


@given(st.lists(st.integers(0, 5), max_size=60))
def test_first_equal_names_the_first_of_each(numbers):
    digests = as_digests(b"".join(hashlib.sha256(bytes([n])).digest()[:DIGEST_BYTES] for n in numbers))
    assert first_equal(digests).tolist() == [numbers.index(n) for n in numbers]


def test_rows_that_share_only_half_of_their_digest_are_different():
    digests = as_digests(b"a" * 8 + b"b" * 8 + b"a" * 8 + b"c" * 8 + b"d" * 8 + b"b" * 8)
    assert first_equal(digests).tolist() == [0, 1, 2]


@given(st.lists(st.binary(min_size=DIGEST_BYTES, max_size=DIGEST_BYTES), max_size=30))
def test_sorted_digests_are_in_the_order_of_their_bytes(rows):
    assert sorted_digests(as_digests(b"".join(rows))).tobytes() == b"".join(sorted(rows))
