"""What a version was made from and what was made of it as a graph; and all versions of a prefix as one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Any

from pipeline.show.counted import counted
from pipeline.show.graph import SHORT, Graph, Node
from pipeline.show.graph_layout import Edge
from pipeline.show.report_analysis import metric_title

_DVC_HASH = "DVC hash (MD5)"
_TAINTED = "Tainted: it saw a row that was to be erased"


def version_graph(found: Mapping[str, Any]) -> Graph:
    """The graph of one version.

    Args:
        found: as `pipeline.audit.ancestry.ancestry` gives it.
    """
    record = found["record"]
    name = _name(record["prefix"], record["version"])
    version = Node(
        name,
        "Version",
        f"{record['prefix']} {record['version']}",
        ", ".join(record["stages"]) or "no stage",
        _version_facts(record),
        "focus",
        _TAINTED if record["tainted"] else "",
    )
    sources, results = _sources(record), _results(record)
    nodes = {node.key: node for node in (*sources, *results, version)}
    edges: list[Edge] = [(node.key, "experiment") for node in sources]
    for key in ("adapter", "verdict", "run"):
        edges += [("experiment", key), (key, name)]
    target, start = "experiment", record["warm_start"]
    for link in found["earlier"]:
        node = _earlier(link)
        # One that is there already closes a circle, which only a forged record can; the link says so.
        nodes[node.key] = (
            replace(nodes[node.key], tone="fail", sentence=node.sentence) if node.key in nodes else node
        )
        edges.append((node.key, target))
        target = node.key
        start = None if link["record"] is None else link["record"]["warm_start"]
    if start is not None and "version" not in start:
        nodes["folder"] = _folder(start)
        edges.append(("folder", target))
    for at in found["standing"]:
        event, key = at["event"], f"stage {at['stage']}"
        facts = {fact: event[fact] for fact in ("actor", "time", "reason", "epoch")} | {
            "SHA-256 of the event": event["sha256"]
        }
        nodes[key] = Node(
            key, "Stage", at["stage"], f"since {event['time'][:10]}", facts, "stage", _sentence(event)
        )
        edges.append((name, key))
    for other in found["later"]["versions"]:
        node = _later(other)
        nodes.setdefault(node.key, node)
        before = other["started_from"]
        edges.append((_name(before["prefix"], before["version"]), node.key))
    return Graph(list(nodes.values()), list(dict.fromkeys(edges)), name)


def prefix_graph(found: Mapping[str, Any]) -> Graph:
    """The graph of all versions of a prefix, their dataset versions and warm starts, the newest above.

    Args:
        found: as `pipeline.audit.prefix_audit.audit` gives it.
    """
    prefix = found["prefix"]
    nodes: dict[str, Node] = {}
    starts: dict[str, Node] = {}  # what is not a version of this prefix
    edges: list[Edge] = []
    faults = faults_by_version(found["verification"])
    for version in reversed(found["versions"]):
        key, record = _name(prefix, version["version"]), version["record"]
        wrong = version["problem"] or version["tainted"] or faults.get(version["version"], 0)
        note = ", ".join(version["stages"]) or "no stage"
        if version["duplicate_of"]:
            note = f"duplicate of {version['duplicate_of']}"
        nodes[key] = Node(
            key,
            "Version",
            f"{prefix} {version['version']}",
            note,
            {"Run": version["run_id"]} if record is None else _version_facts(record) | _made_from(record),
            "fail" if wrong else "focus" if version["stages"] else "",
            version["problem"] or (_TAINTED if version["tainted"] else ""),
        )
        if record is None:
            continue
        data = record["dataset"]
        dataset = f"dataset {data['md5']}"
        nodes.setdefault(dataset, Node(dataset, "Dataset version", _base(data["path"]), f"{data['rows']:,} rows", {
            _DVC_HASH: data["md5"], "Path": data["path"], "Rows": data["rows"], "Git commit": data["git_commit"],
        }))  # fmt: skip
        edges.append((dataset, key))
        if (start := record["warm_start"]) is not None:
            before = _start(
                start, "not registered any more" if start.get("prefix") == prefix else "of another prefix"
            )
            starts.setdefault(before.key, before)
            edges.append((before.key, key))
    for other in found["later"]["versions"]:
        node, before = _later(other), other["started_from"]
        starts.setdefault(node.key, node)
        edges.append((_name(before["prefix"], before["version"]), node.key))
    nodes = starts | nodes
    return Graph(
        list(nodes.values()), list(dict.fromkeys(edges)), _name(prefix, found["versions"][-1]["version"])
    )


def faults_by_version(verification: Mapping[str, Any] | None) -> dict[str, int]:
    """{version: how many faults a verification found}; empty where nothing was verified."""
    return {each["version"]: len(each["faults"]) for each in (verification or {}).get("versions", ())}


def criteria(verdict: Mapping[str, Any]) -> dict[str, str]:
    """{criterion: the sentence that says what was found}."""
    return {
        f"{number}. {metric_title(one['metric'])}, {one['kind'].replace('_', ' ')}"
        + (
            f" where {one['slice']}" if one["slice"] else ""
        ): f"{'passed' if one['passed'] else 'FAILED'}: {one['reason']}"
        for number, one in enumerate(verdict.get("criteria", ()), 1)
    }


def _name(prefix: str, version: str) -> str:
    return f"version {prefix}:{version}"


def _base(path: str) -> str:
    return PurePosixPath(path).name


def _sentence(event: Mapping[str, Any]) -> str:
    sentence: str = event["sentence"]
    return sentence[:1].upper() + sentence[1:]


def _sources(record: Mapping[str, Any]) -> list[Node]:
    data, base, code, environment = (record[key] for key in ("dataset", "base_model", "code", "environment"))
    return [
        Node(
            "dataset",
            "Dataset version",
            _base(data["path"]),
            f"{data['rows']:,} rows",
            {_DVC_HASH if key == "md5" else key: value for key, value in data.items() if key not in ("rows_per_split", "splits", "manifest")}
            | {"Rows of each split": data["rows_per_split"], "SHA-256 of each split": data["splits"], "Files": data["manifest"]},
        ),
        Node("base", "Base model", base["name"], base["digest"][:SHORT], base),
        Node("code", "Code", f"prefixline {code['version']}", f"commit {code['commit'][:SHORT]}", code),
        Node("environment", "Environment", f"Python {environment['python']}", environment["platform"], environment),
        Node("params", "Parameters", str(record["params"].get("task", "parameters")), f"seed {record['seed']}", {"seed": record["seed"], **record["params"]}),
    ]  # fmt: skip


def _results(record: Mapping[str, Any]) -> list[Node]:
    experiment, runs, verdict = record["experiment"], record["runs"], record["verdict"]
    asked = verdict.get("criteria", ())
    met = sum(one["passed"] is True for one in asked)
    passed = verdict.get("passed") is True
    return [
        Node("experiment", "Experiment", experiment["name"], f"commit {experiment['commit'][:SHORT]}", {**experiment, "Run key": record["run_key"], "Created": record["created"]}),
        Node("adapter", "Prefix files", record["adapter_digest"][:SHORT], counted(len(record["files"]), "file"), {"Adapter digest": record["adapter_digest"], "Files": record["files"]}),
        Node("verdict", "Verdict and metrics", "passed" if passed else "failed", f"{met} of {len(asked)} criteria met",
             {"Passed": passed, "Criteria": criteria(verdict), "Metrics": record["metrics"]}, "" if passed else "fail"),
        Node("run", "Run", "MLflow", str(runs["mlflow"])[:SHORT], {"MLflow": runs["mlflow"], "Prefect": runs["prefect"]}),
    ]  # fmt: skip


def _version_facts(record: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "Version": record["version"],
        "Stages": record["stages"],
        "Created": record["created"],
        "Run key": record["run_key"],
        "Lineage digest": record["lineage_digest"],
        "Adapter digest": record["adapter_digest"],
    }


def _made_from(record: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "Dataset": record["dataset"]["md5"],
        "Base model": record["base_model"]["digest"],
        "Code commit": record["code"]["commit"],
        "Experiment commit": record["experiment"]["commit"],
        "MLflow run": record["runs"]["mlflow"],
    }


def _earlier(link: Mapping[str, Any]) -> Node:
    title, record = f"{link['prefix']} {link['version']}", link["record"]
    if record is None:
        return Node(
            _name(link["prefix"], link["version"]),
            "Started from",
            title,
            "cannot be followed",
            {},
            "fail",
            link["problem"],
        )
    return Node(
        _name(link["prefix"], link["version"]),
        "Started from",
        title,
        ", ".join(record["stages"]) or "no stage",
        _version_facts(record) | _made_from(record),
        "fail" if record["tainted"] else "",
        _TAINTED if record["tainted"] else "",
    )  # fmt: skip


def _later(other: Mapping[str, Any]) -> Node:
    start = other["started_from"]
    note = ", ".join(other["stages"]) or "no stage"
    if other["duplicate_of"]:
        note = f"duplicate of {other['duplicate_of']}"
    return Node(
        _name(other["prefix"], other["version"]),
        "Went on from it",
        f"{other['prefix']} {other['version']}",
        note,
        {"Stages": other["stages"], "Started from": f"{start['prefix']} {start['version']}"},
    )


def _folder(start: Mapping[str, Any], key: str = "folder") -> Node:
    return Node(
        key, "Started from a folder", _base(str(start["adapter"])), start["adapter_digest"][:SHORT], start
    )


def _start(start: Mapping[str, Any], note: str) -> Node:
    """What a training went on from, by what its own record says of it."""
    if "version" not in start:
        return _folder(start, f"folder {start['adapter_digest']}")
    key = _name(start["prefix"], start["version"])
    return Node(key, "Started from", f"{start['prefix']} {start['version']}", note, start)


def unknown_later(later: Mapping[str, Any]) -> Sequence[str]:
    """What cannot be told of the versions that may have gone on from this one, a sentence each."""
    if later["problem"] is not None:
        return [f"It cannot be told which versions went on from it: {later['problem']}"]
    return [
        f"It cannot be told whether version {each['version']} of {each['prefix']} went on from it: {each['why']}"
        for each in later["unknown"]
    ]
