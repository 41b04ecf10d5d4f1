"""Ending a process with the one that started it, however that ends: an orphan would go on working beside the next."""

from __future__ import annotations

import os
import signal
import threading


def end_with_parent(alive: int) -> None:
    """Watch the pipe `alive`; when its other end closes, kill this process's group.

    The system closes the other end when the process that holds it is gone, even by kill -9. This process must
    lead a group of its own.
    """
    threading.Thread(target=_wait, args=(alive,), daemon=True).start()


def _wait(alive: int) -> None:
    os.read(alive, 1)
    os.killpg(os.getpgrp(), signal.SIGKILL)
