"""Hashes: equal objects hash equal, and every difference below a folder is found and named."""

from __future__ import annotations

import hashlib
import math
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.digest import canonical_json, digest, manifest, sha256_file, tensors_digest, verify
from pipeline.errors import IntegrityError

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@given(st.dictionaries(st.text(), JSON, min_size=1))
def test_the_order_of_keys_changes_nothing(value: dict):
    assert digest(dict(reversed(list(value.items())))) == digest(value)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_numbers_json_has_no_word_for_are_refused(value: float):
    with pytest.raises(ValueError):
        canonical_json({"x": value})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "deep").mkdir()
    (tmp_path / "a.txt").write_bytes(b"one")
    (tmp_path / "deep" / "b.txt").write_bytes(b"two")
    return tmp_path


def test_a_manifest_holds_the_sha256_of_every_file(folder: Path):
    assert manifest(folder) == {
        "a.txt": hashlib.sha256(b"one").hexdigest(),
        "deep/b.txt": hashlib.sha256(b"two").hexdigest(),
    }
    assert sha256_file(folder / "a.txt") == hashlib.sha256(b"one").hexdigest()


def test_an_untouched_folder_verifies(folder: Path):
    verify(folder, manifest(folder))


def test_the_whole_difference_is_reported(folder: Path):
    recorded = {**manifest(folder), "gone.txt": "0" * 64}
    (folder / "a.txt").write_bytes(b"ONE")
    (folder / "new.txt").write_bytes(b"")
    with pytest.raises(IntegrityError) as caught:
        verify(folder, recorded)
    assert [line.split(":")[0] for line in caught.value.problems] == ["gone.txt", "new.txt", "a.txt"]
    assert recorded["a.txt"] in str(caught.value)


def test_a_symbolic_link_is_refused(folder: Path):
    (folder / "link").symlink_to(folder / "a.txt")
    with pytest.raises(IntegrityError, match="symbolic link"):
        manifest(folder)


def test_a_folder_that_is_gone_has_every_file_missing(folder: Path):
    with pytest.raises(IntegrityError, match=r"a.txt: missing"):
        verify(folder / "nowhere", {"a.txt": "0" * 64})


def test_a_tensors_digest_is_that_of_its_name_type_shape_and_bytes() -> None:
    import torch

    first, second = torch.tensor([[1.0, 2.0]]), torch.tensor([3], dtype=torch.int64)
    written = (
        b"a torch.float32 (1, 2)\n"
        + struct.pack("<2f", 1, 2)
        + b"b torch.int64 (1,)\n"
        + struct.pack("<q", 3)
    )
    found = tensors_digest([("a", first), ("b", second)])
    assert found == hashlib.sha256(written).hexdigest()
    assert found != tensors_digest([("b", second), ("a", first)])
    halved = b"a torch.bfloat16 (1, 2)\n" + struct.pack("<2H", 0x3F80, 0x4000)
    assert tensors_digest([("a", first.bfloat16())]) == hashlib.sha256(halved).hexdigest()
