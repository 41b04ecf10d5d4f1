"""Where run events are sent, by the standard's own client, and that nothing waits long for it or fails by it."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from pipeline.openlineage import run_events, sending
from tests import records
from tests.openlineage.lineage_server import lineage_server

RECORD = records.lineage()
BEGUN = {
    key: value
    for key, value in asdict(RECORD).items()
    if key
    in ("prefix", "run_key", "base_model", "params", "code", "environment", "runs", "seed", "warm_start")
} | {"dataset": {key: RECORD.dataset[key] for key in ("path", "md5", "git_commit", "manifest")}}
"""What is known as a retraining begins."""


@pytest.fixture(autouse=True)
def _environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """One that says nothing of OpenLineage, and gets back what it was: the client writes into it."""
    before = dict(os.environ)
    for name in [name for name in before if name.startswith("OPENLINEAGE")]:
        del os.environ[name]
    os.environ["HOME"] = str(tmp_path)
    monkeypatch.chdir(tmp_path)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def warnings() -> list[str]:
    return []


def test_where_nothing_is_configured_nothing_is_said(
    warnings: list[str], capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    sending.send_started(BEGUN, warnings.append)
    assert warnings == []
    assert capfd.readouterr() == ("", "")
    assert caplog.messages == []


def test_where_it_is_disabled_nothing_is_sent(warnings: list[str]) -> None:
    with lineage_server() as server:
        os.environ.update({"OPENLINEAGE_URL": server.url, "OPENLINEAGE_DISABLED": "true"})
        sending.send_started(BEGUN, warnings.append)
    assert (server.posted, warnings) == ([], [])


def test_by_an_address_and_a_key_the_event_goes_to_the_standards_endpoint(warnings: list[str]) -> None:
    with lineage_server() as server:
        os.environ.update({"OPENLINEAGE_URL": server.url, "OPENLINEAGE_API_KEY": "sesame"})
        sending.send_started(BEGUN, warnings.append)
    ((path, headers, event),) = server.posted
    assert (path, headers["Authorization"]) == ("/api/v1/lineage", "Bearer sesame")
    assert (event["eventType"], event["job"]["name"]) == ("START", RECORD.prefix)
    assert warnings == []


def test_by_the_clients_own_file_the_event_goes_where_that_says(warnings: list[str]) -> None:
    with lineage_server() as server:
        content = {"transport": {"type": "http", "url": server.url, "endpoint": "in"}}
        Path("openlineage.yml").write_text(json.dumps(content))
        sending.send_started(BEGUN, warnings.append)
    assert [path for path, _, _ in server.posted] == ["/in"]


def test_what_is_sent_as_a_retraining_begins_is_a_part_of_what_the_bundle_says(warnings: list[str]) -> None:
    with lineage_server() as server:
        os.environ.update(server.environment())
        sending.send_started(BEGUN, warnings.append)
    (sent,) = server.events
    whole, _ = run_events.run_events(RECORD, "1", "2024-03-01T00:00:00+00:00")
    assert sent["run"]["runId"] == whole["run"]["runId"]
    assert sent["job"] == whole["job"]
    assert [(each["namespace"], each["name"]) for each in sent["inputs"]] == [
        (each["namespace"], each["name"]) for each in whole["inputs"]
    ]
    assert tags(sent).items() < tags(whole).items()
    assert "experiment" not in tags(sent)
    assert sent["run"]["facets"]["executionParameters"] == whole["run"]["facets"]["executionParameters"]


def test_what_the_gate_rejected_is_complete_without_a_version(warnings: list[str]) -> None:
    with lineage_server() as server:
        os.environ.update(server.environment())
        sending.send_rejected(RECORD, warnings.append)
    (sent,) = server.events
    assert (sent["eventType"], sent["outputs"], tags(sent)["outcome"]) == ("COMPLETE", [], "rejected")


@pytest.mark.parametrize(
    ("error", "state", "message"),
    [
        (ValueError("no such row"), "FAIL", "ValueError: no such row"),
        (KeyboardInterrupt(), "ABORT", "KeyboardInterrupt"),
    ],
)
def test_what_broke_off_says_why(error: BaseException, state: str, message: str, warnings: list[str]) -> None:
    with lineage_server() as server:
        os.environ.update(server.environment())
        sending.send_broken_off(BEGUN, error, warnings.append)
    (sent,) = server.events
    assert (sent["eventType"], sent["run"]["facets"]["errorMessage"]["message"]) == (state, message)


@pytest.mark.parametrize("status", [403, 500])
def test_a_server_that_refuses_is_named_in_a_line_without_the_password(
    status: int, warnings: list[str]
) -> None:
    with lineage_server(status) as server:
        address = server.url.replace("://", "://me:sesame@")
        transport = {"type": "http", "url": address, "retry": {"total": 0}}
        os.environ["OPENLINEAGE__TRANSPORT"] = json.dumps(transport)
        sending.send_started(BEGUN, warnings.append)
    (warning,) = warnings
    assert warning.startswith(f"warning: {RECORD.prefix}: the OpenLineage event START was not sent (")
    assert warning.endswith("; the retraining goes on without it\n")
    assert warning.count("\n") == 1
    assert str(status) in warning
    assert "sesame" not in warning


def test_a_server_that_is_not_there_is_named(warnings: list[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    transport = {"type": "http", "url": f"http://127.0.0.1:{port}", "retry": {"total": 0}}
    os.environ["OPENLINEAGE__TRANSPORT"] = json.dumps(transport)
    sending.send_started(BEGUN, warnings.append)
    (warning,) = warnings
    assert str(port) in warning


def test_a_server_that_never_answers_is_not_waited_for_longer_than_said(
    warnings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sending, "LONGEST_WAIT", 1.5)
    with lineage_server(None) as server:
        os.environ.update(server.environment())
        sending.send_started(BEGUN, warnings.append)
    (warning,) = warnings
    assert "(no answer within 1.5 seconds)" in warning


@pytest.mark.parametrize("content", ["transport: {type: nonsense}", "transport: {type: http}"])
def test_a_configuration_that_is_none_is_a_warning(content: str, warnings: list[str]) -> None:
    Path("openlineage.yml").write_text(content)
    sending.send_started(BEGUN, warnings.append)
    assert len(warnings) == 1


def test_an_event_that_cannot_be_made_is_a_warning(warnings: list[str]) -> None:
    with lineage_server() as server:
        os.environ.update(server.environment())
        sending.send_started({"prefix": "reviews"}, warnings.append)
    assert server.posted == []
    assert "warning: reviews: the OpenLineage event START was not sent (KeyError" in warnings[0]


def tags(event: Mapping[str, Any]) -> dict[str, str]:
    """{key: value} of a run's tags; the client adds some of its own."""
    return {
        each["key"]: each["value"]
        for each in event["run"]["facets"]["tags"]["tags"]
        if each["source"] == "prefixline"
    }
