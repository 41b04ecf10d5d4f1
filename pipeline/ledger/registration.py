"""Entering a registered version into the ledger: exactly once, however many processes do it at once."""

from __future__ import annotations

from pipeline.errors import IntegrityError
from pipeline.ledger import log
from pipeline.ledger.events import Registered
from pipeline.ledger.fold import following
from pipeline.ledger.log import Reading
from pipeline.ledger.projection import project
from pipeline.tracking.connection import Registry


def enter(
    registry: Registry,
    name: str,
    version: str,
    *,
    lineage_digest: str,
    verdict_digest: str,
    actor: str,
    reason: str,
) -> Reading:
    """Enter the version, unless it is, and put the alias `candidate` where it belongs.

    Where another event comes first, the next epoch is tried: a registration expects nothing of the stages.

    Returns:
        The ledger afterwards.

    Raises:
        IntegrityError: a version of this number is entered with another lineage record, or the ledger is not what
            was written.
        RegistryError, UnreachableError: MLflow refused, or does not answer.
    """

    def entering(reading: Reading) -> Registered | None:
        entered = reading.state.registered.get(version)
        if entered is not None:
            check_entered(entered, lineage_digest, verdict_digest)
            return None
        return following(
            reading.state,
            Registered,
            prefix=name,
            version=version,
            stage="candidate",
            actor=actor,
            reason=reason,
            lineage_digest=lineage_digest,
            verdict_digest=verdict_digest,
        )

    log.append(registry, log.read(registry, name), entering)
    reading, _ = project(registry, name, stages=("candidate",))
    return reading


def differences(entered: Registered, lineage_digest: str, verdict_digest: str) -> list[tuple[str, str, str]]:
    """(what, as it was entered, as it is now) of what a version has other than when it was entered."""
    pairs = {
        "lineage record": (entered.lineage_digest, lineage_digest),
        "verdict": (entered.verdict_digest, verdict_digest),
    }
    return [(what, was, is_now) for what, (was, is_now) in pairs.items() if was != is_now]


def check_entered(entered: Registered, lineage_digest: str, verdict_digest: str) -> None:
    """Refuse a version that is another than the one that was entered under its number.

    Raises:
        IntegrityError: its lineage record or its verdict is another.
    """
    faults = differences(entered, lineage_digest, verdict_digest)
    if faults:
        raise IntegrityError(
            [f"{what}: SHA-256 is {is_now}, expected {was}" for what, was, is_now in faults],
            heading=f"{entered.prefix} version {entered.version} is not the one that the ledger entered at epoch "
            f"{entered.epoch}; do not use it. Where the model was deleted in MLflow and made anew, give the prefix "
            "another name:",
        )
