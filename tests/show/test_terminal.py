"""What the terminal says of a card's room for texts, and that nobody's words steer it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from pipeline.data.dataset import summarise
from pipeline.ledger.history import history
from pipeline.ledger.log import Reading
from pipeline.params import DataParams
from pipeline.show.terminal import show_card, show_history, show_overview, show_verification
from tests.ledger import world
from tests.tiny import WORDS


@pytest.mark.parametrize(
    ("encoder_decoder", "said"),
    [
        (False, "the window is 40 tokens, of which 32 are left beside the prefix"),
        (True, "source and target may have 40 tokens each"),
    ],
)
def test_the_room_beside_a_prefix_is_said_and_that_an_encoder_decoders_takes_none(
    t5_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], encoder_decoder: bool, said: str
) -> None:
    rows = [{"source": word, "target": "cat"} for word in WORDS]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    card = summarise(
        tmp_path / "rows.jsonl",
        DataParams(path="rows.jsonl"),
        "generation",
        tokenizer=PreTrainedTokenizerFast.from_pretrained(t5_folder),
        window=40,
        prefix_length=8,
        encoder_decoder=encoder_decoder,
    )
    show_card(card, tmp_path / "page.html")
    assert said in " ".join(capsys.readouterr().out.split())


HOSTILE = "[/red]\x1b[2J"


def test_what_mlflow_and_params_say_cannot_steer_the_overview(capsys: pytest.CaptureFixture[str]) -> None:
    version = {"version": HOSTILE, "stages": [], "tainted": False}
    prefix = {
        "name": HOSTILE, "task": HOSTILE, "base_model": HOSTILE, "dataset": {"path": HOSTILE, "md5": None},
        "versions": [version], "last": {"outcome": HOSTILE, "ended": ""}, "schedule": HOSTILE, "out_of_step": [],
    }  # fmt: skip
    show_overview({"workspace": HOSTILE, "prefixes": [prefix], "servers": None})
    gone = {"name": HOSTILE, "version": HOSTILE, "run_id": None}
    show_verification({"versions": [], "gone": [gone], "sound": False, "files": 0, "bytes": 0, "seconds": 0})
    shown = capsys.readouterr().out
    assert "\x1b" not in shown
    assert shown.count("[/red]") >= 8


@pytest.mark.parametrize(
    ("newest", "epochs", "hidden"),
    [(None, "1234", None), (4, "1234", None), (3, "234", "1 earlier event"), (2, "34", "2 earlier events")],
)
def test_a_long_history_shows_its_newest_events_and_says_how_many_came_before(
    capsys: pytest.CaptureFixture[str], newest: int | None, epochs: str, hidden: str | None
) -> None:
    chained = world.chain("register 1", "register 2", "staging 1", "production 1")
    told = history(Reading(world.NAME, "run", tuple(chained), {}, None))
    signed = [{**row, "signed_by": None} for row in told["events"]]
    show_history({**told, "events": signed}, newest=newest)
    said = capsys.readouterr().out
    rows = [line.split("\u2502")[1].strip() for line in said.splitlines() if line.startswith("\u2502")]
    assert "".join(rows) == epochs
    note = f"{hidden} not shown; `prefixline history {world.NAME} --all` shows them"
    assert (note in said) is (hidden is not None)
    assert ("not shown" in said) is (hidden is not None)
    assert "production: 1" in said
