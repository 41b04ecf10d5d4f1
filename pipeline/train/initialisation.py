"""Where a prefix starts: from a text, given or made from the task, or from noise."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import TYPE_CHECKING

import torch

from pipeline.errors import PrefixError
from pipeline.params import PrefixParams, Task
from pipeline.prefix.text_start import text_key_values
from pipeline.prefix.tuning import Prefix, PrefixShape

if TYPE_CHECKING:
    import datasets
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

SAMPLE = 10_000
"""Training rows, from the first, that frequent words are counted in."""

_WORD = re.compile(r"[^\W\d_]{3,}")


def start(
    model: PreTrainedModel,
    params: PrefixParams,
    task: Task,
    *,
    tokenizer: PreTrainedTokenizerFast,
    labels: Sequence[str] | None,
    rows: datasets.Dataset,
    seed: int,
) -> tuple[Prefix, str | None]:
    """The prefix before its first step, and the text it starts from (None for noise).

    Raises:
        PrefixError: the model cannot carry it, the text has no tokens, or a projection cannot yield it.
    """
    prefix = Prefix(PrefixShape.of_model(model), params.length, projection=params.projection)
    prefix.to(model.device)
    if params.initialisation == "random":
        prefix.init_random(params.random_scale, torch.Generator().manual_seed(seed))
        return prefix, None
    text = params.text or task_text(task, labels, rows, words=params.length)
    ids = exactly(tokenizer(text, add_special_tokens=False).input_ids, params.length)
    prefix.init_from(text_key_values(model, torch.tensor(ids, device=model.device)))
    return prefix, text


def task_text(task: Task, labels: Sequence[str] | None, rows: datasets.Dataset, *, words: int) -> str:
    """A text that says what the task is about.

    The label names where they have letters; otherwise the `words` most frequent words (of three letters or
    more, equally frequent ones in alphabetical order) of the first `SAMPLE` training texts or targets.
    """
    named = " ".join(label.replace("_", " ").replace("-", " ") for label in labels or ())
    if task == "classification" and _WORD.search(named):
        return named
    sample = rows.select(range(min(SAMPLE, len(rows))))
    texts: Iterable[str] = (
        sample["text"] if task == "classification" else chain.from_iterable(sample["targets"])
    )
    count = Counter(word for text in texts for word in _WORD.findall(text.lower()))
    return " ".join(sorted(count, key=lambda word: (-count[word], word))[:words])


def exactly(ids: Sequence[int], length: int) -> list[int]:
    """`ids` repeated or cut to `length`.

    Raises:
        PrefixError: there are none.
    """
    if not ids:
        raise PrefixError(
            "the text to start the prefix from has no tokens; give prefix.text, or set prefix.initialisation: random"
        )
    return [ids[i % len(ids)] for i in range(length)]
