"""Real text, made on the machine: docstrings of installed libraries. The task: which library is it from?

Sources are parsed with `ast`, never imported. From every module, class and function it takes the docstring's
first paragraph, masks the library's own names, drops what is too short, too long or not prose, and drops a
text that two libraries share from both. Rows are sampled by the hash of their content, so the same
installation always gives the same file, and a larger sample contains the smaller one.

    python examples/docstrings.py --out data/docstrings.jsonl --rows 500
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import importlib.util
import json
import re
import sys
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

MASK = "LIBRARY"
LIBRARIES: Mapping[str, tuple[str, ...]] = {
    # import name: other names and usual abbreviations by which its own documentation calls it
    "asyncssh": (),
    "dulwich": (),
    "matplotlib": ("mpl", "pyplot", "pylab", "plt"),
    "networkx": ("nx",),
    "nltk": ("natural language toolkit",),
    "pandas": ("pd",),
    "prefect": (),
    "sqlalchemy": ("sa",),
}
WORDS = (5, 60)
LETTERS = 0.75
_SKIPPED = re.compile(
    r"^_*(tests?|testing|vendor(ed)?|externals?|conftest|examples?|benchmarks?)(_|$)|_tests?$"
)


class HarvestError(Exception):
    """A library is not installed, or does not have enough docstrings."""


@dataclass(frozen=True, order=True)
class Row:
    """One docstring.

    Attributes:
        text: its first paragraph, masked, on one line.
        label: the library's import name.
        kind: module, class, function or method.
    """

    text: str
    label: str
    kind: str

    @property
    def key(self) -> str:
        """What two rows share that differ only in case, digits or punctuation."""
        return re.sub(r"[^a-z]+", " ", self.text.casefold()).strip()

    @property
    def rank(self) -> str:
        """Its place in the sample: a hash of the content, so that it depends on nothing else."""
        return hashlib.sha256(f"{self.label}\0{self.text}".encode()).hexdigest()


def sources(library: str) -> list[Path]:
    """The library's Python files in a fixed order, without tests and other people's code.

    Raises:
        HarvestError: it is not installed.
    """
    spec = importlib.util.find_spec(library)  # of a top-level package: finds it, does not import it
    if spec is None or not spec.submodule_search_locations:
        raise HarvestError(
            f"{library} is not installed in {sys.prefix}; install the project with its [demo] extra"
        )
    root = Path(next(iter(spec.submodule_search_locations)))
    paths = (path.relative_to(root) for path in root.rglob("*.py"))
    wanted = (path for path in paths if not any(_SKIPPED.search(Path(part).stem) for part in path.parts))
    return [root / path for path in sorted(wanted)]


def docstrings(source: str) -> Iterator[tuple[str, str]]:
    """(kind, docstring) of everything in `source` that has one.

    Raises:
        SyntaxError: `source` is not Python of this version.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid escapes in other people's strings
        tree = ast.parse(source)
    waiting: list[tuple[ast.AST, str, bool]] = [(tree, "module", False)]
    while waiting:
        node, kind, in_class = waiting.pop()
        if isinstance(node, _DOCUMENTED):
            in_class = isinstance(node, ast.ClassDef)  # an `if` inside a class is still in it
            if text := ast.get_docstring(node):
                yield kind, text
        waiting += [(child, _kind(child, in_class=in_class), in_class) for child in _statements(node)]


_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def _statements(node: ast.AST) -> Iterator[ast.AST]:
    """What can hold definitions: blocks and the branches of compound statements, never expressions."""
    for block in ("body", "orelse", "finalbody", "handlers", "cases"):
        children = getattr(node, block, [])
        if isinstance(children, list):  # a lambda's body is an expression
            yield from children


def _kind(node: ast.AST, *, in_class: bool) -> str:
    if isinstance(node, ast.ClassDef):
        return "class"
    return "method" if in_class else "function"


def first_paragraph(docstring: str) -> str:
    """The text before the first empty line, on one line with single spaces."""
    return " ".join(re.split(r"\n\s*\n", docstring.strip(), maxsplit=1)[0].split())


def mask(text: str, library: str, others: Sequence[str] = ()) -> str:
    """`text` with every mention of the library replaced by `MASK`.

    `torch.nn.Linear` → `LIBRARY`, `PyTorch`, `TORCH` → `LIBRARY`, `TorchScript` → `LIBRARYScript`. Names
    under `others` count as whole words only, because short ones are parts of other words.
    """
    name = re.escape(library)
    text = re.sub(rf"(?<![\w.])(py)?{name}(\.\w+)+", MASK, text, flags=re.IGNORECASE)
    text = re.sub(rf"(\bpy)?{name}", MASK, text, flags=re.IGNORECASE)
    for other in others:
        text = re.sub(rf"\b{re.escape(other)}\b(\.\w+)*", MASK, text, flags=re.IGNORECASE)
    return text


def usable(text: str) -> bool:
    """Whether it is a sentence or two of prose rather than a table, code or a title."""
    least, most = WORDS
    solid = [character for character in text if not character.isspace()]
    letters = sum(character.isascii() and character.isalpha() for character in solid)
    return least <= len(text.split()) <= most and letters >= LETTERS * len(solid)


def harvest(library: str, others: Sequence[str] = ()) -> list[Row]:
    """Every usable docstring of `library`, each text once, in the order of `Row.rank`."""
    found: dict[str, Row] = {}
    for path in sources(library):
        try:
            pairs = list(docstrings(path.read_text(encoding="utf-8")))
        except (SyntaxError, ValueError) as error:  # templates, other Python versions, NUL bytes, Latin-1
            print(f"{path}: skipped, {error}", file=sys.stderr)
            continue
        for kind, docstring in pairs:
            row = Row(mask(first_paragraph(docstring), library, others), library, kind)
            if usable(row.text):
                found[row.key] = min(row, found.get(row.key, row))
    return sorted(found.values(), key=lambda row: row.rank)


def sample(harvests: Mapping[str, Sequence[Row]], rows: int) -> list[Row]:
    """`rows` of each library, by rank, without texts that two libraries share.

    Raises:
        HarvestError: a library has fewer.
    """
    owners = Counter(row.key for harvested in harvests.values() for row in harvested)
    chosen: list[Row] = []
    for library, harvested in harvests.items():
        own = [row for row in harvested if owners[row.key] == 1]
        if len(own) < rows:
            raise HarvestError(f"{library} has {len(own)} usable docstrings; expected at least {rows}")
        chosen += own[:rows]
    return sorted(chosen, key=lambda row: row.rank)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(description="Harvest docstrings of installed libraries as JSONL.")
    parser.add_argument("--out", type=Path, required=True, help="the JSONL file to write")
    parser.add_argument("--rows", type=int, default=500, help="rows per library (default: 500)")
    parser.add_argument(
        "--more", type=int, default=0, help="this many more: the rest of the file stays the same"
    )
    options = parser.parse_args(arguments)
    try:
        harvests = {library: harvest(library, others) for library, others in LIBRARIES.items()}
        rows = sample(harvests, options.rows + options.more)
    except HarvestError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    options.out.parent.mkdir(parents=True, exist_ok=True)
    lines = (json.dumps({"text": r.text, "label": r.label, "kind": r.kind}, ensure_ascii=False) for r in rows)
    options.out.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"{options.out}: {len(rows)} docstrings of {len(harvests)} libraries: {', '.join(harvests)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
