"""Any number of ranks learns what one rank learns, and goes on with what another number has saved."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from rank_comparison import compare

from kray.config.schema import LoraConfig
from kray.train.training_rows import step_rows


@pytest.fixture
def cases(models, train, probe, some_groups, ragged):
    single = some_groups(5, [[0, 1]])
    single[0].rollouts[0].tokens = np.zeros(0, np.int32)  # one row for several ranks: the others have empty batches
    single[0].rollouts[0].logprobs = np.zeros(0, np.float32)
    two = [some_groups(0, ragged), some_groups(1, ragged)]
    found = []
    for tied, changes, lora, groups in [
        (True, {}, None, two),
        (False, {"updates": 2, "loss": "gspo", "tis": 1.5}, None, two),
        (True, {"kl": 0.1, "loss": "cispo", "reduce_each_microbatch": True}, None, [single, [], two[0]]),
        (True, {"kl": 0.1, "packing": False}, LoraConfig(rank=2), two),
        (
            True,
            {"baseline": "belief", "epochs": 3, "updates": 2, "thin": 0.7, "max_kl": 0.05, "lr_schedule": "linear"},
            None,
            two,
        ),
        (False, {"baseline": "belief", "epochs": 2, "tis": 2.0}, LoraConfig(rank=2), two),
    ]:
        setting = replace(train, **changes)
        rows = [step_rows(step, setting) for step in groups]
        found.append({"model": models[tied], "train": setting, "lora": lora, "rows": rows, "probe": probe})
    return found


@pytest.mark.parametrize("ranks", [2, 4])
def test_several_ranks_learn_what_one_rank_learns(run_ranks, make, cases, ranks, tmp_path):
    if ranks == 4:
        # Two copies of two shards each, with gradients reduced after each micro-batch and only at the end.
        cases = [dict(case, train=replace(case["train"], replicas=2)) for case in (*cases[1:3], cases[0])]
        cases[-1]["train"].replicas = 1
    compare(run_ranks, make, ranks, cases, tmp_path)
