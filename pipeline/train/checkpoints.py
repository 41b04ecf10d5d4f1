"""Checkpoints of a training: written whole or not at all, verified before use, safetensors and JSON only.

A folder of checkpoints, one training's (its caller names it by run key):

    lock                        held while a process trains here
    curves.jsonl                the curves so far; another process may follow it while it grows
    step-00000120/              the newest two
        content/state.json      counters
        content/state.safetensors
        manifest.json           {file: SHA-256} of content/
    finished/                   the result, once there is one; laid out alike

A folder appears under its name by one rename after everything in it is on the disk, so a half-written one is
never seen; one that no longer fits its manifest is passed over for the one before.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from pipeline import digest, files
from pipeline.errors import IntegrityError, TrainingError

CURVES = "curves.jsonl"
KEPT = 2
_log = logging.getLogger(__name__)


def write(folder: Path, step: int, state: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> None:
    """Keep `state` (plain JSON) and `tensors` as the checkpoint after `step`, and drop all but the newest two.

    Raises:
        TrainingError: the disk is full or not writable; the checkpoints before are as they were.
    """
    from safetensors.torch import save

    with saving(f"the checkpoint after step {step}", folder):
        path = folder / f"step-{step:08d}"
        if path.exists():  # resumed from it, and nothing was done since
            return
        with sealed(path) as content:
            files.write_bytes(content / "state.safetensors", save(dict(tensors)))
            files.write_json(content / "state.json", state)
        for old in _newest_first(folder)[KEPT:]:
            shutil.rmtree(old)


def newest(folder: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]] | None:
    """State and tensors of the newest checkpoint that is whole and whose curves are still there.

    Those passed over are named in a warning and deleted, because what is written next takes their place.
    """
    from safetensors.torch import load

    for path in _newest_first(folder):
        try:
            content = opened(path)
            state = json.loads((content / "state.json").read_text(encoding="utf-8"))
            curves = folder / CURVES
            size = curves.stat().st_size if curves.exists() else 0
            if size < state["curve_bytes"]:
                raise IntegrityError([f"{curves}: {size} bytes, expected at least {state['curve_bytes']}"])
        except IntegrityError as error:
            _log.warning("a checkpoint is not used: %s", error)
            shutil.rmtree(path)
            continue
        return state, load((content / "state.safetensors").read_bytes())
    return None


def drop(folder: Path) -> None:
    """Delete the checkpoints of a training that is finished."""
    for path in _newest_first(folder):
        shutil.rmtree(path)


def check_identity(folder: Path, found: str, expected: str) -> None:
    """Refuse to go on with another training's checkpoints.

    Raises:
        TrainingError: the two differ.
    """
    if found != expected:
        raise TrainingError(
            f"{folder} holds a training with other settings, data or base (it has identity {found}, this one has "
            f"{expected}); delete that folder, or give this training one of its own"
        )


def _newest_first(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*"), reverse=True)


@contextmanager
def sealed(path: Path) -> Iterator[Path]:
    """A folder to fill that appears at `path` with a manifest once the block ends, and on disk.

    Yields:
        The folder for its content.
    """
    with files.new_folder(path) as fresh:
        content = fresh / "content"
        content.mkdir()
        yield content
        files.write_json(fresh / "manifest.json", digest.manifest(content))
        for file in content.rglob("*"):
            _flush(file)
        _flush(content)
        _flush(fresh)
    _flush(path.parent)


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def opened(path: Path) -> Path:
    """The content of a sealed folder, verified.

    Raises:
        IntegrityError: it is not what was sealed.
    """
    try:
        expected = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError) as error:
        raise IntegrityError([f"{path / 'manifest.json'}: {error}"]) from None
    digest.verify(path / "content", expected)
    return path / "content"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep every other process out of `folder` for the block's duration; a process that dies lets go.

    What a process that was killed while writing left half-done is cleared away.

    Raises:
        TrainingError: another process is in it, or it is not writable.
    """
    with saving("checkpoints", folder):
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / "lock").open("a")
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise TrainingError(
                f"another process is training in {folder}; wait for it to end, or stop it, and run again"
            ) from None
        for half_done in folder.glob(".*"):
            if half_done.is_dir():  # a hidden file is not ours
                shutil.rmtree(half_done)
        yield


@contextmanager
def saving(what: str, folder: Path) -> Iterator[None]:
    """Turn a full or unwritable disk into a TrainingError that says what to do."""
    try:
        yield
    except OSError as error:
        raise TrainingError(
            f"{what} could not be saved under {folder}: {error.strerror or error}. "
            "Free some space there (or make it writable) and run again: training goes on from the newest checkpoint"
        ) from error
