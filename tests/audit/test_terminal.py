"""What a person reads of a verification."""

from __future__ import annotations

import pytest

from pipeline.audit.faults import Fault, Gone, Kind, Link, Verification, Verified
from pipeline.show.terminal import show_impact, show_verification

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


def test_a_name_or_a_file_cannot_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    fault = Fault(Link.ARTEFACT, Kind.TAMPERED, "a\x1b[2Jb", "no such file", "\x07")
    show_verification(
        Verification((Verified("[bold]x\x1b[31m", "1", (), None, True, (fault,)),), (), 1, 1, 1).to_json()
    )
    version = {"name": "[red]y\x1b[2J", "version": "1", "stages": [], "duplicate_of": None, "tainted": False}
    show_impact(
        {"kind": "base", "asked": "b" * 8, "meant": None, "rows": None, "searched": 1, "versions": [],
         "unknown": [{**version, "why": "\x1b[5m"}], "by_hand": [version]}
    )  # fmt: skip
    said = capsys.readouterr().out
    assert "\x1b[2J" not in said
    assert not {"\x07", "\x1b"} & set(said)
    for name in ("[bold]x\ufffd[31m", "a\ufffd[2Jb", "[red]y\ufffd[2J"):
        assert name in said
