"""What has happened to the versions of a prefix, as values: registered, promoted, rolled back, archived, tainted.

Laws (tested): `from_json(event.to_json()) == event`; equal events have equal bytes; two events are equal only if
they are one and the same, since each has an id of its own; any other bytes give another event or an IntegrityError.
"""

from __future__ import annotations

import hashlib
import json
import re
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar, Literal

from pipeline.digest import canonical_json
from pipeline.errors import IntegrityError

FORMAT_VERSION = 1
"""Of an event's JSON. A reader refuses what it does not know."""

Stage = Literal["candidate", "staging", "production", "archived"]
STAGES: tuple[Stage, ...] = ("candidate", "staging", "production", "archived")
"""Where a version can stand; each is held by at most one version, and each version stands in at most one."""

NOTHING = "0" * 64
"""`previous` of the first event."""

REASON_LIMIT, ACTOR_LIMIT = 100_000, 500
"""Characters."""

_DIGEST, _ID, _VERSION = re.compile("[0-9a-f]{64}"), re.compile("[0-9a-f]{32}"), re.compile("[1-9][0-9]*")


@dataclass(frozen=True, kw_only=True, slots=True)
class Event:
    """One change, once and for ever.

    Attributes:
        prefix: whose version it is about. An event means nothing in another prefix's ledger.
        epoch: its place in the order, from 1 without a gap.
        previous: SHA-256 of the JSON of the event before it; `NOTHING` for the first.
        id: 32 hex characters, drawn for this event, so that two people who do the same do not do it as one.
        actor: who.
        time: when, by the actor's clock, ISO 8601 in UTC with milliseconds. For people; the order is by epoch.
        reason: why, in the actor's words.
        version: the version that moves.
        stage: where it moves to; None for an event that moves nothing.
        expected: the version that stood there before; None if there was none.
        lineage_digest: SHA-256 of the version's lineage record.
        verdict_digest: SHA-256 of the gate's verdict in that record, as canonical JSON.
        format_version: of this event's JSON.
    """

    kind: ClassVar[str]
    stages: ClassVar[tuple[Stage | None, ...]]

    prefix: str
    epoch: int
    previous: str
    id: str
    actor: str
    time: str
    reason: str
    version: str
    stage: Stage | None
    expected: str | None
    lineage_digest: str
    verdict_digest: str
    format_version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        if problems := list(self._problems()):
            raise IntegrityError(
                problems, heading=f"Epoch {self.epoch} of {self.prefix!r} is not a whole event:"
            )

    def to_json(self) -> bytes:
        """Canonical JSON: the bytes whose SHA-256 is `digest`."""
        own = {field.name: getattr(self, field.name) for field in fields(self)}
        return canonical_json({"event": self.kind, **own})

    @property
    def digest(self) -> str:
        """SHA-256 of `to_json()`, 64 hex characters: the `previous` of the event after it."""
        return hashlib.sha256(self.to_json()).hexdigest()

    @property
    def sentence(self) -> str:
        """What happened, in words."""
        what = {
            "registered": "was registered",
            "promoted": f"was promoted to {self.stage}",
            "rolled back": f"came back to {self.stage}, instead of version {self.expected}"
            if self.expected
            else f"came back to {self.stage}",
            "archived": "was archived",
            "tainted": "was tainted: it saw a row that was to be erased",
        }
        return f"version {self.version} {what[self.kind]}"

    def _problems(self) -> Iterator[str]:
        if self.format_version != FORMAT_VERSION or type(self.format_version) is not int:
            yield f"format_version: got {self.format_version!r}, expected {FORMAT_VERSION}"
        if type(self.epoch) is not int or self.epoch < 1:
            yield f"epoch: got {self.epoch!r}, expected a number from 1"
        for name, pattern in _PATTERNS.items():
            value = getattr(self, name)
            if not (isinstance(value, str) and pattern.fullmatch(value)):
                yield f"{name}: got {value!r}, expected {pattern.pattern}"
        if self.expected is not None and not (
            isinstance(self.expected, str) and _VERSION.fullmatch(self.expected)
        ):
            yield f"expected: got {self.expected!r}, expected a version's number or null"
        if self.stage not in self.stages:
            yield f"stage: got {self.stage!r}, expected {' or '.join(map(str, self.stages))}"
        if (self.previous == NOTHING) is not (self.epoch == 1):
            yield f"previous: got {self.previous!r}, expected {NOTHING} for epoch 1, and for no other"
        if not isinstance(self.prefix, str) or not self.prefix:
            yield f"prefix: got {self.prefix!r}, expected a prefix's name"
        for name, limit in (("actor", ACTOR_LIMIT), ("reason", REASON_LIMIT)):
            if (problem := text_problem(getattr(self, name), limit)) is not None:
                yield f"{name}: {problem}"
        if not _is_time(self.time):
            yield f"time: got {self.time!r}, expected ISO 8601 in UTC, as 2024-02-29T12:00:00.000+00:00"


@dataclass(frozen=True, kw_only=True, slots=True)
class Registered(Event):
    """A version that passed the gate came into being. It is the candidate if its number is the highest so far."""

    kind = "registered"
    stages = ("candidate",)


@dataclass(frozen=True, kw_only=True, slots=True)
class Promoted(Event):
    """A version went up a stage. What production held goes to archived."""

    kind = "promoted"
    stages = ("staging", "production")


@dataclass(frozen=True, kw_only=True, slots=True)
class RolledBack(Event):
    """Production went back to a version it held before. What it held until then goes to archived."""

    kind = "rolled back"
    stages = ("production",)


@dataclass(frozen=True, kw_only=True, slots=True)
class Archived(Event):
    """A version was put away, from whichever stage it stood in; no rollback goes back to it."""

    kind = "archived"
    stages = ("archived",)


@dataclass(frozen=True, kw_only=True, slots=True)
class Tainted(Event):
    """A version saw a row that was to be erased: it never moves up again. It stays where it stands.

    Attributes:
        row: SHA-256 of what was to be erased (`pipeline.audit.erasure.row_digest`), never the row itself.
    """

    kind = "tainted"
    stages = (None,)

    row: str

    def _problems(self) -> Iterator[str]:
        yield from Event._problems(self)  # not super(), which slots break
        if not (isinstance(self.row, str) and _DIGEST.fullmatch(self.row)):
            yield f"row: got {self.row!r}, expected {_DIGEST.pattern}"


_KINDS: Mapping[str, type[Event]] = {
    kind.kind: kind for kind in (Registered, Promoted, RolledBack, Archived, Tainted)
}
_PATTERNS = {
    "previous": _DIGEST,
    "id": _ID,
    "version": _VERSION,
    "lineage_digest": _DIGEST,
    "verdict_digest": _DIGEST,
}


def from_json(content: bytes) -> Event:
    """The event whose `to_json` is `content`.

    Raises:
        IntegrityError: `content` is not the canonical JSON of a whole event of a known kind and format version.
    """
    try:
        raw = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise _not_an_event(f"not JSON: {error}") from error
    if not isinstance(raw, dict):
        raise _not_an_event("not a JSON object")
    if raw.get("format_version") != FORMAT_VERSION:
        raise _not_an_event(
            f"format_version: got {raw.get('format_version')!r}, expected {FORMAT_VERSION}; "
            "a newer prefixline may have written it"
        )
    name = raw.get("event")
    kind = _KINDS.get(name) if isinstance(name, str) else None
    keys = {"event", *(field.name for field in fields(kind or Event))}
    if raw.keys() != keys:
        missing, unknown = sorted(keys - raw.keys()), sorted(raw.keys() - keys)
        raise _not_an_event(f"missing keys: {missing}, unknown keys: {unknown}")
    del raw["event"]
    if kind is None:
        raise _not_an_event(f"event: got {name!r}, expected one of {sorted(_KINDS)}")
    event = kind(**raw)
    if event.to_json() != content:
        raise _not_an_event("not in canonical form: its keys, spaces or numbers are written in another way")
    return event


def new_id() -> str:
    """An id for a new event."""
    return uuid.uuid4().hex


def now() -> str:
    """This moment as an event's `time`."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def text_problem(text: Any, limit: int) -> str | None:
    """What is wrong with an actor or a reason; None if nothing is."""
    if not isinstance(text, str) or not text.strip():
        return f"got {text!r}, expected some words"
    if len(text) > limit:
        return f"got {len(text):,} characters, expected at most {limit:,}"
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return f"character {error.start + 1} is not Unicode text; is the terminal's encoding UTF-8?"
    return None


def _is_time(text: Any) -> bool:
    try:
        read = datetime.fromisoformat(text)
    except (TypeError, ValueError):
        return False
    return read.utcoffset() == timedelta(0) and read.isoformat(timespec="milliseconds") == text


def _not_an_event(problem: str) -> IntegrityError:
    return IntegrityError([problem], heading="This is no event of a ledger:")
