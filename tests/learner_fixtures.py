"""Small random models, steps of random rollouts, and learners over them."""

from __future__ import annotations

import contextlib
import math
import os
import pickle
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from kray.config.train_schema import TrainConfig
from kray.records import Prompt, Rollout, RolloutGroup
from kray.train.learner import Learner

VOCABULARY = 32


@pytest.fixture
def train() -> TrainConfig:
    """AdamW's eps is large so that a gradient of rounding error does not become a step of full size."""
    return TrainConfig(lr=1e-2, eps=1e-3, weight_decay=0.1, grad_clip=0.5, microbatch_tokens=48, timeout_s=60)


@pytest.fixture
def probe() -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    return [((1, 2, 3), (4, 5)), ((7,), (8, 9, 10, 11)), ((7,), (3,))]


@pytest.fixture
def ragged() -> list[list[float]]:
    """Rewards of the groups of a step: some without a gradient, one of a single rollout."""
    return [[0, 1, 0], [1, 1], [0, 1, 1, 0.5, 0], [0], [1, 0], [0, 0, 0, 1]]


@pytest.fixture(scope="session")
def models(tmp_path_factory) -> dict[bool, str]:
    """Folders of a tied and an untied model."""
    folders = {}
    for tied in (True, False):
        torch.manual_seed(0)
        config = Qwen3Config(
            vocab_size=VOCABULARY,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=16,
            max_position_embeddings=128,
            tie_word_embeddings=tied,
            initializer_range=0.2,
            pad_token_id=0,
            eos_token_id=1,
            bos_token_id=None,
        )
        folders[tied] = str(tmp_path_factory.mktemp("tied" if tied else "untied"))
        Qwen3ForCausalLM(config).save_pretrained(folders[tied])
    return folders


@pytest.fixture
def make(train):
    """Make learners of one rank; a process has only one at a time."""
    made: list[Learner] = []

    def build(path: str, train: TrainConfig = train, dtype: str = "float32", **options) -> Learner:
        for learner in made:
            learner.shutdown()
        made.append(Learner(0, 1, "", 0, path, train, dtype, 10, 0, **options))
        return made[-1]

    yield build
    for learner in made:
        learner.shutdown()


@pytest.fixture(scope="session")
def some_groups():
    """some_groups(seed, rewards of each group's rollouts): random prompts and responses, with planner's weights."""

    def build(seed: int, rewards: list[list[float]]) -> list[RolloutGroup]:
        rng = np.random.default_rng(seed)
        groups = []
        for g, values in enumerate(rewards):
            rollouts = []
            for index, reward in enumerate(values):
                size = int(rng.integers(1, 12))
                tokens = rng.integers(0, VOCABULARY, size).astype(np.int32)
                logprobs = np.full(size, -math.log(VOCABULARY), np.float32)
                rollouts.append(Rollout(f"p{g}", index, tokens, logprobs, "stop", ((0, 0, size),), reward=reward))
            prompt = tuple(int(token) for token in rng.integers(0, VOCABULARY, rng.integers(1, 9)))
            weight = 1.5 * len(values)
            groups.append(RolloutGroup(Prompt(f"p{g}", "", "exact", "test", text="x"), prompt, rollouts, weight))
        return groups

    return build


@pytest.fixture(scope="session")
def some_conversations(some_groups):
    """some_groups' rollouts as conversations: the environment answers at two random places."""

    def build(seed: int, rewards: list[list[float]]) -> list[RolloutGroup]:
        rng = np.random.default_rng(seed + 1000)
        groups = some_groups(seed, rewards)
        for rollout in (rollout for group in groups for rollout in group.rollouts):
            sampled = np.ones(len(rollout.tokens), bool)
            for at in sorted(rng.integers(1, len(sampled) + 1, 2)):
                reply = rng.integers(0, VOCABULARY, rng.integers(1, 5))
                if at == len(rollout.tokens):
                    continue  # nothing follows the last turn
                rollout.tokens = np.insert(rollout.tokens, at, reply).astype(np.int32)
                rollout.logprobs = np.insert(rollout.logprobs, at, np.zeros(len(reply), np.float32))
                sampled = np.insert(sampled, at, np.zeros(len(reply), bool))
            rollout.sampled = sampled
        return groups

    return build


@pytest.fixture
def run_ranks(tmp_path):
    """run_ranks(n, cases): the cases in n processes that learn together; what each rank found (see learner_rank_process.py).

    Another program, and variables of its environment, can be given.
    """

    def run(
        ranks: int, cases: list[dict], program: str = "learner_rank_process.py", limit_s: float = 240, **variables: str
    ) -> list[list[dict]]:
        folder = tmp_path / f"ranks-{ranks}"
        folder.mkdir()
        for number, case in enumerate(cases):
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                case["port"] = free.getsockname()[1]
            case["checkpoint"] = str(folder / f"checkpoint-{number}")
        (folder / "job").write_bytes(pickle.dumps((ranks, cases)))
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
        command = [sys.executable, str(Path(__file__).with_name(program)), str(folder / "job")]
        started = subprocess.Popen(command, env=environment | variables, start_new_session=True)
        try:
            assert started.wait(timeout=limit_s) == 0
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(started.pid, signal.SIGKILL)  # the ranks too
        return [pickle.loads((folder / f"result-{rank}").read_bytes()) for rank in range(ranks)]

    return run
