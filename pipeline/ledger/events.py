"""What has happened to the versions of a prefix, as values: registered, promoted, rolled back, archived, tainted; and
what was asked and said about a promotion: requested, approved, refused, timed out.

Laws (tested): `from_json(event.to_json()) == event`; equal events have equal bytes; two events are equal only if
they are one and the same, since each has an id of its own; any other bytes give another event or an IntegrityError.

An event may be signed (Ed25519, `pipeline.keys`): over all of it but the signature, its prefix, epoch, `previous` and id
among that, so that it holds at its own place alone. No event exists whose signature is not that of its key.
"""

from __future__ import annotations

import hashlib
import json
import re
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar

from pipeline.digest import canonical_json
from pipeline.errors import IntegrityError

if TYPE_CHECKING:
    from pipeline.keys import SigningKey

FORMAT_VERSION = 1
"""Of an event's JSON. A reader refuses what it does not know."""

Stage = Literal["candidate", "staging", "production", "archived"]
STAGES: tuple[Stage, ...] = ("candidate", "staging", "production", "archived")
"""Where a version can stand; each is held by at most one version, and each version stands in at most one."""

NOTHING = "0" * 64
"""`previous` of the first event."""

READ_AGAIN = 32_768
"""Events that are remembered by their bytes."""

REASON_LIMIT, ACTOR_LIMIT = 100_000, 500
"""Characters."""

SIGNED_AS = "prefixline event v1"
"""The context of an event's signature."""

_DIGEST, _ID, _VERSION = (
    re.compile("[0-9a-f]{64}"),
    re.compile("[0-9a-f]{32}"),
    re.compile("[1-9][0-9]{0,17}"),
)
_SIGNATURE = re.compile("[0-9a-f]{128}")

E = TypeVar("E", bound="Event")


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
        version: the version that moves, or would.
        stage: where it moves to, or would; None for an event that is about no stage.
        expected: the version that stood there before; None if there was none.
        lineage_digest: SHA-256 of the version's lineage record.
        verdict_digest: SHA-256 of the gate's verdict in that record, as canonical JSON.
        request: the id of the request that it answers or carries out; None where there is none.
        key: the public key of whoever signed it, 64 hex characters; None where nobody did.
        signature: over `signed_content`, 128 hex characters; None where nobody signed.
        format_version: of this event's JSON.
    """

    kind: ClassVar[str]
    stages: ClassVar[tuple[Stage | None, ...]]
    moves: ClassVar[bool] = True
    """Whether a version moves by it."""
    of_request: ClassVar[Literal["never", "maybe", "always"]] = "never"
    """Whether it names a request."""
    must_be_signed: ClassVar[bool] = False

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
    request: str | None = None
    key: str | None = None
    signature: str | None = None
    format_version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        if problems := list(self._problems()) or list(self._signature_problems()):
            raise IntegrityError(
                problems, heading=f"Epoch {self.epoch} of {self.prefix!r} is not a whole event:"
            )

    def to_json(self) -> bytes:
        """Canonical JSON: the bytes whose SHA-256 is `digest`."""
        return canonical_json(self._values())

    def signed_content(self) -> bytes:
        """What is signed: its canonical JSON with `signature` null."""
        return canonical_json({**self._values(), "signature": None})

    def _values(self) -> dict[str, Any]:
        return {"event": self.kind, **{name: getattr(self, name) for name in _NAMES[type(self)]}}

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
            "requested": f"was requested for {self.stage}",
            "approved": f"was approved for {self.stage}",
            "refused": f"was refused for {self.stage}",
            "timed out": f"was not approved for {self.stage} in time",
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
        named = isinstance(self.request, str) and _ID.fullmatch(self.request) is not None
        if self.of_request == ("always" if self.request is None else "never") or not (
            named or self.request is None
        ):
            allowed = {"never": "null", "maybe": "a request's id or null", "always": "a request's id"}
            yield f"request: got {self.request!r}, expected {allowed[self.of_request]}"
        if self.expected is not None and not (
            isinstance(self.expected, str) and _VERSION.fullmatch(self.expected)
        ):
            yield f"expected: got {self.expected!r}, expected a version's number or null"
        if self.stage not in self.stages:
            yield f"stage: got {self.stage!r}, expected {' or '.join(map(str, self.stages))}"
        if (self.previous == NOTHING) is not (self.epoch == 1):
            yield f"previous: got {self.previous!r}, expected {NOTHING} for epoch 1, and for no other"
        for name, limit in (("prefix", ACTOR_LIMIT), ("actor", ACTOR_LIMIT), ("reason", REASON_LIMIT)):
            if (problem := text_problem(getattr(self, name), limit)) is not None:
                yield f"{name}: {problem}"
        if not _is_time(self.time):
            yield f"time: got {self.time!r}, expected ISO 8601 in UTC, as 2024-02-29T12:00:00.000+00:00"

    def _signature_problems(self) -> Iterator[str]:
        """Looked for where there is no other problem, since only a whole event has bytes to sign."""
        if self.key is None and self.signature is None:
            if self.must_be_signed:
                yield f"key: got None, expected a signature; an event {self.kind!r} has one"
            return
        whole = True
        for name, pattern in (("key", _DIGEST), ("signature", _SIGNATURE)):
            value = getattr(self, name)
            if not (isinstance(value, str) and pattern.fullmatch(value)):
                yield f"{name}: got {value!r}, expected {pattern.pattern}, or null for both key and signature"
                whole = False
        if whole:
            from pipeline.keys import is_signed

            assert self.key is not None
            assert self.signature is not None
            if not is_signed(self.key, self.signature, SIGNED_AS, self.signed_content()):
                yield f"signature: is not that of the key {self.key} over this event"


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
    of_request = "maybe"


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
class Requested(Event):
    """Somebody asks that a version be promoted, which needs approvals. Its own id is that of the request."""

    kind = "requested"
    stages = ("staging", "production")
    moves = False

    stage: Stage


@dataclass(frozen=True, kw_only=True, slots=True)
class Approved(Event):
    """Somebody else agrees to a request, by their signature."""

    kind = "approved"
    stages = ("staging", "production")
    moves = False
    of_request = "always"
    must_be_signed = True


@dataclass(frozen=True, kw_only=True, slots=True)
class Refused(Event):
    """A rule or an approver said no to a promotion, or somebody else was first. It closes the request that it names."""

    kind = "refused"
    stages = ("staging", "production", "archived")
    moves = False
    of_request = "maybe"


@dataclass(frozen=True, kw_only=True, slots=True)
class TimedOut(Event):
    """A request was not approved within the time it was given, and is closed."""

    kind = "timed out"
    stages = ("staging", "production")
    moves = False
    of_request = "always"


@dataclass(frozen=True, kw_only=True, slots=True)
class Tainted(Event):
    """A version saw a row that was to be erased: it never moves up again. It stays where it stands.

    Attributes:
        row: SHA-256 of what was to be erased (`pipeline.audit.erasure.row_digest`), never the row itself.
    """

    kind = "tainted"
    stages = (None,)
    moves = False

    row: str

    def _problems(self) -> Iterator[str]:
        yield from Event._problems(self)  # not super(), which slots break
        if not (isinstance(self.row, str) and _DIGEST.fullmatch(self.row)):
            yield f"row: got {self.row!r}, expected {_DIGEST.pattern}"


_KINDS: Mapping[str, type[Event]] = {
    kind.kind: kind
    for kind in (Registered, Promoted, RolledBack, Archived, Requested, Approved, Refused, TimedOut, Tainted)
}
_EVERY: list[type[Event]] = [Event, *_KINDS.values()]
_NAMES: Mapping[Any, tuple[str, ...]] = {kind: tuple(field.name for field in fields(kind)) for kind in _EVERY}
"""Of the fields: `dataclasses.fields` makes them anew each time, which is a tenth of reading a long ledger."""

_PATTERNS = {
    "previous": _DIGEST,
    "id": _ID,
    "version": _VERSION,
    "lineage_digest": _DIGEST,
    "verdict_digest": _DIGEST,
}


@lru_cache(maxsize=READ_AGAIN)
def from_json(content: bytes) -> Event:
    """The event whose `to_json` is `content`. Equal bytes are checked once: a command reads its ledger several times.

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
    keys = {"event", *_NAMES[kind or Event]}
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


def signed(kind: type[E], key: SigningKey | None, **values: Any) -> E:
    """The event with these `values`, signed with `key`; without a signature where that is None.

    Made in one step, since a kind that must be signed does not exist without.
    """
    whole = {"request": None, "key": None, "signature": None, "format_version": FORMAT_VERSION, **values}
    if key is not None:
        whole["key"] = key.public
        whole["signature"] = key.sign(SIGNED_AS, canonical_json({"event": kind.kind, **whole}))
    return kind(**whole)


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
