"""What a frozen model, with or without a prefix, makes of tokenised rows. Nothing here learns.

Rows are computed longest first in batches of like length, so that little of a batch is padding and a machine too
small for the longest rows says so at once. Results come back in the order of the rows.

Shape legend: N rows, B rows of a batch, T tokens, C labels, H hidden size.
"""

from __future__ import annotations

import inspect
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TextIO

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from transformers import PreTrainedModel, PreTrainedTokenizerFast
from transformers.modeling_outputs import BaseModelOutput

from pipeline.base.mean_pooled import mean_of_tokens
from pipeline.base.padding import Tokens, pad_token, padded
from pipeline.prefix.architecture import anatomy
from pipeline.prefix.attention import attach
from pipeline.prefix.generation import fitting, generate
from pipeline.prefix.tuning import Prefix

_LOGITS = 2**27
"""Logits computed at a time, half a GB in float32: what bounds a batch where the vocabulary is large."""

_EVERY = 15.0
"""Seconds between two lines of progress where there is no terminal."""


@torch.inference_mode()
def class_log_probabilities(
    model: PreTrainedModel, prefix: Prefix | None, rows: Sequence[Tokens], batch_size: int, *, what: str
) -> NDArray[np.float64]:
    """[N, C] natural logarithms of the labels' probabilities, by a sequence classifier.

    Args:
        rows: token ids with special tokens.
        what: names the rows in the progress.
    """
    found = np.empty((len(rows), int(model.config.num_labels)))
    with _attached(model, prefix):
        for places in _batches([len(row) for row in rows], batch_size, what):
            input_ids, mask = padded([rows[i] for i in places], pad_token(model))
            logits = model(input_ids=input_ids, attention_mask=mask).logits
            found[places] = torch.log_softmax(logits.double(), dim=-1).numpy()
    return found


@torch.inference_mode()
def features(
    model: PreTrainedModel, rows: Sequence[Tokens], batch_size: int, *, what: str
) -> NDArray[np.float32]:
    """[N, H] one vector for each text (`pooled`), without a prefix."""
    found = np.empty((len(rows), int(model.config.get_text_config().hidden_size)), dtype=np.float32)
    for places in _batches([len(row) for row in rows], batch_size, what):
        input_ids, mask = padded([rows[i] for i in places], pad_token(model))
        found[places] = pooled(model, input_ids, mask).float().numpy()
    return found


def pooled(model: PreTrainedModel, input_ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """[B, H] one vector for each row, padded on the right, from the frozen base's last layer.

    The mean of the real tokens where tokens see each other; the last token, which alone has seen all others,
    where the base is causal.
    """
    parts = anatomy(model)
    hidden: torch.Tensor = parts.base(input_ids=input_ids, attention_mask=mask).last_hidden_state  # [B, T, H]
    if parts.causal:
        return hidden[torch.arange(len(mask)), mask.sum(dim=1) - 1]
    return mean_of_tokens(hidden, mask)


@torch.inference_mode()
def target_losses(
    model: PreTrainedModel,
    prefix: Prefix | None,
    prompts: Sequence[Tokens],
    targets: Sequence[Sequence[Tokens]],
    batch_size: int,
    *,
    what: str,
) -> NDArray[np.float64]:
    """[N] −ln p of all of a row's targets (each up to its end token) given its prompt, summed, in nats.

    For an encoder-decoder the prompts are sources, and each is encoded once.
    """
    if model.config.is_encoder_decoder:
        return _answer_losses(model, prefix, prompts, targets, batch_size, what=what)
    pairs = [(row, target) for row, group in enumerate(targets) for target in group]
    lengths = [len(prompts[row]) + len(target) - 1 for row, target in pairs]
    vocabulary = int(model.config.get_text_config().vocab_size)
    sparing = "logits_to_keep" in inspect.signature(model.forward).parameters
    found = np.zeros(len(prompts))
    with _attached(model, prefix):
        for places in _batches(lengths, batch_size, what, most_tokens=max(1, _LOGITS // vocabulary)):
            part = [
                (row, np.asarray(prompts[row]), np.asarray(target))
                for row, target in (pairs[i] for i in places)
            ]
            # The last target token is predicted, never read.
            input_ids, mask = padded(
                [np.concatenate([prompt, target[:-1]]) for _, prompt, target in part], pad_token(model)
            )
            first = min(len(prompt) for _, prompt, _ in part) - 1  # no earlier position predicts a target
            keep = {"logits_to_keep": input_ids.shape[1] - first} if sparing else {}
            logits = model(input_ids=input_ids, attention_mask=mask, **keep).logits
            start = first if sparing else 0
            for line, (row, prompt, target) in zip(logits, part, strict=True):
                begin = len(prompt) - 1 - start
                wanted = torch.as_tensor(target.astype(np.int64))
                losses = torch.nn.functional.cross_entropy(
                    line[begin : begin + len(target)].float(), wanted, reduction="none"
                )
                found[row] += float(losses.double().sum())
    return found


def _answer_losses(
    model: Any,
    prefix: Prefix | None,
    sources: Sequence[Tokens],
    targets: Sequence[Sequence[Tokens]],
    batch_size: int,
    *,
    what: str,
) -> NDArray[np.float64]:
    """`target_losses` of an encoder-decoder."""
    start: int = model.config.decoder_start_token_id
    most_tokens = max(1, _LOGITS // int(model.config.get_text_config().vocab_size))
    found = np.zeros(len(sources))
    with _attached(model, prefix):
        for places in _batches([len(source) for source in sources], batch_size, what):
            input_ids, mask = padded([sources[i] for i in places], pad_token(model))
            states = model.get_encoder()(input_ids=input_ids, attention_mask=mask).last_hidden_state
            pairs = [(line, np.asarray(target)) for line, i in enumerate(places) for target in targets[i]]
            lengths = [len(target) for _, target in pairs]
            for part in length_batches(lengths, batch_size, most_tokens=most_tokens):
                lines, wanted = [pairs[k][0] for k in part], [pairs[k][1] for k in part]
                shifted, _ = padded([[start, *target[:-1]] for target in wanted], pad_token(model))
                logits = model(
                    encoder_outputs=BaseModelOutput(last_hidden_state=states[lines]),
                    attention_mask=mask[lines],
                    decoder_input_ids=shifted,
                ).logits
                for line, row, target in zip(lines, logits, wanted, strict=True):
                    losses = torch.nn.functional.cross_entropy(
                        row[: len(target)].float(), torch.as_tensor(target.astype(np.int64)), reduction="none"
                    )
                    found[places[line]] += float(losses.double().sum())
    return found


def generated(
    model: PreTrainedModel,
    prefix: Prefix | None,
    prompts: Sequence[Tokens],
    tokenizer: PreTrainedTokenizerFast,
    *,
    batch_size: int,
    max_new_tokens: int,
    beams: int,
    reserved: int,
    what: str | None,
) -> list[str]:
    """The model's continuation of each prompt (or answer to a source) up to its end token, by greedy or beam search.

    Args:
        reserved: positions of the window that are not for tokens; long prompts get shorter continuations.
        what: what progress is shown of; None shows none.

    Returns:
        The texts, stripped.
    """
    parts = anatomy(model)
    found = [""] * len(prompts)
    rooms = [fitting(parts, len(prompt), max_new_tokens, reserved) for prompt in prompts]
    for places in _batches([len(prompt) for prompt in prompts], batch_size, what, alike=rooms):
        # BART counts positions from the beginning of a row; only what goes on must not have padding at its end.
        input_ids, mask = padded(
            [prompts[i] for i in places], pad_token(model), left=not parts.encoder_decoder
        )
        sequences = generate(
            model,
            prefix,
            input_ids,
            mask,
            max_new_tokens=rooms[places[0]],
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=pad_token(model),
            beams=beams,
        )
        texts = tokenizer.batch_decode(sequences, skip_special_tokens=True)
        for place, text in zip(places, texts, strict=True):
            found[place] = text.strip()
    return found


def length_batches(
    lengths: Sequence[int],
    batch_size: int,
    *,
    most_tokens: int | None = None,
    alike: Sequence[int] | None = None,
) -> list[NDArray[np.int64]]:
    """Every position once, longest first, at most `batch_size` and `most_tokens` (padding included) at a time.

    Args:
        alike: only positions with an equal number here go together.
    """
    order = np.argsort(-np.asarray(lengths, dtype=np.int64), kind="stable")
    batches = []
    start = 0
    while start < len(order):
        size = batch_size
        if most_tokens is not None:
            size = max(1, min(size, most_tokens // lengths[order[start]]))
        if alike is not None:
            others = (k for k, i in enumerate(order[start : start + size]) if alike[i] != alike[order[start]])
            size = next(others, size)
        batches.append(order[start : start + size])
        start += size
    return batches


def _batches(
    lengths: Sequence[int],
    batch_size: int,
    what: str | None,
    *,
    most_tokens: int | None = None,
    alike: Sequence[int] | None = None,
    stream: TextIO | None = None,
) -> Iterator[NDArray[np.int64]]:
    """`length_batches` with progress on stderr: a bar in a terminal, elsewhere a line now and then."""
    batches = length_batches(lengths, batch_size, most_tokens=most_tokens, alike=alike)
    if what is None:
        yield from batches
        return
    stream = stream or sys.stderr
    if stream.isatty():
        yield from track(batches, what, console=Console(file=stream), transient=True)
        return
    said, done = time.monotonic(), 0
    for places in batches:
        yield places
        done += len(places)
        if time.monotonic() - said >= _EVERY:
            said = time.monotonic()
            stream.write(f"{what}: {done:,} of {len(lengths):,} rows\n")
            stream.flush()


def _attached(model: PreTrainedModel, prefix: Prefix | None) -> AbstractContextManager[Any]:
    return nullcontext() if prefix is None else attach(model, prefix)
