"""Ed25519 keys (RFC 8032): whose word an event or a bundle is.

A private key is a PEM file (PKCS #8) that only its owner may read; a public key is written as 64 hex characters, its 32
raw bytes, and a signature as 128. What is signed is always `context`, a line feed, and the content, so that a signature
of one kind of document says nothing about another.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from pipeline.errors import KeyFileError

if TYPE_CHECKING:
    from securesystemslib.signer import CryptoSigner, SSlibKey


@dataclass(frozen=True)
class SigningKey:
    """A private key, held in memory."""

    _private: Ed25519PrivateKey

    @property
    def public(self) -> str:
        """The public key that belongs to it, 64 hex characters."""
        return self._private.public_key().public_bytes_raw().hex()

    def sign(self, context: str, content: bytes) -> str:
        """The signature over `content` as a `context`, 128 hex characters."""
        return self._private.sign(_signed(context, content)).hex()

    @property
    def signer(self) -> CryptoSigner:
        """The same key for securesystemslib's DSSE envelopes, which have a context of their own: the payload's type."""
        from securesystemslib.signer import CryptoSigner

        return CryptoSigner(self._private, verifier(self.public))


def make_key(path: Path) -> SigningKey:
    """Draw a new key and write it to `path`, readable by its owner alone.

    Raises:
        KeyFileError: there is a file already, or it cannot be written.
    """
    private = Ed25519PrivateKey.generate()
    content = private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    if path.exists():
        raise KeyFileError(f"{path}: there is a file already; a key is never overwritten")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(descriptor)
        except BaseException:
            path.unlink()  # half a key would be in the way of the next
            raise
    except OSError as error:
        raise KeyFileError(f"{path}: {error.strerror}") from error
    return SigningKey(private)


def load_key(path: Path) -> SigningKey:
    """The key in the file `path`.

    Raises:
        KeyFileError: there is no such file, others than its owner may read it, or it holds no Ed25519 private key.
    """
    try:
        mode = path.stat().st_mode
        content = path.read_bytes()
    except OSError as error:
        raise KeyFileError(f"{path}: {error.strerror}; `prefixline keys new` makes a key") from error
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise KeyFileError(
            f"{path}: others may read or write it (mode {stat.S_IMODE(mode):o}); expected 600: chmod 600 {path}"
        )
    try:
        private = load_pem_private_key(content, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise KeyFileError(f"{path}: no private key in PEM form without a password: {error}") from error
    if not isinstance(private, Ed25519PrivateKey):
        raise KeyFileError(f"{path}: got a {type(private).__name__}; expected an Ed25519 key")
    return SigningKey(private)


def is_signed(public: str, signature: str, context: str, content: bytes) -> bool:
    """Whether `signature` is that of the key whose public half is `public`; hex that is none says no."""
    try:
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(public)).verify(
            bytes.fromhex(signature), _signed(context, content)
        )
    except (ValueError, InvalidSignature):
        return False
    return True


def verifier(public: str) -> SSlibKey:
    """The public key for securesystemslib's DSSE envelopes, under its own 64 hex characters as its id."""
    from securesystemslib.signer import SSlibKey

    return SSlibKey(public, "ed25519", "ed25519", {"public": public})


def _signed(context: str, content: bytes) -> bytes:
    return context.encode() + b"\n" + content
