"""What a promotion needs by params.yaml, and whether an event had it. Pure.

Rules are judged as they are now, also on what was done under others: a key that was taken out of params.yaml vouches for
nothing that stands in a stage today.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

from pipeline.ledger.events import Approved, Event, Promoted, RolledBack
from pipeline.ledger.fold import Request, State
from pipeline.params import Params

Ruled = Literal["staging", "production"]
RULED: tuple[Ruled, ...] = ("staging", "production")
"""The stages that have rules."""


@dataclass(frozen=True)
class Rules:
    """What a promotion to one stage needs (`pipeline.params.StageRules`), with the names as keys.

    Attributes:
        signers: {public key: name} of those who may promote; with none, no signature is needed.
        approvals: how many of `approvers`, {public key: name}, must agree.
    """

    smoke_test: bool = False
    fresh_evaluation: bool = False
    signers: Mapping[str, str] = field(default_factory=dict)
    approvals: int = 0
    approvers: Mapping[str, str] = field(default_factory=dict)


def rules_of(params: Params, name: str) -> dict[Ruled, Rules]:
    """The rules of the prefix `name`, stage by stage; none for one that params.yaml does not have."""
    if name not in params.prefixes:
        return dict.fromkeys(RULED, Rules())
    promotion = params.prefixes[name].promotion
    return {
        stage: Rules(
            smoke_test=rules.smoke_test,
            fresh_evaluation=rules.fresh_evaluation,
            signers={params.keys[who]: who for who in rules.signed_by},
            approvals=rules.approvals,
            approvers={params.keys[who]: who for who in rules.approvers},
        )
        for stage, rules in ((stage, getattr(promotion, stage)) for stage in RULED)
    }


def is_own(request: Request, actor: str, key: str | None) -> bool:
    """Whether it was this actor, or this key under whatever name, who asked."""
    return actor == request.asked.actor or (key is not None and key == request.asked.key)


def counting(request: Request, rules: Rules) -> tuple[Approved, ...]:
    """The approvals that count: of different approvers, none of them the one who asked."""
    by_key: dict[str | None, Approved] = {}
    for approval in request.approvals:
        if approval.key in rules.approvers and not is_own(request, approval.actor, approval.key):
            by_key.setdefault(approval.key, approval)
    return tuple(by_key.values())


@dataclass(frozen=True)
class Unauthorised:
    """An event by which a version stands in a stage, and that the rules do not allow."""

    event: Event
    expected: str
    actual: str

    def __str__(self) -> str:
        event = self.event
        return f"{event.sentence} at epoch {event.epoch} by {event.actor}, {self.actual}; expected {self.expected}"


def unauthorised(event: Event, state: State, rules: Rules) -> Unauthorised | None:
    """What an event that put a version into a stage lacks by the rules of that stage.

    A rollback needs no approvals of its own: it is what one does first when production is broken. But it brings nothing back
    that did not come up by these rules: who may sign could else promote without approvals and go back to it.

    Args:
        state: in which the event has happened.
    """
    if rules.signers and event.key not in rules.signers:
        return Unauthorised(event, f"a signature of {_listed(rules.signers)}", _signed(event))
    if isinstance(event, RolledBack):
        brought_up = state.brought_up[event.version]
        if (found := unauthorised(brought_up, state, rules)) is None:
            return None
        actual = (
            f"to what was promoted there at epoch {brought_up.epoch} by {brought_up.actor}, {found.actual}"
        )
        return Unauthorised(event, found.expected, actual)
    if rules.approvals and isinstance(event, Promoted):
        carried_out = state.carried_out.get(event.id)
        approved = f"{rules.approvals} of {_listed(rules.approvers)} to approve"
        if carried_out is None:
            return Unauthorised(event, approved, "approved by nobody")
        if carried_out.asked.key not in rules.signers:
            asked = f"a request signed by {_listed(rules.signers)}"
            return Unauthorised(event, asked, f"on a request {_signed(carried_out.asked)}")
        count = len(counting(carried_out, rules))
        if count < rules.approvals:
            return Unauthorised(event, approved, f"approved by {count} of them")
    return None


def standing(state: State, rules: Mapping[Ruled, Rules]) -> Iterator[Unauthorised]:
    """The versions in staging and production that stand there by an event that today's rules do not allow."""
    for stage in RULED:
        if stage in state.stages:
            event = state.moved[stage]
            if (found := unauthorised(event, state, rules[stage])) is not None:
                yield found


def _listed(keys: Mapping[str, str]) -> str:
    return ", ".join(keys.values())


def _signed(event: Event) -> str:
    return "signed by nobody" if event.key is None else f"signed with the key {event.key}"
