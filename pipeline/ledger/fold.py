"""Where every version stands, and which requests are open, from the events alone. Pure, and in time proportional to
their number.

Laws (tested): equal events give an equal state; every stage holds at most one version, every version stands in at most
one stage, and what stands anywhere was registered; an event that does not fit the ones before it is refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from pipeline.errors import IntegrityError
from pipeline.ledger.events import (
    NOTHING,
    Approved,
    Archived,
    E,
    Event,
    Promoted,
    Registered,
    Requested,
    RolledBack,
    Stage,
    Tainted,
    new_id,
    now,
    signed,
)

if TYPE_CHECKING:
    from pipeline.keys import SigningKey


@dataclass(frozen=True)
class Request:
    """What somebody asked for, and who has agreed since.

    Attributes:
        asked: the event that began it; its id is the request's.
        approvals: oldest first. Whether they are enough is for the rules (`pipeline.ledger.approvals`).
    """

    asked: Requested
    approvals: tuple[Approved, ...] = ()


@dataclass(frozen=True)
class State:
    """What the events so far come to.

    Attributes:
        epoch: of the last event; 0 where there is none.
        head: the last event's SHA-256, which the next one names.
        stages: {stage: the version that stands there}; an empty stage is left out.
        moved: {stage: the event that last changed what stands there}, also where nothing does now.
        registered: {version: its registration}.
        held_before: the versions that a rollback of production goes back to, newest last.
        requests: {id: request} of those that are open: not carried out, refused or timed out, and neither the version
            asked for nor what stands in the stage has moved since.
        carried_out: {id of a promotion: the request that it carried out}.
        brought_up: {version: its last promotion to production}, wherever it stands now.
        tainted: {version that saw rows which were to be erased: an event for each erasure}.
    """

    epoch: int = 0
    head: str = NOTHING
    stages: Mapping[Stage, str] = field(default_factory=lambda: MappingProxyType({}))
    moved: Mapping[Stage, Event] = field(default_factory=lambda: MappingProxyType({}))
    registered: Mapping[str, Registered] = field(default_factory=lambda: MappingProxyType({}))
    held_before: tuple[str, ...] = ()
    requests: Mapping[str, Request] = field(default_factory=lambda: MappingProxyType({}))
    carried_out: Mapping[str, Request] = field(default_factory=lambda: MappingProxyType({}))
    brought_up: Mapping[str, Promoted] = field(default_factory=lambda: MappingProxyType({}))
    tainted: Mapping[str, tuple[Tainted, ...]] = field(default_factory=lambda: MappingProxyType({}))

    def request_for(self, version: str, stage: Stage) -> Request | None:
        """The open request that `version` be promoted to `stage`."""
        asked = ((request, request.asked) for request in self.requests.values())
        return next((request for request, by in asked if (by.version, by.stage) == (version, stage)), None)

    def stage_of(self, version: str) -> Stage | None:
        """Where `version` stands; None if nowhere."""
        return next((stage for stage, held in self.stages.items() if held == version), None)


def following(
    state: State,
    kind: type[E],
    *,
    prefix: str,
    version: str,
    stage: Stage | None,
    actor: str,
    reason: str,
    lineage_digest: str,
    verdict_digest: str,
    request: str | None = None,
    key: SigningKey | None = None,
    **own: Any,
) -> E:
    """The event that `actor` would have happen now, after those that `state` came from; arguments as in `Event`.

    Args:
        key: what signs it; None for an event that nobody signs.
        own: the fields that only this kind has.
    """
    return signed(
        kind,
        key,
        prefix=prefix,
        epoch=state.epoch + 1,
        previous=state.head,
        id=new_id(),
        actor=actor,
        time=now(),
        reason=reason,
        version=version,
        stage=stage,
        expected=None if stage is None else state.stages.get(stage),
        lineage_digest=lineage_digest,
        verdict_digest=verdict_digest,
        request=request,
        **own,
    )


def fold(events: Iterable[Event]) -> State:
    """The state after `events`, which are a whole chain from epoch 1.

    Raises:
        IntegrityError: an event does not fit what the events before it come to.
    """
    folding = _Folding()
    last: Event | None = None
    for event in events:
        folding.apply(event)
        last = event
    if last is None:
        return State()
    return State(
        epoch=last.epoch,
        head=last.digest,
        stages=MappingProxyType(folding.stages),
        moved=MappingProxyType(folding.moved),
        registered=MappingProxyType(folding.registered),
        held_before=tuple(folding.could_go_back_to()),
        requests=MappingProxyType(folding.requests),
        carried_out=MappingProxyType(folding.carried_out),
        brought_up=MappingProxyType(folding.brought_up),
        tainted=MappingProxyType(folding.tainted),
    )


def standing_after_each(events: Iterable[Event]) -> Iterator[dict[Stage, str]]:
    """What stood in each stage after each of `events`, which are a whole chain from epoch 1.

    Raises:
        IntegrityError: as `fold`.
    """
    folding = _Folding()
    for event in events:
        folding.apply(event)
        yield dict(folding.stages)


class _Folding:
    """The state while events are applied to it."""

    def __init__(self) -> None:
        self.stages: dict[Stage, str] = {}
        self.moved: dict[Stage, Event] = {}
        self.registered: dict[str, Registered] = {}
        self.highest = 0
        # Production's earlier holders; of these, what was put away by hand or is tainted is passed over by a rollback.
        self.held_before: list[str] = []
        self.put_away: set[str] = set()
        self.requests: dict[str, Request] = {}
        self.carried_out: dict[str, Request] = {}
        self.brought_up: dict[str, Promoted] = {}
        self.tainted: dict[str, tuple[Tainted, ...]] = {}

    def apply(self, event: Event) -> None:
        """Let `event` happen."""
        stood = None if event.stage is None else self.stages.get(event.stage)
        if event.expected != stood:
            raise _misfit(
                event,
                f"says that {event.expected or 'nothing'} stood in {event.stage}; it was {stood or 'nothing'}",
            )
        if isinstance(event, Registered):
            self._register(event)
            return
        if event.version not in self.registered:
            raise _misfit(event, f"is about version {event.version}, which was never registered")
        if event.request is not None:
            self._answer(event, event.request)
        if isinstance(event, Tainted):
            self._taint(event)
        elif isinstance(event, Requested):
            self.requests[event.id] = Request(event)
        if not event.moves:
            return
        assert event.stage is not None
        if event.version in self.tainted and not isinstance(event, Archived):
            raise _misfit(event, f"moves version {event.version} to {event.stage}, though it is tainted")
        displaced = isinstance(event, Archived) and event.version not in self.put_away
        if stood == event.version and not displaced:
            raise _misfit(event, f"moves version {event.version} to {event.stage}, where it stands already")
        production = self.stages.get("production")
        if isinstance(event, Archived):
            self.put_away.add(event.version)
        elif event.stage == "production":
            if isinstance(event, RolledBack):
                self._go_back(event)
            else:
                self._bring_up(event)
            self.put_away.discard(event.version)
        self._place(event, event.version, event.stage)
        if event.stage == "production" and production is not None:
            self._place(event, production, "archived")
        for request in [r.asked for r in self.requests.values()]:
            # Overtaken: it was asked for a version that stood elsewhere, or instead of another.
            if request.version == event.version or self.stages.get(request.stage) != request.expected:
                del self.requests[request.id]

    def could_go_back_to(self) -> list[str]:
        """The versions that a rollback of production goes back to, newest last."""
        held_before = [held for held in self.held_before if not self._passed_over(held)]
        while held_before and held_before[-1] == self.stages.get("production"):
            held_before.pop()
        return held_before

    def _answer(self, event: Event, request_id: str) -> None:
        """An approval is kept with its request; anything else closes it."""
        request = self.requests.get(request_id)
        if request is None:
            raise _misfit(event, f"names the request {request_id}, which is not open")
        asked = request.asked
        if (event.version, event.stage) != (asked.version, asked.stage):
            raise _misfit(
                event,
                f"names the request {request_id}, which is for version {asked.version} in {asked.stage}",
            )
        if isinstance(event, Approved):
            self.requests[request_id] = replace(request, approvals=(*request.approvals, event))
            return
        del self.requests[request_id]
        if isinstance(event, Promoted):
            self.carried_out[event.id] = request

    def _register(self, event: Registered) -> None:
        if event.version in self.registered:
            raise _misfit(event, f"registers version {event.version} a second time")
        self.registered[event.version] = event
        if int(event.version) > self.highest:
            self.highest = int(event.version)
            self._place(event, event.version, "candidate")

    def _bring_up(self, event: Event) -> None:
        assert isinstance(event, Promoted)
        if self.stages.get("staging") != event.version:
            raise _misfit(event, f"moves version {event.version} to production, though it is not in staging")
        self.brought_up[event.version] = event
        if event.expected is not None:
            self.held_before.append(event.expected)

    def _go_back(self, event: RolledBack) -> None:
        while self.held_before:
            held = self.held_before.pop()
            if self._passed_over(held) or held == event.expected:
                continue
            if held == event.version:
                return
            raise _misfit(event, f"goes back to version {event.version}; production held {held} before")
        raise _misfit(event, f"goes back to version {event.version}, which production never held")

    def _passed_over(self, held: str) -> bool:
        return held in self.put_away or held in self.tainted

    def _taint(self, event: Tainted) -> None:
        before = self.tainted.get(event.version, ())
        if any(earlier.row == event.row for earlier in before):
            raise _misfit(event, f"taints version {event.version} by the same row a second time")
        self.tainted[event.version] = (*before, event)

    def _place(self, event: Event, version: str, stage: Stage) -> None:
        for other in [other for other, held in self.stages.items() if held == version]:
            del self.stages[other]
            self.moved[other] = event
        self.stages[stage] = version
        self.moved[stage] = event


def _misfit(event: Event, problem: str) -> IntegrityError:
    return IntegrityError(
        [f"epoch {event.epoch}: {problem}"],
        heading=f"The ledger of {event.prefix} contradicts itself; no stage is moved:",
    )
