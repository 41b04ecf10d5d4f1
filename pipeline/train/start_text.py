"""The text a prefix starts from: given by hand, or made from the task."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import TYPE_CHECKING

from pipeline.errors import PrefixError
from pipeline.params import PrefixParams, Task, TextFrom

if TYPE_CHECKING:
    import datasets
    from transformers import PreTrainedTokenizerFast

SAMPLE = 10_000
"""Training rows, from the first, that frequent words are counted in."""

_WORD = re.compile(r"[^\W\d_]{3,}")


def start_tokens(
    params: PrefixParams,
    task: Task,
    *,
    tokenizer: PreTrainedTokenizerFast,
    labels: Sequence[str] | None,
    rows: datasets.Dataset,
) -> tuple[str, str, list[int]]:
    """The text to start from, what it is made of (`params.text_from`, or "given"), and its `length` tokens.

    Raises:
        PrefixError: it has too few tokens.
    """
    if params.text is not None:
        return params.text, "given", given_text(params.text, tokenizer, params.length)
    made_of = params.text_from or choice(task, labels)
    text = task_text(made_of, task, labels, rows, length=params.length)
    return text, made_of, repeated(tokenizer(text, add_special_tokens=False).input_ids, params.length)


def given_text(text: str, tokenizer: PreTrainedTokenizerFast, length: int) -> list[int]:
    """The first `length` tokens of a text written by hand.

    Raises:
        PrefixError: it has fewer.
    """
    ids: list[int] = tokenizer(text, add_special_tokens=False).input_ids
    if len(ids) < length:
        raise PrefixError(
            f"prefix.text has {len(ids)} tokens, and prefix.length is {length}; expected at least as many: write a "
            f"longer text{f', set prefix.length to {len(ids)}' if ids else ''}, or leave prefix.text out to start "
            "from a text made from the task"
        )
    return ids[:length]


def choice(task: Task, labels: Sequence[str] | None) -> TextFrom:
    """What a text is made of where nothing is said: the label names where they have letters, else words."""
    named = task == "classification" and _WORD.search(_spoken(labels))
    return "labels" if named else "words"


def task_text(
    made_of: TextFrom, task: Task, labels: Sequence[str] | None, rows: datasets.Dataset, *, length: int
) -> str:
    """A text that says what the task is about, for a prefix of `length`.

    labels: their names. words: the `length` most frequent words (of three letters or more, equally frequent ones in
    alphabetical order) of the first `SAMPLE` training texts or targets. examples: up to `length` training rows
    spread evenly over all, a line each: the text and its label, or the source and on the next line its first target.
    """
    if made_of == "labels":
        return _spoken(labels)
    if made_of == "examples":
        count = min(length, len(rows))
        chosen = rows.select([i * len(rows) // count for i in range(count)])
        if task == "classification":
            names = [] if labels is None else labels
            pairs = zip(chosen["text"], chosen["label"], strict=True)
            return "\n".join(f"{text} {_spoken([names[label]])}" for text, label in pairs)
        pairs = zip(chosen["source"], chosen["targets"], strict=True)
        return "\n".join(f"{source}\n{targets[0]}" for source, targets in pairs)
    sample = rows.select(range(min(SAMPLE, len(rows))))
    texts: Iterable[str] = (
        sample["text"] if task == "classification" else chain.from_iterable(sample["targets"])
    )
    count_of = Counter(word for text in texts for word in _WORD.findall(text.lower()))
    return " ".join(sorted(count_of, key=lambda word: (-count_of[word], word))[:length])


def repeated(ids: Sequence[int], length: int) -> list[int]:
    """`ids` repeated or cut to `length`.

    Raises:
        PrefixError: there are none.
    """
    if not ids:
        raise PrefixError(
            "the text to start the prefix from has no tokens; give prefix.text, or set prefix.initialisation: random"
        )
    return [ids[i % len(ids)] for i in range(length)]


def _spoken(labels: Sequence[str] | None) -> str:
    return " ".join(label.replace("_", " ").replace("-", " ") for label in labels or ())
