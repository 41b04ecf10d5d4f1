"""The page of a comparison: what it says in words, that it is escaped, and that equal results give equal bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.show import compare_page, plots
from pipeline.show.terminal import show_comparison


def estimate(figure: float | None, low: float, high: float, *, seeds: bool = False) -> dict[str, Any]:
    rows = None if figure is None else [low, high]
    return {
        "figure": figure,
        "seeds": [figure],
        "over_rows": rows,
        "over_seeds": [low - 0.5, high + 0.5] if seeds else None,
    }


def method(name: str, title: str, accuracy: float, difference: dict[str, Any] | None) -> dict[str, Any]:
    rate = None if name == "probe" else 0.01
    tried = [
        {
            "rate": rate,
            "validation_loss": 0.5,
            "validation_accuracy": 0.9,
            "best_step": 1200,
            "diverged": None,
        }
    ]
    if name == "lora":
        tried.append({"rate": 9.0, "validation_loss": None, "validation_accuracy": None, "best_step": None, "diverged": "nan"})  # fmt: skip
    return {
        "method": name,
        "title": title,
        "source": "Somebody 2021",
        "rate": rate,
        "at_the_end": "lowest" if name == "lora" else None,
        "tried": tried,
        "details": {"rank": 8, "targets": ["query", "value"]},
        "trainable_parameters": 73_728,
        "head_parameters": 29_645,
        "artefact_bytes": 414_321,
        "seconds": [75.0],
        "peak_bytes": 812_000_000,
        "above_base_bytes": None if name == "probe" else 101_000_000,
        "latency_ms": {"median": 1.5, "low": 1.25, "high": 2.0, "to_prefix": 0.5},
        "quality": {"accuracy": estimate(accuracy, accuracy - 0.1, accuracy + 0.1)},
        "difference": None if difference is None else {"accuracy": difference},
    }


def made() -> dict[str, Any]:
    return {
        "prefix": "intents",
        "task": "classification",
        "metric": "accuracy",
        "rows": {"train": 1600, "validation": 200, "test": 200},
        "base": {"name": "minilm", "digest": "ab" * 32, "parameters": 22_713_216},
        "budget": {"steps": 240, "batch_size": 16, "seeds": [0]},
        "confidence": 0.95,
        "methods": [
            method("prefix", "Prefix", 0.8, None),
            method("prompt", "Prompt tuning", 0.6, estimate(-0.2, -0.3, -0.1)),
            method("lora", "LoRA", 0.9, estimate(0.1, 0.05, 0.15)),
            method("probe", "Linear probe", 0.81, estimate(0.01, -0.02, 0.04)),
        ],
        "base_latency_ms": {"median": 1.0, "low": 0.9, "high": 1.1},
        "equal": ["The rows."],
        "not_equal": ["The <script>alert(1)</script> weather."],
        "machine": {"system": "Linux x86_64", "cpus": 2, "threads": None},
        "page": "/somewhere/compare.html",
    }


@pytest.fixture
def result() -> dict[str, Any]:
    return made()


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    compare_page.write(made(), folder)
    return folder


def test_it_says_which_methods_are_better_worse_and_cannot_be_told_apart(written: Path):
    page = (written / compare_page.PAGE).read_text()
    assert "Prompt tuning is worse than the prefix by 0.200 in accuracy (−0.300 to −0.100)." in page
    assert "LoRA is better than the prefix by 0.100 in accuracy (+0.050 to +0.150)." in page
    assert (
        "Linear probe and the prefix cannot be told apart by accuracy here: the difference is +0.010" in page
    )
    assert "over test rows (bootstrap); one training each." in page


def test_costs_are_in_multiples_of_the_prefix(result: dict[str, Any]):
    result["methods"][2] |= {"trainable_parameters": 0, "artefact_bytes": 828_642, "seconds": [100.0, 200.0]}
    assert compare_page._costs(result["methods"][2], result) == (
        "In multiples of the prefix: trained parameters, head included 0.29, artefact 2.00, training time 2.00, latency 0.50."
    )


def test_with_several_seeds_the_interval_over_seeds_decides(result: dict[str, Any]):
    result["budget"]["seeds"] = [0, 1]
    result["methods"][2]["difference"]["accuracy"] = estimate(0.1, 0.05, 0.15, seeds=True)
    said = compare_page._verdict(result["methods"][2], result)
    assert said == (
        "LoRA and the prefix cannot be told apart by accuracy here: the difference is +0.100 (−0.450 to +0.650)."
    )
    assert compare_page._page(result)["interval_note"].startswith(
        "Intervals are 95 % over seeds (Student's)."
    )


def test_what_could_not_be_compared_is_said_so(result: dict[str, Any]):
    result["methods"][1]["difference"]["accuracy"] = estimate(None, 0, 0)
    said = compare_page._verdict(result["methods"][1], result)
    assert said == "Prompt tuning: accuracy could not be compared with the prefix's."
    assert compare_page.rows(result)[1][2] == ["–"]


def test_text_is_escaped_and_the_page_loads_nothing(written: Path):
    page = (written / compare_page.PAGE).read_text()
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert "default-src 'none'" in page
    assert page.count("<svg") == 7


def test_equal_results_give_equal_pages_and_pictures(written: Path, tmp_path: Path):
    compare_page.write(made(), tmp_path)
    names = sorted(path.relative_to(written) for path in written.rglob("*") if path.is_file())
    assert len(names) == 8
    for name in names:
        assert (written / name).read_bytes() == (tmp_path / name).read_bytes()


def test_a_rate_that_diverged_and_one_at_the_end_of_those_tried_are_shown(result: dict[str, Any]):
    cells = dict(zip(compare_page.columns(result), compare_page.rows(result)[2], strict=True))
    assert cells["Learning rate"] == ["0.01", "lowest tried"]
    assert cells["Trained"] == ["73,728", "+ 29,645 head"]
    assert cells["Artefact"] == ["414 kB"]
    assert cells["Training"] == ["1 min 15 s"]
    assert cells["Memory"] == ["812 MB", "+ 101 MB"]
    assert cells["Latency"] == ["1.50 ms/row", "1.25 to 2.00", "0.50 × prefix"]
    assert [row["loss"] for row in compare_page._page(result)["tried"]] == [
        "0.5000",
        "0.5000",
        "0.5000",
        "not finite",
    ]


@pytest.mark.parametrize(
    ("number", "said"),
    [(0, "0 B"), (812, "812 B"), (999.4, "999 B"), (27_300, "27.3 kB"), (1_400_000, "1.4 MB"), (999_000_000, "999 MB"), (3_210_000_000, "3.21 GB")],
)  # fmt: skip
def test_sizes_are_in_words(number: float, said: str):
    assert compare_page.size(number) == said


def test_the_terminal_has_the_table_and_both_lists(
    result: dict[str, Any], capsys: pytest.CaptureFixture[str]
):
    show_comparison(result)
    said = capsys.readouterr().out
    for text in ("Prompt tuning", "0.200 worse", "0.100 better", "Held equal", "The rows.", "compare.html"):
        assert text in said


@pytest.mark.parametrize("draw", [plots.metric_figure, plots.difference_figure])
def test_a_long_title_of_a_picture_lies_within_it(draw: Any) -> None:
    title = "Accuracy: better (right) or worse (left) than the prefix, WWWWWWWW"
    bars = (plots.Bar("prefix", 0.5, 0.4, 0.6), plots.Bar("Prompt tuning", 0.4, None, None))
    figure = draw(plots.MetricBars("quality", title, bars, 3))
    figure.draw_without_rendering()
    drawn = figure.get_suptitle()
    assert drawn.replace("\n", " ") == title
    box = figure._suptitle.get_window_extent()
    assert box.x0 >= 0
    assert box.x1 <= figure.bbox.x1
    assert box.y1 <= figure.bbox.y1
    (axes,) = figure.axes
    assert box.y0 >= axes.get_window_extent().y1
