"""Verify a bundle by itself: no workspace, no MLflow, no network.

    SHA256SUMS → every file; lineage record → adapter, ledger, OpenLineage events, provenance → signature

What is made from the record is made again and compared, so that nothing in the bundle can say something else.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from pipeline.audit.faults import Fault, Kind, Link, Verification, Verified, shown
from pipeline.audit.hashing import ABSENT, Hashes, compare, scan
from pipeline.digest import canonical_json
from pipeline.errors import IntegrityError
from pipeline.export import layout
from pipeline.ledger import chain
from pipeline.ledger.events import Event
from pipeline.ledger.fold import State, fold
from pipeline.ledger.registration import differences
from pipeline.register.lineage import LineageRecord
from pipeline.register.versions import ADAPTER_PATH, LINEAGE_PATH, MANIFEST_FILE

T = TypeVar("T")

_FROM_RECORD = (Link.LEDGER, Link.ADAPTER, Link.PROVENANCE, Link.OPENLINEAGE)
"""The links that are followed from the lineage record."""

_SCHEMAS = frozenset({"schemaURL", "_schemaURL"})
"""Keys of OpenLineage that say by which release of the standard an event was written, and nothing of the run."""


@dataclass(frozen=True)
class Offline:
    """What was found of a bundle.

    Attributes:
        signed_by: the public keys whose signatures over its provenance are right.
    """

    verification: Verification
    signed_by: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**self.verification.to_json(), "signed_by": list(self.signed_by)}


def verify_offline(folder: Path, public_key: str | None = None) -> Offline:
    """Verify the bundle in `folder`.

    Args:
        public_key: 64 hex characters; whose signature there must be. None: whoever signed is only named, for anybody
            can sign.

    Raises:
        OSError: the folder cannot be read.
    """
    started = time.monotonic()
    with Hashes() as hashes:
        bundle = _Bundle(folder, hashes)
        signed_by = bundle.check(public_key)
        order = list(Link)
        verified = Verified(
            name=bundle.name,
            version=bundle.version,
            stages=bundle.stages,
            duplicate_of=None,
            by_hand=False,
            faults=tuple(sorted(set(bundle.faults), key=lambda fault: (order.index(fault.link), fault))),
            unchecked=() if bundle.record is not None else _FROM_RECORD,
            tainted=bundle.tainted,
        )
        seconds = round(time.monotonic() - started, 3)
        return Offline(Verification((verified,), (), hashes.files, hashes.bytes, seconds), signed_by)


class _Bundle:
    """A bundle's files, and what was found wrong so far."""

    def __init__(self, folder: Path, hashes: Hashes) -> None:
        self.faults: list[Fault] = []
        self._hashes = hashes
        self._files, self._others = scan(folder)
        found = hashes.of(self._files.values())
        self._digests = {
            name: sha for name, path in self._files.items() if isinstance(sha := found[path], str)
        }
        self._facts = self._read(Link.BUNDLE, layout.FACTS, _object)
        self.record = self._read(Link.LINEAGE, layout.LINEAGE, LineageRecord.from_json)
        facts = self._facts or {}
        named = facts.get("prefix", folder.resolve().name) if self.record is None else self.record.prefix
        self.name = str(named)
        self._events = self._read(Link.LEDGER, layout.LEDGER, self._chain)

    @cached_property
    def version(self) -> str:
        """Its number by bundle.json; where that cannot be read, by the ledger, which has the record's digest."""
        if self._facts is not None:
            return str(self._facts.get("version", "unknown"))
        record, entered = self.record, {} if self._state is None else self._state.registered
        of_record = (n for n, event in entered.items() if record and event.lineage_digest == record.digest)
        return next(of_record, "unknown")

    @cached_property
    def _state(self) -> State | None:
        return None if self._events is None else fold(self._events)

    @property
    def stages(self) -> tuple[str, ...] | None:
        """Where the version stood, by the ledger; None without one that holds."""
        if self._state is None:
            return None
        stage = self._state.stage_of(self.version)
        return () if stage is None else (stage,)

    @property
    def tainted(self) -> bool:
        """Whether it saw a row that was to be erased, by the ledger."""
        return self._state is not None and self.version in self._state.tainted

    def check(self, public_key: str | None) -> tuple[str, ...]:
        """Everything, in the order in which it is followed; who signed."""
        self._check_sums()
        payload, signed_by = self._check_signature(public_key)
        if self.record is not None:
            self._check_record(self.record)
            self._check_ledger(self.record, payload)
        return signed_by

    def _check_sums(self) -> None:
        """Every file against SHA256SUMS, and the card, which nothing else reads, must be one of them."""
        self._read(Link.BUNDLE, layout.CARD, bytes)
        expected = self._read(Link.BUNDLE, layout.SUMS, layout.read_sums)
        if expected is not None:
            files = {name: path for name, path in self._files.items() if name != layout.SUMS}
            self.faults += compare(self._hashes, Link.BUNDLE, files, expected, others=self._others)

    def _check_record(self, record: LineageRecord) -> None:
        """The adapter's and the model's files, and that there are no others, whatever SHA256SUMS says."""
        self._same(Link.LINEAGE, f"{layout.LINEAGE}: run_key", record.made_run_key(), record.run_key)
        adapter = {name: path for name, path in self._files.items() if name in record.files}
        self.faults += compare(self._hashes, Link.ADAPTER, adapter, record.files)
        start = f"{layout.MODEL}/"
        manifest = self._read(Link.ARTEFACT, start + MANIFEST_FILE, _manifest) or {}
        model = {
            name.removeprefix(start): path for name, path in self._files.items() if name.startswith(start)
        }
        model.pop(MANIFEST_FILE, None)
        self.faults += compare(self._hashes, Link.ARTEFACT, model, manifest, below=start)
        # The manifest is only as good as who wrote it: what is in both must be the record's.
        for name, sha in {
            LINEAGE_PATH: record.digest,
            **{f"{ADAPTER_PATH}/{k}": v for k, v in record.files.items()},
        }.items():
            self._same(Link.ARTEFACT, start + name, sha, manifest.get(name, ABSENT))
        known = {*record.files, *_OWN, *(start + name for name in (*manifest, MANIFEST_FILE))}
        for name in sorted((self._files.keys() | self._others.keys()) - known):
            what = self._digests.get(name) or self._others.get(name, "a file")
            self.faults.append(Fault(Link.BUNDLE, Kind.TAMPERED, name, ABSENT, what))  # as SHA256SUMS has it

    def _check_ledger(self, record: LineageRecord, payload: bytes | None) -> None:
        """The version's registration, and what is made from it and the record."""
        if self._state is None:
            return
        if self._facts is not None:
            manifest_digest = self._digests.get(f"{layout.MODEL}/{MANIFEST_FILE}", ABSENT)
            expected = layout.facts(record, self.version, self._state, manifest_digest)
            self._agree(Link.BUNDLE, layout.FACTS, expected, self._facts)
        entered = self._state.registered.get(self.version)
        if entered is None:
            where = f"registration of version {self.version}"
            self.faults.append(Fault(Link.LEDGER, Kind.MISSING, where, "an event", "no such event"))
            return
        for what, was, is_now in differences(entered, record.digest, record.verdict_digest):
            self.faults.append(
                Fault(Link.LEDGER, Kind.OUT_OF_STEP, f"epoch {entered.epoch}: {what}", was, is_now)
            )
        self._check_made(record, payload, entered.time)

    def _check_made(self, record: LineageRecord, payload: bytes | None, registered: str) -> None:
        """The events and the statement, against those that are made of the record here and now."""
        # Here, because the standards' libraries take a second to import.
        from pipeline.export.provenance import statement
        from pipeline.openlineage.run_events import run_events

        apart = {*record.files, layout.SUMS, layout.SIGNED, layout.UNSIGNED}
        others = {name: sha for name, sha in self._digests.items() if name not in apart}
        try:
            events = run_events(record, self.version, registered)
            made = statement(record, others, version=self.version, registered=registered)
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            expected = "what events and provenance are made of"
            self.faults.append(Fault(Link.LINEAGE, Kind.TAMPERED, layout.LINEAGE, expected, repr(error)))
            return
        told = self._read(Link.OPENLINEAGE, layout.EVENTS, _objects)
        if told is not None:
            self._agree(Link.OPENLINEAGE, layout.EVENTS, _without_schemas(events), _without_schemas(told))
        said = None if payload is None else self._parsed(Link.PROVENANCE, "statement", payload, _object)
        if said is not None:
            self._agree(Link.PROVENANCE, "statement", made, said)

    def _check_signature(self, public_key: str | None) -> tuple[bytes | None, tuple[str, ...]]:
        """The statement's bytes, and whose signatures over them are right."""
        from pipeline.export.provenance import Attestation, opened

        is_bare = layout.UNSIGNED in self._files and layout.SIGNED not in self._files
        if is_bare:
            found = self._read(Link.PROVENANCE, layout.UNSIGNED, lambda content: Attestation(content, {}))
        else:
            found = self._read(Link.PROVENANCE, layout.SIGNED, opened)
            if layout.UNSIGNED in self._files:
                where, what = layout.UNSIGNED, "a second statement"
                self.faults.append(Fault(Link.PROVENANCE, Kind.TAMPERED, where, ABSENT, what))
        if found is None:
            return None, ()
        for signer in (signer for signer, is_right in found.signers.items() if not is_right):
            where, expected = layout.SIGNED, f"a signature by {signer}"
            self.faults.append(Fault(Link.PROVENANCE, Kind.TAMPERED, where, expected, "another signature"))
        signed_by = tuple(sorted(signer for signer, is_right in found.signers.items() if is_right))
        if public_key is not None and public_key not in signed_by:
            where, expected = "signature", f"signed by {public_key}"
            actual = f"signed by {', '.join(signed_by)}" if signed_by else "not signed"
            self.faults.append(Fault(Link.PROVENANCE, Kind.MISSING, where, expected, actual))
        return found.payload, signed_by

    def _chain(self, content: bytes) -> tuple[Event, ...]:
        """The ledger's events, which follow each other and contradict nothing."""
        *lines, rest = content.split(b"\n")
        if rest:
            raise IntegrityError([f"line {len(lines) + 1}: does not end"])
        events = chain.check(self.name, dict(enumerate(lines, 1)))
        fold(events)
        return events

    def _read(self, link: Link, name: str, parse: Callable[[bytes], T]) -> T | None:
        """What `parse` makes of a file; None where it is not there or not such a file, which is then noted."""
        if name not in self._files:
            kind = Kind.TAMPERED if name in self._others else Kind.MISSING
            self.faults.append(Fault(link, kind, name, "a file", self._others.get(name, ABSENT)))
            return None
        if name not in self._digests:  # it cannot be read, which comparing it has said
            return None
        return self._parsed(link, name, self._files[name].read_bytes(), parse)

    def _parsed(self, link: Link, name: str, content: bytes, parse: Callable[[bytes], T]) -> T | None:
        try:
            return parse(content)
        except IntegrityError as error:
            said = "; ".join(error.problems)
            self.faults.append(Fault(link, Kind.TAMPERED, name, "a file of this format", said))
            return None

    def _same(self, link: Link, where: str, expected: Any, actual: Any) -> None:
        # By their JSON, in which 1, 1.0 and true are not the same.
        if canonical_json(expected) != canonical_json(actual):
            self.faults.append(Fault(link, Kind.OUT_OF_STEP, where, shown(expected), shown(actual)))

    def _agree(self, link: Link, where: str, expected: Any, actual: Any) -> None:
        """Note where two values differ, as deep inside as they can be compared."""
        if isinstance(expected, Mapping) and isinstance(actual, Mapping):
            for key in sorted(expected.keys() | actual.keys()):
                if key in expected and key in actual:
                    self._agree(link, f"{where}: {key}", expected[key], actual[key])
                else:
                    sides = [shown(each[key]) if key in each else "nothing" for each in (expected, actual)]
                    self.faults.append(Fault(link, Kind.OUT_OF_STEP, f"{where}: {key}", *sides))
        elif isinstance(expected, list) and isinstance(actual, list) and len(expected) == len(actual):
            for number, pair in enumerate(zip(expected, actual, strict=True)):
                self._agree(link, f"{where}: {number}", *pair)
        else:
            self._same(link, where, expected, actual)


_OWN = (
    layout.CARD, layout.FACTS, layout.LINEAGE, layout.LEDGER, layout.EVENTS, layout.SUMS, layout.SIGNED, layout.UNSIGNED,
)  # fmt: skip


def _object(content: bytes) -> dict[str, Any]:
    """A JSON object from its canonical bytes, which no two programs read differently.

    Raises:
        IntegrityError: they are something else.
    """
    try:
        value = json.loads(content)
        if isinstance(value, dict) and canonical_json(value) == content:
            return value
    except (ValueError, RecursionError) as error:
        raise IntegrityError([f"not JSON: {error}"]) from error
    raise IntegrityError(["not the canonical JSON of an object"])


def _manifest(content: bytes) -> dict[str, str]:
    """As `_object`, of a manifest."""
    value = _object(content)
    if not all(isinstance(sha, str) for sha in value.values()):
        raise IntegrityError(["not {file: SHA-256}"])
    return value


def _objects(content: bytes) -> list[dict[str, Any]]:
    """As `_object`, one a line."""
    lines = content.split(b"\n")
    if lines.pop():
        raise IntegrityError([f"line {len(lines) + 1}: does not end"])
    return [_object(line) for line in lines]


def _without_schemas(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_schemas(inner) for key, inner in value.items() if key not in _SCHEMAS}
    if isinstance(value, list):
        return [_without_schemas(inner) for inner in value]
    return value
