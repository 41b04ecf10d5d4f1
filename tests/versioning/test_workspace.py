from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.errors import ParamsError, WorkspaceError
from pipeline.params_file import load_params
from pipeline.versioning import git
from pipeline.versioning.workspace import (
    Workspace,
    find_workspace,
    init_workspace,
    open_workspace,
    read_json_at,
    write_pins,
)
from tests import workspaces

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return workspaces.make(tmp_path_factory.mktemp("workspaces") / "made")


@pytest.fixture
def workspace(made: Workspace, tmp_path: Path) -> Workspace:
    return workspaces.duplicate(made, tmp_path / "w")


def entries(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_new_workspace_is_committed_clean_and_opens(tmp_path: Path) -> None:
    workspace = init_workspace(tmp_path / "deep" / "new")
    assert open_workspace(workspace.root) == workspace
    assert git.run(workspace.root, "status", "--porcelain", "--untracked-files=all") == ""
    assert git.run(workspace.root, "rev-list", "--count", "HEAD").strip() == "1"
    assert entries(tmp_path / "deep") == {"new"}
    assert "../.prefixline/dvc-remote" in (workspace.root / ".dvc/config").read_text()


def test_the_templates_are_valid_and_their_commented_examples_are_too(tmp_path: Path) -> None:
    template = REPOSITORY / "pipeline/templates/workspace/params.yaml"
    assert load_params(template).prefixes == {}
    text = template.read_text().replace(": {}\n", ":\n")
    uncommented = "\n".join(
        line[1:] if line.startswith("#  ") and not line.startswith("#   {") else line
        for line in text.splitlines()
    )
    (tmp_path / "params.yaml").write_text(uncommented)
    params = load_params(tmp_path / "params.yaml")
    assert set(params.prefixes) == {"support-topics", "product-texts"}
    assert params.prefix("support-topics").training.epochs == 3


@pytest.mark.parametrize("name", ["dvc.yaml", "prefect.yaml"])
def test_the_repositorys_own_graph_and_project_are_the_templates(name: str) -> None:
    template = REPOSITORY / "pipeline/templates/workspace" / name
    assert (REPOSITORY / name).read_bytes() == template.read_bytes()


def test_dvc_accepts_the_graph_with_no_prefix_and_with_two(workspace: Workspace) -> None:
    listed = dvc(workspace.root, "stage", "list", "--name-only").split()
    assert sorted(listed) == sorted(
        f"{s}@{n}" for s in ("prepare", "train", "evaluate") for n in ("alpha", "beta")
    )
    (workspace.root / "params.yaml").write_text("prefixes: {}\nbase_models: {}\n")
    assert dvc(workspace.root, "stage", "list") == ""


def test_prefect_reads_the_project_file_and_its_flow_exists() -> None:
    from ruamel.yaml import YAML

    project = YAML(typ="safe").load(REPOSITORY / "pipeline/templates/workspace/prefect.yaml")
    assert [deployment["entrypoint"] for deployment in project["deployments"]] == ["flows.retrain.retrain"]
    assert (REPOSITORY / "flows" / "retrain.py").is_file()


def test_an_empty_folder_and_a_fresh_git_repository_are_taken(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    inode = (tmp_path / "empty").stat().st_ino
    init_workspace(tmp_path / "empty")
    assert (tmp_path / "empty").stat().st_ino == inode  # a shell that stands in it stays in it
    (tmp_path / "fresh").mkdir()
    git.run(tmp_path / "fresh", "init", "-q", "-b", "kept")
    init_workspace(tmp_path / "fresh")
    assert git.run(tmp_path / "fresh", "branch", "--show-current").strip() == "kept"
    open_workspace(tmp_path / "fresh")


def test_a_workspace_and_a_folder_with_files_are_refused(workspace: Workspace, tmp_path: Path) -> None:
    with pytest.raises(WorkspaceError, match="is a workspace already"):
        init_workspace(workspace.root)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("precious")
    with pytest.raises(WorkspaceError, match=r"not empty \(it holds thesis.txt\)"):
        init_workspace(tmp_path / "full")
    with pytest.raises(WorkspaceError, match="is a file"):
        init_workspace(tmp_path / "full" / "thesis.txt")
    assert entries(tmp_path / "full") == {"thesis.txt"}


@pytest.mark.parametrize("occasion", ["nothing there", "empty folder", "fresh git repository"])
def test_a_failing_init_leaves_nothing(
    occasion: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "deep" / "new"
    if occasion != "nothing there":
        folder.mkdir(parents=True)
    if occasion == "fresh git repository":
        git.run(folder, "init", "-q")
    # A committer without an address makes git refuse the last step, the commit.
    monkeypatch.setenv("GIT_COMMITTER_DATE", "no date")
    with pytest.raises(WorkspaceError, match="no date"):
        init_workspace(folder)
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if ".git/" not in str(path)}
    assert (
        left
        == {
            "nothing there": set(),
            "empty folder": {"deep", "deep/new"},
            "fresh git repository": {"deep", "deep/new", "deep/new/.git"},
        }[occasion]
    )


def test_a_machine_without_git_identity_gets_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("GIT_") or name == "EMAIL":
            monkeypatch.delenv(name)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    monkeypatch.setenv("GIT_CONFIG_SYSTEM", os.devnull)
    root = init_workspace(tmp_path / "w").root
    assert git.run(root, "log", "-1", "--format=%cn %ce").strip() == "prefixline prefixline@localhost"


def test_signing_that_fails_does_not_stop_a_machines_commit(workspace: Workspace) -> None:
    git.run(workspace.root, "config", "commit.gpgsign", "true")
    git.run(workspace.root, "config", "gpg.program", "false")
    (workspace.root / "pins").mkdir(exist_ok=True)
    (workspace.root / "pins" / "x.json").write_text("{}")
    assert git.commit(workspace.root, ["pins/x.json"], "Pins")


def test_a_commit_that_git_refuses_leaves_nothing_staged(workspace: Workspace) -> None:
    (workspace.root / ".gitignore").write_text("*.json\n")
    git.commit(workspace.root, [".gitignore"], "Ignore")
    (workspace.root / "a.txt").write_text("new")
    (workspace.root / "b.json").write_text("{}")
    with pytest.raises(WorkspaceError, match="ignored"):
        git.commit(workspace.root, ["a.txt", "b.json"], "Both")
    assert git.run(workspace.root, "diff", "--cached", "--name-only") == ""


def test_a_repository_git_refuses_to_work_in_is_not_taken_for_none(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "true")
    with pytest.raises(WorkspaceError, match="dubious ownership"):
        open_workspace(workspace.root)


def test_a_workspace_is_found_from_below(workspace: Workspace) -> None:
    assert find_workspace(workspace.root / "data" / "folder" / "deep") == workspace


def test_folders_that_are_no_workspace_say_what_they_lack(workspace: Workspace, tmp_path: Path) -> None:
    with pytest.raises(WorkspaceError, match=r"no params.yaml here or in any folder above"):
        open_workspace(tmp_path)
    plain = tmp_path / "plain"
    plain.mkdir()
    (plain / "params.yaml").write_text(workspaces.PARAMS)
    with pytest.raises(WorkspaceError, match="is not a git repository"):
        open_workspace(plain)
    git.run(plain, "init", "-q")
    with pytest.raises(WorkspaceError, match="is not a DVC repository"):
        open_workspace(plain)
    inner = workspace.root / "inner"
    inner.mkdir()
    (inner / "params.yaml").write_text(workspaces.PARAMS)
    with pytest.raises(WorkspaceError, match="lies inside the git repository"):
        open_workspace(inner)


def test_uncommitted_changes_are_refused_and_named(workspace: Workspace) -> None:
    (workspace.root / "params.yaml").write_text(workspaces.PARAMS + "# thinking\n")
    (workspace.root / "stage.py").unlink()
    (workspace.root / "pipeline").mkdir()
    (workspace.root / "pipeline" / "new.py").write_text("")
    (workspace.root / "notes.txt").write_text("untracked, and nobody's business")
    with pytest.raises(WorkspaceError) as caught:
        open_workspace(workspace.root)
    assert [line.strip() for line in str(caught.value).splitlines()[1:-1]] == [
        "params.yaml: changed, not committed",
        "stage.py: changed, not committed",
        "pipeline/new.py: not under version control",
    ]
    (workspace.root / "pipeline" / "new.py").unlink()
    git.run(workspace.root, "add", "params.yaml")  # staging alone is not committing
    with pytest.raises(WorkspaceError, match=r"params.yaml: changed, not committed"):
        open_workspace(workspace.root)


def test_what_a_killed_retraining_left_in_our_own_files_is_no_obstacle(workspace: Workspace) -> None:
    workspaces.pin(workspace)
    for name in ("pins/alpha.json", "data/rows.jsonl.dvc", "data/rows.jsonl.manifest.json"):
        (workspace.root / name).write_text("half")
    open_workspace(workspace.root)


def test_a_params_file_never_committed_is_refused(workspace: Workspace) -> None:
    git.run(workspace.root, "rm", "-q", "--cached", "params.yaml")
    git.run(workspace.root, "commit", "-qm", "oops")
    with pytest.raises(WorkspaceError, match=r"params.yaml: not under version control"):
        open_workspace(workspace.root)
    (workspace.root / ".gitignore").write_text("/params.yaml\n")
    git.commit(workspace.root, [".gitignore"], "and hidden")
    with pytest.raises(WorkspaceError, match=r"params.yaml: not in the last commit"):
        open_workspace(workspace.root)


def test_a_repository_without_a_commit_is_refused(workspace: Workspace) -> None:
    git.run(workspace.root, "update-ref", "-d", "HEAD")
    with pytest.raises(WorkspaceError, match="has no commit yet"):
        open_workspace(workspace.root)


def test_an_unfinished_merge_is_refused(workspace: Workspace) -> None:
    (workspace.root / ".git" / "MERGE_HEAD").write_text(git.resolve(workspace.root, "HEAD") or "")
    with pytest.raises(WorkspaceError, match="merge or rebase is not finished"):
        open_workspace(workspace.root)


def test_invalid_params_are_a_params_error(workspace: Workspace) -> None:
    (workspace.root / "params.yaml").write_text("prefixes: 3\n")
    with pytest.raises(ParamsError):
        open_workspace(workspace.root)


@pytest.mark.parametrize("content", [b"", b'{"write": {"/a', b"\xff\xfe"])
def test_a_truncated_rwlock_is_named_with_what_to_do(workspace: Workspace, content: bytes) -> None:
    path = workspace.root / ".dvc" / "tmp" / "rwlock"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    with pytest.raises(WorkspaceError, match=r"\.dvc/tmp/rwlock: is not JSON.*delete the file"):
        open_workspace(workspace.root)
    path.unlink()
    open_workspace(workspace.root)


def test_a_remote_that_does_not_verify_or_is_missing_is_refused(workspace: Workspace) -> None:
    config = workspace.root / ".dvc" / "config"
    good = config.read_text()
    for text, complaint in (
        (good.replace("verify = true", "verify = false"), "does not verify.*verify true"),
        (good.replace("    verify = true\n", ""), "does not verify"),
        (good.replace("    remote = local\n", ""), "has no default DVC remote"),
        ("[core]\n    nonsense = true\n", "nonsense"),
    ):
        config.write_text(text)
        git.commit(workspace.root, [".dvc/config"], "worse")
        with pytest.raises(WorkspaceError, match=complaint):
            open_workspace(workspace.root)


def test_pins_are_committed_alone_and_only_when_they_change(workspace: Workspace) -> None:
    (workspace.root / "mine.txt").write_text("staged by the user")
    git.run(workspace.root, "add", "mine.txt")
    first = write_pins(workspace, "alpha", {"b": 1, "a": None})
    assert git.run(workspace.root, "show", "--name-only", "--format=", first).split() == ["pins/alpha.json"]
    assert git.changed(workspace.root) == ["mine.txt"]
    assert write_pins(workspace, "alpha", {"a": None, "b": 1}) == first
    assert write_pins(workspace, "alpha", {"a": 2}) != first
    assert read_json_at(workspace, first, "pins/alpha.json") == {"a": None, "b": 1}


def test_pins_that_cannot_be_committed_are_put_back(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = write_pins(workspace, "alpha", {"a": 1})
    monkeypatch.setenv("GIT_COMMITTER_DATE", "no date")
    with pytest.raises(WorkspaceError, match="no date"):
        write_pins(workspace, "alpha", {"a": 2})
    with pytest.raises(WorkspaceError, match="no date"):
        write_pins(workspace, "beta", {"a": 2})
    assert git.run(workspace.root, "status", "--porcelain", "pins") == ""
    assert git.resolve(workspace.root, "HEAD") == first


def test_reading_at_a_commit_says_what_is_missing(workspace: Workspace) -> None:
    with pytest.raises(WorkspaceError, match="has no commit"):
        read_json_at(workspace, "f" * 40, "pins/alpha.json")
    with pytest.raises(WorkspaceError, match="is not in commit"):
        read_json_at(workspace, "HEAD", "pins/alpha.json")
    with pytest.raises(WorkspaceError, match="is not JSON"):
        read_json_at(workspace, "HEAD", "params.yaml")


def test_git_missing_from_the_machine_is_said(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(WorkspaceError, match="cannot run git"):
        find_workspace(workspace.root)


def test_opening_imports_neither_torch_nor_mlflow_nor_prefect() -> None:
    heavy = "import sys, pipeline.versioning.experiment, pipeline.versioning.snapshot; print({'torch', 'mlflow', 'prefect', 'dvc'} & {*sys.modules})"
    assert (
        subprocess.check_output([sys.executable, "-c", heavy], cwd=REPOSITORY, text=True).strip() == "set()"
    )


def dvc(root: Path, *arguments: str) -> str:
    return subprocess.check_output([sys.executable, "-m", "dvc", *arguments], cwd=root, text=True)
