"""Every error prefixline raises on purpose.

The tree; each kind of fault has a type of its own, because each asks for a different reaction:

    PrefixlineError
    ├── ParamsError          params.yaml is wrong (all problems at once, each with its key path)
    ├── WorkspaceError       the folder is not a clean, complete workspace
    ├── BaseModelError       the base model is missing, of another shape, or not loadable safely
    ├── DataError            the data is wrong (all problems found, each with file and line)
    ├── IntegrityError       bytes are not what their recorded SHA-256 says (tampering or corruption)
    ├── PrefixError          this model, input or adapter cannot carry this prefix
    │   └── AdapterError     adapter files are incomplete, malformed or of another shape
    ├── TrainingError        training cannot go on
    │   ├── NonFiniteLossError
    │   ├── LostProcessError           another of the processes that train together ended
    │   └── TrainingInterruptedError   SIGINT or SIGTERM came; running again goes on
    ├── ExperimentError      a DVC stage failed
    ├── CompareError         methods cannot be compared: one is unknown, not installed, or did not train
    ├── RegistryError        MLflow refused, or holds something that contradicts us
    ├── ConflictError        somebody else moved a stage first
    ├── RefusedError         a rule or an approver said no to a promotion
    ├── ExportError          a version cannot be given out in the form asked for, or not to that place
    ├── KeyFileError         a file holds no private key, or is open to others
    ├── ServerError          a server could not be started, or ended by itself
    └── UnreachableError     a server did not answer

A message says what was got, what was expected, where, and what to do.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable

_DISK = frozenset(
    {
        errno.ENOSPC,
        errno.EDQUOT,
        errno.EFBIG,
        errno.EROFS,
        errno.EACCES,
        errno.EPERM,
        errno.ENOTDIR,
        errno.ENAMETOOLONG,
        errno.ELOOP,
        errno.EISDIR,
        errno.EIO,
    }
)


class PrefixlineError(Exception):
    """The base of all of them; the command line prints it without a traceback and exits 1 unless its kind says otherwise."""


class _ListedError(PrefixlineError):
    """An error that reports every problem found, one line each.

    Args:
        problems: one sentence each, beginning with where it is.
        heading: what was being looked at.
    """

    def __init__(self, problems: Iterable[str], *, heading: str = "") -> None:
        self.problems = tuple(problems)
        lines = [heading, *self.problems] if heading else list(self.problems)
        super().__init__("\n  ".join(lines))


class ParamsError(_ListedError):
    """params.yaml is wrong; `problems` has a line per key path."""


class WorkspaceError(PrefixlineError):
    """The folder is not a clean, complete workspace."""


class BaseModelError(PrefixlineError):
    """The base model is missing, of another shape, or not loadable safely."""


class DataError(_ListedError):
    """The data is wrong; `problems` has a line per fault, beginning with file and line."""


class IntegrityError(_ListedError):
    """Bytes are not what their recorded SHA-256 says; `problems` is the whole difference."""


class PrefixError(PrefixlineError):
    """This model, input or adapter cannot carry this prefix."""


class AdapterError(PrefixError):
    """Adapter files are incomplete, malformed or of another shape."""


class TrainingError(PrefixlineError):
    """Training cannot go on."""


class NonFiniteLossError(TrainingError):
    """The loss became NaN or infinite."""


class LostProcessError(TrainingError):
    """Another of the processes that train together has ended; the reason is in its own error."""


class TrainingInterruptedError(TrainingError):
    """SIGINT or SIGTERM came; a checkpoint was kept, and running again goes on from it."""


class ExperimentError(PrefixlineError):
    """A DVC stage failed; the message holds the stage's own last lines."""


class CompareError(PrefixlineError):
    """Methods cannot be compared: one is unknown, not installed, or did not train."""


class RegistryError(PrefixlineError):
    """MLflow refused, or holds something that contradicts the record."""


class ConflictError(PrefixlineError):
    """Somebody else moved a stage first; the message says what stands now and who moved it. Exit code 4."""


class RefusedError(PrefixlineError):
    """A rule or an approver said no to a promotion, or nobody approved it in time. Exit code 3."""


class ExportError(PrefixlineError):
    """A version cannot be given out in the form asked for, or not to that place."""


class KeyFileError(PrefixlineError):
    """A file holds no private key, or others than its owner may read it."""


class UnreachableError(PrefixlineError):
    """A server did not answer."""


class ServerError(PrefixlineError):
    """A server could not be started, or ended by itself; the message holds its log's last lines."""


def disk_fault(error: OSError) -> str | None:
    """What to tell the user where their disk or folders are the reason of `error`; None where it is our bug."""
    if error.errno not in _DISK:
        return None
    where = f"{error.filename}: " if error.filename else ""
    return f"{where}{error.strerror or error}. Mend this and run the same command again"
