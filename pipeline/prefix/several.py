"""Several prefixes on one model: every row of a batch sees its own, or none.

A server answers requests for many prefixes in one batch, and a fleet of prefixes is trained on one copy of the base
(`pipeline.train.fleet`). Rows are as wide as the longest prefix among them; a shorter one has hidden columns in front,
as padding on the left would be, so it stays next to its tokens and they count from its own length.

    with attach_several(model, [billing, travel]) as attached:
        attached.assign([0, 1, None])                       # the third row is the base alone
        logits = model(input_ids=input_ids, attention_mask=attention_mask).logits

Sequence classifiers: each prefix has a head of its own, perhaps for another number of labels; see `class_logits`.
Text: see `generate_several`.

Shape legend: B rows, N tokens, K prefixes, H key/value heads, P positions of the longest prefix, D numbers per head,
C labels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import wraps
from itertools import accumulate
from typing import Any

import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache, PreTrainedModel

from pipeline.errors import PrefixError
from pipeline.prefix.architecture import anatomy, check_window, outside_backbone
from pipeline.prefix.attention import Attachment, Layers
from pipeline.prefix.generation import caches, check_prompts, continued, generate, longest, search
from pipeline.prefix.tuning import Prefix

Rows = Sequence[int | None]
"""Which prefix each row of a batch sees: its place in the list of prefixes, or None for the base alone."""

Head = Mapping[str, torch.Tensor]
"""A classification head: its tensors by their name in the model, as `pipeline.prefix.adapter.load_adapter` has it."""


class SeveralAttachment(Attachment):
    """Prefixes on a model, until `detach` (or the end of a `with` block); `assign` says which row sees which."""

    def __init__(self, model: PreTrainedModel, prefixes: Sequence[Prefix]) -> None:
        if not prefixes:
            raise PrefixError("several prefixes: got none; expected at least one")
        self.prefixes = tuple(prefixes)
        self.rows: tuple[int | None, ...] = ()
        self._replaying = False
        self._enter(model, self.prefixes)

    def __enter__(self) -> SeveralAttachment:
        return self

    def assign(self, rows: Rows) -> None:
        """The next passes have a row for each of `rows`, which sees that prefix.

        With gradient checkpointing, assign anew after the backward pass: it computes layers again, as assigned then.

        Raises:
            PrefixError: there is no such prefix.
        """
        check_rows(rows, len(self.prefixes), len(rows))
        used = sorted({row for row in rows if row is not None})
        lengths = [0 if row is None else self.prefixes[row].length for row in rows]
        device = self.model.device
        self.rows = tuple(rows)
        self._used = [self.prefixes[row] for row in used]
        # Rows without a prefix are given an empty one behind those that are used.
        self._which = [len(used) if row is None else used.index(row) for row in rows]
        self._row_lengths = torch.tensor(lengths, device=device)[:, None]
        width = max(lengths, default=0)
        self._columns.length = width
        self._columns.visible = torch.arange(width, device=device) >= width - self._row_lengths

    @contextmanager
    def replaying(self, outputs: Any) -> Iterator[None]:
        """Inside the block the model's layers are not run: they answer `outputs` to whatever they are called with.

        So each head reads its own rows of one pass; it may be a part of that pass's outputs (see `part_of`).
        """
        base = self._anatomy.base

        @wraps(base.forward)  # whoever looks at its parameters sees the layers' own
        def replay(*_: Any, **__: Any) -> Any:
            return outputs

        forward = base.__dict__
        before = forward.get("forward")
        forward["forward"] = replay
        self._replaying = True
        try:
            yield
        finally:
            self._replaying = False
            del forward["forward"]
            if before is not None:
                forward["forward"] = before

    def run(self, **inputs: Any) -> Any:
        """The outputs of the model's layers for a batch, without a head."""
        return self._anatomy.base(**inputs)

    def given(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The prefixes of the rows for `layer`: keys [B, P, H, Dk] and values [B, P, H, Dv]."""
        keys, values = super().given(layer)  # [K, P, H, D]
        return keys.index_select(0, self._places), values.index_select(0, self._places)

    def _before_forward(self, *given: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if self._replaying:
            args, kwargs = given[-2:]
            return args, kwargs
        return super()._before_forward(*given)

    def _of_this_pass(self) -> Layers:
        weight = next(self.model.parameters())
        numbers = [prefix.key_values() for prefix in self._used]  # [P, S], or [its rows, P, S]
        numbers.append(weight.new_zeros(0, self._shape.size))
        blocks = [one if one.dim() == 3 else one[None] for one in numbers]
        starts = [0, *accumulate(map(len, blocks))]
        places, taken = [], [0] * len(blocks)
        for which in self._which:
            places.append(starts[which] + taken[which])
            taken[which] += numbers[which].dim() == 3  # the next of its rows sees the next of its numbers
        self._places = torch.tensor(places, device=weight.device)
        padded = [
            nn.functional.pad(block, (0, 0, self._columns.length - block.shape[1], 0)).to(weight)
            for block in blocks
        ]
        return self._shape.per_layer(torch.cat(padded))

    def _lengths(self) -> torch.Tensor:
        return self._row_lengths

    def _check_room(self, like: torch.Tensor, past: int, kwargs: dict[str, Any]) -> None:
        if len(like) != len(self.rows):
            raise PrefixError(
                f"got a batch of {len(like)} rows; expected {len(self.rows)}, as many as prefixes were assigned to; "
                "call assign() with a prefix, or None, for each row"
            )
        spans = self._spans(like, past, kwargs)
        self._check_rows_fit(spans * (len(like) // len(spans)))

    def _check_rows_fit(self, tokens: Sequence[int]) -> None:
        """Raise PrefixError where a row's own prefix and so many tokens do not fit the window."""
        for row, (length, count) in enumerate(zip(self._row_lengths[:, 0].tolist(), tokens, strict=True)):
            try:
                check_window(self._anatomy, length, count)
            except PrefixError as error:
                raise PrefixError(f"row {row}: {error}") from None


def attach_several(
    model: PreTrainedModel, prefixes: Sequence[Prefix], rows: Rows | None = None
) -> SeveralAttachment:
    """Let every row of `model`'s batches see its own of `prefixes`, as `pipeline.prefix.attention.attach` does with one.

    Args:
        model: the base, without an attachment.
        prefixes: any number, of any lengths; one may be used by many rows, or by none.
        rows: what to `assign` first; it may be assigned anew before every pass.

    Raises:
        PrefixError: the model's architecture cannot carry a prefix, a prefix has another shape, there is none, or one
            is already attached. During a pass: another number of rows than assigned, or a row whose own prefix and
            tokens are longer than the window; before anything is computed.
    """
    if rows is not None:
        check_rows(rows, len(prefixes), len(rows))
    attached = SeveralAttachment(model, prefixes)
    if rows is not None:
        attached.assign(rows)
    return attached


def class_logits(
    attached: SeveralAttachment,
    heads: Sequence[Head],
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
) -> list[torch.Tensor]:
    """The logits of every row from the head of its own prefix, with one pass through the layers for all.

    Args:
        attached: on a sequence classifier, with a prefix assigned to every row.
        heads: one for each of `attached.prefixes`. The model's own head is not used, and its number of labels is free.
        input_ids: [B, N].
        attention_mask: 1 for real tokens, [B, N].

    Returns:
        B tensors, each [C of its prefix].

    Raises:
        PrefixError: a head is not one of the model's, there are not as many as prefixes, or a row has no prefix.
    """
    model = attached.model
    if len(heads) != len(attached.prefixes):
        raise PrefixError(
            f"got {len(heads)} heads for {len(attached.prefixes)} prefixes; expected one for each"
        )
    for number, head in enumerate(heads):
        check_head(model, head, f"the head of prefix {number}")
    if None in attached.rows:
        raise PrefixError(
            f"row {attached.rows.index(None)}: has no prefix, so no head; expected a prefix for every row"
        )
    outputs = attached.run(input_ids=input_ids, attention_mask=attention_mask)
    logits: dict[int, torch.Tensor] = {}
    for used in sorted({row for row in attached.rows if row is not None}):
        places = [i for i, row in enumerate(attached.rows) if row == used]
        part = torch.tensor(places, device=input_ids.device)
        with attached.replaying(part_of(outputs, part)), worn(model, heads[used]):
            answer = model(input_ids=input_ids[part], attention_mask=attention_mask[part]).logits
        logits |= dict(zip(places, answer.unbind(0), strict=True))
    return [logits[row] for row in range(len(attached.rows))]


@torch.no_grad()
def generate_several(
    model: PreTrainedModel,
    prefixes: Sequence[Prefix],
    rows: Rows,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    *,
    max_new_tokens: int,
    eos_token_id: int | Sequence[int],
    pad_token_id: int,
    beams: int = 1,
) -> torch.Tensor:
    """The most likely continuation of every row behind its own prefix (see `pipeline.prefix.generation.generate`).

    Args:
        prefixes: of any lengths.
        rows: which prefix each prompt has; None for the base alone.
        input_ids: prompts, padded on the left, [B, N].
        attention_mask: 1 for real tokens, [B, N].

    Returns:
        The new tokens only, [B, up to max_new_tokens].

    Raises:
        PrefixError: what `attach_several` and `generate` refuse; a row's own prefix, tokens and max_new_tokens longer
            than the window. Before anything is computed.
    """
    found = anatomy(model)
    check_prompts(model, found, input_ids, attention_mask)
    check_rows(rows, len(prefixes), len(input_ids))
    if found.encoder_decoder or (found.column_distances and not bool(attention_mask.all())):
        # An encoder's rows are not laid out as a beam search's are, and padding would count as distance.
        texts: dict[int, torch.Tensor] = {}
        for used in set(rows):
            places = [i for i, row in enumerate(rows) if row == used]
            prefix = None if used is None else prefixes[used]
            written = generate(
                model, prefix, input_ids[places], attention_mask[places], max_new_tokens=max_new_tokens,
                eos_token_id=eos_token_id, pad_token_id=pad_token_id, beams=beams,
            )  # fmt: skip
            texts |= dict(zip(places, written.unbind(0), strict=True))
        return pad_sequence(
            [texts[row] for row in range(len(rows))], batch_first=True, padding_value=pad_token_id
        )
    settings = search(max_new_tokens, beams, eos_token_id=eos_token_id, pad_token_id=pad_token_id)
    tokens = [longest(found, count, max_new_tokens) for count in attention_mask.sum(1).tolist()]
    with attach_several(model, prefixes, rows) as attached:
        attached._check_rows_fit(tokens)
        attached.assign([row for row in rows for _ in range(beams)])  # the search lays its beams out so
        length = attached._columns.length
        if not caches(found, length + input_ids.shape[1] + max_new_tokens):
            return continued(model, settings, input_ids, attention_mask)
        if not length:
            attached.detach()
            return continued(model, settings, input_ids, attention_mask)
        cache = DynamicCache()
        for layer, parts in enumerate(attached._of_this_pass()):
            key, value = (part[attached._places].transpose(1, 2) for part in parts)
            cache.update(key, value, layer)
        visible = torch.arange(length, device=input_ids.device) >= length - attached._row_lengths[::beams]
        front = visible.to(attention_mask.dtype)
    return continued(
        model,
        settings,
        torch.cat(
            [torch.full_like(front, pad_token_id), input_ids], dim=1
        ),  # stands for what the cache holds
        torch.cat([front, attention_mask], dim=1),
        past_key_values=cache,
    )


def check_rows(rows: Rows, prefixes: int, batch: int) -> None:
    """Raise PrefixError where `rows` are not `batch`, or one is none of so many prefixes."""
    if len(rows) != batch:
        raise PrefixError(f"got prefixes for {len(rows)} rows; expected them for the {batch} of the batch")
    for row, number in enumerate(rows):
        if number is not None and not 0 <= number < prefixes:
            raise PrefixError(
                f"row {row}: got prefix number {number}; expected 0 to {prefixes - 1}, or None for the base alone"
            )


def check_head(model: PreTrainedModel, head: Head, what: str) -> None:
    """Raise PrefixError where `head` is not one of `model`'s, apart from its number of labels.

    What lies within the model's backbone (a pooler that PEFT saved with the head) is computed for all rows at once, so
    it cannot be of one prefix.
    """
    own = {name: parameter.shape for name, parameter in outside_backbone(model).items()}
    names = ", ".join(sorted(own)) or "none: the model is not a classifier"
    if own.keys() != head.keys() or not own:
        raise PrefixError(f"{what}: got the tensors {', '.join(sorted(head)) or 'none'}; expected {names}")
    labels = model.config.num_labels
    counts = set()
    for name, shape in own.items():
        got = head[name].shape
        free = shape[0] == labels and len(got) == len(shape)
        if free:
            counts.add(got[0])
        if got != shape and not (free and got[1:] == shape[1:]):
            expected = ["labels", *shape[1:]] if free else list(shape)
            raise PrefixError(f"{what}: {name}: got shape {list(got)}; expected {expected}")
    if len(counts) > 1:
        raise PrefixError(
            f"{what}: got tensors for {' and for '.join(map(str, sorted(counts)))} labels; expected one"
        )


def part_of(outputs: Any, rows: torch.Tensor | slice, width: int | None = None) -> Any:
    """Of the outputs of a model's layers those of `rows`, and of their states [B, N, hidden] the first `width`."""
    return type(outputs)(
        **{
            name: tensor[rows] if tensor.dim() < 3 else tensor[rows][:, :width]
            for name, tensor in outputs.items()
            if isinstance(tensor, torch.Tensor)
        }
    )


@contextmanager
def worn(model: PreTrainedModel, head: Head) -> Iterator[None]:
    """Inside the block `head`'s tensors, which gradients reach, are in the places of the model's own.

    They take the model's dtype and device.
    """
    places = {name: _place(model, name) for name in head}
    before = {name: model.get_parameter(name) for name in head}
    try:
        for name, (module, key) in places.items():
            module._parameters[key] = head[name].to(before[name])  # type: ignore[assignment]
        yield
    finally:
        for name, (module, key) in places.items():
            module._parameters[key] = before[name]


def _place(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    module, _, key = name.rpartition(".")
    return model.get_submodule(module), key
