"""Scheduled deployments, against a real Prefect server and its scheduler."""

from __future__ import annotations

import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline import server_access
from pipeline.digest import digest
from pipeline.errors import ParamsError, UnreachableError
from pipeline.params_file import parse_params
from tests.test_servers import start_up, wait_until_up

ROOT = Path(__file__).resolve().parent.parent

DEPLOY = """
import sys
from pathlib import Path
from pipeline import server_access
workspace = Path(sys.argv[1])
server_access.enter(workspace)
from flows.deploy import serve_schedules
from tests.scheduled_flow import retrain
serve_schedules(workspace, say=lambda line: print(line, flush=True), flow=retrain, at_once=3)
"""

EVERY_MINUTE = {"cron": "* * * * *"}
IN_MARCH = {"cron": "30 4 2 3 *", "timezone": "Europe/Berlin"}


def raw_params(**schedules: dict[str, str] | None) -> dict[str, Any]:
    return {
        "base_models": {"tiny": {"source": {"path": "tiny"}, "digest": "0" * 64}},
        "defaults": {"base_model": "tiny", "task": "classification"},
        "prefixes": {
            name: {
                "data": {"path": "data/rows.jsonl"},
                **({} if schedule is None else {"schedule": schedule}),
            }
            for name, schedule in schedules.items()
        },
    }


def write_params(workspace: Path, **schedules: dict[str, str] | None) -> Path:
    workspace.mkdir(exist_ok=True)
    (workspace / "params.yaml").write_text(json.dumps(raw_params(**schedules)))
    return workspace


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One with both servers up."""
    folder = write_params(tmp_path_factory.mktemp("deploy"), a=EVERY_MINUTE, b=IN_MARCH, c=None)
    process = start_up(folder)
    wait_until_up(process)
    yield folder
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)


def start_deploy(workspace: Path, log: Path) -> tuple[subprocess.Popen[bytes], list[str]]:
    """The process, and the lines it printed until it served."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        "PREFECT_RUNNER_POLL_FREQUENCY": "1",
    }
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-c", DEPLOY, str(workspace)],
            env=environment,
            cwd=workspace,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    deadline = time.monotonic() + 90
    while "Serving from" not in log.read_text():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.2)
    return process, log.read_text().splitlines()


ASK = """
import json, sys
from pathlib import Path
from pipeline import server_access
server_access.enter(Path(sys.argv[1]))
from prefect.client.orchestration import get_client
with get_client(sync_client=True) as client:
    exec(sys.argv[2])
    print(json.dumps(answer))
"""


def ask(workspace: Path, code: str) -> Any:
    """What `code` leaves in `answer`, given a Prefect `client` in a process of its own."""
    result = subprocess.run(
        [sys.executable, "-c", ASK, str(workspace), code], capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


DEPLOYMENTS = "answer = {d.name: d.paused for d in client.read_deployments()}"
TRIGGER = """
deployment = client.read_deployment_by_name('retrain/a')
answer = [str(client.create_flow_run_from_deployment(deployment.id).id) for _ in range(2)]
"""
ANOTHER = """
flow = client.create_flow_from_name('retrain')
answer = str(client.create_deployment(flow_id=flow, name='theirs', tags=['prefixline', 'prefixline-other']))
"""
COMPLETED = """
answer = [run.auto_scheduled for run in client.read_flow_runs() if run.state.type.value == 'COMPLETED']
"""


@pytest.mark.timeout(700)
def test_scheduled_runs_fire_never_two_of_one_prefix_at_once_and_lost_schedules_are_removed(
    workspace: Path, tmp_path: Path
) -> None:
    process, lines = start_deploy(workspace, tmp_path / "first")
    assert re.fullmatch(r"prefix +cron +timezone +next run", lines[0])
    assert re.fullmatch(r"a +\* \* \* \* \* +UTC +\d{4}-\d\d-\d\d \d\d:\d\d UTC", lines[1])
    assert re.fullmatch(r"b +30 4 2 3 \* +Europe/Berlin +\d{4}-03-02 04:30 CET", lines[2])
    assert lines[3].startswith(f"Serving from {workspace} until Ctrl-C")

    triggered = ask(workspace, TRIGGER)
    assert len(triggered) == 2
    deadline = time.monotonic() + 240
    while True:
        completed = ask(workspace, COMPLETED)
        if completed.count(False) == 2 and completed.count(True) >= 1:
            break
        assert process.poll() is None, (tmp_path / "first").read_text()
        assert time.monotonic() < deadline, (completed, (tmp_path / "first").read_text())
        time.sleep(1)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 0

    rows = [line.split() for line in (workspace / "runs").read_text().splitlines()]
    assert {prefix for prefix, _, _ in rows} == {"a"}
    spans = sorted((float(begun), float(ended)) for _, begun, ended in rows)
    assert len(spans) >= 3
    assert all(earlier[1] <= later[0] for earlier, later in itertools.pairwise(spans))

    assert ask(workspace, DEPLOYMENTS) == {"a": True, "b": True}  # paused while nobody serves them
    ask(workspace, ANOTHER)
    write_params(workspace, a=EVERY_MINUTE, b=None)
    process, lines = start_deploy(workspace, tmp_path / "second")
    assert lines[0] == "b: no longer scheduled, its deployment is removed"
    deadline = time.monotonic() + 30
    while ask(workspace, DEPLOYMENTS) != {"a": False, "theirs": False}:
        assert time.monotonic() < deadline, ask(workspace, DEPLOYMENTS)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0


def test_deploy_ends_with_an_error_when_the_server_has_gone_for_good(tmp_path: Path) -> None:
    folder = write_params(tmp_path / "lost", b=IN_MARCH)
    up = start_up(folder)
    wait_until_up(up)
    process, _ = start_deploy(folder, tmp_path / "log")
    up.send_signal(signal.SIGTERM)
    up.communicate(timeout=60)
    assert process.wait(90) == 1
    said = (tmp_path / "log").read_text()
    assert re.search(
        r"(?:^error|UnreachableError): the Prefect server at \S+ does not answer any more.*prefixline up",
        said,
        re.MULTILINE,
    )


SERVING = """
import sys, threading, time
from pathlib import Path
from pipeline import server_access
workspace = Path(sys.argv[1])
server_access.enter(workspace)
import flows.deploy as deploy
from tests.scheduled_flow import retrain
def serve(*_, **__):
    {serve}
deploy.serve, deploy._PATIENCE_SECONDS = serve, 2
try:
    deploy.serve_schedules(workspace, say=lambda line: None, flow=retrain)
finally:
    time.sleep(4)  # longer than a watch that goes on would wait
    print(threading.active_count(), flush=True)
"""
GONE = "server_access.answers = lambda url: False"


@pytest.mark.parametrize(
    ("serve", "said", "left"),
    [
        ("raise ValueError('of the runner')", r"ValueError: of the runner\n\Z", True),
        (
            f"{GONE}; raise RuntimeError('threshold')",
            r"UnreachableError: the Prefect server at \S+ does not answer",
            True,
        ),
        (f"{GONE}; time.sleep(60)", r"\Aerror: the Prefect server at \S+ does not answer any more", False),
    ],
)
def test_what_ends_serving_is_named_and_only_a_server_that_is_gone_is_called_gone(
    workspace: Path, serve: str, said: str, left: bool
) -> None:
    """`serve` stands in for Prefect's, whose errors come when they come."""
    done = subprocess.run(
        [sys.executable, "-c", SERVING.format(serve=serve), str(workspace)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 1
    assert re.search(said, done.stderr), done.stderr
    assert ("does not answer" in done.stderr) is (GONE in serve)
    assert bool(done.stdout) is left  # the watch ended the process itself, or was over with the serving


def test_without_a_prefect_server_deploy_says_how_to_start_one(tmp_path: Path) -> None:
    from flows.deploy import serve_schedules

    write_params(tmp_path, a=EVERY_MINUTE)
    with pytest.raises(UnreachableError, match=r"no Prefect server is up for .*: prefixline up"):
        serve_schedules(tmp_path, say=lambda _: None)


def test_a_server_that_runs_but_does_not_answer_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flows.deploy import serve_schedules
    from tests.test_servers import ProcessId, a_record

    write_params(tmp_path, a=EVERY_MINUTE)
    a_record(ProcessId.of(os.getpid())).write(tmp_path / ".prefixline")
    assert server_access.running(tmp_path) is not None
    with pytest.raises(UnreachableError, match=r"http://p/api does not answer; see .*prefect\.log"):
        serve_schedules(tmp_path, say=lambda _: None)


def test_a_workspace_without_schedules_has_nothing_to_deploy(tmp_path: Path) -> None:
    from flows.deploy import serve_schedules

    write_params(tmp_path, a=None)
    with pytest.raises(ParamsError, match="prefixes: none has a schedule"):
        serve_schedules(tmp_path, say=lambda _: None)


def test_invalid_schedules_are_reported_all_at_once_with_their_key_paths() -> None:
    from flows.deploy import read_schedules

    params = parse_params(
        raw_params(
            good=IN_MARCH,
            minutes={"cron": "61 * * * *"},
            place={"cron": "0 3 * * 1", "timezone": "Europe/Atlantis"},
            both={"cron": "a b c d e", "timezone": "Nowhere"},
        )
    )
    with pytest.raises(ParamsError) as caught:
        read_schedules(params)
    keys = [problem.split(":")[0] for problem in caught.value.problems]
    assert keys == [
        "prefixes.minutes.schedule.cron",
        "prefixes.place.schedule.timezone",
        "prefixes.both.schedule.cron",
        "prefixes.both.schedule.timezone",
    ]
    assert all("got '" in problem for problem in caught.value.problems)


def test_the_next_run_is_in_the_schedules_own_time_zone() -> None:
    from flows.deploy import read_schedules

    [schedule] = read_schedules(parse_params(raw_params(b=IN_MARCH)))
    assert (schedule.next_run.month, schedule.next_run.day, schedule.next_run.hour) == (3, 2, 4)
    assert str(schedule.next_run.tzinfo) == "Europe/Berlin"


def test_every_workspace_has_a_tag_of_its_own(tmp_path: Path) -> None:
    from flows.deploy import workspace_tag

    assert workspace_tag(tmp_path) == f"prefixline-{digest(str(tmp_path))[:16]}"
    assert workspace_tag(tmp_path / "other") != workspace_tag(tmp_path)
