"""The README agrees with the code."""

from pathlib import Path

from kray.tracking.metrics import describe

ROOT = Path(__file__).parents[1]


def test_the_metrics_table_is_the_codes():
    assert describe() in (ROOT / "README.md").read_text()


def test_every_file_that_it_names_exists():
    text = (ROOT / "README.md").read_text()
    for name in (
        "jobs/train.py",
        "jobs/evaluate.py",
        "configs/quickstart.yaml",
        "configs/gsm8k.yaml",
        "kray/config/schema.py",
    ):
        assert name in text
        assert (ROOT / name).is_file()
