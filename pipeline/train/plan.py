"""Which step of a training does what: when it validates, and how much of the learning rate it takes."""

from __future__ import annotations

import math
from dataclasses import dataclass

from pipeline.params import TrainingParams


@dataclass(frozen=True)
class Plan:
    """Which step does what.

    Attributes:
        epoch_steps: optimiser steps in an epoch.
        total: optimiser steps in all.
    """

    params: TrainingParams
    epoch_steps: int
    total: int

    @classmethod
    def of(cls, params: TrainingParams, examples: int) -> Plan:
        """The plan for so many training examples."""
        steps = math.ceil(examples / params.batch_size)
        total = steps * params.epochs
        return cls(params, steps, min(total, params.max_steps or total))

    def validates_after(self, step: int) -> bool:
        """Whether step number `step` (from 1) is followed by a validation: evenly in each epoch, and at the end."""
        within = (step - 1) % self.epoch_steps + 1
        times = self.params.validations_per_epoch
        due = {math.ceil(self.epoch_steps * k / times) for k in range(1, times + 1)}
        return within in due or step == self.total

    def rate(self, step: int) -> float:
        """The share of the learning rate that step number `step` (from 1) takes.

        Rises in equal parts over the warm-up to 1, then stays, or falls to reach 0 one step after the last.
        """
        warm = round(self.params.warmup * self.total)
        if step <= warm:
            return step / warm
        left = (self.total + 1 - step) / (self.total + 1 - warm)
        if self.params.schedule == "constant":
            return 1.0
        return left if self.params.schedule == "linear" else (1 - math.cos(math.pi * left)) / 2
