"""Requests and their answers: whose approval counts, for what, and for how long. Real sqlite databases."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from pipeline import promotion
from pipeline.errors import ConflictError, IntegrityError, RefusedError, RegistryError
from pipeline.ledger import approvals, fold, log
from pipeline.ledger.events import (
    Approved,
    Archived,
    Event,
    Promoted,
    Refused,
    Registered,
    Requested,
    RolledBack,
    TimedOut,
)
from pipeline.ledger.fold import Request
from pipeline.ledger.rules import Ruled, Rules, counting, standing, unauthorised
from pipeline.promotion import UNRULED, Moved, Waiting
from pipeline.register.registry import Registry
from tests import mlflow_world
from tests.ledger import world
from tests.ledger.world import NAME, follow

ALICE, BOB, CAROL = world.key(1), world.key(2), world.key(3)
RULES = Rules(
    signers={ALICE.public: "alice", BOB.public: "bob"},
    approvals=1,
    approvers={BOB.public: "bob", CAROL.public: "carol"},
)
BY_STAGE: Mapping[Ruled, Rules] = {"staging": RULES, "production": RULES}


def asked(*steps: str, version: str = "1", stage: str = "staging", **changes: Any) -> list[Event]:
    """The events of `steps`, and Alice's request."""
    made = world.chain(*(steps or ("register 1",)))
    made.append(follow(made, Requested, version, stage=stage, sign=ALICE, actor="alice", **changes))
    return made


def answered(
    made: list[Event], kind: type[Event], by: Any = BOB, actor: str = "bob", **changes: Any
) -> list[Event]:
    """And somebody's answer to the last request."""
    request = next(event for event in reversed(made) if isinstance(event, Requested))
    content = {"stage": request.stage, "request": request.id, "sign": by, "actor": actor, **changes}
    return [*made, follow(made, kind, request.version, **content)]


def the_request(made: list[Event]) -> Request:
    (request,) = fold.fold(made).requests.values()
    return request


def test_a_request_and_its_answers_move_nothing():
    made = answered(asked(), Approved)
    state = fold.fold(made)
    assert dict(state.stages) == {"candidate": "1"}
    assert state.request_for("1", "staging") == Request(made[1], (made[2],))  # type: ignore[arg-type]
    assert state.request_for("1", "production") is None


@pytest.mark.parametrize("kind", [Promoted, Refused, TimedOut])
def test_a_request_that_was_carried_out_refused_or_given_up_is_closed(kind: type[Event]):
    made = answered(answered(asked(), Approved), kind, by=ALICE)
    state = fold.fold(made)
    assert dict(state.requests) == {}
    carried_out = {made[3].id: Request(made[1], (made[2],))} if kind is Promoted else {}  # type: ignore[arg-type]
    assert dict(state.carried_out) == carried_out
    with pytest.raises(IntegrityError, match=f"names the request {made[1].id}, which is not open"):
        fold.fold(answered(made, Approved, expected=state.stages.get("staging")))


@pytest.mark.parametrize(
    "overtaking",
    [
        # What the request would replace is replaced by another; by a rollback; the version itself moves; is put away.
        ("staging 3", "production 3"),
        ("rollback 4",),
        ("staging 4", "staging 2", "production 2"),
        ("archive 2",),
        # What it would replace moves away and comes back: it is not what was looked at.
        ("rollback 4", "staging 1", "production 1"),
    ],
)
def test_a_request_that_was_overtaken_is_closed_for_good(overtaking: tuple[str, ...]):
    before = [f"register {n}" for n in "1234"]
    before += ["staging 4", "production 4", "staging 1", "production 1", "staging 2"]
    made = asked(*before, version="2", stage="production")
    assert list(fold.fold(made).requests) == [made[-1].id]
    for step in overtaking:
        what, version = step.split()
        kind = {"rollback": RolledBack, "archive": Archived}.get(what, Promoted)
        stage = {"stage": what} if kind is Promoted else {}
        made.append(follow(made, kind, version, **stage))
    assert dict(fold.fold(made).requests) == {}
    with pytest.raises(IntegrityError, match="which is not open"):
        fold.fold(answered(made, Approved))


def test_what_moves_elsewhere_leaves_a_request_open():
    made = asked("register 1", "register 2", "staging 1", version="1", stage="production")
    made += [follow(made, Registered, "3")]
    made += [follow(made, Promoted, "2")]  # into staging, and out of the candidate's place long ago
    assert dict(fold.fold(made[:-1]).requests) != {}


def test_an_answer_that_names_the_request_of_another_version_is_refused():
    made = asked("register 1", "register 2")
    with pytest.raises(IntegrityError, match="which is for version 1 in staging"):
        fold.fold([*made, follow(made, Promoted, "2", request=made[-1].id)])


def test_an_approval_counts_for_approvers_that_are_others_than_whoever_asked_each_once():
    made = answered(asked(), Approved)
    assert counting(the_request(made), RULES) == (made[2],)
    for key, actor in (
        (ALICE, "alice"),
        (ALICE, "another name of alice"),  # the same key
        (CAROL, "alice"),  # the same name
        (world.key(9), "nobody that the rules name"),
    ):
        own = answered(asked(), Approved, by=key, actor=actor)
        wide = replace(RULES, approvers={**RULES.approvers, ALICE.public: "alice"})
        assert counting(the_request(own), wide) == (), actor
    twice = answered(answered(made, Approved, actor="bob again"), Approved, by=CAROL, actor="carol")
    assert counting(the_request(twice), RULES) == (twice[2], twice[4])


def test_what_stands_in_a_stage_is_judged_by_the_rules_of_today():
    def found(made: list[Event], rules: Rules = RULES) -> str | None:
        state = fold.fold(made)
        wrong = unauthorised(made[-1], state, rules)
        assert [each.event for each in standing(state, {"staging": rules, "production": rules})] == (
            [] if wrong is None else [made[-1]]
        )
        return None if wrong is None else f"{wrong.expected}; {wrong.actual}"

    good = answered(answered(asked(), Approved), Promoted, by=ALICE)
    assert found(good) is None
    assert found(good, Rules()) is None
    assert found(good, replace(RULES, signers={BOB.public: "bob"})) == (
        f"a signature of bob; signed with the key {ALICE.public}"
    )
    assert found(good, replace(RULES, approvers={CAROL.public: "carol"})) == (
        "1 of carol to approve; approved by 0 of them"
    )
    assert found(answered(answered(asked(), Approved), Promoted, by=None)) == (
        "a signature of alice, bob; signed by nobody"
    )
    direct = world.chain("register 1")
    direct.append(follow(direct, Promoted, "1", sign=ALICE))
    assert found(direct) == "1 of bob, carol to approve; approved by nobody"
    assert found(direct, replace(RULES, approvals=0)) is None
    assert found(answered(asked(), Promoted, by=ALICE)) == "1 of bob, carol to approve; approved by 0 of them"
    stranger = world.chain("register 1")
    stranger.append(follow(stranger, Requested, "1", sign=CAROL, actor="x"))
    assert found(answered(answered(stranger, Approved), Promoted, by=ALICE)) == (
        f"a request signed by alice, bob; on a request signed with the key {CAROL.public}"
    )


def up(made: list[Event], version: str, **changes: Any) -> list[Event]:
    """And the version in production, straight through staging; by Alice, whom nobody asked for approvals."""
    made = [*made, follow(made, Promoted, version, sign=ALICE)]
    return [*made, follow(made, Promoted, version, **{"stage": "production", "sign": ALICE, **changes})]


def test_a_rollback_takes_a_signature_and_brings_back_nothing_that_came_up_by_other_rules():
    def found(made: list[Event]) -> str | None:
        state = fold.fold(made)
        wrong = unauthorised(made[-1], state, RULES)
        assert list(standing(state, BY_STAGE)) == ([] if wrong is None else [wrong])
        return None if wrong is None else f"{wrong.expected}; {wrong.actual}"

    approved = world.chain("register 1", "register 2")
    approved.append(follow(approved, Promoted, "1"))
    approved.append(follow(approved, Requested, "1", stage="production", sign=ALICE, actor="alice"))
    approved = up(answered(answered(approved, Approved), Promoted, by=ALICE), "2")
    assert found([*approved, follow(approved, RolledBack, "1", sign=BOB)]) is None
    assert found([*approved, follow(approved, RolledBack, "1")]) == (
        "a signature of alice, bob; signed by nobody"
    )
    # Otherwise Alice would need nobody: up without approvals, something else up, and back.
    alone = up(up(world.chain("register 1", "register 2"), "1", actor="alice"), "2")
    assert found([*alone, follow(alone, RolledBack, "1", sign=ALICE)]) == (
        "1 of bob, carol to approve; to what was promoted there at epoch 4 by alice, approved by nobody"
    )


def test_a_rollback_to_what_came_up_by_other_rules_is_refused_until_that_is_put_away(
    registry: Registry, tmp_path: Path
):
    for version in "123":
        world.register(registry, tmp_path, version)
        events = list(log.read(registry, NAME).events)
        sign = None if version == "2" else ALICE
        write(registry, up(events, version, sign=sign, actor="mallory")[-2:])
    rules: Mapping[Ruled, Rules] = {"staging": Rules(), "production": Rules(signers=RULES.signers)}

    def rollback() -> Moved:
        return promotion.rollback(registry, NAME, reason="worse", actor="bob", key=BOB, rules=rules)

    before = kinds(registry)
    with pytest.raises(
        RefusedError,
        match="production held version 2 before, but version 2 was promoted to production at epoch 6 by mallory, "
        r"signed by nobody; expected a signature of alice, bob\. Archive it",
    ):
        rollback()
    assert kinds(registry) == before
    promotion.archive(registry, NAME, "2", reason="nobody signed it", actor="bob")
    assert rollback().event.version == "1"


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return mlflow_world.database(tmp_path)


def write(registry: Registry, made: list[Event]) -> None:
    if made[0].epoch == 1:
        registry.client.create_registered_model(NAME)
    for event in made:
        assert log.claim(registry, event)


def approve(registry: Registry, key: Any = BOB, actor: str = "bob", **named: Any) -> Event:
    content = {"request_id": None, "reason": "looked at it", "rules": BY_STAGE, **named}
    return approvals.approve(registry, NAME, actor=actor, key=key, **content)


def kinds(registry: Registry) -> list[str]:
    return [event.kind for event in log.read(registry, NAME).events]


def test_an_approver_agrees_once_and_nobody_to_his_own_request(registry: Registry):
    with pytest.raises(
        RegistryError,
        match="no request is open; whoever wants a promotion makes one: `prefixline promote reviews",
    ):
        approve(registry)
    made = asked()
    write(registry, made)
    wide = {stage: replace(RULES, approvers={**RULES.approvers, ALICE.public: "alice"}) for stage in BY_STAGE}
    for key, actor in ((ALICE, "alice"), (ALICE, "another name"), (BOB, "alice")):
        with pytest.raises(RefusedError, match="that is you, by name or by key, and nobody approves"):
            approve(registry, key, actor, rules=wide)
    with pytest.raises(
        RefusedError, match=r"is not that of an approver of staging; params\.yaml names bob, carol"
    ):
        approve(registry, world.key(9), "mallory")
    with pytest.raises(
        RegistryError, match=f"no open request 'ffffffff'; open: {made[1].id}: version 1 for staging"
    ):
        approve(registry, request_id="ffffffff")
    with pytest.raises(RegistryError, match="reason: got ' '"):
        approve(registry, reason=" ")
    event = approve(registry, request_id=made[1].id[:8])
    assert isinstance(event, Approved)
    assert (event.key, event.request, event.epoch, event.version) == (BOB.public, made[1].id, 3, "1")
    with pytest.raises(RegistryError, match="has the approval of this key already"):
        approve(registry)
    assert isinstance(approve(registry, CAROL, "carol", refuse=True), Refused)
    with pytest.raises(RegistryError, match="no request is open"):
        approve(registry)
    assert kinds(registry) == ["registered", "requested", "approved", "refused"]


def test_whoever_asked_takes_it_back_and_of_several_requests_one_is_named(registry: Registry):
    made = asked("register 1", "register 2")
    made.append(follow(made, Requested, "2", sign=ALICE, actor="alice"))
    write(registry, made)
    with pytest.raises(RegistryError, match="several requests are open; name one with --request"):
        approve(registry)
    approve(registry, ALICE, "alice", request_id=made[3].id, refuse=True)
    assert approve(registry).request == made[2].id


def test_an_approval_whose_reply_was_lost_is_one_event(registry: Registry, monkeypatch: pytest.MonkeyPatch):
    from mlflow.exceptions import MlflowException

    write(registry, asked())
    real = registry.client.log_param

    def lost(*arguments: Any, **named: Any) -> None:
        real(*arguments, **named)
        raise MlflowException("no answer", error_code=1)

    monkeypatch.setattr(registry.client, "log_param", lost)
    assert approve(registry).epoch == 3
    assert kinds(registry) == ["registered", "requested", "approved"]


def test_an_approval_that_comes_second_takes_the_next_epoch_while_its_request_is_open(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
):
    made = asked()
    write(registry, made)
    real = log.claim
    between: list[Event] = [follow(made, Registered, "2")]

    def beaten(*arguments: Any) -> Any:
        if between:
            real(registry, between.pop())
        return real(*arguments)

    monkeypatch.setattr(log, "claim", beaten)
    assert approve(registry).epoch == 4
    now = list(log.read(registry, NAME).events)
    between.append(follow(now, Promoted, "2"))
    with pytest.raises(ConflictError, match="was overtaken: there is version 2 in staging now"):
        approve(registry, CAROL, "carol")
    assert kinds(registry) == ["registered", "requested", "registered", "approved", "promoted"]


def wait(registry: Registry, made: list[Event], seconds: float = 0.0, **named: Any) -> list[str]:
    said: list[str] = []
    request = Request(next(event for event in made if isinstance(event, Requested)))
    approvals.wait(
        registry,
        request,
        RULES,
        seconds=seconds,
        actor="alice",
        key=ALICE,
        say=said.append,
        poll_seconds=0.05,
    )
    return said


def test_waiting_ends_with_the_approvals_or_the_refusal_or_the_time(registry: Registry):
    made = asked()
    write(registry, made)
    later = threading.Timer(0.3, lambda: approve(mlflow_world.database(Path(registry.uri[10:]).parents[1])))
    later.start()
    said = wait(registry, made, 60)
    later.join()
    assert [line.split(", ")[1] for line in said] == ["0 of 1 approvals", "1 of 1 approvals"]
    approve(registry, CAROL, "carol", refuse=True, reason="too\x1b soon")
    with pytest.raises(RefusedError, match="version 1 was refused for staging by carol at epoch 4: too"):
        wait(registry, made)
    again = list(log.read(registry, NAME).events)
    again.append(follow(again, Requested, "1", sign=ALICE, actor="alice"))
    write(registry, again[-1:])
    with pytest.raises(RefusedError, match="had 0 of 1 approvals after 0 seconds; it is given up"):
        wait(registry, again[-1:])
    given_up = log.read(registry, NAME).events[-1]
    assert isinstance(given_up, TimedOut)
    assert (given_up.request, given_up.key) == (again[-1].id, ALICE.public)
    with pytest.raises(RefusedError, match="was not approved for staging in time"):
        wait(registry, again[-1:])


def test_an_approval_that_comes_as_the_time_ends_counts(registry: Registry, monkeypatch: pytest.MonkeyPatch):
    made = asked()
    write(registry, made)
    real = log.claim

    def beaten(*arguments: Any) -> Any:
        monkeypatch.setattr(log, "claim", real)
        approve(registry)
        return real(*arguments)

    monkeypatch.setattr(log, "claim", beaten)
    assert wait(registry, made)[-1].endswith("1 of 1 approvals")
    assert kinds(registry) == ["registered", "requested", "approved"]


def test_somebody_elses_promotion_ends_the_waiting_and_one_of_another_version_is_a_conflict(
    registry: Registry,
):
    made = answered(asked("register 1", "register 2"), Promoted, by=ALICE)
    write(registry, made)
    assert wait(registry, made) == []
    made.append(follow(made, Requested, "2", sign=ALICE))
    made.append(follow(made, Archived, "1"))
    write(registry, made[-2:])
    with pytest.raises(ConflictError, match="was overtaken: there is nothing in staging now"):
        wait(registry, made[-2:])


def promote(registry: Registry, key: Any = ALICE, actor: str = "alice", **named: Any) -> Moved | Waiting:
    content = {"to": "staging", "reason": "better", "rules": BY_STAGE, **named}
    return promotion.promote(registry, NAME, "1", actor=actor, key=key, **content)


@pytest.mark.parametrize("skew", [timedelta(days=-1), timedelta(days=1)])
def test_a_promotion_is_asked_for_once_approved_and_carried_out_whatever_the_clocks_say(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, skew: timedelta
):
    world.register(registry, tmp_path)
    for key, problem in ((None, "there is no key to sign with"), (CAROL, "is none of theirs")):
        with pytest.raises(RefusedError, match=f"staging takes a signature of alice, bob; .*{problem}"):
            promote(registry, key)
    assert kinds(registry) == ["registered"]
    waiting = promote(registry)
    assert isinstance(waiting, Waiting)
    assert (waiting.missing, waiting.approvals) == (1, ())
    again = promote(registry, BOB, "bob")
    assert isinstance(again, Waiting)
    assert again.request == waiting.request
    with monkeypatch.context() as patch:
        skewed = (datetime.now(UTC) + skew).isoformat(timespec="milliseconds")
        patch.setattr(fold, "now", lambda: skewed)
        approve(registry)
    done = promote(registry)
    assert isinstance(done, Moved)
    assert (done.event.kind, done.event.request, done.event.key) == (
        "promoted", waiting.request.asked.id, ALICE.public,
    )  # fmt: skip
    assert kinds(registry) == ["registered", "requested", "approved", "promoted"]
    assert world.aliases(registry) == {"staging": "1"}
    assert promotion.stands(registry, NAME, "1", "staging", BY_STAGE) is not None
    assert promotion.stands(registry, NAME, "1", "staging", BY_STAGE, "none") is not None
    assert promotion.stands(registry, NAME, "1", "staging", BY_STAGE, "7") is None
    assert promotion.stands(registry, NAME, "1", "production", BY_STAGE) is None


def test_what_came_into_staging_by_other_rules_goes_no_further_and_a_failed_trial_is_kept(
    registry: Registry, tmp_path: Path
):
    def failing(verified: Any) -> None:
        raise RefusedError(f"version {verified.version.version} predicts nonsense")

    world.register(registry, tmp_path)
    assert isinstance(promote(registry), Waiting)
    with pytest.raises(RefusedError, match="predicts nonsense"):
        promote(registry, trial=failing)
    refused = log.read(registry, NAME).events[-1]
    assert (refused.kind, refused.reason) == ("refused", "version 1 predicts nonsense")
    assert refused.request == log.read(registry, NAME).events[-2].id
    moved = promote(registry, None, "mallory", rules=UNRULED)
    assert isinstance(moved, Moved)
    assert promotion.stands(registry, NAME, "1", "staging", BY_STAGE) is None
    with pytest.raises(
        RefusedError, match=r"promoted to staging at epoch 4 by mallory, signed by nobody; expected"
    ):
        promote(registry, to="production")
    with pytest.raises(RefusedError, match="production takes a signature of alice, bob"):
        promotion.rollback(registry, NAME, reason="worse", actor="mallory", rules=BY_STAGE)
    assert len(kinds(registry)) == 4


def test_a_request_by_a_key_that_the_rules_do_not_name_any_more_is_closed_and_made_anew(
    registry: Registry, tmp_path: Path
):
    world.register(registry, tmp_path)
    first = promote(registry)
    assert isinstance(first, Waiting)
    today = {stage: replace(RULES, signers={BOB.public: "bob"}) for stage in BY_STAGE}
    second = promote(registry, BOB, "bob", rules=today)
    assert isinstance(second, Waiting)
    assert second.request.asked.key == BOB.public
    assert kinds(registry) == ["registered", "requested", "refused", "requested"]
