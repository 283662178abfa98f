import pytest
import torch

from lit_viz.errors import UsageError
from lit_viz.networks import SmallCNN


@pytest.mark.parametrize(("channels", "side", "stride"), [(3, 64, 2), (1, 28, 1), (3, 16, 2)])
def test_scores_of_any_image_size(channels: int, side: int, stride: int):
    network = SmallCNN(7, in_channels=channels, width=4, stride=stride)
    assert network(torch.randn(2, channels, side, side)).shape == (2, 7)


def test_layers_are_named_and_relus_are_used_once():
    network = SmallCNN(10)
    assert network.conv1.weight.shape[2:] == (9, 9)
    calls = []
    for name in ("relu1", "relu2", "relu3"):
        layer = network.get_submodule(name)
        assert not layer.inplace
        layer.register_forward_hook(lambda *_, name=name: calls.append(name))
    network(torch.randn(1, 3, 64, 64))
    assert calls == ["relu1", "relu2", "relu3"]


def test_training_is_deterministic_and_draws_no_numbers():
    torch.manual_seed(0)
    network = SmallCNN(10, width=4)
    state = torch.get_rng_state()
    network(torch.ones(2, 3, 32, 32)).sum().backward()
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    "arguments", [{"num_classes": 0}, {"width": 0}, {"in_channels": 0}, {"kernel_size": 8}, {"stride": 0}]
)
def test_bad_arguments(arguments: dict):
    with pytest.raises(UsageError, match=next(iter(arguments))):
        SmallCNN(**{"num_classes": 10} | arguments)
