"""adapter_config.json: what stands in it for a model and a prefix, and what may be wrong with one that is read.

For a prefix that PEFT has, it is a PrefixTuningConfig; for others (see `pipeline.prefix.adapter`) peft_type is PREFIXLINE, and the
layers are listed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pipeline.errors import AdapterError
from pipeline.prefix.architecture import Anatomy

CONFIG = "adapter_config.json"

Task = Literal["classification", "token_classification", "generation"]

TASKS: Mapping[str, Task] = {  # by PEFT's words
    "SEQ_CLS": "classification",
    "TOKEN_CLS": "token_classification",
    "CAUSAL_LM": "generation",
    "SEQ_2_SEQ_LM": "generation",
}
_OWN_TYPE = "PREFIXLINE"
_PEFT_VERSION = "0.21.2"  # whose format this is
_PEFT_HEADS = ("classifier", "score")  # modules PEFT always takes for a classification head


def read(path: Path) -> dict[str, Any]:
    """The config in the file `path`, not yet looked at (see `problems`).

    Raises:
        AdapterError: there is no such file, or it is no JSON object.
    """
    try:
        config = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise AdapterError(f"{path}: no such file; expected an adapter saved by prefixline or PEFT") from None
    except OSError as error:
        raise AdapterError(f"{path}: cannot be read: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise AdapterError(f"{path}: is not JSON (truncated?): {error}") from None
    if not isinstance(config, dict):
        raise AdapterError(f"{path}: got {type(config).__name__}; expected a JSON object")
    return config


def made(
    found: Anatomy, task: Task, modules: Sequence[str], *, base_name: str, length: int, own: bool
) -> dict[str, Any]:
    """The config of a prefix of `length` for the model `found`, whose head is in `modules`.

    Args:
        own: it is not for PEFT, also where PEFT could have it.
    """
    heads = [*_PEFT_HEADS, *(name for name in modules if name not in _PEFT_HEADS)]
    return {
        "auto_mapping": None,
        "base_model_name_or_path": base_name,
        "inference_mode": True,
        "modules_to_save": None if task == "generation" else heads,
        "num_virtual_tokens": length,
        "revision": None,
        "task_type": _task_type(task, found),
        **_shape_config(found, own=own),
    }


def _task_type(task: Task, found: Anatomy) -> str:
    """PEFT's word for a task."""
    if task == "generation":
        return "SEQ_2_SEQ_LM" if found.encoder_decoder else "CAUSAL_LM"
    return next(word for word, name in TASKS.items() if name == task)


def _in_peft(found: Anatomy) -> bool:
    """Whether PEFT has a prefix for such a model: in every layer, all alike, with the tokens behind it."""
    (first, *others) = set(found.layers)
    return not others and first.key_size == first.value_size and found.shifts and found.every_layer


def _shape_config(found: Anatomy, *, own: bool) -> dict[str, Any]:
    """The keys of a config that follow from the model's shape."""
    if own or not _in_peft(found):
        return {
            "layers": [[layer.heads, layer.key_size, layer.value_size] for layer in found.layers],
            "peft_type": _OWN_TYPE,
        }
    first = found.layers[0]
    width = first.heads * first.key_size
    return {
        "encoder_hidden_size": width,
        "init_weights": None,
        "num_attention_heads": first.heads,
        "num_layers": len(found.layers),
        "num_transformer_submodules": 1,
        "peft_type": "PREFIX_TUNING",
        "peft_version": _PEFT_VERSION,
        "prefix_projection": False,
        "token_dim": width,
    }


_ANY_SHAPE = frozenset(
    "auto_mapping base_model_name_or_path inference_mode modules_to_save num_virtual_tokens revision task_type".split()
)
_PEFT_SHAPE = frozenset(
    "encoder_hidden_size init_weights num_attention_heads num_layers num_transformer_submodules peft_type peft_version "
    "prefix_projection token_dim".split()
)


def problems(config: Mapping[str, Any], found: Anatomy | None) -> list[str]:
    """What in `config` is unknown, missing, or (where `found` is given) not of that model."""
    own = config.get("peft_type") == _OWN_TYPE
    known = _ANY_SHAPE | (frozenset(("layers", "peft_type")) if own else _PEFT_SHAPE)
    wrong = [f"{CONFIG}: key {key!r} is unknown" for key in sorted(config.keys() - known)]
    wrong += [f"{CONFIG}: key {key!r} is missing" for key in sorted(known - {"peft_version"} - config.keys())]
    if wrong:
        return wrong
    if not own and config["num_transformer_submodules"] == 2:
        return [
            f"{CONFIG}: num_transformer_submodules: got 2, PEFT's prefix for a decoder behind an encoder, the same in "
            "self- and cross-attention; expected one with the encoder's layers, as prefixline trains it"
        ]
    not_here = "" if found is None else ("CAUSAL_LM" if found.encoder_decoder else "SEQ_2_SEQ_LM")
    *words, last = (word for word in TASKS if word != not_here)
    if config["task_type"] not in (*words, last):
        return [f"{CONFIG}: task_type: got {config['task_type']!r}; expected {', '.join(words)} or {last}"]
    required: dict[str, Any] = {}
    if not own:
        required = {"peft_type": "PREFIX_TUNING", "num_transformer_submodules": 1}
    if found is not None:
        free = {"encoder_hidden_size", "init_weights", "peft_version", "prefix_projection"}
        shape = _shape_config(found, own=own)
        required |= {key: value for key, value in shape.items() if key not in free}
    wrong = [
        f"{CONFIG}: {key}: got {config.get(key)!r}; expected {value!r}"
        for key, value in required.items()
        if config.get(key) != value
    ]
    length = config["num_virtual_tokens"]
    if type(length) is not int or length < 1:
        wrong.append(f"{CONFIG}: num_virtual_tokens: got {length!r}; expected a whole number of 1 or more")
    name = config["base_model_name_or_path"]
    if not isinstance(name, str | None):
        wrong.append(f"{CONFIG}: base_model_name_or_path: got {name!r}; expected a string or null")
    modules = config["modules_to_save"]
    if modules is not None and not (
        isinstance(modules, list) and all(isinstance(name, str) for name in modules)
    ):
        wrong.append(f"{CONFIG}: modules_to_save: got {modules!r}; expected a list of module names or null")
    return wrong
