"""Sends a retraining's run events where the user told the standard's client to: OPENLINEAGE_URL, or openlineage.yml.

How they get there is the client's matter (https://openlineage.io/docs/client/python): by HTTP, Kafka, into a file. A
retraining never fails by it and never waits long for it: what goes wrong is a warning.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from pipeline.ledger import log
from pipeline.ledger.events import now
from pipeline.register import versions
from pipeline.register.lineage import LineageRecord
from pipeline.register.registry import Registry
from pipeline.register.versions import RegisteredVersion
from pipeline.tracking.connection import without_password

if TYPE_CHECKING:
    from openlineage.client.event_v2 import RunEvent

LONGEST_WAIT = 10.0
"""Seconds for one event."""

Warn = Callable[[str], None]


def send_started(known: Mapping[str, Any], warn: Warn) -> None:
    """Say that a retraining has started; see `run_events` for what is `known`."""
    time = now()

    def make() -> RunEvent:
        from pipeline.openlineage import run_events

        return run_events.started(known, time)

    _send("START", known["prefix"], make, warn)


def send_registered(registry: Registry, version: RegisteredVersion, warn: Warn) -> None:
    """Say that one has ended with `version`, when the ledger says that it was registered."""

    def make() -> RunEvent:
        from pipeline.openlineage import run_events

        record = versions.lineage_record(registry, version)
        entered = log.read(registry, version.name).state.registered[version.version]
        return run_events.registered(record, version.version, entered.time)

    _send("COMPLETE", version.name, make, warn)


def send_rejected(record: LineageRecord, warn: Warn) -> None:
    """Say that one has ended, and that the gate rejected what was trained."""
    time = now()

    def make() -> RunEvent:
        from pipeline.openlineage import run_events

        return run_events.rejected(record, time)

    _send("COMPLETE", record.prefix, make, warn)


def send_broken_off(known: Mapping[str, Any], error: BaseException, warn: Warn) -> None:
    """Say that one has ended by an error, or that somebody ended it."""
    time = now()

    def make() -> RunEvent:
        from pipeline.openlineage import run_events

        return run_events.broken_off(known, error, time)

    _send("of its end", known["prefix"], make, warn)


def _send(what: str, prefix: str, make: Callable[[], RunEvent], warn: Warn) -> None:
    failed: list[Exception] = []

    def sending() -> None:
        try:
            _deliver(make)
        except Exception as error:  # noqa: BLE001  # each transport, and each one's configuration, has errors of its own
            failed.append(error)

    thread = threading.Thread(target=sending, name="openlineage", daemon=True)
    thread.start()
    thread.join(LONGEST_WAIT)
    if thread.is_alive():
        why = f"no answer within {LONGEST_WAIT:g} seconds"
    elif failed:
        why = without_password(" ".join(f"{type(failed[0]).__name__}: {failed[0]}".split()))
    else:
        return
    warn(
        f"warning: {prefix}: the OpenLineage event {what} was not sent ({why}); the retraining goes on without it\n"
    )


def _deliver(make: Callable[[], RunEvent]) -> None:
    # Here, for they take half a second to import.
    from openlineage.client import OpenLineageClient
    from openlineage.client.transport.noop import NoopConfig, NoopTransport

    # First without a transport, for where none is configured the client would print the events.
    configured = OpenLineageClient(transport=NoopTransport(NoopConfig())).config.transport
    if not (configured and configured.get("type")) and not os.environ.get("OPENLINEAGE_URL"):
        return
    client = OpenLineageClient()
    client.emit(make())
    client.close(LONGEST_WAIT)
