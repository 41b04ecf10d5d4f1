"""Where versions stand follows from the events alone."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import IntegrityError
from pipeline.ledger.events import Archived, Event, Promoted, Registered, RolledBack, Tainted
from pipeline.ledger.fold import State, fold
from tests.ledger import world


@pytest.mark.parametrize(
    ("steps", "stages", "held_before"),
    [
        ("register 1", "candidate 1", ""),
        ("register 1, register 2", "candidate 2", ""),
        ("register 2, register 1", "candidate 2", ""),
        ("register 2, staging 2, register 1", "staging 2", ""),
        ("register 1, staging 1", "staging 1", ""),
        ("register 1, register 2, staging 1", "candidate 2, staging 1", ""),
        ("register 1, register 2, staging 1, staging 2", "staging 2", ""),
        ("register 1, staging 1, production 1", "production 1", ""),
        (
            "register 1, staging 1, production 1, register 2, staging 2, production 2",
            "production 2, archived 1",
            "1",
        ),
        (
            "register 1, staging 1, production 1, register 2, staging 2, production 2, rollback 1",
            "production 1, archived 2",
            "",
        ),
        ("register 1, archive 1", "archived 1", ""),
        ("register 1, register 2, archive 1, archive 2", "archived 2", ""),
        ("register 1, archive 1, staging 1", "staging 1", ""),
        ("register 1, staging 1, production 1, archive 1", "archived 1", ""),
    ],
)
def test_the_stages_are_those_a_person_would_say(steps: str, stages: str, held_before: str):
    state = fold(world.chain(*steps.split(", ")))
    assert {f"{stage} {version}" for stage, version in state.stages.items()} == set(stages.split(", "))
    assert state.held_before == tuple(held_before.split())


def in_production(*versions: str) -> list[str]:
    return [
        step
        for version in versions
        for step in (f"register {version}", f"staging {version}", f"production {version}")
    ]


def test_a_rollback_goes_back_one_by_one_never_forward_again():
    steps = in_production("1", "2", "3")
    assert fold(world.chain(*steps)).held_before == ("1", "2")
    assert fold(world.chain(*steps, "rollback 2")).held_before == ("1",)
    end = fold(world.chain(*steps, "rollback 2", "rollback 1"))
    assert (end.held_before, dict(end.stages)) == ((), {"production": "1", "archived": "2"})


def test_a_rollback_passes_over_what_was_put_away_by_hand():
    steps = in_production("1", "2", "3")
    put_away = world.chain(*steps, "staging 2", "archive 2")
    assert fold(put_away).held_before == ("1",)
    back = [*put_away, world.follow(put_away, RolledBack, "1")]
    assert fold(back).stages["production"] == "1"
    # So does one that another replaced, which stands in archived already; once.
    replaced = world.chain(*steps, "archive 2")
    assert fold(replaced).held_before == ("1",)
    with pytest.raises(IntegrityError, match="moves version 2 to archived, where it stands already"):
        fold([*replaced, world.follow(replaced, Archived, "2")])
    # Promoted again after that, it counts again.
    assert fold(world.chain(*steps, "staging 2", "archive 2", "staging 2")).held_before == ("1",)
    again = [*steps, "staging 2", "archive 2", "staging 2", "production 2", "staging 1", "production 1"]
    assert fold(world.chain(*again)).held_before[-1] == "2"


def test_production_that_was_put_away_goes_back_to_what_stood_there_before_it():
    steps = [*in_production("1", "2"), "archive 2"]
    assert fold(world.chain(*steps)).held_before == ("1",)
    assert dict(fold(world.chain(*steps, "rollback 1")).stages) == {"production": "1", "archived": "2"}
    assert fold(world.chain(*steps, "staging 1", "production 1")).held_before == ()


STEPS = st.tuples(st.sampled_from("register staging production rollback archive".split()), st.integers(1, 4))


@given(st.lists(STEPS, max_size=25))
def test_whatever_happens_a_stage_holds_one_version_and_a_version_stands_in_one_stage(
    steps: list[tuple[str, int]],
):
    done: list[Event] = []
    for what, number in steps:
        kind = {"register": Registered, "rollback": RolledBack, "archive": Archived}.get(what, Promoted)
        changes = {"stage": what} if kind is Promoted else {}
        event = world.follow(done, kind, str(number), **changes)
        before = fold(done)
        try:
            state = fold([*done, event])
        except IntegrityError:
            assert fold(done) == before
            continue
        done.append(event)
        held = list(state.stages.values())
        assert len(set(held)) == len(held)
        assert set(held) <= set(state.registered)
        assert (state.epoch, state.head) == (len(done), event.digest)
        for version in held:
            assert state.stages[state.stage_of(version)] == version
        if kind is not Registered:
            assert state.stages[event.stage] == event.version
            assert state.moved[event.stage] == event
        if state.held_before:
            back = fold([*done, world.follow(done, RolledBack, state.held_before[-1])])
            assert back.stages["production"] == state.held_before[-1]
            assert back.stages.get("archived") == state.stages.get("production", state.stages.get("archived"))


def test_nothing_has_happened_before_the_first_event():
    assert fold([]) == State()
    assert State().stage_of("1") is None


@pytest.mark.parametrize(
    ("steps", "event", "problem"),
    [
        ("register 1", "staging 2", "epoch 2: is about version 2, which was never registered"),
        (
            "register 1, staging 1",
            "staging 1",
            "epoch 3: moves version 1 to staging, where it stands already",
        ),
        ("register 1", "register 1", "epoch 2: registers version 1 a second time"),
        ("register 1", "rollback 1", "epoch 2: goes back to version 1, which production never held"),
        (
            "register 1, register 2, staging 2",
            "production 1",
            "epoch 4: moves version 1 to production, though it is not in staging",
        ),
        (
            ", ".join(in_production("1", "2", "3")),
            "rollback 1",
            "epoch 10: goes back to version 1; production held 2 before",
        ),
    ],
)
def test_an_event_that_does_not_fit_is_refused_and_named(steps: str, event: str, problem: str):
    with pytest.raises(IntegrityError, match=re.escape(problem)):
        fold(world.chain(*steps.split(", "), event, "register 99"))


def test_an_event_that_expected_something_else_than_stood_there_is_refused():
    done = world.chain("register 1", "staging 1")
    wrong = replace(done[1], expected="7")
    with pytest.raises(IntegrityError, match="epoch 2: says that 7 stood in staging; it was nothing"):
        fold([done[0], wrong])


def test_who_moved_a_stage_last_is_known_also_where_nothing_stands_now():
    done = world.chain("register 1", "staging 1", "production 1")
    state = fold(done)
    assert state.moved == {"candidate": done[1], "staging": done[2], "production": done[2]}


def test_a_tainted_version_stays_where_it_stands_and_a_rollback_passes_over_it():
    steps = in_production("1", "2", "3")
    made = world.chain(*steps, "taint 3", "taint 2")
    before, after = fold(made[:-2]), fold(made)
    assert (after.stages, after.moved) == (before.stages, before.moved)
    assert list(after.tainted) == ["3", "2"]
    assert (before.held_before, after.held_before) == (("1", "2"), ("1",))
    assert fold(world.chain(*steps, "taint 2", "rollback 1")).stages["production"] == "1"
    assert fold(world.chain(*steps, "taint 3", "archive 3")).stages["archived"] == "3"


@pytest.mark.parametrize(
    ("steps", "problem"),
    [
        ("register 1, taint 1, staging 1", "moves version 1 to staging, though it is tainted"),
        ("register 1, staging 1, taint 1, production 1", "to production, though it is tainted"),
        ("register 1, taint 1, taint 1", "taints version 1 by the same row a second time"),
        ("register 1, taint 2", "version 2, which was never registered"),
        (
            ", ".join([*in_production("1", "2"), "taint 1", "rollback 1"]),
            "to production, though it is tainted",
        ),
    ],
)
def test_what_a_tainted_version_never_does_is_refused(steps: str, problem: str):
    with pytest.raises(IntegrityError, match=problem):
        fold(world.chain(*steps.split(", ")))


def test_a_version_is_tainted_by_each_of_several_rows():
    made = world.chain("register 1", "taint 1")
    made.append(world.follow(made, Tainted, "1", row="d" * 64))
    assert [event.row for event in fold(made).tainted["1"]] == ["c" * 64, "d" * 64]
