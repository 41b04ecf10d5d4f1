"""What the terminal says of a card's room for texts, and that nobody's words steer it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from pipeline.data.dataset import summarise
from pipeline.params import DataParams
from pipeline.show.terminal import show_card, show_overview, show_verification
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
