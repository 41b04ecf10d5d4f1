"""What a process knows of torchrun's launcher that started it, without importing torch.

`pipeline.train.launch` is that launcher on one machine; on several it is torchrun itself, or accelerate.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

from pipeline.orphans import end_with_parent

ALIVE = "PREFIXLINE_LAUNCHER"
"""The environment variable that tells the path of the pipe that ends with the launcher, where that is ours."""


def launched() -> bool:
    """Whether a launcher started this process as one of those that train together.

    RANK and WORLD_SIZE alone do not say so: schedulers of clusters set them for any process.
    """
    return "TORCHELASTIC_RUN_ID" in os.environ


def is_first() -> bool:
    """Whether this process is the one that writes: by itself, or of rank 0."""
    return not launched() or os.environ["RANK"] == "0"


def end_with_launcher() -> None:
    """End this process when our launcher ends, even by kill -9; nothing where the launcher is another's."""
    if ALIVE in os.environ:
        # Without waiting for a writer: where the launcher is gone already, there is none to come.
        pipe = os.open(os.environ[ALIVE], os.O_RDONLY | os.O_NONBLOCK)
        os.set_blocking(pipe, True)
        end_with_parent(pipe)


def report(kind: str, message: str) -> bool:
    """Leave an error where the launcher looks for it; whether the launcher is ours, and will say it.

    Args:
        kind: the name of the exception's type.
    """
    if "TORCHELASTIC_ERROR_FILE" in os.environ:
        details = {"py_callstack": "", "timestamp": str(int(time.time()))}
        content = {"message": {"message": f"{kind}: {message}", "extraInfo": details}}
        Path(os.environ["TORCHELASTIC_ERROR_FILE"]).write_text(json.dumps(content), encoding="utf-8")
    return ALIVE in os.environ
