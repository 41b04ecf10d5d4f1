"""From what a version was made of forward to the versions: against answers found by looking through everything."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from pipeline.audit.impact import Kind, impact
from pipeline.data.splits import SPLITS, split_of
from pipeline.environment import quiet_environment
from pipeline.errors import DataError, IntegrityError, RegistryError, UnreachableError, WorkspaceError
from pipeline.params import SplitParams
from pipeline.register import versions
from pipeline.show.terminal import show_impact
from pipeline.state import row_index_file
from tests import git_dvc
from tests.audit import world
from tests.audit.world import World
from tests.tiny import WORDS

HALVES = SplitParams(train=0.5, validation=0.25, test=0.25)


@pytest.fixture(scope="module")
def encoder(encoder_folder: Path) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast.from_pretrained(encoder_folder)


@pytest.fixture(scope="module")
def decoder(decoder_folder: Path) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast.from_pretrained(decoder_folder)


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return world.make(tmp_path_factory.mktemp("empty")).root.parent


@pytest.fixture
def here(empty: Path, tmp_path: Path) -> World:
    """A workspace of its own for each test."""
    shutil.copytree(empty / "workspace", tmp_path / "workspace", symlinks=True)
    return world.open_world(tmp_path)


def ask(here: World, kind: Kind, asked: str) -> dict[str, Any]:
    return impact(here.root, kind, asked)


def names(found: Mapping[str, Any], part: str = "versions") -> list[str]:
    return [f"{version['name']}:{version['version']}" for version in found[part]]


def sentence(draw: random.Random) -> str:
    return " ".join(draw.choices(WORDS, k=draw.randint(3, 9)))


def some_rows(count: int, seed: int = 0) -> list[dict[str, str]]:
    draw = random.Random(seed)
    texts = list(dict.fromkeys(sentence(draw) for _ in range(3 * count)))[:count]
    return [{"text": text, "label": ("cat", "dog")[number % 2]} for number, text in enumerate(texts)]


def respelt(text: str, draw: random.Random) -> str:
    """The text with a difference that does not count."""
    return draw.choice(
        [
            text,
            text.upper(),
            text.title(),
            f"  {text}\n",
            text.replace(" ", "\t \u00a0"),
            "".join(chr(ord(letter) + 0xFEE0) if letter.isalpha() else letter for letter in text),
        ]
    )


def plain(text: str) -> str:
    """An independent form of what counts as the same text."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


# -- rows ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def grown(
    tmp_path_factory: pytest.TempPathFactory,
    encoder: PreTrainedTokenizerFast,
    decoder: PreTrainedTokenizerFast,
) -> tuple[World, dict[str, list[dict[str, Any]]], dict[str, str | None]]:
    """Seven versions of two prefixes on growing data with different splits; their rows; what each went on from."""
    here = world.make(tmp_path_factory.mktemp("grown"))
    rows = some_rows(150)
    pairs = [
        {"source": row["text"], "target": [f"{row['label']} {n}" for n in range(1 + number % 2)]}
        for number, row in enumerate(some_rows(90, seed=5))
    ]
    plan: list[tuple[str, list[dict[str, Any]], SplitParams, str | None]] = [
        ("words", rows[:70], SplitParams(), None),
        ("words", rows[:100], HALVES, None),
        ("words", rows[:100], HALVES, "words:1"),  # with the same data as the version before
        ("words", rows[40:150], SplitParams(salt="x"), "words:2"),  # without some of the rows
        ("replies", pairs[:60], SplitParams(), None),
        ("replies", pairs, HALVES, "replies:1"),
        ("words", rows[110:150], HALVES, "words:4"),
    ]
    seen: dict[str, list[dict[str, Any]]] = {}
    parents: dict[str, str | None] = {}
    for name, own, splits, parent in plan:
        index = here.index(own, encoder if name == "words" else decoder, splits)
        warm = None if parent is None else here.warm(*parent.split(":"))
        version = here.register(name, row_index=index, warm_start=warm)
        seen[f"{name}:{version}"] = own
        parents[f"{name}:{version}"] = parent
    return here, seen, parents


def brute_force(
    seen: Mapping[str, list[dict[str, Any]]], parents: Mapping[str, str | None], text: str
) -> set[str]:
    """Look through every row of every version, and through all it went on from."""
    found = set()
    for name in seen:
        at: str | None = name
        while at is not None:
            if plain(text) in {plain(row.get("text") or row["source"]) for row in seen[at]}:
                found.add(name)
            at = parents[at]
    return found


def test_100_random_rows_are_found_in_the_versions_that_a_search_through_all_rows_finds(grown) -> None:
    here, seen, parents = grown
    draw = random.Random(3)
    everywhere = [row.get("text") or row["source"] for own in seen.values() for row in own]
    answers = []
    for number in range(100):
        text = sentence(draw) if number % 10 == 9 else draw.choice(everywhere)
        found = ask(here, "row", respelt(text, draw))
        assert set(names(found)) == brute_force(seen, parents, text), text
        assert (found["unknown"], found["by_hand"], found["complete"]) == ([], [], True)
        answers.append(len(names(found)))
    assert len(set(answers)) > 3
    assert answers.count(0) >= 5


def test_a_row_is_found_alike_in_train_validation_and_test(grown) -> None:
    here, seen, _ = grown
    own = seen["words:2"]
    for split in SPLITS:
        texts = [row["text"] for row in own if split_of(row["text"], HALVES) == split]
        assert texts
        assert {"words:2", "words:3"} <= set(names(ask(here, "row", texts[0])))


def test_versions_with_the_same_data_share_one_index(grown) -> None:
    here, seen, _ = grown
    indexes = {record.dataset["row_index"] for record, _ in here.records.values()}
    assert len(indexes) == len(list((here.root / ".prefixline/row_index").iterdir())) == len(seen) - 1


def test_rows_of_a_file_are_found_as_a_whole_and_by_text_alone(grown, tmp_path: Path) -> None:
    here, seen, _ = grown
    first = seen["words:1"][0]
    other = {"text": first["text"], "label": "dog" if first["label"] == "cat" else "cat"}
    absent = {"text": "no such text", "label": "cat"}
    file = tmp_path / "asked.jsonl"

    def found(*rows: Mapping[str, Any]) -> dict[str, Any]:
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return ask(here, "row", str(file))

    whole = found(first, absent)
    assert {"words:1", "words:2", "words:3"} <= set(names(whole))
    direct = {f"{v['name']}:{v['version']}": (v["rows"], v["why"]) for v in whole["versions"] if v["rows"]}
    assert direct["words:1"] == (1, "its dataset version holds 1 of the 2 rows")
    assert whole["rows"] == 2
    assert names(found(other)) == []
    assert names(found({"text": other["text"]})) == names(found(first))


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_csv_and_parquet_are_read_like_the_prefixs_own_data(grown, tmp_path: Path, kind: str) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    here, seen, _ = grown
    row = seen["words:1"][0]
    file = tmp_path / f"asked.{kind}"
    if kind == "csv":
        file.write_text(f'id,label,text\n1,{row["label"]},"{row["text"].upper()}"\n', encoding="utf-8-sig")
    else:
        pq.write_table(pa.Table.from_pylist([row]), file)
    assert {"words:1", "words:2"} <= set(names(ask(here, "row", str(file))))


def test_a_file_with_the_columns_of_one_prefix_is_asked_of_the_others_by_its_texts(
    grown, tmp_path: Path
) -> None:
    here, seen, _ = grown
    source = seen["replies:1"][0]
    file = tmp_path / "asked.jsonl"
    file.write_text(json.dumps({"text": source["source"], "label": "cat"}) + "\n")
    assert names(ask(here, "row", str(file))) == ["replies:1", "replies:2"]
    file.write_text(
        json.dumps({"source": source["source"], "target": ["never", source["target"][-1].upper()]})
    )
    assert names(ask(here, "row", str(file))) == ["replies:1", "replies:2"]
    file.write_text(json.dumps({"source": source["source"], "target": "never"}))
    assert names(ask(here, "row", str(file))) == []


def test_a_text_file_is_one_text_whatever_its_lines(grown, tmp_path: Path) -> None:
    here, seen, _ = grown
    text = seen["words:1"][0]["text"]
    (tmp_path / "text.txt").write_text(text.replace(" ", "\n"), encoding="utf-8-sig")
    assert names(ask(here, "row", str(tmp_path / "text.txt"))) == names(ask(here, "row", text)) != []


def test_a_text_longer_than_a_file_name_can_be_is_a_text(grown) -> None:
    here, _, _ = grown
    found = ask(here, "row", "long " * 3000)
    assert (names(found), found["rows"], found["complete"]) == ([], 1, True)


def test_a_version_that_went_on_from_one_that_saw_the_row_says_through_which(grown) -> None:
    here, seen, _ = grown
    only = next(row["text"] for row in seen["words:2"] if row not in seen["words:4"])
    found = {f"{v['name']}:{v['version']}": v for v in ask(here, "row", only)["versions"]}
    assert found["words:2"]["through"] is None
    assert found["words:4"]["through"] == "words:2"
    assert found["words:4"]["why"] == "its training went on from version 2 of words"
    assert found["words:4"]["rows"] == 0
    assert found["words:5"]["through"] == "words:4"


def test_an_index_damaged_by_one_byte_is_an_error_and_answers_nothing(
    here: World, encoder: PreTrainedTokenizerFast
) -> None:
    rows = some_rows(60)
    index = here.index(rows, encoder)
    here.register(row_index=index)
    file = row_index_file(here.root, index)
    whole = file.read_bytes()
    for place in (0, 70, len(whole) // 2, len(whole) - 1):
        damaged = bytearray(whole)
        damaged[place] ^= 4
        file.write_bytes(damaged)
        with pytest.raises(IntegrityError, match=index):
            ask(here, "row", rows[0]["text"])
    file.write_bytes(whole)
    assert names(ask(here, "row", rows[0]["text"])) == ["words:1"]


def test_an_index_is_fetched_from_what_the_experiment_stored_and_kept(
    here: World, encoder: PreTrainedTokenizerFast
) -> None:
    rows = some_rows(60)
    index = here.index(rows, encoder, keep=False)
    commit = here.experiment("words", here.prepared[index])
    here.register(row_index=index, experiment="7" * 40)  # a commit that is not there
    here.register(row_index=index, experiment=commit)
    assert not row_index_file(here.root, index).exists()
    assert names(ask(here, "row", rows[3]["text"])) == ["words:1", "words:2"]
    assert row_index_file(here.root, index).read_bytes() == (here.prepared[index] / "row_index").read_bytes()
    shutil.rmtree(here.root / ".dvc/cache")
    assert names(ask(here, "row", rows[4]["text"])) == ["words:1", "words:2"]


def test_a_version_whose_index_cannot_be_had_is_unknown_and_so_is_what_went_on_from_it(
    here: World, encoder: PreTrainedTokenizerFast
) -> None:
    rows = some_rows(60)
    lost, kept = here.index(rows, encoder, keep=False), here.index(rows[:50], encoder)
    here.register(row_index=lost)
    here.register(row_index=kept)
    here.register(row_index=here.index(some_rows(60, seed=8), encoder), warm_start=here.warm("words", "1"))
    here.register(row_index=kept, warm_start=here.warm("words", "1"))
    found = ask(here, "row", rows[0]["text"])
    assert names(found) == ["words:2", "words:4"]
    assert found["complete"] is False
    (one, three) = found["unknown"]
    assert (one["version"], three["version"]) == ("1", "3")
    assert one["why"].startswith("the index of its rows cannot be had: ")
    assert "7" * 40 in one["why"]
    assert three["why"] == "its training went on from version 1 of words, of which it cannot be told"


def test_an_index_tampered_with_in_the_cache_is_not_used(
    here: World, encoder: PreTrainedTokenizerFast
) -> None:
    rows = some_rows(60)
    index = here.index(rows, encoder, keep=False)
    here.register(row_index=index, experiment=here.experiment("words", here.prepared[index]))
    content = (here.prepared[index] / "row_index").read_bytes()
    (stored,) = [
        path
        for path in (here.root / ".dvc/cache").rglob("*")
        if path.is_file() and path.read_bytes() == content
    ]
    stored.chmod(0o644)
    stored.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    found = ask(here, "row", rows[0]["text"])
    assert (names(found), names(found, "unknown")) == ([], ["words:1"])
    assert "tampered" in found["unknown"][0]["why"]
    assert not row_index_file(here.root, index).exists()


def test_a_tag_that_names_another_index_than_the_record_is_not_followed(
    here: World, encoder: PreTrainedTokenizerFast
) -> None:
    index = here.index(some_rows(60), encoder, keep=False)
    here.register(row_index=index)
    here.change_tag("words", "1", row_index="0" * 64)
    found = ask(here, "row", "any text")
    assert names(found, "unknown") == ["words:1"]
    assert "tagged with another row index than its lineage record names" in found["unknown"][0]["why"]


def test_a_version_from_before_there_were_indexes_is_unknown(here: World) -> None:
    here.register(row_index=None)
    found = ask(here, "row", "any text")
    assert names(found, "unknown") == ["words:1"]
    assert "before the rows of a dataset version were indexed" in found["unknown"][0]["why"]


BAD_FILES: dict[str, tuple[str, bytes, str]] = {
    "no such file": ("rows.jsonl", b"", "no such file"),
    "empty": ("e.jsonl", b"", "is empty"),
    "blank": ("b.jsonl", b"\n\n", "expected one that a prefix's texts or sources are in"),
    "broken JSON": ("j.jsonl", b'{"text": ', "broken JSON"),
    "no object": ("o.jsonl", b"[1]\n", "expected a JSON object"),
    "other columns": ("c.jsonl", b'{"txt": "a"}\n', 'got the columns "txt"; expected one'),
    "a later row without the column": ("l.jsonl", b'{"text": "a"}\n{"x": 1}\n', "no column"),
    "null text": ("n.jsonl", b'{"text": null}\n', "got null; expected text"),
    "label of a list": ("t.jsonl", b'{"text": "a", "label": [1]}\n', "got list"),
    "no target": ("g.jsonl", b'{"source": "a", "target": []}\n', "got an empty list"),
    "header only": ("h.csv", b"text,label\n", "has no rows"),
    "ragged CSV": ("r.csv", b"text,label\na\n", "got 1 fields; expected 2"),
    "bytes that are no text": ("u.csv", b"text\n\xff\n", "not UTF-8"),
    "broken Parquet": ("p.parquet", b"PAR1", "broken Parquet"),
    "text that is no text": ("x.txt", b"\xff\xfe", "is not UTF-8"),
    "blank text": ("w.txt", b" \n", "only white space"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_a_file_that_cannot_be_read_as_rows_is_said_to_be(grown, tmp_path: Path, case: str) -> None:
    here, _, _ = grown
    name, content, message = BAD_FILES[case]
    if case != "no such file":
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as error:
        ask(here, "row", str(tmp_path / name))
    assert str(tmp_path / name) in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "got an empty text"),
        ("   ", "only white space"),
        ("a\0b", "NUL"),
        ("a\udcffb", "surrogate"),
        ("/", "is a folder"),
    ],
)
def test_a_text_that_is_none_is_refused(grown, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        ask(grown[0], "row", text)


# -- datasets, bases, code -------------------------------------------------------------------------------------


def test_a_dataset_version_is_found_in_all_prefixes_with_the_stages_held_now(here: World) -> None:
    folder = "a1" * 16 + ".dir"
    here.register("words", md5=folder)
    here.register("words", md5="d" * 32)
    here.register("words", md5=folder)
    here.register("other", md5=folder)
    here.stand("words", "1", "production")
    here.stand("words", "3", "candidate")
    here.stand("other", "1", "candidate")
    for asked in (folder, "a1" * 16, "a1a1a1a1"):
        found = ask(here, "dataset", asked)
        assert [(v["name"], v["version"], v["stages"]) for v in found["versions"]] == [
            ("other", "1", ["candidate"]),
            ("words", "1", ["production"]),
            ("words", "3", ["candidate"]),
        ]
        assert (found["meant"], found["searched"], found["complete"]) == (folder, 4, True)
    assert found["versions"][0]["why"] == f"its dataset version is {folder}"


def test_a_base_model_is_found(here: World) -> None:
    here.register(base="1" * 64)
    here.register(base="2" * 64)
    assert names(ask(here, "base", "2" * 64)) == names(ask(here, "base", "22222222")) == ["words:2"]


@pytest.mark.parametrize(("kind", "one", "two"), [("dataset", "md5", "d"), ("base", "base", "b")])
def test_a_beginning_of_several_is_refused_with_those(here: World, kind: Kind, one: str, two: str) -> None:
    length = {"dataset": 32, "base": 64}[kind]
    first, second = ("abcdef01" + end * (length - 8) for end in "01")
    here.register(**{one: first})
    here.register(**{one: second})
    with pytest.raises(RegistryError, match=r"is the beginning of 2: .*; give more of it") as error:
        ask(here, kind, "abcdef01")
    assert first in str(error.value)
    assert names(ask(here, kind, first[:9])) == ["words:1"]


@pytest.mark.parametrize("kind", ["dataset", "base", "code"])
def test_what_no_version_knows_is_an_empty_answer_and_what_is_no_digest_an_error(
    here: World, kind: Kind
) -> None:
    here.register(commit=here.commit())
    for asked in ("0123abcd", "0123abc"):  # git shows seven characters of a commit
        found = ask(here, kind, asked)
        assert (found["versions"], found["meant"], found["complete"]) == ([], None, True)
    for asked in ("", "0123ab", "0123ABCD", "HEAD~1", "0123abcz", "0" * 65, "--all", "0123abcd\n"):
        with pytest.raises(RegistryError, match=f"--{kind} .*expected"):
            ask(here, kind, asked)


def test_a_registry_without_versions_is_an_empty_answer(here: World) -> None:
    for kind, asked in (("dataset", "0" * 32), ("base", "0" * 64), ("code", "0" * 40), ("row", "any text")):
        found = ask(here, kind, asked)  # type: ignore[arg-type]
        assert (found["versions"], found["searched"], found["complete"]) == ([], 0, True)


def test_a_commit_is_found_in_the_versions_whose_code_contains_it(here: World) -> None:
    before, change = here.commit("before"), here.commit("change")
    git_dvc.run(here.root, "git", "branch", "side", before)
    after = here.commit("after")
    git_dvc.run(here.root, "git", "checkout", "-q", "side")
    side = here.commit("side")
    git_dvc.run(here.root, "git", "checkout", "-q", "-")
    git_dvc.run(here.root, "git", "branch", "-D", "side")  # a commit that no branch has is not lost
    for commit in (before, change, after, side, "5" * 40):
        here.register(commit=commit)
    found = ask(here, "code", change[:8])
    assert (names(found), names(found, "unknown")) == (["words:2", "words:3"], ["words:5"])
    assert found["meant"] == change
    assert found["versions"][0]["why"] == f"it was trained by the code of commit {change}"
    assert found["versions"][1]["why"] == f"the code of its commit {after} contains commit {change}"
    assert "is not in this repository" in found["unknown"][0]["why"]
    assert names(ask(here, "code", before)) == ["words:1", "words:2", "words:3", "words:4"]
    assert names(ask(here, "code", side)) == ["words:4"]
    found = ask(here, "code", "5" * 40)
    assert (names(found), found["complete"]) == (["words:5"], True)


def test_a_tree_or_a_blob_is_no_commit(here: World) -> None:
    here.register(commit=here.commit())
    tree = git_dvc.run(here.root, "git", "rev-parse", "HEAD^{tree}")
    assert ask(here, "code", tree)["meant"] is None


def test_two_commits_with_one_beginning_are_refused(here: World) -> None:
    commit = here.commit()
    here.register(commit=commit)
    here.register(commit=commit[:12] + "0" * 28)
    with pytest.raises(RegistryError, match="is the beginning of 2"):
        ask(here, "code", commit[:10])


def test_a_shallow_clone_cannot_say_what_a_commit_contains(here: World) -> None:
    here.register(commit=here.commit())
    (here.root / ".git/shallow").write_text(git_dvc.head(here.root) + "\n")
    with pytest.raises(WorkspaceError, match="git fetch --unshallow"):
        ask(here, "code", "01234567")


# -- warm starts, and versions that cannot be told ---------------------------------------------------------------


def test_warm_starts_are_followed_at_any_remove_across_prefixes(here: World) -> None:
    md5 = "a" * 32
    here.register("words", md5=md5)
    here.register("words", warm_start=here.warm("words", "1"))
    here.register("other", warm_start=here.warm("words", "2"))
    here.register("words", warm_start=here.warm("other", "1"))
    here.register("words")
    found = ask(here, "dataset", md5)
    assert [(f"{v['name']}:{v['version']}", v["through"]) for v in found["versions"]] == [
        ("other:1", "words:2"),
        ("words:1", None),
        ("words:2", "words:1"),
        ("words:3", "other:1"),
    ]
    assert found["complete"] is True


def test_a_version_affected_itself_and_by_what_it_went_on_from_gives_its_own_reason(here: World) -> None:
    here.register(md5="a" * 32)
    here.register(md5="a" * 32, warm_start=here.warm("words", "1"))
    assert [v["through"] for v in ask(here, "dataset", "a" * 32)["versions"]] == [None, None]


def test_tags_that_go_round_in_a_circle_end(here: World) -> None:
    here.register(md5="a" * 32)
    here.register()
    for number, other in (("1", "2"), ("2", "1")):
        here.change_tag("words", number, warm_start=f"words:{other}")
    assert names(ask(here, "dataset", "a" * 32)) == ["words:1", "words:2"]
    assert names(ask(here, "dataset", "c" * 32)) == []


def test_an_adapter_given_as_a_folder_is_the_version_with_the_same_files(here: World) -> None:
    here.register(md5="a" * 32, weights="same")
    adapter = here.warm("words", "1")["adapter_digest"]
    here.register("other", warm_start={"adapter": "adapters/mine", "adapter_digest": adapter})
    here.register("other", warm_start={"adapter": "adapters/theirs", "adapter_digest": "4" * 64})
    found = ask(here, "dataset", "a" * 32)
    assert [(f"{v['name']}:{v['version']}", v["through"]) for v in found["versions"]] == [
        ("other:1", "words:1"),
        ("words:1", None),
    ]
    assert names(found, "unknown") == ["other:2"]
    assert "an adapter in a folder" in found["unknown"][0]["why"]


def test_a_version_that_went_on_from_a_deleted_one_is_unknown(here: World) -> None:
    here.register()
    here.register(warm_start=here.warm("words", "1"))
    here.register(md5="a" * 32, warm_start=here.warm("words", "1"))
    here.registry.client.delete_model_version("words", "1")
    found = ask(here, "dataset", "a" * 32)
    assert (names(found), names(found, "unknown")) == (["words:3"], ["words:2"])
    assert "version 1 of words, which is not in the registry any more" in found["unknown"][0]["why"]


def test_a_version_without_the_tag_is_looked_up_in_its_record(
    here: World, encoder: PreTrainedTokenizerFast
) -> None:
    rows = some_rows(60)
    commit = here.commit()
    here.register(md5="a" * 32, commit=commit, row_index=here.index(rows, encoder), tagged=False)
    here.register(
        warm_start=here.warm("words", "1"), row_index=here.index(some_rows(60, 9), encoder), tagged=False
    )
    for kind, asked in (("dataset", "a" * 32), ("code", commit), ("row", rows[0]["text"])):
        assert names(ask(here, kind, asked)) == ["words:1", "words:2"]  # type: ignore[arg-type]


WRONG_TYPES = '{"base_digest":"b","code_commit":9,"dataset_md5":"c","row_index":null,"warm_start":null}'
NULLS = '{"base_digest":null,"code_commit":null,"dataset_md5":null,"row_index":null,"warm_start":null}'


@pytest.mark.parametrize("value", ["", "{", "[]", '{"code_commit":"9"}', "null", WRONG_TYPES, NULLS])
def test_a_tag_that_says_something_else_is_not_believed(here: World, value: str) -> None:
    here.register(md5="a" * 32)
    here.registry.client.set_model_version_tag("words", "1", versions.MADE_FROM, value)
    assert names(ask(here, "dataset", "a" * 32)) == ["words:1"]


def test_a_version_whose_record_is_tampered_with_or_gone_is_unknown(here: World) -> None:
    for _ in range(2):
        here.register(md5="a" * 32, tagged=False)
    here.records["words", "1"][1].write_text("{}")
    here.records["words", "2"][1].unlink()
    found = ask(here, "dataset", "a" * 32)
    assert (names(found), names(found, "unknown")) == ([], ["words:1", "words:2"])
    assert "is not the one it was registered with" in found["unknown"][0]["why"]


def test_a_version_registered_by_hand_is_named_and_other_models_are_not_searched(here: World) -> None:
    here.register(md5="a" * 32)
    client = here.registry.client
    client.create_model_version("words", "file:///nowhere")
    client.create_registered_model("somebody-elses")
    client.create_model_version("somebody-elses", "file:///nowhere")
    found = ask(here, "dataset", "a" * 32)
    assert (names(found), names(found, "by_hand"), names(found, "unknown")) == (["words:1"], ["words:2"], [])
    assert (found["complete"], found["searched"]) == (False, 2)


def test_versions_that_all_lost_their_tags_are_still_said(here: World) -> None:
    here.register(md5="a" * 32)
    here.stand("words", "1", "candidate")
    for tag in here.registry.client.get_model_version("words", "1").tags:
        here.registry.client.delete_model_version_tag("words", "1", tag)
    found = ask(here, "dataset", "a" * 32)
    assert (names(found, "by_hand"), found["complete"], found["searched"]) == (["words:1"], False, 1)


def test_a_duplicate_is_named_as_one(here: World) -> None:
    here.register(md5="a" * 32)
    first = here.registry.client.get_model_version("words", "1")
    tags = {**first.tags, "prefixline.duplicate_of": "1"}
    here.registry.client.create_model_version("words", first.source, tags=tags)
    found = ask(here, "dataset", "a" * 32)
    assert [(v["version"], v["duplicate_of"]) for v in found["versions"]] == [("1", None), ("2", "1")]


def test_more_versions_than_a_page_holds_are_all_searched(
    here: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(5):
        here.register(md5="a" * 32)
    search = here.registry.client.search_model_versions
    asked = []

    def by_two(filters: str, page_token: str | None = None) -> Any:
        asked.append(page_token)
        return search(filters, max_results=2, page_token=page_token)

    monkeypatch.setattr("mlflow.MlflowClient.search_model_versions", lambda self, *a, **k: by_two(*a, **k))
    assert names(ask(here, "dataset", "a" * 32)) == [f"words:{n}" for n in range(1, 6)]
    assert len(asked) == 3


# -- the command -------------------------------------------------------------------------------------------------


def prefixline(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", "from pipeline.cli import main; main()", *arguments],
        cwd=cwd,
        env={**os.environ, **quiet_environment(), "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def test_the_command_prints_the_answer_as_json_and_for_people(grown, tmp_path: Path) -> None:
    here, seen, _ = grown
    text = seen["words:1"][0]["text"]
    done = prefixline("impact", "--row", text, "--json", cwd=here.root)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == ask(here, "row", text)
    done = prefixline("impact", "--row", text, cwd=here.root)
    assert done.returncode == 0, done.stderr
    assert "came from the row" in done.stdout
    done = prefixline("impact", "--dataset", "0" * 32, cwd=here.root)
    assert (done.returncode, done.stdout) == (
        0,
        f"No version came from dataset version {'0' * 32} (7 searched)\n",
    )


@pytest.mark.parametrize("options", [[], ["--row", "a", "--base", "b"], ["--code", "a", "--dataset", "b"]])
def test_exactly_one_thing_is_asked_about(tmp_path: Path, options: list[str]) -> None:
    done = prefixline("impact", *options, cwd=tmp_path)
    assert (
        done.returncode,
        "expected exactly one of --dataset, --row, --base and --code" in done.stderr,
    ) == (2, True)


def test_bad_input_is_one_message_and_exit_code_1(here: World) -> None:
    for options in (["--base", "12"], ["--row", "rows.csv"]):
        done = prefixline("impact", *options, cwd=here.root)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.startswith("error: ")
        assert "Traceback" not in done.stderr


def test_people_read_the_stages_first_then_what_cannot_be_told(
    here: World, capsys: pytest.CaptureFixture[str]
) -> None:
    here.register(md5="a" * 32)
    here.register(md5="a" * 32)
    here.register(warm_start={"adapter": "x", "adapter_digest": "4" * 64})
    here.registry.client.create_model_version("words", "file:///nowhere")
    here.stand("words", "2", "production")
    show_impact(ask(here, "dataset", "a" * 8))
    said = capsys.readouterr().out
    assert f"2 of 4 versions came from dataset version {'a' * 32}; 1 holds a stage now" in said
    assert said.index("│ 2 ") < said.index("│ 1 ")
    assert "It cannot be told of 1" in said
    assert "words version 4 (no stage) was registered by hand, without lineage" in said


def test_a_server_that_does_not_answer_is_an_error(here: World, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline import server_access
    from pipeline.server_access import Endpoints
    from tests.mlflow_world import free_port

    gone = Endpoints(f"http://127.0.0.1:{free_port()}", None, None, "file:///nowhere")
    monkeypatch.setattr(server_access, "endpoints", lambda root: gone)
    with pytest.raises(UnreachableError):
        ask(here, "dataset", "a" * 32)
