"""Where the nodes of a graph are drawn: nothing overlaps, and equal graphs are drawn alike."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.show.graph_layout import Edge, Layout, Sizes, layout

SIZES = Sizes()


@st.composite
def graphs(draw: st.DrawFn) -> tuple[list[str], list[Edge]]:
    nodes = [f"n{i}" for i in range(draw(st.integers(1, 14)))]
    pairs = st.tuples(st.sampled_from(nodes), st.sampled_from(nodes))
    return nodes, draw(st.lists(pairs, max_size=30))


def assert_lawful(found: Layout, nodes: list[str], edges: list[Edge]) -> None:
    assert sorted(found.places) == sorted(nodes)
    assert set(found.routes) == {edge for edge in edges if edge[0] != edge[1]}
    boxes = sorted(found.places.values())
    for (left, top), (other_left, other_top) in pairwise(boxes):
        assert other_left >= left + SIZES.width or other_top >= top + SIZES.height
    for left, top in boxes:
        assert left >= 0
        assert top >= 0
        assert left + SIZES.width <= found.width
        assert top + SIZES.height <= found.height
    for points in found.routes.values():
        assert 0 <= min(y for _, y in points) <= max(y for _, y in points) <= found.height
        for (x1, y1), (x2, y2) in pairwise(points):
            assert x2 > x1
            inside = [box for box in boxes if box[0] < x2 and x1 < box[0] + SIZES.width]
            if inside:  # it passes a layer: level, and beside all of its nodes
                assert y1 == y2
                assert all(not top < y1 < top + SIZES.height for _, top in inside)


@given(graphs())
@settings(max_examples=150, deadline=None)
def test_no_node_overlaps_another_and_no_line_crosses_one_whatever_the_graph(
    graph: tuple[list[str], list[Edge]],
) -> None:
    nodes, edges = graph
    found = layout(nodes, edges)
    assert_lawful(found, nodes, edges)
    assert layout(list(nodes), list(edges)) == found


def test_layers_follow_the_depth_and_a_source_stands_right_before_its_first_use():
    found = layout(
        ["early", "late", "a", "b", "c"],
        [("early", "a"), ("a", "b"), ("b", "c"), ("late", "c"), ("early", "c")],
    )
    step = SIZES.width + SIZES.gap
    assert {node: x / step for node, (x, _) in found.places.items()} == {
        "early": 0, "a": 1, "b": 2, "c": 3, "late": 2,
    }  # fmt: skip
    assert len(found.routes["early", "c"]) == 6  # two layers are passed
    start, end = found.routes["a", "b"][0], found.routes["a", "b"][-1]
    assert start == (found.places["a"][0] + SIZES.width, found.places["a"][1] + SIZES.height / 2)
    assert end == (found.places["b"][0], found.places["b"][1] + SIZES.height / 2)


def test_a_chain_is_level_and_a_fan_is_in_order_around_its_source():
    chain = layout(["a", "b", "c"], [("a", "b"), ("b", "c")])
    assert len({y for _, y in chain.places.values()}) == 1
    fan = layout(["a", "b", "c", "d"], [("a", "b"), ("a", "c"), ("a", "d")])
    tops = [fan.places[node][1] for node in "bcd"]
    assert tops == sorted(tops)
    assert fan.places["a"][1] == fan.places["c"][1]


def test_lines_that_need_not_cross_do_not():
    pairs = [("a", "z"), ("b", "y"), ("c", "x")]
    found = layout(["a", "b", "c", "x", "y", "z"], pairs)
    sources = [found.places[source][1] for source, _ in pairs]
    targets = [found.places[target][1] for _, target in pairs]
    assert sources == targets


def test_versions_that_name_each_other_in_a_circle_are_still_drawn():
    nodes, edges = ["a", "b", "c"], [("a", "b"), ("b", "c"), ("c", "a")]
    found = layout(nodes, edges)
    assert_lawful(found, nodes, edges)


def test_a_hundred_versions_in_a_chain_on_one_shared_dataset_are_laid_out_lawfully():
    nodes = ["data", *(f"v{i}" for i in range(100))]
    edges = [("data", f"v{i}") for i in range(100)] + [(f"v{i}", f"v{i + 1}") for i in range(99)]
    found = layout(nodes, edges)
    assert_lawful(found, nodes, edges)
    assert found.height < 400  # the lines of one node share a lane
    assert layout([], []) == Layout(0.0, 0.0, {}, {})
