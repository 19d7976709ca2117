"""Collections of episodes with roles in this process: a policy of chance that plays Nim, and workers without processes."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
from dataclasses import dataclass, field

import numpy as np

from kray.config.players import read_player
from kray.config.prompts_schema import SourceConfig
from kray.config.schema import EnvironmentConfig, RolloutConfig
from kray.environments import role_turns
from kray.environments.nim import HEAPS, moves, read_position
from kray.prompts.tokenize import encode_prompt
from kray.records import EncodedPrompt, Prompt, Rollout, RolloutTask, Sampling, derive_seed
from kray.rollout.collector import EVALUATION, TRAINING, Collector, Draw
from kray.rollout.episodes import EpisodeRunner
from kray.rollout.outcome import TaskOutcome
from kray.rollout.plans import FixedPlan
from kray.rollout.views import Encoder
from kray.train.tiny_files import make_tokenizer

TOKENIZER = make_tokenizer("0123456789>" + HEAPS)
EOS = TOKENIZER.eos_token_id
SOURCE = SourceConfig(chat=False)
POSITIONS = ("352>", "11>", "1>", "224>")


class LocalRoleWorkers:
    """Environment workers without processes; what they return goes through JSON as between processes."""

    def __init__(self, name: str = "nim", **settings):
        self.environment = EnvironmentConfig(name=name, **settings)

    async def begin_episodes(self, starts):
        name, options = self.environment.name, self.environment.options
        return [self._do(role_turns.begin, (name, options, *start)) for start in starts]

    async def move(self, moves):
        await asyncio.sleep(0)
        return [self._do(role_turns.step, move) for move in moves]

    @staticmethod
    def _do(act, argument):
        try:
            return role_turns.RoleTurn.read(json.loads(json.dumps(act("", argument).plain())))
        except Exception as error:
            return f"environment: {type(error).__name__}: {error}"


def play_nim(task: RolloutTask, index: int, illegal: float) -> str:
    """Return a move of chance in the position that the prompt ends with; one of ten is illegal."""
    rng = random.Random(f"{task.seed + index}/{task.prompt_tokens}")
    text = TOKENIZER.decode(list(task.prompt_tokens), skip_special_tokens=True)
    # moves and positions follow each other: the last digits before ">" after the last letter and its number
    digits = text[:-1]
    cut = max(digits.rfind(letter) for letter in HEAPS)
    heaps = read_position(digits[cut + 2 :] if cut >= 0 else digits.rsplit(">", 1)[-1])
    return "a9" if rng.random() < illegal else rng.choice(moves(heaps))


@dataclass
class Table:
    """A pool whose policy plays Nim by chance; tasks end in any order, and some fail."""

    order: random.Random
    failing: int = 0
    illegal: float = 0.1
    tasks: list[RolloutTask] = field(default_factory=list)
    left: set[int] = field(default_factory=set)
    # (task, rollout) of everything that was sampled
    sampled: list[tuple[RolloutTask, Rollout]] = field(default_factory=list)
    task_ids: itertools.count = field(default_factory=itertools.count)

    def open(self, priority=0):
        return self

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    async def close(self):
        pass

    def submit(self, tasks):
        self.tasks += tasks
        self.left |= {task.id for task in tasks}

    async def next(self):
        await asyncio.sleep(0)
        task = self.tasks.pop(self.order.randrange(len(self.tasks)))
        self.left.discard(task.id)
        if derive_seed(task.seed, task.first_index, "fails") % 100 < self.failing:
            return TaskOutcome(task, [], "no engine")
        rollouts = [self._sample(task, task.first_index + i) for i in range(task.rollouts)]
        self.sampled += [(task, rollout) for rollout in rollouts]
        return TaskOutcome(task, rollouts)

    def _sample(self, task, index):
        text = play_nim(task, index, self.illegal)
        tokens = [*TOKENIZER(text)["input_ids"], EOS][: task.sampling.max_tokens]
        logprobs = -np.arange(1, len(tokens) + 1, dtype=np.float32)
        reason = "stop" if tokens[-1] == EOS else "length"
        return Rollout(task.prompt_id, index, np.array(tokens, np.int32), logprobs, reason, ((3, 0, len(tokens)),))


def make_collector(table, players=None, frozen=None, endpoints=None, **settings):
    """Return a collector of episodes in which the policy plays all roles but those of `players`."""
    workers = LocalRoleWorkers(**{"max_turns": 12} | settings)
    who = {role: read_player((players or {}).get(role, "policy"), role) for role in ("first", "second")}
    sources = {TRAINING: SOURCE, EVALUATION: SOURCE}
    runner = EpisodeRunner(workers, Encoder(TOKENIZER, 24), sources, who, endpoints, frozen)
    return Collector(table, None, TOKENIZER, RolloutConfig(split=4), runner)


def encoded(texts=POSITIONS):
    prompts = [Prompt(text, "", "exact", "test", text=text) for text in texts]
    return [EncodedPrompt(prompt, encode_prompt(prompt, TOKENIZER, SOURCE)) for prompt in prompts]


def collect(table, players=None, rollouts=6, max_tokens=60, texts=POSITIONS, **settings):
    """Return the collected step of the policy's episodes."""
    pairs = encoded(texts)
    plan = FixedPlan([prompt.id for prompt, _ in pairs], rollouts)
    draw = Draw(lambda name: derive_seed(0, name), Sampling(max_tokens, stop_token_ids=(EOS,)), 3)
    return asyncio.run(make_collector(table, players, **settings).collect(plan, pairs, draw))
