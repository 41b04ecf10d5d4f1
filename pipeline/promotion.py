"""Moving a version from stage to stage: check, claim the next epoch of the ledger, put the aliases where it says.

candidate → staging → production. What production held goes to archived, and `rollback` brings it back. Whoever is
second gets a ConflictError, and decides again: nothing is tried again on anybody's behalf. An event that moves nothing
(an approval, say) and a new candidate are no reason to decide again; after one the next epoch is claimed.

What a promotion needs beyond that is in the rules of its stage. Where they ask for approvals, a promotion first becomes a
request in the ledger (`pipeline.ledger.approvals`), and promoting again when it is approved carries it out.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import ConflictError, RefusedError, RegistryError, UnreachableError
from pipeline.keys import SigningKey
from pipeline.ledger import log
from pipeline.ledger.approvals import check_reason, closed
from pipeline.ledger.events import (
    REASON_LIMIT,
    Approved,
    Archived,
    E,
    Event,
    Promoted,
    Refused,
    Registered,
    Requested,
    RolledBack,
    Stage,
    Tainted,
)
from pipeline.ledger.fold import Request, State, following
from pipeline.ledger.log import Reading
from pipeline.ledger.projection import OutOfStep, project
from pipeline.ledger.registration import check_entered, enter
from pipeline.ledger.rules import RULED, Ruled, Rules, counting, standing, unauthorised
from pipeline.register import versions
from pipeline.register.versions import VerifiedVersion
from pipeline.tracking.connection import Registry

NONE = "none"
"""As an expectation: no version stands there."""

UNRULED: Mapping[Ruled, Rules] = dict.fromkeys(RULED, Rules())
"""Nothing is asked for but a passing verdict and a lineage record that verifies."""

Trial = Callable[[VerifiedVersion], None]
"""Puts a version to the test; raises RefusedError where it fails."""


@dataclass(frozen=True)
class Moved:
    """A change that has been made.

    Attributes:
        state: where every version stands now.
        repaired: aliases that were out of step with the ledger before, and were put right first.
    """

    event: Event
    state: State
    repaired: tuple[OutOfStep, ...]


@dataclass(frozen=True)
class Waiting:
    """A promotion that is not approved yet.

    Attributes:
        approvals: those that count.
        rules: of the stage, which say how many are needed and of whom.
    """

    request: Request
    approvals: tuple[Approved, ...]
    rules: Rules
    repaired: tuple[OutOfStep, ...]

    @property
    def missing(self) -> int:
        """How many approvals are still needed."""
        return self.rules.approvals - len(self.approvals)


@dataclass(frozen=True)
class _Mover:
    """Who moves what, and why: the same for every event of one command."""

    registry: Registry
    entered: Registered
    stage: Stage
    actor: str
    reason: str
    key: SigningKey | None

    def event(self, state: State, kind: type[E], *, request: str | None = None, reason: str = "") -> E:
        """The event that would follow `state`."""
        return following(
            state,
            kind,
            prefix=self.entered.prefix,
            version=self.entered.version,
            stage=self.stage,
            actor=self.actor,
            reason=reason or self.reason,
            lineage_digest=self.entered.lineage_digest,
            verdict_digest=self.entered.verdict_digest,
            request=request,
            key=self.key,
        )

    def append(self, before: Reading, make: Callable[[Reading], Event | None]) -> Reading | None:
        """Append what `make` makes, as long as no event since `before` unsettles what was decided then.

        Returns:
            The ledger up to the event; None where `make` makes none, since it is not needed any more.

        Raises:
            ConflictError: one does, as `check_unmoved`.
        """

        def settled(now: Reading) -> Event | None:
            self.check_unmoved(before, now)
            return make(now)

        return log.append(self.registry, before, settled)

    def unmoved(self, before: Reading) -> Reading:
        """The ledger now, if no event since `before` unsettles what was decided then.

        Raises:
            ConflictError: one does, as `check_unmoved`.
        """
        now = log.read(self.registry, before.name, before.run_id)
        self.check_unmoved(before, now)
        return now

    def check_unmoved(self, before: Reading, now: Reading) -> None:
        """Refuse what was decided by `before`, if an event since unsettles it (`_unsettles`).

        Raises:
            ConflictError: one does. That is kept in the ledger, as a refusal after it.
        """
        first = next((each for each in now.events[len(before.events) :] if _unsettles(each)), None)
        if first is None:
            return
        said = f"{first.actor} was first: {first.sentence} at epoch {first.epoch}, {first.time}"
        with suppress(RegistryError, UnreachableError):  # the conflict is what to report
            self.refuse(now, said)
        raise ConflictError(
            f"{now.name}: {said}. {_now(now.state, self.stage)} Nothing was changed by you; look, and decide again."
        )

    def refuse(self, reading: Reading, reason: str, request: str | None = None) -> None:
        """Keep in the ledger that this did not happen.

        Args:
            reading: the ledger as it was last read.
            request: the id of the request that this closes, if it is open.
        """

        def refusing(now: Reading) -> Refused:
            named = request if request in now.state.requests else None
            return self.event(now.state, Refused, request=named, reason=reason[:REASON_LIMIT])

        log.append(self.registry, reading, refusing)


def promote(
    registry: Registry,
    name: str,
    version: str,
    *,
    to: Ruled,
    reason: str,
    actor: str,
    key: SigningKey | None = None,
    expect: str | None = None,
    rules: Mapping[Ruled, Rules] = UNRULED,
    trial: Trial | None = None,
) -> Moved | Waiting:
    """Move a version up: to staging from anywhere but production, to production from staging.

    Where the rules need approvals, it is asked for instead, once; the same again when it is approved moves it.

    Args:
        key: what signs; None for an event that nobody signs.
        expect: the version that must stand in `to` now, or `none`; None leaves that open.
        rules: of each stage.
        trial: what the version is put to first. That it failed is kept in the ledger.

    Raises:
        ConflictError: somebody else was first, or something else than `expect` stands there.
        RefusedError: a rule is not met.
        RegistryError: there is no such version, it was not registered by prefixline, its verdict did not pass, it is
            tainted, or the transition is not allowed.
        IntegrityError: the version's files, its lineage record, or the ledger, are not what was written.
        UnreachableError: MLflow does not answer.
    """
    check_reason(reason)
    _check_number(name, version)
    reading, repaired = project(registry, name)
    state = reading.state
    verified = _verified(registry, reading, version)
    number = verified.version.version
    if number not in state.registered:
        # Made before there was a ledger, or its registration was cut off on the way.
        reading = enter(registry, name, number, **_digests(verified), actor=actor, reason="passed the gate")
        state = reading.state
    entered = state.registered[number]
    check_entered(entered, **_digests(verified))
    _check_untainted(state, name, number)
    _check_expected(state, name, to, expect)
    _check_transition(state, name, number, to)
    _check_key(name, to, rules[to], key)
    if to == "production":
        for wrong in (each for each in standing(state, rules) if each.event.stage == "staging"):
            raise RefusedError(
                f"{name}: {wrong}. Archive it, and promote it to staging again by the rules of staging"
            )
    _check_files(registry, verified)
    mover = _Mover(registry, entered, to, actor, reason, key)
    request = state.request_for(number, to)
    if trial is not None:
        try:
            trial(verified)
        except RefusedError as error:
            mover.refuse(reading, str(error), None if request is None else request.asked.id)
            raise
        reading = mover.unmoved(reading)
        request = reading.state.request_for(number, to)
    if rules[to].approvals:
        request, reading = _asked(mover, rules[to], reading)
    if request is not None and len(approvals := counting(request, rules[to])) < rules[to].approvals:
        return Waiting(request, approvals, rules[to], repaired)

    def carrying_out(now: Reading) -> Promoted:
        if request is not None and request.asked.id not in now.state.requests:
            raise closed(now, request)
        return mover.event(now.state, Promoted, request=None if request is None else request.asked.id)

    return _moved(registry, mover.append(reading, carrying_out), repaired)


def stands(
    registry: Registry,
    name: str,
    version: str,
    to: Ruled,
    rules: Mapping[Ruled, Rules],
    expect: str | None = None,
) -> Moved | None:
    """The promotion or rollback by which the version stands in `to` already, by today's rules; None if it does not.

    Args:
        expect: the version that must have stood there before, or `none`; None leaves that open.
    """
    reading, repaired = project(registry, name)
    state = reading.state
    if state.stages.get(to) != version:
        return None
    event = state.moved[to]
    if expect not in (None, event.expected or NONE):
        return None
    if unauthorised(event, state, rules[to]) is not None:
        return None
    return Moved(event, state, repaired)


def rollback(
    registry: Registry,
    name: str,
    *,
    reason: str,
    actor: str,
    key: SigningKey | None = None,
    expect: str | None = None,
    rules: Mapping[Ruled, Rules] = UNRULED,
) -> Moved:
    """Bring back to production what it held before, by the ledger; what it holds goes to archived.

    A version that was archived by `archive`, or that is tainted, is passed over. It takes a signature where production's
    rules ask for one, and no approvals: it is what one does first when production is broken. What came to production by an
    event that today's rules do not allow is never brought back.

    Args:
        expect: the version that must stand in production now, or `none`; None leaves that open.

    Raises:
        ConflictError, RefusedError, RegistryError, IntegrityError, UnreachableError: as `promote`.
    """
    check_reason(reason)
    reading, repaired = project(registry, name)
    state = reading.state
    _check_expected(state, name, "production", expect)
    _check_key(name, "production", rules["production"], key)
    if not state.held_before:
        raise RegistryError(
            f"{name}: production held nothing before {state.stages.get('production', 'now')} that it could go back to; "
            f"`prefixline history {name}` says what it held, `prefixline promote` moves another version there"
            + (
                f"; versions that saw a row which was to be erased are passed over: {', '.join(state.tainted)}"
                if state.tainted
                else ""
            )
        )
    version = state.held_before[-1]
    if (wrong := unauthorised(state.brought_up[version], state, rules["production"])) is not None:
        raise RefusedError(
            f"{name}: production held version {version} before, but {wrong}. Archive it to go back to what production held "
            "before that, or promote a version by the rules of production"
        )
    entered = state.registered[version]
    verified = _verified(registry, reading, version)
    check_entered(entered, **_digests(verified))
    _check_files(registry, verified)
    mover = _Mover(registry, entered, "production", actor, reason, key)
    return _moved(registry, mover.append(reading, lambda now: mover.event(now.state, RolledBack)), repaired)


def archive(
    registry: Registry, name: str, version: str, *, reason: str, actor: str, key: SigningKey | None = None
) -> Moved:
    """Put a version away, from whichever stage it stands in. It need not verify: what is broken can be put away.

    What is archived because another took its place in production can be put away too, and no rollback goes back to it then.

    Raises:
        ConflictError, RegistryError, IntegrityError, UnreachableError: as `promote`.
    """
    check_reason(reason)
    reading, repaired = project(registry, name)
    state = reading.state
    if (entered := state.registered.get(version)) is None:
        raise RegistryError(
            f"{name}: the ledger knows no version {version!r}; it knows {', '.join(state.registered) or 'none'}"
        )
    if state.stage_of(version) == "archived" and version not in state.held_before:
        raise RegistryError(f"{name} version {version} is archived already; nothing has changed")
    mover = _Mover(registry, entered, "archived", actor, reason, key)
    return _moved(registry, mover.append(reading, lambda now: mover.event(now.state, Archived)), repaired)


def _unsettles(event: Event) -> bool:
    """Whether what was decided before `event` must be decided again: a version moved or was tainted.

    A registration moves a new version to candidate alone, which nobody's decision is about: a retraining that ends during
    a long trial is not somebody who was first.
    """
    return (event.moves and not isinstance(event, Registered)) or isinstance(event, Tainted)


def _asked(mover: _Mover, rules: Rules, reading: Reading) -> tuple[Request, Reading]:
    """The open request for this version and stage, which is made where there is none, and the ledger with it.

    One that was asked for with a key that the rules do not name is closed first: nobody's approval would count for it.
    """
    version, stage, name = mover.entered.version, mover.stage, mover.entered.prefix
    found = reading.state.request_for(version, stage)
    if found is not None and found.asked.key not in rules.signers:
        mover.refuse(
            reading, f"was not asked for by any of {', '.join(rules.signers.values())}", found.asked.id
        )
        reading = mover.unmoved(reading)

    def asking(now: Reading) -> Requested | None:
        return mover.event(now.state, Requested) if now.state.request_for(version, stage) is None else None

    after = mover.append(reading, asking)
    now = log.read(mover.registry, name)
    found = now.state.request_for(version, stage)
    if found is None:
        raise (
            closed(now, after.state.requests[after.events[-1].id])
            if after is not None
            else ConflictError(
                f"{name}: somebody else's request for version {version} in {stage} was closed just now; look, and decide again"
            )
        )
    mover.check_unmoved(reading, now)
    return found, now


def _check_number(name: str, version: str) -> None:
    if not version.isdecimal():
        raise RegistryError(f"{name}: got the version {version!r}, expected its number")


def _verified(registry: Registry, reading: Reading, version: str) -> VerifiedVersion:
    """The version, if it may be promoted at all."""
    name = reading.name
    verified = versions.lookup(registry, name, version, reading=reading)
    if verified.version.duplicate_of is not None:
        raise RegistryError(
            f"{name} version {version} is a duplicate of version {verified.version.duplicate_of}, which counts instead"
        )
    if verified.record.verdict.get("passed") is not True:
        raise RegistryError(
            f"{name} version {version}: the gate's verdict did not pass; it is never promoted"
        )
    return verified


def _digests(verified: VerifiedVersion) -> dict[str, str]:
    record = verified.record
    return {"lineage_digest": record.digest, "verdict_digest": record.verdict_digest}


def _check_files(registry: Registry, verified: VerifiedVersion) -> None:
    """Refuse a version whose files in MLflow are not those that were registered: it is these that are served."""
    with tempfile.TemporaryDirectory() as scratch:
        versions.download_model(registry, verified, Path(scratch) / "model")


def _check_untainted(state: State, name: str, version: str) -> None:
    for event in state.tainted.get(version, ()):
        raise RegistryError(
            f"{name} version {version} saw a row that was to be erased ({event.actor}, {event.time}: {event.reason}) and "
            f"is never promoted; `prefixline retrain {name}` makes a version without it"
        )


def _check_expected(state: State, name: str, stage: Stage, expect: str | None) -> None:
    if expect is not None and expect != state.stages.get(stage, NONE):
        raise ConflictError(
            f"{name}: expected {_held(stage, expect)}. {_now(state, stage)} Nothing was changed."
        )


def _check_transition(state: State, name: str, number: str, to: Ruled) -> None:
    stands = state.stage_of(number)
    if (to == "production" and stands != "staging") or (
        to == "staging" and stands in ("staging", "production")
    ):
        raise RegistryError(
            f"{name} version {number} stands in {stands or 'no stage'} and cannot go to {to}; allowed: to staging from "
            "candidate, archived or no stage, to production from staging"
            + (
                "; `prefixline rollback` brings back what production held before"
                if stands == "archived"
                else ""
            )
        )


def _check_key(name: str, stage: Ruled, rules: Rules, key: SigningKey | None) -> None:
    """Refuse a key that the rules do not name, before anything is done."""
    if rules.signers and (key is None or key.public not in rules.signers):
        raise RefusedError(
            f"{name}: {stage} takes a signature of {', '.join(rules.signers.values())}; "
            + ("there is no key to sign with" if key is None else f"the key {key.public} is none of theirs")
            + ". Name the file of one with --key or PREFIXLINE_KEY"
        )


def _moved(registry: Registry, after: Reading | None, repaired: tuple[OutOfStep, ...]) -> Moved:
    """Put the aliases where the ledger says after its last event."""
    assert after is not None
    name, event = after.name, after.events[-1]
    try:
        reading, _ = project(registry, name, seen=after)
    except (RegistryError, UnreachableError) as error:
        raise type(error)(
            f"{error}\nThe ledger has it ({event.sentence}, epoch {event.epoch}), but the aliases may not follow yet; "
            f"`prefixline history {name} --repair` puts them right."
        ) from error
    return Moved(event, reading.state, repaired)


def _held(stage: Stage, version: str) -> str:
    return f"nothing in {stage}" if version == NONE else f"version {version} in {stage}"


def _now(state: State, stage: Stage) -> str:
    """What stands there, and who moved it."""
    moved = state.moved.get(stage)
    who = "" if moved is None else f", by {moved.actor} at epoch {moved.epoch}, {moved.time}: {moved.reason}"
    return f"Now there is {_held(stage, state.stages.get(stage, NONE))}{who}."
