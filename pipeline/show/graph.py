"""A graph of what came from what, for the terminal and for a page: nodes with what is known of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from pipeline.show.graph_layout import Edge, Point, Sizes, layout
from pipeline.show.report_tables import tables

SHORT = 12
"""Characters of a digest where it only has to be told from others."""

_SIZES = Sizes(width=168, gap=28)


@dataclass(frozen=True)
class Node:
    """A thing that something was made from, or that was made.

    Attributes:
        key: its name in the graph.
        kind: what it is, in a word or two.
        title, note: what is said of it at a glance.
        facts: everything known of it, {name: value or such a mapping}.
        tone: "focus" for what the graph is about, "fail" for what is wrong, "stage", or nothing.
        sentence: what is to be said of it beside the facts; empty for nothing.
    """

    key: str
    kind: str
    title: str
    note: str
    facts: Mapping[str, Any]
    tone: str = ""
    sentence: str = ""


@dataclass(frozen=True)
class Graph:
    """Nodes and edges from what was there first to what was made of it.

    Attributes:
        first: the node whose facts are shown first.
        edges: (source, target) by `Node.key`.
    """

    nodes: Sequence[Node]
    edges: Sequence[Edge]
    first: str
    named: Mapping[str, Node] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "named", {node.key: node for node in self.nodes})


def picture(graph: Graph, name: str) -> dict[str, Any]:
    """What graph.html.j2 shows of a graph.

    Args:
        name: the beginning of all ids, so that a page can hold several graphs.
    """
    laid = layout([node.key for node in graph.nodes], graph.edges, _SIZES)
    ids = {node.key: f"{name}-{number}" for number, node in enumerate(graph.nodes)}

    def links(keys: Sequence[str]) -> list[dict[str, str]]:
        return [
            {"id": ids[key], "title": graph.named[key].title, "kind": graph.named[key].kind.lower()}
            for key in keys
        ]

    before: dict[str, list[str]] = {key: [] for key in ids}
    after: dict[str, list[str]] = {key: [] for key in ids}
    for source, target in graph.edges:
        before[target].append(source)
        after[source].append(target)
    return {
        "name": name,
        "first": ids[graph.first],
        "width": laid.width,
        "height": laid.height,
        "node_width": _SIZES.width,
        "node_height": _SIZES.height,
        "nodes": [
            {
                "id": ids[node.key],
                "kind": node.kind,
                "title": node.title,
                "note": node.note,
                "tone": node.tone,
                "sentence": node.sentence,
                "left": laid.places[node.key][0],
                "top": laid.places[node.key][1],
                "tables": tables(node.facts, "Known of it"),
                "before": links(before[node.key]),
                "after": links(after[node.key]),
            }
            # From left to right and from above, which is the order in which the keyboard goes through them.
            for node in sorted(graph.nodes, key=lambda node: laid.places[node.key])
        ],
        "edges": [
            {"source": ids[source], "target": ids[target], "path": _path(points)}
            for (source, target), points in laid.routes.items()
        ],
    }


def _path(points: Sequence[Point]) -> str:
    """SVG's path along a route: curves between layers, level through a layer."""
    said = [f"M{points[0][0]:g} {points[0][1]:g}"]
    for number, ((x, y), (to_x, to_y)) in enumerate(pairwise(points)):
        if number % 2:
            said.append(f"H{to_x:g}")
        else:
            middle = (x + to_x) / 2
            said.append(f"C{middle:g} {y:g} {middle:g} {to_y:g} {to_x:g} {to_y:g}")
    return "".join(said)
