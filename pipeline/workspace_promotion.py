"""A promotion in a workspace: what the command and the flow share.

Each step can be repeated: what has been done is in the ledger, is found there, and is not done again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import promotion, server_access
from pipeline.actor import actor, signing_key
from pipeline.digest import canonical_json
from pipeline.errors import RefusedError
from pipeline.keys import SigningKey
from pipeline.ledger import approvals, log
from pipeline.ledger.events import STAGES, Event, from_json
from pipeline.ledger.rules import Ruled, Rules, rules_of
from pipeline.params import Params
from pipeline.promotion import Moved, Waiting
from pipeline.register.versions import VerifiedVersion
from pipeline.tracking.connection import Registry
from pipeline.versioning.workspace import Workspace, find_workspace


@dataclass(frozen=True)
class Promotion:
    """A promotion as somebody wants it.

    Attributes:
        workspace: its folder, or one below it.
        expect: the version that must stand in `to`, `none` for none; None leaves that open.
        key: the file to sign with; None for the usual one (`pipeline.actor.signing_key`).
    """

    workspace: Path
    name: str
    version: str
    to: Ruled
    reason: str
    expect: str | None = None
    key: Path | None = None


@dataclass(frozen=True)
class Acting:
    """Who acts on the ledger of the prefix `name`, and by which rules."""

    name: str
    workspace: Workspace
    registry: Registry
    params: Params
    rules: Mapping[Ruled, Rules]
    actor: str
    key: SigningKey | None

    def trial(self, to: Ruled) -> promotion.Trial | None:
        """What the rules of a stage put a version to; None for nothing."""
        rules = self.rules[to]
        if not (rules.smoke_test or rules.fresh_evaluation):
            return None

        def put_to(verified: VerifiedVersion) -> None:
            if rules.smoke_test:
                from pipeline.trial.smoke_test import smoke_test

                smoke_test(self.workspace, self.registry, verified)
            if rules.fresh_evaluation:
                from pipeline.trial.fresh_evaluation import fresh_evaluation

                fresh_evaluation(self.workspace, self.registry, verified, self.params.prefix(self.name))

        return put_to


def acting(workspace: Path, name: str, key: Path | None = None, *, dropped: bool = False) -> Acting:
    """The ledger of the prefix `name`, and who acts on it.

    Args:
        key: the file to sign with; None for the usual one.
        dropped: params.yaml need not have the prefix any more.

    Raises:
        ParamsError: params.yaml is wrong, or has no such prefix.
        KeyFileError, WorkspaceError, UnreachableError, RegistryError: see the steps.
    """
    found = find_workspace(workspace)
    params = found.params()
    if not dropped:
        params.prefix(name)
    registry = server_access.connect(found.root)
    return Acting(name, found, registry, params, rules_of(params, name), actor(found.root), signing_key(key))


def promote(wanted: Promotion) -> Moved | Waiting:
    """Check the version, put it to what the rules ask for, and move it, or ask for approvals; as `promotion.promote`."""
    by = acting(wanted.workspace, wanted.name, wanted.key)
    return _promote(wanted, by, by.trial(wanted.to))


def begin(wanted: Promotion) -> Moved | Waiting:
    """`promote`, or what moved the version there where it stands there already."""
    by = acting(wanted.workspace, wanted.name, wanted.key)
    return _there(wanted, by) or _promote(wanted, by, by.trial(wanted.to))


def wait(wanted: Promotion, waiting: Waiting, seconds: float, say: Callable[[str], None]) -> None:
    """Until it is approved; as `pipeline.ledger.approvals.wait`."""
    by = acting(wanted.workspace, wanted.name, wanted.key)
    approvals.wait(
        by.registry, waiting.request, waiting.rules, seconds=seconds, actor=by.actor, key=by.key, say=say
    )


def carry_out(wanted: Promotion) -> Moved:
    """Move the version whose request was approved, unless somebody has.

    Raises:
        RefusedError: an approval does not count any more: params.yaml was changed.
    """
    by = acting(wanted.workspace, wanted.name, wanted.key)
    done = _there(wanted, by) or _promote(wanted, by, None)
    if isinstance(done, Waiting):
        raise RefusedError(
            f"{wanted.name}: the request {done.request.asked.id} is not approved by the rules as they are now; "
            f"it needs {done.missing} more"
        )
    return done


def moved(wanted: Promotion, event: Mapping[str, Any]) -> Moved:
    """What `event`, as its JSON has it, came to, and where every version stands now."""
    by = acting(wanted.workspace, wanted.name, wanted.key)
    return Moved(from_json(canonical_json(event)), log.read(by.registry, wanted.name).state, ())


def approve(
    workspace: Path, name: str, *, request: str | None, reason: str, key: Path | None, refuse: bool
) -> Event:
    """Agree to a request, or refuse it; as `pipeline.ledger.approvals.approve`.

    Raises:
        RefusedError: there is no key to sign with, or as there.
    """
    by = acting(workspace, name, key)
    if by.key is None:
        raise RefusedError(
            f"{name}: an approval is signed, and there is no key to sign with: `prefixline keys new` makes one"
        )
    return approvals.approve(
        by.registry,
        name,
        request_id=request,
        actor=by.actor,
        reason=reason,
        key=by.key,
        rules=by.rules,
        refuse=refuse,
    )


def markdown(moved: Moved) -> str:
    """What has happened, as Prefect shows it."""
    event = moved.event
    lines = [
        f"# {event.prefix}: {event.sentence}",
        "",
        f"- epoch: {event.epoch}",
        f"- by: `{event.actor}`",
        f"- key: `{event.key or 'none'}`",
        f"- request: `{event.request or 'none'}`",
        "",
        "| stage | version |",
        "| --- | --- |",
        *(f"| {stage} | {moved.state.stages.get(stage, 'none')} |" for stage in STAGES),
    ]
    return "\n".join(lines) + "\n"


def _there(wanted: Promotion, by: Acting) -> Moved | None:
    return promotion.stands(by.registry, wanted.name, wanted.version, wanted.to, by.rules, wanted.expect)


def _promote(wanted: Promotion, by: Acting, trial: promotion.Trial | None) -> Moved | Waiting:
    return promotion.promote(
        by.registry,
        wanted.name,
        wanted.version,
        to=wanted.to,
        reason=wanted.reason,
        actor=by.actor,
        key=by.key,
        expect=wanted.expect,
        rules=by.rules,
        trial=trial,
    )
