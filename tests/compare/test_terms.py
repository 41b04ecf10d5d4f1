"""What a comparison says of itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.compare import terms
from tests.compare.world import setting

LORA = {"trainable_parameters": 9, "details": {"rank": 2, "targets": ["query"]}}


def said(base: Path, folder: Path, *names: str, **training: Any) -> str:
    shared = setting(folder, base, "classification", **training)
    records = {name: LORA if name == "lora" else {"trainable_parameters": 9} for name in names}
    swept = [terms.Swept(name, 0.1, (), ()) for name in names]
    return " ".join([*terms.equal(shared, swept, 4, [0]), *terms.not_equal(shared, swept, records)])


def test_without_dropout_it_says_so(encoder_folder: Path, tmp_path: Path) -> None:
    text = said(encoder_folder, tmp_path, "prefix", "lora", dropout=0.0)
    assert "no dropout in the base" in text
    assert "no dropout of what it reads" in text
    assert "Dropout:" not in text


@pytest.mark.parametrize("others", [("lora",), ("prompt",), ("prompt", "ptuning", "lora")])
def test_with_dropout_it_says_what_each_method_drops(
    encoder_folder: Path, tmp_path: Path, others: tuple[str, ...]
) -> None:
    text = said(encoder_folder, tmp_path, "prefix", *others, dropout=0.25)
    assert "dropout of 0.25 of what it reads" in text
    assert "the prefix drops its own numbers with probability 0.25, in each row by itself" in text
    assert ("lora_dropout" in text) == ("lora" in others)
    assert ("the soft prompts nothing of their own" in text) == ("prompt" in others)


def test_it_says_what_the_head_reads_and_what_that_is_under_a_soft_prompt(
    encoder_folder: Path, tmp_path: Path
) -> None:
    own = said(encoder_folder, tmp_path / "own", "prefix", "prompt")
    assert "The classification head: the same first weights" in own
    assert "reads the first virtual token under prompt tuning" in own
    mean = said(encoder_folder, tmp_path / "mean", "prefix", "prompt", head_pooling="mean")
    assert "The classification head: on the mean of the tokens, the same first weights" in mean
    assert "the mean that the head reads is of the text's tokens" in mean
    assert "first virtual token" not in mean
