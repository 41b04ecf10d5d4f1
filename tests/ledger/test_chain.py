"""Every way to change a chain is found, and its epochs are named."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from pipeline.errors import IntegrityError
from pipeline.ledger.chain import Anchor, check
from pipeline.ledger.events import Event
from tests.ledger import world
from tests.ledger.mutations import CASES, CHAIN


def test_a_whole_chain_comes_back_in_order():
    kept = world.contents(CHAIN)
    assert check("reviews", dict(reversed(kept.items()))) == tuple(CHAIN)
    assert check("reviews", {}) == ()


@pytest.mark.parametrize(("mutate", "problems"), CASES)
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
