"""What is in a bundle, by the formats' own libraries and by hashlib; and what is refused before anything is written."""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
import subprocess
import tempfile
import uuid
from pathlib import Path
from typing import Any

import pytest
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from google.protobuf.json_format import MessageToDict, Parse, ParseDict
from huggingface_hub import ModelCard
from in_toto_attestation.predicates.provenance.v1.provenance_pb2 import Provenance
from in_toto_attestation.v1.statement import Statement
from in_toto_attestation.v1.statement_pb2 import Statement as StatementMessage
from openlineage.client import facet_v2
from openlineage.client.event_v2 import InputDataset, Job, OutputDataset, Run, RunEvent, RunState
from peft import PeftModel
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from pipeline.export.model_card import model_card
from pipeline.ledger.registration import enter
from pipeline.openlineage.run_events import run_events
from pipeline.register import versions
from pipeline.register.lineage import LineageRecord
from pipeline.serve.serving import Predictor
from tests import mlflow_world, records, tiny
from tests.export import world
from tests.export.world import NAME, World, files, sha

ADAPTER = ["adapter_config.json", "adapter_model.safetensors"]
OWN = ["README.md", "SHA256SUMS", "bundle.json", "ledger.jsonl", "lineage.json", "openlineage.jsonl"]
MODEL = [
    "MLmodel", "artifacts/adapter/adapter_config.json", "artifacts/adapter/adapter_model.safetensors",
    "artifacts/lineage.json", "conda.yaml", "input_example.json", "manifest.json", "python_env.yaml", "requirements.txt",
    "serving_input_example.json", "serving_model.py",
]  # fmt: skip


def record_of(bundle: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((bundle / "lineage.json").read_bytes())
    return found


def digests(bundle: Path, names: list[str]) -> dict[str, str]:
    return {name: sha((bundle / name).read_bytes()) for name in names}


def test_a_bundle_holds_these_files_and_a_sum_of_each_that_sha256sum_checks(made: World) -> None:
    model = [f"model/{name}" for name in MODEL]
    assert files(made.bundle) == sorted([*ADAPTER, *OWN, *model, "provenance.dsse.json"])
    assert files(made.unsigned) == sorted([*ADAPTER, *OWN, *model, "provenance.json"])
    names = [name for name in files(made.bundle) if name != "SHA256SUMS"]
    lines = (made.bundle / "SHA256SUMS").read_text().splitlines()
    assert dict(reversed(line.split("  ")) for line in lines) == digests(made.bundle, names)
    check = ["sha256sum", "--check", "--strict", "SHA256SUMS"]
    assert subprocess.run(check, cwd=made.bundle, check=False, capture_output=True).returncode == 0


def test_model_and_record_are_byte_for_byte_the_registered_ones(made: World) -> None:
    uri = made.registry.client.get_model_version_download_uri(NAME, "1")
    registered = Path(uri.removeprefix("file://"))
    assert digests(made.bundle / "model", MODEL) == digests(registered, files(registered))
    assert digests(made.bundle, ADAPTER) == digests(registered / "artifacts/adapter", ADAPTER)
    assert sha((made.bundle / "lineage.json").read_bytes()) == world.tag(
        made.registry, "1", versions.LINEAGE_DIGEST
    )
    facts = json.loads((made.bundle / "bundle.json").read_bytes())
    assert facts["manifest_digest"] == world.tag(made.registry, "1", versions.MANIFEST_DIGEST)
    assert (facts["prefix"], facts["version"], facts["stage"]) == (NAME, "1", "production")


def test_the_ledger_is_the_whole_chain_as_mlflow_keeps_it(made: World) -> None:
    pointer = made.registry.client.get_experiment_by_name(f"prefixline.ledger.{NAME}")
    params = made.registry.client.get_run(pointer.tags["prefixline.ledger"]).data.params
    lines = (made.bundle / "ledger.jsonl").read_bytes().split(b"\n")
    assert lines == [*(params[key].encode() for key in sorted(params)), b""]
    assert len(lines) == 6
    assert json.loads(lines[4])["previous"] == hashlib.sha256(lines[3]).hexdigest()
    facts = json.loads((made.bundle / "bundle.json").read_bytes())
    assert facts["ledger"] == {"epoch": 5, "head": hashlib.sha256(lines[4]).hexdigest()}


@pytest.mark.parametrize("form", ["bundle", "peft"])
def test_peft_loads_the_folder_and_answers_as_the_registered_model_does(
    made: World, form: str, tmp_path: Path
) -> None:
    folder = made.bundle
    if form == "peft":
        folder = tmp_path / "adapter"
        made.run("export", f"{NAME}:1", "--format", "peft", "--out", str(folder))
        assert digests(folder, files(folder)) == digests(made.bundle, ADAPTER)
    texts = mlflow_world.TEXTS
    record = LineageRecord.from_json((made.bundle / "lineage.json").read_bytes())
    ours = Predictor(record, made.bundle / "model/artifacts/adapter", made.root)(texts)
    base = AutoModelForSequenceClassification.from_pretrained(made.base, num_labels=3)
    theirs = PeftModel.from_pretrained(base, folder).eval()
    tokens = AutoTokenizer.from_pretrained(made.base)(texts, padding=True, return_tensors="pt")
    tokens = {"input_ids": tokens["input_ids"], "attention_mask": tokens["attention_mask"]}
    with torch.no_grad():
        expected = theirs(**tokens).logits.double().softmax(-1)
    told = torch.tensor(ours.iloc[:, 1:].to_numpy())
    assert expected.std() > 0.05
    assert (told - expected).abs().max() < 1e-5


def test_the_card_says_what_the_hub_reads(made: World) -> None:
    card = ModelCard.load(made.bundle / "README.md")
    data = card.data
    assert (data.base_model, data.library_name, data.pipeline_tag) == ("tiny", "peft", "text-classification")
    assert data.metrics == ["accuracy", "f1"]
    assert data.tags == ["prefix-tuning", "prefixline"]
    found = [(r.metric_type, r.metric_value, r.dataset_split, r.dataset_revision) for r in data.eval_results]
    assert found == [("accuracy", 0.9125, "test", "d" * 32), ("f1", 0.5, "test", "d" * 32)]
    assert "it stood in production" in card.text
    assert "| accuracy | 0.5 | 0.9125 |" in card.text
    # A path is anybody's words: it makes no cell and no code of its own.
    assert "| dataset | data/rev\\|iews\\`.jsonl, md5 " in card.text


@pytest.mark.parametrize(
    ("task_type", "peft_type", "task", "library", "loads"),
    [
        ("CAUSAL_LM", "PREFIX_TUNING", "text-generation", "peft", "AutoModelForCausalLM"),
        ("SEQ_2_SEQ_LM", "PREFIXLINE", "text2text-generation", "prefixline", "PEFT has no prefix"),
    ],
)
def test_the_card_of_a_hub_model_names_it_and_only_what_can_load_it(
    task_type: str, peft_type: str, task: str, library: str, loads: str
) -> None:
    source = {"hub": "some/model", "revision": "a" * 40}
    base = {"name": "mine", "digest": "b" * 64, "source": source, "files": {}}
    config = {"task_type": task_type, "peft_type": peft_type, "num_virtual_tokens": 7}
    dataset = {**records.lineage().dataset, "labels": None}
    text = model_card(records.lineage(base_model=base, dataset=dataset), config, "3", None)
    card = ModelCard(text)
    assert (card.data.base_model, card.data.pipeline_tag, card.data.library_name) == (
        "some/model",
        task,
        library,
    )
    assert loads in card.text
    assert (f'from_pretrained("some/model", revision="{"a" * 40}")' in card.text) is (library == "peft")
    assert "it held no stage" in card.text


def facets(event: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Every facet of an event, under its name in the standard's schema."""
    holders = [event["run"]["facets"], event["job"]["facets"]]
    for each in (*event["inputs"], *event["outputs"]):
        holders += [each["facets"], each.get("inputFacets", {}), each.get("outputFacets", {})]
    return [pair for holder in holders for pair in holder.items()]


def test_the_events_are_openlineage_as_its_library_reads_it(made: World) -> None:
    lines = (made.unsigned / "openlineage.jsonl").read_text().splitlines()
    events = [json.loads(line) for line in lines]
    modules = [
        module for name, module in vars(facet_v2).items() if name.endswith(("_run", "_job", "_dataset"))
    ]
    classes = {
        kind.__name__: kind for module in modules for kind in vars(module).values() if isinstance(kind, type)
    }
    seen = set()
    for event in events:
        for name, facet in facets(event):
            kind = classes[facet["_schemaURL"].split("/")[-1]]
            fields = {key: value for key, value in facet.items() if not key.startswith("_")}
            assert (
                kind(**fields)._get_schema() == facet["_schemaURL"]
            )  # which refuses what the schema does not know
            seen.add(name)
        again = RunEvent(
            eventTime=event["eventTime"], producer=event["producer"], eventType=RunState(event["eventType"]),
            run=Run(**event["run"]), job=Job(**event["job"]),
            inputs=[InputDataset(**each) for each in event["inputs"]],
            outputs=[OutputDataset(**each) for each in event["outputs"]],
        )  # fmt: skip
        assert again.schemaURL == event["schemaURL"]
    assert seen == {
        "processing_engine", "executionParameters", "tags", "jobType", "sourceCodeLocation", "version", "datasetType",
        "inputStatistics", "outputStatistics",
    }  # fmt: skip


def test_the_events_say_what_went_in_and_what_came_out(made: World) -> None:
    start, complete = map(json.loads, (made.unsigned / "openlineage.jsonl").read_text().splitlines())
    record = record_of(made.unsigned)
    registered = json.loads((made.unsigned / "ledger.jsonl").read_bytes().split(b"\n")[1])
    assert (start["eventType"], complete["eventType"]) == ("START", "COMPLETE")
    assert (start["eventTime"], complete["eventTime"]) == (record["created"], registered["time"])
    address = f"mlflow:/runs/{record['runs']['mlflow']}"
    assert start["run"] == complete["run"]
    assert start["run"]["runId"] == str(uuid.uuid5(uuid.NAMESPACE_URL, address))
    assert start["inputs"] == complete["inputs"]
    inputs = [(i["namespace"], i["name"], i["facets"]["version"]["datasetVersion"]) for i in start["inputs"]]
    assert inputs == [
        ("dvc", record["dataset"]["path"], "d" * 32),
        ("path", "base", record["base_model"]["digest"]),
        ("mlflow", NAME, "1"),
    ]
    assert start["outputs"] == []
    (output,) = complete["outputs"]
    assert (output["namespace"], output["name"]) == ("mlflow", NAME)
    assert output["facets"]["version"]["datasetVersion"] == "2"
    tags = {tag["key"]: tag["value"] for tag in output["facets"]["tags"]["tags"]}
    assert tags == {
        "adapter_digest": record["adapter_digest"],
        "lineage_digest": sha((made.unsigned / "lineage.json").read_bytes()),
    }
    assert complete["job"]["facets"]["sourceCodeLocation"]["version"] == "9" * 40
    parameters = complete["run"]["facets"]["executionParameters"]["parameters"]
    assert {"key": "evaluation.batch_size", "value": "2"} in parameters


@pytest.mark.parametrize(
    ("source", "start", "expected"),
    [
        ({"hub": "some/model", "revision": "a" * 40}, None, [("hub", "some/model")]),
        ({"package": "weights", "folder": "minilm"}, None, [("package", "weights")]),
        (
            {"path": "base"},
            {"adapter": "adapters/mine", "adapter_digest": "5" * 64},
            [("path", "base"), ("path", "adapters/mine")],
        ),
    ],
)
def test_a_base_or_an_adapter_from_anywhere_is_an_input(
    source: dict[str, str], start: dict[str, str] | None, expected: list[tuple[str, str]]
) -> None:
    base = {"name": "mine", "digest": "b" * 64, "source": source, "files": {}}
    event, _ = run_events(
        records.lineage(base_model=base, warm_start=start), "1", "2024-03-01T00:00:00+00:00"
    )
    assert [(each["namespace"], each["name"]) for each in event["inputs"]][1:] == expected


def test_no_file_says_where_on_this_machine_it_came_from(made: World) -> None:
    for name in files(made.bundle):
        content = (made.bundle / name).read_bytes()
        for folder in (made.root.parent, Path(tempfile.gettempdir()), Path(__file__).parents[2], Path.home()):
            assert f"{folder}/".encode() not in content, name


def test_the_envelope_is_signed_over_the_pre_authentication_encoding_of_dsse(made: World) -> None:
    envelope = json.loads((made.bundle / "provenance.dsse.json").read_bytes())
    (signature,) = envelope["signatures"]
    assert envelope["payloadType"] == "application/vnd.in-toto+json"
    assert signature["keyid"] == made.public
    payload, kind = base64.b64decode(envelope["payload"]), envelope["payloadType"].encode()
    encoded = b" ".join([b"DSSEv1", str(len(kind)).encode(), kind, str(len(payload)).encode(), payload])
    key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(made.public))
    key.verify(base64.b64decode(signature["sig"]), encoded)


@pytest.mark.parametrize("signed", [True, False])
def test_the_statement_is_in_toto_and_slsa_and_names_every_file_by_its_sha256(
    made: World, signed: bool
) -> None:
    bundle = made.bundle if signed else made.unsigned
    if signed:
        payload = base64.b64decode(json.loads((bundle / "provenance.dsse.json").read_bytes())["payload"])
    else:
        payload = (bundle / "provenance.json").read_bytes()
    message = Parse(payload, StatementMessage())
    Statement.copy_from_pb(message).validate()
    assert (message.type, message.predicate_type) == (
        "https://in-toto.io/Statement/v1",
        "https://slsa.dev/provenance/v1",
    )
    assert {each.name: each.digest["sha256"] for each in message.subject} == digests(bundle, ADAPTER)
    provenance = ParseDict(MessageToDict(message.predicate), Provenance())
    rest = {"SHA256SUMS", "provenance.dsse.json", "provenance.json", *ADAPTER}
    byproducts = {each.name: each.digest["sha256"] for each in provenance.run_details.byproducts}
    assert byproducts == digests(bundle, [name for name in files(bundle) if name not in rest])
    record, definition = record_of(bundle), provenance.build_definition
    assert json.loads(payload)["predicate"]["buildDefinition"]["externalParameters"] == {
        "prefix": NAME,
        "params": record["params"],
    }
    named = {each.name: dict(each.digest) for each in definition.resolved_dependencies}
    base = {f"base_model/{name}": {"sha256": value} for name, value in record["base_model"]["files"].items()}
    assert len(base) == 4
    start = {} if signed else {"warm_start": {"sha256": record["warm_start"]["adapter_digest"]}}
    assert named == {
        "dataset/rev|iews`.jsonl": {"sha256": "f" * 64},
        **base,
        "code": {"gitCommit": "9" * 40},
        "prefixline": {"sha256": "8" * 64},
        "lock.json": {"sha256": record["environment"]["lock"]},
        **start,
    }
    assert provenance.run_details.metadata.invocation_id == record["runs"]["mlflow"]
    assert provenance.run_details.metadata.started_on.ToJsonString() == "2024-02-29T12:00:00Z"


def test_equal_versions_make_equal_bundles(made: World, tmp_path: Path) -> None:
    made.run("export", f"{NAME}:1", "--out", str(tmp_path / "again"), "--key", str(made.key))
    names = files(made.bundle)
    assert digests(tmp_path / "again", files(tmp_path / "again")) == digests(made.bundle, names)


def test_json_says_where_it_is_and_who_signed(
    made: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    told = json.loads(made.run("export", NAME, "--json", "--key", str(made.key)).stdout)
    written = [path for path in Path(f"{NAME}-2").rglob("*") if path.is_file()]
    assert told == {
        "name": NAME, "version": "2", "stage": "staging", "folder": f"{NAME}-2", "files": len(written),
        "bytes": sum(path.stat().st_size for path in written), "signed_by": made.public,
    }  # fmt: skip
    said = made.run("export", f"{NAME}@production", "--format", "peft").stdout
    assert f"{NAME} version 1: 2 files" in said
    assert files(Path(f"{NAME}-1-peft")) == ADAPTER


def test_it_is_signed_with_the_key_that_stages_are_changed_with_where_none_is_named(
    made: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFIXLINE_KEY", str(made.key))
    told = json.loads(made.run("export", NAME, "--out", str(tmp_path / "out"), "--json").stdout)
    assert told["signed_by"] == made.public


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([f"{NAME}:7"], "no version '7'; available: 1 @production, 2 @staging"),
        ([f"{NAME}@candidate"], "no version 'candidate'; available: 1 @production, 2 @staging"),
        (["nothing"], "nothing: no version is registered under this name"),
        (["../x"], "'../x' is no version's name; expected NAME, NAME:NUMBER or NAME@STAGE"),
    ],
)
def test_a_version_that_is_not_there_is_refused_with_those_that_are(
    made: World, arguments: list[str], message: str, tmp_path: Path
) -> None:
    for form in ("bundle", "peft"):
        done = made.run("export", *arguments, "--format", form, "--out", str(tmp_path / "out"), expect=1)
        assert message in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("form", ["bundle", "peft"])
@pytest.mark.parametrize("kind", ["folder", "file", "link"])
def test_what_is_there_already_is_not_written_over(made: World, form: str, kind: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    {"folder": out.mkdir, "file": out.touch, "link": lambda: out.symlink_to("nowhere")}[kind]()
    done = made.run("export", f"{NAME}:1", "--format", form, "--out", str(out), expect=1)
    assert f"{out}: is there already, and nothing is written over" in done.stderr
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize("form", ["bundle", "peft"])
def test_what_came_while_it_was_filled_is_not_written_over_either(
    made: World, form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"

    def copytree(*arguments: Any, **named: Any) -> Any:
        (out / "theirs").mkdir(parents=True, exist_ok=True)
        return real(*arguments, **named)

    real = shutil.copytree
    monkeypatch.setattr(shutil, "copytree", copytree)
    done = made.run("export", f"{NAME}:1", "--format", form, "--out", str(out), expect=1)
    assert f"{out}: is there already, and nothing is written over" in done.stderr
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "theirs"]


def test_a_folder_below_a_file_is_refused(made: World, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = made.run("export", NAME, "--out", str(tmp_path / "file/out"), expect=1)
    assert f"{tmp_path / 'file'} is a file; expected a folder" in done.stderr


def test_a_bad_key_is_refused_before_anything_is_written(made: World, tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    bad = tmp_path / "bad.pem"
    assert "no-such.pem" in made.run("export", NAME, "--out", out, "--key", "no-such.pem", expect=1).stderr
    bad.write_text("not a key")
    bad.chmod(0o600)
    assert "no private key" in made.run("export", NAME, "--out", out, "--key", str(bad), expect=1).stderr
    both = ["--format", "peft", "--key", str(made.key)]
    assert "--format peft has none" in made.run("export", NAME, "--out", out, *both, expect=2).stderr
    assert list(tmp_path.iterdir()) == [bad]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "artifacts/adapter/adapter_model.safetensors",
            "artifacts/adapter/adapter_model.safetensors: SHA-256 is",
        ),
        ("MLmodel", "MLmodel: SHA-256 is"),
        ("manifest.json", "manifest.json: SHA-256 is"),
        ("artifacts/lineage.json", "its lineage record is not the one it was registered with"),
    ],
)
def test_a_model_that_is_not_the_registered_one_is_not_given_out(
    made: World, name: str, message: str, tmp_path: Path
) -> None:
    uri = made.registry.client.get_model_version_download_uri(NAME, "2")
    path = Path(uri.removeprefix("file://")) / name
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    try:
        for form in ("bundle", "peft"):
            done = made.run("export", f"{NAME}:2", "--format", form, "--out", str(tmp_path / "out"), expect=1)
            assert message in done.stderr
    finally:
        path.write_bytes(content)
    assert list(tmp_path.iterdir()) == []


def test_a_bundle_that_would_not_verify_is_not_written(made: World, tmp_path: Path) -> None:
    """Here because its record is of another name than it is registered under."""
    client = made.registry.client
    there = client.get_model_version(NAME, "1")
    client.create_registered_model("stranger")
    client.create_model_version("stranger", there.source, run_id=there.run_id, tags=dict(there.tags))
    record = LineageRecord.from_json((made.bundle / "lineage.json").read_bytes())
    enter(
        made.registry, "stranger", "1", lineage_digest=record.digest, verdict_digest=record.verdict_digest,
        actor=mlflow_world.ACTOR, reason="a test",
    )  # fmt: skip
    done = made.run("export", "stranger:1", "--out", str(tmp_path / "out"), expect=1)
    assert "stranger version 1 is not what was recorded:" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_versions_by_hand_duplicates_and_those_in_no_ledger_are_refused(made: World, tmp_path: Path) -> None:
    client = made.registry.client
    there = client.get_model_version(NAME, "1")
    number = client.create_model_version(
        NAME, there.source, run_id=there.run_id, tags=dict(there.tags)
    ).version
    reference, out = f"{NAME}:{number}", str(tmp_path / "out")
    try:
        refused = made.run("export", reference, "--out", out, expect=1).stderr
        assert f"{NAME} version {number} is in no ledger: its registration was cut off" in refused
        client.set_model_version_tag(NAME, number, "prefixline.duplicate_of", "1")
        refused = made.run("export", reference, "--out", out, expect=1).stderr
        assert f"{NAME} version {number} is a duplicate; export the one that counts: {NAME}:1" in refused
        for tag in there.tags:
            client.delete_model_version_tag(NAME, number, tag)
        for form in ("bundle", "peft"):
            refused = made.run("export", reference, "--format", form, "--out", out, expect=1).stderr
            assert f"{NAME} version {number}: has no lineage; it was not registered by prefixline" in refused
    finally:
        client.delete_model_version(NAME, number)
    assert list(tmp_path.iterdir()) == []


def test_a_prefix_that_peft_has_not_is_given_out_as_a_bundle_only(made: World, tmp_path: Path) -> None:
    base = mlflow_world.base_record(tiny.tiny_bart(made.root / "bart"), made.root)
    adapter = mlflow_world.adapter(base, "generation", made.root, tmp_path / "made/adapter")
    world.register(made.registry, adapter, base, "generation", name="answers")
    out = tmp_path / "out"
    done = made.run("export", "answers", "--format", "peft", "--out", str(out), expect=1)
    assert "answers version 1: PEFT has no prefix for such a base model; --format bundle" in done.stderr
    assert not out.exists()
    made.run("export", "answers", "--out", str(out))
    assert world.faults(out) == set()
    shutil.rmtree(made.root / "bart")


def test_a_head_on_the_mean_is_given_out_as_a_bundle_that_serves_only(made: World, tmp_path: Path) -> None:
    base = mlflow_world.base_record(tiny.tiny_encoder(made.root / "mean"), made.root)
    adapter = mlflow_world.adapter(
        base, "classification", made.root, tmp_path / "made/adapter", pooling="mean"
    )
    world.register(made.registry, adapter, base, name="means")
    out = tmp_path / "out"
    done = made.run("export", "means", "--format", "peft", "--out", str(out), expect=1)
    assert "means version 1: PEFT has no head on the mean of the tokens; --format bundle" in done.stderr
    assert not out.exists()
    made.run("export", "means", "--out", str(out))
    assert world.faults(out) == set()
    assert "or no such head; prefixline loads it" in (out / "README.md").read_text()
    shutil.rmtree(made.root / "mean")


def test_an_adapter_with_a_file_of_a_bundles_own_name_is_refused(made: World, tmp_path: Path) -> None:
    adapter = tmp_path / "made/adapter"
    shutil.copytree(made.unsigned, adapter, ignore=lambda _, names: [n for n in names if n not in ADAPTER])
    (adapter / "README.md").write_text("mine")
    world.register(made.registry, adapter, name="odd")
    done = made.run("export", "odd", "--out", str(tmp_path / "out"), expect=1)
    assert "README.md: the adapter has a file of this name; a bundle needs it for its own" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["made"]
