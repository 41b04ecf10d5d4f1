"""docs/architectures.md, made of what the tests find.

python -m tests.prefix.architecture_page
"""

from __future__ import annotations

from pathlib import Path

import peft
import torch
import transformers

from pipeline.errors import PrefixError
from pipeline.prefix.tuning import PrefixShape
from tests.prefix.cases import CASES, TOLERANCE
from tests.prefix.models import REFUSED, refused
from tests.prefix.peer import peer
from tests.prefix.properties import PROPERTIES, outcome

PAGE = Path(__file__).parents[2] / "docs" / "architectures.md"
KINDS = {
    "decoder": "Decoders",
    "encoder": "Encoders, with a head for sequences",
    "encoder of tokens": "Encoders, with a head for tokens",
    "encoder-decoder": "Encoder-decoders",
}


def page() -> str:
    """The page's text."""
    notes: dict[str, int] = {}

    def cell(found: str) -> str:
        if found in ("yes", "equal", ""):
            return {"yes": "✓", "equal": "✓", "": ""}[found]
        number = notes.setdefault(found, len(notes) + 1)
        return f"({number})"

    lines = [
        "# Architectures",
        "",
        "Made by `make architectures` out of what the tests find on tiny random models; a test compares it with what they",
        f"find now (transformers {transformers.__version__}, PEFT {peft.__version__}). ✓: the property holds; a number: see the notes below.",
        "",
        *(f"- **{name}**: {_first_line(function.__doc__)}" for name, function in PROPERTIES.items()),
        "- **PEFT: logits, padding, checkpointing**: whether PEFT's prefix tuning computes the logits of the second column,",
        "  whether padding on the left changes nothing (empty for a head for sequences, which reads one column), and whether",
        "  gradient checkpointing changes nothing.",
        "",
        f"Equal means a difference below {TOLERANCE:g}, with the prefix in every attention layer. The reference of logits and",
        "gradients shares no code with the engine (tests/prefix/slow.py): attention written out query by query, the model's own",
        "key/value cache, or a pass over more tokens; DeBERTa-v2's gradient is compared with a quotient of differences. The mean head",
        "is compared with the same reference, a text start with the base, PEFT's format with PEFT; the other columns compare the",
        "engine with itself in the plainest way: one row alone, without cache, packing or checkpointing. Logits, gradients and padding",
        "are compared in float64.",
        "",
        "Rows have up to 9 tokens. Where a case names a window, some of its layers see only that many tokens (ModernBERT: to either side);",
        "our prefix stays in sight of every token, while PEFT's lies in the key/value cache and slides out of sight. Other words after a",
        "name: T5 and Bart unequal have an encoder and a decoder of other depths or heads; Falcon grouped has fewer key/value heads",
        "than heads, Falcon ALiBi tells distances by ALiBi.",
    ]
    columns = [*PROPERTIES, "PEFT: logits", "PEFT: padding", "PEFT: checkpointing"]
    for kind, title in KINDS.items():
        lines += [
            "",
            f"## {title}",
            "",
            "| | " + " | ".join(columns) + " |",
            "|---" * (len(columns) + 1) + "|",
        ]
        for case in CASES:
            if case.kind == kind:
                cells = [cell(outcome(case, name)) for name in PROPERTIES] + [
                    cell(_peers(found)) for found in peer(case).values()
                ]
                lines.append(f"| {case.family} | " + " | ".join(cells) + " |")
    lines += ["", "## Notes", "", *(f"{number}. {note}" for note, number in notes.items())]
    lines += [
        "",
        "## Refused",
        "",
        "Each with one error, before anything is computed (tests/prefix/test_architecture.py):",
        "",
        *(f"- **{family}**: {_refusal(family)}" for family in REFUSED),
    ]
    return "\n".join(lines) + "\n"


def _peers(found: str) -> str:
    if found in ("equal", ""):
        return found
    return "PEFT runs, and it does not hold" if found == "differs" else f"PEFT: {found}"


def _refusal(family: str) -> str:
    """Why a model of `family` is refused, in the error's words."""
    try:
        PrefixShape.of_model(refused(family))
    except PrefixError as error:
        return str(error).partition(" cannot carry a prefix: it ")[2].partition("; ")[0]
    raise AssertionError(f"{family} is not refused")


def _first_line(text: str | None) -> str:
    return (text or "").strip().splitlines()[0].rstrip(".") + "."


if __name__ == "__main__":
    torch.set_num_threads(1)  # more only wait for each other over matrices so small
    transformers.logging.set_verbosity_error()
    PAGE.write_text(page(), encoding="utf-8")
