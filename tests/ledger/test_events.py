"""Events are values with one spelling; everything else is refused."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.digest import canonical_json, digest
from pipeline.errors import IntegrityError
from pipeline.ledger.events import NOTHING, REASON_LIMIT, Event, from_json, now, text_problem
from tests.ledger import world


@given(world.events())
def test_an_event_read_back_is_the_same_event(event: Event):
    again = from_json(event.to_json())
    assert again == event
    assert type(again) is type(event)
    assert again.digest == event.digest == digest(json.loads(event.to_json()))


@given(world.events(), world.events())
def test_different_events_have_different_bytes(one: Event, other: Event):
    assert (one == other) is (one.to_json() == other.to_json())


@given(world.events(), st.data())
def test_a_changed_byte_gives_another_event_or_is_refused(event: Event, data: st.DataObject):
    content = bytearray(event.to_json())
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] ^= data.draw(st.integers(1, 255))
    with suppress(IntegrityError):
        assert from_json(bytes(content)) != event


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"format_version": 2}, "format_version: got 2, expected 1"),
        ({"format_version": True}, "format_version: got True"),
        ({"event": "demoted"}, "event: got 'demoted'"),
        ({"event": ["promoted"]}, "event: got"),
        ({"surprise": 1}, r"unknown keys: \['surprise'\]"),
        ({"epoch": 0}, "epoch: got 0"),
        ({"epoch": 2}, "previous: got"),
        ({"epoch": 1.0}, "epoch: got 1.0"),
        ({"previous": "A" * 64}, "previous: got"),
        ({"id": "1"}, "id: got '1'"),
        ({"version": "01"}, "version: got '01'"),
        ({"version": 1}, "version: got 1"),
        ({"expected": "none"}, "expected: got 'none'"),
        ({"stage": "production"}, "stage: got 'production', expected candidate"),
        ({"row": "c" * 64}, r"unknown keys: \['row'\]"),
        ({"prefix": ""}, "prefix: got ''"),
        ({"actor": " "}, "actor: got ' ', expected some words"),
        ({"reason": "x" * (REASON_LIMIT + 1)}, "reason: got 100,001 characters, expected at most 100,000"),
        ({"time": "2024-02-29T12:00:00.000"}, "time: got"),
        ({"time": "2024-02-29T12:00:00.000+01:00"}, "time: got"),
        ({"time": "2024-02-30T12:00:00.000+00:00"}, "time: got"),
        ({"time": 7}, "time: got 7"),
        ({"lineage_digest": None}, "lineage_digest: got None"),
        ({"request": "f" * 32}, "request: got 'f+', expected null"),
        ({"event": "approved", "stage": "staging"}, "request: got None, expected a request's id"),
        (
            {"event": "refused", "stage": "staging", "request": "1"},
            "request: got '1', expected a request's id or null",
        ),
        ({"event": "refused", "stage": "staging", "request": 1}, "request: got 1, expected"),
        (
            {"event": "approved", "stage": "staging", "request": "f" * 32},
            "key: got None, expected a signature; an event 'approved' has one",
        ),
        ({"key": "a" * 64}, "signature: got None, expected .*, or null for both key and signature"),
        ({"signature": "a" * 128}, "key: got None, expected .*, or null for both"),
        ({"key": "a" * 64, "signature": "A" * 128}, "signature: got 'A+'"),
        ({"key": "a" * 64, "signature": "a" * 128}, "signature: is not that of the key a+ over this event"),
    ],
)
def test_what_is_not_a_whole_event_is_refused_and_said(change: dict[str, Any], problem: str):
    raw = json.loads(world.chain("register 1")[0].to_json())
    with pytest.raises(IntegrityError, match=problem):
        from_json(canonical_json({**raw, **change}))


def test_a_missing_key_is_named():
    raw = json.loads(world.chain("register 1")[0].to_json())
    del raw["reason"]
    with pytest.raises(IntegrityError, match=r"missing keys: \['reason'\]"):
        from_json(canonical_json(raw))


@pytest.mark.parametrize("content", [b"", b"[]", b"nonsense", b"\xff", b"[" * 100_000])
def test_what_is_no_json_object_is_refused(content: bytes):
    with pytest.raises(IntegrityError, match="no event of a ledger"):
        from_json(content)


def test_the_same_in_another_spelling_is_refused():
    content = world.chain("register 1")[0].to_json()
    for other in (content + b" ", content.replace(b",", b", "), json.dumps(json.loads(content)).encode()):
        with pytest.raises(IntegrityError, match="not in canonical form"):
            from_json(other)
    twice = content.replace(b'{"actor"', b'{"actor":"x","actor"')
    with pytest.raises(IntegrityError, match="not in canonical form"):
        from_json(twice)


def test_a_text_that_is_not_unicode_is_a_problem_that_is_named():
    assert text_problem("caf\udce9", 10) == (
        "character 4 is not Unicode text; is the terminal's encoding UTF-8?"
    )


def test_this_moment_is_a_time_an_event_takes():
    event = world.follow([], world.Registered, "1", time=now())
    assert event.previous == NOTHING
    assert from_json(event.to_json()).time == event.time


@pytest.mark.parametrize(
    ("step", "sentence"),
    [
        ("staging 1", "version 1 was promoted to staging"),
        ("archive 1", "version 1 was archived"),
        ("register 2", "version 2 was registered"),
    ],
)
def test_an_event_says_what_happened(step: str, sentence: str):
    assert world.chain("register 1", step)[-1].sentence == sentence
