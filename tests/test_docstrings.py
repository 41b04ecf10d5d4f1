"""The example's data: harvested from sources made here, and once from the installed libraries."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).resolve().parent.parent / "examples/docstrings.py"


@pytest.fixture(scope="module")
def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docstrings_example", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder from which packages are found, as if installed; importing them ends the tests."""
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def package(folder: Path, name: str, **modules: str) -> None:
    (folder / name).mkdir()
    (folder / name / "__init__.py").write_text("raise SystemExit('imported, but must only be parsed')\n")
    for module, source in modules.items():
        path = folder / name / f"{module.replace('__', '/')}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(source)


SOURCE = '''
"""Plans the dinner for all of the guests.

A second paragraph is left out.
"""

class Oven:
    """Bakes whatever is put
    into it until it is done."""

    def bake(self, x):
        """Bake the given thing for half an hour."""
        def later():
            """Take it out again before it burns."""

    if True:
        async def cool(self):
            """Wait until nobody burns their fingers."""

def eat():
    """Eat everything that is on the table."""
    try:
        class Spoon:
            """Carries soup from bowls to open mouths."""
    finally:
        pass

text = lambda: "not a docstring, whatever it says here"
'''


def test_every_documented_thing_is_found_with_its_kind_and_first_paragraph(
    example: ModuleType, installed: Path
) -> None:
    package(installed, "kitchen", dinner=SOURCE)
    assert {(row.text, row.kind) for row in example.harvest("kitchen")} == {
        ("Plans the dinner for all of the guests.", "module"),
        ("Bakes whatever is put into it until it is done.", "class"),
        ("Bake the given thing for half an hour.", "method"),
        ("Take it out again before it burns.", "function"),
        ("Wait until nobody burns their fingers.", "method"),
        ("Eat everything that is on the table.", "function"),
        ("Carries soup from bowls to open mouths.", "class"),
    }


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("Converts torch.nn.Linear into PyTorch form", "Converts LIBRARY into LIBRARY form"),
        ("Torch's TORCH and `torch`", "LIBRARY's LIBRARY and `LIBRARY`"),
        ("A TorchScript, by get_torch_version", "A LIBRARYScript, by get_LIBRARY_version"),
        (":class:`~torch.Tensor`, see torch.", ":class:`~LIBRARY`, see LIBRARY."),
        ("tt.ones and TT", "LIBRARY and LIBRARY"),
        ("attached matter", "attached matter"),
    ],
)
def test_the_librarys_own_names_are_masked(example: ModuleType, text: str, masked: str) -> None:
    assert example.mask(text, "torch", ("tt",)) == masked


@pytest.mark.parametrize(
    "text",
    ["x = 1 + (2 * 3) / 4.5; y[0] == 'a' -> b()", "给定 一个 图 返回 它 的 所有 边", "| a | b | c | d | e |"],
)
def test_what_is_no_english_prose_is_left_out(example: ModuleType, text: str) -> None:
    assert 5 <= len(text.split()) <= 60
    assert not example.usable(text)


def test_bounds_are_five_and_sixty_words(example: ModuleType) -> None:
    assert not example.usable("four words are few")
    assert example.usable("these five words are enough")
    assert example.usable("word " * 60)
    assert not example.usable("word " * 61)


def test_a_text_that_two_libraries_share_is_dropped_from_both_whatever_its_case(
    example: ModuleType,
) -> None:
    shared = [example.Row("Return the number of all items.", "a", "method")]
    other = [example.Row("return the NUMBER of all items", "b", "function")]
    own = {name: [example.Row(f"Says what only {name} says here.", name, "class")] for name in "ab"}
    rows = example.sample({"a": shared + own["a"], "b": own["b"] + other}, 1)
    assert sorted(row.text for row in rows) == [
        "Says what only a says here.",
        "Says what only b says here.",
    ]


def test_a_text_that_one_library_repeats_is_kept_once(example: ModuleType, installed: Path) -> None:
    source = 'def f():\n    """Return the number of all items."""\n'
    package(installed, "twice", one=source, two=source.replace("items.", "items"))
    assert len(example.harvest("twice")) == 1


def test_a_larger_sample_contains_the_smaller_one_in_the_same_order(example: ModuleType) -> None:
    harvested = sorted(
        (example.Row(f"This is sentence number {'x' * i}.", "a", "class") for i in range(50)),
        key=lambda row: row.rank,
    )
    small, large = example.sample({"a": harvested}, 20), example.sample({"a": harvested}, 35)
    assert [row for row in large if row in small] == small
    assert len(set(large) - set(small)) == 15


def test_tests_vendored_code_and_unparsable_files_are_skipped(
    example: ModuleType, installed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = 'def f():\n    """Return the number of all {} items."""\n'
    package(
        installed,
        "big",
        latest=source.format("latest"),
        tests__unit=source.format("test"),
        _vendor__six=source.format("vendored"),
        test_big=source.format("tested"),
        broken="def f(:\n",
    )
    (installed / "big/latin.py").write_bytes(b'"""caf\xe9 and some more words here"""\n')
    assert [row.text for row in example.harvest("big")] == ["Return the number of all latest items."]
    skipped = capsys.readouterr().err
    assert "broken.py: skipped" in skipped
    assert "latin.py: skipped" in skipped


def test_a_library_that_is_missing_or_too_small_is_an_error(example: ModuleType, installed: Path) -> None:
    with pytest.raises(example.HarvestError, match="no_such_library is not installed"):
        example.harvest("no_such_library")
    package(installed, "small", one='"""Only one sentence of use here."""\n')
    with pytest.raises(example.HarvestError, match="small has 1 usable docstrings; expected at least 2"):
        example.sample({"small": example.harvest("small")}, 2)


def test_the_command_writes_balanced_rows_of_the_installed_libraries_the_same_every_time(
    example: ModuleType, tmp_path: Path
) -> None:
    def run(name: str, *more: str) -> list[dict[str, str]]:
        command = [
            sys.executable,
            str(SCRIPT),
            "--out",
            str(tmp_path / "data" / name),
            "--rows",
            "500",
            *more,
        ]
        subprocess.run(command, check=True, capture_output=True)
        return [json.loads(line) for line in (tmp_path / "data" / name).read_text().splitlines()]

    first, second = run("first"), run("second", "--more", "60")
    libraries = sorted(example.LIBRARIES)
    assert len(libraries) == 8
    for rows, each in ((first, 500), (second, 560)):
        labels = [row["label"] for row in rows]
        assert {label: labels.count(label) for label in libraries} == dict.fromkeys(libraries, each)
    assert [row for row in second if row in first] == first
    assert {row["kind"] for row in first} == {"module", "class", "function", "method"}
    assert not [row for row in first if row["label"] in row["text"].lower()]
    texts = [row["text"].casefold() for row in second]
    assert len(set(texts)) == len(texts)
