"""Which split a row belongs to, and who it is: pure functions of its content.

Laws (tested): the split of a row depends on nothing but its key, the salt and the shares, so growing data
never moves a row; keys that differ only in case, width, composition or spacing share a split; moving the
border between train and validation never moves a row into or out of test.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from pipeline.params import SplitParams

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
"""In the order of their numbers in `split_numbers`."""

DIGEST_BYTES = 16
"""Digests are compared by this many leading bytes: 2⁻⁶⁴ per pair of rows even for an adversary."""

Digests = npt.NDArray[np.uint8]
"""[rows, DIGEST_BYTES]."""


def normalise(text: str) -> str:
    """`text` in Unicode's compatibility caseless form with every run of white space as one space.

    NFKC, casefold, NFKC (casefolding can undo the first), then a collapse of white space. A key is compared
    and assigned to a split in this form only; the model always reads the text as it was written.
    """
    if text.isascii():
        return " ".join(text.lower().split())
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return " ".join(folded.split())


def split_digest(key: str | bytes, salt: str) -> bytes:
    """SHA-256 of the salt, a zero byte, and the key's normalised UTF-8 (32 bytes); bytes are taken as they are.

    Raises:
        UnicodeEncodeError: the key holds half of a surrogate pair, which is not a character.
    """
    content = key if isinstance(key, bytes) else normalise(key).encode()
    return hashlib.sha256(b"%b\0%b" % (salt.encode(), content)).digest()


def split_of(key: str | bytes, splits: SplitParams) -> Split:
    """The split of the row with this key: the text of a classification row, the source of a generation row.

    Args:
        key: as text, in any of its spellings (it is normalised here), or as normalised UTF-8.
        splits: the shares and the salt.
    """
    digest = split_digest(key, splits.salt)[:DIGEST_BYTES]
    return SPLITS[int(split_numbers(as_digests(digest), splits)[0])]


def split_numbers(digests: Digests, splits: SplitParams) -> npt.NDArray[np.uint8]:
    """For each leading part of a `split_digest`, the position of its split in `SPLITS`: [rows].

    The digest's first 8 bytes, as a fraction of 2⁶⁴, fall into test, then validation, then train.
    """
    place = digests[:, :8].copy().view(">u8")[:, 0]
    in_test = place < np.uint64(int(splits.test * 2**64))
    in_validation = place < np.uint64(int((splits.test + splits.validation) * 2**64))
    return np.where(in_test, 2, np.where(in_validation, 1, 0)).astype(np.uint8)


def row_id(key: str, values: Sequence[str]) -> str:
    """SHA-256 of a row's content (64 hex characters): its key, and its label or its targets in any order.

    Slice columns describe a row; they are not part of it.
    """
    return content_digest([key, *sorted(values)]).hex()


def content_digest(parts: Sequence[str]) -> bytes:
    """SHA-256 (32 bytes) of texts in order.

    Each goes in as its length in UTF-8 bytes (8 bytes, big-endian) and the bytes themselves, so that no two
    lists share a digest by the place where one part ends.
    """
    contents = [part.encode() for part in parts]
    return hashlib.sha256(b"".join([len(content).to_bytes(8) + content for content in contents])).digest()


def as_digests(content: bytes | bytearray) -> Digests:
    """Leading parts of digests, one after the other, as [rows, DIGEST_BYTES]."""
    return np.frombuffer(content, dtype=np.uint8).reshape(-1, DIGEST_BYTES)


def sort_key(digests: Digests) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """The two columns for `numpy.lexsort`, least significant first."""
    words = np.ascontiguousarray(digests).view(">u8").astype(np.uint64)
    return words[:, 1], words[:, 0]


def first_equal(digests: Digests) -> npt.NDArray[np.int64]:
    """For each row, the position of the first row with an equal digest: [rows]; its own where it is the first."""
    count = len(digests)
    if count == 0:
        return np.zeros(0, dtype=np.int64)
    low, high = sort_key(digests)
    order = np.lexsort((low, high))  # stable: equal digests stay in the order of the rows
    starts = np.ones(count, dtype=bool)
    starts[1:] = (low[order][1:] != low[order][:-1]) | (high[order][1:] != high[order][:-1])
    first = np.empty(count, dtype=np.int64)
    first[order] = order[starts][np.cumsum(starts) - 1]
    return first


def sorted_digests(digests: Digests) -> Digests:
    """The digests in ascending order."""
    return np.ascontiguousarray(digests[np.lexsort(sort_key(digests))])
