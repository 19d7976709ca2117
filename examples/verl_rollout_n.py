"""kray's budgets in verl: from an allocation of the planner's service to the column that verl's agent loop reads.

verl can generate another number of rollouts for each prompt. What its sources say (verl-project/verl, read in 2026 and not
run here; this file imports nothing of it and is only as right as what follows):
- `AgentLoopWorkerTQ._run_prompt` in verl/trainer/ppo/v1/agent_loop_tq.py takes `__rollout_n__` out of each prompt's fields
  and starts so many agent loops for it; without the field it starts `actor_rollout_ref.rollout.n`.
- `PPOTrainer._add_batch_to_generate` in verl/trainer/ppo/v1/trainer_base.py takes a dict of columns from the data loader, adds
  `uid`, and makes the TensorDict that the workers get (`tu.get_tensordict(batch_dict)`): the place for this column. Where
  verl sets `__rollout_n__` itself, for ReMax, it is a numpy array of int64 with one entry a prompt, as here.
- The older trainer on DataProto repeats the whole batch `rollout.n` times before it generates. The column can lie in
  `non_tensor_batch` there, but we found nothing that reads it: use the trainers on TransferQueue.
Not verified: what becomes of a prompt with 0 rollouts (so none is given); whether every advantage estimator and the cutting
of batches for data parallelism take groups of different sizes; where later versions keep this hook.

    budgets = allocate(url, key, successes, trials, budget=len(batch["uid"]) * 8)
    set_rollout_n(batch, budgets)            # a dict of columns, or the non_tensor_batch of a DataProto
"""

from __future__ import annotations

import json
import urllib.request
from collections.abc import MutableMapping, Sequence
from typing import Any

import numpy as np

COLUMN = "__rollout_n__"


def allocate(url: str, key: str, successes: Sequence[float], trials: Sequence[float], budget: int) -> np.ndarray:
    """Rollouts of each prompt, (M,) int64, from how often it was solved when it was last visited; trials 0: never."""
    body = {"successes": list(successes), "trials": list(trials), "budget": budget, "lower": 2, "upper": 64}
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    request = urllib.request.Request(f"{url}/v1/allocate", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=60) as answer:
        return np.asarray(json.load(answer)["budgets"], dtype=np.int64)


def set_rollout_n(columns: MutableMapping[str, Any], budgets: np.ndarray) -> None:
    """Puts the budgets beside the prompts' other columns. Raises ValueError when they are not one for each uid."""
    prompts = len(columns["uid"])
    if budgets.shape != (prompts,) or (budgets < 1).any():
        raise ValueError(f"{COLUMN} must be one number of rollouts >= 1 for each of {prompts} prompts")
    columns[COLUMN] = np.asarray(budgets, dtype=np.int64)
