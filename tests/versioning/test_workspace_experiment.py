from __future__ import annotations

import json
import os
import shutil
import signal
import time
from pathlib import Path

import pytest

from pipeline.errors import ExperimentError, IntegrityError, WorkspaceError
from pipeline.versioning import experiment as module
from pipeline.versioning import git
from pipeline.versioning.experiment import Experiment, anchor, find_experiment, run_experiment
from pipeline.versioning.stored import check_outputs, fetch_file, fetch_outputs, push_outputs
from pipeline.versioning.workspace import Workspace, open_workspace, read_json_at
from tests import workspaces
from tests.workspaces import KEY, cached, pin, start, stored, tamper, wait_for

OTHER = "cd" * 32


def ignore(text: str) -> None:
    """Output that a test does not look at."""


def run(workspace: Workspace, key: str = KEY, **env: str) -> Experiment:
    return run_experiment(workspace, "alpha", key, env, ignore)


@pytest.fixture(scope="module")
def pinned(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """Data versioned and pins written for both prefixes; nothing run."""
    workspace = workspaces.make(tmp_path_factory.mktemp("workspaces") / "pinned")
    pin(workspace, "beta")
    pin(workspace, "alpha")
    return workspace


@pytest.fixture(scope="module")
def finished(
    pinned: Workspace, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Workspace, Experiment, str]:
    """One experiment run, and what was printed."""
    workspace = workspaces.duplicate(pinned, tmp_path_factory.mktemp("workspaces") / "finished")
    printed: list[str] = []
    done = run_experiment(workspace, "alpha", KEY, {"LABEL": "mine"}, printed.append)
    return workspace, done, "".join(printed)


@pytest.fixture
def workspace(pinned: Workspace, tmp_path: Path) -> Workspace:
    return workspaces.duplicate(pinned, tmp_path / "w")


@pytest.fixture
def ran(finished: tuple[Workspace, Experiment, str], tmp_path: Path) -> tuple[Workspace, Experiment]:
    return workspaces.duplicate(finished[0], tmp_path / "w"), finished[1]


def md5_of(workspace: Workspace, done: Experiment, path: str) -> str:
    from ruamel.yaml import YAML

    lock = YAML(typ="safe").load(git.run(workspace.root, "show", f"{done.commit}:dvc.lock"))
    found = [out["md5"] for stage in lock["stages"].values() for out in stage["outs"] if out["path"] == path]
    assert len(found) == 1
    return str(found[0])


def object_of(workspace: Workspace, done: Experiment, path: str, file: str) -> str:
    listing = json.loads(cached(workspace, md5_of(workspace, done, path)).read_text())
    return str(next(entry["md5"] for entry in listing if entry["relpath"] == file))


def test_the_stages_output_alone_arrives_and_their_environment_is_theirs(
    finished: tuple[Workspace, Experiment, str],
) -> None:
    lines = [line for line in finished[2].splitlines() if line]
    assert lines == [f"{stage} of alpha with mine" for stage in ("prepare", "train", "evaluate")]


def test_the_experiment_is_a_commit_on_the_baseline_and_one_dvc_knows(
    finished: tuple[Workspace, Experiment, str],
) -> None:
    workspace, done, _ = finished
    assert done.name == f"alpha-{KEY[:12]}"
    assert done.ran == ("prepare", "train", "evaluate")
    assert (
        git.resolve(workspace.root, f"{done.commit}^") == done.baseline == git.resolve(workspace.root, "HEAD")
    )
    assert (
        git.resolve(workspace.root, f"refs/exps/{done.baseline[:2]}/{done.baseline[2:]}/{done.name}")
        == done.commit
    )
    assert set(read_json_at(workspace, done.commit, "artifacts/alpha/trained.json")["manifest"]) == {
        "adapter/adapter_config.json",
        "curves.jsonl",
    }


def test_the_workspace_itself_is_untouched(finished: tuple[Workspace, Experiment, str]) -> None:
    workspace, _, _ = finished
    open_workspace(workspace.root)
    assert not (workspace.root / "artifacts").exists()
    assert [path.name for path in (workspace.state / "experiments").iterdir()] == ["alpha.lock"]
    assert git.run(workspace.root, "stash", "list") == ""


def test_a_finished_experiment_is_returned_and_not_run_again(ran: tuple[Workspace, Experiment]) -> None:
    workspace, done = ran
    again = run(workspace, FAIL_AT="prepare")
    assert (again.commit, again.baseline, again.name) == (done.commit, done.baseline, done.name)
    assert again.ran == ()


def test_nobody_elses_clean_up_loses_it(ran: tuple[Workspace, Experiment]) -> None:
    workspace, done = ran
    for line in git.run(workspace.root, "for-each-ref", "--format=%(refname)", "refs/exps").split():
        git.run(workspace.root, "update-ref", "-d", line)
    git.run(workspace.root, "reflog", "expire", "--expire=now", "--all")
    git.run(workspace.root, "gc", "-q", "--prune=now")
    found = find_experiment(workspace, "alpha", KEY)
    assert found is not None
    assert found.commit == done.commit
    assert find_experiment(workspace, "alpha", OTHER) is None
    assert read_json_at(workspace, done.commit, "artifacts/alpha/evaluated.json")


def test_outputs_are_fetched_and_replace_what_was_there(
    ran: tuple[Workspace, Experiment], tmp_path: Path
) -> None:
    workspace, done = ran
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "stale").write_text("")
    folder = fetch_outputs(workspace, done.commit, "alpha", "train", tmp_path / "out")
    assert sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()) == [
        "adapter/adapter_config.json",
        "curves.jsonl",
    ]
    one = fetch_file(
        workspace, done.commit, "alpha", "evaluate", "evaluation/base/probe.txt", tmp_path / "one" / "p"
    )
    assert one.read_text() == "0.5"
    with pytest.raises(WorkspaceError, match=r"stored no evaluation/missing.txt"):
        fetch_file(workspace, done.commit, "alpha", "evaluate", "evaluation/missing.txt", tmp_path / "x")


def test_pushed_outputs_come_back_without_the_cache(
    ran: tuple[Workspace, Experiment], tmp_path: Path
) -> None:
    workspace, done = ran
    push_outputs(workspace, done.commit, "alpha")
    shutil.rmtree(workspace.root / ".dvc" / "cache")
    for stage in ("prepare", "train", "evaluate"):
        fetch_outputs(workspace, done.commit, "alpha", stage, tmp_path / stage)
    assert (tmp_path / "evaluate/evaluation/base/probe.txt").read_text() == "0.5"


def test_tampered_cache_objects_are_refused_with_the_whole_difference(
    ran: tuple[Workspace, Experiment], tmp_path: Path
) -> None:
    workspace, done = ran
    config = object_of(workspace, done, "artifacts/alpha/adapter", "adapter_config.json")
    curves = md5_of(workspace, done, "artifacts/alpha/curves.jsonl")
    for md5 in (config, curves):
        tamper(cached(workspace, md5))
    with pytest.raises(IntegrityError) as caught:
        fetch_outputs(workspace, done.commit, "alpha", "train", tmp_path / "out")
    assert [line.split(":")[0] for line in caught.value.problems] == [
        "adapter/adapter_config.json",
        "curves.jsonl",
    ]
    assert str(cached(workspace, curves)) in str(caught.value)
    assert not (tmp_path / "out").exists()
    with pytest.raises(IntegrityError, match=r"curves.jsonl: SHA-256"):
        fetch_file(workspace, done.commit, "alpha", "train", "curves.jsonl", tmp_path / "c")
    assert not (tmp_path / "c").exists()
    with pytest.raises(IntegrityError, match=r"curves.jsonl: SHA-256"):
        check_outputs(workspace, done.commit, "alpha", "train")


def test_tampered_remote_objects_are_refused(ran: tuple[Workspace, Experiment], tmp_path: Path) -> None:
    workspace, done = ran
    push_outputs(workspace, done.commit, "alpha")
    shutil.rmtree(workspace.root / ".dvc" / "cache")
    tamper(stored(workspace, md5_of(workspace, done, "artifacts/alpha/curves.jsonl")))
    with pytest.raises(IntegrityError, match="remote holds objects"):
        fetch_outputs(workspace, done.commit, "alpha", "train", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_forged_record_or_lock_is_refused(ran: tuple[Workspace, Experiment], tmp_path: Path) -> None:
    workspace, done = ran
    git.run(workspace.root, "checkout", "-q", "--detach", done.commit)
    record = workspace.root / "artifacts/alpha/trained.json"
    record.write_text(record.read_text() + " ")
    git.commit(workspace.root, ["artifacts/alpha/trained.json"], "forged")
    with pytest.raises(IntegrityError, match=r"trained.json in commit HEAD: MD5 is .* by dvc.lock"):
        fetch_outputs(workspace, "HEAD", "alpha", "train", tmp_path / "out")
    with pytest.raises(WorkspaceError, match=r"has no stage train@beta|is not in commit"):
        fetch_outputs(workspace, done.commit, "beta", "train", tmp_path / "out")


def test_only_the_stages_that_need_it_run_again(ran: tuple[Workspace, Experiment]) -> None:
    workspace, _ = ran
    pin(workspace, champion={"version": "1"})
    assert run(workspace, OTHER, FAIL_AT="train").ran == ("evaluate",)


def test_a_tampered_output_that_dvc_takes_from_its_run_cache_is_noticed(
    ran: tuple[Workspace, Experiment],
) -> None:
    workspace, done = ran
    tamper(cached(workspace, object_of(workspace, done, "artifacts/alpha/adapter", "adapter_config.json")))
    pin(workspace, champion={"version": "1"})
    with pytest.raises(IntegrityError, match=r"adapter/adapter_config.json: SHA-256"):
        run(workspace, OTHER)
    assert find_experiment(workspace, "alpha", OTHER) is None


def test_tampered_data_is_noticed_before_anything_runs(workspace: Workspace, tmp_path: Path) -> None:
    md5 = read_json_at(workspace, "HEAD", "pins/alpha.json")["data"]["md5"]
    tamper(cached(workspace, md5))
    with pytest.raises(IntegrityError, match=r"the data of alpha is not what was recorded"):
        run(workspace, MARKS=str(tmp_path))
    assert not (tmp_path / "prepare-alpha").exists()


def test_a_failing_stage_speaks_for_itself_and_the_next_run_goes_on_from_there(workspace: Workspace) -> None:
    with pytest.raises(ExperimentError) as caught:
        run(workspace, FAIL_AT="train")
    assert str(caught.value) == (
        "stage train of alpha failed: the loss is NaN at step 7; lower training.learning_rate\n"
        "  it was inf at step 6"
    )
    assert find_experiment(workspace, "alpha", KEY) is None
    open_workspace(workspace.root)
    assert run(workspace).ran == ("train", "evaluate")


def test_what_dvc_itself_cannot_do_is_said_in_its_words(workspace: Workspace) -> None:
    (workspace.root / "dvc.yaml").write_text("stages:\n  prepare: 3\n")
    git.commit(workspace.root, ["dvc.yaml"], "broken")
    with pytest.raises(ExperimentError, match=r"(?s)the experiment of alpha failed.*dvc\.yaml"):
        run(workspace)


def test_a_stage_that_never_began_is_explained_by_dvc_and_not_by_the_stage_before(
    workspace: Workspace,
) -> None:
    pins = workspace.root / "pins/alpha.json"
    content = json.loads(pins.read_text())
    del content["warm_start"]
    pins.write_text(json.dumps(content))
    git.commit(workspace.root, ["pins/alpha.json"], "Pins that lack a key")
    with pytest.raises(ExperimentError) as caught:
        run(workspace)
    assert str(caught.value).startswith("stage train of alpha failed (DVC ended with status ")
    assert "warm_start" in str(caught.value)
    assert "prepare of alpha" not in str(caught.value)


def test_a_baseline_that_does_not_exist_is_an_error(workspace: Workspace) -> None:
    with pytest.raises(WorkspaceError, match="has no commit abc"):
        run_experiment(workspace, "alpha", KEY, {}, ignore, baseline="abc")


def test_after_kill_9_no_process_is_left_and_it_can_be_run_again(
    workspace: Workspace, tmp_path: Path
) -> None:
    process = start(workspace, "alpha", SLEEP_AT="train", MARKS=str(tmp_path))
    stage = int(wait_for(tmp_path / "train-alpha"))
    process.kill()
    process.communicate()
    end = time.monotonic() + 10
    while workspaces.is_running(stage) and time.monotonic() < end:
        time.sleep(0.05)
    assert not workspaces.is_running(stage)
    open_workspace(workspace.root)
    assert run(workspace).ran == ("train", "evaluate")
    assert [path.name for path in (workspace.state / "experiments").iterdir()] == ["alpha.lock"]


def test_ctrl_c_ends_the_stages_and_leaves_nothing_half_made(workspace: Workspace, tmp_path: Path) -> None:
    process = start(workspace, "alpha", SLEEP_AT="prepare", MARKS=str(tmp_path))
    stage = int(wait_for(tmp_path / "prepare-alpha"))
    process.send_signal(signal.SIGINT)
    printed, _ = process.communicate(timeout=60)
    assert "KeyboardInterrupt" in printed
    assert not workspaces.is_running(stage)
    assert [path.name for path in (workspace.state / "experiments").iterdir()] == ["alpha.lock"]
    open_workspace(workspace.root)


def test_stages_that_ignore_ctrl_c_are_killed_in_the_end(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "GRACE_SECONDS", 0.2)

    def interrupt(text: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_experiment(
            workspace, "alpha", KEY, {"SLEEP_AT": "prepare", "DEAF": "1", "MARKS": str(tmp_path)}, interrupt
        )
    assert not workspaces.is_running(int(wait_for(tmp_path / "prepare-alpha")))


def test_two_prefixes_side_by_side_and_one_key_twice_give_one_experiment_each(
    workspace: Workspace, tmp_path: Path
) -> None:
    first = start(workspace, "alpha", LABEL="A", MARKS=str(tmp_path))
    twin = start(workspace, "alpha", LABEL="A", MARKS=str(tmp_path))
    other = start(workspace, "beta", LABEL="B", MARKS=str(tmp_path))
    printed = [process.communicate(timeout=120)[0] for process in (first, twin, other)]
    assert [process.returncode for process in (first, twin, other)] == [0, 0, 0], printed
    commits = [text.split("COMMIT ")[1].split()[0] for text in printed]
    assert commits[0] == commits[1] == git.resolve(workspace.root, anchor("alpha", KEY))
    assert commits[2] == git.resolve(workspace.root, anchor("beta", KEY))
    together = printed[0] + printed[1]
    assert together.count("train of alpha with A") == 1
    assert together.count("waiting for it") == 1
    assert "train of beta with B" in printed[2]
    assert "alpha" not in printed[2]


def test_the_users_shell_and_dvc_settings_do_not_reach_the_stages(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHELL", "/usr/sbin/nologin")
    monkeypatch.setenv("DVC_EXP_AUTO_PUSH", "true")
    monkeypatch.setenv("GIT_DIR", os.fspath(workspace.root / "nowhere"))
    assert run(workspace).ran == ("prepare", "train", "evaluate")
