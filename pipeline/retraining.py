"""One retraining, step by step, without Prefect: plan → experiment → judge → register → report.

Each step can be repeated: a dataset version is identified by its hash, everything after it by the run key. An error
in any step leaves the registry as it was. `flows.retrain` says which steps are tried again, and when all this runs.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from pipeline import recording, stage_output, warm_start
from pipeline.actor import actor
from pipeline.base import base_model
from pipeline.base.base_model import ResolvedBase
from pipeline.data import card
from pipeline.digest import canonical_json
from pipeline.errors import RegistryError, UnreachableError, WorkspaceError
from pipeline.forkserver import FORKSERVER
from pipeline.locks import exclusive
from pipeline.openlineage.sending import send_broken_off, send_registered, send_rejected, send_started
from pipeline.outcome import Outcome
from pipeline.params import BaseModelParams, PrefixEntry, PrefixParams, SplitParams
from pipeline.pins import Champion, Pins, WarmStart, previous_dataset
from pipeline.plan import Judged, Plan
from pipeline.register import lineage, registration, registry, versions
from pipeline.register.curves import LiveCurves
from pipeline.register.lineage import LineageRecord
from pipeline.register.registry import Known, Registry
from pipeline.server_access import connect, endpoints
from pipeline.show import pages
from pipeline.stages import WORKSPACE
from pipeline.state import adapters_folder, checkpoint_folder, row_ids_folder
from pipeline.versioning import git, snapshot
from pipeline.versioning.experiment import find_experiment
from pipeline.versioning.experiment import run_experiment as run_dvc_experiment
from pipeline.versioning.snapshot import DatasetVersion
from pipeline.versioning.stored import fetch_file, fetch_outputs, push_outputs
from pipeline.versioning.workspace import Workspace, open_workspace, read_json_at, write_pins


def plan(folder: Path, name: str, *, prefect_run: str | None = None) -> Plan:
    """Check everything, version the data, and look the run key up.

    Raises:
        ParamsError, WorkspaceError, BaseModelError, PrefixError, DataError, RegistryError, IntegrityError,
            UnreachableError: nothing has changed, except that the data may have been versioned before a later
            step failed.
    """
    started = time.time()
    workspace = open_workspace(folder)
    params = workspace.params()
    entry = params.prefix(name)
    base = base_model.resolve(entry.base_model, params.base_model(name), workspace.root)
    connection = connect(workspace.root)
    start = warm_start.resolve(connection, workspace.root, name, entry, base, stage_output.to_stderr)
    if start is None:
        check_text(entry.prefix, base)
    dataset = snapshot.snapshot(
        workspace, name, entry.data, check=lambda: validate_data(workspace, entry, base)
    )
    code = lineage.code_identity()
    run_key = _run_key(dataset, base, entry, code, start)
    known = registry.find_run_key(connection, name, run_key)
    if known is not None and known.outcome == "incomplete":
        version = registration.complete(connection, name, run_key, actor=actor(workspace.root))
        send_registered(connection, version, stage_output.to_stderr)
        known = registry.find_run_key(connection, name, run_key)
    return Plan(workspace, name, entry, base, dataset, code, start, run_key, known, prefect_run, started)


def check_text(params: PrefixParams, base: ResolvedBase) -> None:
    """Refuse a text given by hand that is too short, before anything is done.

    Raises:
        PrefixError: it has fewer tokens than the prefix is long.
    """
    if params.initialisation != "random" and params.text is not None:
        from pipeline.train.start_text import given_text

        given_text(params.text, base_model.tokenizer(base), params.length)


def _run_key(
    dataset: DatasetVersion,
    base: ResolvedBase,
    entry: PrefixEntry,
    code: Mapping[str, str],
    start: WarmStart | None,
) -> str:
    return lineage.run_key(
        dataset_md5=dataset.md5,
        manifest=dataset.manifest,
        base_digest=base.digest,
        params=lineage.identity_params(entry),
        code_digest=code["digest"],
        warm_start=None if start is None else start.adapter_digest,
    )


def already_done(folder: Path, name: str) -> Outcome | None:
    """The answer "unchanged" where it can be given without changing or versioning anything; else None.

    Not for imported data, whose source would have to be asked, nor where the page would have to be made again.

    Raises:
        ParamsError, WorkspaceError, BaseModelError, PrefixError, RegistryError, IntegrityError, UnreachableError:
            as `plan`.
    """
    workspace = open_workspace(folder)
    params = workspace.params()
    entry = params.prefix(name)
    dataset = None if entry.data.imported_from else snapshot.current(workspace, entry.data)
    if dataset is None:
        return None
    base = base_model.resolve(entry.base_model, params.base_model(name), workspace.root)
    connection = connect(workspace.root)
    start = warm_start.resolve(connection, workspace.root, name, entry, base)
    run_key = _run_key(dataset, base, entry, lineage.code_identity(), start)
    known = registry.find_run_key(connection, name, run_key)
    if known is None or known.outcome == "incomplete":
        return None
    answer = unchanged(workspace, name, run_key, known)
    return answer if answer.report is not None else None


def validate_data(workspace: Workspace, entry: PrefixEntry, base: ResolvedBase) -> None:
    """Refuse data that could not be prepared, before a version is made of it.

    Raises:
        DataError: every fault found, with file and line.
    """
    from pipeline.data import dataset

    dataset.summarise(
        workspace.root / entry.data.path,
        entry.data,
        entry.task,
        tokenizer=base_model.tokenizer(base),
        window=base_model.window(base),
        prefix_length=entry.prefix.length,
        encoder_decoder=base_model.is_encoder_decoder(base),
    )


def earlier_outcome(plan: Plan) -> Outcome:
    """The answer where the run key is known: what came of it then. A page that is missing is made again.

    Raises:
        RegistryError: the earlier run has lost its record.
        IntegrityError, DataError: see `judge`.
    """
    known = plan.known
    assert known is not None
    answer = unchanged(plan.workspace, plan.name, plan.run_key, known)
    experiment = find_experiment(plan.workspace, plan.name, plan.run_key)
    if answer.report is not None or experiment is None:
        return answer
    judged = replace(judge(plan, experiment.commit), run_id=known.run_id)
    assert answer.earlier is not None
    kept = registry.read_json(connect(plan.workspace.root), known.run_id, recording.LINEAGE_FILE)
    record = LineageRecord.from_json(canonical_json(kept))
    return replace(answer, report=_publish(plan, judged, record, replace(answer, outcome=answer.earlier)))


def unchanged(workspace: Workspace, name: str, run_key: str, known: Known) -> Outcome:
    """The answer as it was recorded; without a report where the page is gone.

    Raises:
        RegistryError: the earlier run has lost its record.
    """
    earlier: Outcome = Outcome(
        **registry.read_json(connect(workspace.root), known.run_id, recording.OUTCOME_FILE)
    )
    page = pages.page_path(workspace.root, name, run_key)
    return replace(
        earlier,
        outcome="unchanged",
        earlier="registered" if known.outcome == "registered" else "rejected",
        version=known.version,
        report=str(page) if page.exists() else None,
    )


def run_experiment(plan: Plan) -> str:
    """Prepare, train and evaluate in one DVC experiment, with live curves in MLflow; the experiment's commit.

    Raises:
        ExperimentError: a stage failed; the MLflow run is marked, and trying again goes on from its checkpoints.
        WorkspaceError, IntegrityError, UnreachableError: see the steps.
    """
    workspace, root = plan.workspace, plan.workspace.root
    connection = connect(workspace.root)
    run_id = start_run(plan, connection)
    with _marking_failure(plan, connection, run_id):
        baseline = write_pins(workspace, plan.name, _pins(plan, connection).to_json())
        send_started(recording.known_at_start(plan, run_id, baseline), stage_output.to_stderr)
        curves = checkpoint_folder(root, plan.run_key) / "curves.jsonl"
        with LiveCurves(connection, run_id, curves):
            experiment = run_dvc_experiment(
                workspace,
                plan.name,
                plan.run_key,
                {WORKSPACE: str(root), **_forkserver(root), **stage_output.terminal()},
                stage_output.to_stderr,
                baseline=baseline,
            )
        push_outputs(workspace, experiment.commit, plan.name)
    return experiment.commit


def start_run(plan: Plan, connection: Registry) -> str:
    """The MLflow run of this retraining, with its parameters and inputs; the same one when it is repeated."""
    run_id = registry.start_run(
        connection,
        plan.name,
        plan.run_key,
        params=lineage.identity_params(plan.entry),
        tags={"prefixline.prefect_run": plan.prefect_run} if plan.prefect_run else {},
    )
    registry.log_base_model(connection, run_id, plan.base)
    return run_id


def judge(plan: Plan, commit: str) -> Judged:
    """Fetch what the experiment made, verify it against its record, and ask the gate.

    Raises:
        IntegrityError: DVC's cache or remote gave other bytes than were recorded.
        DataError: the scored rows are not complete.
    """
    from pipeline.judge import gate

    workspace, name = plan.workspace, plan.name
    connection = connect(workspace.root)
    run_id = start_run(plan, connection)
    with _marking_failure(plan, connection, run_id):
        experiment = find_experiment(workspace, name, plan.run_key)
        if experiment is None or experiment.commit != commit:
            raise WorkspaceError(
                f"{name}: the experiment {commit} is not kept under its run key {plan.run_key}"
            )
        records = {
            record: read_json_at(workspace, commit, f"artifacts/{name}/{record}.json")
            for record in ("prepared", "trained", "evaluated")
        }
        folder = workspace.state / "fetched" / plan.run_key
        fetch_outputs(workspace, commit, name, "train", folder / "train")
        fetch_outputs(workspace, commit, name, "evaluate", folder / "evaluate")
        scored = folder / "evaluate" / "evaluation" / "rows.parquet"
        verdict = gate.judge(scored, plan.entry.gate, plan.entry.task, plan.entry.evaluation)
    return Judged(experiment, run_id, folder, **records, verdict=verdict)


def register(plan: Plan, judged: Judged) -> Outcome:
    """Put everything on the MLflow run, then register what passed; what did not is recorded with the reasons.

    The answer is stored before the registration closes the run, and the page is made after it: a run that counts
    as known always has its answer, and `earlier_outcome` makes the page if this could not. Where another process
    retrained the same at the same time, the one that comes here second finds it done.

    Raises:
        RegistryError, UnreachableError: the registry is as it was, or a repeat completes it.
        OSError: the page could not be written.
    """
    connection = connect(plan.workspace.root)
    run_id = judged.run_id
    with (
        exclusive(plan.workspace.state / "registering" / f"{plan.name}.lock"),
        _marking_failure(plan, connection, run_id),
    ):
        known = registry.find_run_key(connection, plan.name, plan.run_key)
        if known is not None and known.outcome != "incomplete":
            return earlier_outcome(replace(plan, known=known))
        rows = {**judged.prepared["rows"], "total": sum(judged.prepared["rows"].values())}
        record = recording.lineage_record(plan, judged, rows, registry.started_at(connection, run_id))
        outcome = recording.first_outcome(plan, judged, rows["total"])
        recording.log(plan, judged, connection, record, outcome, rows)
        if judged.verdict.passed:
            examples = pages.example_texts(judged.samples)
            version = registration.register(
                connection,
                run_id=run_id,
                record=record,
                adapter=judged.adapter,
                example=examples,
                actor=actor(plan.workspace.root),
            )
            outcome = replace(outcome, version=version.version)
            send_registered(connection, version, stage_output.to_stderr)
        else:
            registry.reject(connection, run_id, judged.verdict.reasons)
            send_rejected(record, stage_output.to_stderr)
        return replace(outcome, report=_publish(plan, judged, record, outcome))


def _publish(plan: Plan, judged: Judged, record: LineageRecord, outcome: Outcome) -> str:
    """Make the page, put it on the run, and keep the row ids, by which the next card says what changed."""
    page = pages.write(plan.workspace.root, recording.report_data(plan, judged, record, outcome))
    registry.log_files(connect(plan.workspace.root), judged.run_id, [page.html, page.plots], "report")
    fetch_file(
        plan.workspace,
        judged.experiment.commit,
        plan.name,
        "prepare",
        f"prepared/{card.ROW_IDS}",
        row_ids_folder(plan.workspace.root, plan.name, plan.dataset.md5) / card.ROW_IDS,
    )
    return str(page.html)


def _pins(plan: Plan, connection: Registry) -> Pins:
    """What the stages use, the adapters they need being fetched and verified on the way."""
    entry, root = plan.entry, plan.workspace.root
    champion = versions.production(connection, plan.name)
    if champion is not None:
        versions.fetch(connection, champion, adapters_folder(root))
    if plan.warm_start is not None:
        warm_start.fetch(connection, root, plan.warm_start)
    return Pins(
        name=plan.name,
        run_key=plan.run_key,
        task=entry.task,
        base_name=entry.base_model,
        base=plan.workspace.params().base_model(plan.name),
        code=plan.code,
        dataset={"md5": plan.dataset.md5, "manifest": dict(plan.dataset.manifest)},
        data=entry.data,
        prefix=entry.prefix,
        training=entry.training,
        evaluation=entry.evaluation,
        previous=previous_dataset(root, plan.name, plan.dataset.md5),
        champion=None if champion is None else _champion(champion),
        warm_start=plan.warm_start,
    )


def _champion(champion: versions.VerifiedVersion) -> Champion:
    base = champion.record.base_model
    return Champion(
        version=champion.version.version,
        adapter_digest=champion.record.adapter_digest,
        splits=SplitParams.model_validate(champion.record.params["data"]["splits"]),
        base_name=base["name"],
        base=BaseModelParams.model_validate({"source": base["source"], "digest": base["digest"]}),
    )


@contextmanager
def _marking_failure(plan: Plan, connection: Registry, run_id: str) -> Iterator[None]:
    """Mark the MLflow run as failed when the block fails, whatever the reason, and say so by OpenLineage; the reason is
    what is raised."""
    head = git.resolve(plan.workspace.root, "HEAD")
    assert head is not None
    known = recording.known_at_start(plan, run_id, head)
    try:
        yield
    except BaseException as error:
        failed = True  # also where MLflow does not answer
        with suppress(RegistryError, UnreachableError):
            failed = registry.interrupt(connection, run_id, f"{type(error).__name__}: {error}")
        if failed:
            send_broken_off(known, error, stage_output.to_stderr)
        raise


def _forkserver(root: Path) -> dict[str, str]:
    """Where the stages find libraries that are imported already, while `prefixline up` runs."""
    path = endpoints(root).forkserver
    return {} if path is None else {FORKSERVER: path}
