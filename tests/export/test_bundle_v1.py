"""Format 1 of the bundle: one that was exported when the format was written down, verified for ever."""

from __future__ import annotations

import hashlib
from pathlib import Path

from peft import PeftConfig
from safetensors.torch import load_file

from tests.export.world import copied, faults, files, rewrite

FIXTURE = Path(__file__).parent / "fixtures" / "bundle-v1"
PUBLIC = "910f96eb48d0ec03b206ef5fb3be46296cd3a92c11d5ff93421ecdd9d9df8bd8"


def test_this_release_finds_nothing_wrong_with_it_or_its_signature() -> None:
    assert faults(FIXTURE, "--public-key", PUBLIC) == set()


def test_this_release_still_finds_a_letter_that_was_changed_in_its_record(tmp_path: Path) -> None:
    bundle = copied(FIXTURE, tmp_path)
    rewrite(bundle, "lineage.json", lambda content: content.replace(b'"tiny"', b'"tinY"', 1))
    assert ("out of step", "ledger", "epoch 1: lineage record") in faults(bundle)


def test_it_is_what_its_page_says() -> None:
    said = dict(reversed(line.split("  ")) for line in (FIXTURE / "SHA256SUMS").read_text().splitlines())
    others = [name for name in files(FIXTURE) if name != "SHA256SUMS"]
    assert said == {name: hashlib.sha256((FIXTURE / name).read_bytes()).hexdigest() for name in others}
    assert PeftConfig.from_pretrained(str(FIXTURE)).peft_type == "PREFIX_TUNING"
    (prompt,) = [
        value for name, value in load_file(FIXTURE / "adapter_model.safetensors").items() if "prompt" in name
    ]
    assert prompt.ndim == 2
