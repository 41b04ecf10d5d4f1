"""A row is taken out of data, versions and stages: against what `impact` and the files themselves say."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from transformers import PreTrainedTokenizerFast

from pipeline import promotion
from pipeline.audit.erasure import Erasure, erase, in_use, row_digest
from pipeline.audit.impact import impact
from pipeline.audit.verification import verify
from pipeline.cli import main
from pipeline.data.row_index import key_digest
from pipeline.errors import DataError, RegistryError, WorkspaceError
from pipeline.ledger import log, tainting
from pipeline.register import versions
from pipeline.show.overview import overview
from pipeline.show.terminal import show_verification
from tests import git_dvc, mlflow_world
from tests.audit import world
from tests.audit.world import World
from tests.line import Line, rows

GONE = "the red cat runs over the river"
PARAMS = """\
base_models:
  tiny: {source: {path: base}, digest: %s}
prefixes:
  words: {base_model: tiny, task: classification, data: {path: data/words.jsonl}}
  other: {base_model: tiny, task: classification, data: {path: data/other.csv}}
  heirs: {base_model: tiny, task: classification, data: {path: data/heirs.jsonl}}
""" % ("b" * 64)  # fmt: skip
TEXTS = [f"{one} {two} near the {three}" for one in ("cat", "dog", "bird") for two in ("runs", "sees", "likes")
         for three in ("tree", "river", "pub")]  # fmt: skip
ROWS = [{"text": text, "label": ("cat", "dog")[number % 2]} for number, text in enumerate(TEXTS)]
WITH = [*ROWS, {"text": GONE, "label": "cat"}]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, encoder_folder: Path) -> Path:
    """words:1 without the row; words:2 (in production) and words:3 (staging) with it; heirs:1 that went on from words:2;
    other:1 without it; and `gone:1`, with it, whose prefix params.yaml does not have."""
    here = world.make(tmp_path_factory.mktemp("made"))
    encoder = PreTrainedTokenizerFast.from_pretrained(encoder_folder)
    without, within = here.index(ROWS, encoder), here.index(WITH, encoder)
    for number, index in enumerate((without, within, within), start=1):
        assert here.register("words", row_index=index, md5=str(number) * 32) == str(number)
    here.stand("words", "1", "production")
    here.stand("words", "2", "production")
    here.stand("words", "3", "staging")
    for name, index, warm in (
        ("heirs", without, here.warm("words", "2")), ("other", without, None), ("gone", within, None),
    ):  # fmt: skip
        here.register(name, row_index=index, warm_start=warm)
        here.stand(name, "1", "candidate")
    (here.root / "params.yaml").write_text(PARAMS)
    here.commit()
    write(here.root / "data/words.jsonl", WITH)
    write(here.root / "data/heirs.jsonl", ROWS)
    (here.root / "data/other.csv").write_text(
        "text,label\n" + "".join(f"{row['text']},{row['label']}\n" for row in ROWS)
    )
    git_dvc.run(here.root, "git", "commit", "-qam", "Params")
    return here.root.parent


@pytest.fixture
def here(made: Path, tmp_path: Path) -> World:
    shutil.copytree(made / "workspace", tmp_path / "workspace", symlinks=True)
    return world.open_world(tmp_path)


def write(path: Path, content: list[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in content))


def read(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def tainted(here: World) -> dict[str, list[tuple[str, str]]]:
    """{prefix: (version, row) of every event that taints, in order}."""
    return {
        name: [(e.version, e.row) for e in log.read(here.registry, name).events if e.kind == "tainted"]  # type: ignore[attr-defined]
        for name in ("words", "heirs", "other", "gone")
    }


DIGEST = row_digest([key_digest(GONE)])
MARKED = {
    "words": [("2", DIGEST), ("3", DIGEST)],
    "heirs": [("1", DIGEST)],
    "other": [],
    "gone": [("1", DIGEST)],
}


def everything(here: World) -> dict[str, Any]:
    """What an erasure could change: files of the workspace, ledgers, commits."""
    return {
        "data": {path.name: path.read_bytes() for path in (here.root / "data").iterdir() if path.is_file()},
        "events": {
            name: log.read(here.registry, name).state.head for name in ("words", "heirs", "other", "gone")
        },
        "head": git_dvc.head(here.root),
    }


def test_versions_that_saw_the_row_are_marked_the_row_leaves_the_data_and_prefixes_are_named(
    here: World,
) -> None:
    before = everything(here)
    done = erase(here.root, GONE.upper(), reason="asked for by a customer")
    assert done.row == DIGEST
    assert done.tainted == (("gone", "1"), ("heirs", "1"), ("words", "2"), ("words", "3"))
    assert done.removed == {"data/words.jsonl": 1}
    assert (done.retrain, done.left_out, done.complete) == (("words", "heirs"), ("gone",), True)
    assert read(here.root / "data/words.jsonl") == ROWS
    after = everything(here)
    assert {name for name in before["data"] if before["data"][name] != after["data"][name]} == {"words.jsonl"}
    assert tainted(here) == MARKED
    held = in_use(here.root, {(version["name"], version["version"]) for version in done.versions})
    assert {s["name"] + ":" + str(s["version"]): s["stage"] for s in held} == {
        "words:2": "production", "words:3": "staging", "heirs:1": "candidate", "gone:1": "candidate",
    }  # fmt: skip
    assert any("dataset versions" in line and "2" * 32 in line for line in done.not_erased)


def test_what_is_written_down_is_the_rows_digest_and_the_reason_never_its_text(here: World) -> None:
    erase(here.root, GONE, reason="asked for by a customer")
    for name in ("words", "heirs", "gone"):
        events = [event for event in log.read(here.registry, name).events if event.kind == "tainted"]
        assert {event.reason for event in events} == {"asked for by a customer"}
        assert {event.stage for event in events} == {None}
        assert not any(word in event.to_json() for event in events for word in (b"river", b"red cat"))


def test_history_status_and_impact_show_that_a_version_is_tainted(
    here: World,
) -> None:
    erase(here.root, GONE)
    prefixes = {prefix["name"]: prefix for prefix in overview(here.root)["prefixes"]}
    assert [version["tainted"] for version in prefixes["words"]["versions"]] == [False, True, True]
    assert {f"{v['name']}:{v['version']}" for v in impact(here.root, "row", GONE)["versions"] if v["tainted"]} == {
        "words:2", "words:3", "heirs:1", "gone:1",
    }  # fmt: skip
    for command, said in (
        (["history", "words"], f"by row {DIGEST[:12]}"),
        (["status"], "production: 2 (tainted)"),
        (["impact", "--row", GONE], "production (tainted)"),
    ):
        shown = CliRunner().invoke(main, ["-w", str(here.root), *command]).stdout
        assert said in " ".join(shown.split()), shown


def test_a_second_call_and_one_after_a_cut_change_nothing_twice(here: World) -> None:
    # Cut off in the middle of marking.
    tainting.taint(here.registry, "words", "2", row=DIGEST, actor="a", reason="asked for")
    first = erase(here.root, GONE)
    assert ("words", "2") not in first.tainted
    assert len(first.tainted) == 3
    # Cut off before the data was replaced.
    write(here.root / "data/words.jsonl", WITH)
    left = here.root / "data/.words.jsonl.erasing"
    left.mkdir()
    (left / "words.jsonl").write_text("half")
    second = erase(here.root, GONE)
    assert (second.tainted, second.removed, second.retrain) == ((), {"data/words.jsonl": 1}, first.retrain)
    assert read(here.root / "data/words.jsonl") == ROWS
    assert not left.exists()
    before = everything(here)
    third = erase(here.root, GONE)
    assert (third.tainted, third.removed, third.retrain) == ((), {}, first.retrain)
    assert everything(here) == before
    assert {name: sorted(found) for name, found in tainted(here).items()} == MARKED


def test_another_row_of_the_same_versions_is_an_erasure_of_its_own(here: World, tmp_path: Path) -> None:
    erase(here.root, GONE)
    asked = tmp_path / "asked.jsonl"
    write(asked, [ROWS[0], {"text": ROWS[1]["text"], "label": "no such label"}])
    done = erase(here.root, str(asked))
    assert done.removed == {"data/words.jsonl": 1, "data/other.csv": 1, "data/heirs.jsonl": 1}
    assert read(here.root / "data/words.jsonl") == ROWS[1:]
    assert len(done.tainted) == 6
    assert done.row == row_digest(asked_parts(ROWS[0], {"text": ROWS[1]["text"], "label": "no such label"}))
    assert erase(here.root, str(asked)).tainted == ()
    assert erase(here.root, GONE).tainted == ()


def asked_parts(*asked: dict[str, str]) -> Iterator[bytes]:
    from pipeline.data.row_index import entry

    return (entry("classification", row["text"], row["label"]) for row in asked)


def test_a_dry_run_says_what_would_be_done_and_changes_nothing(here: World) -> None:
    before = everything(here)
    result = CliRunner().invoke(main, ["-w", str(here.root), "erase", "--row", GONE, "--dry-run", "--json"])
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert (told["removed"], told["retrain"], told["tainted"], told["retrained"]) == (
        {"data/words.jsonl": 1}, ["words", "heirs"], [], [],
    )  # fmt: skip
    assert [f"{v['name']}:{v['version']}" for v in told["versions"]] == [
        "gone:1",
        "heirs:1",
        "words:2",
        "words:3",
    ]
    assert {f"{held['name']}:{held['version']}": held["stage"] for held in told["in_use"]} == {
        "words:2": "production", "words:3": "staging", "heirs:1": "candidate", "gone:1": "candidate",
    }  # fmt: skip
    shown = CliRunner().invoke(main, ["-w", str(here.root), "erase", "--row", GONE, "--dry-run"]).stdout
    assert "1 row would be taken out of data/words.jsonl" in shown
    assert "retrain words, heirs; nothing was changed" in " ".join(shown.split())
    assert GONE not in json.dumps(told)
    assert everything(here) == before


def refused(here: World, error: type[Exception], match: str, asked: str = GONE, **more: Any) -> None:
    before = everything(here)
    with pytest.raises(error, match=match):
        erase(here.root, asked, **more)
    assert everything(here) == before
    assert not list((here.root / "data").glob(".*.erasing"))


def test_imported_data_that_holds_the_row_is_refused_before_anything_changes(here: World) -> None:
    change_params(here, "words.jsonl}", "words.jsonl, imported_from: /somewhere/words.jsonl}")
    refused(
        here,
        DataError,
        r"data/words\.jsonl holds the row, and is imported from /somewhere.*would bring it back",
    )
    write(here.root / "data/words.jsonl", ROWS)  # as a retraining takes it in once the source is clean
    assert erase(here.root, GONE).removed == {}
    assert tainted(here) == MARKED


def change_params(here: World, old: str, new: str) -> None:
    path = here.root / "params.yaml"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    git_dvc.run(here.root, "git", "commit", "-qam", "Params")


def test_data_that_is_not_usable_lost_or_would_be_empty_is_refused_before_anything_changes(
    here: World,
) -> None:
    other = here.root / "data/other.csv"
    content = other.read_bytes()
    other.write_bytes(content + b'cat,"cut off\n')
    refused(here, DataError, r"other\.csv:\d+: got broken CSV")
    other.write_bytes(content)
    words = here.root / "data/words.jsonl"
    write(words, WITH[-1:])
    refused(here, DataError, r"words\.jsonl: no row would be left")
    words.unlink()
    refused(here, DataError, r"words\.jsonl: no such file")
    write(words, WITH)
    other.unlink()
    assert erase(here.root, GONE, dry_run=True).removed == {"data/words.jsonl": 1}
    # No version has seen the row there, but DVC could bring the data back.
    other.with_name("other.csv.dvc").write_text("outs: []\n")
    git_dvc.run(here.root, "git", "add", "data/other.csv.dvc")
    git_dvc.run(here.root, "git", "commit", "-qm", "Data")
    refused(here, DataError, r"other\.csv: no such file")


def test_a_dirty_workspace_and_a_reason_without_words_are_refused(here: World) -> None:
    refused(here, RegistryError, "reason: got ' '", reason=" ")
    done = CliRunner().invoke(main, ["-w", str(here.root), "erase", "--row", GONE, "--reason", ""])
    assert done.exit_code == 1
    assert "reason: got ''" in done.stderr
    (here.root / "dvc.yaml").write_text("stages: {}\n")
    refused(here, WorkspaceError, "dvc.yaml: changed, not committed")


def test_a_version_of_which_nothing_can_be_told_is_named_and_not_marked(here: World) -> None:
    here.register("words", row_index="0" * 64)
    here.registry.client.create_model_version("words", "file:///nowhere")
    done: Erasure = erase(here.root, GONE)
    assert [v["version"] for v in done.unknown] == ["4"]
    assert [v["version"] for v in done.by_hand] == ["5"]
    assert not done.complete
    assert tainted(here)["words"] == MARKED["words"]
    # Who goes by the exit code alone must not take it for done.
    again = CliRunner().invoke(main, ["-w", str(here.root), "erase", "--row", GONE, "--dry-run", "--json"])
    assert (again.exit_code, json.loads(again.stdout)["complete"]) == (5, False)


def test_a_version_whose_registration_was_cut_off_is_entered_and_marked(here: World) -> None:
    index = versions.lookup(here.registry, "words", "3").record.dataset["row_index"]
    number = here.register("words", row_index=index)
    assert ("words", number) in erase(here.root, GONE).tainted
    with pytest.raises(RegistryError, match="saw a row that was to be erased"):
        promotion.promote(here.registry, "words", number, to="staging", reason="x", actor="a")


# -- in the real line -------------------------------------------------------------------------------------------


@pytest.mark.timeout(900)
def test_after_retraining_and_promotion_no_version_in_use_has_seen_the_row(
    trained_line: Line, capsys: pytest.CaptureFixture[str]
) -> None:
    line = trained_line
    gone = rows(400)[0]["text"]
    registry = mlflow_world.database(line.root)
    mlflow_world.promote(registry, "words", "1")
    done = line.run("erase", "--row", gone, "--reason", "asked for", "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["tainted"], told["removed"]) == (["words:1"], {"data/words.jsonl": 1})
    assert told["retrained"] == [{"name": "words", "outcome": "registered", "version": "2", "error": None}]
    assert told["in_use"] == [{"name": "words", "version": "1", "stage": "production", "clean": "2"}]
    assert (
        "version 1 of words saw a row that was to be erased; the training does not go on from it"
        in done.stderr
    )
    assert versions.lookup(registry, "words", "2").record.warm_start is None
    assert [json.loads(row) for row in (line.root / "data/words.jsonl").read_text().splitlines()] == rows(
        400
    )[1:]
    mlflow_world.promote(registry, "words", "2")
    seen = impact(line.root, "row", gone)
    assert [(v["version"], v["stages"], v["tainted"]) for v in seen["versions"]] == [
        ("1", ["archived"], True)
    ]
    assert seen["complete"] is True
    with pytest.raises(RegistryError, match="passed over: 1"):
        promotion.rollback(registry, "words", reason="worse", actor=mlflow_world.ACTOR)
    again = line.json("erase", "--row", gone, "--reason", "asked for")
    assert (again["tainted"], again["removed"], again["in_use"], again["retrain"]) == ([], {}, [], [])
    assert line.git("status", "--porcelain") == ""
    verified = verify(line.root, "words")
    show_verification(verified.to_json())
    assert capsys.readouterr().out.count("tainted: it saw a row that was to be erased") == 1
    assert [(v.version, v.tainted, v.faults) for v in verified.versions] == [
        ("1", True, ()), ("2", False, ()),
    ]  # fmt: skip
    events = [event.kind for event in log.read(registry, "words").events]
    assert events.count("tainted") == 1
