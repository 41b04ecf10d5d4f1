"""What a training goes on from: a registered version or an adapter's folder, pinned by the content of its files.

Which one it is is decided before the run key is made, so that the key, the pins and the lineage record name the same
adapter, whatever is promoted meanwhile.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from pipeline import digest
from pipeline.base.base_model import ResolvedBase
from pipeline.errors import IntegrityError, PrefixError
from pipeline.files import new_folder
from pipeline.params import PrefixEntry, SplitParams
from pipeline.pins import WarmStart
from pipeline.register import versions
from pipeline.register.registry import Registry
from pipeline.register.versions import RegisteredVersion, VerifiedVersion
from pipeline.state import adapters_folder


def resolve(
    registry: Registry,
    root: Path,
    name: str,
    entry: PrefixEntry,
    base: ResolvedBase,
    say: Callable[[str], None] = lambda line: None,
) -> WarmStart | None:
    """The adapter that the training of the prefix `name` goes on from; None where it begins anew.

    Nothing is fetched yet. Where `prefix.version` is null and nothing is in production, the training begins anew:
    a prefix's first retraining could otherwise never be. It does so too where the version is tainted: what saw a row that
    was to be erased is not gone on from.

    Args:
        root: the workspace's, which a relative `prefix.adapter` is taken from.
        say: told where a tainted version is passed over.

    Raises:
        PrefixError: the adapter is for another base, task or length, or, if registered, of other splits, whose
            training rows may be test rows today; or a folder's is that of a tainted version.
        AdapterError: the folder holds no whole adapter.
        RegistryError: there is no such version.
        IntegrityError: the version's record is not the one it was registered with.
    """
    params = entry.prefix
    if params.initialisation == "adapter":
        assert params.adapter is not None
        start = _of_folder(root / params.adapter, params.adapter, entry, base)
        _refuse_tainted(versions.with_adapter(registry, start.adapter_digest), params.adapter)
        return start
    if params.initialisation != "version":
        return None
    if params.version is None:
        verified = versions.production(registry, name)
        if verified is None:
            return None
    else:
        prefix, which = re.split("[:@]", params.version)
        verified = versions.lookup(registry, prefix, which)
    if verified.version.tainted:
        say(
            f"{name}: version {verified.version.version} of {verified.version.name} saw a row that was to be erased; the "
            "training does not go on from it, but begins anew, as while nothing is in production\n"
        )
        return None
    return _of_version(verified, entry, base)


def fetch(registry: Registry, root: Path, start: WarmStart, adapters: Path | None = None) -> Path:
    """The pinned adapter as a folder in `adapters`, its files hashed.

    Args:
        root: the workspace's.
        adapters: where adapters are kept by digest; those of the workspace if None.

    Raises:
        IntegrityError: they are no longer those that were pinned.
        RegistryError: the version is gone.
        PrefixError: the folder it was in is gone.
    """
    kept = adapters_folder(root) / start.adapter_digest
    adapters = adapters or adapters_folder(root)
    folder = adapters / start.adapter_digest
    if "adapter" not in start.source:
        verified = versions.lookup(registry, start.source["prefix"], start.source["version"])
        return versions.fetch(registry, verified, adapters).folder
    source = kept if kept.exists() else root / start.source["adapter"]
    if not folder.exists():
        with new_folder(folder) as fresh:
            for file in _files():
                try:
                    shutil.copyfile(source / file, fresh / file)
                except FileNotFoundError:
                    raise PrefixError(
                        f"{source / file}: no such file; it is part of the adapter {start.adapter_digest} that the "
                        "training went on from. Bring it back and run this again"
                    ) from None
            _verify(fresh, start, f"{source} has changed since the retraining began; run it again:")
    _verify(folder, start, f"{folder} is not what it was; delete it and run the retraining again:")
    return folder


def _of_version(verified: VerifiedVersion, entry: PrefixEntry, base: ResolvedBase) -> WarmStart:
    version, record = verified.version, verified.record
    problems = _misfits(
        {
            "task": record.params["task"],
            "length": record.params["prefix"]["length"],
            "base": record.base_model["digest"],
        },
        entry,
        base,
    )
    splits = SplitParams.model_validate(record.params["data"]["splits"])
    if splits != entry.data.splits:
        problems.append(
            f"it was trained with the splits {splits!r}, and data.splits is {entry.data.splits!r}: rows it was trained "
            "on could be test rows now"
        )
    _raise_if_any(problems, f"version {version.version} of {version.name}")
    return WarmStart(record.adapter_digest, {"prefix": version.name, "version": version.version})


def _of_folder(folder: Path, named: str, entry: PrefixEntry, base: ResolvedBase) -> WarmStart:
    from pipeline.prefix.adapter import adapter_facts

    facts = adapter_facts(folder)
    known = {"task": facts.task, "length": facts.length, "base": facts.base_digest}
    _raise_if_any(_misfits(known, entry, base), f"the adapter in {folder}")
    manifest = {file: digest.sha256_file(folder / file) for file in _files()}
    return WarmStart(digest.digest(manifest), {"adapter": named})


def _refuse_tainted(found: Iterable[RegisteredVersion], named: str) -> None:
    """A folder is named on purpose, so there is nothing to fall back to."""
    for version in found:
        if version.tainted:
            raise PrefixError(
                f"prefix.adapter: {named} is the adapter of version {version.version} of {version.name}, which saw a row "
                "that was to be erased; name another, or set prefix.initialisation: text"
            )


def _files() -> tuple[str, str]:
    """What of an adapter's folder counts: PEFT writes a README beside it."""
    from pipeline.prefix.adapter import WEIGHTS
    from pipeline.prefix.adapter_config import CONFIG

    return CONFIG, WEIGHTS


def _misfits(found: Mapping[str, Any], entry: PrefixEntry, base: ResolvedBase) -> list[str]:
    """Why an adapter of this task, length and base (None where it does not say) cannot be gone on from."""
    problems = []
    if found["task"] != entry.task:
        problems.append(f"it is for {found['task']}; expected {entry.task}")
    if found["length"] != entry.prefix.length:
        problems.append(
            f"it has {found['length']} positions, and prefix.length is {entry.prefix.length}; expected the same"
        )
    if found["base"] is not None and found["base"] != base.digest:
        problems.append(f"it was trained on the base model {found['base']}; {base.name} is {base.digest}")
    return problems


def _raise_if_any(problems: list[str], what: str) -> None:
    if problems:
        raise PrefixError(
            f"cannot go on from {what}: {'; '.join(problems)}. Change that, or set prefix.initialisation: text"
        )


def _verify(folder: Path, start: WarmStart, heading: str) -> None:
    found = digest.digest(digest.manifest(folder))
    if found != start.adapter_digest:
        raise IntegrityError(
            [f"SHA-256 over its files is {found}, expected {start.adapter_digest}"], heading=heading
        )
