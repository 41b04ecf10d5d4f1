"""Every property on every architecture, and the page that shows them."""

from __future__ import annotations

import pytest

from tests.prefix.architecture_page import PAGE, page
from tests.prefix.cases import CASES, Case
from tests.prefix.properties import PROPERTIES, outcome


def test_the_table_has_the_cases_it_is_meant_to() -> None:
    count = {kind: sum(case.kind == kind for case in CASES) for kind in {case.kind for case in CASES}}
    assert count == {"decoder": 27, "encoder": 12, "encoder of tokens": 8, "encoder-decoder": 4}


@pytest.mark.parametrize("name", PROPERTIES)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_property_holds_or_is_refused(case: Case, name: str) -> None:
    assert outcome(case, name)


def test_the_page_says_what_the_tests_find() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run: make architectures"
