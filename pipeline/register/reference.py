"""What a person calls a version: NAME, NAME:NUMBER or NAME@STAGE."""

from __future__ import annotations

import re

from pipeline.errors import RegistryError
from pipeline.register import versions
from pipeline.tracking.connection import Registry


def parse(connection: Registry, reference: str) -> tuple[str, str]:
    """(name, which) as `versions.lookup` takes them; NAME alone is its newest version that is no duplicate.

    Raises:
        RegistryError: `reference` is no version's name, or NAME alone has no version.
    """
    if not re.fullmatch(r"[a-z][a-z0-9_-]*([:@][\w-]+)?", reference):
        raise RegistryError(f"{reference!r} is no version's name; expected NAME, NAME:NUMBER or NAME@STAGE")
    for separator in ("@", ":"):
        name, found, which = reference.partition(separator)
        if found and name and which:
            return name, which
    counting = [v for v in versions.list_versions(connection, reference) if v.duplicate_of is None]
    if not counting:
        raise RegistryError(
            f"{reference}: no version is registered under this name; `prefixline status` lists them, "
            "`prefixline retrain NAME` makes one"
        )
    return reference, counting[-1].version
