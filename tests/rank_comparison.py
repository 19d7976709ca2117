"""What a number of learner ranks learns, against what one rank learns from the same rows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from kray.config.train_schema import TrainConfig
from kray.train.adapter_weights import adapter_weights
from kray.train.probe_sample import sample_tokens

# What says something about the machine or the split, not about what was learned.
OF_THE_SPLIT = ("update_s", "peak_memory_gib", "padding_ratio", "attention_padding_ratio", "computed_tokens")


def alone_setting(train: TrainConfig) -> TrainConfig:
    return replace(train, replicas=1, context_parallel=1)


def arrays(learner) -> list[tuple[str, np.ndarray]]:
    return [(name, tensor.numpy()) for name, tensor in learner.state()]


def equal(state, other) -> bool:
    return all(a == b and np.array_equal(x, y) for (a, x), (b, y) in zip(state, other, strict=True))


def compare(run_ranks, make, ranks: int, cases: list[dict], folder: Path) -> None:
    alone = []
    for number, case in enumerate(cases):
        learner = make(case["model"], alone_setting(case["train"]), lora=case["lora"])
        metrics = [learner.update(rows) for rows in case["rows"]]
        case["start"] = str(folder / f"alone-{number}")
        learner.save(case["start"])
        case["sampled"] = sample_tokens(learner, (3, 4, 5), 4, 0)
        case["adapters"] = adapter_weights(learner)[1].tensors() if case["lora"] else []
        alone.append((metrics, arrays(learner)))
    results = run_ranks(ranks, cases)
    largest = furthest = 0.0
    for number, (case, (metrics, state)) in enumerate(zip(cases, alone, strict=True)):
        first, others = results[0][number], [result[number] for result in results[1:]]
        assert all(other["state"] == other["loaded"] == [] for other in others)
        assert [result[number]["open"] for result in results] == [[]] * ranks
        assert [result[number]["pieces"] for result in results] == [[True, True]] * ranks
        for step, expected in enumerate(metrics):
            assert first["metrics"][step].keys() == expected.keys()
            for name in set(expected) - {f"train/{name}" for name in OF_THE_SPLIT}:
                got = first["metrics"][step][name]
                assert all(other["metrics"][step][name] == got for other in others)
                assert got == pytest.approx(expected[name], rel=1e-5, abs=1e-6), name
                furthest = max(furthest, abs(got - expected[name]) / max(1, abs(expected[name])))
        for (name, expected), (got_name, array) in zip(state, first["state"], strict=True):
            assert got_name == name
            largest = max(largest, np.abs(array - expected).max())
            np.testing.assert_allclose(array, expected, rtol=0, atol=3e-6)
        assert {result[number]["sampled"] for result in results} == {case["sampled"]}
        assert all(other["adapters"] == [] for other in others)
        for (name, expected), (got_name, array) in zip(case["adapters"], first["adapters"], strict=True):
            assert got_name == name
            np.testing.assert_allclose(array, expected, rtol=0, atol=3e-6)
        uninterrupted, resumed = first["digests"]
        assert resumed == uninterrupted  # bit for bit, on any number of ranks
        assert equal(first["loaded"], state)  # what one rank saved, these ranks hold bit for bit
        # What these ranks saved in the background, one rank goes on with.
        learner = make(case["model"], alone_setting(case["train"]), lora=case["lora"])
        learner.load(case["checkpoint"])
        assert equal(arrays(learner), first["state"])
        assert learner.updates_done == sum(m["train/optimizer_steps"] for m in metrics)
        for got, expected in zip(learner.logprobs(case["probe"]), first["probe"], strict=True):
            np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-6)
    print(f"\nlargest difference of a weight, {ranks} ranks to 1: {largest:.1e}; of a metric: {furthest:.1e}")
