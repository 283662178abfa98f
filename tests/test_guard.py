"""A look leaves no trace."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lit_viz.guard import isolated_rng, untouched


def net() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Sequential(nn.Dropout(), nn.BatchNorm2d(4)))


def draws() -> tuple[list[float], list[float], float]:
    return torch.rand(2).tolist(), np.random.rand(2).tolist(), random.random()


def seed(value: int) -> None:
    torch.manual_seed(value)
    np.random.seed(value)
    random.seed(value)


class Boom(Exception):
    """Raised inside."""


# --- Random numbers ---


@pytest.mark.parametrize("guard", [isolated_rng, partial(untouched, nn.BatchNorm2d(3))])
@pytest.mark.parametrize("inner", [None, 7])
@pytest.mark.parametrize("fails", [False, True])
def test_generators_go_on_as_before(guard: Callable[..., Any], inner: int | None, fails: bool) -> None:
    seed(1)
    expected = draws()
    seed(1)
    try:
        with guard(seed=inner):
            draws()
            torch.manual_seed(99)
            if fails:
                raise Boom
    except Boom:
        pass
    assert draws() == expected


def test_a_seed_makes_the_inside_reproducible() -> None:
    found = []
    for outside in (1, 2):
        seed(outside)
        with isolated_rng(7):
            found.append(draws())
        with untouched(net(), seed=7):
            found.append(draws())
    assert found[1:] == found[:1] * 3
    with isolated_rng(8):
        assert all(a != b for a, b in zip(draws(), found[0], strict=True))
    with isolated_rng(2**40 + 3):  # NumPy takes 32 bits only
        draws()


def test_without_a_seed_the_inside_goes_on_from_the_outside() -> None:
    seed(1)
    expected = draws()
    seed(1)
    with isolated_rng():
        assert draws() == expected


# --- Modes ---


@pytest.mark.parametrize("fails", [False, True])
def test_each_module_gets_its_own_mode_back(fails: bool) -> None:
    model = net().train()
    model[1].eval()
    model[2].training = False  # itself only: its children still train
    before = [m.training for m in model.modules()]
    assert len(set(before)) == 2
    try:
        with untouched(model):
            assert not any(m.training for m in model.modules())
            model.train()
            if fails:
                raise Boom
    except Boom:
        pass
    assert [m.training for m in model.modules()] == before


def test_requires_grad_is_restored() -> None:
    model = net()
    model[0].requires_grad_(False)
    flags = [p.requires_grad for p in model.parameters()]
    with pytest.raises(Boom), untouched(model):
        for p in model.parameters():
            p.requires_grad_(not p.requires_grad)
        raise Boom
    assert [p.requires_grad for p in model.parameters()] == flags and len(set(flags)) == 2


def test_hidden_training_by_setting_flags_does_not_call_train() -> None:
    """Some modules override `train` to keep a part frozen, or to do work."""

    class Loud(nn.Linear):
        def train(self, mode: bool = True) -> Loud:
            raise AssertionError("not to be called")

    with untouched(Loud(2, 2)):
        pass


# --- Buffers ---


def test_batch_statistics_do_not_move() -> None:
    model = net().train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with untouched(model):
        model(torch.randn(2, 3, 8, 8))
        assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    model(torch.randn(2, 3, 8, 8))
    assert not torch.equal(model[1].running_mean, before["1.running_mean"])  # outside they do


class Counts(nn.Module):
    """Writes to buffers in any mode, in the ways in which one can."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("added", torch.zeros(3))
        self.register_buffer("replaced", torch.zeros(3))
        self.register_buffer("later", None)
        self.register_buffer("hidden", torch.zeros(()), persistent=False)
        self.register_buffer("data", torch.zeros(2))

    def forward(self, x: Tensor) -> Tensor:
        self.added += 1
        self.replaced = self.replaced + 1
        self.later = torch.ones(2)
        self.hidden.add_(1)
        self.data.fill_(3)
        return x


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("around", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_buffers_written_inside_are_restored(fails: bool, around: Callable[[], Any]) -> None:
    model = Counts()
    tensors = dict(model.named_buffers())
    try:
        with around(), untouched(model):
            model(torch.zeros(1))
            assert model.added[0] == 1 and model.replaced[0] == 1 and model.hidden == 1 and model.data[0] == 3
            if fails:
                raise Boom
    except Boom:
        pass
    assert all(not b.any() for b in model.buffers()) and model.later is None
    assert dict(model.named_buffers()).keys() == tensors.keys()
    assert all(b is tensors[name] for name, b in model.named_buffers())


def test_buffers_made_under_inference_mode() -> None:
    with torch.inference_mode():
        model = Counts()
        with untouched(model), torch.inference_mode():
            model.added += 1
        assert not model.added.any()
    with untouched(model), torch.inference_mode():
        model.added += 1
    assert not model.added.any() and model.added.is_inference()


def test_buffers_that_are_not_written_are_not_touched() -> None:
    """A needless write would break a graph that keeps them for its backward pass."""
    model = Counts()
    leaf = torch.ones(3, requires_grad=True)
    loss = (leaf * model.added).sum()
    with untouched(model):
        pass
    loss.backward()
    assert model.added._version == 0


def test_lazy_modules() -> None:
    model = nn.Sequential(nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d())
    with untouched(model):
        pass
    with untouched(model):
        model(torch.zeros(1, 3, 8, 8))
    assert model[0].weight.shape == (4, 3, 3, 3) and model.training


# --- Autograd ---


@pytest.mark.parametrize("around", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_gradients_can_be_taken_anywhere(around: Callable[[], Any]) -> None:
    with around():
        grad, inference = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
        with untouched(model := nn.Linear(3, 1)):
            assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
            x = torch.zeros(2, 3).requires_grad_()
            (found,) = torch.autograd.grad((x * 2).sum(), x)
            assert (found == 2).all()
        assert torch.is_grad_enabled() == grad and torch.is_inference_mode_enabled() == inference
    assert model.training


def test_gradients_and_hooks_of_the_model_stay() -> None:
    model = nn.Linear(3, 1)
    model(torch.ones(1, 3)).sum().backward()
    before = [p.grad.clone() for p in model.parameters()]
    with untouched(model):
        x = torch.ones(2, 3, requires_grad=True)
        torch.autograd.grad(model(x).sum(), x)
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), before, strict=True))


# --- Other callables, nesting, compilation ---


def test_any_callable() -> None:
    seed(1)
    expected = draws()
    seed(1)
    with torch.no_grad(), untouched(lambda x: x):
        draws()
        assert torch.is_grad_enabled()
    assert draws() == expected


def test_nested() -> None:
    model = net().train()
    with untouched(model):
        with untouched(model):
            model.train()
        assert not any(m.training for m in model.modules())
    assert all(m.training for m in model.modules())


@pytest.mark.parametrize("in_place", [False, True])
def test_compiled_parts_run_eagerly_inside_and_compiled_again_afterwards(in_place: bool) -> None:
    torch._dynamo.reset()
    graphs: list[int] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        def run(*args: Any) -> Any:
            graphs.append(1)
            return graph.forward(*args)

        return run

    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU())
    if in_place:
        model.compile(backend=backend)
        compiled: Any = model
    else:
        compiled = torch.compile(model, backend=backend)
    x = torch.randn(2, 3)
    compiled(x)
    assert len(graphs) == 1
    calls: list[int] = []
    with pytest.raises(Boom), untouched(compiled):
        handle = model[0].register_forward_hook(lambda *_: calls.append(1))
        compiled(x)
        handle.remove()
        raise Boom
    assert len(graphs) == 1 and len(calls) == 1  # hooks fire only where no compiled code runs
    assert all(m.training for m in model.modules())
    compiled(x)
    assert len(graphs) == 2


def test_buffers_that_a_look_adds_are_gone() -> None:
    class Counts(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            self.register_buffer("seen", torch.ones(1))
            return x

    net = Counts()
    with untouched(net):
        net(torch.zeros(1))
    assert not net.state_dict()
