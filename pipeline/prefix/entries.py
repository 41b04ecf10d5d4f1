"""The way into a model: hooks, slots or a cache, whichever its architecture has a place for."""

from __future__ import annotations

from typing import Any, Protocol

import torch._dynamo.config
from transformers import PreTrainedModel

from pipeline.errors import PrefixError
from pipeline.prefix.architecture import Anatomy
from pipeline.prefix.cache_entry import CacheEntry
from pipeline.prefix.interface import InterfaceEntry
from pipeline.prefix.projection_entry import ProjectionEntry
from pipeline.prefix.source import Columns, Source

# A model that was compiled before a prefix is attached, or detached, has to notice it: dynamo overlooks hooks by default.
torch._dynamo.config.skip_nnmodule_hook_guards = False

_ENTERED = "_prefixline_entered"


class Entry(Protocol):
    """What stands between a model's layers and a source."""

    def begin(self, kwargs: dict[str, Any]) -> None:
        """A pass of a stack begins; its arguments `kwargs` may be changed."""

    def undo(self) -> None:
        """Leave the model as it was."""


def enter(model: PreTrainedModel, found: Anatomy, source: Source, columns: Columns) -> Entry:
    """Let the attention layers of `model` ask `source` for a prefix of so many `columns`, until `leave`.

    Raises:
        PrefixError: they already ask another, or cannot be wrapped.
    """
    check_free(model, found)
    entry: Entry
    if found.place == "interface":
        entry = InterfaceEntry(model, found, source, columns)
    elif found.place == "cache":
        entry = CacheEntry(found, source, columns)
    else:
        entry = ProjectionEntry(found, source, columns)
    for stack in found.stacks:
        stack.__dict__[_ENTERED] = True
    return entry


def check_free(model: PreTrainedModel, found: Anatomy) -> None:
    """Raise PrefixError where the layers of `model` already ask a source."""
    if any(_ENTERED in stack.__dict__ for stack in found.stacks):
        raise PrefixError(f"{type(model).__name__} already has a prefix attached; detach it first")


def leave(found: Anatomy, entry: Entry) -> None:
    """Leave the model as it was."""
    entry.undo()
    for stack in found.stacks:
        del stack.__dict__[_ENTERED]
