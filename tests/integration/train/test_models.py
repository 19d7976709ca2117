"""Every type of model that transformers knows: computed as its own forward pass does, or refused before anything starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from kray.bench import model_support
from kray.bench.model_families import Case, cases

PAGE = Path(__file__).parents[3] / "docs" / "models.md"


CASES = cases()


@pytest.fixture(scope="module")
def verdict(tmp_path_factory):
    """verdict(case): what the learner makes of it, found once."""
    found: dict[str, model_support.Examination] = {}

    def get(case: Case) -> model_support.Examination:
        if str(case) not in found:
            found[str(case)] = model_support.examine(case, tmp_path_factory.mktemp("model"))
        return found[str(case)]

    return get


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_model_is_right_or_refused(case, verdict):
    found = verdict(case)
    if not found.layout:
        assert found.reason
        assert found.early, f"the learner alone knows that: {found.reason}"
        return
    assert found.gap < 1e-4, found.layout
    assert found.moved < 1e-4, found.layout
    assert found.norms[1:] == pytest.approx([found.norms[0]] * 2, rel=1e-3)


def test_the_page_is_what_the_code_makes(verdict):
    expected = model_support.page(map(verdict, CASES))
    assert PAGE.read_text() == expected, "run python jobs/model_table.py"
