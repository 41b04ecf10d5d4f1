"""SHA-256 over bytes, files, folders and plain objects: the identity of everything prefixline verifies.

Laws (tested): `canonical_json` of equal objects is equal bytes; `verify(folder, manifest(folder))`
returns; any added, removed or changed file makes it raise with the whole difference.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import IntegrityError

if TYPE_CHECKING:
    import torch


def canonical_json(value: Any) -> bytes:
    """`value` as UTF-8 JSON with sorted keys, no spaces, and no NaN or infinity (RFC 8785 for our types).

    Raises:
        ValueError: `value` holds NaN or an infinity, which JSON has no word for.
    """
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    ).encode()


def digest(value: Any) -> str:
    """SHA-256 of `canonical_json(value)`, 64 hex characters."""
    return hashlib.sha256(canonical_json(value)).hexdigest()


def tensors_digest(tensors: Iterable[tuple[str, torch.Tensor]]) -> str:
    """SHA-256 over the name, type, shape and bytes of each tensor, in the order given; 64 hex characters."""
    import torch

    sha256 = hashlib.sha256()
    for name, tensor in tensors:
        sha256.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        # As bytes, because NumPy has no bfloat16.
        sha256.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return sha256.hexdigest()


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's bytes, 64 hex characters, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def manifest(path: Path) -> dict[str, str]:
    """{posix path relative to `path`: SHA-256} of every file below the folder `path`, sorted.

    A single file gives one entry under its own name.

    Raises:
        IntegrityError: something below is a symbolic link, whose target a hash would not pin.
    """
    if path.is_file():
        return {path.name: sha256_file(path)}
    entries = sorted(path.rglob("*"))
    links = [entry for entry in entries if entry.is_symlink()]
    if links:
        raise IntegrityError(
            [f"{link}: is a symbolic link; expected a regular file" for link in links],
            heading=f"{path} cannot be hashed:",
        )
    return {entry.relative_to(path).as_posix(): sha256_file(entry) for entry in entries if entry.is_file()}


def verify(path: Path, expected: Mapping[str, str]) -> None:
    """Re-hash `path` and compare with `expected`, a manifest recorded earlier.

    Raises:
        IntegrityError: with every extra, missing and changed file.
    """
    actual = manifest(path) if path.exists() else {}
    problems = [f"{name}: {fault}" for name, fault in difference(actual, expected).items()]
    if problems:
        raise IntegrityError(
            problems, heading=f"{path} is not what was recorded (tampered or corrupted); do not use it:"
        )


def difference(actual: Mapping[str, str], expected: Mapping[str, str]) -> dict[str, str]:
    """{file: what is wrong with it} between two manifests: missing files, extra ones, then changed ones."""
    return {
        **dict.fromkeys(sorted(expected.keys() - actual.keys()), "missing"),
        **dict.fromkeys(sorted(actual.keys() - expected.keys()), "not in the manifest"),
        **{
            name: f"SHA-256 is {actual[name]}, expected {expected[name]}"
            for name in sorted(expected.keys() & actual.keys())
            if actual[name] != expected[name]
        },
    }
