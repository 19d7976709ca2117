"""vLLM itself takes the settings of engines on GPUs, as far as it looks at them before it needs a GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict

import pytest
from conftest import make_policy

from kray.rollout.engine_spec import EngineSpec

# In a process of its own: vLLM reads its environment when it is imported.
CODE = """
import json, sys
from vllm import EngineArgs
from vllm.usage.usage_lib import UsageContext
from kray.rollout.engine_spec import EngineSpec

for settings in json.load(sys.stdin):
    engine = EngineArgs(**EngineSpec(**settings).vllm_options()).create_engine_config(UsageContext.ENGINE_CONTEXT)
    print("tokens", engine.scheduler_config.max_num_batched_tokens)
"""


@pytest.mark.parametrize("gpus", [0, 1])
def test_vllm_takes_more_sequences_than_its_default_tokens_of_a_step(tmp_path, gpus):
    folder = str(make_policy(tmp_path / "model"))
    specs = [EngineSpec(folder, "float32", 128, count, 1, gpus, 0.1, 0.85, True, 0) for count in (256, 4096, 10_000)]
    environment = {**os.environ, **specs[0].environment(), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, "-c", CODE],
        input=json.dumps([asdict(spec) for spec in specs]),
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    told = [line for line in done.stdout.splitlines() if line.startswith("tokens ")]
    assert told == ["tokens 8192", "tokens 8192", "tokens 10000"], done.stderr
