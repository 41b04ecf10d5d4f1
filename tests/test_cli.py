"""The command line: help everywhere, exit codes, and errors that say what to do."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from pipeline.cli import main
from pipeline.cli.common import print_json
from pipeline.environment import quiet_environment

PREFIXLINE = Path(sys.executable).with_name("prefixline")


def prefixline(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(PREFIXLINE), *arguments],
        cwd=cwd,
        env={**os.environ, **quiet_environment()},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def commands(command: click.Command, path: str = "prefixline") -> Iterator[tuple[str, click.Command]]:
    yield path, command
    if isinstance(command, click.Group):
        for name, inner in command.commands.items():
            yield from commands(inner, f"{path} {name}")


def test_every_command_has_help():
    found = dict(commands(main))
    assert [path for path, command in found.items() if not command.help] == []
    assert set(found) == {
        f"prefixline{name}"
        for name in (
            "",
            " init",
            " up",
            " deploy",
            " retrain",
            " status",
            " lineage",
            " promote",
            " approve",
            " keys",
            " keys new",
            " keys show",
            " rollback",
            " archive",
            " history",
            " impact",
            " verify",
            " export",
            " reproduce",
            " erase",
            " audit",
            " data",
            " compare",
            " params",
        )
    }


def test_every_option_has_help():
    options = [
        (path, option)
        for path, command in commands(main)
        for option in command.params
        if isinstance(option, click.Option)
    ]
    assert len(options) >= 8
    assert [f"{path} {option.name}" for path, option in options if not option.help] == []


def test_every_reporting_command_can_print_json():
    reporting = set(
        "init retrain status lineage promote approve rollback archive history impact verify export reproduce erase "
        "audit data compare".split()
    )
    have = {
        name
        for name, command in main.commands.items()
        if any(option.name == "json_output" for option in command.params)
    }
    assert have == reporting


def test_json_holds_nothing_that_steers_a_terminal_and_reads_back_as_it_was(
    capsys: pytest.CaptureFixture[str],
):
    value = {"reason": 'one\ntwo \x1b[2J \x7f \x9b31m \u202e \U000e0041 \U0001f600 é \\ "'}
    print_json(value)
    printed = capsys.readouterr().out
    assert all(char.isprintable() or char == "\n" for char in printed)
    assert "\U0001f600 é" in printed
    assert json.loads(printed) == value


def test_help_loads_no_heavy_library(tmp_path: Path):
    heavy = "{'torch', 'transformers', 'mlflow', 'prefect', 'datasets', 'dvc'}"
    code = f"import sys; import pipeline.cli; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(("number", "is_disk"), [(errno.ENOSPC, True), (errno.EINVAL, False)])
def test_a_full_disk_is_an_error_message_and_what_is_not_the_users_to_mend_a_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, is_disk: bool
):
    from pipeline.versioning import workspace

    def fail(folder: Path) -> None:
        raise OSError(number, os.strerror(number), str(folder))

    monkeypatch.setattr(workspace, "init_workspace", fail)
    done = CliRunner().invoke(main, ["init", str(tmp_path / "w")])
    if is_disk:
        assert done.exit_code == 1
        assert f"error: {tmp_path / 'w'}: No space left on device. Mend this and run" in done.stderr
    else:
        assert isinstance(done.exception, OSError)


def test_an_unknown_command_is_a_usage_error(tmp_path: Path):
    done = prefixline("retrian", cwd=tmp_path)
    assert (done.returncode, "No such command 'retrian'" in done.stderr) == (2, True)


def test_outside_a_workspace_every_command_says_how_to_make_one(tmp_path: Path):
    for command in (
        ["status"],
        ["retrain", "a"],
        ["lineage", "a"],
        ["promote", "a", "1", "--to", "staging", "--reason", "x"],
        ["history", "a"],
        ["data", "a"],
        ["impact", "--row", "a"],
        ["export", "a"],
        ["audit", "a"],
        ["compare", "a"],
        ["deploy"],
        ["up"],
    ):
        done = prefixline(*command, cwd=tmp_path)
        assert done.returncode == 1, command
        assert "prefixline init" in done.stderr, command
        assert "Traceback" not in done.stderr, command


def test_init_makes_a_workspace_that_status_can_read(tmp_path: Path):
    made = prefixline("init", "new", "--json", cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    assert json.loads(made.stdout) == {"workspace": str(tmp_path / "new")}
    done = prefixline("-w", "new", "status", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    state = json.loads(done.stdout)
    assert state["servers"] is None
    assert all(prefix["versions"] == [] for prefix in state["prefixes"])


def test_an_error_is_one_message_without_a_traceback(tmp_path: Path):
    prefixline("init", "new", cwd=tmp_path)
    (tmp_path / "new" / "params.yaml").write_text("prefixes: {a: {tusk: classification}}\n")
    done = prefixline("-w", "new", "status", cwd=tmp_path)
    assert done.returncode == 1
    assert "prefixes.a.tusk: unknown key" in done.stderr
    assert "Traceback" not in done.stderr
