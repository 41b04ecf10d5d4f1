"""A process for each piece of work, so that one method's memory is not another's: `python -m pipeline.compare.worker`.

    worker ALIVE train FOLDER      the training whose job.json is in FOLDER
    worker ALIVE serve FOLDER…     the trained methods as they are used: scored where they are not yet, and timed in turns

What a person watches goes to stderr. The last line on stdout is JSON: what was found, or {"error": …}. Exit codes: 0
done, 1 error, 130 interrupted. It ends with the process that started it, however that ends.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pipeline.environment import SWITCHES
from pipeline.errors import CompareError, PrefixlineError, TrainingInterruptedError, disk_fault
from pipeline.orphans import end_with_parent

EXIT_INTERRUPTED = 130
Work = Literal["train", "serve"]


def start(work: Work, folders: Sequence[Path], *, what: str) -> Any:
    """Have a new process do `work`; what it found.

    Ctrl-C is passed on, and waited for: a training first keeps a checkpoint.

    Args:
        what: names the work in messages.

    Raises:
        CompareError: it could not be done, with the reason.
        KeyboardInterrupt: it was interrupted.
    """
    watched, alive = os.pipe()
    command = [sys.executable, "-m", "pipeline.compare.worker", str(watched), work, *map(str, folders)]
    with os.fdopen(alive, "wb"):
        with os.fdopen(watched, "rb"):
            process = subprocess.Popen(
                command,
                stdout=subprocess.PIPE,
                text=True,
                pass_fds=(watched,),
                process_group=0,  # Ctrl-C reaches it once, from here
                env={**os.environ, "PYTHONSAFEPATH": "1"},
            )
        try:
            output, _ = process.communicate()
        except KeyboardInterrupt:
            process.send_signal(signal.SIGINT)
            process.communicate()
            raise
    if process.returncode == EXIT_INTERRUPTED:
        raise KeyboardInterrupt
    answer: Any = None
    with contextlib.suppress(IndexError, ValueError):  # it was killed before it could say anything
        answer = json.loads(output.splitlines()[-1])
    if process.returncode != 0 or answer is None:
        reason = (answer or {}).get("error", f"its process ended with exit code {process.returncode}")
        raise CompareError(f"{what}: {reason}")
    return answer


def main(arguments: list[str]) -> int:
    """Do one piece of work; the exit code."""
    alive, work, *folders = arguments
    end_with_parent(int(alive))
    for name, value in SWITCHES.items():
        os.environ.setdefault(name, value)
    try:
        found = _work(work, [Path(folder) for folder in folders])
    except (KeyboardInterrupt, TrainingInterruptedError):
        return EXIT_INTERRUPTED
    except PrefixlineError as error:
        found = {"error": str(error)}
    except OSError as error:
        if (message := disk_fault(error)) is None:
            raise
        found = {"error": message}
    print(json.dumps(found), flush=True)  # noqa: T201
    return 1 if "error" in found else 0


def _work(work: str, folders: list[Path]) -> dict[str, Any]:
    from pipeline.compare import job

    jobs = [(job.read(folder), folder) for folder in folders]
    first, folder = jobs[0]
    import torch

    from pipeline.compare import serving, trainer

    if (threads := first.setting.training.threads) is not None:
        torch.set_num_threads(threads)
    if work == "train":
        trainer.run(first, folder)
        return {}
    for one, place in jobs:
        if not serving.is_scored(one, place):
            serving.score(one, place)
    seen: dict[str, Any] = {}
    for one, place in jobs:
        seen.setdefault(one.method, (one, place))
    return serving.latencies(list(seen.values()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
