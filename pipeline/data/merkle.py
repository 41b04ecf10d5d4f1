"""The Merkle tree hash of RFC 6962 (certificate transparency), section 2.1, with SHA-256.

One hash stands for a list, and that an entry is in the list can be shown with as many hashes as the list's length has
binary digits, without the list.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence


def merkle_root(entries: Sequence[bytes]) -> str:
    """The tree hash of `entries` in their order, 64 hex characters.

    A leaf is SHA-256(0x00 ‖ entry), a node SHA-256(0x01 ‖ left ‖ right), where left holds the largest power of two of
    entries that is smaller than all of them. No entries give SHA-256 of nothing.
    """
    level = [hashlib.sha256(b"\0" + entry).digest() for entry in entries]
    if not level:
        return hashlib.sha256().hexdigest()
    while len(level) > 1:
        # Pairs from the left, an odd one moved up, give the tree of the recursive definition.
        paired = [
            hashlib.sha256(b"\1" + level[i] + level[i + 1]).digest() for i in range(0, len(level) - 1, 2)
        ]
        level = paired + level[len(paired) * 2 :]
    return level[0].hex()
