"""jobs/train.py on a machine whose Ray node has the address KRAY_TESTS_NODE.

All nodes of a test are on one machine, where Ray would connect a job to the head's.
"""

from __future__ import annotations

import functools
import os
import runpy
import sys
from pathlib import Path

import ray

ray.init = functools.partial(ray.init, _node_ip_address=os.environ["KRAY_TESTS_NODE"])
job = Path(__file__).parents[1] / "jobs/train.py"
sys.path[0] = str(job.parent)
runpy.run_path(str(job), run_name="__main__")
