"""The methods that are compared: what they are called, what they are for, and which of them are asked for."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipeline.errors import CompareError
from pipeline.params import TASK_METRICS, Task

INSTALL = 'pip install "peft>=0.21.2,<0.22"'
"""The command that installs what the extra `compare` names, also where prefixline's own folder is not at hand."""


@dataclass(frozen=True)
class Method:
    """One way to adapt a frozen base.

    Attributes:
        title: its name for people.
        source: the paper.
        tasks: what it can be trained for.
        rates: the learning rates tried unless others are asked for; none where nothing is stepped.
        peft: whether PEFT implements it here.
    """

    title: str
    source: str
    tasks: tuple[Task, ...]
    rates: tuple[float, ...]
    peft: bool = False


_BOTH: tuple[Task, ...] = ("classification", "generation")
METHODS: Mapping[str, Method] = {
    "prefix": Method("Prefix", "Li & Liang 2021", _BOTH, (0.01, 0.03, 0.1)),
    "prompt": Method("Prompt tuning", "Lester et al. 2021", _BOTH, (0.01, 0.03, 0.1), peft=True),
    "ptuning": Method("P-tuning", "Liu et al. 2021", _BOTH, (0.001, 0.003, 0.01), peft=True),
    "lora": Method("LoRA", "Hu et al. 2021", _BOTH, (0.001, 0.003, 0.01), peft=True),
    "probe": Method("Linear probe", "Alain & Bengio 2016", ("classification",), ()),
}
"""Every method, in the order in which they are shown."""


def headline(task: Task) -> str:
    """The metric that methods are shown and compared by first: accuracy, or the loss per target token."""
    return TASK_METRICS[task][0]


def chosen(names: Sequence[str] | None, task: Task) -> tuple[str, ...]:
    """The methods to compare, in the order they are shown; for None all that the task has.

    Raises:
        CompareError: an unknown name, one that is not for the task, none but the prefix, or no prefix; or PEFT is
            needed and not installed.
    """
    fit = [name for name, method in METHODS.items() if task in method.tasks]
    if names is None:
        names = fit
    for name in names:
        if name not in fit:
            why = f"is not for {task}" if name in METHODS else "is no method"
            raise CompareError(f"methods: {name!r} {why}; expected some of {', '.join(fit)}")
    if "prefix" not in names or len(set(names)) < 2:
        raise CompareError(
            f"methods: got {', '.join(names) or 'none'}; expected prefix, which the others are compared with, and at "
            "least one other"
        )
    needing = [name for name in fit if name in names and METHODS[name].peft]
    if needing and importlib.util.find_spec("peft") is None:
        raise CompareError(
            f"{', '.join(needing)}: trained with PEFT, which is not installed. Install it with\n  {INSTALL}\n"
            "or leave these methods out with --methods"
        )
    return tuple(name for name in fit if name in names)
