"""Write docs/models.md: how kray trains every type of model, found by training a tiny one of each.

python jobs/model_table.py            # a minute on one core
python jobs/model_table.py --print    # to the terminal, with the figures of each
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from transformers.utils import logging

from kray.bench.model_support import examine_all, page
from kray.launch.main import guarded

PAGE = Path(__file__).parents[1] / "docs" / "models.md"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--print", action="store_true", help="print instead of writing the file")
    arguments = parser.parse_args()
    # Tiny models have tokens and positions that their families warn about.
    logging.set_verbosity_error()
    with tempfile.TemporaryDirectory() as folder:
        examinations = examine_all(Path(folder))
    if arguments.print:
        for examination in examinations:
            figures = (
                f"gap {examination.gap:.1e} nats, moved {examination.moved:.1e} nats"
                if examination.layout
                else examination.reason
            )
            print(f"{examination.case}  {examination.layout or 'refused'}: {figures}")
        return 0
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page(examinations))
    print(
        f"{PAGE}: {len(examinations)} models, {sum(not examination.layout for examination in examinations)} of them refused"
    )
    return 0


if __name__ == "__main__":
    guarded(main)
