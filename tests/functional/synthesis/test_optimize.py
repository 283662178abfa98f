"""The loop against closed forms and loops by hand; what it tells of failures; what it leaves behind."""

from __future__ import annotations

import gc
import signal
import sys
import warnings
import weakref
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from lit_viz.errors import UsageError
from lit_viz.functional.synthesis import (
    Blur,
    Channel,
    ClassScore,
    Code,
    Decay,
    Direction,
    Energy,
    Fourier,
    Jitter,
    NormalizedSGD,
    Objective,
    Pixels,
    RandomAffine,
    Reading,
    Synthesis,
    Unit,
    p_norm,
    total_variation,
)
from lit_viz.functional.synthesis import optimize as plain_optimize
from lit_viz.functional.synthesis.optimize import DEAD, NOT_FINITE, NOT_RISEN, SATURATED, TRAINING
from lit_viz.pixels import PixelSpace

SPACE = PixelSpace((0.5,), (0.25,))
SGD = partial(NormalizedSGD, lr=1.0)
PLAIN = partial(torch.optim.SGD, lr=0.1)


def images(n: int = 3, *, size: tuple[int, int] = (8, 9), seed: int = 1) -> Tensor:
    return torch.randn(n, 3, *size, generator=torch.Generator().manual_seed(seed))


def small(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return (
            nn.Sequential(
                nn.Conv2d(3, 6, 3, padding=1),
                nn.BatchNorm2d(6),
                nn.ReLU(inplace=True),
                nn.Conv2d(6, 8, 3, padding=1),
                nn.Tanh(),
                nn.AdaptiveAvgPool2d(1),
                nn.Flatten(),
                nn.Dropout(0.5),
                nn.Linear(8, 5),
            )
            .to(dtype)
            .eval()
        )


def optimize(
    model: Any, objective: Objective, values: Tensor, *, make_optimizer: Any = SGD, **kwargs: Any
) -> Synthesis:
    """Without warnings, which have tests of their own."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return plain_optimize(model, objective, values, make_optimizer=make_optimizer, **kwargs)


class Linear(nn.Module):
    """Scores that are linear in the image, exactly known."""

    def __init__(self, classes: int = 4, shape: tuple[int, ...] = (3, 8, 9)) -> None:
        super().__init__()
        weight = torch.randn(classes, *shape, generator=torch.Generator().manual_seed(5))
        self.weight = nn.Parameter(weight)

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("kchw,nchw->nk", self.weight, x)


class Towards(Objective):
    """Minus half the squared distance of the network's input from a fixed image, each direction with its weight."""

    needs_scores = True

    def __init__(self, goal: Tensor, weight: Tensor | float = 1.0) -> None:
        self.goal, self.weight = goal, weight

    def __call__(self, reading: Reading) -> Tensor:
        return -(self.weight * (reading.images - self.goal).square()).flatten(1).sum(dim=1) / 2


# --- Closed forms ----------------------------------------------------------------------------------------------------


def test_plain_gradient_ascent_on_a_linear_network_in_closed_form() -> None:
    model, x = Linear(), images()
    result = optimize(model, ClassScore([1, 3, 0]), x, make_optimizer=PLAIN, steps=7)
    weights = model.weight.detach()[[1, 3, 0]]
    torch.testing.assert_close(result.images, x + 0.7 * weights)
    scores = model(x).detach()[[0, 1, 2], [1, 3, 0]]
    rise = 0.1 * weights.square().sum(dim=(1, 2, 3))
    torch.testing.assert_close(result.history, scores + torch.arange(7.0)[:, None] * rise)
    torch.testing.assert_close(result.objective, scores + 7 * rise)
    torch.testing.assert_close(result.scores, model(result.images).detach())
    assert result.notes == ("", "", "") and not result.interrupted and result.snapshots == ()


def test_normalised_ascent_on_a_linear_network_in_closed_form() -> None:
    model, x = Linear(), images()
    result = optimize(model, -ClassScore(2), x, make_optimizer=partial(NormalizedSGD, lr=3.0), steps=5)
    direction = model.weight.detach()[2] / model.weight.detach()[2].norm()
    torch.testing.assert_close(result.images, x - 15 * direction)


def test_a_quadratic_converges() -> None:
    goal = images(1, seed=7)[0]
    result = optimize(Linear(), Towards(goal), images(), make_optimizer=partial(torch.optim.SGD, lr=0.5), steps=40)
    torch.testing.assert_close(result.images, goal.expand(3, -1, -1, -1))
    assert (result.history.diff(dim=0) >= 0).all()


def test_no_steps_give_back_what_went_in() -> None:
    x = images()
    result = optimize(Linear(), ClassScore(1), x, steps=0)
    assert torch.equal(result.images, x) and result.history.shape == (0, 3) and result.notes == ("", "", "")
    torch.testing.assert_close(result.objective, Linear()(x)[:, 1].detach())


class Ascent:
    """A second implementation: one image at a time, `backward`, no batches, no truncation."""

    def __init__(self, model: nn.Module, score: Callable[[Tensor], Tensor]) -> None:
        self.model, self.score = model, score

    def __call__(
        self,
        values: Tensor,
        steps: int,
        make_optimizer: Any,
        *,
        images: Callable[[Tensor], Tensor] = lambda v: v,
        transforms: Sequence[Any] = (),
        settle: int = 0,
        penalty: Callable[[Tensor], Tensor] = lambda v: v.new_zeros(()),
        after: Callable[[Tensor, Tensor, int], None] = lambda v, g, s: None,
    ) -> tuple[Tensor, Tensor]:
        made, histories = [], []
        for start in values:
            leaf, history = start[None].clone().requires_grad_(), []
            optimizer, generator = make_optimizer([leaf]), torch.Generator().manual_seed(0)
            for step in range(steps):
                shown = images(leaf)
                changed = shown
                for transform in transforms if step < steps - settle else ():
                    changed = transform(changed, generator)
                objective = self.score(self.model(changed)).sum()
                optimizer.zero_grad()
                (penalty(shown).sum() - objective).backward()
                history.append(objective.detach())
                gradient = -leaf.grad
                optimizer.step()
                with torch.no_grad():
                    after(leaf, gradient, step)
            made.append(leaf.detach()[0])
            histories.append(torch.stack(history))
        return torch.stack(made), torch.stack(histories, dim=1)


@pytest.mark.parametrize("way", ["pixels", "fourier"])
@pytest.mark.parametrize(("batch_size", "settle"), [(None, 0), (2, 0), (None, 2), (None, 6)])
def test_all_parts_together_equal_a_loop_by_hand(way: str, batch_size: int | None, settle: int) -> None:
    model, fourier = small(torch.float64), Fourier((8, 9), SPACE)
    transforms = [RandomAffine(scales=[0.9, 1.1], degrees=10.0), Jitter(2)]
    adam = partial(torch.optim.Adam, lr=0.05)
    blur, decay = Blur(0.5, every=2), Decay(0.01)
    if way == "pixels":
        start, to_images, make = images().double(), (lambda v: v), partial(NormalizedSGD, lr=0.5)
        constraints: list[Any] = [decay, blur]
    else:
        start, to_images, make = fourier.noise(3, 3, std=0.1, seed=0).double(), fourier.images, adam
        constraints = []

    def after(leaf: Tensor, gradient: Tensor, step: int) -> None:
        if way == "pixels":
            decay(leaf, gradient, step)
            blur(leaf, gradient, step)
            leaf.clamp_(-2.0, 2.0)  # colours 0 to 1

    found = optimize(
        model,
        ClassScore(1) - 0.5 * Energy("3"),
        start,
        parameterization=Pixels(SPACE) if way == "pixels" else fourier,
        make_optimizer=make,
        transforms=transforms,
        settle=settle,
        penalties=[(0.01, total_variation), (0.02, p_norm)],
        constraints=constraints,
        steps=6,
        batch_size=batch_size,
    )
    kept: list[Tensor] = []
    model[3].register_forward_hook(lambda m, a, out: kept.append(out))

    def score(scores: Tensor) -> Tensor:
        return scores[:, 1] - 0.25 * kept.pop().square().mean(dim=(1, 2, 3))

    values, history = Ascent(model, score)(
        start,
        6,
        make,
        images=to_images,
        transforms=transforms,
        settle=settle,
        penalty=lambda v: 0.01 * total_variation(v) + 0.02 * v.square().sum(),
        after=after,
    )
    torch.testing.assert_close(found.values, values)
    torch.testing.assert_close(found.images, to_images(values))
    torch.testing.assert_close(found.history, history.float())
    assert (found.values - start).abs().max() > 0.1


def test_penalties_are_weighed_against_the_objective() -> None:
    """Where both balance: w = λ·2·x."""
    model = Linear()
    result = optimize(
        model,
        ClassScore(1),
        images(),
        make_optimizer=partial(torch.optim.SGD, lr=0.25),
        penalties=[(1.0, p_norm)],
        steps=60,
    )
    torch.testing.assert_close(result.images, (model.weight.detach()[1] / 2).expand(3, -1, -1, -1))
    torch.testing.assert_close(result.objective, model(result.images)[:, 1].detach())


# --- Images on their own ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["pixels", "fourier"])
def test_images_do_not_depend_on_their_batch(way: str) -> None:
    model, fourier = small(torch.float64), Fourier((8, 9), SPACE)
    start = images(5).double() if way == "pixels" else fourier.values(0.3 * images(5).double())
    run = partial(
        optimize,
        model,
        parameterization=None if way == "pixels" else fourier,
        transforms=[Jitter(3), RandomAffine(degrees=5.0)],
        steps=8,
    )
    every = [0, 1, 2, 3, 4]
    together = run(ClassScore(every), start)
    for batch_size in (1, 2, 3):
        apart = run(ClassScore(every), start, batch_size=batch_size)
        torch.testing.assert_close(apart.images, together.images)
        torch.testing.assert_close(apart.history, together.history)
        torch.testing.assert_close(apart.scores, together.scores)
    alone = run(ClassScore(every[3:4]), start[3:4])
    torch.testing.assert_close(alone.images, together.images[3:4])


def test_an_image_that_fails_leaves_the_others_alone() -> None:
    model, x = small(torch.float64), images().double()
    spoilt = x.clone()
    spoilt[1] = torch.nan
    found, expected = (optimize(model, Channel("0", 2), v, steps=5) for v in (spoilt, x))
    torch.testing.assert_close(found.images[[0, 2]], expected.images[[0, 2]])
    assert found.notes == ("", NOT_FINITE, "")


# --- Seeds and what is left behind -----------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_bits_and_other_seeds_do_not() -> None:
    model, fourier = small(), Fourier((8, 9), SPACE)
    run = partial(
        optimize,
        model,
        ClassScore(1),
        fourier.noise(2, 3, std=0.1, seed=0),
        parameterization=fourier,
        transforms=[Jitter(3), RandomAffine(scales=[0.9, 1.1])],
        steps=6,
    )
    states = torch.get_rng_state(), np.random.get_state()[1].copy()
    first = run(seed=3)
    torch.manual_seed(99)
    second, other, negative = run(seed=3), run(seed=4), run(seed=-1)
    assert torch.equal(first.images, second.images) and torch.equal(first.history, second.history)
    assert not torch.equal(first.images, other.images) and torch.isfinite(negative.images).all()
    torch.set_rng_state(states[0])
    run(seed=5)
    assert torch.equal(torch.get_rng_state(), states[0]) and np.array_equal(np.random.get_state()[1], states[1])


def test_the_model_and_the_start_are_left_as_they_were() -> None:
    model, x = small().train(), images()
    model[1].eval()
    model[3].weight.requires_grad_(False)
    kept, before = x.clone(), {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    for objective in (ClassScore(1), Channel("3", 2)):
        optimize(model, objective, x, steps=4)
        with pytest.raises(UsageError):
            optimize(model, ClassScore(77), x, steps=4)
    assert torch.equal(x, kept) and x.grad is None and not x.requires_grad
    assert modes == [module.training for module in model.modules()]
    assert [p.requires_grad for p in model.parameters()] == [True] * 4 + [False] + [True] * 3
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


def test_nothing_of_the_graph_is_kept() -> None:
    """Neither after the end, nor from step to step: the response of a unit is a view of the map of its channel."""
    model, seen, maps, alive = small(), [], [], []
    model[3].register_forward_hook(lambda m, a, out: seen.append(weakref.ref(out)))

    class Watched(Unit):
        def __call__(self, reading: Reading) -> Tensor:
            response = super().__call__(reading)
            maps.append(StorageWeakRef(response.untyped_storage()))
            return response

    def count(done: int, made: Tensor) -> None:
        alive.append((sum(ref() is not None for ref in seen), sum(not ref.expired() for ref in maps)))

    result = optimize(model, Watched("3", 1), images(), steps=8, on_step=count)
    assert alive == [(0, 0)] * 8
    assert not any(made.requires_grad for made in (result.images, result.objective, result.values, result.history))
    del result
    gc.collect()
    assert not any(ref() is not None for ref in seen) and all(ref.expired() for ref in maps)


# --- Memory, batches, progress ---------------------------------------------------------------------------------------


class Greedy(nn.Module):
    """Runs out of memory with more than two images, in the given call."""

    def __init__(self, after: int = 0) -> None:
        super().__init__()
        self.inner, self.after, self.sizes = Linear(), after, []

    def forward(self, x: Tensor) -> Tensor:
        self.sizes.append(len(x))
        if len(x) > 2 and len(self.sizes) > self.after:
            raise torch.OutOfMemoryError("out of memory")
        return self.inner(x)


class Bar:
    """Records what a progress bar is told."""

    made: ClassVar[list[Bar]] = []

    def __init__(self, total: int, disable: bool = False, **kwargs: Any) -> None:
        self.total, self.disable, self.n = total, disable, 0
        Bar.made.append(self)

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *args: Any) -> None:
        pass

    def update(self, n: int) -> None:
        self.n += n

    def set_postfix(self, **kwargs: Any) -> None:
        self.postfix = kwargs


@pytest.mark.parametrize("after", [0, 4, 8])  # 2 passes look for dropout, 6 are steps, and then comes the last one
def test_batches_are_halved_where_memory_runs_out(after: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[Synthesis.__module__], "tqdm", Bar)
    x, model = images(5), Greedy(after)
    result = optimize(model, ClassScore([0, 1, 2, 3, 0]), x, make_optimizer=PLAIN, steps=6, batch_size=4, progress=True)
    weights = model.inner.weight.detach()[[0, 1, 2, 3, 0]]
    torch.testing.assert_close(result.images, x + 0.6 * weights)
    assert torch.isfinite(result.history).all() and result.history.shape == (6, 5)
    assert Bar.made[-1].n == Bar.made[-1].total == 30
    assert set(model.sizes) == {1, 2, 4}
    monkeypatch.setattr(model, "forward", lambda v: (_ for _ in ()).throw(RuntimeError("something else")))
    with pytest.raises(RuntimeError, match="something else"):
        optimize(model, ClassScore(0), x, steps=2)


def test_the_progress_bar_ends_at_its_total_and_shows_the_objective(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[Synthesis.__module__], "tqdm", Bar)
    optimize(Linear(), ClassScore(0), images(5), steps=12, batch_size=2, progress=True)
    assert (Bar.made[-1].n, Bar.made[-1].total, Bar.made[-1].disable) == (60, 60, False)
    assert float(Bar.made[-1].postfix["objective"]) > 0
    optimize(Linear(), ClassScore(0), images(5), steps=1)
    assert Bar.made[-1].disable


# --- Steps, snapshots, interruptions ---------------------------------------------------------------------------------


def test_snapshots_are_kept_at_the_right_steps() -> None:
    model, x = Linear(), images(5)
    result = optimize(model, ClassScore(1), x, make_optimizer=PLAIN, steps=7, snapshot_every=3, batch_size=2)
    assert [step for step, _ in result.snapshots] == [3, 6, 7]
    for step, made in result.snapshots:
        torch.testing.assert_close(made, x + 0.1 * step * model.weight.detach()[1])
    assert torch.equal(result.snapshots[-1][1], result.images)


def test_on_step_sees_each_step_and_may_keep_what_it_sees() -> None:
    model, x, seen = Linear(), images(4), []
    optimize(
        model,
        ClassScore(1),
        x,
        make_optimizer=PLAIN,
        steps=3,
        batch_size=3,
        on_step=lambda done, made: seen.append((done, made)),
    )
    assert [(done, len(made)) for done, made in seen] == [(1, 3), (2, 3), (3, 3), (1, 1), (2, 1), (3, 1)]
    for (done, made), start in zip(seen, [x[:3]] * 3 + [x[3:]] * 3, strict=True):
        torch.testing.assert_close(made, start + 0.1 * done * model.weight.detach()[1])


def test_on_step_ends_a_batch_early() -> None:
    x = images(4)
    result = optimize(
        Linear(), ClassScore(1), x, make_optimizer=PLAIN, steps=9, batch_size=2, on_step=lambda done, made: done == 4
    )
    torch.testing.assert_close(result.images, x + 0.4 * Linear().weight.detach()[1])
    assert torch.isfinite(result.history[:4]).all() and torch.isnan(result.history[4:]).all()
    assert not result.interrupted and result.notes == ("",) * 4


class Pressed(nn.Module):
    """Ctrl-C in given passes."""

    def __init__(self, *at: int) -> None:
        super().__init__()
        self.inner, self.at, self.passes = Linear(), at, 0

    def forward(self, x: Tensor) -> Tensor:
        self.passes += 1
        if self.passes in self.at:
            signal.raise_signal(signal.SIGINT)
        return self.inner(x)


def test_ctrl_c_keeps_what_there_is() -> None:
    x, model = images(4), Pressed(2 + 3)  # in the third step of the first batch
    result = optimize(model, ClassScore(1), x, make_optimizer=PLAIN, steps=9, batch_size=2)
    weight = model.inner.weight.detach()[1]
    torch.testing.assert_close(result.images[:2], x[:2] + 0.3 * weight)
    assert torch.equal(result.images[2:], x[2:]) and result.interrupted
    assert torch.isfinite(result.history[:3, :2]).all() and torch.isnan(result.history[3:]).all()
    assert torch.isfinite(result.objective[:2]).all() and torch.isnan(result.objective[2:]).all()
    assert result.scores is None and result.notes == ("",) * 4


def test_ctrl_c_goes_on_to_whoever_called_where_that_is_wanted() -> None:
    model = Pressed(6)
    with pytest.raises(KeyboardInterrupt):
        optimize(model, ClassScore(1), images(), steps=9, interruptible=False)
    assert not any(m._forward_hooks for m in model.modules()) and model.inner.weight.requires_grad


@pytest.mark.parametrize("at", [12, 13, 22])
def test_ctrl_c_loses_nothing_where_results_are_told(at: int) -> None:
    """In the pass over the finished images of a batch, the first one of the next, and the last of all."""
    x = images(4)
    result = optimize(Pressed(at), ClassScore(1), x, make_optimizer=PLAIN, steps=9, batch_size=2, snapshot_every=9)
    weight = Linear().weight.detach()[1]
    steps = {12: 0, 13: 1, 22: 9}[at]
    torch.testing.assert_close(result.images[:2], x[:2] + 0.9 * weight)
    torch.testing.assert_close(result.images[2:], x[2:] + 0.1 * steps * weight)
    assert result.interrupted and torch.isfinite(result.objective[:2]).all()
    assert torch.isfinite(result.history).sum(dim=0).tolist() == [9, 9, steps, steps]


def test_ctrl_c_twice_stops_at_once() -> None:
    model = Pressed(5, 6)
    before = signal.getsignal(signal.SIGINT)
    # Whoever made a line search hang has to have a way out.
    with pytest.raises(KeyboardInterrupt):
        optimize(model, ClassScore(1), images(4), make_optimizer=PLAIN, steps=9, batch_size=2)
    assert signal.getsignal(signal.SIGINT) is before and model.passes == 6


@pytest.mark.parametrize("at", range(6, 18))
def test_ctrl_c_amid_a_line_search_keeps_the_last_whole_step(at: int) -> None:
    seen, x = [], images(1)
    weight = torch.logspace(0, 3, 216).reshape(3, 8, 9)
    result = optimize(
        Pressed(at),
        Towards(torch.zeros(3, 8, 9), weight),
        x,
        make_optimizer=partial(torch.optim.LBFGS, max_iter=2, line_search_fn="strong_wolfe"),
        steps=20,
        on_step=lambda done, made: seen.append(made.clone()),
    )
    assert result.interrupted and torch.equal(result.images, seen[-1] if seen else x)


# --- Line searches ---------------------------------------------------------------------------------------------------


def test_l_bfgs_solves_a_quadratic_in_few_steps() -> None:
    goal, weight = images(1, seed=7)[0].double(), torch.logspace(0, 2, 216, dtype=torch.float64).reshape(3, 8, 9)
    make = partial(torch.optim.LBFGS, lr=1.0, max_iter=20, history_size=20, line_search_fn="strong_wolfe")
    result = optimize(
        Linear().double(),
        Towards(goal, weight),
        images(2).double(),
        make_optimizer=make,
        steps=10,
        batch_size=1,
    )
    torch.testing.assert_close(result.images, goal.expand(2, -1, -1, -1), atol=1e-4, rtol=1e-4)
    assert (result.history.diff(dim=0) >= 0).all() and result.notes == ("", "")
    with pytest.raises(UsageError, match="batch_size=1"):
        optimize(Linear().double(), Towards(goal), images(2).double(), make_optimizer=make, steps=2)


def test_a_line_search_compares_like_with_like() -> None:
    """In one step it sees the same shift each time, and another one in the next step."""
    seen: list[list[Tensor]] = [[]]

    class Recorded(Objective):
        needs_scores = True

        def __call__(self, reading: Reading) -> Tensor:
            return -(reading.images - 3).square().flatten(1).sum(dim=1)

    class Shift:
        def __call__(self, made: Tensor, generator: torch.Generator) -> Tensor:
            drawn = torch.rand((), generator=generator, dtype=torch.float32)
            seen[-1].append(drawn)
            return made + drawn

    optimize(
        Linear(),
        Recorded(),
        images(1),
        make_optimizer=partial(torch.optim.LBFGS, lr=0.1, max_iter=4),
        transforms=[Shift()],
        steps=3,
        on_step=lambda done, made: seen.append([]),
    )
    assert all(len(step) > 1 and len({float(d) for d in step}) == 1 for step in seen[:3])
    drawn = [float(step[0]) for step in seen[:3]]
    generator = torch.Generator().manual_seed(0)
    assert drawn == [float(torch.rand((), generator=generator, dtype=torch.float32)) for _ in range(3)]


# --- What is told ----------------------------------------------------------------------------------------------------


def relu_network(bias: Sequence[float]) -> nn.Module:
    """Linear scores behind a ReLU with these biases."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.bias = Linear(len(bias)), torch.tensor(bias)

        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(self.linear(x) + self.bias)

    return Net()


def test_redirected_relus_revive_a_dead_start() -> None:
    model, start = relu_network([-20.0, 5.0]), torch.zeros(2, 3, 8, 9)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = plain_optimize(
            model, ClassScore([0, 1]), start, make_optimizer=partial(NormalizedSGD, lr=0.5), steps=30
        )
    weight = model.linear.weight.detach()
    assert (result.history[:2, 0] == 0).all() and result.objective[0] > 50 and result.notes == ("", "")
    # Both went along their weights, the one through the closed ReLU and the other through the open one.
    torch.testing.assert_close(result.images, 15 * torch.stack([w / w.norm() for w in weight]))


def test_a_start_that_stays_dead_is_told() -> None:
    model = relu_network([-1e6, 5.0])
    with pytest.warns(UserWarning, match=r"optimization: image 0: no gradient reaches the image.*dead") as told:
        result = plain_optimize(model, ClassScore([0, 1]), torch.zeros(2, 3, 8, 9), make_optimizer=SGD, steps=30)
    assert result.notes == (DEAD, "") and len(told) == 1


def test_a_start_revived_by_penalties_or_late_is_told_no_death() -> None:
    """Eleven of twenty steps without gradient, and yet it rose."""
    model = relu_network([-14.0 * 1.05 * 11, 5.0])
    speed = model.linear.weight[0].norm().item()
    model.bias[0] = -10.5 * speed
    result = optimize(model, ClassScore(0), torch.zeros(1, 3, 8, 9), steps=20)
    assert (result.history[:11] == 0).all() and result.history[11] > 0 and result.notes == ("",)


def test_what_dies_on_the_way_is_told_as_dead() -> None:
    """A huge step in the wrong way closes the ReLU, later than the first steps that are led."""

    class Kill:
        def __call__(self, made: Tensor, gradient: Tensor, step: int) -> None:
            if step == 17:
                made.sub_(1e4 * gradient)

    result = optimize(relu_network([5.0]), ClassScore(0), torch.zeros(1, 3, 8, 9), constraints=[Kill()], steps=60)
    assert result.notes == (DEAD,)


@pytest.mark.parametrize("favourite", [300.0, 30.0, -80.0, -300.0])
def test_probabilities_that_are_saturated_are_told(favourite: float) -> None:
    """Also behind ReLUs, which are not to blame; above, where nothing can rise, and below."""
    model = small()
    model[4] = nn.ReLU()
    with torch.no_grad():
        model[8].bias[1] += favourite
    with pytest.warns(UserWarning, match="softmax"):
        result = plain_optimize(
            nn.Sequential(model, nn.Softmax(dim=1)),
            ClassScore(1),
            images(),
            make_optimizer=partial(torch.optim.Adam, lr=0.01),
            steps=20,
        )
    assert result.notes == (SATURATED,) * 3
    fine = optimize(nn.Sequential(model, nn.Softmax(dim=1)), Channel("0.8", 1), images(), steps=20)
    assert fine.notes == ("",) * 3


def test_a_probability_that_reaches_one_is_no_failure() -> None:
    model = nn.Sequential(Linear(), nn.Softmax(dim=1))
    result = optimize(model, ClassScore(1), torch.zeros(2, 3, 8, 9), steps=60)
    assert (result.objective == 1).all() and result.notes == ("", "")


def test_nan_is_told_for_the_image_that_has_it() -> None:
    class Root(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (1 - x.flatten(1).mean(dim=1, keepdim=True)).sqrt() * -1

    start = torch.stack([torch.full((3, 8, 9), 0.9), torch.full((3, 8, 9), -99.0)])
    with pytest.warns(UserWarning, match="image 0: the objective is NaN"):
        result = plain_optimize(Root(), ClassScore(0), start, make_optimizer=partial(NormalizedSGD, lr=3.0), steps=4)
    assert result.notes == (NOT_FINITE, "")


def test_an_objective_that_does_not_rise_is_told() -> None:
    goal = images(1, seed=7)[0]
    with pytest.warns(UserWarning, match="facets: the objective did not rise"):
        result = plain_optimize(
            Linear(),
            Towards(goal),
            goal[None] + 0.01,
            make_optimizer=partial(torch.optim.SGD, lr=3.0),
            steps=5,
            description="facets",
        )
    assert result.notes == (NOT_RISEN,)


@pytest.mark.parametrize("what", [nn.BatchNorm2d(3), nn.Dropout(0.1)])
@pytest.mark.parametrize("color", [0.0, 0.25, 0.5])
def test_a_network_in_training_mode_behind_a_function_is_told(what: nn.Module, color: float) -> None:
    model = nn.Sequential(what, *small()).train()
    model[8].eval()
    flat = torch.full((2, 3, 8, 9), color) if isinstance(what, nn.BatchNorm2d) else images(2)
    with pytest.warns(UserWarning, match="training mode"):
        result = plain_optimize(lambda x: model(x), ClassScore(1), flat, make_optimizer=SGD, steps=2)
    assert result.notes == (TRAINING,) * 2
    assert TRAINING not in optimize(model, ClassScore(1), flat, steps=2).notes, "a module is put into evaluation mode"
    model.eval()
    assert TRAINING not in optimize(lambda x: model(x), ClassScore(1), flat, steps=2).notes


def test_rounding_is_not_taken_for_training() -> None:
    """Log-probabilities of what is all but certain are nothing but rounding; so is a difference of equals."""
    model = small()
    with torch.no_grad():
        model[8].bias[1] += 13
    for objective in (ClassScore(1, of="log_probability"), ClassScore(1) - ClassScore(1)):
        for size in ((8, 9), (32, 32)):
            assert TRAINING not in optimize(model, objective, images(2, size=size), steps=2).notes


# --- Types and modes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["pixels", "fourier"])
def test_networks_in_bfloat16_and_float64(way: str) -> None:
    fourier, results = Fourier((8, 9), SPACE), {}
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        results[dtype] = optimize(
            small(dtype),
            ClassScore(1) + Channel("3", 2) + Direction("3", torch.ones(8)),
            images() if way == "pixels" else fourier.noise(3, 3, std=0.1, seed=0),
            parameterization=Pixels(SPACE) if way == "pixels" else fourier,
            transforms=[Jitter(1), RandomAffine(degrees=3.0)],
            penalties=[(1e-3, total_variation)],
            constraints=[Blur(0.3)] if way == "pixels" else [],
            steps=5,
        )
        assert results[dtype].notes == ("", "", "")
    assert results[torch.bfloat16].images.dtype == torch.float32, "steps are smaller than what bfloat16 holds"
    assert results[torch.float64].images.dtype == torch.float64
    torch.testing.assert_close(
        results[torch.float64].images.float(), results[torch.float32].images, atol=1e-3, rtol=1e-3
    )
    difference = (results[torch.bfloat16].images - results[torch.float32].images).abs().mean()
    moved = (results[torch.float32].images - optimize(small(), ClassScore(1), images(), steps=0).images).abs().mean()
    assert difference < 0.1 * moved


def test_mixed_precision_is_for_the_network_alone() -> None:
    model, seen, fourier = small(), [], Fourier((8, 9), SPACE)
    model[3].register_forward_hook(lambda m, a, out: seen.append(out.dtype))
    for start, way, constraints in (
        (images(), Pixels(SPACE), [Blur(0.4)]),
        (fourier.noise(3, 3, std=0.3, seed=0), fourier, []),
    ):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            result = optimize(model, ClassScore(1), start, parameterization=way, constraints=constraints, steps=4)
            assert torch.is_autocast_enabled("cpu"), "as it was"
        assert set(seen) == {torch.bfloat16}
        assert result.images.dtype == torch.float32
        rounded = result.images.bfloat16().float()
        assert (rounded != result.images).float().mean() > 0.9, "no image of 8 bits"
        precise = optimize(model, ClassScore(1), start, parameterization=way, constraints=constraints, steps=0)
        assert result.notes == ("",) * 3 and (result.objective > precise.objective).all()
        seen.clear()


def test_under_inference_mode_and_without_gradients() -> None:
    model, expected = small(), optimize(small(), ClassScore([1, 0, 2]) + Channel("3", 2), images(), steps=4)
    for mode in (torch.inference_mode, torch.no_grad):
        with mode():
            objective = ClassScore(torch.tensor([1, 0, 2])) + Channel("3", torch.tensor(2))
            fourier = Fourier((8, 9), SPACE)
            found = optimize(model, objective, images(), steps=4)
            spectral = optimize(
                model, ClassScore(1), fourier.noise(2, 3, std=0.1, seed=0), parameterization=fourier, steps=4
            )
        assert torch.equal(found.images, expected.images) and torch.equal(found.history, expected.history)
        assert spectral.notes == ("", "")


def test_weights_made_in_inference_mode_are_told() -> None:
    with torch.inference_mode():
        model = small()
    with pytest.raises(UsageError, match="inference_mode"):
        optimize(model, ClassScore(1), images(), steps=2)


def test_inside_a_default_of_bfloat16() -> None:
    model, fourier = small(), Fourier((8, 9), SPACE)
    run = partial(
        optimize,
        model,
        ClassScore(1),
        transforms=[Jitter(1), RandomAffine(degrees=3.0, scales=[0.9, 1.1])],
        penalties=[(1e-3, partial(total_variation, beta=1.0))],
        steps=4,
    )
    starts = ((images(), Pixels(SPACE)), (fourier.noise(3, 3, std=0.1, seed=0), fourier))
    expected = [run(start, parameterization=way) for start, way in starts]
    torch.set_default_dtype(torch.bfloat16)
    try:
        found = [run(start, parameterization=way) for start, way in starts]
    finally:
        torch.set_default_dtype(torch.float32)
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a.images, b.images) and torch.equal(a.history, b.history)


def test_shared_weights() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv2d(3, 3, 1)
            self.second = nn.Conv2d(3, 3, 1)
            self.second.weight = self.first.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.second(self.first(x).tanh()).mean(dim=(2, 3))

    model = Tied()
    assert optimize(model, ClassScore(0), images(), steps=3).notes == ("",) * 3
    assert all(p.requires_grad for p in model.parameters())


def test_codes_of_a_decoder_stay_within_their_bounds() -> None:
    torch.manual_seed(0)
    decoder = nn.Sequential(nn.Linear(4, 216), nn.Sigmoid(), nn.Unflatten(1, (3, 8, 9)))
    code = Code(decoder, mean=torch.zeros(4), std=torch.ones(4), nonnegative=True, space=SPACE)
    result = optimize(
        small(),
        ClassScore([1, 2]),
        code.noise(2, seed=0),
        parameterization=code,
        make_optimizer=partial(NormalizedSGD, lr=1.0, norm="mean_abs", final_lr=0.0, steps=20),
        steps=20,
    )
    assert result.values.shape == (2, 4) and result.values.min() >= 0 and result.values.max() <= 3
    torch.testing.assert_close(result.images, code.images(result.values))
    assert result.notes == ("", "")


# --- Mistakes --------------------------------------------------------------------------------------------------------


def test_mistakes_are_told() -> None:
    model, x = small(), images()
    cases: list[tuple[Any, Objective, Tensor, dict[str, Any], str]] = [
        (model, ClassScore([1, 2]), x, {}, "for 2 images, but 3"),
        (model, ClassScore(9), x, {}, "9 is out of range: the model has 5 classes"),
        (model, Channel("3", 8), x, {}, "channels 0 to 7; 8 was asked for"),
        (model, Channel("no", 8), x, {}, "'no'"),
        (lambda v: model(v), Channel("3", 1), x, {}, "torch.nn.Module, not of a function"),
        (model, ClassScore(1), x[:0], {}, "no images"),
        (model, ClassScore(1), x, {"steps": -1}, "steps must be"),
        (model, ClassScore(1), x, {"batch_size": 0}, "batch_size must be"),
        (model, ClassScore(1), x, {"snapshot_every": 0}, "snapshot_every must be"),
        (lambda v: v, ClassScore(1), x, {}, "score=..."),
        (lambda v: torch.zeros(len(v), 5), ClassScore(1), x, {}, "does not depend on the image"),
        (lambda v: (v > 0).flatten(1).float(), ClassScore(1), x, {}, "does not depend on the image"),
        (model, Objective(), x, {}, "scores or at least one layer"),
    ]
    for network, objective, values, kwargs, message in cases:
        with pytest.raises(UsageError, match=message):
            optimize(network, objective, values, **{"steps": 2, **kwargs})

    class Sum(Objective):
        needs_scores = True

        def __call__(self, reading: Reading) -> Tensor:
            return reading.scores.sum()

    with pytest.raises(UsageError, match=r"gave \(\) for 3 images"):
        optimize(model, Sum(), x, steps=2)
