"""Write the reference pages of the configuration and the metrics, which are generated from their declarations.

python jobs/reference.py             # writes docs/reference/configuration.md and docs/reference/metrics.md
python jobs/reference.py --check     # exit code 1 and their names where the pages are out of date
"""

from __future__ import annotations

import argparse
from pathlib import Path

from kray.config.reference import pages, stale_pages
from kray.launch.main import guarded

ROOT = Path(__file__).parents[1]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; fail where a page is out of date")
    check = parser.parse_args().check
    stale = stale_pages(ROOT)
    for path in stale:
        if not check:
            (ROOT / path).parent.mkdir(parents=True, exist_ok=True)
            (ROOT / path).write_text(pages()[path], encoding="utf-8")
        print(f"{path} {'is out of date; run python jobs/reference.py' if check else 'written'}")
    if not stale:
        print("the reference pages are up to date")
    return 1 if check and stale else 0


if __name__ == "__main__":
    guarded(main)
