"""Moving a version from stage to stage: check, claim the next epoch of the ledger, put the aliases where it says.

candidate → staging → production. What production held goes to archived, and `rollback` brings it back. Whoever is
second gets a ConflictError, and decides again: nothing is tried again on anybody's behalf.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pipeline.errors import ConflictError, RegistryError, UnreachableError
from pipeline.ledger import log
from pipeline.ledger.events import (
    REASON_LIMIT,
    Archived,
    Event,
    Promoted,
    Registered,
    RolledBack,
    Stage,
    text_problem,
)
from pipeline.ledger.fold import State, following
from pipeline.ledger.projection import OutOfStep, project
from pipeline.ledger.registration import check_entered, enter
from pipeline.register import versions
from pipeline.register.versions import VerifiedVersion
from pipeline.tracking.connection import Registry

NONE = "none"
"""As an expectation: no version stands there."""


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


def promote(
    registry: Registry,
    name: str,
    version: str,
    *,
    to: Literal["staging", "production"],
    reason: str,
    actor: str,
    expect: str | None = None,
) -> Moved:
    """Move a version up: to staging from anywhere but production, to production from staging.

    Args:
        expect: the version that must stand in `to` now, or `none`; None leaves that open.

    Raises:
        ConflictError: somebody else was first, or something else than `expect` stands there.
        RegistryError: there is no such version, it was not registered by prefixline, its verdict did not pass, it is
            tainted, or the transition is not allowed.
        IntegrityError: the version's lineage record, or the ledger, is not what was written.
        UnreachableError: MLflow does not answer.
    """
    _check_reason(reason)
    verified = _verified(registry, name, version)
    reading, repaired = project(registry, name)
    state = reading.state
    number = verified.version.version
    if number not in state.registered:
        # Made before there was a ledger, or its registration was cut off on the way.
        state = enter(registry, name, number, **_digests(verified), actor=actor, reason="passed the gate")
    entered = state.registered[number]
    check_entered(entered, **_digests(verified))
    _check_untainted(state, name, number)
    _check_expected(state, name, to, expect)
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
    return _append(registry, _moving(state, Promoted, entered, to, actor, reason), repaired)


def rollback(registry: Registry, name: str, *, reason: str, actor: str, expect: str | None = None) -> Moved:
    """Bring back to production what it held before, by the ledger; what it holds goes to archived.

    A version that was archived by `archive`, or that is tainted, is passed over.

    Args:
        expect: the version that must stand in production now, or `none`; None leaves that open.

    Raises:
        ConflictError, RegistryError, IntegrityError, UnreachableError: as `promote`.
    """
    _check_reason(reason)
    reading, repaired = project(registry, name)
    state = reading.state
    _check_expected(state, name, "production", expect)
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
    entered = state.registered[state.held_before[-1]]
    check_entered(entered, **_digests(_verified(registry, name, entered.version)))
    return _append(registry, _moving(state, RolledBack, entered, "production", actor, reason), repaired)


def archive(registry: Registry, name: str, version: str, *, reason: str, actor: str) -> Moved:
    """Put a version away, from whichever stage it stands in. It need not verify: what is broken can be put away.

    Raises:
        ConflictError, RegistryError, IntegrityError, UnreachableError: as `promote`.
    """
    _check_reason(reason)
    reading, repaired = project(registry, name)
    state = reading.state
    if (entered := state.registered.get(version)) is None:
        raise RegistryError(
            f"{name}: the ledger knows no version {version!r}; it knows {', '.join(state.registered) or 'none'}"
        )
    if state.stage_of(version) == "archived":
        raise RegistryError(f"{name} version {version} is archived already; nothing has changed")
    return _append(registry, _moving(state, Archived, entered, "archived", actor, reason), repaired)


def _check_reason(reason: str) -> None:
    if (problem := text_problem(reason, REASON_LIMIT)) is not None:
        raise RegistryError(f"reason: {problem}")


def _verified(registry: Registry, name: str, version: str) -> VerifiedVersion:
    """The version, if it may be promoted at all."""
    if not version.isdecimal():
        raise RegistryError(f"{name}: got the version {version!r}, expected its number")
    verified = versions.lookup(registry, name, version)
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


def _moving(
    state: State, kind: type[Event], entered: Registered, stage: Stage, actor: str, reason: str
) -> Event:
    """The event by which a version that was entered moves to `stage`."""
    return following(
        state,
        kind,
        prefix=entered.prefix,
        version=entered.version,
        stage=stage,
        actor=actor,
        reason=reason,
        lineage_digest=entered.lineage_digest,
        verdict_digest=entered.verdict_digest,
    )


def _append(registry: Registry, event: Event, repaired: tuple[OutOfStep, ...]) -> Moved:
    name = event.prefix
    holder = log.claim(registry, event)
    if holder != event:
        assert event.stage is not None
        state = log.read(registry, name).state
        raise ConflictError(
            f"{name}: {holder.actor} was first: {holder.sentence} at epoch {holder.epoch}, {holder.time}. "
            f"{_now(state, event.stage)} Nothing was changed by you; look, and decide again."
        )
    try:
        reading, _ = project(registry, name)
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
