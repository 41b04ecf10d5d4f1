"""params.yaml → `Params`, or everything that is wrong with it.

Unknown keys are refused, and every problem is reported at once with its key path. YAML is read with
ruamel.yaml, the parser DVC uses, so that both see the same values (`1e-3` is a number to YAML 1.2 and a
string to PyYAML) and a key written twice is an error.

A prefix's settings are `defaults`, overridden key by key by its own entry under `prefixes`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from pipeline.errors import ParamsError
from pipeline.params import Params


def load_params(path: Path) -> Params:
    """Read and validate `path`.

    Raises:
        ParamsError: the file is missing, is not YAML, or holds anything wrong; all problems at once.
    """
    return parse_params(_read_yaml(path), where=str(path))


def parse_params(raw: Any, *, where: str = "params.yaml") -> Params:
    """Validate the plain content of a params.yaml (see `load_params`)."""
    if not isinstance(raw, dict):
        got = "nothing" if raw is None else type(raw).__name__
        raise ParamsError(
            [f"got {got}; expected a mapping with base_models and prefixes"], heading=f"{where}:"
        )
    problems = [
        f"{key}: unknown key; expected one of base_models, defaults, keys, prefixes"
        for key in raw.keys() - {"base_models", "defaults", "keys", "prefixes"}
    ]
    defaults = _section(raw, "defaults")
    prefixes = _section(raw, "prefixes")
    base_models = _section(raw, "base_models")
    keys = _section(raw, "keys")
    misshapen = [
        f"{key}: got {type(value).__name__}; expected a mapping"
        for key, value in {
            "defaults": defaults,
            "prefixes": prefixes,
            "base_models": base_models,
            "keys": keys,
        }.items()
        if not isinstance(value, dict)
    ]
    if misshapen:
        problems += misshapen
        raise ParamsError(sorted(problems), heading=f"{where} is not valid:")

    merged = {
        name: _merge(defaults, entry) if isinstance(entry, dict) else entry
        for name, entry in prefixes.items()
    }
    params = None
    try:
        params = Params.model_validate({"base_models": base_models, "keys": keys, "prefixes": merged})
    except ValidationError as error:
        problems += _explain(error, prefixes)
    for name, entry in prefixes.items():
        wanted = entry.get("base_model", defaults.get("base_model")) if isinstance(entry, dict) else None
        if isinstance(wanted, str) and wanted not in base_models:
            available = ", ".join(sorted(map(str, base_models))) or "none"
            problems.append(
                f"prefixes.{name}.base_model: {wanted!r} is not under base_models; available: {available}"
            )
        if isinstance(entry, dict) and not _holds(entry, "data", "path") and _holds(defaults, "data", "path"):
            problems.append(
                f"prefixes.{name}.data.path: is only under defaults; write it here, where dvc.yaml reads it"
            )
    problems += _key_problems(keys, merged, prefixes)
    if problems or params is None:
        raise ParamsError(sorted(set(problems)), heading=f"{where} is not valid:")
    return params


def _key_problems(
    keys: Mapping[Any, Any], merged: Mapping[str, Any], prefixes: Mapping[str, Any]
) -> list[str]:
    """Keys that several names share, and names in the rules that have no key."""
    problems = []
    named: dict[Any, Any] = {}
    for name, key in keys.items():
        if isinstance(key, str) and named.setdefault(key, name) != name:
            problems.append(f"keys.{name}: is the key of {named[key]} too; expected one for each")
    available = ", ".join(sorted(map(str, keys))) or "none"
    for prefix, entry in merged.items():
        for stage in ("staging", "production"):
            for role in ("signed_by", "approvers"):
                names: Any = entry
                for part in ("promotion", stage, role):
                    names = names.get(part) if isinstance(names, dict) else None
                where = ".".join(_written_at(("prefixes", str(prefix), "promotion", stage, role), prefixes))
                problems += [
                    f"{where}: {name!r} is not under keys; available: {available}"
                    for name in (names if isinstance(names, list) else ())
                    if isinstance(name, str) and name not in keys
                ]
    return problems


def _holds(section: Mapping[str, Any], key: str, inner: str) -> bool:
    return isinstance(section.get(key), dict) and inner in section[key]


def _section(raw: Mapping[str, Any], key: str) -> Any:
    """An absent or empty section is an empty mapping; anything else is judged as it is."""
    value = raw.get(key)
    return {} if value is None else value


def _read_yaml(path: Path) -> Any:
    from ruamel.yaml import YAML
    from ruamel.yaml.constructor import DuplicateKeyError
    from ruamel.yaml.error import YAMLError

    try:
        return YAML(typ="safe").load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ParamsError(
            [f"{path}: no such file; run `prefixline init DIR` to make a workspace, or change into one"]
        ) from None
    except UnicodeDecodeError as error:
        raise ParamsError([f"{path}: is not UTF-8: {error.reason} at byte {error.start}"]) from None
    except DuplicateKeyError as error:
        line = error.problem_mark.line + 1
        raise ParamsError(
            [f"{path}:{line}: {str(error.problem).split(' with value')[0]}; expected each once"]
        ) from None
    except YAMLError as error:
        raise ParamsError([f"{path}: is not valid YAML: {error}"]) from None


def _merge(defaults: Mapping[str, Any], entry: Mapping[str, Any]) -> dict[str, Any]:
    """`entry` over `defaults`, mapping by mapping; any other value replaces the default whole."""
    merged = dict(defaults)
    for key, value in entry.items():
        default = merged.get(key)
        merged[key] = (
            _merge(default, value) if isinstance(default, dict) and isinstance(value, dict) else value
        )
    return merged


_SOURCES = {"HubSource", "PathSource", "PackageSource"}


def _explain(error: ValidationError, prefixes: Mapping[str, Any]) -> list[str]:
    """One line per problem, at the key path where the user wrote the value (the entry or `defaults`)."""
    problems: list[str] = []
    bad_sources: set[str] = set()
    for fault in error.errors():
        where = tuple(str(part) for part in fault["loc"])
        if _SOURCES.intersection(where):
            bad_sources.add(".".join(where[: where.index("source") + 1]))
            continue
        if (
            where[0] == "prefixes"
            and where[-1] != "[key]"
            and fault["type"] not in ("missing", "value_error")
        ):
            where = _written_at(where, prefixes)
        path = ".".join(where)
        if where[-1] == "[key]":
            letters = (
                "letters, digits, and - _ . @, a letter or digit first"
                if where[0] == "keys"
                else "lower-case letters, digits, - and _, a letter first"
            )
            problems.append(f"{'.'.join(where[:-1])}: is not a name; expected up to 63 {letters}")
            continue
        message = fault["msg"].removeprefix("Value error, ")
        if fault["type"] == "extra_forbidden":
            problems.append(f"{path}: unknown key")
        elif fault["type"] == "missing":
            problems.append(f"{path}: missing")
        elif fault["type"] == "value_error":
            problems += [
                f"{path}.{line}" if ": " in line else f"{path}: {line}" for line in message.split("\n")
            ]
        else:
            message = re.sub(r"a valid dictionary( or instance of \w+)?", "a mapping", message)
            message = message.replace("a valid tuple", "a valid list")
            problems.append(f"{path}: got {fault['input']!r}; {message[0].lower()}{message[1:]}")
    problems += [
        f"{path}: expected one of {{hub, revision (40 hex characters)}}, {{path}} or {{package, folder}}"
        for path in bad_sources
    ]
    return problems


def _written_at(where: tuple[str, ...], prefixes: Mapping[str, Any]) -> tuple[str, ...]:
    """The key path of a value below `prefixes.NAME`: there if the entry holds it, else under `defaults`."""
    entry: Any = prefixes.get(where[1])
    for part in where[2:]:
        if isinstance(entry, (list, tuple)):
            return where
        if not (isinstance(entry, dict) and part in entry):
            return ("defaults", *where[2:])
        entry = entry[part]
    return where
