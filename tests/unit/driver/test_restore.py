"""What a run is made of, by its configuration."""

import pytest

from kray.driver.restore import prior_labels
from kray.records import Prompt


def prompt(source: str, **metadata: str) -> Prompt:
    known = f"{source} {sorted(metadata.items())}"
    return Prompt(id=known, answer="1", verifier="exact", source=source, text="?", metadata=metadata)


@pytest.mark.parametrize(
    ("by", "wanted"),
    [("kind", ["a", "a/1", "a/2", "b/1"]), ("source", ["a", "a", "a", "b"]), ("all", None)],
)
def test_prompts_share_a_prior_as_the_configuration_says(by, wanted):
    prompts = [prompt("a"), prompt("a", kind="1"), prompt("a", kind="2"), prompt("b", kind="1")]
    labels = prior_labels(prompts, by)
    assert (list(labels.values()) if labels else None) == wanted


def test_one_kind_is_the_population():
    assert prior_labels([prompt("a", kind="1"), prompt("a", kind="1", difficulty="2")], "kind") is None
