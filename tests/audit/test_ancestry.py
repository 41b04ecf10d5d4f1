"""What an audit gathers from a real registry: versions before and after one, stages, events, and what cannot be had."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from pipeline.audit.ancestry import ancestry, earlier, later
from pipeline.audit.prefix_audit import audit
from pipeline.audit.verification import verify
from pipeline.cli import main
from pipeline.errors import RegistryError
from pipeline.ledger import log
from pipeline.register import versions
from pipeline.show.overview import lineage_of
from tests.audit import world
from tests.audit.world import World
from tests.ledger.world import tamper


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> World:
    """older:1 ← words:1 ← words:2 ← {tenant:1 ← tenant:2, words:3}; words:2 is in production, words:3 the candidate;
    tenant:3 began from words:1's adapter in a folder; words:4 was registered by hand."""
    made = world.make(tmp_path_factory.mktemp("ancestry"))
    made.register("older")
    made.register(warm_start=made.warm("older", "1"))
    made.register(warm_start=made.warm("words", "1"), md5="a" * 32)
    made.register("tenant", warm_start=made.warm("words", "2"))
    made.register("tenant", warm_start=made.warm("tenant", "1"))
    made.register(warm_start=made.warm("words", "2"), md5="a" * 32)
    digest = made.records["words", "1"][0].adapter_digest
    made.register("tenant", warm_start={"adapter": "donated", "adapter_digest": digest})
    made.registry.client.create_model_version("words", "file:///nowhere", await_creation_for=0)
    made.stand("words", "2", "production")
    made.stand("words", "3", "candidate")
    return made


def command(here: World, *arguments: str, expect: int = 0) -> Result:
    done = CliRunner().invoke(main, ["-w", str(here.root), *arguments])
    assert done.exit_code == expect, f"{done.exception!r}\n{done.output}"
    return done


def test_the_versions_before_and_after_are_followed_through_every_prefix(here: World) -> None:
    found = ancestry(here.root, "words:2")
    assert found["record"] == lineage_of(here.root, "words@production")
    assert [(link["prefix"], link["version"], link["problem"]) for link in found["earlier"]] == [
        ("words", "1", None), ("older", "1", None),
    ]  # fmt: skip
    assert found["earlier"][1]["record"] == lineage_of(here.root, "older:1")
    assert [(each["prefix"], each["version"], each["started_from"]["version"]) for each in found["later"]["versions"]] == [
        ("tenant", "1", "2"), ("words", "3", "2"), ("tenant", "2", "1"),
    ]  # fmt: skip
    (at,) = found["standing"]
    last = log.read(here.registry, "words").state.moved["production"]
    assert (at["stage"], at["event"]["id"], at["event"]["sentence"]) == ("production", last.id, last.sentence)


def test_a_version_whose_adapter_was_given_as_a_folder_came_after_it_too(here: World) -> None:
    found = later(here.registry, [("words", "1")])
    assert ("tenant", "3") in {(each["prefix"], each["version"]) for each in found["versions"]}
    assert found["problem"] is None
    assert ancestry(here.root, "tenant:3")["earlier"] == []


def test_a_chain_ends_with_the_reason_where_a_version_is_gone_is_another_or_leads_back(here: World) -> None:
    record = lineage_of(here.root, "words:2")
    gone = {"prefix": "words", "version": "99", "adapter_digest": "0" * 64}
    (link,) = earlier(here.registry, record | {"warm_start": gone})
    assert link["record"] is None
    assert "no version '99'; available: 1, 2 @production" in link["problem"]
    other = record["warm_start"] | {"adapter_digest": "0" * 64}
    (link,) = earlier(here.registry, record | {"warm_start": other})
    assert link["problem"] == (
        f"its adapter is {record['warm_start']['adapter_digest']}; the training went on from {'0' * 64}"
    )
    itself = {"prefix": "words", "version": "2", "adapter_digest": record["adapter_digest"]}
    (link,) = earlier(here.registry, record | {"warm_start": itself})
    assert link["problem"] == "its lineage leads back to itself: a record was forged"


def test_an_audit_gathers_stages_events_versions_and_what_came_of_them(here: World) -> None:
    found = audit(here.root, "words", verified=False)
    assert {at["stage"]: at["version"] for at in found["stages"]} == {"production": "2", "candidate": "3"}
    reading = log.read(here.registry, "words")
    assert [(row["sha256"], row["sentence"]) for row in found["events"]] == [
        (event.digest, event.sentence) for event in reading.events
    ]
    assert len(found["events"]) == 4
    assert [(span["stage"], span["version"], span["until"] is None) for span in found["held"]] == [
        ("candidate", "2", False), ("staging", "2", False), ("production", "2", True), ("candidate", "3", True),
    ]  # fmt: skip
    listed = versions.list_versions(here.registry, "words")
    assert [each["version"] for each in found["versions"]] == [version.version for version in listed]
    for each in found["versions"][:3]:
        assert each["record"] == lineage_of(here.root, f"words:{each['version']}")
    by_hand = found["versions"][3]
    assert (by_hand["by_hand"], by_hand["record"]) == (True, None)
    assert "it was not registered by prefixline" in by_hand["problem"]
    assert {(each["prefix"], each["version"]) for each in found["later"]["versions"]} == {
        ("tenant", "1"), ("tenant", "2"), ("tenant", "3"),
    }  # fmt: skip
    assert found["verification"] is None
    assert (
        json.loads(command(here, "audit", "words", "--no-verify", "--json").stdout)["events"]
        == found["events"]
    )


def test_an_audit_verifies_and_exits_with_5_where_something_is_wrong(here: World, tmp_path: Path) -> None:
    """These versions have a lineage record and nothing else, so there is much to find."""
    page = tmp_path / "deep/page.html"
    said = command(here, "audit", "words", "--html", "--out", str(page), expect=5).stdout
    assert said == f"{page}\n"
    expected = verify(here.root, "words").to_json()
    faults = sum(len(version["faults"]) for version in expected["versions"])
    assert faults > 4
    assert f"{faults} faults" in page.read_text()
    found = json.loads(command(here, "audit", "words", "--json", expect=5).stdout)
    assert found["verification"]["versions"] == json.loads(json.dumps(expected["versions"]))
    shown = command(here, "audit", "words", expect=5).stdout
    assert "`prefixline verify words` lists everything that is wrong" in shown


def test_pages_lie_in_reports_unless_told_otherwise_and_the_terminal_and_json_write_none(here: World) -> None:
    written = command(here, "lineage", "words@production", "--html").stdout.strip()
    assert written == str(here.root / "reports/words/lineage-2.html")
    assert "words version 2: lineage" in Path(written).read_text()
    written = command(here, "audit", "words", "--no-verify", "--html").stdout.strip()
    assert written == str(here.root / "reports/words/audit.html")
    shown = command(here, "lineage", "words:2").stdout
    assert shown.index("words version 2") < shown.index("older 1") < shown.index("tenant 2")
    record = json.loads(command(here, "lineage", "words:2", "--json").stdout)
    assert record == lineage_of(here.root, "words:2")
    assert sorted(path.name for path in (here.root / "reports/words").iterdir()) == [
        "audit.html",
        "lineage-2.html",
    ]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("lineage", "words", "--html", "--json"), "--json or --html, not both"),
        (("audit", "words", "--html", "--json"), "--json or --html, not both"),
        (("lineage", "words", "--out", "x.html"), "it needs --html"),
        (("audit", "words", "--out", "x.html", "--json"), "it needs --html"),
    ],
)
def test_options_that_contradict_each_other_are_a_usage_error(
    here: World, arguments: tuple[str, ...], said: str
) -> None:
    assert said in command(here, *arguments, expect=2).stderr


@pytest.mark.parametrize(
    ("name", "said"),
    [("nothing", "no version is registered under this name"), ("words' or '1'='1", "is no prefix's name")],
)
def test_a_prefix_without_versions_and_what_is_no_name_are_refused(here: World, name: str, said: str) -> None:
    with pytest.raises(RegistryError, match=said):
        audit(here.root, name)


@pytest.mark.parametrize(
    ("out", "code", "said"),
    [
        ("file/page.html", 2, "file is a file; expected a folder"),
        ("file/deep/page.html", 1, "Not a directory. Mend this"),
    ],
)
def test_a_page_that_cannot_be_written_is_a_message_and_leaves_nothing(
    here: World, tmp_path: Path, out: str, code: int, said: str
) -> None:
    (tmp_path / "file").write_text("")
    done = command(here, "lineage", "words:2", "--html", "--out", str(tmp_path / out), expect=code)
    assert said in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_damage_elsewhere_is_said_and_hides_nothing_else(here: World) -> None:
    """Last, for it damages what the others look at."""
    _, path = here.records["tenant", "2"]
    path.write_bytes(path.read_bytes().replace(b"tiny", b"tony"))
    here.change_tag("tenant", "2", code_commit=None)  # type: ignore[arg-type]  # so that the record has to be asked
    found = ancestry(here.root, "words:2")["later"]
    assert {(each["prefix"], each["version"]) for each in found["versions"]} == {
        ("tenant", "1"),
        ("words", "3"),
    }
    (unknown,) = found["unknown"]
    assert (unknown["prefix"], unknown["version"]) == ("tenant", "2")
    assert "not the one it was registered with" in unknown["why"]
    here.stand("tenant", "1", "candidate")
    run_id = log.read(here.registry, "tenant").run_id
    tamper(here.registry, "DELETE FROM params WHERE run_uuid = :run", run=run_id)
    found = ancestry(here.root, "words:2")["later"]
    assert found["versions"] == []
    assert "The ledger of tenant is not what was written" in found["problem"]
    assert "It cannot be told which versions went on from it" in command(here, "lineage", "words:2").stdout
    done = command(here, "audit", "tenant", "--json", expect=5)
    assert (done.stdout, "The ledger of tenant is not what was written" in done.stderr) == ("", True)
