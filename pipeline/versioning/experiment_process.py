"""The process an experiment runs in: `python -m pipeline.versioning.experiment_process ALIVE LOG DVC-ARGUMENTS…`.

It is DVC's command line with two differences. What DVC itself says goes to the file LOG, so that the standard output
is the stages' own. And when the process that started it goes away, even by kill -9, it ends with everything it
started: an orphan would go on training beside the next attempt.
"""

from __future__ import annotations

import os
import signal
import sys
import threading


def _end_with_parent(alive: int) -> None:
    """Wait until the pipe `alive` closes, which the system does when its other end's process is gone."""
    os.read(alive, 1)
    os.killpg(os.getpgrp(), signal.SIGKILL)


def main(arguments: list[str]) -> int:
    """Run DVC; its exit status.

    Args:
        arguments: the pipe's file descriptor, the log file, then DVC's arguments.
    """
    alive, log, *command = arguments
    threading.Thread(target=_end_with_parent, args=(int(alive),), daemon=True).start()
    with open(log, "w", buffering=1, encoding="utf-8") as own:  # noqa: PTH123  (one line, one write)
        sys.stdout = sys.stderr = own
        from dvc.cli import main as dvc

        return int(dvc(command))


if __name__ == "__main__":
    # The process exits without closing `own` twice: what hangs on sys.stdout at exit is the real one again.
    status = main(sys.argv[1:])
    sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__
    sys.exit(status)
