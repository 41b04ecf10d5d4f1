"""Who acts: the name that the ledger keeps beside every change, and the key that signs it."""

from __future__ import annotations

import getpass
import os
import socket
from pathlib import Path

from pipeline.errors import WorkspaceError
from pipeline.keys import SigningKey, load_key
from pipeline.ledger.events import ACTOR_LIMIT, text_problem
from pipeline.versioning import git

ACTOR = "PREFIXLINE_ACTOR"
"""The environment variable by which a scheduled run or a CI job says who acts."""


KEY = "PREFIXLINE_KEY"
"""The environment variable that names the file of the key to sign with."""


def key_file() -> Path:
    """Where one's key is: `PREFIXLINE_KEY`, else prefixline/key.pem in the user's configuration (XDG)."""
    if given := os.environ.get(KEY):
        return Path(given)
    home = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(home) / "prefixline" / "key.pem"


def signing_key(given: Path | None) -> SigningKey | None:
    """The key to sign with; None where none was named and there is none in the usual place.

    Raises:
        KeyFileError: the file that was named, or the usual one, holds no usable key.
    """
    path = given or key_file()
    if given is None and not os.environ.get(KEY) and not path.exists():
        return None
    return load_key(path)


def actor(root: Path) -> str:
    """`PREFIXLINE_ACTOR` if it is set, else the user's name and address in git, else user@host.

    Args:
        root: the workspace, whose git settings count.

    Raises:
        WorkspaceError: `PREFIXLINE_ACTOR` cannot be a name, or git cannot be run.
    """
    given = os.environ.get(ACTOR)
    if given is not None:
        if (problem := text_problem(given, ACTOR_LIMIT)) is not None or "\n" in given:
            raise WorkspaceError(f"{ACTOR}: {problem or 'got several lines, expected one'}")
        return given
    identity = git.identity(root)
    if identity != git.FALLBACK_IDENTITY:
        return "{} <{}>".format(*identity).encode(errors="replace").decode()[:ACTOR_LIMIT]
    return f"{_user()}@{socket.gethostname()}"[:ACTOR_LIMIT]


def _user() -> str:
    try:
        return getpass.getuser()
    except (
        KeyError,
        OSError,
    ):  # a container's user without a name; which of the two, the version of Python says
        return str(os.getuid())
