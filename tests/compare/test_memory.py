"""Peaks: of this process alone, and since the last beginning."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from pipeline.compare import memory

linux = pytest.mark.skipif(
    not sys.platform.startswith("linux"),
    reason="the peak asked for here is the kernel's in /proc; elsewhere memory.peak uses getrusage",
)


@linux
def test_a_peak_holds_what_was_let_go_since_and_a_new_one_does_not():
    memory.begin()
    block = np.ones(20_000_000)  # 160 MB
    del block
    high = memory.peak()
    held = memory.begin()
    assert held is not None
    assert high - held > 140e6
    assert memory.peak() - held < 60e6


def test_without_proc_the_systems_own_figure_is_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(memory, "_STATUS", tmp_path / "none")
    monkeypatch.setattr(memory, "_CLEAR", tmp_path / "none" / "either")
    assert memory.begin() is None
    assert memory.peak() > 10e6


def test_a_status_without_the_figure_is_as_good_as_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    (tmp_path / "status").write_text("Name: x\n")
    monkeypatch.setattr(memory, "_STATUS", tmp_path / "status")
    assert memory.peak() > 10e6
