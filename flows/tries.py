"""What the flows try again: a task whose repetition is harmless, after a fault that can pass by itself."""

from __future__ import annotations

from typing import Any

from prefect.client.schemas.objects import State, TaskRun
from prefect.tasks import Task

from pipeline.errors import UnreachableError


def may_pass(task: Task[..., Any], run: TaskRun, state: State[Any]) -> bool:
    """Whether a failed task is worth another try: a server did not answer. Wrong data stays wrong."""
    error = state.result(raise_on_failure=False)
    return isinstance(error, (UnreachableError, ConnectionError, TimeoutError))


RETRIED: dict[str, Any] = {
    "retries": 3,
    "retry_delay_seconds": [2, 10, 30],
    "retry_condition_fn": may_pass,
    "persist_result": False,
}
"""A task's options."""
