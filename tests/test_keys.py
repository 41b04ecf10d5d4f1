"""Key files and signatures."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)

from pipeline.errors import KeyFileError
from pipeline.keys import is_signed, load_key, make_key

# RFC 8032, section 7.1, TEST 1.
SEED = "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60"
PUBLIC = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"


def write(path: Path, content: bytes, mode: int = 0o600) -> Path:
    path.write_bytes(content)
    path.chmod(mode)
    return path


def pem(key: object) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())  # type: ignore[attr-defined]


def test_a_key_made_is_the_key_loaded_and_only_its_owner_may_read_it(tmp_path: Path):
    made = make_key(tmp_path / "keys" / "mine.pem")
    assert (tmp_path / "keys" / "mine.pem").stat().st_mode & 0o777 == 0o600
    assert load_key(tmp_path / "keys" / "mine.pem").public == made.public


def test_a_public_key_is_the_one_that_rfc_8032_gives_for_the_private_one(tmp_path: Path):
    key = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(SEED))
    assert load_key(write(tmp_path / "key.pem", pem(key))).public == PUBLIC


def test_a_signature_is_rfc_8032_s_over_context_line_feed_content(tmp_path: Path):
    key = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(SEED))
    signature = load_key(write(tmp_path / "key.pem", pem(key))).sign("event v1", b"content")
    assert signature == key.sign(b"event v1\ncontent").hex()
    assert is_signed(PUBLIC, signature, "event v1", b"content")


def test_a_signature_holds_for_its_content_context_and_key_alone(tmp_path: Path):
    key, other = make_key(tmp_path / "a"), make_key(tmp_path / "b")
    signature = key.sign("event v1", b"content")
    flipped = f"{int(signature[0], 16) ^ 1:x}{signature[1:]}"
    assert is_signed(key.public, signature, "event v1", b"content")
    assert not is_signed(key.public, signature, "event v1", b"contents")
    assert not is_signed(key.public, signature, "event v2", b"content")
    assert not is_signed(other.public, signature, "event v1", b"content")
    assert not is_signed(key.public, flipped, "event v1", b"content")
    assert not is_signed(key.public, "no hex", "event v1", b"content")
    assert not is_signed(key.public[:-2], signature, "event v1", b"content")


def test_a_key_is_never_overwritten(tmp_path: Path):
    first = make_key(tmp_path / "mine.pem")
    with pytest.raises(KeyFileError, match="there is a file already"):
        make_key(tmp_path / "mine.pem")
    assert load_key(tmp_path / "mine.pem").public == first.public


def test_a_key_that_is_cut_off_on_a_full_disk_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(KeyFileError, match=r"key\.pem: No space left on device"):
            make_key(tmp_path / "key.pem")
    assert list(tmp_path.iterdir()) == []
    make_key(tmp_path / "key.pem")
    assert [path.name for path in tmp_path.iterdir()] == ["key.pem"]


def test_a_key_that_cannot_be_written_is_said(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(KeyFileError, match=r"file/mine\.pem: (Not a directory|File exists)"):
        make_key(tmp_path / "file" / "mine.pem")


def test_what_is_no_usable_private_key_is_refused(tmp_path: Path):
    good = pem(Ed25519PrivateKey.generate())
    locked = Ed25519PrivateKey.generate().private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret")
    )
    cases = {
        "No such file": tmp_path / "absent.pem",
        r"mode 644\); expected 600": write(tmp_path / "open.pem", good, 0o644),
        "no private key in PEM form": write(tmp_path / "text.pem", b"not a key"),
        "no private key in PEM form without a password": write(tmp_path / "locked.pem", locked),
        "expected an Ed25519 key": write(tmp_path / "curve.pem", pem(generate_private_key(SECP256R1()))),
    }
    for message, path in cases.items():
        with pytest.raises(KeyFileError, match=message):
            load_key(path)
