"""Draw docs/line.svg, the picture of the line in the README: `python docs/draw_line.py`.

One SVG for light and dark readers: it carries its own background, and follows the reader's setting.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from xml.sax.saxutils import escape

WIDTH, HEIGHT = 1110, 408
ROW = 148
"""Height of the middle of the line."""
NODE_WIDTH, NODE_HEIGHT = 86, 48

STYLE = """
  text { font: 13px system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; fill: #1b2027; }
  .small { font-size: 12px; fill: #5a6472; }
  .strong { font-weight: 650; }
  .page { fill: #f5f6f8; stroke: #d9dee5; }
  .band { stroke-width: 1; }
  .dvc { fill: #e4ecfb; stroke: #b3c8f0; } .mlflow { fill: #f8ecda; stroke: #e5cba0; }
  .node { fill: #ffffff; stroke: #5a6472; stroke-width: 1.2; }
  .gate { fill: #ffffff; stroke: #2f5fd0; stroke-width: 2; }
  .soft { fill: none; stroke: #5a6472; stroke-dasharray: 4 3; }
  .fail { fill: #fbe7e4; stroke: #a8261a; } .failed { fill: #a8261a; }
  .wire { fill: none; stroke: #5a6472; stroke-width: 1.5; }
  .dashed { stroke-dasharray: 4 3; }
  .red { stroke: #a8261a; } .head { fill: #5a6472; } .redhead { fill: #a8261a; }
  @media (prefers-color-scheme: dark) {
    text { fill: #e7eaee; }
    .small { fill: #a3adba; }
    .page { fill: #0f1216; stroke: #323a45; }
    .dvc { fill: #17233d; stroke: #34507f; } .mlflow { fill: #2e2414; stroke: #664e25; }
    .node { fill: #1b2129; stroke: #a3adba; }
    .gate { fill: #1b2129; stroke: #7ea4ff; }
    .soft { stroke: #a3adba; }
    .fail { fill: #43201c; stroke: #ff9d90; } .failed { fill: #ff9d90; }
    .wire { stroke: #a3adba; } .head { fill: #a3adba; }
    .red { stroke: #ff9d90; } .redhead { fill: #ff9d90; }
  }
"""

NODES = {
    "data": 65, "dataset\nversion": 175, "prepare": 286, "train": 392, "evaluate": 498, "gate": 607,
    "register": 734, "candidate": 838, "staging": 942, "production": 1046,
}  # fmt: skip
"""Each station and the middle of its box."""


def text(x: float, y: float, words: str, classes: str = "", anchor: str = "middle") -> str:
    """One line of text."""
    return f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}" class="{classes}">{escape(words)}</text>'


def owner(x: float, y: float, name: str, words: str) -> str:
    """Which tool owns what lies below."""
    return f'<text x="{x:g}" y="{y:g}"><tspan class="strong">{name}</tspan> <tspan class="small">{words}</tspan></text>'


def box(x: float, y: float, width: float, height: float, classes: str, radius: float = 8) -> str:
    """A rounded rectangle with its upper left corner at (x, y)."""
    return (
        f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="{radius:g}" class="{classes}"/>'
    )


def wire(path: str, classes: str = "", head: str = "head") -> str:
    """A line that ends in an arrow."""
    return f'<path d="{path}" class="wire {classes}" marker-end="url(#{head})"/>'


def node(words: str, x: float) -> list[str]:
    """A station of the line; the gate is a hexagon."""
    half = NODE_WIDTH / 2
    if words == "gate":
        corners = ((-44, 0), (-26, -28), (26, -28), (44, 0), (26, 28), (-26, 28))
        points = " ".join(f"{x + dx:g},{ROW + dy:g}" for dx, dy in corners)
        return [f'<polygon points="{points}" class="gate"/>', text(x, ROW + 5, words, "strong")]
    lines = words.split("\n")
    first = ROW + 5 - 8 * (len(lines) - 1)
    return [
        box(x - half, ROW - NODE_HEIGHT / 2, NODE_WIDTH, NODE_HEIGHT, "node"),
        *(text(x, first + 16 * i, line, "strong") for i, line in enumerate(lines)),
    ]


def draw() -> str:
    """The whole picture."""
    half = NODE_WIDTH / 2
    gate, production, train, evaluate = (NODES[name] for name in ("gate", "production", "train", "evaluate"))
    parts = [
        box(0.5, 0.5, WIDTH - 1, HEIGHT - 1, "page", 12),
        owner(24, 31, "Prefect", "owns when: schedules, triggers, retries, approvals"),
        box(120, 48, 434, 266, "band dvc", 12),
        owner(134, 71, "DVC", "owns what was computed from what"),
        box(684, 48, 414, 266, "band mlflow", 12),
        owner(698, 71, "MLflow", "owns what is known and what may be used"),
        box(234, 94, 316, 88, "soft", 10),
        text(train, 113, "one experiment", "small"),
    ]
    edge = 44  # of the hexagon
    names = list(NODES)
    for before, after in pairwise(names):
        start = NODES[before] + (edge if before == "gate" else half)
        end = NODES[after] - (edge if after == "gate" else half)
        parts.append(wire(f"M{start:g} {ROW} H{end - 7:g}"))
    parts.append(text(gate + 44, ROW - 9, "pass", "small", "start"))
    # The champion comes back to the gate, above the line.
    parts.append(wire(f"M{production} {ROW - NODE_HEIGHT / 2:g} V92 H{gate} V{ROW - 35}", "dashed"))
    parts.append(text(910, 111, "champion, judged on the same rows", "small"))
    # The base model comes in from below.
    parts += [
        box(247, 234, 290, 60, "node"),
        text(train, 259, "base model, frozen", "strong"),
        text(train, 279, "pinned by the SHA-256 of its files", "small"),
        *(wire(f"M{x} 234 V{ROW + NODE_HEIGHT / 2 + 7:g}") for x in (NODES["prepare"], train, evaluate)),
    ]
    # What does not pass leaves the line.
    parts += [
        wire(f"M{gate} {ROW + 28} V327", "red", "redhead"),
        text(gate + 8, 206, "fail", "failed", "start"),
        box(gate - 146, 334, 292, 54, "fail"),
        text(gate, 357, "rejected", "strong failed"),
        text(gate, 376, "recorded with its reasons, never registered", "small"),
    ]
    # The ledger holds the stages.
    parts += [
        f'<path d="M795 {ROW + 34} v10 H1089 v-10" class="wire"/>',
        text(942, 213, "promoted stage by stage,", "small"),
        text(942, 230, "read by alias", "small"),
        box(691, 246, 395, 50, "node"),
        text(888, 267, "version and lineage record", "strong"),
        text(888, 285, "names by hash everything it was made from", "small"),
        wire(f"M{NODES['register']} {ROW + NODE_HEIGHT / 2:g} V239"),
    ]
    for name, x in NODES.items():
        parts += node(name, x)
    body = "\n".join(parts)
    return f"""<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-labelledby="t d">
<title id="t">The line from data to production</title>
<desc id="d">Data becomes a DVC dataset version. One DVC experiment prepares, trains and evaluates a prefix on a frozen
base model that is pinned by content. The gate judges it against the base and the champion on the same rows. What fails
is recorded and never registered. What passes is registered in MLflow and promoted from candidate to staging to
production. Prefect decides when.</desc>
<style>{STYLE}</style>
<defs>
<marker id="head" viewBox="0 0 8 8" refX="1" refY="4" markerWidth="5.5" markerHeight="5.5" orient="auto"><path d="M0 0 8 4 0 8z" class="head"/></marker>
<marker id="redhead" viewBox="0 0 8 8" refX="1" refY="4" markerWidth="5.5" markerHeight="5.5" orient="auto"><path d="M0 0 8 4 0 8z" class="redhead"/></marker>
</defs>
{body}
</svg>
"""


if __name__ == "__main__":
    Path(__file__).with_name("line.svg").write_text(draw())
