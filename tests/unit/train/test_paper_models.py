"""Models on paper have the sizes of those that would be built."""

from __future__ import annotations

import json

import pytest
from paper_models import PAPER, paper_sizes

from kray.train.model import load_policy
from kray.train.sizes import sizes_of


@pytest.mark.parametrize("path", PAPER)
def test_sizes_on_paper_are_those_of_the_model(path, tmp_path):
    described = PAPER[path] | {"tie_word_embeddings": False, "max_position_embeddings": 8192}
    (tmp_path / "config.json").write_text(json.dumps(described))
    built, paper = sizes_of(load_policy(str(tmp_path), "bfloat16", empty=True)), paper_sizes(path)
    assert sorted((w.layer, w.rows, w.columns) for w in built.weights) == sorted(
        (w.layer, w.rows, w.columns) for w in paper.weights
    )
    assert all(getattr(built, name) == getattr(paper, name) for name in paper.__slots__ if name != "weights")
