"""How much memory this process has held, as the kernel counts it."""

from __future__ import annotations

import resource
import sys
from contextlib import suppress
from pathlib import Path

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def begin() -> int | None:
    """Start a new peak; what the process holds now, in bytes, or None where that cannot be asked (not Linux)."""
    with suppress(OSError):
        _CLEAR.write_text("5")
        return _status("VmRSS")
    return None


def peak() -> int:
    """The most that was resident since `begin` in bytes; where there is no /proc, since the process began."""
    with suppress(OSError):
        return _status("VmHWM")
    # Not used on Linux: there a process's figure begins with that of the one which started it.
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def _status(name: str) -> int:
    for line in _STATUS.read_text(encoding="ascii").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"{_STATUS} has no {name}")
