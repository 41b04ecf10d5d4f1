"""Answering a request: approve it, refuse it, wait for it, or give it up after a time.

An answer moves nothing, and decides on its request alone. So where another event comes first, the next epoch is tried for
as long as the request is open.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from pipeline.errors import ConflictError, PrefixlineError, RefusedError, RegistryError
from pipeline.keys import SigningKey
from pipeline.ledger import log
from pipeline.ledger.events import (
    REASON_LIMIT,
    Approved,
    E,
    Event,
    Promoted,
    Refused,
    TimedOut,
    text_problem,
)
from pipeline.ledger.fold import Request, State, following
from pipeline.ledger.log import Reading
from pipeline.ledger.rules import Ruled, Rules, counting, is_own
from pipeline.tracking.connection import Registry

POLL_SECONDS = 2.0
"""Between two looks at the ledger."""


def approve(
    registry: Registry,
    name: str,
    *,
    request_id: str | None,
    actor: str,
    reason: str,
    key: SigningKey,
    rules: Mapping[Ruled, Rules],
    refuse: bool = False,
) -> Event:
    """Agree to an open request, or refuse it, by one's signature.

    Whoever asked may refuse it too, and so take it back.

    Args:
        request_id: its id, or the first 8 characters or more of it; None where only one is open.
        rules: of each stage, which name the approvers.

    Returns:
        The event.

    Raises:
        RefusedError: the key is no approver's, or the one who asked would approve it; or the request is closed.
        ConflictError: the request was overtaken.
        RegistryError: there is no such open request, or several, or it has this approval already.
        IntegrityError, UnreachableError: as `log.read`.
    """
    check_reason(reason)
    request = _find(log.read(registry, name), request_id)
    asked = request.asked
    approvers = rules[_ruled(request)].approvers
    own = is_own(request, actor, key.public)
    if own and not refuse:
        raise RefusedError(
            f"{name}: {asked.sentence} at epoch {asked.epoch} by {asked.actor}: that is you, by name or by key, and nobody "
            "approves a request of his own"
        )
    if key.public not in approvers and not (own and key.public == asked.key):
        raise RefusedError(
            f"{name}: the key {key.public} is not that of an approver of {asked.stage}; params.yaml names "
            f"{', '.join(approvers.values()) or 'none'}"
        )
    if not refuse and any(approval.key == key.public for approval in request.approvals):
        raise RegistryError(
            f"{name}: the request {asked.id} has the approval of this key already; nothing has changed"
        )
    kind: type[Event] = Refused if refuse else Approved

    def answering(reading: Reading) -> Event:
        if asked.id not in reading.state.requests:
            raise closed(reading, request)
        return _answer(reading.state, request, kind, actor=actor, reason=reason, key=key)

    after = log.append(registry, log.read(registry, name), answering)
    assert after is not None
    return after.events[-1]


def wait(
    registry: Registry,
    request: Request,
    rules: Rules,
    *,
    seconds: float,
    actor: str,
    key: SigningKey | None,
    say: Callable[[str], None],
    poll_seconds: float = POLL_SECONDS,
) -> None:
    """Look at the ledger until the request has its approvals, or was carried out by somebody.

    The time is this process's own, from now on: the clock of whoever asked may be wrong by any amount.

    Args:
        seconds: after which the request is given up, which is kept in the ledger.
        say: receives a line whenever an approval comes.

    Raises:
        RefusedError: somebody refused it, or the time is over.
        ConflictError: it was overtaken.
    """
    name, asked = request.asked.prefix, request.asked
    deadline = time.monotonic() + seconds
    count = -1
    while True:
        reading = log.read(registry, name)
        now = reading.state.requests.get(asked.id)
        if now is None:
            if isinstance(closed_by(reading, asked.id), Promoted):
                return
            raise closed(reading, request)
        if len(counting(now, rules)) > count:
            count = len(counting(now, rules))
            say(f"{name}: {asked.sentence} ({asked.id}), {count} of {rules.approvals} approvals")
        if count >= rules.approvals:
            return
        if time.monotonic() >= deadline:
            reason = f"{count} of {rules.approvals} approvals after {seconds:g} seconds"
            event = _answer(reading.state, request, TimedOut, actor=actor, reason=reason, key=key)
            if not log.claim(registry, event):
                continue  # what came first may be the approval
            raise RefusedError(
                f"{name}: {asked.sentence} at epoch {asked.epoch} and had {reason}; it is given up. Promoting again asks anew"
            )
        time.sleep(min(poll_seconds, max(0.0, deadline - time.monotonic())))


def _answer(
    state: State,
    request: Request,
    kind: type[E],
    *,
    actor: str,
    reason: str,
    key: SigningKey | None,
) -> E:
    """The event that would answer a request that is open in `state`."""
    asked = request.asked
    return following(
        state,
        kind,
        prefix=asked.prefix,
        version=asked.version,
        stage=asked.stage,
        actor=actor,
        reason=reason,
        lineage_digest=asked.lineage_digest,
        verdict_digest=asked.verdict_digest,
        request=asked.id,
        key=key,
    )


def closed_by(reading: Reading, request_id: str) -> Event | None:
    """The event that answered a request and closed it; None where it was overtaken."""
    return next(
        (e for e in reading.events if e.request == request_id and not isinstance(e, Approved)),
        None,
    )


def closed(reading: Reading, request: Request) -> PrefixlineError:
    """Why a request is not open any more: RefusedError, or ConflictError where somebody moved a version."""
    asked = request.asked
    event = closed_by(reading, asked.id)
    if event is None or isinstance(event, Promoted):
        stands = reading.state.stages.get(asked.stage)
        return ConflictError(
            f"{asked.prefix}: the request {asked.id} for version {asked.version} in {asked.stage} was overtaken: there is "
            f"{'version ' + stands if stands else 'nothing'} in {asked.stage} now. Look, and decide again."
        )
    return RefusedError(
        f"{asked.prefix}: {event.sentence} by {event.actor} at epoch {event.epoch}: {event.reason}"
    )


def check_reason(reason: str) -> None:
    """Refuse a reason that an event could not hold.

    Raises:
        RegistryError: it has no words, or too many.
    """
    if (problem := text_problem(reason, REASON_LIMIT)) is not None:
        raise RegistryError(f"reason: {problem}")


def _find(reading: Reading, request_id: str | None) -> Request:
    state: State = reading.state
    found = [
        request
        for identity, request in state.requests.items()
        if request_id is None or (identity.startswith(request_id) and len(request_id) >= 8)
    ]
    if len(found) == 1:
        return found[0]
    there = "; ".join(
        f"{r.asked.id}: version {r.asked.version} for {r.asked.stage}, by {r.asked.actor}"
        for r in state.requests.values()
    )
    if found:
        raise RegistryError(f"{reading.name}: several requests are open; name one with --request: {there}")
    if not there:
        raise RegistryError(
            f"{reading.name}: no request is open; whoever wants a promotion makes one: `prefixline promote {reading.name} …`"
        )
    raise RegistryError(f"{reading.name}: no open request {request_id!r}; open: {there}")


def _ruled(request: Request) -> Ruled:
    return "production" if request.asked.stage == "production" else "staging"
