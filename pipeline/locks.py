"""Locks between processes: the operating system's, so that they end with the process, however that ends."""

from __future__ import annotations

import fcntl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def exclusive(path: Path, *, waiting: Callable[[], None] | None = None) -> Iterator[int]:
    """Hold the lock file `path`, waiting for whoever holds it now.

    Args:
        waiting: called once if somebody does hold it.

    Yields:
        The open file's descriptor: a child process that inherits it holds the lock as long as it lives.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if waiting is not None:
                waiting()
            fcntl.flock(file, fcntl.LOCK_EX)
        yield file.fileno()
