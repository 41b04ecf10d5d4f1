"""What lies where in a bundle, and the two files that say so: bundle.json and SHA256SUMS. See docs/bundle-v1.md."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.errors import IntegrityError
from pipeline.ledger.fold import State
from pipeline.register.lineage import LineageRecord

FORMAT_VERSION = 1
"""Of the bundle. A reader refuses what it does not know."""

CARD, FACTS, LINEAGE, LEDGER = "README.md", "bundle.json", "lineage.json", "ledger.jsonl"
EVENTS, SUMS, MODEL = "openlineage.jsonl", "SHA256SUMS", "model"
SIGNED, UNSIGNED = "provenance.dsse.json", "provenance.json"
"""The statement in an envelope with its signatures, or bare: an envelope without a signature is none."""

_SUM = re.compile("([0-9a-f]{64})  (.+)")


def facts(record: LineageRecord, version: str, state: State, manifest_digest: str) -> dict[str, Any]:
    """What bundle.json says: which version this is, and where it stood when it was exported.

    Args:
        state: what the bundle's ledger comes to.
        manifest_digest: SHA-256 of the model folder's manifest.json.
    """
    return {
        "format_version": FORMAT_VERSION,
        "prefix": record.prefix,
        "version": version,
        "stage": state.stage_of(version),
        "lineage_digest": record.digest,
        "manifest_digest": manifest_digest,
        "ledger": {"epoch": state.epoch, "head": state.head},
    }


def sums(manifest: Mapping[str, str]) -> bytes:
    """{file: SHA-256} as `sha256sum` writes it, sorted by name."""
    return "".join(f"{sha}  {name}\n" for name, sha in sorted(manifest.items())).encode()


def read_sums(content: bytes) -> dict[str, str]:
    """The manifest whose `sums` is `content`.

    Raises:
        IntegrityError: `content` is not what `sums` writes.
    """
    try:
        lines: Sequence[str] = content.decode().split("\n")
    except UnicodeDecodeError as error:
        raise IntegrityError([f"not UTF-8: {error}"]) from error
    found = [_SUM.fullmatch(line) for line in lines[:-1]]
    manifest = {match[2]: match[1] for match in found if match is not None}
    if not manifest:
        raise IntegrityError(["lists no file"])
    if sums(manifest) != content:
        raise IntegrityError(["not the lines of `sha256sum`, each file once, sorted by name"])
    return manifest
