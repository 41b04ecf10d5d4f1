"""Which versions' trainings went on from which others, by what every version is tagged with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from pipeline.errors import IntegrityError, RegistryError
from pipeline.register import versions
from pipeline.register.origin import Origin
from pipeline.register.registry import Registry
from pipeline.register.versions import RegisteredVersion

Key = tuple[str, str]
"""A version by name and number."""


def key_of(version: RegisteredVersion) -> Key:
    """Its name and number."""
    return version.name, version.version


def origins(
    connection: Registry, made: Iterable[RegisteredVersion]
) -> tuple[dict[Key, Origin], dict[Key, str]]:
    """What each version was made from; and of those whose record cannot be had, why."""
    known, unknown = {}, {}
    for version in made:
        try:
            known[key_of(version)] = versions.origin(connection, version)
        except (IntegrityError, RegistryError) as error:
            unknown[key_of(version)] = str(error)
    return known, unknown


def parents(
    made: Mapping[Key, RegisteredVersion], known: Mapping[Key, Origin]
) -> tuple[dict[Key, list[Key]], dict[Key, str]]:
    """{version: the versions its training may have gone on from}, for each that did not begin anew.

    An adapter given as a folder is every version's with that adapter. Where there is none, or the version named has
    been deleted, what came before is not known; the second answer says of those what was lost.
    """
    adapters: dict[str, list[Key]] = {}
    for key, version in made.items():
        adapters.setdefault(version.tags.get(versions.ADAPTER_DIGEST, ""), []).append(key)
    found, lost = {}, {}
    for key, origin in known.items():
        if (start := origin.warm_start) is None:
            continue
        name, colon, number = start.partition(":")
        if colon:
            found[key] = [(name, number)] if (name, number) in made else []
            what = f"version {number} of {name}, which is not in the registry any more"
        else:
            found[key] = [other for other in adapters.get(start, ()) if other != key]
            what = f"an adapter in a folder ({start}), which is no registered version's"
        if not found[key]:
            lost[key] = what
    return found, lost


def children(parents: Mapping[Key, Sequence[Key]]) -> dict[Key, list[Key]]:
    """{version: the versions whose training went on from it}."""
    turned: dict[Key, list[Key]] = {}
    for child, its in parents.items():
        for parent in its:
            turned.setdefault(parent, []).append(child)
    return turned
