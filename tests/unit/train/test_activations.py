"""Inputs of layers that wait in main memory: the same gradient, bit for bit, and nothing else is moved."""

from __future__ import annotations

from dataclasses import replace

import torch
from state_digest import state_digest

from kray.train import activations
from kray.train.model import decoder_layers
from kray.train.offload import local
from kray.train.training_rows import step_rows


def test_inputs_of_layers_are_moved_and_gradients_stay(models, make, train, some_groups, ragged, monkeypatch):
    moved: list[torch.Size] = []

    def to_main_memory(pin_memory: bool):
        # On CPU torch's own context would move nothing.
        assert pin_memory is torch.cuda.is_available()
        return torch.autograd.graph.saved_tensors_hooks(
            lambda tensor: (moved.append(tensor.shape), tensor.clone())[1], lambda tensor: tensor.clone()
        )

    monkeypatch.setattr(activations, "save_on_cpu", to_main_memory)
    states, batches = [], 0
    for offload in (False, True):
        setting = replace(train, activation_checkpointing=True, activation_offload=offload)
        learner = make(models[True], setting)
        rows = step_rows(some_groups(0, ragged), setting)
        moved.clear()
        learner.update(rows)
        batches = len(learner._micro_batches(rows, 0))
        assert bool(moved) is offload
        moments = [(name, local(tensor)) for name, tensor in learner.optimizer.tensors().items()]
        states.append((state_digest(learner.state()), state_digest(moments)))
    assert states[0] == states[1]
    assert batches > 1
    # One input a layer and micro-batch, none of them a weight.
    moved = [shape for shape in moved if shape.numel()]
    assert len(moved) == batches * len(decoder_layers(learner.model))
    assert {(len(shape), shape[-1]) for shape in moved} == {(3, 32)}
