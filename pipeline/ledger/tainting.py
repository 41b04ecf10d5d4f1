"""Recording that a version saw a row that was to be erased: once for each erasure, however many do it at once."""

from __future__ import annotations

from pipeline.errors import RegistryError
from pipeline.ledger import log
from pipeline.ledger.events import Tainted
from pipeline.ledger.fold import following
from pipeline.ledger.log import Reading
from pipeline.ledger.projection import project
from pipeline.tracking.connection import Registry


def taint(registry: Registry, name: str, version: str, *, row: str, actor: str, reason: str) -> bool:
    """Record it, unless it is recorded. Nothing moves; where another event comes first, the next epoch is tried.

    Args:
        row: SHA-256 of what was to be erased.

    Returns:
        Whether it was recorded just now.

    Raises:
        RegistryError: the ledger does not know the version; or MLflow refused.
        IntegrityError: the ledger is not what was written.
        UnreachableError: MLflow does not answer.
    """

    def tainting(reading: Reading) -> Tainted | None:
        state = reading.state
        if any(event.row == row for event in state.tainted.get(version, ())):
            return None
        if (entered := state.registered.get(version)) is None:
            raise RegistryError(f"{name}: the ledger knows no version {version}")
        return following(
            state,
            Tainted,
            prefix=name,
            version=version,
            stage=None,
            actor=actor,
            reason=reason,
            lineage_digest=entered.lineage_digest,
            verdict_digest=entered.verdict_digest,
            row=row,
        )

    if log.append(registry, log.read(registry, name), tainting) is None:
        return False
    project(registry, name, stages=())  # which marks the end of the ledger
    return True
