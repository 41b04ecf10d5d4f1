"""Where things lie in a workspace's `.prefixline/`, which git and DVC do not see."""

from __future__ import annotations

from pathlib import Path


def checkpoint_folder(root: Path, run_key: str) -> Path:
    """Where a training keeps its checkpoints and its growing curves.jsonl."""
    return root / ".prefixline" / "checkpoints" / run_key


def adapters_folder(root: Path) -> Path:
    """Where adapters to compare with or to go on from are put for the stages, by their digest."""
    return root / ".prefixline" / "adapters"


def row_ids_folder(root: Path, name: str, md5: str) -> Path:
    """Where the row ids of a dataset version are kept, for the next version's card."""
    return root / ".prefixline" / "row_ids" / name / md5


def row_index_file(root: Path, digest: str) -> Path:
    """Where the row index with this digest is kept once it has been asked; versions with equal rows share it."""
    return root / ".prefixline" / "row_index" / digest
