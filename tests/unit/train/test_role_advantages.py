"""Advantages of episodes with roles: every reward is compared with what its own role gets at its prompt."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kray.config.schema import PlanConfig
from kray.config.train_schema import TrainConfig
from kray.planner.role_beliefs import RoleBeliefs
from kray.records import Prompt, Rollout, RolloutGroup
from kray.rollout.views import split_roles
from kray.train.training_rows import step_rows

WINS = st.lists(st.booleans(), min_size=2, max_size=8)


def rollout(role, index, reward, tokens=3):
    sampled = np.ones(tokens, bool)
    return Rollout(
        "p",
        index,
        np.arange(5, 5 + tokens, dtype=np.int32),
        np.full(tokens, -0.5, np.float32),
        "stop",
        ((0, 0, tokens),),
        reward=reward,
        sampled=sampled,
        role=role,
        prompt_tokens=(3, 4),
    )


def episodes(prompt, wins, belief=(0.0, 0.0)):
    """Return the group of the first role; the second, its partner, wins where it loses."""
    found = []
    for index, win in enumerate(wins):
        lead = rollout("first", index, float(win))
        lead.partners = (rollout("second", index, 1.0 - win),)
        found.append(lead)
    return RolloutGroup(Prompt(prompt, "", "exact", "t", text=prompt), (3, 4), found, float(len(wins)), belief)


def rows_of(groups, **train):
    """Return the rows of these groups, and the (R,) role of each."""
    every = [group for part in split_roles(groups) for group in part]
    rows = step_rows(every, TrainConfig(advantage="mean", **train))
    return rows, np.array([every[number].role for number in rows.group.tolist()])


def test_edge_of_a_role_is_no_signal():
    """The second wins nearly always. Pooled, all of its rows would be encouraged and all of the first's discouraged."""
    wins = [False] * 7 + [True]
    rows, role = rows_of([episodes("p", wins)], baseline="group")
    first, second = rows.advantages[role == "first"], rows.advantages[role == "second"]
    assert first.sum() == pytest.approx(0, abs=1e-6)
    assert second.sum() == pytest.approx(0, abs=1e-6)
    # a win of the first is worth seven times a loss; of the second a loss costs seven times a win
    assert first.max() == pytest.approx(7 / 8)
    assert second.min() == pytest.approx(-7 / 8)
    # one group of both would give every role a mean other than 0
    pooled = np.array([*map(float, wins), *(1.0 - w for w in wins)])
    assert abs((pooled - pooled.mean())[:8].sum()) > 2


def test_a_role_that_always_wins_teaches_nothing():
    rows, _ = rows_of([episodes("p", [False] * 6)], baseline="group")
    assert len(rows) == 0


@given(st.lists(WINS, min_size=1, max_size=4))
def test_groups_are_by_prompt_and_role(games):
    lead, others = split_roles([episodes(f"p{i}", wins) for i, wins in enumerate(games)])
    assert [(g.prompt.id, g.role) for g in lead] == [(f"p{i}", "first") for i in range(len(games))]
    assert [(g.prompt.id, g.role) for g in others] == [(f"p{i}", "second") for i in range(len(games))]
    for one, two, wins in zip(lead, others, games, strict=True):
        assert one.rewards.tolist() == [float(w) for w in wins]
        assert (one.rewards + two.rewards).tolist() == [1.0] * len(wins)
        assert one.weight == two.weight == len(wins)


@given(st.lists(WINS, min_size=1, max_size=4))
def test_groups_without_roles_are_left_as_they_are(games):
    groups = [
        RolloutGroup(
            Prompt(f"p{i}", "", "exact", "t", text="x"),
            (3, 4),
            [rollout("", j, float(w)) for j, w in enumerate(wins)],
            1.0,
        )
        for i, wins in enumerate(games)
    ]
    same, others = split_roles(groups)
    assert others == []
    assert all(one is two for one, two in zip(same, groups, strict=True))


def test_beliefs_are_by_role():
    """After visits in which the second wins nine of ten, neither role's usual result has an advantage left."""
    roles, rng = (
        RoleBeliefs(PlanConfig(calibrate=False, fit_prior=False, fit_discount=False, discount=0.9)),
        np.random.default_rng(0),
    )
    ids = [f"p{i}" for i in range(40)]
    for _ in range(30):
        wins = (rng.random((40, 4)) < 0.1).astype(float)
        first = roles.visit("first", ids, list(wins))
        second = roles.visit("second", ids, list(1 - wins))
    for alpha_beta, rate in ((first, 0.1), (second, 0.9)):
        means = alpha_beta[:, 0] / alpha_beta.sum(axis=1)
        assert abs(means.mean() - rate) < 0.03
    groups = [episodes(f"p{i}", [j == 0 for j in range(10)], tuple(first[i])) for i in range(40)]
    lead, others = split_roles(groups)
    for group, belief in zip(others, second.tolist(), strict=True):
        assert group.belief == (0.0, 0.0), "the belief about one role is no baseline of another"
        group.belief = tuple(belief)
    rows = step_rows([*lead, *others], TrainConfig(baseline="belief", advantage="mean"))
    of_first = rows.group < 40
    assert abs(rows.advantages[of_first].mean()) < 0.03
    assert abs(rows.advantages[~of_first].mean()) < 0.03
    # with the first role's belief as baseline of both, the second would be encouraged by .8 whatever it did
    for group, belief in zip(others, first.tolist(), strict=True):
        group.belief = tuple(belief)
    pooled = step_rows([*lead, *others], TrainConfig(baseline="belief", advantage="mean"))
    assert pooled.advantages[pooled.group >= 40].mean() > 0.4
