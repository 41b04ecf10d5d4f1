"""The lineage of a version as a graph, on its page and as a tree in the terminal, against its record."""

from __future__ import annotations

import html
import re
from pathlib import Path
from typing import Any

import pytest

from pipeline.show.lineage_graph import version_graph
from pipeline.show.lineage_page import default_path, write
from pipeline.show.terminal_audit import show_lineage
from tests import records
from tests.audit import told


def page_of(found: dict[str, Any], tmp_path: Path) -> str:
    return write(found, tmp_path / "page.html").read_text(encoding="utf-8")


def leaves(value: Any) -> list[str]:
    """Every text, and every whole number, somewhere in a record."""
    if isinstance(value, dict):
        return [leaf for inner in value.values() for leaf in leaves(inner)]
    if isinstance(value, list):
        return [leaf for inner in value for leaf in leaves(inner)]
    return [str(value)] if isinstance(value, str) else []


def test_everything_in_the_record_is_on_the_page_with_full_digests(tmp_path: Path) -> None:
    found = told.followed()
    page = html.unescape(re.sub("<wbr>", "", page_of(found, tmp_path)))
    record = found["record"]
    shown = {key: value for key, value in record.items() if key not in ("verdict", "stage")}
    assert len(leaves(shown)) > 25
    assert [leaf for leaf in leaves(shown) if leaf not in page] == []
    for criterion in record["verdict"]["criteria"]:
        assert f"passed: {criterion['reason']}" in page
    for link in found["earlier"]:
        assert link["record"]["lineage_digest"] in page
    for other in found["later"]["versions"]:
        assert f"{other['prefix']} {other['version']}" in page
    event = found["standing"][0]["event"]
    assert event["sha256"] in page
    assert event["actor"] in page


def test_the_graph_leads_from_what_was_there_first_to_the_version_and_on(tmp_path: Path) -> None:
    graph = version_graph(told.followed())
    sources: dict[str, set[str]] = {}
    for source, target in graph.edges:
        sources.setdefault(target, set()).add(source)
    assert sources == {
        "experiment": {"dataset", "base", "code", "environment", "params", "version reviews:2"},
        "version reviews:2": {"version older:1"},
        "adapter": {"experiment"},
        "verdict": {"experiment"},
        "run": {"experiment"},
        "version reviews:3": {"adapter", "verdict", "run"},
        "stage production": {"version reviews:3"},
        "version tenant:4": {"version reviews:3"},
        "version tenant:5": {"version tenant:4"},
    }
    assert graph.first == "version reviews:3"


def test_a_training_that_began_anew_has_no_version_before_it_and_one_from_a_folder_names_the_folder() -> None:
    anew = version_graph(told.followed(warm_start=None) | {"earlier": []})
    assert [node.kind for node in anew.nodes if "tarted" in node.kind] == []
    start = {"adapter_digest": "f" * 64, "adapter": "donated/prefix"}
    folder = version_graph(told.followed(warm_start=start) | {"earlier": []})
    (node,) = [node for node in folder.nodes if node.kind == "Started from a folder"]
    assert (node.title, node.facts) == ("prefix", start)
    assert ("folder", "experiment") in folder.edges


def test_a_version_before_it_that_cannot_be_had_is_in_the_graph_with_the_reason(tmp_path: Path) -> None:
    found = told.followed()
    found["earlier"][1] |= {"record": None, "problem": "older: no version '1'; available: none"}
    node = version_graph(found).named["version older:1"]
    assert (node.tone, node.sentence) == ("fail", "older: no version '1'; available: none")
    assert "older: no version &#39;1&#39;; available: none" in page_of(found, tmp_path)


def test_a_forged_lineage_that_leads_back_to_itself_is_drawn_and_said(tmp_path: Path) -> None:
    found = told.followed()
    found["earlier"] = [{"prefix": "reviews", "version": "3", "problem": "it leads back", "record": None}]
    graph = version_graph(found)
    assert ("version reviews:3", "experiment") in graph.edges
    assert graph.named["version reviews:3"].tone == "fail"
    assert "it leads back" in page_of(found, tmp_path)


def test_what_cannot_be_told_of_later_versions_is_said_on_the_page_and_in_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = told.followed()
    found["later"] |= {"unknown": [{"prefix": "x", "version": "7", "why": "its record\x1b[31m is gone"}]}
    assert "whether version 7 of x went on from it" in page_of(found, tmp_path)
    found["later"] = {"versions": [], "unknown": [], "problem": "the ledger of x contradicts itself"}
    assert "which versions went on from it: the ledger of x" in page_of(found, tmp_path)
    show_lineage(found)
    assert "It cannot be told which versions went on from it" in capsys.readouterr().out


def test_hostile_text_is_escaped_everywhere_and_nothing_is_loaded(tmp_path: Path) -> None:
    bad = told.HOSTILE
    data = {**records.lineage().dataset, "path": f"data/{bad}", "labels": [bad]}
    base = {**records.lineage().base_model, "name": bad}
    found = told.followed(
        dataset=data, base_model=base, params={"task": bad, bad: {bad: bad}}, experiment={"commit": "7" * 40, "name": bad},
        verdict={"passed": True, "criteria": [told.criterion("floor", "accuracy", 0.8, 0.7, slice=f"a={bad}", reason=bad)]},
    )  # fmt: skip
    found["standing"][0]["event"] |= {"actor": bad, "reason": bad}
    found["later"]["versions"][0]["stages"] = [bad]
    page = page_of(found, tmp_path)
    assert page.count("<script>") == 1
    assert "<script>alert" not in page
    assert "alert(1)" in page
    assert "http://" not in page
    assert "https://" not in page
    assert re.findall(r'(?:src|href)="(?!#|data:)', page) == []
    assert default_path(tmp_path, found) == tmp_path / "reports/reviews/lineage-3.html"


def test_the_terminals_tree_has_the_same_things_with_short_digests_and_cannot_be_steered(
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = told.followed(experiment={"commit": "7" * 40, "name": "[red]exp\x1b[31m"})
    show_lineage(found)
    shown = capsys.readouterr().out
    record = found["record"]
    digests = [leaf for leaf in leaves(record) if re.fullmatch("[0-9a-f]{40,64}", leaf)]
    assert len(digests) > 10
    assert [digest for digest in digests if digest[:12] not in shown] == []
    assert [digest for digest in digests if digest in shown] == []
    titles = [node.title for node in version_graph(found).nodes if node.key != "experiment"]
    assert [title for title in titles if title not in shown] == []
    assert "[red]exp" in shown
    assert "\x1b" not in shown
    assert (
        shown.count("Run key: " + record["run_key"][:12]) == 2
    )  # the version's and the experiment's: once each
    assert shown.index("made from") < shown.index("older 1") < shown.index("led to") < shown.index("tenant 5")
