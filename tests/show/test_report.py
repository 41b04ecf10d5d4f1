"""The report's content: what is shown, what is said to be missing, and that nothing from outside gets in."""

from __future__ import annotations

import dataclasses
import html.parser
import itertools
import json
import re
import runpy
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as parquet
import pytest

from pipeline.errors import DataError
from pipeline.evaluate.scored import read
from pipeline.show import plots, report_rows
from pipeline.show.report import write_index, write_plots, write_report
from pipeline.show.report_analysis import metric_number
from pipeline.show.report_data import ReportData
from pipeline.show.report_tables import cell, tables, words
from pipeline.show.report_view import duration, spoken_time
from tests import report_data

DIGEST = "a" * 64
STARTS: tuple[tuple[dict[str, Any], str], ...] = (
    ({"from": "text", "made_of": "labels", "text": "card pin"}, "the labels: card pin"),
    ({"from": "random", "scale": 0.02}, "random vectors of standard deviation 0.02"),
    (
        {"from": "random", "scale": 0.5, "value_scale": 0.05},
        "random vectors of standard deviation 0.5 (values 0.05)",
    ),
    (
        {"from": "version", "prefix": "cards", "version": "3", "adapter_digest": DIGEST, "head": "continued"},
        "version 3 of cards and its head",
    ),
    (
        {"from": "adapter", "adapter": "old/cards", "adapter_digest": DIGEST, "head": "new"},
        "the adapter in old/cards, with a new head",
    ),
    ({"from": "adapter", "adapter": "old/cards", "adapter_digest": DIGEST}, "the adapter in old/cards"),
)

HOSTILE = (
    "</td></table><script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "$\\frac{1}{0}$ & <b>bold</b> {{ 7 * 7 }}",
    "'; --\u202e \x7f ]]> </svg></title>",
)


@pytest.fixture(scope="module")
def eight(tmp_path_factory: pytest.TempPathFactory) -> ReportData:
    return report_data.classification(tmp_path_factory.mktemp("eight"), rows=300)


@pytest.fixture(scope="module")
def generation(tmp_path_factory: pytest.TempPathFactory) -> ReportData:
    return report_data.generation(tmp_path_factory.mktemp("generation"), rows=60)


@pytest.fixture(scope="module")
def eight_page(eight: ReportData, tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_report(eight, tmp_path_factory.mktemp("page") / "page.html").read_text()


@pytest.fixture(scope="module")
def generation_page(generation: ReportData, tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_report(generation, tmp_path_factory.mktemp("page") / "page.html").read_text()


class _Reader(html.parser.HTMLParser):
    """Tags, attributes and text of a page, as a browser sees them."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def page(data: ReportData, folder: Path) -> _Reader:
    return _Reader(write_report(data, folder / "page.html").read_text())


def test_a_registered_run_names_prefix_version_outcome_and_time(eight_page: str) -> None:
    text = _Reader(eight_page).text
    for expected in ("docstrings", "Version 3", "Registered", "5 January 2026, 03:12 UTC", "every criterion"):
        assert expected in text


def test_every_criterion_shows_figure_interval_threshold_and_its_result_in_words(
    eight: ReportData, eight_page: str
) -> None:
    assert eight.verdict is not None
    table = eight_page[eight_page.index('id="criteria"') : eight_page.index('id="metrics"')]
    rows = table.split("<tr>")[2:]
    assert len(rows) == len(eight.verdict["criteria"]) == 7
    for row, criterion in zip(rows, eight.verdict["criteria"], strict=True):
        signed = criterion["kind"] != "floor"
        for value in (criterion["figure"], *criterion["interval"]):
            assert metric_number(criterion["metric"], value, signed=signed) in row
        assert f"{abs(criterion['threshold']):.3f}" in row
        assert "Passed" in row
        assert "Failed" not in row


def test_a_rejected_run_says_why_and_has_no_version(tmp_path: Path) -> None:
    data = report_data.rejected(tmp_path)
    assert data.verdict is not None
    text = page(data, tmp_path).text
    failed = [criterion for criterion in data.verdict["criteria"] if not criterion["passed"]]
    assert failed
    assert "Rejected by the gate: nothing was registered" in text
    assert "No version was registered" in text
    assert text.count("Failed") == len(failed)
    for criterion in failed:
        assert criterion["reason"].split(" ", 1)[1] in text


def test_the_metrics_are_those_that_the_gate_judged(eight: ReportData, eight_page: str) -> None:
    assert eight.verdict is not None
    text = _Reader(eight_page).text
    floor, better = eight.verdict["criteria"][0], eight.verdict["criteria"][2]
    low, high = (metric_number("accuracy", end) for end in floor["interval"])
    assert f"Accuracy ↑ {floor['figure']:.3f} {low} to {high}" in text.replace("\u00a0", " ")
    assert f"Frozen base {better['theirs']:.3f} (+{better['figure']:.3f})" in text


def test_a_first_run_says_that_there_is_no_champion(tmp_path: Path) -> None:
    data = report_data.classification(
        tmp_path, rows=400, accuracies={"prefix": 0.75, "base": 0.55}, version="1"
    )
    text = page(data, tmp_path).text
    assert "There is no champion: no version was in production to compare with." in text
    assert "There is no version in production yet." in text


def test_a_generation_run_shows_samples_of_every_system_and_its_own_metrics(generation_page: str) -> None:
    text = _Reader(generation_page).text
    for source, references, ours, base in report_data.SOURCES:
        for expected in (source, *references, ours, base):
            assert expected in text
    assert "The Mill serves cheap French food. This prefix" in text
    for metric in ("Loss", "Perplexity", "BLEU", "chrF", "ROUGE-L"):
        assert metric in text
    assert "Confusion" not in text


def test_a_classification_run_shows_single_predictions_and_how_sure_they_were(eight_page: str) -> None:
    text = _Reader(eight_page).text
    assert "True class matplotlib This prefix asyncio (wrong, confidence 0.970) Frozen base asyncio" in text
    assert "This prefix matplotlib (right, confidence 0.970)" in text
    assert f"Champion {report_rows.NO_CLASS}" in text


def test_the_main_counts_of_the_dataset_card_are_shown(eight_page: str) -> None:
    text = _Reader(eight_page).text
    for expected in ("Rows for train 2,400", "Duplicates dropped 31", "Texts with conflicting labels 3", "Added 300",
                     "train 4 23 96 181", "asyncio 296 37 37"):  # fmt: skip
        assert expected in text


def test_lineage_shows_every_hash_of_the_record_with_a_button_to_copy_it(
    eight: ReportData, eight_page: str
) -> None:
    hashes = set(re.findall(r'"([0-9a-f]{32,64})"', json.dumps(eight.lineage))) | {eight.run_key}
    assert len(hashes) == 15
    for value in hashes:
        assert f'<code class="hash">{value}</code> <button type="button" class="copy"' in eight_page


def test_a_run_of_which_nothing_is_known_says_what_is_missing_and_does_not_crash(tmp_path: Path) -> None:
    for task in ("classification", "generation"):
        reader = page(report_data.bare(task=task), tmp_path)
        for expected in ("No verdict", "No evaluation", "No loss curves", "No dataset card", "No parameters",
                         "No lineage record", "No summary of the training"):  # fmt: skip
            assert expected in reader.text
        assert write_plots(report_data.bare(task=task), tmp_path / "plots") == []


def test_each_part_may_be_missing_by_itself(eight: ReportData, tmp_path: Path) -> None:
    optional = [field.name for field in dataclasses.fields(ReportData) if field.default is None]
    assert len(optional) == 13
    # Without pictures, whose own absence the other tests see to: drawing takes the time.
    undrawn = dataclasses.replace(eight, rows=None, curves=None)
    for name in optional:
        write_report(dataclasses.replace(undrawn, **{name: None}), tmp_path / "page.html")


def test_paths_to_nothing_are_said_to_be_missing(eight: ReportData, tmp_path: Path) -> None:
    nowhere = tmp_path / "nothing"
    data = dataclasses.replace(eight, rows=nowhere, curves=nowhere, samples=nowhere)
    text = page(data, tmp_path).text
    assert "No loss curves were recorded." in text
    assert "The results per row were not recorded" in text


def test_without_rows_the_figures_of_evaluated_json_are_shown_without_intervals(tmp_path: Path) -> None:
    data = report_data.bare(evaluated={"systems": {"prefix": {"accuracy": 0.875}, "base": {"accuracy": 0.5}}})
    text = page(data, tmp_path).text
    assert "0.875" in text
    assert "+0.375" in text
    assert "bootstrap" not in text


def test_hostile_text_is_shown_as_text_everywhere(tmp_path: Path) -> None:
    data = report_data.classification(tmp_path, labels=HOSTILE, rows=300)
    assert data.verdict is not None
    assert data.lineage is not None
    verdict = json.loads(json.dumps(data.verdict))
    verdict["criteria"][0] |= {"slice": HOSTILE[0], "reason": HOSTILE[1], "passed": False}
    text = HOSTILE[0]
    data = dataclasses.replace(
        data, prefix=text, version=text, verdict=verdict, card={"rows": {text: text}, text: [text]},
        lineage={**data.lineage, text: {text: text}}, params={text: text}, timings={text: 1.0},
        evaluated={"systems": {}}, created=text,
    )  # fmt: skip
    before = page(dataclasses.replace(data, prefix="x"), tmp_path)
    reader = page(data, tmp_path)
    assert [tag for tag, _ in reader.tags] == [tag for tag, _ in before.tags]
    assert len(reader.all("script")) == 1
    assert not reader.all("img")
    assert not [name for _, attributes in reader.tags for name in attributes if name.startswith("on")]
    shown = "".join(reader.words)
    for expected in HOSTILE[:3]:
        assert expected in shown
    assert "49" not in re.findall(r"bold.{0,20}", shown)[0]


def test_hostile_samples_are_shown_as_text(generation: ReportData, tmp_path: Path) -> None:
    sample = {
        "source": HOSTILE[0],
        "references": [HOSTILE[1]],
        "hypotheses": {"prefix": HOSTILE[2], "base": ""},
    }
    (tmp_path / "samples.json").write_text(json.dumps([sample]))
    reader = page(dataclasses.replace(generation, samples=tmp_path / "samples.json"), tmp_path)
    assert len(reader.all("script")) == 1
    for expected in (*HOSTILE[:3], "(nothing)"):
        assert expected in "".join(reader.words)


def test_a_page_refers_to_nothing_outside_itself(eight_page: str) -> None:
    reader = _Reader(eight_page)
    for tag, attributes in reader.tags:
        for name in ("src", "href", "srcset", "action", "data"):
            value = attributes.get(name)
            assert value is None or value.startswith(("#", "data:")), (tag, name, value)
    assert not re.search(r"url\((?!#)", eight_page)
    policy = next(meta["content"] for meta in reader.all("meta") if "http-equiv" in meta)
    assert policy is not None
    assert policy.startswith("default-src 'none'")


def test_ids_of_a_page_are_unique_and_every_reference_leads_to_one(eight_page: str) -> None:
    ids = re.findall(r'\sid="([^"]+)"', eight_page)
    assert len(ids) == len(set(ids))
    references = re.findall(r'(?:href="#|url\(#|labelledby=")([^")]+)', eight_page)
    assert len(references) > 50
    assert set(references) <= set(ids)


def test_pictures_have_titles_tables_have_captions_and_headings_are_in_order(
    eight_page: str, generation_page: str
) -> None:
    for content in (eight_page, generation_page):
        reader = _Reader(content)
        for svg in reader.all("svg"):
            assert svg.get("aria-hidden") == "true" or svg.get("aria-label") or svg.get("aria-labelledby")
        assert len(reader.all("table")) == len(reader.all("caption"))
        levels = [int(tag[1]) for tag, _ in reader.tags if re.fullmatch("h[1-6]", tag)]
        assert levels[0] == 1
        assert levels.count(1) == 1
        assert all(later <= earlier + 1 for earlier, later in itertools.pairwise(levels))


def test_equal_data_gives_equal_bytes(eight: ReportData, eight_page: str, tmp_path: Path) -> None:
    assert write_report(eight, tmp_path / "page.html").read_text() == eight_page


def test_77_classes_stay_a_small_page_with_every_class_in_its_table(tmp_path: Path) -> None:
    data = report_data.classification(tmp_path, labels=report_data.INTENTS, rows=1500)
    content = write_report(data, tmp_path / "page.html").read_text()
    assert len(content) < 400_000
    classes = content[content.index('id="classes"') : content.index('id="slices"')]
    assert classes.count("<tr><td") == 77
    f1 = [float(value) for value in re.findall(r'data-value="([\d.]+)"', classes)]
    assert f1 == sorted(f1)


def test_plots_are_png_files_that_repeat_byte_for_byte(
    eight: ReportData, generation: ReportData, tmp_path: Path
) -> None:
    files = write_plots(eight, tmp_path / "a")
    assert [file.stem for file in files] == [
        "calibration", "confusion", "loss", "metric-accuracy", "metric-calibration-error", "metric-loss",
        "metric-macro-f1",
    ]  # fmt: skip
    write_report(eight, tmp_path / "page.html", plots_folder=tmp_path / "b")
    again = sorted((tmp_path / "b").iterdir())
    for file, other in zip(files, again, strict=True):
        assert file.read_bytes().startswith(b"\x89PNG")
        assert file.read_bytes() == other.read_bytes()
    assert [file.stem for file in write_plots(generation, tmp_path / "c")] == [
        "loss-per-row", "loss", "metric-bleu", "metric-chrf", "metric-loss", "metric-perplexity", "metric-rouge-l",
    ]  # fmt: skip


def test_drawing_leaves_no_figure_with_pyplot(eight_page: str) -> None:
    from matplotlib import pyplot

    assert "<svg" in eight_page
    assert pyplot.get_fignums() == []


def test_losses_that_are_not_finite_leave_a_gap_in_the_curves(tmp_path: Path) -> None:
    lines = [
        {"kind": "step", "step": i, "loss": None if i == 3 else 1.0, "learning_rate": 0.1} for i in range(6)
    ]
    curves = tmp_path / "curves.jsonl"
    curves.write_text(
        "\n".join(map(json.dumps, lines)) + '\n{"kind": "validation", "step": 5, "loss": NaN}\n'
    )
    assert "Loss and learning rate" in page(report_data.bare(curves=curves), tmp_path).text


def test_a_base_that_changed_is_said_out_loud(tmp_path: Path) -> None:
    changed = {**report_data.TRAINED, "base_digest_after": report_data.sha("other")}
    assert "bitwise unchanged" in page(report_data.bare(trained=report_data.TRAINED), tmp_path).text
    assert "CHANGED: do not use this version" in page(report_data.bare(trained=changed), tmp_path).text


@pytest.mark.parametrize(
    ("part", "content", "message"),
    [
        ("rows", b"not parquet", "is not a Parquet file"),
        ("curves", b'{"kind": "step", "step": 1, "loss": 2.0}\n{"kind": "st', "curves:2: is not JSON"),
        ("samples", b"[{", "samples: is not JSON"),
    ],
)
def test_a_part_that_cannot_be_read_is_named_with_its_file(
    generation: ReportData, tmp_path: Path, part: str, content: bytes, message: str
) -> None:
    (tmp_path / part).write_bytes(content)
    with pytest.raises(DataError, match=re.escape(message)):
        write_report(dataclasses.replace(generation, **{part: tmp_path / part}), tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


def test_a_class_without_a_name_is_refused(eight: ReportData, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has a class 7; only 2 class names are known"):
        write_report(dataclasses.replace(eight, labels=("a", "b")), tmp_path / "page.html")


def test_per_class_scores_and_confused_pairs_are_those_of_a_count_by_hand() -> None:
    matrix = np.array([[3, 1, 0, 0], [0, 2, 2, 0], [0, 0, 1, 1]])  # the last column: no known class
    rows = report_rows.class_rows(matrix, ["a", "b", "c"], None)
    assert [(row.label, row.number, row.rows) for row in rows] == [("c", 3, 2), ("b", 2, 4), ("a", 1, 4)]
    assert rows[0].f1 == pytest.approx(2 / 5)
    assert (rows[1].precision, rows[1].recall) == pytest.approx((2 / 3, 1 / 2))
    pairs = report_rows.most_confused(matrix, ["a", "b", "c"])
    assert [(pair.true, pair.predicted, pair.rows, pair.share) for pair in pairs] == [
        ("b", "c", 2, 0.5), ("a", "b", 1, 0.25), ("c", report_rows.NO_CLASS, 1, 0.5),
    ]  # fmt: skip


def test_the_bins_of_the_diagram_make_up_the_calibration_error(eight: ReportData) -> None:
    assert eight.rows is not None
    bins = report_rows.reliability(read(eight.rows, "classification"), 15)["prefix"]
    assert sum(one.rows for one in bins) == 300
    error = sum(one.rows * abs(one.accuracy - one.confidence) for one in bins) / 300
    assert eight.verdict is not None
    assert error == pytest.approx(eight.verdict["criteria"][1]["figure"], abs=1e-12)


def test_slices_are_counted_on_their_own_rows(eight: ReportData) -> None:
    assert eight.rows is not None
    table = parquet.read_table(eight.rows).to_pandas()
    found = report_rows.slice_rows(read(eight.rows, "classification"), "accuracy")
    assert [row.value for row in found] == ["long", "medium", "short"]
    for row in found:
        for system, accuracy in row.scores.items():
            chosen = table[(table["slice.length"] == row.value) & (table["system"] == system)]
            assert row.rows == len(chosen)
            assert accuracy == pytest.approx((chosen["label"] == chosen["prediction"]).mean())


def test_the_index_lists_the_runs_newest_first_with_links(eight: ReportData, tmp_path: Path) -> None:
    first = dataclasses.replace(eight, rows=None, curves=None)
    later = dataclasses.replace(first, created="2026-02-01T00:00:00+00:00", version="4")
    write_report(first, tmp_path / "docstrings" / "3.html")
    write_report(later, tmp_path / "docstrings" / "4 & more.html")
    write_report(report_data.bare(prefix=HOSTILE[0]), tmp_path / "failed.html")
    reader = _Reader(write_index(tmp_path).read_text())
    assert [a["href"] for a in reader.all("a")] == [
        "docstrings/4%20%26%20more.html",
        "failed.html",
        "docstrings/3.html",
    ]
    assert "3 reports of 2 prefixes" in reader.text
    assert "7 of 7" in reader.text
    assert HOSTILE[0] in "".join(reader.words).replace("\u200b", "")


def test_an_index_of_nothing_says_so(tmp_path: Path) -> None:
    assert "There is no report in this folder yet" in _Reader(write_index(tmp_path).read_text()).text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "lacks everything"),
        ('{"page": "x.html"}', "lacks created, criteria, headline, outcome, prefix, version"),
        (None, "its page 'a.html' is not beside it"),
        ("../", "its page '../b.html' is not beside it"),
    ],
)
def test_a_sidecar_that_cannot_be_used_is_named_and_the_others_are_listed(
    tmp_path: Path, content: str | None, message: str
) -> None:
    folder = tmp_path / "reports"
    write_report(report_data.bare(), folder / "a.html")
    write_report(report_data.bare(), folder / "b.html")
    shutil.copy(folder / "b.html", tmp_path / "b.html")
    sidecar = folder / "a.report.json"
    if content is None:
        (folder / "a.html").unlink()
    elif content == "../":
        sidecar.write_text(json.dumps({**json.loads(sidecar.read_text()), "page": "../b.html"}))
    else:
        sidecar.write_text(content)
    text = _Reader(write_index(folder).read_text()).text
    assert "a.report.json: " + message in text
    assert "1 report of 1 prefix" in text


def test_numbers_and_times_read_as_people_write_them() -> None:
    assert [duration(s) for s in (0.84, 42.4, 133.4, 3900)] == ["0.8 s", "42 s", "2 min 13 s", "1 h 05 min"]
    assert metric_number("accuracy", -0.0123, signed=True) == "−0.012"
    assert metric_number("bleu", float("nan")) == metric_number("bleu", None) == "–"
    assert spoken_time("yesterday") == "yesterday"
    assert words("best_validation_loss") == "Best validation loss"
    assert words("files › adapter_model.safetensors") == "Files › adapter_model.safetensors"


def test_plain_objects_become_tables_whatever_they_hold() -> None:
    cells: list[tuple[Any, str]] = [
        (True, "yes"), (None, "–"), ("", "(empty)"), (0.1 + 0.2, "0.3"), (12000, "12000"), ([], "none"),
        (list(range(26)), ", ".join(map(str, range(24))) + " and 2 more"), ({"a": 1}, "a: 1"), ({}, "none"),
    ]  # fmt: skip
    assert [cell(value)["text"] for value, _ in cells] == [text for _, text in cells]
    assert cell(12000, grouped=True)["text"] == "12,000"
    assert cell("a" * 64)["is_hash"]
    assert not cell("a" * 63)["is_hash"]
    grid = tables({"classes": {"x": {"train": 8000, "test": 1}, "y": {"train": 1, "test": 2}}}, "All")[0]
    assert grid["columns"] == ["Train", "Test"]
    assert [[one["text"] for one in row["cells"]] for row in grid["rows"]] == [["8,000", "1"], ["1", "2"]]


def test_long_class_names_are_shortened_in_pictures_and_colours_follow_the_page() -> None:
    assert plots.shorten("a" * 30) == "a" * 15 + "…"
    assert plots.shorten(" \n") == "(empty)"
    svg = plots.inline_svg(
        plots.confusion_figure(np.eye(3, 4, dtype=np.int64), HOSTILE[:3], plots.PAGE), "c", "t"
    )
    assert "var(--ink)" in svg
    assert "$\\frac{1}{0}$" in svg  # text, not a formula
    assert not re.search(r"#0a0b0\d", svg)
    assert "<script" not in svg


def test_the_picture_of_the_line_is_the_one_its_script_draws() -> None:
    docs = Path(__file__).parents[2] / "docs"
    drawn = runpy.run_path(str(docs / "draw_line.py"))["draw"]()
    assert (docs / "line.svg").read_text() == drawn


@pytest.mark.parametrize(("start", "said"), STARTS)
def test_the_page_says_what_the_prefix_started_from(
    eight: ReportData, tmp_path: Path, start: dict[str, Any], said: str
) -> None:
    data = dataclasses.replace(eight, trained={**report_data.TRAINED, "start": start})
    text = _Reader(write_report(data, tmp_path / "page.html").read_text()).text
    assert f"Started from {said} Base after training" in text
