"""What every family of generated tasks promises: seeds, splits, kinds that alternate."""

import pytest

from kray.config.prompts_schema import SourceConfig
from kray.errors import DataError
from kray.prompts import load_prompts
from kray.prompts.passages import PASSAGES
from kray.prompts.programs import PROGRAMS
from kray.prompts.questions import QUESTIONS

FAMILIES = pytest.mark.parametrize("family", [QUESTIONS, PROGRAMS, PASSAGES], ids=lambda family: family.name)
KINDS = [(family, kind) for family in (QUESTIONS, PROGRAMS, PASSAGES) for kind in family.templates]


@FAMILIES
def test_splits_share_no_text_and_seeds_repeat(family):
    train, test = ({task.text for task in family.make([], 2000, 0, split)} for split in ("train", "test"))
    assert not train & test
    assert family.make([], 50, 3, "train") == family.make([], 80, 3, "train")[:50]
    assert family.make([], 50, 3, "train") != family.make([], 50, 4, "train")


@pytest.mark.parametrize(("family", "kind"), KINDS, ids=lambda value: getattr(value, "name", value))
def test_a_small_kind_repeats_only_after_its_tasks_are_used_up(family, kind):
    made = [task.text for task in family.make([kind], 300, 0, "test")]
    different = len(set(made))
    assert len(set(made[:different])) >= 0.9 * different


@FAMILIES
def test_source_alternates_the_kinds_that_are_asked_for(family):
    first, *_, last = family.templates
    source = SourceConfig(kind=family.name, size=6, tasks={first: {}, last: {}})
    prompts = load_prompts(source, "of the family")
    assert [prompt.metadata["kind"] for prompt in prompts] == [first, last] * 3
    assert {prompt.verifier for prompt in prompts} == {"of the family"}
    every = load_prompts(SourceConfig(kind=family.name, size=len(family.templates)), "")
    assert [prompt.metadata["kind"] for prompt in every] == [*family.templates]


@FAMILIES
def test_unknown_kinds_and_splits_are_named(family):
    known = ", ".join(family.templates)
    with pytest.raises(DataError, match=rf"tasks\.sums: {family.name} have no such kind; they have {known}"):
        load_prompts(SourceConfig(kind=family.name, tasks={"sums": {}}), "math")
    with pytest.raises(ValueError, match=f'kind "sums" is not one of {known}'):
        family.make(["sums"], 1, 0, "train")
    with pytest.raises(ValueError, match='split "dev" is not one of train, test'):
        family.make([], 1, 0, "dev")
