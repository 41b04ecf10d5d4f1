"""Where a base model's files are, and which of them make its identity.

Identity. A base model is named by one SHA-256, the digest of {file name: SHA-256} over exactly those files
that decide what it computes:

- `config.json`, and `generation_config.json` where there is one;
- the weights transformers would read: `model.safetensors`, else `model.safetensors.index.json` and the shards
  it names;
- the tokenizer: `TOKENIZER_FILES` and any `*.model` (SentencePiece).

Only the top level of the folder counts, and only names and bytes: READMEs, other weight formats, folders, dates
and symbolic links (a hub cache is made of them) change nothing. So a hub snapshot, a copy on disk and a Python
package that carry the same model have the same digest, and renaming or re-sharding the weights makes another.

Nothing executable is accepted: safetensors only, no pickle, no remote code.
"""

from __future__ import annotations

import json
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pipeline.digest import digest, sha256_file
from pipeline.errors import BaseModelError
from pipeline.params import HubSource, PackageSource, PathSource

CONFIG, GENERATION_CONFIG = "config.json", "generation_config.json"
WEIGHTS, WEIGHTS_INDEX = "model.safetensors", "model.safetensors.index.json"
TOKENIZER_FILES = (
    "added_tokens.json",
    "chat_template.jinja",
    "merges.txt",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
)
_HUB_FILES = (
    CONFIG,
    GENERATION_CONFIG,
    WEIGHTS,
    WEIGHTS_INDEX,
    "model-*.safetensors",
    *TOKENIZER_FILES,
    "*.model",
)
_EXECUTABLE = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".h5", ".msgpack")


def find(
    source: HubSource | PathSource | PackageSource, expected: str, workspace: Path, where: str
) -> tuple[Path, dict[str, str]]:
    """The folder the source names, and its identity's files.

    Args:
        expected: the pinned digest; a cached hub model that has it is not looked for again.
        workspace: the folder that a relative path is taken from.
        where: the source's place in params.yaml, for messages.

    Raises:
        BaseModelError: it is not there, incomplete, or asks for code or pickle to be run.
    """
    if isinstance(source, HubSource):
        return _from_hub(source, expected, where)
    folder = folder_of(source, workspace, where)
    return folder, identity_files(folder, where=where)


def folder_of(source: PathSource | PackageSource, workspace: Path, where: str) -> Path:
    """The folder the source names, whatever lies there; arguments as in `find`.

    Raises:
        BaseModelError: the package is not installed.
    """
    if isinstance(source, PathSource):
        return workspace / Path(source.path).expanduser()
    return _packaged(source, where)


def identity_files(folder: Path, *, where: str = "base model") -> dict[str, str]:
    """{file name: SHA-256} of the files in `folder` that the identity covers, sorted by name. Raises as `identity_names`."""
    return {name: sha256_file(folder / name) for name in identity_names(folder, where=where)}


def identity_names(folder: Path, *, where: str = "base model") -> list[str]:
    """The names of the files in `folder` that the identity covers, sorted.

    Raises:
        BaseModelError: a file the model cannot do without is missing, or running code is asked for.
    """
    if not folder.is_dir():
        raise BaseModelError(f"{where}: {folder} is not a folder; expected one with {CONFIG} and {WEIGHTS}")
    config = read_json(folder / CONFIG, where)
    for name, content in {CONFIG: config, "tokenizer_config.json": None}.items():
        if content is None and (folder / name).is_file():
            content = read_json(folder / name, where)
        if content and "auto_map" in content:
            raise BaseModelError(
                f"{where}: {folder / name} has auto_map, which asks for the model's own Python code to be run. "
                "prefixline never does; use a model whose architecture is part of transformers"
            )
    names = {CONFIG, *_weight_files(folder, where)}
    names.update(name for name in (GENERATION_CONFIG, *TOKENIZER_FILES) if (folder / name).is_file())
    names.update(path.name for path in folder.glob("*.model") if path.is_file())
    return sorted(names)


def _weight_files(folder: Path, where: str) -> list[str]:
    if (folder / WEIGHTS).is_file():
        return [WEIGHTS]
    if (folder / WEIGHTS_INDEX).is_file():
        shards = read_json(folder / WEIGHTS_INDEX, where).get("weight_map")
        if not isinstance(shards, dict) or not shards:
            raise BaseModelError(
                f"{where}: {folder / WEIGHTS_INDEX} has no weight_map; fetch the model again"
            )
        names = sorted({str(shard) for shard in shards.values()})
        for name in names:
            if Path(name).name != name or not name.endswith(".safetensors"):
                raise BaseModelError(
                    f"{where}: {folder / WEIGHTS_INDEX} names {name!r}; expected a .safetensors file beside it"
                )
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            raise BaseModelError(
                f"{where}: {folder} lacks {len(missing)} of {len(names)} weight files ({', '.join(missing)}); "
                "fetch the model again"
            )
        return [WEIGHTS_INDEX, *names]
    unsafe = sorted(path.name for path in folder.iterdir() if path.suffix in _EXECUTABLE)
    if unsafe:
        raise BaseModelError(
            f"{where}: {folder} has its weights only as {', '.join(unsafe)}, a format that can run code when it is "
            f"loaded; expected {WEIGHTS}. Convert it once, where you trust it: load it with transformers and call "
            "model.save_pretrained(folder), or use a revision that has safetensors"
        )
    raise BaseModelError(f"{where}: {folder} has no {WEIGHTS} and no {WEIGHTS_INDEX}")


def read_json(path: Path, where: str) -> dict[str, Any]:
    """The mapping in a JSON file.

    Raises:
        BaseModelError: there is no such file, or it holds something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BaseModelError(
            f"{where}: {path} does not exist; expected a model folder of transformers"
        ) from None
    except ValueError as error:  # not UTF-8, or not JSON
        raise BaseModelError(f"{where}: {path} is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise BaseModelError(f"{where}: {path} holds {type(content).__name__}; expected a mapping")
    return content


def _packaged(source: PackageSource, where: str) -> Path:
    """The package's folder, by its import specs alone: none of its code is run."""
    first, *rest = source.package.split(".")
    spec = find_spec(first)
    for depth, _ in enumerate(rest, start=2):
        inside = list(spec.submodule_search_locations or ()) if spec else []
        spec = PathFinder.find_spec(".".join([first, *rest][:depth]), inside) if inside else None
    if spec is None or not spec.submodule_search_locations:
        raise BaseModelError(
            f"{where}: the Python package {source.package!r} is not installed here; "
            "install the distribution that carries it (for the demo: the extra `demo`)"
        )
    return _inside(spec, source.folder, where)


def _inside(spec: ModuleSpec, folder: str, where: str) -> Path:
    roots = [Path(location).resolve() for location in spec.submodule_search_locations or ()]
    for root in roots:
        wanted = (root / folder).resolve()
        if wanted.is_relative_to(root) and wanted.is_dir():
            return wanted
    raise BaseModelError(f"{where}: {folder!r} is not a folder inside the package {spec.name} ({roots[0]})")


def _from_hub(source: HubSource, expected: str, where: str) -> tuple[Path, dict[str, str]]:
    from huggingface_hub import is_offline_mode, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    def snapshot(*, local: bool) -> Path:
        return Path(
            snapshot_download(
                source.hub, revision=source.revision, allow_patterns=list(_HUB_FILES), local_files_only=local
            )
        )

    problem = ""
    try:
        folder = snapshot(local=True)
        files = identity_files(folder, where=where)
        if digest(files) == expected or is_offline_mode():
            return folder, files
    except LocalEntryNotFoundError:
        problem = "it is not in the local cache"
    except BaseModelError as error:  # an interrupted download leaves part of the files
        problem = str(error)
    if is_offline_mode():
        raise BaseModelError(
            f"{where}: {source.hub} at {source.revision} cannot be used offline: {problem}. "
            "Unset HF_HUB_OFFLINE to download it, or use a path"
        )
    try:
        folder = snapshot(local=False)
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise BaseModelError(
            f"{where}: {source.hub} at {source.revision} could not be downloaded: {error}"
        ) from error
    return folder, identity_files(folder, where=where)
