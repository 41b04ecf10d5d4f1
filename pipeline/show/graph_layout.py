"""Where the nodes of a directed graph are drawn and how its lines run: layers from left to right, by depth.

After Sugiyama, Tagawa & Toda, Methods for Visual Understanding of Hierarchical System Structures (1981): layers by the
longest path, lanes for lines that pass a layer, order by barycentres; then heights by isotonic regression. Pure: an
equal graph gives an equal layout.

Laws (tested): no two nodes overlap, no line crosses a node, and a line runs from left to right.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

Point = tuple[float, float]
Edge = tuple[str, str]

_SWEEPS = 12
_Slot = tuple[str, int]
"""A node in its layer, or the lane in which the lines of a node pass a layer further right: (node, layer)."""


@dataclass(frozen=True)
class Sizes:
    """Of what is drawn, in pixels.

    Attributes:
        gap: between two layers.
        space: between two nodes of a layer.
        lane: the height of a passing line.
    """

    width: int = 172
    height: int = 60
    gap: int = 41
    space: int = 14
    lane: int = 12


@dataclass(frozen=True)
class Layout:
    """A graph's places, in pixels from the upper left corner.

    Attributes:
        places: {node: (left, top)}.
        routes: {edge: points from the source's right side to the target's left side}. Between two layers a line may
            curve; across a layer it runs level. An edge that closes a circle runs the other way; one from a node to
            itself has no route.
    """

    width: float
    height: float
    places: Mapping[str, Point]
    routes: Mapping[Edge, tuple[Point, ...]]


def layout(nodes: Sequence[str], edges: Iterable[Edge], sizes: Sizes = Sizes()) -> Layout:
    """Lay out a graph.

    Args:
        nodes: in the order in which they are drawn from above where nothing else decides.
        edges: (source, target), both among `nodes`.
    """
    given = [edge for edge in dict.fromkeys(edges) if edge[0] != edge[1]]
    forward = _without_circles(nodes, given)
    layer = _layers(nodes, forward.values())
    neighbours, columns = _slots(nodes, layer, forward.values())
    _order(columns, neighbours)
    middle = _heights(columns, neighbours, layer, sizes)
    top = min((middle[node, layer[node]] for node in nodes), default=0.0) - sizes.height / 2
    top = min([top, *(y - sizes.lane / 2 for y in middle.values())])
    step = sizes.width + sizes.gap
    places = {
        node: (float(layer[node] * step), round(middle[node, layer[node]] - top - sizes.height / 2, 1))
        for node in nodes
    }
    routes = {}
    for edge in given:
        source, target = forward[edge]
        points = [(layer[source] * step + sizes.width, middle[source, layer[source]])]
        for passed in range(layer[source] + 1, layer[target]):
            left = passed * step
            points += [(left, middle[source, passed]), (left + sizes.width, middle[source, passed])]
        points.append((layer[target] * step, middle[target, layer[target]]))
        routes[edge] = tuple((float(x), round(y - top, 1)) for x, y in points)
    low = max([0.0, *(y - top + sizes.lane / 2 for y in middle.values())])
    return Layout(
        width=float(max(layer.values(), default=-1) * step + sizes.width) if nodes else 0.0,
        height=round(max([low, *(y + sizes.height for _, y in places.values())]), 1),
        places=places,
        routes=routes,
    )


def _without_circles(nodes: Sequence[str], edges: Sequence[Edge]) -> dict[Edge, Edge]:
    """{edge: itself, or turned round where it would close a circle}, found by a depth-first search."""
    following: dict[str, list[str]] = {node: [] for node in nodes}
    for source, target in edges:
        following[source].append(target)
    state: dict[str, int] = {}  # 1 on the path that is being searched, 2 done
    turned = set()
    for start in nodes:
        if start in state:
            continue
        path = [(start, iter(following[start]))]
        state[start] = 1
        while path:
            node, rest = path[-1]
            for target in rest:
                if state.get(target) == 1:
                    turned.add((node, target))
                elif target not in state:
                    state[target] = 1
                    path.append((target, iter(following[target])))
                    break
            else:
                state[node] = 2
                path.pop()
    return {edge: (edge[1], edge[0]) if edge in turned else edge for edge in edges}


def _layers(nodes: Sequence[str], edges: Iterable[Edge]) -> dict[str, int]:
    """{node: the longest path to it}; a node that nothing leads to stands right before the first it leads to."""
    leading: dict[str, int] = dict.fromkeys(nodes, 0)
    following: dict[str, list[str]] = {node: [] for node in nodes}
    for source, target in set(edges):
        following[source].append(target)
        leading[target] += 1
    first = [node for node in nodes if not leading[node]]
    layer = dict.fromkeys(nodes, 0)
    ready = list(first)
    while ready:
        node = ready.pop()
        for target in following[node]:
            layer[target] = max(layer[target], layer[node] + 1)
            leading[target] -= 1
            if not leading[target]:
                ready.append(target)
    for node in first:
        if following[node]:
            layer[node] = min(layer[target] for target in following[node]) - 1
    return layer


def _slots(
    nodes: Sequence[str], layer: Mapping[str, int], edges: Iterable[Edge]
) -> tuple[dict[_Slot, tuple[list[_Slot], list[_Slot]]], list[list[_Slot]]]:
    """What lies in each layer; and of each, what it is joined with in the layer before and in the one after.

    The lines of one node share a lane as far as they go together.
    """
    columns: list[list[_Slot]] = [[] for _ in range(max(layer.values(), default=-1) + 1)]
    neighbours: dict[_Slot, tuple[list[_Slot], list[_Slot]]] = {}

    def add(slot: _Slot) -> None:
        if slot not in neighbours:
            neighbours[slot] = ([], [])
            columns[slot[1]].append(slot)

    for node in nodes:
        add((node, layer[node]))
    for source, target in dict.fromkeys(edges):
        before = (source, layer[source])
        for passed in range(layer[source] + 1, layer[target] + 1):
            here = (source, passed) if passed < layer[target] else (target, passed)
            add(here)
            if here not in neighbours[before][1]:
                neighbours[before][1].append(here)
                neighbours[here][0].append(before)
            before = here
    return neighbours, columns


def _order(columns: list[list[_Slot]], neighbours: Mapping[_Slot, tuple[list[_Slot], list[_Slot]]]) -> None:
    """Sort every layer by where its neighbours stand, from left to right and back."""
    for sweep in range(_SWEEPS):
        side = sweep % 2
        for column in columns if side == 0 else reversed(columns):
            at = column[0][1]
            near = [column, *([columns[at - 1]] if at else []), *columns[at + 1 : at + 2]]
            index = {slot: i for slots in near for i, slot in enumerate(slots)}

            def barycentre(slot: _Slot, index: Mapping[_Slot, int] = index, side: int = side) -> float:
                joined = neighbours[slot][side]
                return sum(index[other] for other in joined) / len(joined) if joined else index[slot]

            column.sort(key=barycentre)


def _heights(
    columns: Sequence[Sequence[_Slot]],
    neighbours: Mapping[_Slot, tuple[list[_Slot], list[_Slot]]],
    layer: Mapping[str, int],
    sizes: Sizes,
) -> dict[_Slot, float]:
    """{slot: its middle}: near those of its neighbours, in order, and without touching the next."""

    def height(slot: _Slot) -> int:
        return sizes.height if layer[slot[0]] == slot[1] else sizes.lane

    def apart(column: Sequence[_Slot]) -> list[float]:
        """How far each middle must at least lie below the first one."""
        offsets = [0.0]
        for above, below in pairwise(column):
            offsets.append(offsets[-1] + (height(above) + height(below)) / 2 + sizes.space)
        return offsets

    middle: dict[_Slot, float] = {}
    for column in columns:
        offsets = apart(column)
        middle |= {slot: y - offsets[-1] / 2 for slot, y in zip(column, offsets, strict=True)}
    for sweep in range(_SWEEPS):
        for column in columns if sweep % 2 == 0 else reversed(columns):
            wanted = []
            for slot in column:
                joined = [*neighbours[slot][0], *neighbours[slot][1]]
                wanted.append(
                    sum(middle[other] for other in joined) / len(joined) if joined else middle[slot]
                )
            offsets = apart(column)
            settled = _rising([y - offset for y, offset in zip(wanted, offsets, strict=True)])
            middle |= {slot: y + offset for slot, y, offset in zip(column, settled, offsets, strict=True)}
    return middle


def _rising(wanted: Sequence[float]) -> list[float]:
    """The values closest to `wanted`, by least squares, of which none is smaller than the one before it."""
    pools: list[tuple[float, int]] = []
    for value in wanted:
        total, count = value, 1
        while pools and pools[-1][0] / pools[-1][1] > total / count:
            before, many = pools.pop()
            total, count = total + before, count + many
        pools.append((total, count))
    return [total / count for total, count in pools for _ in range(count)]
