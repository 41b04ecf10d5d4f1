"""The whole line through the real command: data in, a judged and registered prefix out."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline import retraining, server_access
from pipeline.audit.impact import Kind, impact
from pipeline.audit.verification import verify
from pipeline.data.splits import row_id
from pipeline.environment import quiet_environment
from pipeline.errors import IntegrityError, RefusedError, WorkspaceError
from pipeline.ledger import log
from pipeline.openlineage import run_events
from pipeline.register import registry, versions
from pipeline.register.registry import Registry
from pipeline.server_state import ProcessId, ServerRecord, ServersRecord, read_state
from pipeline.trial.fresh_evaluation import fresh_evaluation
from pipeline.trial.smoke_test import smoke_test
from pipeline.versioning.workspace import find_workspace
from tests import mlflow_world
from tests.line import PREFIXLINE, Line, make_line, rows
from tests.openlineage.lineage_server import LineageServer, lineage_server


@pytest.fixture(scope="module")
def told() -> Iterator[LineageServer]:
    """Who is told of the retrainings of `line`."""
    with lineage_server() as server:
        yield server


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory, told: LineageServer) -> Line:
    return make_line(tmp_path_factory.mktemp("line"), environment=told.environment())


@pytest.fixture(scope="module")
def first(line: Line) -> dict[str, Any]:
    outcome: dict[str, Any] = line.json("retrain", "words")
    return outcome


@pytest.fixture(scope="module")
def foretold(line: Line, first: dict[str, Any]) -> dict[str, Any]:
    """What `prefixline data` says of the data after it has changed, with version 1 in production."""
    if versions.production(connection(line), "words") is None:
        mlflow_world.promote(connection(line), "words", "1")
    line.write_rows([*rows(400), *rows(60, seed=7)])
    changes: dict[str, Any] = line.json("data", "words")["changes"]
    return changes


@pytest.fixture(scope="module")
def second(line: Line, foretold: dict[str, Any]) -> dict[str, Any]:
    outcome: dict[str, Any] = line.json("retrain", "words")
    return outcome


def connection(line: Line) -> Registry:
    where = server_access.endpoints(line.root)
    return registry.connect(where.mlflow_uri, artifact_root=where.artifact_root)


def test_a_passing_prefix_is_registered_as_version_1(first: dict[str, Any]):
    assert (first["prefix"], first["outcome"], first["version"]) == ("words", "registered", "1")
    assert re.fullmatch(r"[0-9a-f]{64}", first["run_key"])
    assert re.fullmatch(r"[0-9a-f]{32}", first["dataset"]["md5"])
    assert first["dataset"]["rows"] == 400
    assert first["verdict"]["passed"] is True
    assert first["metrics"]["prefix"]["accuracy"] >= 0.6


def test_status_shows_the_candidate(line: Line, first: dict[str, Any]):
    (words,) = line.json("status")["prefixes"]
    assert [(v["version"], v["stages"]) for v in words["versions"]] == [("1", ["candidate"])]
    assert words["last"]["outcome"] == "registered"
    assert words["dataset"]["md5"] == first["dataset"]["md5"]


def test_lineage_names_everything_the_version_was_made_from(line: Line, first: dict[str, Any]):
    record = line.json("lineage", "words@candidate")
    assert (record["version"], record["stage"]) == ("1", "candidate")
    assert record["run_key"] == first["run_key"]
    assert record["dataset"]["md5"] == first["dataset"]["md5"]
    assert record["dataset"]["rows"] == 400
    assert line.git("cat-file", "-t", record["dataset"]["git_commit"]) == "commit"
    assert line.git("cat-file", "-t", record["code"]["commit"]) == "commit"
    assert line.git("cat-file", "-t", record["experiment"]["commit"]) == "commit"
    assert record["base_model"]["digest"] in (line.root / "params.yaml").read_text()
    assert record["runs"]["mlflow"] == first["runs"]["mlflow"]
    assert re.fullmatch(r"[0-9a-f-]{36}", record["runs"]["prefect"])
    assert record["params"]["training"]["epochs"] == 10


def test_the_mlflow_run_holds_inputs_curves_figures_and_files(line: Line, first: dict[str, Any]):
    client = connection(line).client
    run = client.get_run(first["runs"]["mlflow"])
    assert run.info.status == "FINISHED"
    assert run.data.params["training.epochs"] == "10"
    assert run.data.metrics["test/prefix/accuracy"] == first["metrics"]["prefix"]["accuracy"]
    assert len(client.get_metric_history(run.info.run_id, "train/loss")) > 10
    assert len(run.inputs.dataset_inputs) == 1
    assert len(run.inputs.model_inputs) == 1
    files = {item.path for item in client.list_artifacts(run.info.run_id)}
    assert {"lineage.json", "verdict.json", "dataset_card.html", "report"} <= files


def test_the_dataset_source_of_the_run_gives_back_the_exact_rows(line: Line, first: dict[str, Any]):
    import mlflow

    run = connection(line).client.get_run(first["runs"]["mlflow"])
    source = mlflow.data.get_source(run.inputs.dataset_inputs[0])
    loaded = Path(source.load(line.root))
    assert [json.loads(row) for row in loaded.read_text().splitlines()] == rows(400)


def test_the_registered_model_predicts_what_the_evaluation_recorded(
    line: Line, first: dict[str, Any], monkeypatch: pytest.MonkeyPatch
):
    import mlflow
    import pyarrow.parquet as pq

    # MLflow exports its addresses to the environment; monkeypatch takes them back out of it afterwards.
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"):
        monkeypatch.setenv(name, "")
    monkeypatch.setenv("PREFIXLINE_WORKSPACE", str(line.root))
    connection(line).activate()
    model = mlflow.pyfunc.load_model("models:/words@candidate")
    scored = pq.read_table(
        line.root / ".prefixline/fetched" / first["run_key"] / "evaluate/evaluation/rows.parquet",
        filters=[("system", "=", "prefix")],
    ).to_pylist()
    texts = {row_id(row["text"], [row["label"]]): row["text"] for row in rows(400)}
    predictions = model.predict([texts[row["row_id"]] for row in scored])
    labels = ["animal", "colour"]
    assert len(scored) > 20
    assert list(predictions["label"]) == [labels[row["prediction"]] for row in scored]
    confidences = predictions[[f"probability.{label}" for label in labels]].max(axis=1)
    assert list(confidences) == pytest.approx([row["confidence"] for row in scored], abs=1e-4)


def test_the_smoke_test_takes_a_version_that_predicts_what_was_recorded_and_no_other(
    line: Line, first: dict[str, Any]
):
    verified, workspace = versions.lookup(connection(line), "words", "1"), find_workspace(line.root)
    before = dict(os.environ)
    smoke_test(workspace, connection(line), verified)
    assert dict(os.environ) == before

    def other(**changes: Any) -> versions.VerifiedVersion:
        return replace(verified, record=replace(verified.record, **changes))

    labels = verified.record.dataset["labels"][::-1]
    with pytest.raises(
        RefusedError, match=r"words version 1: the smoke test failed: it predicts otherwise .* test rows"
    ):
        smoke_test(workspace, connection(line), other(dataset={**verified.record.dataset, "labels": labels}))
    with pytest.raises(
        WorkspaceError, match=r"the smoke test needs its recorded evaluation, of experiment 0{40}"
    ):
        smoke_test(workspace, connection(line), other(experiment={"commit": "0" * 40, "name": "x"}))
    uri = connection(line).client.get_model_version_download_uri("words", "1")
    weights = Path(uri.removeprefix("file://")) / versions.ADAPTER_PATH / "adapter_model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    try:
        with pytest.raises(RefusedError, match="the smoke test could not load it"):
            smoke_test(workspace, connection(line), verified)
    finally:
        weights.write_bytes(content)


def test_the_fresh_evaluation_holds_a_version_to_the_floors_on_the_data_as_it_is_now(
    line: Line, first: dict[str, Any]
):
    verified, workspace = versions.lookup(connection(line), "words", "1"), find_workspace(line.root)
    entry = workspace.params().prefix("words")

    def fresh(floor: float = 0.6, version: versions.VerifiedVersion = verified) -> None:
        gate = entry.gate.model_copy(update={"floors": {"accuracy": floor}})
        fresh_evaluation(workspace, connection(line), version, entry.model_copy(update={"gate": gate}))

    fresh()
    with pytest.raises(
        RefusedError, match=rf"on dataset version {first['dataset']['md5']} failed: accuracy is "
    ):
        fresh(floor=1.0)
    labels = {**verified.record.dataset, "labels": ["animal", "plant"]}
    with pytest.raises(RefusedError, match=r"cannot be put to it: [\s\S]*colour"):
        fresh(version=replace(verified, record=replace(verified.record, dataset=labels)))
    line.write_rows(rows(300))
    try:
        with pytest.raises(
            WorkspaceError, match=r"words\.jsonl was changed since the last one: prefixline retrain words"
        ):
            fresh()
    finally:
        line.write_rows(rows(400))


def test_the_report_lies_in_the_workspace_and_is_listed(line: Line, first: dict[str, Any]):
    page = Path(first["report"])
    assert page.is_relative_to(line.root / "reports")
    assert "words" in page.read_text()
    assert page.name in (line.root / "reports" / "index.html").read_text()


def test_the_workspace_is_clean_after_a_retraining(line: Line, first: dict[str, Any]):
    assert line.git("status", "--porcelain") == ""


def test_a_lineage_server_is_told_as_it_begins_and_ends_what_the_bundle_says_afterwards(
    line: Line, first: dict[str, Any], told: LineageServer
):
    record = versions.lookup(connection(line), "words", "1").record
    entered = log.read(connection(line), "words").state.registered["1"]
    began, ended = run_events.run_events(record, "1", entered.time)
    start, complete = (without_the_clients_own(event) for event in told.events[:2])
    assert complete == ended
    assert (start["eventType"], start["run"]["runId"], start["job"]) == (
        "START",
        complete["run"]["runId"],
        began["job"],
    )
    assert record.created <= start["eventTime"] < complete["eventTime"]


def without_the_clients_own(event: dict[str, Any]) -> dict[str, Any]:
    """An event as it was before OpenLineage's client added which version of it sent this."""
    tags = event["run"]["facets"]["tags"]
    tags["tags"] = [tag for tag in tags["tags"] if tag["source"] == "prefixline"]
    return event


def test_a_second_retraining_says_unchanged_and_registers_nothing(
    line: Line, first: dict[str, Any], told: LineageServer
):
    head, before = line.git("rev-parse", "HEAD"), len(told.events)
    again = line.json("retrain", "words")
    assert len(told.events) == before
    assert (again["outcome"], again["version"], again["earlier"]) == ("unchanged", "1", "registered")
    assert again["run_key"] == first["run_key"]
    assert again["verdict"] == first["verdict"]
    assert line.git("rev-parse", "HEAD") == head
    (words,) = line.json("status")["prefixes"]
    assert len(words["versions"]) == 1


def test_a_page_that_was_lost_is_made_again(line: Line, first: dict[str, Any]):
    page = Path(first["report"])
    before = page.read_text()
    shutil.rmtree(line.root / "reports")
    shutil.rmtree(line.root / ".prefixline/row_ids")
    again = line.json("retrain", "words")
    assert (again["outcome"], again["version"], again["report"]) == ("unchanged", "1", first["report"])
    assert page.read_text() == before
    assert (line.root / ".prefixline/row_ids/words" / first["dataset"]["md5"] / "row_ids").exists()
    run = connection(line).client.get_run(first["runs"]["mlflow"])
    assert (run.info.status, run.data.tags["prefixline.outcome"]) == ("FINISHED", "registered")


def test_a_version_is_promoted_to_production_stage_by_stage(line: Line, first: dict[str, Any]):
    client = connection(line).client
    for stage in ("staging", "production"):
        moved = line.json("promote", "words", "1", "--to", stage, "--reason", "the first")
        assert str(client.get_model_version_by_alias("words", stage).version) == moved["version"] == "1"


def test_changed_data_is_a_new_version_compared_with_the_champion_on_the_same_rows(
    line: Line, first: dict[str, Any], foretold: dict[str, Any], second: dict[str, Any]
):
    assert foretold["added"] > 0
    assert (second["outcome"], second["version"]) == ("registered", "2")
    assert second["dataset"]["md5"] != first["dataset"]["md5"]
    assert second["run_key"] != first["run_key"]
    (compared,) = [c for c in second["verdict"]["criteria"] if c["kind"] == "not_worse_than_champion"]
    assert compared["rows"] == second["verdict"]["criteria"][0]["rows"] > 30
    assert "champion" in second["metrics"]
    before, after = line.json("lineage", "words:1"), line.json("lineage", "words:2")
    assert before["warm_start"] is None
    assert after["warm_start"] == {
        "prefix": "words", "version": "1", "adapter_digest": before["adapter_digest"],
    }  # fmt: skip
    began = [
        json.loads(line.git("show", f"{made['experiment']}:artifacts/words/trained.json"))["start"]
        for made in (first, second)
    ]
    assert began[0] == {"from": "text", "made_of": "labels", "text": "animal colour"}
    assert began[1] == {"from": "version", "head": "continued", **after["warm_start"]}
    assert "version 1 of words and its head" in Path(second["report"]).read_text()
    card = registry.read_json(connection(line), second["runs"]["mlflow"], "dataset_card.json")
    assert card["changes"] == foretold
    assert card["changes"]["removed"] == 0
    assert line.json("data", "words")["changes"] == foretold
    shown = line.run("data", "words").stdout
    assert (
        f"since the version before: {foretold['added']} rows added, 0 removed, {foretold['kept']} kept"
        in shown
    )
    assert re.search(r"animal │ +\d+ │ +\d+ │ +\d+ │ +\d+ │", shown)
    stages = {v["version"]: v["stages"] for v in line.json("status")["prefixes"][0]["versions"]}
    assert stages == {"1": ["production"], "2": ["candidate"]}


def test_each_version_is_found_from_what_it_was_made_from(
    line: Line, first: dict[str, Any], second: dict[str, Any]
):
    after = line.json("lineage", "words:2")
    (new, *_) = (row["text"] for row in rows(60, seed=7) if row not in rows(400))
    assert affected(line, "row", new) == {"2": ("candidate", None)}
    old = rows(400)[0]["text"].upper()
    assert affected(line, "row", old) == {"1": ("production", None), "2": ("candidate", None)}
    md5 = first["dataset"]["md5"]
    assert affected(line, "dataset", md5[:8]) == {"1": ("production", None), "2": ("candidate", "words:1")}
    code = after["code"]["commit"]
    assert affected(line, "code", code[:8]) == {"2": ("candidate", None)}
    assert affected(line, "base", after["base_model"]["digest"][:12]).keys() == {"1", "2"}


def test_production_moves_on_and_back_and_all_of_it_verifies(line: Line, second: dict[str, Any]):
    client = connection(line).client
    mlflow_world.promote(connection(line), "words", second["version"])
    assert str(client.get_model_version_by_alias("words", "production").version) == "2"
    assert line.json("lineage", "words@archived")["version"] == "1"
    line.json("rollback", "words", "--reason", "the first was better", "--expect", "2")
    assert str(client.get_model_version_by_alias("words", "production").version) == "1"
    told = line.json("history", "words")
    assert [(row["event"], row["version"], row["stage"]) for row in told["events"]] == [
        ("registered", "1", "candidate"),
        ("promoted", "1", "staging"),
        ("promoted", "1", "production"),
        ("registered", "2", "candidate"),
        ("promoted", "2", "staging"),
        ("promoted", "2", "production"),
        ("rolled back", "1", "production"),
    ]
    assert told["out_of_step"] == []
    assert [(v.version, v.stages, v.faults) for v in verify(line.root).versions] == [
        ("1", ("production",), ()),
        ("2", ("archived",), ()),
    ]


def affected(line: Line, kind: Kind, asked: str) -> dict[str, tuple[str, str | None]]:
    """{version: the stage it holds and the version it came through}."""
    found = impact(line.root, kind, asked)
    assert (found["searched"], found["complete"]) == (2, True)
    return {v["version"]: (v["stages"][0], v["through"]) for v in found["versions"]}


def test_two_retrainings_of_one_prefix_at_once_register_one_version(tmp_path: Path):
    with lineage_server(503) as refusing:
        line = make_line(tmp_path, environment=refusing.environment())
        processes = [line.start("retrain", "words", "--json") for _ in range(2)]
        ended = [process.communicate(timeout=240) for process in processes]
    answers = [json.loads(out) for out, _ in ended]
    assert "the OpenLineage event COMPLETE was not sent" in "".join(said for _, said in ended)
    assert sorted(answer["outcome"] for answer in answers) == ["registered", "unchanged"]
    assert [answer["version"] for answer in answers] == ["1", "1"]
    assert answers[0]["runs"] == answers[1]["runs"]
    assert [version.version for version in versions.list_versions(connection(line), "words")] == ["1"]
    run = connection(line).client.get_run(answers[0]["runs"]["mlflow"])
    assert run.info.status == "FINISHED"
    assert line.json("lineage", "words")["runs"] == answers[0]["runs"]


def test_what_the_gate_rejects_is_recorded_and_not_registered(tmp_path: Path):
    with lineage_server() as told:
        strict = make_line(tmp_path, floor=1.0, environment=told.environment())
        outcome = strict.json("retrain", "words", expect=3)
    assert [(event["eventType"], event["outputs"]) for event in told.events] == [
        ("START", []),
        ("COMPLETE", []),
    ]
    assert (outcome["outcome"], outcome["version"]) == ("rejected", None)
    run = connection(strict).client.get_run(outcome["runs"]["mlflow"])
    assert run.data.tags["prefixline.outcome"] == "rejected"
    assert "accuracy" in run.data.tags["prefixline.reasons"]
    assert strict.json("status")["prefixes"][0]["versions"] == []
    again = strict.json("retrain", "words")
    assert (again["outcome"], again["earlier"]) == ("unchanged", "rejected")


def test_a_training_that_fails_is_marked_and_told_with_the_reason(tmp_path: Path):
    with lineage_server() as told:
        line = make_line(tmp_path, scale=1e30, environment=told.environment())
        done = line.run("retrain", "words")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    start, fail = told.events
    assert (start["eventType"], fail["eventType"]) == ("START", "FAIL")
    assert start["run"]["runId"] == fail["run"]["runId"]
    assert "got NaN or infinity" in fail["run"]["facets"]["errorMessage"]["message"]
    tags = {tag["key"]: tag["value"] for tag in fail["run"]["facets"]["tags"]["tags"]}
    assert connection(line).client.get_run(tags["mlflow_run"]).info.status == "FAILED"


def test_what_was_changed_between_training_and_gate_is_refused_and_marked(tmp_path: Path):
    line = make_line(tmp_path)
    planned = retraining.plan(line.root, "words")
    commit = retraining.run_experiment(planned)
    stored = [path for path in line.root.rglob("files/md5/*/*") if path.is_file()]
    assert len(stored) > 8
    for path in stored:  # in the cache and in the remote, or it would be fetched anew
        path.chmod(0o644)
        path.write_bytes(path.read_bytes()[:-1] + b"~")
    with pytest.raises(IntegrityError):
        retraining.judge(planned, commit)
    known = registry.start_run(connection(line), "words", planned.run_key, params={})
    assert "IntegrityError" in connection(line).client.get_run(known).data.tags["prefixline.error"]


def test_bad_data_changes_nothing(tmp_path: Path):
    line = make_line(tmp_path)
    with (line.root / "data/words.jsonl").open("a") as file:
        file.write('{"text": "cut off')
    head, status = line.git("rev-parse", "HEAD"), line.git("status", "--porcelain")
    done = line.run("retrain", "words")
    assert done.returncode == 1
    assert "words.jsonl:401" in done.stderr
    assert "Traceback" not in done.stderr
    assert line.git("rev-parse", "HEAD") == head
    assert line.git("status", "--porcelain") == status
    assert line.json("status")["prefixes"][0]["versions"] == []
    assert not (line.root / "data/words.jsonl.dvc").exists()


def test_ctrl_c_ends_a_training_that_the_same_command_goes_on_with(tmp_path: Path):
    with lineage_server() as told:
        line = make_line(tmp_path, environment=told.environment())
        line.change_params("epochs: 10", "epochs: 40, patience: null")
        process = line.start("retrain", "words", "--json")
        assert process.stderr is not None
        for output in process.stderr:
            if output.startswith("step "):
                process.send_signal(signal.SIGINT)
                break
        out, said = process.communicate(timeout=120)
        assert process.returncode == 130
        assert out == ""
        assert "goes on from the last checkpoint" in said
        assert "Traceback" not in said
        (words,) = line.json("status")["prefixes"]
        assert words["versions"] == []
        done = line.run("retrain", "words", "--json")
    assert done.returncode == 0
    assert re.search(r"going on after step \d+ of 800", done.stderr)
    assert json.loads(done.stdout)["version"] == "1"
    assert [event["eventType"] for event in told.events] == ["START", "ABORT", "START", "COMPLETE"]
    assert len({event["run"]["runId"] for event in told.events}) == 1


@pytest.mark.parametrize("command", [("retrain", "words"), ("status",), ("lineage", "words")])
def test_servers_that_do_not_answer_are_named_and_nothing_is_done(tmp_path: Path, command: tuple[str, ...]):
    line = make_line(tmp_path)
    with socket.socket() as reserved:  # bound, and never listening
        reserved.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{reserved.getsockname()[1]}"
        me = ProcessId.of(os.getpid())
        server = ServerRecord(url, me)
        ServersRecord(me, server, server, server, ready=True).write(line.root / ".prefixline")
        done = line.run(*command)
    assert done.returncode == 1
    assert re.search(rf"error: .*{url}.* does not answer.*prefixline up", done.stderr)
    assert "Traceback" not in done.stderr
    assert not (line.root / "data/words.jsonl.dvc").exists()


def test_mlflow_alone_not_answering_is_named_and_nothing_is_done_until_it_answers(tmp_path: Path):
    line = make_line(tmp_path)
    up = line.start("up", "--mlflow-port", "0", "--prefect-port", "0")
    try:
        assert up.stderr is not None
        assert any("Both servers are up" in output for output in up.stderr)
        state = line.root / ".prefixline"
        running = read_state(state)
        assert running is not None
        mlflow = ServerRecord(
            "http://127.0.0.1:9", running.mlflow.process
        )  # port 9 is reserved; nothing is there
        replace(running, mlflow=mlflow).write(state)
        done = line.run("retrain", "words")
        running.write(state)
        assert not (line.root / "data/words.jsonl.dvc").exists()
        # MLflow's client would print the run's address between the lines of the JSON.
        assert line.json("retrain", "words")["outcome"] == "registered"
    finally:
        up.send_signal(signal.SIGINT)
        up.communicate(timeout=60)
    assert done.returncode == 1
    assert "MLflow at http://127.0.0.1:9 does not answer" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.timeout(700)
def test_servers_that_end_in_the_middle_of_a_training_cost_neither_the_version_nor_the_answer(tmp_path: Path):
    line = make_line(tmp_path)
    line.change_params("epochs: 10", "epochs: 60")
    up = line.start("up", "--mlflow-port", "0", "--prefect-port", "0")
    assert up.stderr is not None
    assert any("Both servers are up" in output for output in up.stderr)
    process = line.start("retrain", "words", "--json")
    assert process.stderr is not None
    assert any("step " in output for output in process.stderr)
    up.send_signal(signal.SIGTERM)
    up.communicate(timeout=60)
    out, said = process.communicate(timeout=200)
    assert process.returncode == 0, said
    outcome = json.loads(out)
    assert (outcome["outcome"], outcome["version"], outcome["earlier"]) == ("registered", "1", None)
    assert said.rstrip().endswith("the Prefect server went away; it does not show how this retraining ended")
    assert "Traceback" not in said
    assert "Error logging to API" not in said
    assert line.json("retrain", "words")["outcome"] == "unchanged"


def test_with_the_servers_up_ctrl_c_in_training_keeps_a_checkpoint_and_the_stages_run_in_forks(
    tmp_path: Path,
):
    line = make_line(tmp_path)
    line.change_params("epochs: 10", "epochs: 40")
    up = line.start("up", "--mlflow-port", "0", "--prefect-port", "0")
    try:
        assert up.stderr is not None
        assert any("Both servers are up" in output for output in up.stderr)
        state = read_state(line.root / ".prefixline")
        assert state is not None
        while not Path(state.forks.url).exists():
            assert state.forks.process.alive()
            time.sleep(0.1)
        process = line.start("retrain", "words", "--json")
        assert process.stderr is not None
        assert any("step " in output for output in process.stderr)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=120)
        assert process.returncode == 130
        assert "goes on from the last checkpoint" in said
        done = line.run("retrain", "words", "--json")
    finally:
        up.send_signal(signal.SIGINT)
        up.communicate(timeout=60)
    assert done.returncode == 0, done.stderr
    assert re.search(r"going on after step \d+ of 800", done.stderr)
    assert json.loads(done.stdout)["version"] == "1"
    forks = (line.root / ".prefixline/logs/forkserver.log").read_text()
    stages = re.findall(r"^\d+: pipeline\.stages (\w+) words in", forks, re.MULTILINE)
    assert stages == ["prepare", "train", "train", "evaluate"], forks
    assert "declined" not in forks


def spoil_digest(line: Line) -> None:
    text = (line.root / "params.yaml").read_text()
    line.change_params(re.search(r"digest: \w+", text)[0], f"digest: {'a' * 64}")  # type: ignore[index]


def spoil_base_with_a_pickle(line: Line) -> None:
    base = line.root.parent / "base"
    (base / "model.safetensors").rename(base / "pytorch_model.bin")


def spoil_with_one_row_of_a_class(line: Line) -> None:
    line.write_rows([*rows(100), {"text": "lonely", "label": "other", "length": "short"}])


def spoil_with_bytes_that_are_no_text(line: Line) -> None:
    path = line.root / "data" / "words.jsonl"
    path.write_bytes(path.read_bytes() + b'{"text": "\xff", "label": "colour", "length": "short"}\n')


def spoil_with_a_missing_column(line: Line) -> None:
    line.write_rows([{"text": row["text"], "length": row["length"]} for row in rows(100)])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (spoil_digest, r"digest"),
        (spoil_base_with_a_pickle, r"safetensors"),
        (spoil_with_one_row_of_a_class, r'class "other"'),
        (spoil_with_bytes_that_are_no_text, r"words\.jsonl:401: .*UTF-8"),
        (spoil_with_a_missing_column, r"words\.jsonl:1: .*label"),
    ],
)
def test_bad_input_ends_with_an_error_and_changes_neither_data_nor_registry(
    tmp_path: Path, spoil: Any, message: str
):
    line = make_line(tmp_path)
    spoil(line)
    before = line.git("rev-parse", "HEAD"), (line.root / "data/words.jsonl").read_bytes()
    done = line.run("retrain", "words")
    assert done.returncode == 1
    assert re.search(rf"error: (?s:.*){message}", done.stderr), done.stderr
    assert "Traceback" not in done.stderr
    assert (line.git("rev-parse", "HEAD"), (line.root / "data/words.jsonl").read_bytes()) == before
    assert not (line.root / "data/words.jsonl.dvc").exists()
    assert line.json("status")["prefixes"][0]["versions"] == []


def test_uncommitted_changes_are_named_and_nothing_is_done(line: Line, first: dict[str, Any]):
    params = line.root / "params.yaml"
    before = params.read_text()
    params.write_text(before + "# a note\n")
    done = line.run("retrain", "words")
    params.write_text(before)
    assert done.returncode == 1
    assert "params.yaml: changed, not committed" in done.stderr
    assert "Traceback" not in done.stderr


def test_in_a_terminal_a_retraining_draws_a_bar_with_loss_and_rate(tmp_path: Path):
    line = make_line(tmp_path)
    ours, theirs = os.openpty()
    process = subprocess.Popen(
        [str(PREFIXLINE), "retrain", "words", "--json"],
        cwd=line.root,
        env={**os.environ, **quiet_environment()},
        stdout=subprocess.PIPE,
        stderr=theirs,
    )
    os.close(theirs)
    drawn = b""
    with suppress(OSError):  # how Linux says that the terminal's other side has closed
        while piece := os.read(ours, 65536):
            drawn += piece
    os.close(ours)
    assert process.stdout is not None
    assert json.loads(process.stdout.read())["outcome"] == "registered"
    assert process.wait() == 0
    assert re.search(r"step \d+/200 .*━.* loss \d\.\d+ +[\d,]+ examples/s", drawn.decode())
    assert b"\x1b[2K" in drawn  # drawn over, not line after line
