"""What an audit finds: faults, each with its kind, and what was found of each version."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from pipeline.digest import canonical_json, digest


class Kind(StrEnum):
    """What is wrong with a thing, since each asks for something else to be done."""

    TAMPERED = "tampered"
    """It is there, and its bytes are not those recorded."""
    MISSING = "missing"
    """It is recorded, and not there."""
    UNREACHABLE = "unreachable"
    """It could not be looked at."""
    OUT_OF_STEP = "out of step"
    """Two records that are whole contradict each other."""
    UNAUTHORISED = "unauthorised"
    """It stands in a stage by an event that the rules, as they are now, do not allow."""


class Link(StrEnum):
    """What was followed from the stage down to the code; then what an exported bundle has besides."""

    ALIAS = "alias"
    LEDGER = "ledger"
    VERSION = "version"
    RUN = "run"
    ARTEFACT = "artefact"
    LINEAGE = "lineage"
    ADAPTER = "adapter"
    DATASET = "dataset"
    BASE_MODEL = "base model"
    EXPERIMENT = "experiment"
    CODE = "code"
    WARM_START = "warm start"
    BUNDLE = "bundle"
    PROVENANCE = "provenance"
    OPENLINEAGE = "OpenLineage"


@dataclass(frozen=True, order=True)
class Fault:
    """One difference.

    Attributes:
        where: the file, tag or commit.
        expected, actual: by the record, and as found.
    """

    link: Link
    kind: Kind
    where: str
    expected: str
    actual: str


@dataclass(frozen=True)
class Verified:
    """What was found of one version.

    Attributes:
        stages: where it stands, by the ledger; None where there is no ledger to go by.
        duplicate_of: the version with the same run key that counts instead; None for one that counts.
        by_hand: prefixline did not register it, so there is nothing to verify it by.
        faults: everything found wrong; empty where all is well.
        unchecked: the links that could not be followed, since what names them is not to be trusted.
        tainted: it saw a row that was to be erased, by the ledger. That is no fault: nothing was changed.
    """

    name: str
    version: str
    stages: tuple[str, ...] | None
    duplicate_of: str | None
    by_hand: bool
    faults: tuple[Fault, ...]
    unchecked: tuple[Link, ...] = ()
    tainted: bool = False


@dataclass(frozen=True)
class Gone:
    """A version that was registered, and that the registry does not have.

    Attributes:
        run_id: the run that says so; None where only the ledger does, by which it stands in a stage.
    """

    name: str
    version: str
    run_id: str | None


@dataclass(frozen=True)
class Verification:
    """What was found of all versions asked for.

    Attributes:
        files, bytes: how many were hashed; a file that many versions share counts once.
    """

    versions: tuple[Verified, ...]
    gone: tuple[Gone, ...]
    files: int
    bytes: int
    seconds: float

    @property
    def sound(self) -> bool:
        """Whether nothing is wrong."""
        return not self.gone and not any(version.faults for version in self.versions)

    def faults(self) -> Iterator[tuple[Verified, Fault]]:
        """Every fault, with the version it was found at."""
        for version in self.versions:
            for fault in version.faults:
                yield version, fault

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"sound": self.sound, **asdict(self)}


def shown(value: Any) -> str:
    """A value as a fault shows it: what is no text as JSON, what is long by its digest."""
    text = value if isinstance(value, str) else canonical_json(value).decode()
    return text if len(text) <= 200 else f"SHA-256 {digest(value)} of {len(text):,} characters"
