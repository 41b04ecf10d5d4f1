"""promote, rollback, archive and history as a person runs them, and their exit codes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from pipeline.cli import main
from pipeline.environment import quiet_environment
from pipeline.register.registry import Registry
from pipeline.versioning.workspace import init_workspace
from tests import mlflow_world
from tests.ledger import world

PREFIXLINE = Path(sys.executable).with_name("prefixline")
PARAMS = """\
base_models:
  tiny: {source: {path: base}, digest: %s}
prefixes:
  reviews: {base_model: tiny, task: classification, data: {path: data/reviews.jsonl}}
"""


class World:
    def __init__(self, folder: Path) -> None:
        self.root = init_workspace(folder / "w").root
        (self.root / "params.yaml").write_text(PARAMS % ("a" * 64))
        self.registry: Registry = mlflow_world.database(self.root)
        for key in "12":
            world.register(self.registry, folder, key)

    def run(self, *arguments: str, expect: int = 0, actor: str = "alice@localhost") -> Result:
        done = CliRunner().invoke(main, ["-w", str(self.root), *arguments], env={"PREFIXLINE_ACTOR": actor})
        assert done.exit_code == expect, f"{done.exception!r}\n{done.output}"
        return done

    def json(self, *arguments: str) -> dict[str, object]:
        found: dict[str, object] = json.loads(self.run(*arguments, "--json").stdout)
        return found


@pytest.fixture
def reviews(tmp_path: Path) -> World:
    return World(tmp_path)


def test_a_version_is_promoted_rolled_back_and_put_away_and_the_history_says_by_whom(reviews: World):
    said = reviews.run("promote", "reviews", "1", "--to", "staging", "--reason", "first").stdout
    assert "reviews: version 1 was promoted to staging (epoch 3)" in said
    assert "stages   candidate: 2, staging: 1, production: none, archived: none" in said
    reviews.run("promote", "reviews", "1", "--to", "production", "--reason", "passed [red]the trial[/]")
    reviews.run("promote", "reviews", "2", "--to", "staging", "--reason", "newer data")
    moved = reviews.json(
        "promote", "reviews", "2", "--to", "production", "--reason", "better", "--expect", "1"
    )
    assert (moved["event"], moved["expected"], moved["stages"]) == (
        "promoted", "1", {"production": "2", "archived": "1"},
    )  # fmt: skip
    back = reviews.run(
        "rollback",
        "reviews",
        "--reason",
        "worse\nfor short texts \x1b[31m",
        "--expect",
        "2",
        actor="bob@localhost",
    ).stdout
    assert "version 1 came back to production, instead of version 2" in back
    reviews.run("archive", "reviews", "2", "--reason", "no", expect=1)
    told = reviews.json("history", "reviews")
    assert [(row["event"], row["version"], row["actor"]) for row in told["events"]] == [  # type: ignore[attr-defined]
        ("registered", "1", mlflow_world.ACTOR),
        ("registered", "2", mlflow_world.ACTOR),
        ("promoted", "1", "alice@localhost"),
        ("promoted", "1", "alice@localhost"),
        ("promoted", "2", "alice@localhost"),
        ("promoted", "2", "alice@localhost"),
        ("rolled back", "1", "bob@localhost"),
    ]
    assert told["stages"] == {"candidate": None, "staging": None, "production": "1", "archived": "2"}
    assert told["out_of_step"] == []
    shown = reviews.run("history", "reviews").stdout
    assert "passed [red]the trial[/]" in shown
    assert "for short texts" in shown
    assert "\x1b" not in shown
    assert "stages   candidate: none, staging: none, production: 1, archived: 2" in shown
    before = reviews.json("history", "reviews", "--at", "2000-01-01")
    assert (before["events"], before["out_of_step"]) == ([], None)
    later = reviews.run("history", "reviews", "--at", "2999-01-01T00:00:00+00:00").stdout
    assert "stages at 2999-01-01" in later
    assert "expected ISO 8601" in reviews.run("history", "reviews", "--at", "yesterday", expect=2).stderr
    (status,) = reviews.json("status")["prefixes"]  # type: ignore[misc]
    assert {v["version"]: v["stages"] for v in status["versions"]} == {"1": ["production"], "2": ["archived"]}


def test_an_alias_moved_by_hand_is_named_by_status_and_history_and_put_right_on_request(reviews: World):
    reviews.registry.client.set_registered_model_alias("reviews", "production", "2")
    sentence = "production: the alias says 2, the ledger says none"
    for command in (["history", "reviews"], ["status"]):
        shown = reviews.run(*command).stdout
        assert f"reviews is out of step: {sentence}" in shown
        assert "`prefixline history reviews --repair` puts every alias where the ledger says" in shown
    assert reviews.run("history", "reviews", "--repair").stderr == f"put right: {sentence}\n"
    assert world.aliases(reviews.registry) == {"candidate": "2"}
    reviews.registry.client.set_registered_model_alias("reviews", "candidate", "1")
    moved = reviews.run("promote", "reviews", "1", "--to", "staging", "--reason", "so")
    assert moved.stderr == "put right first: candidate: the alias says 1, the ledger says 2\n"


@pytest.mark.parametrize("given", ["foo", "0", "01", "-1", "None", ""])
@pytest.mark.parametrize("command", [["promote", "reviews", "1", "--to", "staging"], ["rollback", "reviews"]])
def test_an_expectation_that_is_no_version_is_a_usage_error(reviews: World, command: list[str], given: str):
    done = reviews.run(*command, "--reason", "so", "--expect", given, expect=2)
    assert f"got {given!r}; expected a version's number, as 3, or none" in done.stderr


def test_a_history_up_to_a_time_before_the_first_event_says_that_there_is_none(reviews: World):
    shown = reviews.run("history", "reviews", "--at", "2001-02-03T00:00:00+00:00").stdout
    assert shown == "nothing has happened to reviews up to 2001-02-03T00:00:00+00:00\n"


def test_a_rollback_reads_as_one_in_the_history(reviews: World):
    for number in "12":
        reviews.run("promote", "reviews", number, "--to", "staging", "--reason", "so")
        reviews.run("promote", "reviews", number, "--to", "production", "--reason", "so")
    reviews.run("rollback", "reviews", "--reason", "worse")
    assert "brought back to production" in " ".join(reviews.run("history", "reviews").stdout.split())


def test_whoever_is_second_gets_exit_code_4_and_is_told_what_stands_there(reviews: World):
    reviews.run("promote", "reviews", "1", "--to", "staging", "--reason", "first")
    command = ["promote", "reviews", "2", "--to", "staging", "--reason", "me too", "--expect", "none"]
    done = subprocess.run(
        [str(PREFIXLINE), *command],
        cwd=reviews.root,
        env={**os.environ, **quiet_environment()},
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert done.returncode == 4, done.stderr
    assert done.stderr.startswith(
        "error: reviews: expected nothing in staging. Now there is version 1 in staging, by alice@localhost at epoch 3"
    )
    assert done.stdout == ""
    assert world.aliases(reviews.registry) == {"candidate": "2", "staging": "1"}


def test_a_prefix_that_is_not_in_params_yaml_is_refused(reviews: World):
    for command in (
        ["history", "nobody"],
        ["history", "nobody", "--repair"],
        ["rollback", "nobody", "--reason", "x"],
    ):
        assert "nobody" in reviews.run(*command, expect=1).stderr
    put_away = reviews.run("archive", "nobody", "1", "--reason", "x", expect=1)
    assert "nobody: the ledger knows no version '1'; it knows none" in put_away.stderr


def test_a_prefix_that_left_params_yaml_has_its_history_and_its_versions_can_be_put_away(reviews: World):
    params = reviews.root / "params.yaml"
    params.write_text(params.read_text().replace("  reviews:", "  others:"))
    reviews.run("promote", "reviews", "2", "--to", "staging", "--reason", "x", expect=1)
    reviews.run("archive", "reviews", "2", "--reason", "it saw a row that was to be erased")
    assert world.aliases(reviews.registry) == {"archived": "2"}
    reviews.registry.client.set_registered_model_alias("reviews", "production", "1")
    told = reviews.run("history", "reviews", "--repair")
    assert told.stderr == "put right: production: the alias says 1, the ledger says none\n"
    assert "it saw a row that was to be erased" in told.stdout
    assert world.aliases(reviews.registry) == {"archived": "2"}


RULES = """\
keys: {alice: %s, bob: %s}
defaults: {promotion: {staging: {signed_by: [alice], approvals: 1, approvers: [bob]}}}
"""


def test_a_promotion_waits_with_exit_code_6_for_an_approval_and_the_history_names_who_signed(
    reviews: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    keys = {}
    for name in ("alice", "bob"):
        said = reviews.run("keys", "new", "--out", str(tmp_path / f"{name}.pem")).stdout
        assert said.startswith(f"{tmp_path / name}.pem is a new key. In params.yaml:\nkeys: {{YOUR_NAME: ")
        keys[name] = str(reviews.json("keys", "show", "--key", str(tmp_path / f"{name}.pem"))["public"])
        assert keys[name] in said
    params = reviews.root / "params.yaml"
    params.write_text(params.read_text() + RULES % (keys["alice"], keys["bob"]))
    promote = ("promote", "reviews", "1", "--to", "staging", "--reason", "so", "--key")
    assert "none of theirs" in reviews.run(*promote, str(tmp_path / "bob.pem"), expect=3).stderr
    asked = json.loads(reviews.run(*promote, str(tmp_path / "alice.pem"), "--json", expect=6).stdout)
    assert (asked["event"], asked["missing"], asked["approvers"]) == ("requested", 1, ["bob"])
    shown = reviews.run(*promote, str(tmp_path / "alice.pem"), expect=6).stdout
    assert f"request  {asked['id']}" in shown
    assert "missing  1 of 1 approvals, by bob: prefixline approve reviews --request" in shown
    listed = reviews.run("history", "reviews").stdout
    assert (
        f"open     {asked['id']}: version 1 for staging, asked for by alice@localhost, 0 approved" in listed
    )
    monkeypatch.setenv("PREFIXLINE_KEY", str(tmp_path / "alice.pem"))
    approve = ("approve", "reviews", "--reason", "yes")
    assert "nobody approves a request of his own" in reviews.run(*approve, expect=3, actor="someone").stderr
    assert "keys.alice of params.yaml" in reviews.run("keys", "show").stderr
    said = reviews.run(*approve, "--key", str(tmp_path / "bob.pem"), actor="bob@localhost").stdout
    assert (
        f"version 1 was approved for staging (epoch 4)\nactor    bob@localhost\nrequest  {asked['id']}"
        in said
    )
    assert reviews.json(*promote[:-1])["request"] == asked["id"]
    told = reviews.json("history", "reviews")
    assert [(row["event"], row["signed_by"]) for row in told["events"]][2:] == [  # type: ignore[attr-defined]
        ("requested", "alice"), ("approved", "bob"), ("promoted", "alice"),
    ]  # fmt: skip
    assert told["requests"] == []
    assert "signed by bob" in reviews.run("history", "reviews").stdout
    monkeypatch.delenv("PREFIXLINE_KEY")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "none"))
    assert "there is no key to sign with" in reviews.run(*approve, expect=3).stderr
    outside = CliRunner().invoke(
        main, ["-w", str(tmp_path), "keys", "show", "--key", str(tmp_path / "bob.pem")]
    )
    assert (outside.stdout, "there is no workspace here" in outside.stderr) == (f"{keys['bob']}\n", True)
