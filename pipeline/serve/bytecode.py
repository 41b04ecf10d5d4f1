"""What Python keeps of a version's code when it is loaded, and that nothing of it stays."""

from __future__ import annotations

from contextlib import suppress
from importlib.machinery import ModuleSpec
from pathlib import Path


def forget(spec: ModuleSpec) -> None:
    """Delete the bytecode that Python has kept of a module as it loaded it (PEP 3147), and its folder if that is empty then.

    MLflow loads a version from the folder in which it is stored. A file that comes up there is none of those in the
    version's manifest, and would be reported as tampering. Where the folder cannot be written to, all stays as it is.
    """
    if spec.cached is None:
        return
    kept = Path(spec.cached)
    with suppress(OSError):
        kept.unlink(missing_ok=True)
        kept.parent.rmdir()
