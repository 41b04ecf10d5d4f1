"""A flow with the retraining's name and parameters that only notes when it ran: for tests of schedules."""

from __future__ import annotations

import time
from pathlib import Path

from prefect import flow


@flow(name="retrain")
def retrain(workspace: str, prefix: str) -> None:
    begun = time.time()
    time.sleep(4)
    with (Path(workspace) / "runs").open("a") as log:
        print(prefix, begun, time.time(), file=log)
