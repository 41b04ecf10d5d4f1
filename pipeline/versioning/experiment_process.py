"""The process an experiment runs in: `python -m pipeline.versioning.experiment_process ALIVE LOG DVC-ARGUMENTS…`.

It is DVC's command line with two differences. What DVC itself says goes to the file LOG, so that the standard output
is the stages' own. And it ends, with everything it started, with the process that started it (`pipeline.orphans`).
"""

from __future__ import annotations

import sys

from pipeline.orphans import end_with_parent


def main(arguments: list[str]) -> int:
    """Run DVC; its exit status.

    Args:
        arguments: the pipe's file descriptor, the log file, then DVC's arguments.
    """
    alive, log, *command = arguments
    end_with_parent(int(alive))
    with open(log, "w", buffering=1, encoding="utf-8") as own:  # noqa: PTH123  (one line, one write)
        sys.stdout = sys.stderr = own
        from dvc.cli import main as dvc

        return int(dvc(command))


if __name__ == "__main__":
    # The process exits without closing `own` twice: what hangs on sys.stdout at exit is the real one again.
    status = main(sys.argv[1:])
    sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__
    sys.exit(status)
