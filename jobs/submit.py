"""Submit a job with `ray job submit` and follow it; Ctrl-C stops the job, which saves and ends.

    python jobs/submit.py jobs/train.py --config configs/quickstart.yaml
    RAY_API_SERVER_ADDRESS=http://head:8265 python jobs/submit.py jobs/train.py --config configs/gsm8k.yaml

Without RAY_API_SERVER_ADDRESS the Ray head on 127.0.0.1:8265 is used. A head on this machine is started when none answers
there; it stays up for the next job; `make stop` ends it.
"""

from __future__ import annotations

import sys
from pathlib import Path

from kray.launch.job_log import follow
from kray.launch.main import guarded
from kray.launch.submit import submit


def main() -> int:
    command = sys.argv[1:]
    if not command or command[0] in ("-h", "--help"):
        print(__doc__)
        return 0
    client, name = submit(command, Path(__file__).resolve().parent.parent)
    return follow(client, name)


if __name__ == "__main__":
    guarded(main)
