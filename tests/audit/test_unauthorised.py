"""A version that stands in a stage by an event that the rules do not allow is named as that."""

from __future__ import annotations

from pathlib import Path

from pipeline.audit.faults import Fault, Kind, Link
from pipeline.audit.hashing import Hashes
from pipeline.audit.registered import RegisteredName
from pipeline.ledger import log
from pipeline.ledger.events import Promoted
from pipeline.ledger.rules import Rules
from tests import mlflow_world
from tests.ledger import world


def test_a_promotion_that_was_signed_by_no_key_of_the_rules_is_unauthorised(tmp_path: Path):
    registry = mlflow_world.database(tmp_path)
    world.register(registry, tmp_path)
    key, other = world.key(1), world.key(2)
    events = list(log.read(registry, world.NAME).events)
    log.claim(registry, world.follow(events, Promoted, "1", sign=key))

    def faults(signer: str) -> list[Fault]:
        rules = {"staging": Rules(signers={signer: "approver"}), "production": Rules()}
        read = RegisteredName(registry, world.NAME, rules)  # type: ignore[arg-type]
        with Hashes() as hashes:
            found = read.check(read.versions[0], hashes)
        return [fault for fault in found.faults if fault.kind is Kind.UNAUTHORISED]

    assert faults(key.public) == []
    assert faults(other.public) == [
        Fault(
            Link.LEDGER,
            Kind.UNAUTHORISED,
            "epoch 2: version 1 was promoted to staging",
            "a signature of approver",
            f"signed with the key {key.public}",
        )
    ]
