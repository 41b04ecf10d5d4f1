"""The frozen base model: found where its source says, verified by content, loaded without running its code.

Identity. A base model is named by one SHA-256, the digest of {file name: SHA-256} over exactly those files
that decide what it computes:

- `config.json`, and `generation_config.json` where there is one;
- the weights transformers would read: `model.safetensors`, else `model.safetensors.index.json` and the shards
  it names;
- the tokenizer: `TOKENIZER_FILES` and any `*.model` (SentencePiece).

Only the top level of the folder counts, and only names and bytes: READMEs, other weight formats, folders, dates
and symbolic links (a hub cache is made of them) change nothing. So a hub snapshot, a copy on disk and a Python
package that carry the same model have the same digest, and renaming or re-sharding the weights makes another.

Nothing executable is read: safetensors only, no pickle, no remote code.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.digest import digest, sha256_file
from pipeline.errors import BaseModelError, IntegrityError
from pipeline.params import BaseModelParams, HubSource, PackageSource, PathSource, Task

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

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
_POSITIONS = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "seq_length")
_OFFSET_POSITIONS = frozenset(
    ("camembert", "data2vec-text", "roberta", "roberta-prelayernorm", "xlm-roberta")
)
"""Architectures whose first position is `pad_token_id + 1`, which many positions are therefore never used."""


@dataclass(frozen=True)
class ResolvedBase:
    """A base model found on this machine whose bytes are the pinned ones.

    Attributes:
        name: its key under `base_models`.
        folder: where its files lie.
        digest: its identity (see the module's text).
        files: {file name: SHA-256} of the files the identity covers.
        source: where it was said to be, as written in params.yaml.
    """

    name: str
    folder: Path
    digest: str
    files: Mapping[str, str]
    source: Mapping[str, str]


def resolve(name: str, params: BaseModelParams, workspace: Path) -> ResolvedBase:
    """Find the base model and verify it against the pinned digest.

    A hub model is taken from the local cache when the whole of it is there, and downloaded otherwise.

    Args:
        name: its key under `base_models`, for messages.
        workspace: the folder that a relative `path` is taken from.

    Raises:
        BaseModelError: it is not there, incomplete, or asks for code or pickle to be run.
        IntegrityError: its digest is another one than pinned.
    """
    where = f"base_models.{name}"
    source = params.source
    if isinstance(source, HubSource):
        folder, files = _from_hub(source, params.digest, where)
    else:
        folder = _local(source, workspace) if isinstance(source, PathSource) else _packaged(source, where)
        files = identity_files(folder, where=where)
    found = digest(files)
    if found != params.digest:
        raise IntegrityError(
            [
                f"found    {found}",
                f"expected {params.digest}",
                f"If these are the files you mean, put the found digest under {where}.digest; otherwise "
                "they were changed: fetch them again",
                *(f"{file}: {sha256}" for file, sha256 in files.items()),
            ],
            heading=f"{where}: the files in {folder} are not the pinned base model (SHA-256):",
        )
    return ResolvedBase(name, folder, found, files, source.model_dump())


def identity_files(folder: Path, *, where: str = "base model") -> dict[str, str]:
    """{file name: SHA-256} of the files in `folder` that the identity covers, sorted by name.

    Raises:
        BaseModelError: a file the model cannot do without is missing, or running code is asked for.
    """
    if not folder.is_dir():
        raise BaseModelError(f"{where}: {folder} is not a folder; expected one with {CONFIG} and {WEIGHTS}")
    config = _read_json(folder / CONFIG, where)
    for name, content in {CONFIG: config, "tokenizer_config.json": None}.items():
        if content is None and (folder / name).is_file():
            content = _read_json(folder / name, where)
        if content and "auto_map" in content:
            raise BaseModelError(
                f"{where}: {folder / name} has auto_map, which asks for the model's own Python code to be run. "
                "prefixline never does; use a model whose architecture is part of transformers"
            )
    names = {CONFIG, *_weight_files(folder, where)}
    names.update(name for name in (GENERATION_CONFIG, *TOKENIZER_FILES) if (folder / name).is_file())
    names.update(path.name for path in folder.glob("*.model") if path.is_file())
    return {name: sha256_file(folder / name) for name in sorted(names)}


def _weight_files(folder: Path, where: str) -> list[str]:
    if (folder / WEIGHTS).is_file():
        return [WEIGHTS]
    if (folder / WEIGHTS_INDEX).is_file():
        shards = _read_json(folder / WEIGHTS_INDEX, where).get("weight_map")
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


def _read_json(path: Path, where: str) -> dict[str, Any]:
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


def _local(source: PathSource, workspace: Path) -> Path:
    return workspace / Path(source.path).expanduser()


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


def _verify(base: ResolvedBase, names: Sequence[str]) -> None:
    """Hash again what is about to be read: it may have changed since it was resolved."""
    problems = []
    for name in names:
        path = base.folder / name
        actual = sha256_file(path) if path.is_file() else "missing"
        if actual != base.files[name]:
            problems.append(f"{name}: found {actual}, expected {base.files[name]}")
    if problems:
        raise IntegrityError(problems, heading=f"{base.folder} changed since it was verified; do not use it:")


def tokenizer(base: ResolvedBase) -> PreTrainedTokenizerFast:
    """The base's tokenizer, from its `tokenizer.json`, without importing torch.

    Raises:
        BaseModelError: there is no `tokenizer.json`, or it holds no tokenizer.
        IntegrityError: its files changed since `resolve`.
    """
    from transformers import PreTrainedTokenizerFast

    if "tokenizer.json" not in base.files:
        raise BaseModelError(
            f"{base.folder} has no tokenizer.json; expected a fast tokenizer. Write one with "
            "AutoTokenizer.from_pretrained(folder).save_pretrained(folder)"
        )
    _verify(base, [name for name in base.files if name in TOKENIZER_FILES or name.endswith(".model")])
    if "model" not in _read_json(base.folder / "tokenizer.json", base.name):
        raise BaseModelError(f"{base.folder}/tokenizer.json has no model; save the tokenizer again")
    fast: PreTrainedTokenizerFast = PreTrainedTokenizerFast.from_pretrained(
        base.folder, local_files_only=True, trust_remote_code=False
    )
    return fast


def window(base: ResolvedBase) -> int:
    """The most tokens the base can see at once, prefix included, as its config says.

    Raises:
        BaseModelError: the config names no limit.
    """
    return _window(_read_json(base.folder / CONFIG, base.name), str(base.folder / CONFIG))


def window_of(model: PreTrainedModel) -> int:
    """`window` of a loaded model."""
    return _window(model.config.to_dict(), type(model).__name__)


def _window(config: Mapping[str, Any], where: str) -> int:
    inner = config.get("text_config")
    for section in (config, inner if isinstance(inner, dict) else {}):
        for key in _POSITIONS:
            if isinstance(section.get(key), int):
                if config.get("model_type") in _OFFSET_POSITIONS:
                    return int(section[key]) - int(section.get("pad_token_id") or 0) - 1
                return int(section[key])
    raise BaseModelError(f"{where} names no window; expected one of {', '.join(_POSITIONS)}")


def load(
    base: ResolvedBase, task: Task, *, labels: Sequence[str] | None = None, seed: int = 0
) -> PreTrainedModel:
    """Load the verified base: float32, evaluation mode, every parameter frozen.

    For classification a head for `labels` is put on it, always new and drawn from `seed` alone; everything
    else must come from the files, whole and in the config's shape. The head is the only part that training
    may change (`head_parameters`).

    Args:
        task: classification (`labels` needed) or generation.
        labels: the class names, in the order of the label numbers.
        seed: of the head.

    Raises:
        BaseModelError: transformers cannot build it, or the weights do not fit the config.
        IntegrityError: its files changed since `resolve`.
    """
    import torch
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

    _verify(base, list(base.files))
    try:
        with _quiet_transformers(), torch.random.fork_rng(devices=[]):
            config = AutoConfig.from_pretrained(base.folder, local_files_only=True, trust_remote_code=False)
            if task == "classification":
                _label(config, labels or ())
                kind = AutoModelForSequenceClassification
            else:
                _refuse_bidirectional(config, base)
                kind = AutoModelForCausalLM
            model, report = kind.from_pretrained(
                base.folder,
                config=config,
                dtype=torch.float32,
                use_safetensors=True,
                local_files_only=True,
                trust_remote_code=False,
                ignore_mismatched_sizes=True,  # reported below, and refused outside the head
                output_loading_info=True,
            )
    except (OSError, ValueError, KeyError, TypeError, SafetensorError, StrictDataclassError) as error:
        raise BaseModelError(
            f"{base.folder}: transformers cannot load it for {task}: {type(error).__name__}: {error}"
        ) from error
    _refuse_misfit(model, report, base)
    model.eval().requires_grad_(False)
    if model.config.pad_token_id is None:
        # A classifier on a decoder finds each row's last token by it; rows are padded with it.
        words = tokenizer(base)
        model.config.pad_token_id = words.eos_token_id if words.pad_token_id is None else words.pad_token_id
    _draw_head(model, seed)
    return model


def _label(config: Any, labels: Sequence[str]) -> None:
    if len(labels) < 2:
        raise ValueError(f"got {len(labels)} labels; expected at least 2")
    config.id2label = dict(enumerate(labels))
    config.label2id = {label: i for i, label in enumerate(labels)}
    config.problem_type = "single_label_classification"


def _refuse_bidirectional(config: Any, base: ResolvedBase) -> None:
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

    encoder = config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not getattr(
        config, "is_decoder", False
    )
    if encoder or config.is_encoder_decoder:
        raise BaseModelError(
            f"{base.folder} is a {config.model_type}, whose tokens see those after them; "
            "expected a causal decoder for generation"
        )


def _refuse_misfit(model: PreTrainedModel, report: Mapping[str, Any], base: ResolvedBase) -> None:
    """transformers only warns of parameters it had to invent, cut to another shape, or leave out."""
    head = head_parameters(model).keys()
    problems = [f"{name}: missing" for name in sorted(set(report["missing_keys"]) - head)]
    problems += [
        f"{name}: shape {list(stored)} in the file, {list(wanted)} by {CONFIG}"
        for name, stored, wanted in sorted(report["mismatched_keys"])
        if name not in head
    ]
    layers = {_unnumbered(name, model) for name in model.state_dict()}
    problems += [
        f"{name}: in the file, but {CONFIG} has no such layer"
        for name in sorted(report["unexpected_keys"])
        if _unnumbered(name, model) in layers and any(part.isdigit() for part in name.split("."))
    ]
    if problems:
        more = f"\n  … and {len(problems) - 12} more" if len(problems) > 12 else ""
        raise BaseModelError(
            f"{base.folder}: the weights do not fit {CONFIG} for {type(model).__name__}; expected every "
            "parameter of the base, in the config's shape:\n  " + "\n  ".join(problems[:12]) + more
        )


def _unnumbered(name: str, model: PreTrainedModel) -> str:
    parts = name.removeprefix(f"{model.base_model_prefix}.").split(".")
    return ".".join("#" if part.isdigit() else part for part in parts)


def _draw_head(model: PreTrainedModel, seed: int) -> None:
    import torch

    generator = torch.Generator().manual_seed(seed)
    scale = getattr(model.config, "initializer_range", 0.02)
    for _, parameter in sorted(head_parameters(model).items()):
        with torch.no_grad():
            if parameter.dim() > 1:
                parameter.normal_(0.0, scale, generator=generator)
            else:
                parameter.zero_()


def head_parameters(model: PreTrainedModel) -> dict[str, torch.nn.Parameter]:
    """{name: parameter} of a sequence classifier's head: whatever lies outside its backbone; else nothing."""
    if not type(model).__name__.endswith("ForSequenceClassification"):
        return {}
    backbone = {id(parameter) for parameter in model.base_model.parameters()}
    return {name: p for name, p in model.named_parameters() if id(p) not in backbone}


def weights_digest(model: PreTrainedModel) -> str:
    """SHA-256 over the name, type, shape and bytes of every parameter and buffer of the base.

    The classification head is left out: it is trained. Equal before and after training, or the base changed.
    """
    import torch

    head = head_parameters(model).keys()
    sha256 = hashlib.sha256()
    for name, tensor in sorted([*model.named_parameters(), *model.named_buffers()], key=lambda item: item[0]):
        if name in head:
            continue
        sha256.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        # As bytes, because NumPy has no bfloat16.
        sha256.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return sha256.hexdigest()


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Its bars and load report would say in other words what `_refuse_misfit` checks."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
