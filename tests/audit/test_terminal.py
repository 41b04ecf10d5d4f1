"""What a person reads of a verification."""

from __future__ import annotations

import pytest

from pipeline.audit.faults import Fault, Gone, Kind, Link, Verification, Verified
from pipeline.show.terminal import show_verification

FAULTS = (
    Fault(Link.ARTEFACT, Kind.TAMPERED, "[red]MLmodel", "a" * 64, "b" * 64),
    Fault(Link.RUN, Kind.MISSING, "run 7", "an active run", "deleted"),
)
VERSIONS = (
    Verified("words", "1", (), None, False, ()),
    Verified("words", "2", ("candidate", "production"), None, False, FAULTS, (Link.DATASET, Link.CODE)),
    Verified("words", "3", (), "2", False, ()),
    Verified("words", "4", (), None, True, FAULTS[:1]),
)


def shown(capsys: pytest.CaptureFixture[str], *versions: Verified, gone: tuple[Gone, ...] = ()) -> str:
    show_verification(Verification(versions, gone, 1234, 5_000_000, 1.5).to_json())
    return " ".join(word for word in capsys.readouterr().out.split() if word not in {"│", "├──", "└──"})


def test_sound_versions_are_said_to_be_and_duplicates_named(capsys: pytest.CaptureFixture[str]) -> None:
    said = shown(capsys, VERSIONS[0], VERSIONS[2])
    assert "words version 1 none sound" in said
    assert "words version 3 none a duplicate of version 2, sound" in said
    assert said.endswith("nothing is wrong: 2 versions, 1,234 files, 5,000,000 bytes hashed in 1.5 s")


def test_every_fault_is_shown_with_both_sides_and_what_its_kind_means(
    capsys: pytest.CaptureFixture[str],
) -> None:
    said = shown(capsys, *VERSIONS[:2])
    assert "words version 2 candidate, production 2 faults" in said
    assert f"tampered artefact: [red]MLmodel expected {'a' * 64} found {'b' * 64}" in said
    assert "not looked at, for want of a record to go by: dataset, code" in said
    assert "missing: it is recorded, and not there" in said
    assert "out of step:" not in said
    assert "2 faults: 2 versions" in said


def test_versions_by_hand_and_versions_that_are_gone_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    said = shown(capsys, VERSIONS[3], gone=(Gone("words", "5", "abc"),))
    assert "words version 4 none registered by hand, without lineage, 1 fault" in said
    assert "missing words version 5: run abc registered it, and the registry does not have it" in said
