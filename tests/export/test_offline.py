"""A bundle by itself: sound where nothing is at hand, and whatever is changed in it is found and named."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from pipeline.digest import canonical_json
from pipeline.keys import make_key
from pipeline.ledger.tainting import taint
from tests import mlflow_world
from tests.export import world
from tests.export.world import NAME, World, copied, edit, faults, files, rewrite, sha, sum_up

TRIED = 20
"""Files of a bundle, the model's among them."""

ALONE = """\
import socket, sys
def refuse(*arguments, **named): raise AssertionError("a socket was used")
for name in ("connect", "connect_ex", "bind", "sendto"): setattr(socket.socket, name, refuse)
socket.getaddrinfo = socket.create_connection = refuse
import atexit
atexit.register(lambda: print(sorted({"mlflow", "torch", "dvc", "prefect"} & set(sys.modules)), file=sys.stderr))
from pipeline.cli import main
main()
"""


@pytest.fixture(scope="module")
def kept(made: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the signed bundle, which every test puts back as it was."""
    return copied(made.bundle, tmp_path_factory.mktemp("kept"))


@pytest.fixture
def signed(made: World, kept: Path) -> Iterator[Path]:
    yield kept
    shutil.rmtree(kept)
    shutil.copytree(made.bundle, kept)


@pytest.fixture
def unsigned(made: World, tmp_path: Path) -> Path:
    return copied(made.unsigned, tmp_path)


def test_a_bundle_alone_is_sound_without_a_workspace_or_a_socket(made: World, tmp_path: Path) -> None:
    bundle = copied(made.bundle, tmp_path)
    elsewhere = tmp_path / "empty"
    elsewhere.mkdir()
    keep = ("PATH", "PYTHONPATH", "LANG")
    done = subprocess.run(
        [sys.executable, "-c", ALONE, "verify", "--offline", str(bundle), "--public-key", made.public, "--json"],
        cwd=elsewhere,
        env={"HOME": str(elsewhere), **{key: os.environ[key] for key in keep if key in os.environ}},
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["sound"]
    assert found["signed_by"] == [made.public]
    (version,) = found["versions"]
    assert (version["name"], version["version"], version["stages"]) == (NAME, "1", ["production"])
    assert found["files"] == TRIED
    assert done.stderr.splitlines()[-1] == "[]"  # nor is any of what a workspace needs imported
    assert list(elsewhere.iterdir()) == []


def flipped(content: bytes, place: int) -> bytes:
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


def test_every_change_of_every_file_is_found(made: World, signed: Path) -> None:
    names = files(signed)
    tried = dict.fromkeys(("flipped", "removed", "symlink", "folder", "swapped", "added"), 0)

    def found(what: str, *where: str) -> None:
        told = faults(signed)
        # SHA256SUMS has no sum: it is found by its form, or by every sum that is then wrong.
        assert set(where) <= {place for _, _, place in told} or (told and "SHA256SUMS" in where), (
            what,
            where,
        )
        tried[what] += 1

    for name in names:
        path, content = signed / name, (signed / name).read_bytes()
        for place in (0, len(content) // 2, len(content) - 1):
            path.write_bytes(flipped(content, place))
            found("flipped", name)
        path.unlink()
        found("removed", name)
        path.mkdir()
        found("folder", name)
        path.rmdir()
        path.symlink_to(made.bundle / name)
        found("symlink", name)
        path.unlink()
        path.write_bytes(content)
    for one, other in pairwise([*names, names[0]]):
        first, second = (signed / one).read_bytes(), (signed / other).read_bytes()
        assert first != second
        (signed / one).write_bytes(second)
        (signed / other).write_bytes(first)
        found("swapped", one, other)
        (signed / one).write_bytes(first)
        (signed / other).write_bytes(second)
    for name in ("extra", "model/extra", "model/artifacts/adapter/extra"):
        (signed / name).write_text("")
        found("added", name)
        (signed / name).unlink()
    assert faults(signed) == set()
    assert tried == {
        "flipped": 3 * TRIED, "removed": TRIED, "symlink": TRIED, "folder": TRIED, "swapped": TRIED, "added": 3,
    }  # fmt: skip


def test_every_change_is_found_though_the_sums_were_made_anew(signed: Path) -> None:
    names = [name for name in files(signed) if name != "SHA256SUMS"]
    tried = 0
    for name in names:
        path, content = signed / name, (signed / name).read_bytes()
        for place in (0, len(content) // 2, len(content) - 1):
            rewrite(signed, name, lambda content, place=place: flipped(content, place))
            assert faults(signed), (name, place)
            path.write_bytes(content)
            tried += 1
        path.unlink()
        sum_up(signed)
        assert faults(signed), name
        path.write_bytes(content)
        tried += 1
    for name in ("extra", "model/extra"):
        (signed / name).write_text("")
        sum_up(signed)
        assert ("tampered", "bundle", name) in faults(signed)
        (signed / name).unlink()
        tried += 1
    sum_up(signed)
    assert faults(signed) == set()
    assert tried == 4 * (TRIED - 1) + 2


def lines(change: Callable[[list[bytes]], object]) -> Callable[[bytes], bytes]:
    def changed(content: bytes) -> bytes:
        read = content.splitlines()
        change(read)
        return b"".join(line + b"\n" for line in read)

    return changed


def reason(events: list[bytes]) -> None:
    events[2] = edit(lambda event: event.update(reason="another"))(events[2])


BROKEN = ("tampered", "ledger", "ledger.jsonl")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lines(reason), {BROKEN}),
        (lines(lambda events: events.pop(2)), {BROKEN}),
        (lines(lambda events: events.insert(2, events.pop(3))), {BROKEN}),
        (lines(lambda events: events.append(events[-1])), {BROKEN}),
        (lambda content: content[:-1], {BROKEN}),
        (lambda content: b"", {("missing", "ledger", "registration of version 1")}),
        (
            lines(lambda events: events.pop()),
            {("out of step", "bundle", f"bundle.json: ledger: {what}") for what in ("epoch", "head")},
        ),
        (
            lines(lambda events: (events.pop(), events.pop())),
            {("out of step", "bundle", f"bundle.json: {what}") for what in ("ledger: epoch", "ledger: head", "stage")},
        ),
    ],
)  # fmt: skip
def test_a_ledger_that_was_edited_cut_or_put_in_another_order_is_found(
    signed: Path, change: Callable[[bytes], bytes], expected: set[tuple[str, str, str]]
) -> None:
    rewrite(signed, "ledger.jsonl", change)
    assert expected <= faults(signed)


def test_an_event_that_contradicts_the_others_is_found_though_the_chain_is_whole(signed: Path) -> None:
    def again(events: list[bytes]) -> None:
        last = json.loads(events[0]) | {"epoch": 6, "previous": sha(events[-1]), "id": "0" * 32}
        events.append(canonical_json(last))

    rewrite(signed, "ledger.jsonl", lines(again))
    assert BROKEN in faults(signed)


@pytest.mark.parametrize(
    ("name", "change", "fault"),
    [
        ("bundle.json", lambda f: f.update(stage="staging"), ("out of step", "bundle", "bundle.json: stage")),
        ("bundle.json", lambda f: f.update(version="2"), ("out of step", "ledger", "epoch 2: lineage record")),
        ("bundle.json", lambda f: f.update(version="9"), ("missing", "ledger", "registration of version 9")),
        ("bundle.json", lambda f: f.update(prefix="other"), ("out of step", "bundle", "bundle.json: prefix")),
        ("bundle.json", lambda f: f.update(format_version=2), ("out of step", "bundle", "bundle.json: format_version")),
        ("bundle.json", lambda f: f.update(more=1), ("out of step", "bundle", "bundle.json: more")),
        ("bundle.json", lambda f: f.pop("stage"), ("out of step", "bundle", "bundle.json: stage")),
        ("lineage.json", lambda r: r["metrics"]["prefix"].update(accuracy=1.0), ("out of step", "ledger", "epoch 1: lineage record")),
        ("lineage.json", lambda r: r["verdict"].update(criteria=[1]), ("out of step", "ledger", "epoch 1: verdict")),
        ("lineage.json", lambda r: r["params"].update(task="generation"), ("out of step", "lineage", "lineage.json: run_key")),
        ("lineage.json", lambda r: r.update(format_version=2), ("tampered", "lineage", "lineage.json")),
        ("lineage.json", lambda r: r["dataset"].update(rows={}), ("tampered", "lineage", "lineage.json")),
        ("model/manifest.json", lambda m: m.update(MLmodel="0" * 64), ("out of step", "bundle", "bundle.json: manifest_digest")),
        ("model/manifest.json", lambda m: m.update(MLmodel=1), ("tampered", "artefact", "model/manifest.json")),
        ("model/manifest.json", lambda m: m.pop("artifacts/lineage.json"), ("out of step", "artefact", "model/artifacts/lineage.json")),
    ],
)  # fmt: skip
def test_what_contradicts_the_rest_is_named(
    signed: Path, name: str, change: Callable[[Any], object], fault: tuple[str, str, str]
) -> None:
    rewrite(signed, name, edit(change))
    assert fault in faults(signed)


def test_an_adapter_replaced_everywhere_is_not_the_records(signed: Path) -> None:
    weights = b"other weights"
    for name in ("adapter_model.safetensors", "model/artifacts/adapter/adapter_model.safetensors"):
        (signed / name).write_bytes(weights)
    manifest = edit(lambda m: m.update({"artifacts/adapter/adapter_model.safetensors": sha(weights)}))
    rewrite(signed, "model/manifest.json", manifest)
    told = faults(signed)
    assert ("tampered", "adapter", "adapter_model.safetensors") in told
    assert ("out of step", "artefact", "model/artifacts/adapter/adapter_model.safetensors") in told


def restate(bundle: Path) -> None:
    """Make the bare statement say what the files now are."""

    def update(statement: Any) -> None:
        for each in (*statement["subject"], *statement["predicate"]["runDetails"]["byproducts"]):
            each["digest"]["sha256"] = sha((bundle / each["name"]).read_bytes())

    rewrite(bundle, "provenance.json", edit(update))


def test_a_file_of_the_model_is_its_manifests_whatever_sums_and_statement_say(unsigned: Path) -> None:
    path = unsigned / "model/MLmodel"
    path.write_bytes(flipped(path.read_bytes(), 0))
    restate(unsigned)
    assert faults(unsigned) == {("tampered", "artefact", "model/MLmodel")}


EVENTS: list[tuple[Callable[[Any], object], str]] = [
    (lambda e: e["inputs"][0]["facets"]["version"].update(datasetVersion="1" * 32), "0: inputs: 0: facets: version: datasetVersion"),
    (lambda e: e["inputs"][1].update(name="another base"), "0: inputs: 1: name"),
    (lambda e: e["inputs"].pop(), "0: inputs"),
    (lambda e: e["job"]["facets"]["sourceCodeLocation"].update(version="0" * 40), "0: job: facets: sourceCodeLocation: version"),
    (lambda e: e["run"].update(runId="0" * 8), "0: run: runId"),
    (lambda e: e.update(eventTime="2000-01-01T00:00:00Z"), "0: eventTime"),
    (lambda e: e.update(odd=1), "0: odd"),
    (lambda e: e.pop("inputs"), "0: inputs"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "where"), EVENTS)
def test_openlineage_events_that_say_something_else_than_the_record_are_found(
    unsigned: Path, change: Callable[[Any], object], where: str
) -> None:
    def first(events: list[bytes]) -> None:
        events[0] = edit(change)(events[0])

    rewrite(unsigned, "openlineage.jsonl", lines(first))
    restate(unsigned)
    assert faults(unsigned) == {("out of step", "OpenLineage", f"openlineage.jsonl: {where}")}


@pytest.mark.parametrize("change", [lambda c: c[:-1], lambda c: b" " + c, lambda c: c.replace(b"{", b"[", 1)])
def test_openlineage_events_that_are_not_canonical_json_are_found(
    unsigned: Path, change: Callable[[bytes], bytes]
) -> None:
    rewrite(unsigned, "openlineage.jsonl", change)
    restate(unsigned)
    assert faults(unsigned) == {("tampered", "OpenLineage", "openlineage.jsonl")}


def test_events_written_by_another_release_of_the_standard_are_as_good(unsigned: Path) -> None:
    def older(content: bytes) -> bytes:
        assert content.count(b"/2-0-2/OpenLineage.json") == 2
        return content.replace(b"/2-0-2/OpenLineage.json", b"/2-0-1/OpenLineage.json")

    rewrite(unsigned, "openlineage.jsonl", older)
    restate(unsigned)
    assert faults(unsigned) == set()


def definition(statement: Any) -> Any:
    return statement["predicate"]["buildDefinition"]


STATEMENTS: list[tuple[Callable[[Any], object], str]] = [
    (lambda s: s["subject"][0]["digest"].update(sha256="0" * 64), "subject: 0: digest: sha256"),
    (lambda s: s["subject"].pop(), "subject"),
    (lambda s: s.update(predicateType="https://slsa.dev/provenance/v2"), "predicateType"),
    (lambda s: s.update(_type="https://in-toto.io/Statement/v2"), "_type"),
    (lambda s: definition(s)["externalParameters"]["params"].update(task="other"), "predicate: buildDefinition: externalParameters: params: task"),
    (lambda s: definition(s)["resolvedDependencies"][0].update(name="other"), "predicate: buildDefinition: resolvedDependencies: 0: name"),
    (lambda s: definition(s)["resolvedDependencies"].pop(), "predicate: buildDefinition: resolvedDependencies"),
    (lambda s: definition(s)["internalParameters"].update(version="1"), "predicate: buildDefinition: internalParameters: version"),
    (lambda s: s["predicate"]["runDetails"]["metadata"].update(invocationId="0"), "predicate: runDetails: metadata: invocationId"),
    (lambda s: s["predicate"]["runDetails"]["byproducts"].pop(0), "predicate: runDetails: byproducts"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "where"), STATEMENTS)
def test_a_statement_that_says_something_else_than_record_and_files_is_found(
    unsigned: Path, change: Callable[[Any], object], where: str
) -> None:
    rewrite(unsigned, "provenance.json", edit(change))
    assert faults(unsigned) == {("out of step", "provenance", f"statement: {where}")}


def test_a_file_that_sums_and_statement_agree_on_is_still_one_too_many(unsigned: Path) -> None:
    (unsigned / "extra.py").write_text("print()")
    more = {"name": "extra.py", "digest": {"sha256": sha(b"print()")}}

    def update(statement: Any) -> None:
        found = statement["predicate"]["runDetails"]["byproducts"]
        found.append(more)
        found.sort(key=lambda each: each["name"])

    rewrite(unsigned, "provenance.json", edit(update))
    assert faults(unsigned) == {("tampered", "bundle", "extra.py")}


def test_a_card_that_sums_and_statement_know_nothing_of_is_missed(unsigned: Path) -> None:
    (unsigned / "README.md").unlink()
    rewrite(
        unsigned, "provenance.json", edit(lambda s: s["predicate"]["runDetails"]["byproducts"].pop(0))
    )  # fmt: skip
    assert faults(unsigned) == {("missing", "bundle", "README.md")}


@pytest.mark.parametrize(
    "change",
    [
        lambda content: b"\xff" + content,
        lambda content: content.replace(b"  ", b" *", 1),
        lambda content: content + content.splitlines(keepends=True)[0],
        lambda content: content[:-1],
        lambda content: b"".join(sorted(content.splitlines(keepends=True))),
        lambda content: content.replace(content[:64], content[:64].upper()),
    ],
)
def test_sums_in_another_form_are_no_sums(signed: Path, change: Callable[[bytes], bytes]) -> None:
    path = signed / "SHA256SUMS"
    path.write_bytes(change(path.read_bytes()))
    assert faults(signed) == {("tampered", "bundle", "SHA256SUMS")}


def test_a_list_of_no_files_is_one_fault_and_not_one_for_each_file(signed: Path) -> None:
    (signed / "SHA256SUMS").write_bytes(b"")
    assert faults(signed) == {("tampered", "bundle", "SHA256SUMS")}


def test_a_ledger_is_not_blamed_for_a_damaged_bundle_json_whatever_the_folder_is_called(
    signed: Path, tmp_path: Path
) -> None:
    renamed = tmp_path / "renamed"
    shutil.copytree(signed, renamed)
    (renamed / "bundle.json").write_bytes(b"{")
    assert "ledger" not in {link for _, link, _ in faults(renamed)}


def test_a_file_too_many_is_told_once(signed: Path) -> None:
    (signed / "notes.txt").write_text("found beside it")
    done = world.run("verify", "--offline", str(signed), "--json", expect=5)
    (version,) = json.loads(done.stdout)["versions"]
    assert [fault["where"] for fault in version["faults"]].count("notes.txt") == 1


def test_without_a_ledger_its_stage_is_not_known(signed: Path) -> None:
    assert json.loads(world.run("verify", "--offline", str(signed), "--json").stdout)["versions"][0][
        "stages"
    ] == ["production"]
    (signed / "ledger.jsonl").unlink()
    done = world.run("verify", "--offline", str(signed), "--json", expect=5)
    assert json.loads(done.stdout)["versions"][0]["stages"] is None
    assert "not known" in world.run("verify", "--offline", str(signed), expect=5).stdout


def test_the_current_folder_has_a_name(signed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (signed / "lineage.json").unlink()
    (signed / "bundle.json").unlink()
    monkeypatch.chdir(signed)
    done = world.run("verify", "--offline", ".", expect=5)
    assert f"{signed.name} version unknown" in done.stdout


def test_without_a_record_what_follows_from_it_is_named_as_not_looked_at(signed: Path) -> None:
    (signed / "lineage.json").unlink()
    done = world.run("verify", "--offline", str(signed), "--json", expect=5)
    (version,) = json.loads(done.stdout)["versions"]
    assert version["unchecked"] == ["ledger", "adapter", "provenance", "OpenLineage"]


def signature(key: Ed25519PrivateKey, keyid: str, payload: bytes) -> dict[str, str]:
    kind = b"application/vnd.in-toto+json"
    encoded = b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)
    return {"keyid": keyid, "sig": base64.b64encode(key.sign(encoded)).decode()}


def test_who_signed_is_named_and_only_the_key_asked_for_will_do(made: World, signed: Path) -> None:
    other = Ed25519PrivateKey.generate()
    public = other.public_key().public_bytes_raw().hex()
    assert faults(signed, "--public-key", made.public) == set()
    assert faults(signed, "--public-key", public) == {("missing", "provenance", "signature")}

    def sign(keyid: str) -> Callable[[Any], object]:
        def change(envelope: Any) -> None:
            envelope["signatures"] = [signature(other, keyid, base64.b64decode(envelope["payload"]))]

        return change

    rewrite(signed, "provenance.dsse.json", edit(sign(public)))
    done = world.run("verify", "--offline", str(signed))
    assert f"signed by {public}" in done.stdout
    assert "anybody can sign" in done.stdout
    assert faults(signed, "--public-key", public) == set()
    assert faults(signed, "--public-key", made.public) == {("missing", "provenance", "signature")}
    # Under a name that is not the signer's:
    rewrite(signed, "provenance.dsse.json", edit(sign(made.public)))
    forged = ("tampered", "provenance", "provenance.dsse.json")
    assert faults(signed) == {forged}
    assert faults(signed, "--public-key", made.public) == {forged, ("missing", "provenance", "signature")}


def test_two_signatures_are_both_looked_at(made: World, signed: Path) -> None:
    other = Ed25519PrivateKey.generate()
    public = other.public_key().public_bytes_raw().hex()

    def add(envelope: Any) -> None:
        envelope["signatures"].append(signature(other, public, base64.b64decode(envelope["payload"])))

    rewrite(signed, "provenance.dsse.json", edit(add))
    assert faults(signed, "--public-key", made.public) == faults(signed, "--public-key", public) == set()
    found = json.loads(world.run("verify", "--offline", str(signed), "--json").stdout)
    assert found["signed_by"] == sorted([made.public, public])
    rewrite(signed, "provenance.dsse.json", edit(lambda e: e["signatures"][1].update(keyid="0" * 64)))
    assert faults(signed, "--public-key", made.public) == {("tampered", "provenance", "provenance.dsse.json")}


@pytest.mark.parametrize(
    "change",
    [
        lambda e: e.pop("payload"),
        lambda e: e.update(payload="?"),
        lambda e: e.update(payload=1),
        lambda e: e.update(signatures=[]),
        lambda e: e.update(signatures=[1]),
        lambda e: e["signatures"].append(dict(e["signatures"][0])),
        lambda e: e.update(payloadType="application/json"),
        lambda e: e["signatures"][0].update(keyid="zz"),
        lambda e: e["signatures"][0].update(sig="AA=="),
        lambda e: e.update(payload=e["payload"].replace("/", "_").replace("+", "-") + "\n"),
    ],
)
def test_an_envelope_that_is_none_is_found(signed: Path, change: Callable[[Any], object]) -> None:
    rewrite(signed, "provenance.dsse.json", edit(change))
    assert ("tampered", "provenance", "provenance.dsse.json") in faults(signed)


def test_an_unsigned_bundle_is_sound_and_says_so_but_not_where_a_signature_is_asked_for(
    made: World, unsigned: Path
) -> None:
    assert "not signed: whoever can write" in world.run("verify", "--offline", str(unsigned)).stdout
    assert faults(unsigned, "--public-key", made.public) == {("missing", "provenance", "signature")}


def test_a_signature_taken_away_is_missed_where_it_is_asked_for(made: World, signed: Path) -> None:
    envelope = json.loads((signed / "provenance.dsse.json").read_bytes())
    (signed / "provenance.json").write_bytes(base64.b64decode(envelope["payload"]))
    sum_up(signed)
    assert faults(signed) == {
        ("tampered", "provenance", "provenance.json")
    }  # two statements are one too many
    (signed / "provenance.dsse.json").unlink()
    sum_up(signed)
    assert faults(signed) == set()
    assert faults(signed, "--public-key", made.public) == {("missing", "provenance", "signature")}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["reviews", "--offline", "."], "expected VERSIONS or --offline, not both"),
        (["--public-key", "0" * 64], "--public-key is of use with --offline only"),
        (["--offline", ".", "--public-key", "0" * 63], "expected 64 hex characters"),
        (["--offline", "no-such-folder"], "does not exist"),
    ],
)
def test_what_cannot_be_meant_is_a_usage_error(arguments: list[str], message: str) -> None:
    assert message in world.run("verify", *arguments, expect=2).stderr


def test_a_folder_that_is_no_bundle_misses_everything(tmp_path: Path) -> None:
    told = faults(tmp_path)
    assert {where for kind, _, where in told if kind == "missing"} >= {
        "bundle.json",
        "lineage.json",
        "SHA256SUMS",
    }


def test_what_a_bundle_says_cannot_steer_the_terminal(signed: Path) -> None:
    rewrite(signed, "bundle.json", edit(lambda f: f.update(prefix="\x1b[2J", stage="[red]\x07")))
    done = world.run("verify", "--offline", str(signed), expect=5)
    assert "\x1b" not in done.stdout
    assert "\x07" not in done.stdout
    assert "out of step bundle: bundle.json: prefix" in done.stdout
    (signed / "lineage.json").unlink()  # so that the name is bundle.json's
    done = world.run("verify", "--offline", str(signed), expect=5)
    assert "\x1b" not in done.stdout
    assert "[2J version 1" in done.stdout


def test_a_version_number_that_is_none_cannot_steer_the_terminal(signed: Path) -> None:
    rewrite(signed, "bundle.json", edit(lambda f: f.update(version="\x1b[2J[/bold]")))
    done = world.run("verify", "--offline", str(signed), expect=5)
    assert "\x1b" not in done.stdout
    assert "[2J[/bold]" in done.stdout


NESTED = b"[" * 100_000 + b"]" * 100_000


def as_events(change: Callable[[Any], object]) -> Callable[[bytes], bytes]:
    """`change` made in every event, and the chain made anew."""

    def changed(content: bytes) -> bytes:
        done, previous = b"", "0" * 64
        for line in content.splitlines():
            event = json.loads(line)
            change(event)
            event["previous"] = previous
            written = json.dumps(event, sort_keys=True, separators=(",", ":")).encode()
            previous = sha(written)
            done += written + b"\n"
        return done

    return changed


def with_files(value: Any) -> Callable[[bytes], bytes]:
    def change(record: Any) -> None:
        record["files"] = dict.fromkeys(record["files"], value)
        record["adapter_digest"] = sha(canonical_json(record["files"]))

    return edit(change)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("lineage.json", lambda content: NESTED),
        ("lineage.json", lambda content: content.replace(b'"reviews"', b'"\\ud800"')),
        ("lineage.json", lambda content: content.replace(b'"created":', b'"created":NaN,"x":')),
        ("lineage.json", lambda content: content.replace(b'"warm_start":null', b'"warm_start":NaN')),
        ("lineage.json", with_files({"a": 1})),
        ("lineage.json", with_files(1)),
        ("lineage.json", edit(lambda r: r["dataset"].update(manifest=[1]))),
        ("lineage.json", edit(lambda r: r["base_model"].update(files={"config.json": None}))),
        ("lineage.json", edit(lambda r: r["runs"].update(mlflow={"a": 1}))),
        ("lineage.json", edit(lambda r: r["code"].update(commit=[]))),
        ("lineage.json", edit(lambda r: r.update(warm_start={"version": "1"}))),
        ("ledger.jsonl", as_events(lambda e: e.update(prefix="\ud800"))),
        ("ledger.jsonl", as_events(lambda e: e.update(version="1" * 5000))),
        ("provenance.dsse.json", lambda content: NESTED),
        ("provenance.dsse.json", edit(lambda e: e["signatures"][0].update(keyid=1))),
        ("provenance.dsse.json", lambda content: content.replace(b'"keyid":"', b'"keyid":"\\ud800')),
    ],
)  # fmt: skip
def test_what_another_program_may_have_written_is_a_fault_and_no_crash(
    signed: Path, name: str, change: Callable[[bytes], bytes]
) -> None:
    before = (signed / name).read_bytes()
    rewrite(signed, name, change)
    assert (signed / name).read_bytes() != before
    assert name in {where for kind, _, where in faults(signed) if kind == "tampered"}


@pytest.mark.parametrize("spelling", [str.upper, lambda key: f" {key}", lambda key: f"{key[:2]}\r{key[2:]}"])
def test_a_signers_key_has_one_spelling(signed: Path, spelling: Callable[[str], str]) -> None:
    change = edit(lambda e: e["signatures"][0].update(keyid=spelling(e["signatures"][0]["keyid"])))
    rewrite(signed, "provenance.dsse.json", change)
    assert ("tampered", "provenance", "provenance.dsse.json") in faults(signed)


@pytest.mark.parametrize("same", [True, 1.0])
def test_a_number_of_another_kind_is_another_value(unsigned: Path, same: object) -> None:
    rewrite(unsigned, "bundle.json", edit(lambda f: f.update(format_version=same)))
    restate(unsigned)
    assert faults(unsigned) == {("out of step", "bundle", "bundle.json: format_version")}


def test_a_tainted_version_is_named_as_that(made: World, tmp_path: Path) -> None:
    tainted = made.root.parent / "tainted"
    shutil.copytree(made.root, tainted)
    row = {"row": "0" * 64, "actor": "trainer", "reason": "asked for"}
    taint(mlflow_world.database(tainted), NAME, "1", **row)
    bundle = tmp_path / "bundle"
    world.run("-w", str(tainted), "export", f"{NAME}:1", "--out", str(bundle))
    done = world.run("verify", "--offline", str(bundle))
    assert "sound, but tainted: it saw a row that was to be erased" in " ".join(done.stdout.split())


def test_a_key_made_by_the_command_signs_what_it_verifies(made: World, tmp_path: Path) -> None:
    key = make_key(tmp_path / "key.pem")
    made.run("export", f"{NAME}:2", "--out", str(tmp_path / "out"), "--key", str(tmp_path / "key.pem"))
    assert faults(tmp_path / "out", "--public-key", key.public) == set()
    assert faults(tmp_path / "out", "--public-key", made.public) == {("missing", "provenance", "signature")}
