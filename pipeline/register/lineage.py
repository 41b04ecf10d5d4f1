"""What a version was made from, by hash: the lineage record, the run key and the identity of this code.

Laws (tested): `LineageRecord.from_json(record.to_json()) == record`, equal records have equal bytes and equal
digests, and any other byte in the JSON gives another digest or an IntegrityError.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import platform
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from pipeline.data.splits import SPLITS
from pipeline.digest import canonical_json, digest, sha256_file
from pipeline.errors import IntegrityError
from pipeline.params import PrefixEntry

FORMAT_VERSION = 1
"""Of the record's JSON. A reader refuses what it does not know."""

LIBRARIES = (
    "torch",
    "transformers",
    "datasets",
    "safetensors",
    "scikit-learn",
    "sacrebleu",
    "mlflow",
    "dvc",
    "prefect",
)
"""The libraries whose versions a record names: those that compute the result or keep it."""

_NEEDED: Mapping[str, frozenset[str]] = {
    "base_model": frozenset({"name", "digest", "source", "files"}),
    "dataset": frozenset(
        {"path", "md5", "git_commit", "manifest", "rows", "labels", "splits", "row_ids", "row_root"}
    ),
    "code": frozenset({"commit", "version", "digest", "dirty"}),
    "environment": frozenset({"python", "platform", "libraries", "lock"}),
    "experiment": frozenset({"commit", "name"}),
    "runs": frozenset({"mlflow", "prefect"}),
    "files": frozenset(),
    "params": frozenset(),
    "metrics": frozenset(),
    "verdict": frozenset(),
}


@dataclass(frozen=True, kw_only=True)
class LineageRecord:
    """Everything a version was made from. All values are plain JSON, without a path of this machine's own (a base
    model's source stands in it as params.yaml has it).

    Attributes:
        prefix: the prefix's name in params.yaml.
        run_key: identity of the retraining, 64 hex characters.
        files: {file of the adapter folder: SHA-256}.
        adapter_digest: SHA-256 over `files`.
        base_model: {name, digest, source, files {file: SHA-256}}.
        dataset: {path, md5 (DVC's), git_commit, manifest {file: SHA-256}, rows {split: int, total: int},
            labels [str] | null, splits {split: SHA-256 over its prepared files}, row_ids: SHA-256 of the sorted row
            ids, row_root: Merkle root over them, row_index: digest of the index of its rows}.
        params: the prefix's resolved parameters, every section.
        code: {commit: the workspace's, from which the experiment started; version and digest (SHA-256 over the
            sources) of prefixline as installed; dirty: false, since uncommitted changes are refused}.
        environment: {python, platform, libraries {name: version}, lock: SHA-256 over `installed`}.
        experiment: {commit, name} of the DVC experiment.
        runs: {mlflow, prefect}: their run ids, null where there was none.
        metrics: {system: {metric: value}} on the test split.
        verdict: the gate's answer, as its `to_json` gives it.
        seed: of the training.
        created: ISO 8601 time, given by the caller.
        warm_start: the adapter the training went on from: {adapter_digest, prefix, version} of a registered version,
            or {adapter_digest, adapter} of a folder as params.yaml named it; null where it began anew.
        format_version: of this record.
    """

    prefix: str
    run_key: str
    files: Mapping[str, str]
    adapter_digest: str
    base_model: Mapping[str, Any]
    dataset: Mapping[str, Any]
    params: Mapping[str, Any]
    code: Mapping[str, Any]
    environment: Mapping[str, Any]
    experiment: Mapping[str, Any]
    runs: Mapping[str, Any]
    metrics: Mapping[str, Any]
    verdict: Mapping[str, Any]
    seed: int
    created: str
    warm_start: Mapping[str, Any] | None = None
    format_version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        if problems := self._problems():
            raise IntegrityError(problems, heading=f"The lineage record of {self.prefix!r} is not complete:")

    def to_json(self) -> bytes:
        """Canonical JSON: the bytes whose SHA-256 is `digest`."""
        return canonical_json(asdict(self))

    @property
    def digest(self) -> str:
        """SHA-256 of `to_json()`, 64 hex characters."""
        return digest(asdict(self))

    @property
    def verdict_digest(self) -> str:
        """SHA-256 of the verdict as canonical JSON, 64 hex characters: what the ledger names it by."""
        return digest(dict(self.verdict))

    def made_run_key(self) -> str:
        """The run key that follows from all that the record names; `run_key` is the one that it says."""
        start = self.warm_start
        return run_key(
            dataset_md5=self.dataset["md5"],
            manifest=self.dataset["manifest"],
            base_digest=self.base_model["digest"],
            params=self.params,
            code_digest=self.code["digest"],
            warm_start=None if start is None else start["adapter_digest"],
        )

    @classmethod
    def from_json(cls, content: bytes) -> LineageRecord:
        """The record whose `to_json` is `content`.

        Raises:
            IntegrityError: `content` is not canonical JSON of a complete record of a known format version.
        """
        try:
            raw = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise IntegrityError([f"lineage record: is not JSON ({error})"]) from None
        if not isinstance(raw, dict) or raw.get("format_version") != FORMAT_VERSION:
            got = raw.get("format_version") if isinstance(raw, dict) else type(raw).__name__
            raise IntegrityError(
                [f"lineage record: format version is {got!r}; this release reads {FORMAT_VERSION}"]
            )
        known = {field.name for field in fields(cls)}
        problems = [f"lineage record: {key!r} is missing" for key in sorted(known - raw.keys())]
        problems += [f"lineage record: {key!r} is unknown" for key in sorted(raw.keys() - known)]
        if problems:
            raise IntegrityError(problems)
        try:
            record = cls(**raw)
            canonical = record.to_json()
        except (ValueError, RecursionError) as error:  # NaN, or what is no Unicode text
            raise IntegrityError([f"lineage record: has no canonical JSON ({error})"]) from None
        if canonical != content:
            raise IntegrityError(["lineage record: the JSON is not canonical; someone rewrote it"])
        return record

    def _problems(self) -> list[str]:
        problems = []
        for name, needed in _NEEDED.items():
            value = getattr(self, name)
            if not isinstance(value, Mapping):
                problems.append(f"{name}: got {type(value).__name__}; expected a mapping")
            else:
                problems += [f"{name}.{key}: missing" for key in sorted(needed - value.keys())]
        if problems:
            return problems
        for where, manifest in (
            ("files", self.files),
            ("base_model.files", self.base_model["files"]),
            ("dataset.manifest", self.dataset["manifest"]),
        ):
            if not isinstance(manifest, Mapping) or not all(
                isinstance(sha, str) for sha in manifest.values()
            ):
                problems.append(f"{where}: expected {{file: SHA-256}}")
        start = self.warm_start
        if start is not None and not (
            isinstance(start, Mapping)
            and "adapter_digest" in start
            and ("adapter" in start or {"prefix", "version"} <= start.keys())
        ):
            problems.append(
                "warm_start: expected null, or an adapter_digest with prefix and version, or with adapter"
            )
        if problems:
            return problems
        if self.code["dirty"] is not False:
            problems.append("code.dirty: the tree had uncommitted changes; commit them first")
        if self.adapter_digest != digest(dict(self.files)):
            problems.append(f"adapter_digest: {self.adapter_digest} is not the digest of files")
        return problems


def identity_params(entry: PrefixEntry) -> dict[str, Any]:
    """The parameters that decide a retraining's result and verdict, as plain JSON values.

    Left out: when it runs (`schedule`), what moves it from stage to stage (`promotion`), how often it saves (`checkpoint_seconds`), how many processes share the work
    (`processes`, which trained.json names), and where data, base and warm start come from (`data.path`,
    `data.imported_from`, `base_model`, `prefix.version`, `prefix.adapter`), which are in the run key by content.
    """
    return entry.model_dump(
        mode="json",
        exclude={
            "schedule": True,
            "promotion": True,
            "base_model": True,
            "training": {"checkpoint_seconds", "processes"},
            "data": {"path", "imported_from"},
            "prefix": {"version", "adapter"},
        },
    )


def pinned_params(params: Mapping[str, Any], pins: Mapping[str, Any]) -> dict[str, Any]:
    """A record's `params` with every value that its experiment was started with in its place.

    Equal to `params` exactly where the two agree; the gate is not pinned, and judges by the record's own.

    Args:
        pins: the `params` of pins/NAME.json, which have more than decides a result.
    """
    found = {}
    for section, recorded in params.items():
        if section == "gate":
            found[section] = recorded
        elif isinstance(recorded, Mapping) and isinstance(given := pins.get(section), Mapping):
            found[section] = {key: given.get(key) for key in recorded}
        else:
            found[section] = pins.get(section)
    return found


def run_key(
    *,
    dataset_md5: str,
    manifest: Mapping[str, str],
    base_digest: str,
    params: Mapping[str, Any],
    code_digest: str,
    warm_start: str | None,
) -> str:
    """The identity of a retraining, 64 hex characters: equal exactly when all that decides it is equal.

    Args:
        dataset_md5: DVC's hash of the raw data.
        manifest: {raw file: SHA-256}.
        base_digest: SHA-256 over the base model's files.
        params: `identity_params(entry)`.
        code_digest: `code_identity()["digest"]`.
        warm_start: digest of the adapter that the training goes on from; None where it begins anew.
    """
    return digest(
        {
            "dataset": {"md5": dataset_md5, "manifest": dict(manifest)},
            "base_model": base_digest,
            "params": dict(params),
            "code": code_digest,
            "warm_start": warm_start,
        }
    )


def code_identity() -> dict[str, str]:
    """{version, digest} of the installed `pipeline` and `flows`: SHA-256 over their sources and templates.

    The digest follows the files that run, installed or in a checkout, whatever git says about them.
    """
    files: dict[str, str] = {}
    for package in ("pipeline", "flows"):
        spec = importlib.util.find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            raise IntegrityError([f"{package}: the package is not installed; install prefixline again"])
        root = Path(next(iter(spec.submodule_search_locations)))
        for path in sorted(root.rglob("*")):
            inside = path.relative_to(root)
            is_source = path.suffix == ".py" or "templates" in inside.parts
            if is_source and path.is_file() and "__pycache__" not in inside.parts:
                files[f"{package}/{inside.as_posix()}"] = sha256_file(path)
    return {"version": importlib.metadata.version("prefixline"), "digest": digest(files)}


def split_digests(manifest: Mapping[str, str]) -> dict[str, str]:
    """{split: SHA-256 over its files} by the manifest of a prepared.json: of `prepared/SPLIT/FILE`, {FILE: SHA-256}."""
    parts: dict[str, dict[str, str]] = {split: {} for split in SPLITS}
    for name, sha256 in manifest.items():
        _, _, inside = name.partition("/")
        split, slash, file = inside.partition("/")
        if slash and split in parts:
            parts[split][file] = sha256
    return {split: digest(files) for split, files in parts.items()}


def installed() -> dict[str, str]:
    """{distribution: version} of everything installed beside this process, names as PEP 503 writes them: the lock."""
    versions: dict[str, str] = {}
    for found in importlib.metadata.distributions():
        # The first on the path is the one that is imported.
        versions.setdefault(re.sub(r"[-_.]+", "-", found.name).lower(), found.version)
    return versions


def environment_identity() -> dict[str, Any]:
    """{python, platform, libraries {name: version}, lock: SHA-256 over `installed`} of this process."""
    return {
        "python": platform.python_version(),
        "platform": f"{platform.system()}-{platform.machine()}".lower(),
        "libraries": {name: importlib.metadata.version(name) for name in LIBRARIES},
        "lock": digest(installed()),
    }
