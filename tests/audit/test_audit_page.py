"""The page of a prefix's audit against what was gathered: everything is there, escaped, and light enough."""

from __future__ import annotations

import html
import re
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from pipeline.show.audit_page import default_path, write
from pipeline.show.lineage_graph import prefix_graph, version_graph
from pipeline.show.metric_history import metric_histories
from pipeline.show.terminal_audit import show_audit, show_lineage
from pipeline.show.timeline import timeline
from tests.audit import told


def page_of(found: dict[str, Any], tmp_path: Path) -> str:
    return write(found, tmp_path / "page.html").read_text(encoding="utf-8")


def cells(page: str, row: str) -> list[str]:
    """The text of each cell of the table row with this id."""
    body = re.search(rf'<tr id="{row}">(.*?)</tr>', page, re.S)
    assert body is not None
    found = re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", body[1], re.S)
    return [html.unescape(re.sub("<[^>]+>", " ", cell)).strip() for cell in found]


def test_every_event_is_in_the_table_with_who_when_and_why(tmp_path: Path) -> None:
    found = told.audited(6, 30)
    page = page_of(found, tmp_path)
    assert page.count('<tr id="event-') == 30
    for event in found["events"]:
        epoch, what, who, when, why, sha256 = cells(page, f"event-{event['epoch']}")
        assert (epoch, what.lower(), who, why) == (
            str(event["epoch"]), event["sentence"], event["actor"], event["reason"],
        )  # fmt: skip
        assert str(datetime.fromisoformat(event["time"]).day) == when.split()[0]
        assert event["sha256"].startswith(sha256)


def test_every_version_is_in_the_table_with_its_metrics_stage_data_and_start(tmp_path: Path) -> None:
    found = told.audited(6, 30, verification=told.faulty(6))
    page = page_of(found, tmp_path)
    for version in found["versions"]:
        record = version["record"]
        number, stage, _, accuracy, loss, dataset, start, verified = cells(
            page, f"version-{version['version']}"
        )
        assert number == version["version"]
        assert stage == (version["stages"][0] if version["stages"] else "–")
        assert accuracy == f"{record['metrics']['prefix']['accuracy']:.3f}"
        assert loss == f"{record['metrics']['prefix']['loss']:.3f}"
        assert dataset.split()[0] == record["dataset"]["md5"][:12]
        warm = record["warm_start"]
        assert start == ("–" if warm is None else f"reviews {warm['version']}")
        assert verified == ("2 faults" if number == "1" else "sound")


def test_each_stage_says_who_put_the_version_there_when_and_why(tmp_path: Path) -> None:
    found = told.audited(6, 30)
    assert len(found["stages"]) >= 2
    section = page_of(found, tmp_path).split('id="stages"')[1].split("</section>")[0]
    for at in found["stages"]:
        event = at["event"]
        row = re.search(rf"<th scope=\"row\">{at['stage'].capitalize()}</th>(.*?)</tr>", section, re.S)
        assert row is not None
        assert f'#version-{at["version"]}"' in row[1]
        assert f'#event-{event["epoch"]}"' in row[1]
        assert html.escape(event["actor"]) in row[1]
        assert event["reason"] in row[1]


def test_every_versions_verdict_is_there_criterion_by_criterion(tmp_path: Path) -> None:
    found = told.audited(4, 12)
    section = page_of(found, tmp_path).split('id="verdicts"')[1].split("</section>")[0]
    parts = section.split("<details")[1:]
    assert len(parts) == 4
    for version, part in zip(reversed(found["versions"]), parts, strict=True):
        assert f"Version {version['version']}<" in part
        figures = re.findall(r'data-name="Figure">([^<]*)<', part)
        criteria = version["record"]["verdict"]["criteria"]
        assert [float(figure.replace("−", "-")) for figure in figures] == [
            pytest.approx(one["figure"], abs=6e-4) for one in criteria
        ]


def test_a_page_that_was_not_verified_says_so_and_one_that_was_says_what_is_wrong(tmp_path: Path) -> None:
    page = page_of(told.audited(), tmp_path)
    assert "Nothing was hashed again for this page" in page
    assert 'class="badge pass">sound' not in page
    page = page_of(told.audited(verification=told.sound(6)), tmp_path)
    assert "nothing is wrong: 12 files, 3,456 bytes hashed" in page
    page = page_of(told.audited(verification=told.faulty(6)), tmp_path)
    section = page.split('id="verification"')[1].split("</section>")[0]
    assert "<strong>3 faults.</strong>" in section
    assert "artifacts/adapter/&lt;b&gt;" in section
    assert f"<code>{'a' * 64}</code>" in section
    assert f"<code>{'b' * 64}</code>" in section
    assert "Not looked at, for want of a record to go by: code." in section
    assert f"Version 99 is missing: run {'r' * 32} registered it" in section


def test_a_kind_of_event_that_the_page_does_not_know_is_shown_by_its_own_words(tmp_path: Path) -> None:
    found = told.audited(4, 12)
    found["events"][-1] |= {"event": "tainted", "sentence": "version 2 was tainted by <b>a row</b>"}
    page = page_of(found, tmp_path)
    assert "Version 2 was tainted by &lt;b&gt;a row&lt;/b&gt;" in page
    rows = timeline(found["held"], found["events"], found["made"])["rows"]
    assert rows[-1]["name"] == "tainted"
    assert rows[-1]["dots"][0]["epoch"] == 12
    assert ">Tainted</text>" in page


def test_the_timeline_places_stretches_and_dots_by_time() -> None:
    found = told.audited(6, 30)
    drawn = timeline(found["held"], found["events"], found["made"])
    start = datetime.fromisoformat(found["events"][0]["time"]).timestamp()
    end = datetime.fromisoformat(found["made"]).timestamp()

    def at(time: str) -> float:
        share = (datetime.fromisoformat(time).timestamp() - start) / (end - start)
        return drawn["left"] + share * (drawn["right"] - drawn["left"])  # type: ignore[no-any-return]

    lanes = {lane["name"]: lane["spans"] for lane in drawn["lanes"]}
    assert list(lanes) == ["candidate", "staging", "production", "archived"]
    (now,) = [span for span in found["held"] if span["stage"] == "production" and span["until"] is None]
    last = lanes["production"][-1]
    assert last["x"] == pytest.approx(at(now["since"]), abs=0.1)
    assert last["x"] + last["width"] == pytest.approx(drawn["right"], abs=1.1)
    assert last["text"] == now["version"]
    assert sum(int(dot["text"] or 1) for row in drawn["rows"] for dot in row["dots"]) == 30
    for row in drawn["rows"]:
        for dot in row["dots"]:
            event = found["events"][dot["epoch"] - 1]
            assert event["event"] == row["name"]
            assert abs(dot["x"] - at(event["time"])) <= 18  # within its stretch


def test_what_held_a_stage_follows_from_the_events_and_every_stretch_ends_where_another_begins() -> None:
    found = told.audited(6, 40)
    for stage in ("candidate", "staging", "production"):
        spans = [span for span in found["held"] if span["stage"] == stage]
        assert all(a["until"] is not None and a["until"] <= b["since"] for a, b in pairwise(spans))
        now = [span["version"] for span in spans if span["until"] is None]
        assert now == [at["version"] for at in found["stages"] if at["stage"] == stage]


def test_a_metric_is_drawn_at_its_time_with_its_interval_and_the_floor_it_had_to_reach() -> None:
    found = told.audited(50, 150)
    accuracy, loss = metric_histories(found["versions"])
    assert (accuracy["metric"], loss["metric"], loss["better"]) == ("accuracy", "loss", "lower")
    assert [point["version"] for point in accuracy["points"]] == [str(number) for number in range(1, 51)]
    assert [point["x"] for point in accuracy["points"]] == sorted(point["x"] for point in accuracy["points"])
    values = [version["record"]["metrics"]["prefix"]["accuracy"] for version in found["versions"]]
    up = [point["y"] for point in accuracy["points"]]
    scale = (up[1] - up[0]) / (values[1] - values[0])  # pixels for each unit, down
    assert scale < 0
    for point, value in zip(accuracy["points"], values, strict=True):
        assert point["y"] == pytest.approx(up[0] + scale * (value - values[0]), abs=0.6)
        assert point["low"] - point["y"] == pytest.approx(-0.02 * scale, abs=0.6)
        assert point["y"] - point["high"] == pytest.approx(-0.02 * scale, abs=0.6)
    assert len(accuracy["floors"]) == 2  # the floor was raised once, at version 40
    levels = [float(re.search(r" ([\d.]+)H", path)[1]) for path in accuracy["floors"]]  # type: ignore[index]
    assert levels[0] - levels[1] == pytest.approx(-0.015 * scale, abs=0.6)
    assert all(point["low"] is None for point in loss["points"])
    assert loss["floors"] == []


def test_figures_and_times_that_are_none_are_left_out_of_the_pictures() -> None:
    found = told.audited(4, 12)
    found["versions"][0]["record"]["created"] = "yesterday"
    found["versions"][1]["record"]["metrics"]["prefix"]["accuracy"] = None
    found["versions"][2] |= {"record": None, "problem": "is gone"}
    (points,) = [
        history["points"]
        for history in metric_histories(found["versions"])
        if history["metric"] == "accuracy"
    ]
    assert [point["version"] for point in points] == ["4"]


def test_the_graph_joins_versions_by_shared_datasets_and_warm_starts() -> None:
    found = told.audited(6, 20)
    found["later"]["versions"] = [
        {"prefix": "tenant", "version": "9", "stages": [], "duplicate_of": None, "started_from": {"prefix": "reviews", "version": "6"}}
    ]  # fmt: skip
    found["versions"][0]["record"]["warm_start"] = {
        "adapter_digest": "e" * 64,
        "prefix": "older",
        "version": "3",
    }
    graph = prefix_graph(found)
    expected = {("version reviews:6", "version tenant:9"), ("version older:3", "version reviews:1")}
    for version in found["versions"]:
        record, key = version["record"], f"version reviews:{version['version']}"
        expected.add((f"dataset {record['dataset']['md5']}", key))
        if record["warm_start"] is not None and record["warm_start"]["prefix"] == "reviews":
            expected.add((f"version reviews:{record['warm_start']['version']}", key))
    assert set(graph.edges) == expected
    datasets = [node for node in graph.nodes if node.kind == "Dataset version"]
    assert len(datasets) == len({version["record"]["dataset"]["md5"] for version in found["versions"]}) < 6


def test_versions_without_a_record_duplicates_and_what_is_out_of_step_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = told.audited(4, 12)
    found["versions"][0] |= {"record": None, "by_hand": True, "problem": "reviews version 1: has no lineage"}
    found["versions"][1] |= {"duplicate_of": "1"}
    found["versions"][2] |= {"record": None, "problem": "its record is <i>gone</i>"}
    found["out_of_step"] = ["production: the alias says 4, the ledger says none"]
    page = page_of(found, tmp_path)
    assert "registered by hand" in cells(page, "version-1")[1]
    assert "duplicate of 1" in cells(page, "version-2")[1]
    assert "its record is &lt;i&gt;gone&lt;/i&gt;" in page
    assert "the alias says 4, the ledger says none" in page
    show_audit(found)
    shown = capsys.readouterr().out
    assert "registered by hand" in shown
    assert "duplicate of 1" in shown
    assert "reviews is out of step: production: the alias says 4" in shown


def test_a_tainted_version_is_named_in_audit_and_lineage(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = told.audited(3, 9)
    found["versions"][1] |= {"tainted": True}
    page = page_of(found, tmp_path)
    assert "tainted: it saw a row that was to be erased" in cells(page, "version-2")[1]
    assert "tainted" not in cells(page, "version-3")[1]
    show_audit(found)
    assert capsys.readouterr().out.count("tainted") == 1
    sentence = "Tainted: it saw a row that was to be erased"
    assert [node.title for node in prefix_graph(found).nodes if node.sentence == sentence] == ["reviews 2"]
    followed = told.followed(tainted=True)
    show_lineage(followed)
    assert sentence in capsys.readouterr().out
    followed["record"]["tainted"] = False
    followed["earlier"][1]["record"]["tainted"] = True
    assert [node.title for node in version_graph(followed).nodes if node.sentence == sentence] == ["older 1"]


def test_hostile_names_and_reasons_are_escaped_and_nothing_is_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = told.audited(4, 12, reason=told.HOSTILE)
    for event in found["events"]:
        event |= {"actor": told.HOSTILE, "sentence": told.HOSTILE, "event": told.HOSTILE}
    found["versions"][0] |= {"record": None, "problem": told.HOSTILE}
    found["versions"][1]["record"]["metrics"]["prefix"][told.HOSTILE] = 0.5
    found["out_of_step"] = [told.HOSTILE]
    page = page_of(found, tmp_path)
    assert page.count("<script>") == 1
    assert page.count("alert(1)") > 20
    assert "http://" not in page
    assert "https://" not in page
    assert re.findall(r'(?:src|href)="(?!#|data:)', page) == []
    show_audit(found)
    assert "\x1b" not in capsys.readouterr().out
    assert default_path(tmp_path, found) == tmp_path / "reports/reviews/audit.html"


def test_the_terminal_shows_the_newest_and_says_how_many_there_are_besides(
    capsys: pytest.CaptureFixture[str],
) -> None:
    show_audit(told.audited(25, 60, verification=told.faulty(25)))
    shown = " ".join(capsys.readouterr().out.split())
    assert "5 earlier versions: on the page" in shown
    assert "50 earlier events: on the page" in shown
    assert "3 faults: Something is not what was recorded" in shown
    assert "`prefixline verify reviews` lists everything that is wrong" in shown
    show_audit(told.audited(2, 6))
    shown = capsys.readouterr().out
    assert "earlier" not in shown
    assert "Not verified" in shown


def test_a_hundred_versions_and_a_thousand_events_weigh_less_than_two_megabytes(tmp_path: Path) -> None:
    found = told.audited(100, 1000, verification=told.faulty(100))
    assert len(found["events"]) == 1000
    page = write(found, tmp_path / "page.html")
    assert page.stat().st_size < 2_000_000
    assert write(found, tmp_path / "again.html").read_bytes() == page.read_bytes()
    drawn = timeline(found["held"], found["events"], found["made"])
    assert sum(len(row["dots"]) for row in drawn["rows"]) < 200
    assert datetime.fromisoformat(found["made"]).tzinfo == UTC
