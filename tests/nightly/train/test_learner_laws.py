"""Learner invariants that take more than a minute."""

from __future__ import annotations

from dataclasses import replace

import torch

from kray.train.training_rows import step_rows


def differences(a, b) -> float:
    return max(float((x - y).abs().max()) for (_, x), (_, y) in zip(a, b, strict=True))


def test_compiled_layers_learn_the_same(models, make, train, some_groups, ragged, monkeypatch):
    """Traced and cut into graphs as ever, but not turned into machine code, which takes a minute."""
    compiling = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda part, **how: compiling(part, backend="aot_eager", **how))
    rows = step_rows(some_groups(0, ragged), train)
    plain = make(models[True])
    plain.update(rows)
    state = plain.state()
    compiled = make(models[True], replace(train, compile=True))
    compiled.update(rows)
    torch._dynamo.reset()
    assert differences(compiled.state(), state) < 2e-6
