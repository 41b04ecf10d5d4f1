"""A whole comparison on tiny data: the choice of rates, what is kept, what is reported, and that nothing else changes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from markupsafe import escape

from pipeline.base import base_model
from pipeline.base.base_files import identity_files
from pipeline.cli import main
from pipeline.compare import comparison, serving, sweep, trainer, worker
from pipeline.compare.job import RECORD, RESULT, SCORED, Job
from pipeline.compare.sweep import Swept
from pipeline.digest import digest
from pipeline.errors import CompareError, DataError
from pipeline.evaluate.scored import read
from pipeline.params import TASK_METRICS
from tests import tiny
from tests.compare.world import in_this_process, setting, written
from tests.line import Line, make_line

GENERATION = """\
  say:
    base_model: decoder
    task: generation
    data: {path: data/say.jsonl}
    prefix: {length: 4}
    evaluation: {max_new_tokens: 4, max_generated_rows: 6}
"""


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory) -> Line:
    """A workspace with a classification (`words`) and a generation (`say`) prefix."""
    folder = tmp_path_factory.mktemp("compare")
    made = make_line(folder, count=200)
    decoder = tiny.tiny_decoder(folder / "decoder")
    params = made.root / "params.yaml"
    entry = f'  decoder: {{source: {{path: "{decoder}"}}, digest: {digest(identity_files(decoder))}}}\n'
    text = params.read_text().replace("defaults:", entry + "defaults:") + GENERATION
    accuracy = [each for each in text.splitlines(keepends=True) if "accuracy" in each]
    assert len(accuracy) == 2  # criteria of the gate, which generation does not have
    params.write_text("".join(each for each in text.splitlines(keepends=True) if each not in accuracy))
    rows = [
        {"source": " ".join(tiny.WORDS[i : i + 2]), "target": [tiny.WORDS[i], tiny.WORDS[i + 1]]}
        for i in range(len(tiny.WORDS) - 2)
    ] + [{"source": f"{a} {b}", "target": a} for a in tiny.WORDS[:6] for b in tiny.WORDS[20:28]]
    (made.root / "data/say.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    made.commit("Parameters")
    return made


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """What would be started in processes of its own is done here; [(work, number of folders)]."""
    works: list[tuple[str, int]] = []

    def start(work: str, folders: Sequence[Path], *, what: str) -> Any:
        works.append((work, len(folders)))
        return in_this_process(work, folders, what=what)

    monkeypatch.setattr(worker, "start", start)
    monkeypatch.setattr(serving, "ROUNDS", 3)
    return works


def compare(line: Line, name: str, out: Path, **changed: Any) -> dict[str, Any]:
    return comparison.compare(line.root, name, out=out, say=lambda line: None, **changed)


def everything_in(root: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file() and ".git/index" not in str(path)
    }


def test_all_methods_are_compared_and_only_the_output_folder_changes(
    line: Line, tmp_path: Path, started: list[tuple[str, int]]
):
    before = everything_in(line.root)
    result = compare(line, "words", tmp_path / "out", max_steps=6, seeds=2, rates={
        "prefix": (0.1, 0.01), "prompt": (0.1,), "ptuning": (0.01,), "lora": (0.02,),
    })  # fmt: skip
    assert everything_in(line.root) == before
    assert json.loads((tmp_path / "out" / "compare.json").read_text()) == result
    methods = {method["method"]: method for method in result["methods"]}
    assert list(methods) == ["prefix", "prompt", "ptuning", "lora", "probe"]
    # Two rates and a second seed, three times a rate and a second seed, and the probe once.
    assert started == [("train", 1)] * (3 + 3 * 2 + 1) + [("serve", 4 * 2 + 1)]
    assert result["budget"]["steps"] == 6
    assert result["budget"]["seeds"] == [0, 1]
    for name, method in methods.items():
        found = method["quality"]["accuracy"]
        paths = [
            path for path in (tmp_path / "out/trainings").iterdir()
            if (path / SCORED).exists() and json.loads((path / "job.json").read_text())["method"] == name
        ]  # fmt: skip
        accuracies = []
        for path in paths:
            sample = read(path / SCORED / "content" / "rows.parquet", "classification").sample(
                "prefix", "accuracy"
            )
            accuracies.append(float((sample.columns["label"] == sample.columns["prediction"]).mean()))
        assert sorted(found["seeds"]) == pytest.approx(sorted(accuracies))
        assert found["figure"] == pytest.approx(sum(accuracies) / len(accuracies))
        assert (found["over_seeds"] is None) == (name == "probe")
        if name == "prefix":
            assert method["difference"] is None
            continue
        difference = method["difference"]["accuracy"]["figure"]
        assert difference == pytest.approx(
            found["figure"] - methods["prefix"]["quality"]["accuracy"]["figure"]
        )
    best = min(methods["prefix"]["tried"], key=lambda record: record["validation_loss"])
    assert methods["prefix"]["rate"] == best["rate"]
    assert methods["prefix"]["at_the_end"] is not None
    lora = methods["lora"]
    assert lora["trainable_parameters"] == methods["prefix"]["trainable_parameters"]
    _looks_right(result, tmp_path / "out")


def _looks_right(result: dict[str, Any], out: Path) -> None:
    page = (out / "compare.html").read_text()
    for method in result["methods"]:
        assert f"{method['title']}<" in page
    for sentence in (*result["equal"], *result["not_equal"]):
        assert str(escape(sentence)) in page
    assert page.count("<svg") == 7
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert len(list((out / "plots").glob("*.png"))) == 7


def test_generation_is_compared_by_the_loss_per_target_token_and_every_metric_is_there(
    line: Line, tmp_path: Path, started: list[tuple[str, int]]
):
    result = compare(line, "say", tmp_path / "out", max_steps=4, rates={
        "prefix": (0.1,), "prompt": (0.1,), "ptuning": (0.01,), "lora": (0.02,),
    })  # fmt: skip
    assert result["metric"] == "loss"
    for method in result["methods"]:
        assert set(method["quality"]) == set(TASK_METRICS["generation"])
        assert all(found["figure"] is not None for found in method["quality"].values())
        if method["difference"] is not None:
            ours, theirs = (m["quality"]["loss"]["figure"] for m in (method, result["methods"][0]))
            # Turned so that higher is better: a lower loss is.
            assert method["difference"]["loss"]["figure"] == pytest.approx(theirs - ours)
    assert any("packed rows" in sentence for sentence in result["not_equal"])
    _looks_right(result, tmp_path / "out")


def test_what_is_done_is_kept_and_what_is_damaged_is_done_again(
    line: Line, tmp_path: Path, started: list[tuple[str, int]]
):
    settings: dict[str, Any] = {"names": ("prefix", "probe"), "max_steps": 3}
    first = compare(line, "words", tmp_path, rates={"prefix": (0.1,)}, **settings)
    assert started == [("train", 1), ("train", 1), ("serve", 2)]
    started.clear()
    again = compare(line, "words", tmp_path, rates={"prefix": (0.1,)}, **settings)
    assert started == [("serve", 2)]
    assert [m["quality"] for m in again["methods"]] == [m["quality"] for m in first["methods"]]
    started.clear()
    compare(line, "words", tmp_path, rates={"prefix": (0.1, 0.2)}, **settings)
    assert started == [("train", 1), ("serve", 2)]
    started.clear()
    for path in (tmp_path / "trainings").glob(f"*/{RESULT}/content/{RECORD}"):
        if json.loads(path.read_text())["method"] == "probe":
            path.write_text(path.read_text() + " ")
    for path in (tmp_path / "trainings").glob(f"*/{SCORED}/content/rows.parquet"):
        path.write_bytes(b"")
    mended = compare(line, "words", tmp_path, rates={"prefix": (0.1,)}, **settings)
    assert started == [("train", 1), ("serve", 2)]
    assert [m["quality"] for m in mended["methods"]] == [m["quality"] for m in first["methods"]]


def test_rates_that_diverge_are_passed_over_and_all_of_them_are_an_error(
    encoder_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    shared = setting(tmp_path, encoder_folder, "classification")
    losses = {0.1: 2.0, 0.2: 1.0, 0.3: None}

    def trained(job: Job, out: Path, say: Any) -> dict[str, Any]:
        loss = losses.get(job.rate or 0) if job.seed == 0 else None if job.rate == 0.1 else 0.5
        found = {"diverged": "the loss is nan"} if loss is None else {"validation_loss": loss}
        return {"rate": job.rate, **found}

    monkeypatch.setattr(sweep, "trained", trained)

    def swept(rates: tuple[float, ...], seeds: tuple[int, ...] = (0,)) -> Swept:
        return sweep.sweep(shared, "lora", rates, seeds, tmp_path, lora_rank=None, say=lambda line: None)

    found = swept((0.1, 0.2, 0.3), (0, 1, 2))
    assert found.rate == 0.2
    assert [job.seed for job, _ in found.chosen] == [0, 1, 2]
    assert found.at_the_end is None
    assert [swept(rates).at_the_end for rates in ((0.1, 0.2), (0.2, 0.1), (0.2, 0.3), (0.2,))] == [
        "highest", "highest", "lowest", None,
    ]  # fmt: skip
    with pytest.raises(CompareError, match=r"LoRA: .*not finite at any .*0\.3.*--rates lora="):
        swept((0.3,))
    with pytest.raises(CompareError, match="with seed 1 the loss is not finite"):
        swept((0.1,), (0, 1))


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"names": ("prefix", "nonsense")}, "'nonsense' is no method"),
        ({"rates": {"lorra": (0.1,)}}, "got 'lorra'; expected one of prefix, prompt, ptuning, lora, probe"),
        ({"rates": {"probe": (0.1,)}}, "Linear probe has no learning rate"),
        ({"rates": {"lora": (0.0,)}}, r"got 0\.0 for lora; expected numbers above 0, at most 100"),
        ({"rates": {"lora": (float("nan"),)}}, "got nan for lora"),
        ({"names": ("prefix", "probe"), "lora_rank": 4}, "LoRA is not among the methods"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_is_prepared(
    line: Line, tmp_path: Path, changed: dict[str, Any], said: str
):
    with pytest.raises(CompareError, match=said):
        compare(line, "words", tmp_path / "out", **changed)
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_made_is_an_error(line: Line):
    with pytest.raises(
        CompareError, match=r"/proc/nowhere: the folder cannot be made: .*; choose another with --out"
    ):
        compare(line, "words", Path("/proc/nowhere"))


def test_imported_data_that_is_not_here_yet_is_an_error(line: Line, tmp_path: Path):
    copy = Line(shutil.copytree(line.root, tmp_path / "copy", symlinks=True))
    copy.change_params(
        "data: {path: data/words.jsonl,", "data: {path: data/absent.jsonl, imported_from: /x.jsonl,"
    )
    with pytest.raises(DataError, match=r"imported from /x\.jsonl by `prefixline retrain words`"):
        compare(copy, "words", tmp_path / "out")


def test_methods_timed_side_by_side_share_the_bases_weights_and_nothing_else(
    encoder_folder: Path, tmp_path: Path
):
    shared = setting(tmp_path, encoder_folder, "classification", max_steps=2)
    base = base_model.load(shared.resolve(), "classification", labels=shared.labels)
    ids, mask = torch.tensor([[2, 5, 6, 3]]), torch.ones(1, 4, dtype=torch.long)
    alone, together = {}, {}
    copies = {}
    for name, rate in (("lora", 0.5), ("prompt", 0.5), ("ptuning", 0.1)):
        job = Job(shared, name, rate, 1)
        folder = written(job, tmp_path)
        trainer.run(job, folder)
        own = base_model.load(shared.resolve(), "classification", labels=shared.labels)
        alone[name] = serving.loaded(job, folder, own).model(input_ids=ids, attention_mask=mask).logits
        copies[name] = serving.loaded(job, folder, serving._sharing(base)).model
    bare = base(input_ids=ids, attention_mask=mask).logits
    fresh = base_model.load(shared.resolve(), "classification", labels=shared.labels)
    assert torch.equal(bare, fresh(input_ids=ids, attention_mask=mask).logits)
    words = base.get_input_embeddings().weight.data_ptr()
    for name, model in copies.items():
        together[name] = model(input_ids=ids, attention_mask=mask).logits
        assert torch.equal(together[name], alone[name])
        assert not torch.equal(together[name], bare)
        assert model.get_input_embeddings().weight.data_ptr() == words


def test_work_that_fails_or_is_killed_or_interrupted_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(CompareError, match=r"LoRA: .*Not a directory\. Mend this"):
        worker.start("train", [tmp_path / "file" / "below"], what="LoRA")
    with pytest.raises(CompareError, match="LoRA: its process ended with exit code 1"):
        worker.start("train", [tmp_path / "missing"], what="LoRA")

    def ending(code: str) -> None:
        script = tmp_path / "ending"
        script.write_text(f"#!/bin/sh\n{code}\n")
        script.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(script))

    ending("kill -9 $$")
    with pytest.raises(CompareError, match="exit code -9"):
        worker.start("train", [tmp_path], what="LoRA")
    ending("exit 130")
    with pytest.raises(KeyboardInterrupt):
        worker.start("train", [tmp_path], what="LoRA")


def test_ctrl_c_ends_the_command_with_a_checkpoint_and_the_next_call_goes_on(
    line: Line, tmp_path: Path, started: list[tuple[str, int]]
):
    arguments = [
        "-w", str(line.root), "compare", "words", "--methods", "Prefix, probe", "--rates", "prefix=0.1",
        "--max-steps", "100", "--out", str(tmp_path),
    ]  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "-c", "from pipeline.cli import main; main()", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    end = time.monotonic() + 200
    while not list(tmp_path.glob("trainings/*/checkpoints/curves.jsonl")):
        assert time.monotonic() < end
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=100)
    assert process.returncode == 130, errors
    assert "nothing is lost: the same command goes on from the last checkpoint" in errors
    assert "Traceback" not in errors
    assert list(tmp_path.glob("trainings/*/checkpoints/step-*"))
    assert not list(tmp_path.glob(f"trainings/*/{RESULT}"))
    done = CliRunner().invoke(main, [*arguments, "--json"])
    assert done.exit_code == 0, done.output
    assert [method["method"] for method in json.loads(done.stdout)["methods"]] == ["prefix", "probe"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--rates", "lora"], "got 'lora'; expected METHOD=RATE,RATE"),
        (["--rates", "lora=a"], "got 'lora=a'; expected METHOD=RATE,RATE"),
        (["--rates", "lora=0.1", "--rates", "lora=0.2"], "got lora twice"),
        (["--rates", "lorra=0.1"], "got 'lorra'; expected some of prefix, prompt, ptuning, lora, probe"),
        (["--methods", "prefix,foo"], "got 'foo'; expected some of prefix, prompt, ptuning, lora, probe"),
        (["--seeds", "0"], "Invalid value for '--seeds'"),
        (["--max-steps", "0"], "Invalid value for '--max-steps'"),
    ],
)
def test_options_that_cannot_be_read_are_usage_errors(options: list[str], said: str):
    done = CliRunner().invoke(main, ["compare", "words", *options])
    assert done.exit_code == 2
    assert said in done.stderr


def test_settings_without_a_workspace_are_refused(tmp_path: Path):
    done = CliRunner().invoke(main, ["-w", str(tmp_path), "compare", "words"])
    assert done.exit_code == 1
    assert "prefixline init" in done.stderr
