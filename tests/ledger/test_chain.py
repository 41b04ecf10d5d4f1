"""Every way to change a chain is found, and its epochs are named."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from pipeline.errors import IntegrityError
from pipeline.ledger.chain import Anchor, check
from pipeline.ledger.events import Event, Promoted, Registered
from tests.ledger import world

STEPS = ("register 1", "staging 1", "production 1", "register 2", "staging 2")
CHAIN = world.chain(*STEPS)


def test_a_whole_chain_comes_back_in_order():
    kept = world.contents(CHAIN)
    assert check("reviews", dict(reversed(kept.items()))) == tuple(CHAIN)
    assert check("reviews", {}) == ()


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


@pytest.mark.parametrize(
    ("mutate", "problems"),
    [
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
    ],
)
def test_a_change_is_found_and_its_epochs_are_named(
    mutate: Callable[[dict[int, bytes]], None], problems: list[str]
):
    kept = world.contents(CHAIN)
    mutate(kept)
    with pytest.raises(IntegrityError, match="The ledger of reviews is not what was written") as caught:
        check("reviews", kept)
    for problem in problems:
        assert any(found.startswith(problem) for found in caught.value.problems), caught.value.problems


def test_a_whole_chain_of_another_prefix_is_refused():
    with pytest.raises(IntegrityError) as caught:
        check("reviews", world.contents(replace(event, prefix="other") for event in CHAIN[:1]))
    assert caught.value.problems == ("epoch 1: holds an event of the prefix 'other'",)


@pytest.mark.parametrize("what", ["cut off", "edited"])
def test_newest_events_that_were_cut_off_or_edited_are_found_by_what_was_noted_outside(what: str):
    kept = world.contents(CHAIN)
    anchor = Anchor(5, CHAIN[4].digest)
    assert check("reviews", kept, anchor) == tuple(CHAIN)
    if what == "edited":
        kept[5] = kept[5].replace(b"a test", b"a lie!")
    else:
        del kept[5]
    check("reviews", kept)  # a chain without a fault
    with pytest.raises(IntegrityError, match=r"epoch 5: is .*; the registered model was tagged when it was"):
        check("reviews", kept, anchor)


def test_of_a_great_many_faults_the_first_are_told():
    chained: list[Event] = world.chain(*(f"register {number}" for number in range(1, 61)))
    with pytest.raises(IntegrityError) as caught:
        check("other", world.contents(chained))
    assert len(caught.value.problems) == 21
    assert caught.value.problems[-1] == "and 40 more"
    with pytest.raises(IntegrityError, match=r"epochs 1, 2, .*, 20 and 39 more: missing, though"):
        check("reviews", {60: chained[-1].to_json()})
