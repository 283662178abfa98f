"""Perceptual features: which, of what, at which cost; and what stays out of checkpoints."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torchvision.models as tv
from skimage import data
from torch import Tensor, nn

from lit_viz.errors import UsageError
from lit_viz.networks.perceptual import PerceptualNetwork
from lit_viz.pixels import PixelSpace, usual_pixel_space

TINY = "tests.tiny_vgg.tiny_vgg"


@pytest.fixture(autouse=True)
def _classifiers_start_anyhow(monkeypatch: pytest.MonkeyPatch) -> None:
    """VGG has 120 million weights behind its convolutions: nothing here reads them, so that no time goes into them."""
    monkeypatch.setattr(nn.Linear, "reset_parameters", lambda self: None)
    monkeypatch.setattr(nn.init, "normal_", lambda tensor, *args, **kwargs: tensor)  # convolutions have kaiming_normal_


def colors(count: int = 1, side: int = 64) -> Tensor:
    photograph = torch.from_numpy(np.array(data.chelsea())).permute(2, 0, 1).float() / 255
    return torch.stack([photograph[:, 10 * i : 10 * i + side, 100 : 100 + side] for i in range(count)])


def test_features_are_those_of_the_papers_layers() -> None:
    vgg = tv.vgg11(weights=None).eval()
    network = PerceptualNetwork(["relu1_1", "relu3_2", "pool1"], copy.deepcopy(vgg))
    found = network(colors(2))
    x, expected = usual_pixel_space(3).from_color(colors(2)), {}
    for i, layer in enumerate(vgg.features):
        layer.inplace = False
        x = layer(x)
        expected[i] = x
    assert list(found) == ["relu1_1", "relu3_2", "pool1"]
    for name, index in (("relu1_1", 1), ("relu3_2", 9), ("pool1", 2)):
        torch.testing.assert_close(found[name], expected[index])
    assert list(network(colors(), ["pool1"])) == ["pool1"]


def test_in_place_layers_change_nothing_that_is_read() -> None:
    network = PerceptualNetwork(["conv1_1", "relu1_1"], TINY, weights=None)
    found = network(colors())
    assert (found["conv1_1"] < 0).any() and torch.equal(found["conv1_1"].relu(), found["relu1_1"])


@pytest.mark.parametrize("name", ["resnet18", "densenet121", "mobilenet_v2", "squeezenet1_1"])
def test_any_network_serves(name: str) -> None:
    layers = {"resnet18": "layer2", "densenet121": "features.denseblock1", "mobilenet_v2": "features.3"}
    module = tv.get_model(name, weights=None).eval()
    layer, seen = layers.get(name, "features.4"), []
    handle = module.get_submodule(layer).register_forward_hook(
        lambda _, __, output: seen.append(output.detach().clone())
    )
    module(usual_pixel_space(3).from_color(colors()))
    handle.remove()
    found = PerceptualNetwork(layer, module)(colors())[layer]
    torch.testing.assert_close(found, seen[0])


def test_what_lies_behind_is_not_run_nor_kept() -> None:
    network = PerceptualNetwork(["relu1_1"], TINY, weights=None)
    assert sum(p.numel() for p in network.module.parameters()) == 8 * 3 * 9 + 8
    ran = []
    module = tv.resnet18(weights=None)
    module.layer3.register_forward_hook(lambda *_: ran.append(1))
    network = PerceptualNetwork(["layer1", "layer2"], module)
    network(colors())
    ran.clear()
    network(colors())
    assert list(network(colors(), ["layer1"])) == ["layer1"]


def test_its_weights_are_in_no_checkpoint_and_no_optimizer() -> None:
    whole = nn.ModuleDict({"own": nn.Conv2d(3, 3, 1), "loss": PerceptualNetwork("relu1_1", TINY, weights=None)})
    assert list(whole.state_dict()) == ["own.weight", "own.bias"] and len(list(whole.parameters())) == 2
    loss = whole.train()["loss"]
    assert not any(m.training for m in loss.module.modules())
    assert next(loss.module.parameters()).dtype == torch.float32
    whole.double()
    assert next(loss.module.parameters()).dtype == torch.float64
    assert loss(colors())["relu1_1"].dtype == torch.float64


def test_a_gradient_reaches_the_image_alone() -> None:
    network, image = PerceptualNetwork("relu2_1", TINY, weights=None), colors().requires_grad_()
    network(image)["relu2_1"].sum().backward()
    assert image.grad is not None and image.grad.abs().max() > 0
    assert all(p.grad is None and not p.requires_grad for p in network.module.parameters())


def test_average_pooling_takes_the_place_of_max_pooling() -> None:
    layers = ["relu1_1", "pool1"]
    network = PerceptualNetwork(layers, TINY, weights=None, pooling="average")
    found = network(colors())
    torch.testing.assert_close(found["pool1"], nn.functional.avg_pool2d(found["relu1_1"], 2))
    with pytest.raises(UsageError, match="pooling is"):
        PerceptualNetwork(layers, TINY, weights=None, pooling="mean")  # type: ignore[arg-type]


@pytest.mark.parametrize(("name", "layers"), [("vgg11", ["conv1_1", "conv3_2"]), ("resnet18", ["layer2.0.conv1"])])
def test_random_weights_pass_on_what_they_see(name: str, layers: list[str]) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(5)
        before = torch.get_rng_state()
        network = PerceptualNetwork(layers, name, weights=None)
        assert torch.equal(before, torch.get_rng_state())
    for values in network(colors(8, 96)).values():
        values = values.transpose(0, 1).flatten(1)
        # These are no photographs that it was scaled by, or only in part.
        assert 0.3 < values.std(dim=1).median() < 2 and values.mean(dim=1).abs().median() < 1
    again = PerceptualNetwork(layers, name, weights=None)
    other = PerceptualNetwork(layers, name, weights=None, seed=1)
    for layer, values in network(colors()).items():
        assert torch.equal(values, again(colors())[layer])
        assert not torch.allclose(values, other(colors())[layer], atol=0.1)
    assert "not trained" in network.told and "seed 1" in other.told


def test_trained_weights_stay_as_they_are(network: Callable[[str], nn.Module]) -> None:
    model = network("efficientnet_lite0")
    before = {k: v.clone() for k, v in model.state_dict().items()}
    found = PerceptualNetwork("_blocks.2", "efficientnet_lite0")
    assert "DEFAULT" in found.told and found.pixel_space.mean == pytest.approx((0.498, 0.498, 0.498), abs=2e-3)
    PerceptualNetwork("_blocks.2", copy.deepcopy(model))
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_normalisation_is_inside() -> None:
    module = nn.Sequential(nn.Conv2d(3, 2, 1))
    network = PerceptualNetwork("0", module, pixel_space=PixelSpace((0.5,), (0.25,)))
    torch.testing.assert_close(network(colors())["0"], module((colors() - 0.5) / 0.25))


def test_unknown_layers_and_networks_are_told() -> None:
    with pytest.raises(UsageError, match="no layer 'relu1_2'"):
        PerceptualNetwork("relu1_2", TINY, weights=None)
    with pytest.raises(UsageError, match="at least one layer"):
        PerceptualNetwork([], "vgg11", weights=None)
    with pytest.raises(UsageError, match="unknown network"):
        PerceptualNetwork("relu1_2", "vgg61", weights=None)
