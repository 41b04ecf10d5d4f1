"""Adapters on disk, in PEFT's format: what is saved here loads with `peft.PeftModel.from_pretrained`, and back.

    adapter_config.json        a PrefixTuningConfig
    adapter_model.safetensors  `prompt_embeddings` [P, S], and for classification the head's parameters as
                               `base_model.<parameter name>`; our own facts (`AdapterFacts`) in its metadata

PEFT has no prefix for an encoder-decoder's encoder, for layers of different shapes, or for layers that are not all
attention, and no head on the mean of the tokens. Such an adapter's config says peft_type PREFIXLINE, which PEFT refuses
to load, and lists the layers.

A projection is folded away before saving. Equal content is equal bytes.

Laws (tested): `load_adapter(folder, model)` returns exactly what `save_adapter(folder, ...)` was given; a folder
that is not whole and of the model's shape raises.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import pydantic
import pydantic.dataclasses
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from transformers import PreTrainedModel

from pipeline import digest
from pipeline.errors import AdapterError
from pipeline.files import new_folder, write_bytes, write_json
from pipeline.prefix import adapter_config
from pipeline.prefix.adapter_config import CONFIG, TASKS, Task
from pipeline.prefix.architecture import anatomy, outside_backbone
from pipeline.prefix.tuning import Prefix, PrefixShape

WEIGHTS = "adapter_model.safetensors"

_VECTORS = "prompt_embeddings"
_HEAD = "base_model."
_FACTS = "prefixline"
_BESIDE = "README.md"  # PEFT writes one


@pydantic.dataclasses.dataclass(frozen=True, config=pydantic.ConfigDict(extra="forbid", strict=True))
class AdapterFacts:
    """What an adapter says of itself, beyond its numbers.

    Each must be of its type; read from a file, nothing else may be there.

    Attributes:
        task: what it was trained for.
        length: P.
        base_name: the base model's name, as given when it was saved.
        base_digest: SHA-256 over the base model's files; None where it was not recorded (as by PEFT).
        labels: the classes in the order of the logits; None for generation, or where not recorded.
        pooling: which of the tokens' states the head reads; None for what the architecture's own head does.
    """

    task: Task
    length: int
    base_name: str
    base_digest: Annotated[str, pydantic.Field(pattern="^[0-9a-f]{64}$")] | None
    labels: tuple[str, ...] | None
    pooling: Literal["mean"] | None = None


_READ = pydantic.TypeAdapter(AdapterFacts)


def save_adapter(
    folder: Path | str,
    prefix: Prefix,
    model: PreTrainedModel,
    *,
    head: Mapping[str, torch.Tensor],
    task: Task,
    base_name: str,
    base_digest: str | None = None,
    labels: Sequence[str] | None = None,
) -> None:
    """Write `prefix`, and for classification its `head`, to `folder` in one step, replacing what was there.

    Args:
        folder: where to: nothing, an empty folder, or one with an adapter. On an error it is as it was.
        prefix: a projection, if any, is folded away.
        model: the base it was trained on.
        head: the trained parameters of the classification head by their name in `model`; {} for generation.
        task: what it was trained for.
        base_name: what to record as the base model's name.
        base_digest: what to record as the SHA-256 of the base model's files, 64 hex characters.
        labels: the classes in the order of the logits.

    Raises:
        AdapterError: non-finite numbers, a head that is not whole or not of the model, facts that are not of their types
            or not of the model, a folder that holds something else, or a disk that is full.
    """
    folder = Path(folder)
    _check_task(task)
    modules = sorted({_module_of(name, model) for name in head})
    problems = _shape_problems(head, _head_shapes(model, modules), task, modules)
    tensors = {_VECTORS: prefix.key_values().detach().float()}
    tensors |= {_HEAD + name: tensor.detach() for name, tensor in head.items()}
    problems += _value_problems(tensors)
    found = anatomy(model)
    if prefix.shape != (needed := PrefixShape(found.layers)):
        problems.append(f"the prefix is for {prefix.shape}; {type(model).__name__} needs {needed}")
    facts, wrong = _of_model(model, task, prefix.length, base_name, base_digest, labels)
    problems += wrong + _foreign(folder)
    if problems or facts is None:
        raise AdapterError(f"{folder}: nothing was saved: " + "; ".join(problems))
    own = head_pooling(model) is not None  # PEFT has no such head
    config = adapter_config.made(found, task, modules, base_name=base_name, length=prefix.length, own=own)
    try:
        with new_folder(folder) as fresh:
            write_json(fresh / CONFIG, config)
            write_bytes(fresh / WEIGHTS, _serialise(tensors, facts))
    except OSError as error:
        raise AdapterError(
            f"{folder}: the adapter could not be saved: {error.strerror}; what was there before is unchanged; "
            "free some space or choose another folder"
        ) from error


def load_adapter(
    folder: Path | str,
    model: PreTrainedModel,
    *,
    head: bool = True,
    task: Task | None = None,
    base_digest: str | None = None,
) -> tuple[Prefix, dict[str, torch.Tensor]]:
    """Read an adapter saved by `save_adapter` or by PEFT, for `model`.

    Args:
        head: False leaves its classification head, which may be for other classes than `model`'s, where it is.
        task: what it must have been trained for; None takes what comes.
        base_digest: the SHA-256 of `model`'s files, that it must have been trained on; None takes what comes. Two bases
            may be of one shape, and a prefix says something in one of them alone. An adapter that records no base, as
            PEFT's, is taken.

    Returns:
        The prefix (float32), and the head's tensors by their name in `model` (see `install_head`).

    Raises:
        AdapterError: a file is missing or truncated, the config says anything unknown, a tensor is missing, too
            many, non-finite or of another shape; it was trained for another task or on another base. The message names
            all that is wrong.
        PrefixError: `model` cannot carry a prefix.
    """
    folder = Path(folder)
    if task is not None:
        _check_task(task)
    found = anatomy(model)
    shape = PrefixShape(found.layers)
    config = adapter_config.read(folder / CONFIG)
    tensors, metadata = _read_weights(folder / WEIGHTS)
    problems = adapter_config.problems(config, found)
    if not problems:
        facts = _facts(folder, config, metadata)
        problems += _purpose_problems(facts, task, base_digest)
        modules = config["modules_to_save"] or []
        if facts.task == "generation" and modules:
            problems.append(
                f"{CONFIG}: modules_to_save: got {modules!r}; expected null for generation, which has no head"
            )
        expected: dict[str, tuple[int, ...]] = {_VECTORS: (config["num_virtual_tokens"], shape.size)}
        if head:
            expected |= {_HEAD + name: size for name, size in _head_shapes(model, modules).items()}
        else:
            owners = tuple(f"{_HEAD}{module}." for module in modules)
            tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith(owners)}
        problems += _difference(tensors, expected)
        problems += _value_problems(tensors)
        if head and modules:
            problems += _pooling_problems(facts, model)
    if problems:
        saved_for = config.get("base_model_name_or_path")
        raise AdapterError(
            f"{folder}: not an adapter for {type(model).__name__}: {'; '.join(problems)}"
            + (f"; it was saved for the base {saved_for!r}" if saved_for else "")
        )
    prefix = Prefix(shape, config["num_virtual_tokens"])
    prefix.init_from(tensors.pop(_VECTORS).float())
    return prefix, {name.removeprefix(_HEAD): tensor for name, tensor in tensors.items()}


def adapter_facts(folder: Path | str) -> AdapterFacts:
    """What the adapter in `folder` says of itself.

    Raises:
        AdapterError: a file is missing, truncated or says anything unknown.
    """
    folder = Path(folder)
    config = adapter_config.read(folder / CONFIG)
    if problems := adapter_config.problems(config, None):
        raise AdapterError(f"{folder}: not an adapter: " + "; ".join(problems))
    _, metadata = _read_weights(folder / WEIGHTS)
    return _facts(folder, config, metadata)


def head_pooling(model: PreTrainedModel) -> Literal["mean"] | None:
    """Which of the tokens' states `model`'s head reads, as `AdapterFacts.pooling` says it."""
    return getattr(model, "head_pooling", None)


def adapter_digest(folder: Path) -> str:
    """SHA-256 over the manifest of the files in `folder`: the adapter's identity, 64 hex characters."""
    return digest.digest(digest.manifest(folder))


@torch.no_grad()
def install_head(model: PreTrainedModel, head: Mapping[str, torch.Tensor]) -> None:
    """Copy the head's tensors into `model`'s parameters of those names (they are checked by `load_adapter`)."""
    for name, tensor in head.items():
        model.get_parameter(name).copy_(tensor)


def _module_of(name: str, model: PreTrainedModel) -> str:
    """The module a head parameter belongs to as PEFT names it: `classifier`, or `bert.pooler` within the base."""
    parts = name.split(".")
    return ".".join(parts[:2]) if parts[0] == model.base_model_prefix else parts[0]


def _head_shapes(model: PreTrainedModel, modules: Iterable[str]) -> dict[str, tuple[int, ...]]:
    """{name: shape} of every parameter of those of `modules` that `model` has, but those of its frozen backbone.

    A pooler within the backbone is no part of its layers: PEFT saves it with a head.
    """
    outside = outside_backbone(model)
    return {
        name: tuple(parameter.shape)
        for module in modules
        for name, parameter in model.named_parameters()
        if name.startswith(f"{module}.") and (name in outside or "pooler" in name.split("."))
    }


def _shape_problems(
    head: Mapping[str, torch.Tensor],
    expected: Mapping[str, tuple[int, ...]],
    task: Task,
    modules: Sequence[str],
) -> list[str]:
    if task == "generation" and head:
        return [f"got head tensors {', '.join(sorted(head))}; expected none for generation"]
    if task != "generation" and not head:
        return ["got no head; expected the classification head's parameters"]
    return _difference(head, expected)


def _facts(folder: Path, config: Mapping[str, Any], metadata: Mapping[str, str]) -> AdapterFacts:
    """What a `config` that is in order and the `metadata` beside it say."""
    task: Task = TASKS[config["task_type"]]
    length, name = config["num_virtual_tokens"], config["base_model_name_or_path"] or ""
    if _FACTS not in metadata:
        return AdapterFacts(task, length, name, None, None)
    try:
        facts = _READ.validate_json(metadata[_FACTS])
    except pydantic.ValidationError as error:
        raise AdapterError(
            f"{folder / WEIGHTS}: metadata {_FACTS!r} is not understood: {'; '.join(_told(error))}"
        ) from None
    said = {"task": (task, facts.task), "length": (length, facts.length), "base": (name, facts.base_name)}
    differ = [f"{what} {there!r} and {here!r}" for what, (there, here) in said.items() if there != here]
    if differ:
        raise AdapterError(
            f"{folder}: {CONFIG} and the metadata of {WEIGHTS} contradict each other: {', '.join(differ)}"
        )
    return facts


def _told(error: pydantic.ValidationError) -> list[str]:
    """What is wrong with facts, one by one."""
    wrong = []
    for one in error.errors():
        where = ".".join(str(part) for part in one["loc"]) or "all of it"
        got = "" if one["type"] in ("missing", "json_invalid") else f"got {one['input']!r}: "
        wrong.append(f"{where}: {got}{one['msg']}")
    return wrong


def _check_task(task: str) -> None:
    if task not in get_args(Task):
        *words, last = get_args(Task)
        raise AdapterError(f"task: got {task!r}; expected {', '.join(words)} or {last}")


def _of_model(
    model: PreTrainedModel,
    task: Task,
    length: int,
    base_name: str,
    base_digest: str | None,
    labels: Sequence[str] | None,
) -> tuple[AdapterFacts | None, list[str]]:
    """The facts to save, and what is wrong with them for `model`."""
    kind = type(model).__name__
    wrong = []
    heads = {"classification": "ForSequenceClassification", "token_classification": "ForTokenClassification"}
    other = next((name for name, ending in heads.items() if kind.endswith(ending)), "generation")
    if task != other and (task == "generation" or other != "generation"):
        wrong.append(f"task: got {task}; {kind} is for {other}")
    if task == "generation":
        if labels is not None:
            wrong.append("labels: got some; expected none for generation")
    elif labels is not None and not isinstance(labels, str):
        count = model.config.num_labels
        if len(labels) != count:
            wrong.append(f"labels: got {len(labels)}; the head of {kind} has {count}")
        if len(set(labels)) < len(labels):
            wrong.append(f"labels: got {list(labels)!r}, some twice; expected each once")
    facts: dict[str, Any] = {
        "task": task,
        "length": length,
        "base_name": base_name,
        "base_digest": base_digest,
        "labels": tuple(labels) if isinstance(labels, list) else labels,
        "pooling": head_pooling(model),
    }
    try:
        return AdapterFacts(**facts), wrong
    except pydantic.ValidationError as error:
        return None, wrong + _told(error)


def _foreign(folder: Path) -> list[str]:
    """What in `folder` is no part of an adapter, and would be lost with it."""
    if not folder.exists():
        return []
    if not folder.is_dir():
        return ["a file is there; expected a folder, or nothing; choose another place"]
    names = sorted({entry.name for entry in folder.iterdir()} - {CONFIG, WEIGHTS, _BESIDE})
    if not names:
        return []
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return [f"the folder holds {names[0]!r}{more}, no part of an adapter; choose another or empty it"]


def _purpose_problems(facts: AdapterFacts, task: Task | None, base_digest: str | None) -> list[str]:
    problems = []
    if task is not None and facts.task != task:
        problems.append(f"it is for {facts.task}; expected {task}")
    if None not in (base_digest, facts.base_digest) and facts.base_digest != base_digest:
        problems.append(
            f"it was trained on the base model {facts.base_digest}; got {base_digest}: load that base"
        )
    return problems


def _pooling_problems(facts: AdapterFacts, model: PreTrainedModel) -> list[str]:
    if facts.pooling == (here := head_pooling(model)):
        return []
    said = {None: "what the architecture's own head reads", "mean": "the mean of the tokens"}
    return [
        f"its head was trained on {said[facts.pooling]}; the model's reads {said[here]}: load the base so"
    ]


def _difference(actual: Mapping[str, torch.Tensor], expected: Mapping[str, tuple[int, ...]]) -> list[str]:
    problems = [f"tensor {name} is missing" for name in sorted(expected.keys() - actual.keys())]
    problems += [f"tensor {name} is one too many" for name in sorted(actual.keys() - expected.keys())]
    problems += [
        f"tensor {name}: got shape {list(actual[name].shape)}; expected {list(expected[name])}"
        for name in sorted(expected.keys() & actual.keys())
        if tuple(actual[name].shape) != expected[name]
    ]
    return problems


def _value_problems(tensors: Mapping[str, torch.Tensor]) -> list[str]:
    problems = [
        f"tensor {name}: got {str(tensor.dtype).removeprefix('torch.')}; expected floating-point numbers"
        for name, tensor in tensors.items()
        if not tensor.is_floating_point()
    ]
    problems += [
        f"tensor {name}: got NaN or infinity; expected finite numbers"
        for name, tensor in tensors.items()
        # As they will be used: a float64 may be more than a float32 holds, and of a float8 it cannot be asked.
        if not bool(torch.isfinite(tensor.float()).all())
    ]
    return sorted(problems)


def _serialise(tensors: Mapping[str, torch.Tensor], facts: AdapterFacts) -> bytes:
    """The safetensors file; its header is put in order, since safetensors shuffles the metadata at every run."""
    said = asdict(facts)
    if facts.pooling is None:  # as adapters were before there was a choice: equal content is equal bytes
        del said["pooling"]
    metadata = {"format": "pt", _FACTS: digest.canonical_json(said).decode()}
    raw: bytes = save({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, metadata)
    size = int.from_bytes(raw[:8], "little")
    header = json.dumps(json.loads(raw[8 : 8 + size]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)  # tensors stay aligned to 8 bytes
    return len(header).to_bytes(8, "little") + header + raw[8 + size :]


def _read_weights(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except FileNotFoundError:
        raise AdapterError(f"{path}: no such file; expected an adapter saved by prefixline or PEFT") from None
    except OSError as error:
        raise AdapterError(f"{path}: cannot be read: {error.strerror or error}") from None
    except SafetensorError as error:
        raise AdapterError(f"{path}: is not a whole safetensors file (truncated?): {error}") from None
