"""Scheduled retraining: one Prefect deployment per prefix that has a `schedule`, served from the workspace.

A deployment runs once at a time, and a run that comes meanwhile is queued rather than cancelled: it may be
about data that the running one has not seen, and if nothing changed it ends in seconds as "unchanged", so
queues drain by themselves. Cancelling it would leave changed data to the next date.
"""

from __future__ import annotations

import asyncio
import datetime
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from prefect import Flow, serve
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterTags
from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyLimitStrategy
from prefect.client.schemas.schedules import CronSchedule
from prefect.deployments.runner import RunnerDeployment
from prefect.exceptions import PrefectHTTPStatusError
from prefect.schedules import Cron
from prefect.server.schemas.schedules import CronSchedule as ServerCronSchedule
from prefect.types.entrypoint import EntrypointType
from pydantic import ValidationError

from pipeline import server_access
from pipeline.digest import digest
from pipeline.errors import ParamsError, UnreachableError
from pipeline.params import Params, ScheduleParams
from pipeline.params_file import load_params

_PATIENCE_SECONDS = 30.0
"""How long the server may be away before `serve_schedules` gives up."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class Scheduled:
    """One prefix's schedule.

    Attributes:
        prefix: its name, also the deployment's.
        cron: five fields.
        timezone: an IANA name.
        next_run: when it fires next.
    """

    prefix: str
    cron: str
    timezone: str
    next_run: datetime.datetime


def serve_schedules(
    workspace: Path, *, say: Say, flow: Flow[[str, str], Any] | None = None, at_once: int = 1
) -> None:
    """Deploy every scheduled prefix of `workspace` and run what falls due, until Ctrl-C or SIGTERM.

    On the way out the schedules are paused, so that no runs pile up while nothing serves them. This process's
    environment must be that of the workspace (`server_access.enter`) since before Prefect was imported.

    Args:
        workspace: the folder with params.yaml.
        say: receives one line at a time.
        flow: called with `workspace` and `prefix`, importable by its module's name; the retraining by default.
        at_once: runs of different prefixes at the same time; one by default, as a training uses every core.

    Raises:
        ParamsError: no prefix has a schedule, or one has a cron expression or time zone that is none.
        UnreachableError: the workspace's Prefect server does not run or does not answer. If it goes away later and
            stays away, the process ends with exit code 1 and says so.
    """
    workspace = workspace.resolve()
    schedules = read_schedules(load_params(workspace / "params.yaml"))
    api_url = server_access.prefect_api(workspace)
    if api_url is None:
        raise UnreachableError(
            f"no Prefect server is up for {workspace}, and schedules need one; start it in another terminal: "
            "prefixline up"
        )
    if flow is None:
        from flows.retrain import retrain

        flow = retrain
    deployments = [_deployment(flow, workspace, schedule) for schedule in schedules]
    try:
        with get_client(sync_client=True) as client:
            for name in _remove_others(client, workspace, [schedule.prefix for schedule in schedules]):
                say(f"{name}: no longer scheduled, its deployment is removed")
    except (httpx.HTTPError, PrefectHTTPStatusError) as error:
        raise UnreachableError(f"the Prefect server at {api_url} failed: {error}") from error
    for line in table(schedules):
        say(line)
    say(f"Serving from {workspace} until Ctrl-C; runs are shown at {api_url.removesuffix('/api')}")
    lost = UnreachableError(
        f"the Prefect server at {api_url} does not answer any more, so nothing falls due; "
        "start it again with `prefixline up`, then this command. Retrainings that were running go on by themselves"
    )
    over = threading.Event()
    watch = (f"{api_url}/ready", lost, over)
    threading.Thread(target=_end_without_server, args=watch, daemon=True).start()
    try:
        serve(*deployments, limit=at_once, print_starting_message=False)
    except Exception as error:
        # Prefect's own loops may give up before we do, with errors of many kinds.
        if server_access.answers(f"{api_url}/ready"):
            raise
        raise lost from error
    finally:
        over.set()


def _end_without_server(health: str, lost: UnreachableError, over: threading.Event) -> None:
    """Watch the server until `over`; end this process where it is gone for good.

    At once, because Prefect's own way out first asks the server, for minutes, to pause the schedules.
    """
    answered = time.monotonic()
    while not over.wait(1):
        if server_access.answers(health):
            answered = time.monotonic()
        elif time.monotonic() - answered > _PATIENCE_SECONDS:
            sys.stderr.write(f"error: {lost}\n")
            sys.stderr.flush()
            os._exit(1)


def read_schedules(params: Params) -> tuple[Scheduled, ...]:
    """Every prefix with a schedule, in the order of params.yaml.

    Raises:
        ParamsError: there is none, or a cron expression or time zone is invalid; all of them at once.
    """
    wanted = {name: entry.schedule for name, entry in params.prefixes.items() if entry.schedule is not None}
    if not wanted:
        raise ParamsError(
            ["prefixes: none has a schedule; expected at least one, such as schedule: {cron: '0 3 * * 1'}"]
        )
    problems = [problem for name, schedule in wanted.items() for problem in _problems(name, schedule)]
    if problems:
        raise ParamsError(problems, heading="params.yaml is not valid:")
    return tuple(
        Scheduled(name, schedule.cron, schedule.timezone, _next_run(schedule))
        for name, schedule in wanted.items()
    )


def workspace_tag(workspace: Path) -> str:
    """The tag by which this workspace knows its own deployments."""
    return f"prefixline-{digest(str(workspace.resolve()))[:16]}"


def table(schedules: Sequence[Scheduled]) -> list[str]:
    """Lines of aligned columns: prefix, cron, time zone, next run."""
    rows = [("prefix", "cron", "timezone", "next run")]
    rows += [(s.prefix, s.cron, s.timezone, f"{s.next_run:%Y-%m-%d %H:%M %Z}") for s in schedules]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]


def _problems(prefix: str, schedule: ScheduleParams) -> list[str]:
    try:
        CronSchedule(cron=schedule.cron, timezone=schedule.timezone)
    except ValidationError as error:
        return [
            f"prefixes.{prefix}.schedule.{fault['loc'][0]}: {fault['msg']}; got {fault['input']!r}"
            for fault in error.errors()
        ]
    return []


def _next_run(schedule: ScheduleParams) -> datetime.datetime:
    """By the server's own reckoning, in the schedule's time zone."""
    cron = ServerCronSchedule(cron=schedule.cron, timezone=schedule.timezone)
    [date] = asyncio.run(cron.get_dates(n=1))
    return date


def _deployment(flow: Flow[[str, str], Any], workspace: Path, schedule: Scheduled) -> RunnerDeployment:
    deployment = flow.to_deployment(
        name=schedule.prefix,
        schedule=Cron(schedule.cron, timezone=schedule.timezone),
        parameters={"workspace": str(workspace), "prefix": schedule.prefix},
        tags=["prefixline", workspace_tag(workspace)],
        description=f"Retrains the prefix {schedule.prefix} of {workspace}.",
        concurrency_limit=ConcurrencyLimitConfig(
            limit=1, collision_strategy=ConcurrencyLimitStrategy.ENQUEUE
        ),
        # By module, so that a run loads the installed flow from wherever this process was started.
        entrypoint_type=EntrypointType.MODULE_PATH,
    )
    assert isinstance(deployment, RunnerDeployment)  # a coroutine only inside an event loop
    return deployment


def _remove_others(client: SyncPrefectClient, workspace: Path, names: Sequence[str]) -> list[str]:
    """Delete this workspace's deployments that are not among `names`; their past runs stay on record."""
    ours = client.read_deployments(
        deployment_filter=DeploymentFilter(tags=DeploymentFilterTags(all_=[workspace_tag(workspace)]))
    )
    others = [deployment for deployment in ours if deployment.name not in names]
    for deployment in others:
        client.delete_deployment(deployment.id)
    return sorted(deployment.name for deployment in others)
