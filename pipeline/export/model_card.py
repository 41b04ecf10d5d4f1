"""The bundle's README.md: a model card as the Hugging Face hub reads it (https://huggingface.co/docs/hub/model-cards)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pipeline.register.lineage import LineageRecord

_TASKS: Mapping[str, tuple[str, str]] = {
    "SEQ_CLS": ("text-classification", "AutoModelForSequenceClassification"),
    "TOKEN_CLS": ("token-classification", "AutoModelForTokenClassification"),
    "CAUSAL_LM": ("text-generation", "AutoModelForCausalLM"),
    "SEQ_2_SEQ_LM": ("text2text-generation", "AutoModelForSeq2SeqLM"),
}
"""{PEFT's word for a task: (the hub's, the class of transformers that loads the base)}."""


def model_card(record: LineageRecord, config: Mapping[str, Any], version: str, stage: str | None) -> str:
    """The card, which follows from the arguments alone.

    The front matter names no `datasets`: the hub takes those for names of its own, and would link to a stranger's.

    Args:
        config: the adapter's, as in PEFT's adapter_config.json.
        version: its number.
        stage: where it stands; None if nowhere.
    """
    from huggingface_hub import EvalResult, ModelCard, ModelCardData

    task, auto_class = _TASKS[config["task_type"]]
    in_peft = config["peft_type"] == "PREFIX_TUNING"
    metrics = {name: value for name, value in record.metrics["prefix"].items() if value is not None}
    data = record.dataset
    source = record.base_model["source"]
    front = ModelCardData(
        base_model=source.get("hub", record.base_model["name"]),
        library_name="peft" if in_peft else "prefixline",
        pipeline_tag=task,
        tags=["prefix-tuning", "prefixline"],
        metrics=list(metrics),
        model_name=f"{record.prefix} version {version}",
        eval_results=[
            EvalResult(
                task_type=task,
                dataset_type=data["path"],
                dataset_name=data["path"],
                dataset_revision=data["md5"],
                dataset_split="test",
                metric_type=name,
                metric_value=value,
            )
            for name, value in metrics.items()
        ],
    )
    labels = "" if data["labels"] is None else f", num_labels={len(data['labels'])}"
    base = source.get("hub", "PATH OF THE BASE MODEL")
    revision = f', revision="{source["revision"]}"' if "hub" in source else ""
    use = [
        "from peft import PeftModel",
        f"from transformers import {auto_class}",
        "",
        f'base = {auto_class}.from_pretrained("{base}"{revision}{labels})',
        'model = PeftModel.from_pretrained(base, "THIS FOLDER")',
    ]
    systems = list(record.metrics)
    names = sorted({name for system in systems for name in record.metrics[system]})
    figures = [[name, *(_figure(record.metrics[system].get(name)) for system in systems)] for name in names]
    made_of = {
        "base model": f"{record.base_model['name']}, SHA-256 {record.base_model['digest']}",
        "dataset": f"{data['path']}, md5 {data['md5']}, {data['rows']['total']:,} rows",
        "code": f"commit {record.code['commit']}, prefixline {record.code['version']}",
        "run key": record.run_key,
        "lineage record": f"SHA-256 {record.digest}",
    }
    parts = [
        f"# {record.prefix} version {version}",
        f"A prefix ([Li & Liang, 2021](https://arxiv.org/abs/2101.00190)) of {config['num_virtual_tokens']} key/value "
        "vectors for every attention layer of a frozen base model, which is not in this folder. prefixline trained it, "
        f"judged it and registered it; when it was exported, {f'it stood in {stage}' if stage else 'it held no stage'}.",
        "## Use",
        "\n".join(("```python", *use, "```")) if in_peft else "PEFT has no prefix for such a base model, or no such head; prefixline loads it:",
        "With prefixline and the base model at hand, `mlflow.pyfunc.load_model` loads the folder `model`. Classes in the "
        "order of the logits, the parameters and the whole verdict are in `lineage.json`.",
        "## Figures on the test split",
        _table(["metric", *systems], figures),
        "## What it was made of",
        _table(["", ""], made_of.items()),
        "## Is it still that?",
        "`prefixline verify --offline FOLDER` hashes every file, and follows adapter, record, ledger, OpenLineage events and "
        "provenance to each other. A signature says something only with a public key that you have from elsewhere "
        "(`--public-key`): one that comes with a bundle can be anybody's.",
    ]  # fmt: skip
    return str(ModelCard(f"---\n{front.to_yaml()}\n---\n\n" + "\n\n".join(parts) + "\n"))


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(_cell, cells)) + " |" for cells in lines)


def _cell(text: str) -> str:
    """Somebody's words as one cell of a table, that are shown and not followed."""
    plain = "".join(char if char.isprintable() else "\ufffd" for char in text)
    for char in "\\`*_[]<>|":
        plain = plain.replace(char, f"\\{char}")
    return plain
