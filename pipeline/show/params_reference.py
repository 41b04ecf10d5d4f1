"""Every key of params.yaml with its default, as YAML with comments: generated from the types that validate it."""

from __future__ import annotations

import inspect
import json
from typing import Any

from pydantic import BaseModel

from pipeline.params import (
    TASK_METRICS,
    BaseModelParams,
    Comparison,
    DataParams,
    EvaluationParams,
    GateParams,
    HubSource,
    PackageSource,
    Params,
    PathSource,
    PrefixEntry,
    PrefixParams,
    PromotionParams,
    ScheduleParams,
    SliceCriteria,
    SplitParams,
    StageRules,
    TrainingParams,
)

_SECTIONS: tuple[tuple[str, type[BaseModel]], ...] = (
    ("the whole file", Params),
    ("base_models.NAME", BaseModelParams),
    ("base_models.NAME.source, one of three", HubSource),
    ("base_models.NAME.source, one of three", PathSource),
    ("base_models.NAME.source, one of three", PackageSource),
    ("prefixes.NAME", PrefixEntry),
    ("prefixes.NAME.data", DataParams),
    ("prefixes.NAME.data.splits", SplitParams),
    ("prefixes.NAME.prefix", PrefixParams),
    ("prefixes.NAME.training", TrainingParams),
    ("prefixes.NAME.evaluation", EvaluationParams),
    ("prefixes.NAME.gate", GateParams),
    ("prefixes.NAME.gate.better_than_base, .not_worse_than_champion", Comparison),
    ("prefixes.NAME.gate.slices[]", SliceCriteria),
    ("prefixes.NAME.promotion", PromotionParams),
    ("prefixes.NAME.promotion.staging, .production", StageRules),
    ("prefixes.NAME.schedule", ScheduleParams),
)

_END = f"""

# `defaults` takes all that stands below prefixes.NAME, for every prefix.
# Metrics: {"; ".join(f"{task}: {', '.join(metrics)}" for task, metrics in TASK_METRICS.items())}.
"""


def params_reference() -> str:
    """One block per section: where it stands, what it is, then `key: default  # what is accepted`."""
    blocks = []
    for place, section in _SECTIONS:
        about = inspect.cleandoc(section.__doc__ or "").splitlines()
        lines = [f"# {place}", "#", *(f"# {line}".rstrip() for line in about)]
        schema = section.model_json_schema()
        for key, field in schema["properties"].items():
            value = section.model_fields[key].default
            required = key in schema.get("required", ())
            default = "" if required or isinstance(value, BaseModel) else json.dumps(value)
            accepted = f"required; {_accepted(field)}" if required else _accepted(field)
            lines.append(f"{key}: {default}".rstrip().ljust(36) + f" # {accepted}")
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks) + _END


def _accepted(field: dict[str, Any]) -> str:
    """What the JSON schema of a key takes, in a few words."""
    if "$ref" in field:
        return "mapping, see below"
    if "anyOf" in field:
        return " or ".join(dict.fromkeys(_accepted(part) for part in field["anyOf"]))
    if "enum" in field:
        return " or ".join(map(str, field["enum"]))
    if "const" in field:
        return str(field["const"])
    kind = {"array": "list", "object": "mapping"}.get(field.get("type", ""), field.get("type", "anything"))
    bounds = {
        "minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<", "pattern": "like",
    }  # fmt: skip
    said = [f"{sign} {field[name]}" for name, sign in bounds.items() if name in field]
    return f"{kind} {', '.join(said)}".strip()
