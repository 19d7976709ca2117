"""Limits of kinds (plan.adapt): what is measured, how limits move, and where budgets go."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from kray.plan_modes import PlanConfig
from kray.planner import BetaValue, KnapsackPlanner
from kray.planner.adapting import ALL, ENOUGH, LAST, NOTCH, UNSOLVED, Adaptation
from kray.planner.limits import StepRequest
from kray.prompts.admission import Admission
from kray.prompts.sampler import PromptSampler

# Where the belief is the baseline; where the group is, with prompts that may be left out and with none.
BELIEF = {"value": "baseline", "lower": 1, "candidates": 4.0}
GROUP = {"value": "paper", "lower": 2, "candidates": 2.0}
GROUP_ALL = {"value": "paper", "lower": 4, "candidates": 1.0}
SETTINGS = {"belief": BELIEF, "group": GROUP, "group, all visited": GROUP_ALL}
PER_STEP, BUDGET = 16, 128


class Run:
    """A planner over prompts of kinds, whose rewards are drawn at success rates that do not change by themselves."""

    def __init__(self, kinds, seed=0, each=48, **plan):
        rng = np.random.default_rng([seed, 0])
        self.kind_of = {f"{kind}-{i}": kind for i in range(each) for kind in kinds}
        self.ids = list(self.kind_of)
        self.rate = {prompt: float(kinds[kind](rng)) for prompt, kind in self.kind_of.items()}
        plan = {"mode": "static", "budget": BUDGET, "adapt": True, "fit_discount": False, "fit_prior": False} | plan
        self.planner = KnapsackPlanner.of(PlanConfig(**plan), self.kind_of)
        self.place = {prompt: i for i, prompt in enumerate(self.ids)}
        self.chooses = plan["candidates"] > 1
        stream = PromptSampler(self.ids, 1, seed)
        self.admission = Admission(stream, min(round(plan["candidates"] * PER_STEP), len(self.ids)), 16, BUDGET // 2)
        self.step = 0

    def begin(self):
        indices, due = self.admission.offer(self.step)
        return self.planner.begin([self.ids[i] for i in indices], due=due if self.chooses else None)

    def next(self):
        """Carry out one step; return its budgets by prompt."""
        plan, rng = self.begin(), np.random.default_rng([7, self.step])
        for prompt, n in plan.take(None):
            plan.observe(prompt, (rng.random(n) < self.rate[prompt]).astype(float).tolist())
        assert plan.done
        found = plan.allocation().admitted()
        self.admission.visited(self.step, [self.place[i] for i in found.prompt_ids])
        self.step += 1
        budgets = dict(zip(found.prompt_ids, found.budgets.tolist(), strict=True))
        assert sum(budgets.values()) == BUDGET
        return budgets

    def spent(self, kind, steps):
        """Carry out steps; return the rollouts that the kind got in them."""
        done = [self.next() for _ in range(steps)]
        return sum(n for budgets in done for prompt, n in budgets.items() if self.kind_of[prompt] == kind)


def mixed(rng):
    return rng.beta(4, 4)


def hopeless(rng):
    return 0.0


def solved(rng):
    return 0.995


def u_shaped(rng):
    return rng.choice([0.0, 0.1, 0.5, 0.97])


labels = st.lists(st.sampled_from([0.0, 0.25, 1.0]), min_size=0, max_size=6)


@given(st.lists(st.tuples(labels, st.floats(0, 20), st.floats(0, 20), st.booleans()), min_size=1, max_size=8))
@settings(max_examples=80)
def test_the_signal_is_that_of_every_reward_by_itself(groups):
    ids = [str(i) for i in range(len(groups))]
    kinds = {i: f"kind-{int(i) % 2}" for i in ids} | {"other": "kind-1"}
    wanted = np.zeros((2, 2, 3))
    for i, (rewards, a, b, unsolved) in enumerate(groups):
        n, k = len(rewards), a + b
        if not n:
            continue
        m = (a + sum(rewards)) / (k + n)
        found = [n * (k + n - 1) / (k + n), 3.0 * n * (k + n - 1) / (k + n), sum((r - m) ** 2 for r in rewards)]
        wanted[ALL, i % 2] += found
        wanted[UNSOLVED, i % 2] += found if unsolved else 0
    sums = np.array([[sum(r), sum(x * x for x in r), len(r)] for r, *_ in groups]).T
    unsolved, baseline = np.array([g[3] for g in groups]), np.array([g[1:3] for g in groups])
    made = Adaptation(PlanConfig(), kinds).after(ids, unsolved, baseline, sums, np.full(len(ids), 3.0))
    np.testing.assert_allclose(made._sums, wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("known", [0, 1, 5])
@pytest.mark.parametrize("n", [1, 2, 7])
def test_the_signal_is_the_variance_of_rewards_whatever_the_group_and_the_belief(p, known, n):
    """Over all rewards of n rollouts, and all beliefs that `known` labels give."""
    found = np.zeros(3)
    for passed in range(n + 1):
        for before in range(known + 1):
            sums = np.array([[passed], [passed], [n]], dtype=float)
            baseline = np.array([[before, known - before]], dtype=float)
            made = Adaptation(PlanConfig()).after(["x"], np.zeros(1, dtype=bool), baseline, sums, np.ones(1))
            found += binom.pmf(passed, n, p) * binom.pmf(before, known, p) * made._sums[ALL, 0]
    assert found[2] == pytest.approx(p * (1 - p) * found[0], abs=1e-12)


def adapted(plan, notches, kinds):
    """An adaptation of kinds "0", "1", ... with these notches (2, K)."""
    made = Adaptation(plan, kinds)
    state = {name: [[[0.0] * 3] * 2, [int(x) for x in notches[:, i]], [0, 0]] for i, name in enumerate(made.names)}
    made.load_dict(state)
    return made


@given(st.data(), st.integers(1, 30), st.sampled_from([1.0, 2.0]), st.integers(2, 5))
@settings(max_examples=100)
def test_limits_are_within_those_of_the_configuration_and_can_be_met(data, m, candidates, lower):
    plan = PlanConfig(lower=lower, upper=lower + data.draw(st.integers(0, 30)), value="paper", candidates=candidates)
    kinds = {str(i): str(data.draw(st.integers(0, 2))) for i in range(m)}
    kinds |= {"a": "0", "b": "1", "c": "2"}
    notches = np.array(data.draw(st.lists(st.integers(0, LAST), min_size=6, max_size=6))).reshape(2, 3)
    made = adapted(plan, notches, kinds)
    shape = st.lists(st.floats(0.1, 9), min_size=m, max_size=m)
    value = BetaValue(data.draw(shape), data.draw(shape))
    failed = np.array(data.draw(st.lists(st.integers(0, 3), min_size=m, max_size=m)))
    solved = np.array(data.draw(st.lists(st.integers(0, 1), min_size=m, max_size=m)))
    due = np.array(data.draw(st.lists(st.booleans(), min_size=m, max_size=m)))
    chooses = candidates > 1
    least = np.where(due, lower, 0) if chooses else np.full(m, lower)
    budget = data.draw(st.integers(int(least.sum()), plan.upper * m))
    request = StepRequest(list(kinds)[:m], budget, np.ones(m), least, np.full(m, plan.upper), None, None)
    number = made.numbers(request.ids)
    found, unsolved = made.limited(request, number, (solved, failed), value)
    assert (unsolved == ((solved == 0) & (failed > 0))).all()
    assert (found.least <= found.upper).all()
    assert found.least.sum() <= budget <= found.upper.sum()
    assert (found.upper <= plan.upper).all()
    assert (found.least <= least).all()
    if chooses:
        assert (found.least == least).all()
        assert ((found.upper == 0) | (found.upper >= lower)).all()
    if found is request or (notches == 0).all():
        assert (found.least == least).all()
        assert (found.upper == plan.upper).all()
        return
    # by hand: of each kind the prompts that are worth most, so many that their share is not below the kind's
    worth = value.total(np.full(m, lower))
    free = [i for i in range(m) if not (chooses and due[i])]
    for kind in range(3):
        mine = sorted((i for i in free if number[i] == kind), key=lambda i: (-worth[i], i))
        tried = [i for i in mine if unsolved[i]]
        offered = set(mine[: int(np.ceil(NOTCH ** notches[ALL, kind] * len(mine) - 1e-9))])
        offered -= set(tried[int(np.ceil(NOTCH ** notches[UNSOLVED, kind] * len(tried) - 1e-9)) :])
        cap = round(lower * (plan.upper / lower) ** (1 - notches[ALL, kind] / LAST))
        for i in mine:
            assert found.upper[i] == (cap if i in offered else found.least[i])
    assert (found.upper[due & chooses] >= lower).all()


def test_a_limit_moves_by_a_notch_a_step_and_not_to_and_fro():
    made, seen = Adaptation(PlanConfig(), {"dull": "dull", "good": "good"}), []
    for _ in range(12):
        sums = np.array([[0.0, 64.0], [0.0, 64.0], [64.0, 128.0]])
        made = made.after(["dull", "good"], np.zeros(2, dtype=bool), np.zeros((2, 2)), sums, np.ones(2))
        seen.append(int(made._notches[ALL, 0]))
    assert seen[-1] == LAST
    assert set(np.diff([0, *seen])) <= {0, 1}
    assert not made._notches[:, 1].any()
    assert made.signals()[ALL, 0] < ENOUGH * NOTCH**LAST
    # nothing moves between the shares of the two notches beside
    for notch in range(LAST):
        for share in (NOTCH ** (notch + 0.9), NOTCH ** (notch - 0.9)):
            made.load_dict({"dull": [[[0.0] * 3] * 2, [notch, 0], [0, 0]]})
            made.signals = lambda share=share: np.full((2, 2), ENOUGH * share)
            moved = made.after([], np.zeros(0, dtype=bool), np.zeros((0, 2)), np.zeros((3, 0)), np.ones(0))
            assert moved._notches[ALL, 0] == notch


@pytest.mark.parametrize("baseline", SETTINGS)
@pytest.mark.parametrize("dull", [hopeless, solved])
def test_budgets_move_from_kinds_that_teach_nothing_to_those_that_do(baseline, dull):
    kinds = {"mixed": mixed, "dull": dull}
    fixed, adapting = (Run(kinds, adapt=adapt, **SETTINGS[baseline]) for adapt in (False, True))
    for run in (fixed, adapting):
        run.spent("dull", 12)
    spent = [run.spent("dull", 16) for run in (fixed, adapting)]
    assert spent[1] < 0.8 * spent[0]
    metrics = adapting.planner.adaptation.metrics()
    assert metrics["planner/kind_offered_dull"] < 0.7
    assert metrics["planner/kind_upper_dull"] < 50
    assert metrics["planner/kind_offered_mixed"] == 1.0
    assert metrics["planner/kind_upper_mixed"] == 128


@pytest.mark.parametrize("baseline", SETTINGS)
@pytest.mark.parametrize("shape", [mixed, u_shaped])
def test_equal_kinds_keep_their_limits(baseline, shape):
    for seed in range(3):
        run = Run({f"kind-{i}": shape for i in range(4)}, seed=seed, **SETTINGS[baseline])
        for _ in range(16):
            run.next()
            assert not run.planner.adaptation._notches[ALL].any()


@pytest.mark.parametrize("baseline", SETTINGS)
def test_without_dull_kinds_plans_are_those_of_fixed_limits(baseline):
    runs = [Run({"a": mixed, "b": mixed}, adapt=adapt, **SETTINGS[baseline]) for adapt in (False, True)]
    for _ in range(12):
        assert runs[0].next() == runs[1].next()


@pytest.mark.parametrize("baseline", SETTINGS)
def test_a_kind_that_begins_to_teach_gets_its_limits_back(baseline):
    run = Run({"mixed": mixed, "late": hopeless}, **SETTINGS[baseline])
    run.spent("late", 16)
    assert run.planner.adaptation._notches[ALL, 0] >= 3
    run.rate |= {prompt: 0.5 for prompt, kind in run.kind_of.items() if kind == "late"}
    run.spent("late", 24)
    assert not run.planner.adaptation._notches[ALL].any()


@pytest.mark.parametrize("baseline", ["belief", "group, all visited"])
def test_fewer_never_solved_prompts_are_tried_where_these_taught_nothing(baseline):
    plan, found = SETTINGS[baseline] | {"lower": 1 if baseline == "belief" else 2}, []
    for adapt in (False, True):
        run = Run({"half": lambda rng: rng.choice([0.0, 0.5])}, each=96, adapt=adapt, **plan)
        never = {prompt for prompt, rate in run.rate.items() if not rate}
        for _ in range(12):
            run.next()
        found.append(sum(n for _ in range(12) for prompt, n in run.next().items() if prompt in never))
    assert found[1] < 0.85 * found[0]
    assert run.planner.adaptation._notches[UNSOLVED, 0] >= 3
    assert run.planner.adaptation._notches[ALL, 0] == 0


@pytest.mark.parametrize("baseline", SETTINGS)
def test_a_run_that_is_resumed_goes_on_exactly(baseline):
    kinds = {"mixed": mixed, "dull": hopeless}
    one, other = (Run(kinds, **SETTINGS[baseline]) for _ in range(2))
    lines = []
    for run in (one, other):
        for _ in range(8):
            run.next()
    other.planner = KnapsackPlanner.of(other.planner.settings, other.kind_of)
    other.planner.load_dict(json.loads(json.dumps(one.planner.to_dict())))
    for _ in range(6):
        assert one.next() == other.next()
        told = [run.planner.adaptation.news() for run in (one, other)]
        lines += told[0]
        assert told[0] == told[1]
        assert one.planner.adaptation.metrics() == other.planner.adaptation.metrics()
    assert any("plan.adapt, dull: " in line for line in lines)
    assert json.dumps(one.planner.to_dict()) == json.dumps(other.planner.to_dict())


def test_older_states_and_other_kinds_are_read():
    run = Run({"mixed": mixed, "dull": hopeless}, **BELIEF)
    for _ in range(10):
        run.next()
    state = run.planner.to_dict()
    plain = KnapsackPlanner.of(PlanConfig(**vars(run.planner.settings) | {"adapt": False}))
    plain.load_dict(state)
    assert "adaptation" not in plain.to_dict()
    run.planner.load_dict(plain.to_dict())
    assert not run.planner.adaptation._notches.any()
    other = Adaptation(run.planner.settings, {"x": "mixed", "y": "new"})
    other.load_dict(state["adaptation"])
    assert other.to_dict()["mixed"] == state["adaptation"]["mixed"]
    assert not np.any(other.to_dict()["new"][0])


@pytest.mark.parametrize("baseline", SETTINGS)
def test_a_withdrawn_step_leaves_no_trace(baseline):
    run = Run({"mixed": mixed, "dull": hopeless}, **SETTINGS[baseline])
    for _ in range(7):
        run.next()
    state = json.dumps(run.planner.to_dict()["adaptation"])
    for _ in range(2):
        plan = run.begin()
        for prompt, n in plan.take(None):
            plan.observe(prompt, [1.0] * n)
        run.planner.withdraw()
        assert json.dumps(run.planner.to_dict()["adaptation"]) == state


def test_tokens_count_by_their_cost():
    kinds = {"short": "short", "long": "long"}
    made = Adaptation(PlanConfig(unit="tokens", token_budget=1), kinds)
    sums = np.array([[32.0, 32.0], [32.0, 32.0], [64.0, 64.0]])
    for _ in range(8):
        made = made.after(["short", "long"], np.zeros(2, dtype=bool), np.zeros((2, 2)), sums, np.array([10.0, 90.0]))
    long, short = made.signals()[ALL]
    assert short > 1 > long
    assert short > 4 * long


@pytest.mark.parametrize("baseline", SETTINGS)
def test_budgets_in_tokens_move_too(baseline):
    ids = {f"{kind}-{i}": kind for i in range(12) for kind in ("mixed", "dull")}
    plan = {"unit": "tokens", "token_budget": 2000, "fit_prior": False} | SETTINGS[baseline]
    plan["candidates"] = min(2.0, plan["candidates"])
    planner, dull = KnapsackPlanner("static", adapt=True, kinds=ids, **plan), []
    for _ in range(14):
        step = planner.begin(list(ids), cost=np.full(24, 12.0))
        while not step.done:
            for prompt, n in step.take(None):
                passed = n // 2 if ids[prompt] == "mixed" else 0
                step.observe(prompt, [1.0] * passed + [0.0] * (n - passed))
        budgets = dict(zip(step.allocation().prompt_ids, step.allocation().budgets.tolist(), strict=True))
        assert 2000 - 2 * 4 * 12 < 12 * sum(budgets.values()) <= 2000
        dull.append(sum(n for prompt, n in budgets.items() if ids[prompt] == "dull"))
    assert planner.adaptation._notches[ALL, 0] >= 2
    assert dull[-1] < 0.75 * dull[0]


def test_all_prompts_are_of_one_kind_where_none_are_told():
    planner = KnapsackPlanner("static", 8, adapt=True)
    planner.plan(["a", "b"])
    assert planner.adaptation.names == ["all"]
    assert planner.adaptation.news() == []
    assert set(planner.adaptation.metrics().values()) == {1.0, 2.0, 128.0}


def test_a_prompt_without_a_kind_is_refused():
    planner = KnapsackPlanner("static", 8, adapt=True, kinds={"a": "x", "b": "y"})
    before = json.dumps(planner.to_dict())
    with pytest.raises(ValueError, match="kinds: prompt 'c' has none"):
        planner.plan(["a", "c"])
    assert len(planner.beliefs) <= 2
    assert json.dumps(planner.to_dict()["adaptation"]) == json.dumps(json.loads(before)["adaptation"])


@pytest.mark.parametrize("mode", ["online", "rounds", "uniform", "paper", "dynamic_sampling"])
def test_other_modes_are_refused(mode):
    with pytest.raises(ValueError, match=f"plan.adapt sets the limits of plan.mode static, not those of {mode}"):
        KnapsackPlanner(mode, 64, adapt=True)
