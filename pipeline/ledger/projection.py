"""The aliases as a projection of the ledger: what any MLflow user reads as `models:/NAME@production`.

MLflow's aliases are last-writer-wins. So whoever writes one reads the ledger again afterwards, and goes on until what
was read first (the aliases) agrees with what was read second (the ledger): the last to write leaves them right,
however many write at once. Anyone may do it again at any time.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from pipeline.ledger import log
from pipeline.ledger.events import STAGES, Stage, Tainted
from pipeline.ledger.log import Reading
from pipeline.tracking.connection import Registry


@dataclass(frozen=True)
class OutOfStep:
    """A stage whose alias is not where the ledger says: moved by hand, or its writer was stopped on the way.

    Attributes:
        ledger: the version that stands there.
        alias: the version that MLflow's alias is on.
    """

    stage: Stage
    ledger: str | None
    alias: str | None

    def __str__(self) -> str:
        return f"{self.stage}: the alias says {self.alias or 'none'}, the ledger says {self.ledger or 'none'}"


def out_of_step(reading: Reading, stages: Iterable[Stage] = STAGES) -> tuple[OutOfStep, ...]:
    """The stages of which alias and ledger disagree."""
    pairs = [(stage, reading.state.stages.get(stage), reading.aliases.get(stage)) for stage in stages]
    return tuple(OutOfStep(stage, held, alias) for stage, held, alias in pairs if held != alias)


def project(
    registry: Registry, name: str, *, stages: Iterable[Stage] | None = None, seen: Reading | None = None
) -> tuple[Reading, tuple[OutOfStep, ...]]:
    """Put the aliases where the ledger says.

    Args:
        stages: which; None for those that the ledger has ever moved. What was set by hand in another stage, before
            anything was promoted to it, is then left: somebody's service may read it.
        seen: the ledger as it was a moment ago, for who has it: what to write follows from it, and then it is read anew.

    Returns:
        The ledger as it agrees with the aliases, and what was out of step and is not any more. An alias on a version that
        has been deleted in MLflow cannot be set, and stays out of step.

    Raises:
        IntegrityError, RegistryError, UnreachableError: as `log.read`.
    """
    from mlflow.exceptions import MlflowException

    client = registry.client
    before: dict[Stage, OutOfStep] = {}
    deleted: set[OutOfStep] = set()
    marked = False
    run_id = None if seen is None else seen.run_id
    with registry.errors(f"setting the aliases of {name}"):
        while True:
            reading = log.read(registry, name, run_id) if seen is None else seen
            run_id = reading.run_id
            state = reading.state
            chosen = state.moved if stages is None else stages
            wrong = [each for each in out_of_step(reading, chosen) if each not in deleted]
            after_mark = reading.events[0 if reading.anchor is None else reading.anchor.epoch :]
            if marked:  # others' refusals and approvals may go on coming, and are not run after
                after_mark = tuple(each for each in after_mark if each.moves or isinstance(each, Tainted))
            if seen is None and not wrong and not after_mark:
                return reading, tuple(each for each in before.values() if each not in deleted)
            for each in wrong:
                before.setdefault(each.stage, each)
                if each.ledger is None:
                    registry.put(client.delete_registered_model_alias, name, each.stage)
                    continue
                try:
                    registry.put(client.set_registered_model_alias, name, each.stage, each.ledger)
                except MlflowException as error:
                    if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                        raise
                    deleted.add(each)
            if after_mark:
                log.mark(registry, reading)
                marked = True
            seen = None
