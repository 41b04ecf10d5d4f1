"""Rows of token ids side by side: what fills the shorter ones up, and the mask that hides it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Tokens = Sequence[int] | np.ndarray[Any, np.dtype[np.int64]]


def pad_token(model: PreTrainedModel) -> int:
    """What fills rows; where there is no padding token any will do, since the mask hides it."""
    pad: Any = model.config.get_text_config().pad_token_id
    return pad if isinstance(pad, int) else 0


def padded(rows: Sequence[Tokens], pad: int, *, left: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and mask (1 for real tokens), each [B, N], padded on the right unless `left`."""
    width = max(len(row) for row in rows)
    input_ids = np.full((len(rows), width), pad, np.int64)
    mask = np.zeros((len(rows), width), np.int64)
    for i, row in enumerate(rows):
        span = slice(width - len(row), width) if left else slice(0, len(row))
        input_ids[i, span] = row
        mask[i, span] = 1
    return torch.from_numpy(input_ids), torch.from_numpy(mask)
