"""What the README shows in Python works as it stands there."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.base.base_files import identity_files
from pipeline.digest import digest
from pipeline.prefix.adapter import adapter_facts

README = Path(__file__).parents[1] / "README.md"


def test_the_engine_by_itself_trains_saves_loads_and_generates(
    decoder_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import peft
    from transformers import AutoModelForCausalLM

    section = README.read_text(encoding="utf-8").split("## The engine by itself")[1].split("\n## ")[0]
    (code,) = re.findall(r"```python\n(.*?)```", section, flags=re.DOTALL)
    shutil.copytree(decoder_folder, tmp_path / "path" / "to" / "base")
    monkeypatch.chdir(tmp_path)
    found: dict[str, Any] = {}
    exec(compile(code, "README.md", "exec"), found)

    batch, model, prefix = found["batch"], found["model"], found["prefix"]
    ids = batch.input_ids
    base = AutoModelForCausalLM.from_pretrained(decoder_folder).eval()
    with torch.no_grad():
        before = base(**batch, labels=ids).loss.item()
        with found["attach"](model, prefix):
            ours = model(**batch, labels=ids)
        theirs = peft.PeftModel.from_pretrained(base, str(tmp_path / "adapter")).eval()(**batch, labels=ids)
    assert ours.loss.item() < before - 0.1
    assert theirs.loss.item() == pytest.approx(ours.loss.item(), abs=1e-5)
    facts = adapter_facts(tmp_path / "adapter")
    assert facts.base_digest == found["base"] == digest(identity_files(decoder_folder))
    assert found["written"].shape[0] == 1
    assert 1 <= found["written"].shape[1] <= 8
