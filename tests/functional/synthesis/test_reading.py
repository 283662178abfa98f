"""Reading layers and scores: no further than asked, unchanged by what follows, and gone afterwards."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lit_viz.errors import UsageError
from lit_viz.functional.synthesis import Channel, ClassScore, NormalizedSGD, Reading, optimize, reading

Network = Callable[[str], nn.Module]


class Counted(nn.Module):
    """Counts its calls."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.calls = inner, 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.inner(x)


def images(n: int = 2, seed: int = 1) -> Tensor:
    return torch.randn(n, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def small() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.Conv2d(4, 5, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.Flatten(),
        nn.Linear(320, 6),
    ).eval()


def which(n: int = 2) -> Tensor:
    return torch.arange(n)


def hooks(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


def test_layers_and_scores_equal_a_run_by_hand() -> None:
    model, x = small(), images()
    with reading(model, ["0", "3"]) as read:
        found = read(x, which())
    torch.testing.assert_close(found.layer("0"), model[0](x))
    torch.testing.assert_close(found.layer("3"), model[3](model[2](model[1](model[0](x)))))
    torch.testing.assert_close(found.scores, model(x))
    assert found.images is x


def test_what_lies_behind_the_deepest_layer_is_called_in_the_first_pass_only() -> None:
    model = small()
    model[4], model[6] = Counted(model[4]), Counted(model[6])
    with reading(model, ["0", "3"], needs_scores=False) as read:
        for _ in range(4):
            found = read(images(), which())
    assert model[4].calls == 1 and model[6].calls == 1
    assert found.all_scores is None
    with reading(model, ["3"], needs_scores=True) as read:
        for _ in range(3):
            read(images(), which())
    assert model[6].calls == 4


def test_truncated_passes_have_the_same_values_and_gradients() -> None:
    model, results = small(), []
    for needs_scores in (True, False):
        with reading(model, ["0", "3"], needs_scores=needs_scores) as read:
            for _ in range(2):
                x = images().requires_grad_()
                found = read(x, which())
            total = found.layer("3")[:, 2].sum() + found.layer("0")[:, 1].square().sum()
            results.append((found.layer("3").detach(), *torch.autograd.grad(total, x)))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_the_order_of_names_does_not_matter_for_where_a_pass_ends() -> None:
    model = small()
    model[4] = Counted(model[4])
    with reading(model, ["3", "0"], needs_scores=False) as read:
        for _ in range(3):
            assert read(images(), which()).layer("3").shape == (2, 5, 8, 8)
    assert model[4].calls == 1


class Repeated(nn.Module):
    """Calls a layer three times, and another one behind."""

    def __init__(self) -> None:
        super().__init__()
        self.again, self.behind = nn.Conv2d(3, 3, 1), Counted(nn.Flatten())

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(3):
            x = self.again(x)
        return self.behind(x)


def test_a_layer_that_is_called_several_times_is_read_in_all_its_calls() -> None:
    model, x = Repeated(), images()
    with reading(model, ["again"], needs_scores=False) as read:
        for _ in range(3):
            found = read(x, which())
    expected = [model.again(x)]
    for _ in range(2):
        expected.append(model.again(expected[-1]))
    for call in (0, 1, 2, -1):
        torch.testing.assert_close(found.layer("again", call), expected[call])
    assert model.behind.calls == 1
    with pytest.raises(UsageError, match=r"3 times .*call=0 … 2"):
        found.layer("again")
    with pytest.raises(UsageError, match="call=7"):
        found.layer("again", 7)


def test_an_in_place_relu_behind_a_layer_does_not_change_what_is_read() -> None:
    model, x = small(), images()
    expected = model[1](model[0](x))
    assert (expected < 0).any()
    for layers, needs_scores in ((["1"], False), (["1"], True), (["1", "3"], False)):
        with reading(model, layers, needs_scores=needs_scores) as read:
            for _ in range(2):
                torch.testing.assert_close(read(x, which()).layer("1"), expected)


class Checkpointed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = small()

    def forward(self, x: Tensor) -> Tensor:
        return self.body[5:](checkpoint(self.body[:5], x, use_reentrant=False))


@pytest.mark.parametrize("layers", [["body.3"], ["body.0", "body.4"], ["body.6"]])
def test_blocks_that_are_computed_again_in_the_backward_pass(layers: list[str]) -> None:
    """The layers inside are called there once more; that is no call of the forward pass."""
    model, plain = Checkpointed().eval(), small()
    gradients = []
    for net, names in ((model, layers), (plain, [name.removeprefix("body.") for name in layers])):
        with reading(net, names, needs_scores=False) as read:
            for _ in range(3):
                x = images().requires_grad_()
                found = read(x, which())
                (gradient,) = torch.autograd.grad(sum(found.layer(name).square().sum() for name in names), x)
        gradients.append(gradient)
    torch.testing.assert_close(*gradients)


def test_unknown_layers_and_layers_that_take_no_part() -> None:
    model = small()
    with pytest.raises(UsageError, match="'0'"), reading(model, ["00"]):
        pass
    with pytest.raises(UsageError, match="not of a function"), reading(lambda x: model(x), ["0"]):
        pass
    with pytest.raises(UsageError, match="scores or at least one layer"), reading(model, [], needs_scores=False):
        pass
    model.unused = nn.Linear(2, 2)
    model.forward = lambda x: nn.Sequential.forward(model[:5], x)  # type: ignore[method-assign]
    with (
        reading(model, ["unused"], needs_scores=False) as read,
        pytest.raises(UsageError, match="'unused' takes no part"),
    ):
        read(images(), which()).layer("unused")
    assert hooks(model) == 0


def test_hooks_are_gone_after_exceptions() -> None:
    model = small()
    with pytest.raises(KeyError), reading(model, ["0", "3"], needs_scores=False) as read:
        read(images(), which())
        assert hooks(model) == 2
        raise KeyError
    assert hooks(model) == 0
    with pytest.raises(RuntimeError), reading(model, ["0", "3"]) as read:
        read(torch.zeros(1, 7, 8, 8), which(1))
    assert hooks(model) == 0
    with pytest.raises(UsageError), reading(model, ["0", "no such layer"]):
        pass
    assert hooks(model) == 0


def test_a_failed_pass_leaves_nothing_for_the_next_one() -> None:
    model = small()
    with reading(model, ["0", "3"], needs_scores=False) as read:
        read(images(), which())
        with pytest.raises(RuntimeError):
            read(torch.zeros(1, 3, 1, 1, dtype=torch.float64), which(1))
        found = read(images(), which())
    assert len(found.calls["0"]) == len(found.calls["3"]) == 1


def test_whoever_keeps_the_function_keeps_no_graph() -> None:
    import gc
    import weakref

    model = small()
    with reading(model, ["3"], needs_scores=False) as read:
        found = read(images().requires_grad_(), which())
        kept = weakref.ref(found.layer("3"))
        del found
        gc.collect()
        assert kept() is None


def test_names_may_be_ends_of_names_and_those_of_compiled_modules() -> None:
    model = nn.Sequential()
    model.add_module("network", small())
    with reading(model, ["network.3"], needs_scores=False) as read:
        found = read(images(), which())
    assert torch.equal(found.layer("3"), found.layer("network.3"))
    compiled = torch.compile(model, backend="eager")
    result = optimize(
        compiled,
        Channel("_orig_mod.network.3", 1),
        images(),
        make_optimizer=lambda p: NormalizedSGD(p, 1.0),
        steps=3,
    )
    expected = optimize(
        model, Channel("network.3", 1), images(), make_optimizer=lambda p: NormalizedSGD(p, 1.0), steps=3
    )
    assert torch.equal(result.images, expected.images) and result.notes == ("", "")


def test_a_lightning_module() -> None:
    class Lit(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.network = small()

        def forward(self, x: Tensor) -> Tensor:
            return self.network(x)

    model = Lit().eval()
    with reading(model, ["network.3"]) as read:
        found = read(images(), which())
    torch.testing.assert_close(found.scores, model.network(images()))
    assert found.maps("3").shape == (2, 5, 8, 8)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*")
def test_parts_of_torchscript_are_run_but_not_read() -> None:
    model = small()
    expected = model(images())
    model[3] = torch.jit.script(model[3])
    with reading(model, ["4"]) as read:
        for _ in range(4):
            torch.testing.assert_close(read(images(), which()).scores, expected)
    with pytest.raises(UsageError, match="'3' is compiled by TorchScript"), reading(model, ["3"]):
        pass
    assert hooks(model) == 0


def test_a_network_wrapped_for_several_processes(tmp_path: object) -> None:
    """Its reducer, which expects gradients of the weights after each pass, is not disturbed."""
    import torch.distributed as dist

    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        plain = small()
        model = nn.parallel.DistributedDataParallel(small())
        for objective, same in ((ClassScore(1), ClassScore(1)), (Channel("module.3", 2), Channel("3", 2))):
            found, expected = (
                optimize(m, o, images(), make_optimizer=lambda p: NormalizedSGD(p, 1.0), steps=3)
                for m, o in ((model, objective), (plain, same))
            )
            assert torch.equal(found.images, expected.images)
        model.train()
        for _ in range(2):  # and training goes on
            model(images()).sum().backward()
        assert model.module[0].weight.grad is not None
    finally:
        dist.destroy_process_group()


def test_a_network_whose_weights_are_shared_out(tmp_path: object) -> None:
    """A pass that ends early is an exception to it, and must not leave it in the middle of a pass."""
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        mesh, plain, model = init_device_mesh("cpu", (1,)), small(), small()
        for part in (model[0], model[3], model):
            fully_shard(part, mesh=mesh)
        model(images()).sum().backward()
        for objective in (ClassScore(1), Channel("3", 2), Channel("0", 1)):
            found, expected = (
                optimize(m, objective, images(), make_optimizer=lambda p: NormalizedSGD(p, 1.0), steps=3)
                for m in (model, plain)
            )
            torch.testing.assert_close(found.images, expected.images)
        for _ in range(2):  # and training goes on
            model(images()).sum().backward()
        gradient = model[0].weight.grad.full_tensor()
        for _ in range(3):
            plain(images()).sum().backward()
        torch.testing.assert_close(gradient, plain[0].weight.grad)
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize(
    ("values", "size", "expected"),
    [
        (torch.arange(24.0).reshape(1, 2, 3, 4), (12, 16), lambda v: v),
        (torch.arange(120.0).reshape(1, 5, 4, 6), (50, 40), lambda v: v.permute(0, 3, 1, 2)),
        (torch.arange(39.0).reshape(1, 13, 3), (48, 64), lambda v: v[:, 1:].mT.reshape(1, 3, 3, 4)),
        (torch.arange(7.0).reshape(1, 7), (8, 8), lambda v: v.reshape(1, 7, 1, 1)),
    ],
    ids=["maps", "channels last", "tokens", "vector"],
)
def test_layouts(values: Tensor, size: tuple[int, int], expected: Callable[[Tensor], Tensor]) -> None:
    found = Reading(torch.zeros(1, 3, *size), which(1), {"layer": [values]})
    assert torch.equal(found.maps("layer"), expected(values))
