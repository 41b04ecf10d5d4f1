"""Every way to change a chain that is tried on it: {epoch: JSON} is changed, and what must be said of it begins so."""

from __future__ import annotations

from collections.abc import Callable

from pipeline.ledger.events import Promoted, Registered
from tests.ledger import world

STEPS = ("register 1", "staging 1", "production 1", "register 2", "staging 2")
CHAIN = world.chain(*STEPS)


def edited(kept: dict[int, bytes]) -> None:
    kept[3] = kept[3].replace(b"a test", b"a lie!")


def removed(kept: dict[int, bytes]) -> None:
    del kept[3]


def beginning_removed(kept: dict[int, bytes]) -> None:
    del kept[1]


def reordered(kept: dict[int, bytes]) -> None:
    kept[2], kept[3] = kept[3], kept[2]


def moved_up(kept: dict[int, bytes]) -> None:
    """One is removed, and those after it close the gap."""
    kept[3], kept[4] = kept[4], kept[5]
    del kept[5]


def inserted(kept: dict[int, bytes]) -> None:
    """One that follows epoch 3 correctly, at epoch 4, and the others after it."""
    kept[5], kept[6] = kept[4], kept[5]
    kept[4] = world.follow(CHAIN[:3], Registered, "9").to_json()


def forked(kept: dict[int, bytes]) -> None:
    """Another event than the one that was written follows epoch 3; epoch 5 follows the one that was."""
    kept[4] = world.follow(CHAIN[:3], Registered, "9").to_json()


def replayed(kept: dict[int, bytes]) -> None:
    """An earlier event once more, at the end."""
    kept[6] = kept[2]


def of_another_prefix(kept: dict[int, bytes]) -> None:
    kept[6] = world.follow(CHAIN, Promoted, "2", stage="production", prefix="other").to_json()


def garbage(kept: dict[int, bytes]) -> None:
    kept[6] = b"{}"


CASES: list[tuple[Callable[[dict[int, bytes]], None], list[str]]] = [
    (edited, ["epochs 3 and 4: epoch 4 follows"]),
    (removed, ["epochs 3: missing, though there is an epoch 5"]),
    (beginning_removed, ["epochs 1: missing"]),
    (
        reordered,
        ["epoch 2: holds an event of epoch 3", "epochs 1 and 2", "epoch 3: holds an event of epoch 2"],
    ),
    (moved_up, ["epoch 3: holds an event of epoch 4", "epochs 2 and 3"]),
    (
        inserted,
        ["epoch 5: holds an event of epoch 4", "epochs 4 and 5", "epoch 6: holds an event of epoch 5"],
    ),
    (forked, ["epochs 4 and 5: epoch 5 follows"]),
    (replayed, ["epoch 6: holds an event of epoch 2", "epochs 5 and 6"]),
    (of_another_prefix, ["epoch 6: holds an event of the prefix 'other'"]),
    (garbage, ["epoch 6: format_version: got None"]),
]
