"""A signed event holds at its own place, for its own content and key, and nowhere else."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.actor import key_file, signing_key
from pipeline.digest import canonical_json
from pipeline.errors import IntegrityError, KeyFileError
from pipeline.keys import is_signed, make_key
from pipeline.ledger import chain
from pipeline.ledger.events import Event, Promoted, from_json
from tests.ledger import world

ALICE, BOB = world.key(1), world.key(2)


def signed_chain() -> list[Event]:
    """Version 1 in staging by a signed event."""
    made = world.chain("register 1")
    made.append(world.follow(made, Promoted, "1", sign=ALICE))
    return made


def test_a_signature_is_ed25519_over_the_events_json_with_the_signature_null():
    event = signed_chain()[1]
    raw = json.loads(event.to_json())
    content = json.dumps({**raw, "signature": None}, sort_keys=True, separators=(",", ":")).encode()
    assert event.key == ALICE.public
    assert event.signature == ALICE.sign("prefixline event v1", content)
    assert is_signed(event.key, event.signature, "prefixline event v1", content)
    assert from_json(event.to_json()) == event


@pytest.mark.parametrize(
    "change",
    [
        {"prefix": "other"},
        {"epoch": 3},
        {"previous": "f" * 64},
        {"id": "f" * 32},
        {"version": "2"},
        {"stage": "production"},
        {"expected": "7"},
        {"reason": "a lie"},
        {"actor": "somebody else"},
        {"time": "2024-02-28T12:00:00.000+00:00"},
        {"request": "f" * 32},
        {"key": BOB.public},
    ],
)
def test_an_event_that_is_changed_after_it_was_signed_is_refused(change: dict[str, Any]):
    raw = json.loads(signed_chain()[1].to_json())
    with pytest.raises(IntegrityError, match="signature: is not that of the key"):
        from_json(canonical_json({**raw, **change}))
    with pytest.raises(IntegrityError, match="signature: is not that of the key"):
        replace(signed_chain()[1], **change)


def test_a_signature_over_another_event_of_the_same_key_is_refused():
    made = signed_chain()
    other = world.follow(made, Promoted, "1", stage="production", sign=ALICE)
    with pytest.raises(IntegrityError, match="signature: is not that of the key"):
        replace(made[1], signature=other.signature)


def test_an_old_signed_event_that_is_written_again_does_not_fit_and_cannot_be_made_to():
    made = signed_chain()
    made.append(world.follow(made, world.Archived, "1"))
    old = made[1]
    with pytest.raises(IntegrityError, match="epoch 4: holds an event of epoch 2"):
        chain.check("reviews", {**world.contents(made), 4: old.to_json()})
    moved = {**json.loads(old.to_json()), "epoch": 4, "previous": made[-1].digest}
    with pytest.raises(IntegrityError, match="epoch 4: signature: is not that of the key"):
        chain.check("reviews", {**world.contents(made), 4: canonical_json(moved)})


def test_the_key_is_the_one_that_was_named_or_the_usual_one_where_there_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("PREFIXLINE_KEY", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    assert key_file() == tmp_path / "config/prefixline/key.pem"
    assert signing_key(None) is None
    with pytest.raises(KeyFileError, match="No such file"):
        signing_key(tmp_path / "mine.pem")
    usual, mine, named = (make_key(path) for path in (key_file(), tmp_path / "mine.pem", tmp_path / "n.pem"))
    assert signing_key(None).public == usual.public  # type: ignore[union-attr]
    monkeypatch.setenv("PREFIXLINE_KEY", str(tmp_path / "n.pem"))
    assert signing_key(None).public == named.public  # type: ignore[union-attr]
    assert signing_key(tmp_path / "mine.pem").public == mine.public  # type: ignore[union-attr]
    monkeypatch.setenv("PREFIXLINE_KEY", str(tmp_path / "absent.pem"))
    with pytest.raises(KeyFileError, match="No such file"):
        signing_key(None)
    monkeypatch.delenv("PREFIXLINE_KEY")
    monkeypatch.delenv("XDG_CONFIG_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert key_file() == tmp_path / ".config/prefixline/key.pem"
