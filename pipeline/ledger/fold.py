"""Where every version stands, from the events alone. Pure, and in time proportional to their number.

Laws (tested): equal events give an equal state; every stage holds at most one version, every version stands in at most
one stage, and what stands anywhere was registered; an event that does not fit the ones before it is refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TypeVar

from pipeline.errors import IntegrityError
from pipeline.ledger.events import NOTHING, Archived, Event, Registered, RolledBack, Stage, new_id, now

E = TypeVar("E", bound=Event)


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
    """

    epoch: int = 0
    head: str = NOTHING
    stages: Mapping[Stage, str] = field(default_factory=lambda: MappingProxyType({}))
    moved: Mapping[Stage, Event] = field(default_factory=lambda: MappingProxyType({}))
    registered: Mapping[str, Registered] = field(default_factory=lambda: MappingProxyType({}))
    held_before: tuple[str, ...] = ()

    def stage_of(self, version: str) -> Stage | None:
        """Where `version` stands; None if nowhere."""
        return next((stage for stage, held in self.stages.items() if held == version), None)


def following(
    state: State,
    kind: type[E],
    *,
    prefix: str,
    version: str,
    stage: Stage,
    actor: str,
    reason: str,
    lineage_digest: str,
    verdict_digest: str,
) -> E:
    """The event that `actor` would have happen now, after those that `state` came from; arguments as in `Event`."""
    return kind(
        prefix=prefix,
        epoch=state.epoch + 1,
        previous=state.head,
        id=new_id(),
        actor=actor,
        time=now(),
        reason=reason,
        version=version,
        stage=stage,
        expected=state.stages.get(stage),
        lineage_digest=lineage_digest,
        verdict_digest=verdict_digest,
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
        # Production's earlier holders; of these, what was put away by hand is passed over by a rollback.
        self.held_before: list[str] = []
        self.put_away: set[str] = set()

    def apply(self, event: Event) -> None:
        """Let `event` happen."""
        stood = self.stages.get(event.stage)
        if event.expected != stood:
            raise _misfit(
                event,
                f"says that {event.expected or 'nothing'} stood in {event.stage}; it was {stood or 'nothing'}",
            )
        if isinstance(event, Registered):
            self._register(event)
            return
        if event.version not in self.registered:
            raise _misfit(event, f"moves version {event.version}, which was never registered")
        if stood == event.version:
            raise _misfit(event, f"moves version {event.version} to {event.stage}, where it stands already")
        production = self.stages.get("production")
        if isinstance(event, Archived):
            self.put_away.add(event.version)
        elif event.stage == "production":
            if isinstance(event, RolledBack):
                self._go_back(event)
            elif production is not None:
                self.held_before.append(production)
            self.put_away.discard(event.version)
        if isinstance(event, Archived) or event.stage == "staging":
            self._place(event, event.version, event.stage)
            return
        self._place(event, event.version, "production")
        if production is not None:
            self._place(event, production, "archived")

    def could_go_back_to(self) -> list[str]:
        """The versions that a rollback of production goes back to, newest last."""
        held_before = [held for held in self.held_before if held not in self.put_away]
        while held_before and held_before[-1] == self.stages.get("production"):
            held_before.pop()
        return held_before

    def _register(self, event: Registered) -> None:
        if event.version in self.registered:
            raise _misfit(event, f"registers version {event.version} a second time")
        self.registered[event.version] = event
        if int(event.version) > self.highest:
            self.highest = int(event.version)
            self._place(event, event.version, "candidate")

    def _go_back(self, event: RolledBack) -> None:
        while self.held_before:
            held = self.held_before.pop()
            if held in self.put_away or held == event.expected:
                continue
            if held == event.version:
                return
            raise _misfit(event, f"goes back to version {event.version}; production held {held} before")
        raise _misfit(event, f"goes back to version {event.version}, which production never held")

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
