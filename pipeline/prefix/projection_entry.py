"""A prefix in DeBERTa-v2, whose attention computes keys, values and the bias of distances in one piece.

Its attention is run over P more rows in front. Their keys and values are the prefix's, put in the place of what the
projections make of the empty rows; distances are then those behind P tokens. What the P rows would themselves see is
computed in vain and dropped.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from pipeline.prefix.architecture import Anatomy
from pipeline.prefix.source import Columns, Source, widen


class ProjectionEntry:
    """The entry into one model: hooks on every attention module and its projections."""

    def __init__(self, found: Anatomy, source: Source, columns: Columns) -> None:
        self._layers = [
            _Layer(module, number, source, columns) for number, module in enumerate(found.attention)
        ]

    def begin(self, kwargs: dict[str, Any]) -> None:
        """A pass begins; its arguments stay."""

    def undo(self) -> None:
        """Leave the model as it was."""
        for layer in self._layers:
            layer.undo()


class _Layer:
    def __init__(self, module: Any, number: int, source: Source, columns: Columns) -> None:
        self._number, self._source, self._columns = number, source, columns
        self._heads = module.num_attention_heads
        self._key: torch.Tensor | None = None
        self._handles = [
            module.register_forward_pre_hook(self._before, with_kwargs=True),
            module.key_proj.register_forward_hook(self._keys),
            module.value_proj.register_forward_hook(self._values),
            module.register_forward_hook(self._after),
        ]

    def undo(self) -> None:
        for handle in self._handles:
            handle.remove()

    def _before(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        self._key = None
        prefix = self._source.given(self._number)
        if prefix is None:
            return args, kwargs
        length = self._columns.length
        hidden, mask, *rest = args
        kwargs = {**kwargs, "relative_pos": None}  # the module makes it for as many rows as it is given
        if kwargs.get("query_states") is not None:
            kwargs["query_states"] = nn.functional.pad(kwargs["query_states"], (0, 0, length, 0))
        hidden = nn.functional.pad(hidden, (0, 0, length, 0))
        # What the rows of the prefix see does not matter, as long as it is something.
        mask = nn.functional.pad(widen(mask.bool(), self._columns), (0, 0, length, 0), value=True)
        return (hidden, mask, *rest), kwargs

    def _keys(self, module: nn.Module, args: Any, output: torch.Tensor) -> torch.Tensor:
        """Distances are projected with it too, where config.share_att_key says so: after the keys."""
        if self._key is not None:
            return output
        self._key = output
        return self._with_prefix(output, 0)

    def _values(self, module: nn.Module, args: Any, output: torch.Tensor) -> torch.Tensor:
        assert self._key is not None
        prefix = self._source.given(self._number)
        length = 0 if prefix is None else self._columns.length
        key, value = (
            torch.unflatten(part[:, length:], -1, (self._heads, -1)).transpose(1, 2)
            for part in (self._key, output)
        )
        self._source.seen(self._number, key, value)
        return self._with_prefix(output, 1)

    def _with_prefix(self, output: torch.Tensor, which: int) -> torch.Tensor:
        prefix = self._source.given(self._number)
        if prefix is None:
            return output
        rows = prefix[which].flatten(-2).expand(len(output), -1, -1)
        return torch.cat([rows, output[:, rows.shape[1] :]], dim=1)

    def _after(self, module: nn.Module, args: Any, output: tuple[Any, ...]) -> tuple[Any, ...]:
        self._key = None
        prefix = self._source.given(self._number)
        if prefix is None:
            return output
        context, weights = output
        length = self._columns.length
        return context[:, length:], None if weights is None else weights[:, :, length:]
