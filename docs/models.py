"""Runs every method on many vision models, checks each result against a reference, and writes `docs/models.md`.

    uv run --group timm docs/models.py              # all models, a few minutes on one core
    uv run --group timm docs/models.py vit resnet   # those whose names hold a word: a look, nothing is written

Weights are random: what is asked is whether a method computes on a model what it says, not what the model has learned.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import inspect
import re
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torchvision.models as tv
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torchvision.ops import box_iou

from lit_viz import functional as viz
from lit_viz.errors import UsageError
from lit_viz.layers import find_layer, first_tensor

TABLE = Path(__file__).with_suffix(".md")
HAS_TIMM = importlib.util.find_spec("timm") is not None
CLASSES = 20
TOLERANCE = 1e-5  # of the largest absolute value of a map

Score = Callable[[Any], Tensor]


# --- How to ask networks that return no class scores -----------------------------------------------------------


def whole_image(out: dict[str, Tensor]) -> Tensor:
    """Scores (N, classes) of a segmentation network: each class, mean over all pixels.

    Not the sum, which is as good for a gradient: its softmax is 1 or 0 whatever is covered, for `occlusion` to show.
    """
    return out["out"].mean((2, 3))


def box_score(box: tuple[float, float, float, float], label: int, *, missing: float | None = None) -> Score:
    """Scores (N, 1) of a detection network: how sure it is of one object, so ask with `target=0`.

    A detector returns as many boxes as it likes. The object that is meant is given by its place and class, and the
    score is that of the box of this class which overlaps the place most; the overlap itself is not part of it. It is
    a probability already: give `output="score"` to `occlusion`.

    Args:
        box: Left, top, right, bottom in pixels.
        label: Class of the object.
        missing: The score where the network returns no box of that class there: 0 for `occlusion`, whose covered
            copies may hide the object; None to be told.

    Raises:
        UsageError: If an image has no such box, unless `missing` is given.
    """

    def score(found: list[dict[str, Tensor]]) -> Tensor:
        scores = []
        for number, image in enumerate(found):
            mine = image["labels"] == label
            overlap = box_iou(image["boxes"][mine].detach(), image["boxes"].new_tensor([box]))[:, 0]
            if len(overlap) and overlap.max() > 0:
                scores.append(image["scores"][mine][overlap.argmax()])
            elif missing is not None:
                scores.append(image["scores"].new_tensor(missing))
            else:
                raise UsageError(
                    f"the network finds no object of class {label} at {box} in image {number} (its {len(mine)} boxes "
                    f"have classes {image['labels'].unique().tolist()}): choose one of its own boxes and labels."
                )
        return torch.stack(scores)[:, None]

    return score


# --- The models ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Entry:
    """A model, and what is known about it from its own code."""

    name: str
    build: Callable[[], nn.Module]
    size: int = 64
    count: int = 2  # images
    score: Score | str | None = None  # "box": of a box that the network finds
    extra: int = 0  # tokens before the patches
    channels_last: bool = False
    mean_token: bool = False  # the head reads the mean of the patches
    reads: int = 1  # otherwise so many tokens before the patches
    attends: bool = False  # all tokens of an image to each other, in every layer
    fast: bool = False


def _timm(name: str, **arguments: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        import timm

        return timm.create_model(name, pretrained=False, num_classes=CLASSES, **arguments)

    return build


def _tv(build: Callable[..., nn.Module], **arguments: Any) -> Callable[[], nn.Module]:
    return lambda: build(weights=None, num_classes=CLASSES, **arguments)


def _entries() -> Iterator[Entry]:
    s, d = tv.segmentation, tv.detection
    bare: dict[str, Any] = {"weights_backbone": None}
    yield Entry("alexnet", _tv(tv.alexnet), 96)
    yield Entry("vgg16", _tv(tv.vgg16, init_weights=False))
    yield Entry("resnet18", _tv(tv.resnet18), fast=True)
    yield Entry("resnet50", _tv(tv.resnet50))
    yield Entry("densenet121", _tv(tv.densenet121))
    yield Entry("inception_v3", _tv(tv.inception_v3, init_weights=False), 96)
    yield Entry("googlenet", _tv(tv.googlenet, init_weights=False))
    yield Entry("squeezenet1_1", _tv(tv.squeezenet1_1), fast=True)
    yield Entry("mnasnet1_0", _tv(tv.mnasnet1_0))
    yield Entry("shufflenet_v2_x1_0", _tv(tv.shufflenet_v2_x1_0))
    yield Entry("mobilenet_v3_large", _tv(tv.mobilenet_v3_large))
    yield Entry("efficientnet_b0", _tv(tv.efficientnet_b0))
    yield Entry("regnet_x_400mf", _tv(tv.regnet_x_400mf))
    yield Entry("regnet_y_400mf", _tv(tv.regnet_y_400mf))
    yield Entry("convnext_tiny", _tv(tv.convnext_tiny))
    yield Entry("vit_b_16", _tv(tv.vit_b_16, image_size=64), extra=1, attends=True)
    yield Entry("swin_t", _tv(tv.swin_t), channels_last=True)
    yield Entry("maxvit_t", _tv(tv.maxvit_t), 224, count=1)
    yield Entry("fcn_resnet50", _tv(s.fcn_resnet50, **bare), score=whole_image)
    yield Entry("deeplabv3_mobilenet_v3_large", _tv(s.deeplabv3_mobilenet_v3_large, **bare), score=whole_image)
    yield Entry("lraspp_mobilenet_v3_large", _tv(s.lraspp_mobilenet_v3_large, **bare), score=whole_image)
    small: dict[str, Any] = {"min_size": 128, "max_size": 128, "trainable_backbone_layers": 6, **bare}
    yield Entry(
        "fasterrcnn_mobilenet_v3_large_320_fpn",
        _tv(d.fasterrcnn_mobilenet_v3_large_320_fpn, **small, box_score_thresh=0.0),
        128,
        count=1,
        score="box",
    )
    small |= {"trainable_backbone_layers": 5}
    yield Entry(
        "retinanet_resnet50_fpn",
        _tv(d.retinanet_resnet50_fpn, **small, score_thresh=0.0),
        128,
        count=1,
        score="box",
    )
    yield Entry("ssdlite320_mobilenet_v3_large", _tv(d.ssdlite320_mobilenet_v3_large, **bare), 128, 1, score="box")
    if not HAS_TIMM:
        return
    yield Entry("timm resnet18", _timm("resnet18"))
    yield Entry("timm convnext_atto", _timm("convnext_atto"))
    yield Entry(
        "timm vit_tiny_patch16_224",
        _timm("vit_tiny_patch16_224", img_size=64),
        extra=1,
        attends=True,
        fast=True,
    )
    yield Entry(
        "timm vit_tiny_patch16_224, global_pool=avg",
        _timm("vit_tiny_patch16_224", img_size=64, global_pool="avg"),
        extra=1,
        attends=True,
        mean_token=True,
    )
    yield Entry(
        "timm deit_tiny_distilled_patch16_224",
        _timm("deit_tiny_distilled_patch16_224", img_size=64),
        extra=2,
        attends=True,
        reads=2,
    )
    yield Entry(
        "timm vit_small_patch14_reg4_dinov2",
        _timm("vit_small_patch14_reg4_dinov2", img_size=56),
        56,
        extra=5,
        attends=True,
    )
    yield Entry(
        "timm vit_little_patch16_reg4_gap_256",
        _timm("vit_little_patch16_reg4_gap_256", img_size=64),
        extra=4,
        attends=True,
        mean_token=True,
    )
    yield Entry(
        "timm eva02_tiny_patch14_224",
        _timm("eva02_tiny_patch14_224", img_size=56),
        56,
        extra=1,
        attends=True,
        mean_token=True,
    )
    yield Entry(
        "timm swin_tiny_patch4_window7_224",
        _timm("swin_tiny_patch4_window7_224", img_size=64),
        channels_last=True,
    )
    yield Entry("timm mixer_s32_224", _timm("mixer_s32_224", img_size=64))


ENTRIES = {entry.name: entry for entry in _entries()}


def network(entry: Entry) -> nn.Module:
    """The model with seeded weights, none of them a zero (or nearly one) that training would have to undo first.

    Last batch norms of residual blocks, layer scales, heads and tokens often start there, and a branch that is
    multiplied by zero would hide mistakes. Batch norms get the statistics of noise.
    """
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        model = entry.build().eval()
        norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
        for norm in norms:
            nn.init.ones_(norm.weight)
            norm.momentum = None  # the plain mean of what it sees
            norm.train()
        for name, parameter in model.named_parameters():
            if "layer_scale" in name or name.endswith(("gamma", "ls1", "ls2")):
                nn.init.ones_(parameter)
            elif parameter.dim() > 1 and not parameter.any():
                nn.init.normal_(parameter, std=0.05)
            elif name.endswith(("qkv.weight", "q_proj.weight", "k_proj.weight", "in_proj_weight")):
                parameter.data *= 5  # attention that is not the same for all tokens
        if norms:
            with torch.no_grad():
                model(torch.randn(4, 3, entry.size, entry.size))
        return model.eval()


class Case:
    """A model at hand, with images, a class for each, and what is read off the model without our code."""

    def __init__(self, entry: Entry) -> None:
        self.entry, self.model = entry, network(entry).double()
        self.random = torch.Generator().manual_seed(1)
        self.images = torch.randn(entry.count, 3, entry.size, entry.size, generator=self.random).double()
        self.score, self.target = entry.score, None
        if entry.score == "box":
            with torch.no_grad():
                (found,) = self.model(self.images)
            best = int(found["scores"].argmax())
            self.box = tuple(round(v) for v in found["boxes"][best].tolist()), int(found["labels"][best])
            self.score = box_score(*self.box)
        with torch.no_grad():
            self.target = self.scores(self.images).argmax(1)
        self.layer = viz.last_spatial_layer(self.model, self.images, self.target, score=self.score)

    def scores(self, images: Tensor) -> Tensor:
        out = self.model(images)
        return out if self.score is None else self.score(out)

    def gradient(self, images: Tensor) -> Tensor:
        """Of the target's score, (N, C, H, W), from the pixels on."""
        pixels = images.clone().requires_grad_()
        chosen = self.scores(pixels.clone()).gather(1, self.target[:, None])
        return torch.autograd.grad(chosen.sum(), pixels)[0]

    @cached_property
    def plain(self) -> Tensor:
        return self.gradient(self.images)

    @cached_property
    def at_layer(self) -> tuple[Tensor, Tensor]:
        """The chosen layer's output and gradient as the network has them, by hooks on module and tensor."""
        outputs, gradients = [], []

        def keep(module: nn.Module, args: Any, output: Any) -> None:
            tensor = first_tensor(output)
            outputs.append(tensor.detach().clone())
            tensor.register_hook(gradients.append)  # belongs to the values before any later in-place operation

        with _hooked(find_layer(self.model, self.layer)[1], keep):
            self.gradient(self.images)
        assert len(outputs) == len(gradients) == 1, "the layer is called several times"
        return outputs[0], gradients[0]

    def folded(self, tensor: Tensor) -> Tensor:
        """To (N, C, h, w), by what is known about the model."""
        if tensor.dim() == 4:
            return tensor.permute(0, 3, 1, 2) if self.entry.channels_last else tensor
        tokens = tensor[:, self.entry.extra :]
        side = round(tokens.shape[1] ** 0.5)
        return tokens.transpose(1, 2).reshape(len(tensor), -1, side, side)


@contextmanager
def _hooked(module: nn.Module, hook: Callable[..., None]) -> Iterator[None]:
    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


# --- Checks: each returns a remark, or raises UsageError where the method refuses, AssertionError where it is wrong ---


def same(found: Tensor, expected: Tensor, tolerance: float = TOLERANCE) -> None:
    """Equal up to a share of the largest absolute value of each map."""
    assert found.shape == expected.shape, f"shape {tuple(found.shape)}, expected {tuple(expected.shape)}"
    assert bool(expected.isfinite().all()), "the reference is not finite"
    peak = expected.abs().flatten(1).amax(1)
    off = (found - expected).abs().flatten(1).amax(1)
    assert bool((off <= tolerance * peak).all()), f"off by {float((off / peak).max()):.1e} of the maximum"


def constant(maps: Tensor) -> str:
    """What to say about maps that show nothing."""
    flat = maps.flatten(1)
    if not bool((flat.amax(1) == flat.amin(1)).any()):
        return ""
    return "the map of an image is all zero" if not bool(flat.any(1).all()) else "the map of an image is constant"


class Scored(nn.Module):
    """A model with its score, for Captum."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.model, self.case = case.model, [case]

    def forward(self, x: Tensor) -> Tensor:
        return self.case[0].scores(x)


def check_saliency(case: Case) -> str:
    from captum.attr import Saliency

    found = viz.saliency(case.model, case.images, case.target, score=case.score)
    theirs = Saliency(Scored(case)).attribute(case.images.clone().requires_grad_(), case.target)
    same(found, theirs.amax(1).detach())
    same(found, case.plain.abs().amax(1))
    return constant(found)


def check_input_x_gradient(case: Case) -> str:
    from captum.attr import InputXGradient

    found = viz.input_x_gradient(case.model, case.images, case.target, score=case.score)
    same(found, InputXGradient(Scored(case)).attribute(case.images.clone().requires_grad_(), case.target).detach())
    return constant(found)


def check_smooth_grad(case: Case) -> str:
    """Against noise drawn and added here."""
    found = viz.smooth_grad(case.model, case.images, case.target, samples=2, noise=0.1, seed=0, score=case.score)
    span = case.images.flatten(1)
    sigma = 0.1 * (span.amax(1) - span.amin(1)).reshape(-1, 1, 1, 1)
    noise = [torch.randn(case.images.shape[1:], generator=torch.Generator().manual_seed(i)) for i in range(2)]
    same(found, sum(case.gradient(case.images + sigma * n.double()) for n in noise) / 2)
    return constant(found)


def check_integrated_gradients(case: Case) -> str:
    from captum.attr import IntegratedGradients

    found = viz.integrated_gradients(case.model, case.images, case.target, steps=3, score=case.score)
    theirs = IntegratedGradients(Scored(case)).attribute(case.images, 0.0, case.target, n_steps=3)
    same(found, theirs.detach())
    return constant(found)


class _Rectify(torch.autograd.Function):
    """A ReLU (with a ceiling) whose backward pass is written out."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, ceiling: float, guided: bool, inplace: bool) -> Tensor:
        ctx.passes, ctx.guided = (x > 0) & (x < ceiling), guided
        if inplace:
            ctx.mark_dirty(x)
            return x.clamp_(0, ceiling)
        return x.clamp(0, ceiling)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        rectified = torch.where(gradient > 0, gradient, 0)
        return (rectified * ctx.passes if ctx.guided else rectified), None, None, None


class _Rectifiers(TorchFunctionMode):
    """Puts `_Rectify` in the place of every call of a ReLU, whatever module or function makes it."""

    def __init__(self, guided: bool) -> None:
        super().__init__()
        self.guided, self.calls = guided, 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (F.relu, torch.relu, Tensor.relu, torch.relu_, Tensor.relu_, F.relu6):
            self.calls += 1
            inplace = func in (torch.relu_, Tensor.relu_) or kwargs.get("inplace", (*args, False)[1])
            return _Rectify.apply(args[0], 6.0 if func is F.relu6 else torch.inf, self.guided, bool(inplace))
        if func is F.hardtanh and kwargs.get("min_val", (*args, None)[1]) == 0:
            self.calls += 1
            ceiling = kwargs.get("max_val", (*args, None, None)[2])
            return _Rectify.apply(args[0], float(ceiling), self.guided, kwargs.get("inplace", False))
        return func(*args, **kwargs)


def _guided_reference(case: Case, guided: bool) -> tuple[Tensor, int]:
    with _Rectifiers(guided) as mode:
        expected = case.gradient(case.images)
    return expected, mode.calls


def _check_rule(case: Case, method: Callable[..., Tensor], guided: bool) -> str:
    expected, calls = _guided_reference(case, guided)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            found = method(case.model, case.images, case.target, score=case.score)
        except UsageError:
            assert calls == 0 or bool((expected == case.plain).all()), "refused, though there are ReLUs"
            raise
    same(found, expected)
    return "; ".join(filter(None, [*_told(caught), constant(found)]))


def _told(caught: list[warnings.WarningMessage]) -> list[str]:
    """What guided backprop and deconvnet warn of."""
    texts = [str(w.message).removeprefix("guided backprop and deconvnet: ").rstrip(".") for w in caught]
    return [text.split("; take")[0] for text in texts if "deconvnet" in text or "no rule" in text]


def check_guided_backprop(case: Case) -> str:
    return _check_rule(case, viz.guided_backprop, True)


def check_deconvnet(case: Case) -> str:
    """And it says so exactly where every image gets the same map."""
    told = _check_rule(case, viz.deconvnet, False)
    if len(case.images) > 1:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            first, second = viz.deconvnet(case.model, case.images, 0, score=case.score)
        alike = bool(((first - second).abs() <= TOLERANCE * first.abs().max()).all())
        assert alike == ("the same for every image" in told), f"images {'do not ' * (not alike)}share a map"
    return told


def _check_cam(case: Case, method: Callable[..., Tensor], weighted: Callable[[Tensor, Tensor], Tensor]) -> str:
    found = method(case.model, case.images, case.target, score=case.score)
    a, g = map(case.folded, case.at_layer)
    assert a.shape[2] * a.shape[3] > 1 and bool(g.flatten(1).any(1).all()), f"nothing to see in {case.layer}"
    evidence = weighted(a, g).sum(1)
    signed = method(case.model, case.images, case.target, score=case.score, signed=True)
    same(signed, evidence)
    peak = evidence.abs().flatten(1).amax(1)[:, None, None]
    assert bool(((found - evidence.clamp(min=0)).abs() <= TOLERANCE * peak).all())
    return _without_evidence(found)


def _without_evidence(maps: Tensor) -> str:
    """All places speak against the class: no fault, the signed map has been compared."""
    return "" if bool(maps.flatten(1).any(1).all()) else "all zero for an image: every place speaks against the class"


def check_grad_cam(case: Case) -> str:
    return _check_cam(case, viz.grad_cam, lambda a, g: g.mean((2, 3), keepdim=True) * a)


def check_hires_cam(case: Case) -> str:
    return _check_cam(case, viz.hires_cam, lambda a, g: g * a)


def check_layer_cam(case: Case) -> str:
    return _check_cam(case, viz.layer_cam, lambda a, g: g.relu() * a)


def check_guided_grad_cam(case: Case) -> str:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = viz.guided_grad_cam(case.model, case.images, case.target, score=case.score)
    a, g = map(case.folded, case.at_layer)
    heat = (g.mean((2, 3), keepdim=True) * a).sum(1).relu()
    rows, columns = (torch.arange(case.entry.size) * n // case.entry.size for n in heat.shape[1:])
    same(found, heat[:, rows][:, :, columns][:, None] * _guided_reference(case, True)[0])
    return "; ".join(filter(None, [*_told(caught), _without_evidence(found)]))


def check_occlusion(case: Case) -> str:
    """Three windows covered by hand."""
    size = case.entry.size
    window, stride = size // 4 + 3, size // 4
    box = case.entry.score == "box"
    score = box_score(*case.box, missing=0.0) if box else case.score
    output = "score" if box else "probability"

    def probability(images: Tensor) -> Tensor:
        out = case.model(images) if score is None else score(case.model(images))
        return (out if box else out.softmax(1)).gather(1, case.target[:, None])[:, 0]

    found = viz.occlusion(
        case.model, case.images, case.target, window=window, stride=stride, output=output, score=score
    )
    across = -(-(size - window) // stride) + 1
    assert found.shape == (len(case.images), across, across)
    with torch.no_grad():
        effect = (probability(case.images)[:, None, None] - found).abs().flatten(1).amax(1)
        for _ in range(3):
            row, column = torch.randint(across, (2,), generator=case.random).tolist()
            covered = case.images.clone()
            covered[:, :, row * stride : row * stride + window, column * stride : column * stride + window] = 0
            off = (found[:, row, column] - probability(covered)).abs()
            assert bool((off <= TOLERANCE * effect).all()), f"off by {float((off / effect).max()):.1e} of the effect"
    return constant(found)


def check_layer_units(case: Case) -> str:
    """The strongest response of a channel, and its gradient."""
    units = viz.LayerUnits(case.model, case.layer)
    outputs: list[Tensor] = []
    pixels = case.images.clone().requires_grad_()
    with _hooked(find_layer(case.model, case.layer)[1], lambda m, a, out: outputs.append(first_tensor(out).clone())):
        case.model(pixels.clone())
    last = outputs[0].dim() == 3 or case.entry.channels_last
    flat = outputs[0].flatten(1, -2).transpose(1, 2) if last else outputs[0].flatten(2)
    with torch.no_grad():
        same(units(case.images), flat.amax(2).detach())
    channel = flat.amax(2).argmax(1)
    (gradient,) = torch.autograd.grad(flat.amax(2).gather(1, channel[:, None]).sum(), pixels)
    same(viz.input_gradient(units, case.images, channel), gradient)
    return constant(gradient)


def check_activations(case: Case) -> str:
    found = viz.activations(case.model, case.images, case.layer)
    same(found, case.folded(case.at_layer[0]))
    return constant(found)


def check_attention_rollout(case: Case) -> str:
    """The product written out, on weights from `nn.MultiheadAttention` itself or timm's unfused code."""
    entry, weights, handles = case.entry, [], []

    def from_module(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        asked = {**kwargs, "need_weights": True, "average_attn_weights": False}
        weights.append(nn.MultiheadAttention.forward(module, *args[:3], **asked)[1].mean(1))

    for module in case.model.modules() if entry.attends else ():
        if isinstance(module, nn.MultiheadAttention):
            handles.append(module.register_forward_hook(from_module, with_kwargs=True))
        elif hasattr(module, "attn_drop") and hasattr(module, "fused_attn"):
            handles.append(module.attn_drop.register_forward_hook(lambda m, args, out: weights.append(args[0].mean(1))))
    fused = [m for m in case.model.modules() if getattr(m, "fused_attn", False)]
    try:
        for module in fused:
            module.fused_attn = False
        with torch.no_grad():
            case.model(case.images)
    finally:
        for module in fused:
            module.fused_attn = True
        for handle in handles:
            handle.remove()
    try:
        found = viz.attention_rollout(case.model, case.images)
    except UsageError:
        assert not entry.attends, "refused, though all tokens attend to each other"
        raise
    assert entry.attends, "a rollout where no reference is known"
    # All layers together mix tokens so well that any two rows are nearly equal, the last two by themselves do not.
    late = viz.attention_rollout(case.model, case.images, start_layer=len(weights) - 2)
    for maps, layers in ((found, weights), (late, weights[-2:])):
        product = torch.eye(weights[0].shape[-1]).double()
        for attention in layers:
            product = (attention + torch.eye(attention.shape[-1])) / 2 @ product
        mean, first = product[:, entry.extra :].mean(1), product[:, : entry.reads].mean(1)
        tokens = (mean if entry.mean_token else first)[:, entry.extra :]
        same(maps.double(), tokens.reshape(len(tokens), *[round(tokens.shape[1] ** 0.5)] * 2))
    apart = (mean - first)[:, entry.extra :].abs().amax(1)
    assert bool((apart > 1e-2 * mean.amax(1)).all()), "attention too even to tell rows apart"
    return constant(found)


def check_receptive_field(case: Case) -> str:
    """Boxes of units of the chosen layer, and of others spread over the depth, hold all pixels with a gradient."""
    fields = viz.receptive_field(case.model, case.images)
    local = [name for name, field in fields.items() if not field.is_global] or [*fields]
    picks = dict.fromkeys(local[i * (len(local) - 1) // 3] for i in range(4))
    fields |= viz.receptive_field(case.model, case.images, [case.layer])
    for name in [*picks, case.layer]:
        outputs: list[Tensor] = []
        pixels = case.images[:1].clone().requires_grad_()
        keep = lambda m, args, out, into=outputs: into.append(first_tensor(out).clone())  # noqa: E731
        with _hooked(find_layer(case.model, name)[1], keep):
            case.model(pixels.clone())
        if len(outputs) > 1 or not outputs[0].requires_grad:
            continue
        maps, found = outputs[0], fields[name]
        if maps.dim() < 4:
            maps = maps.transpose(1, -1).reshape(1, maps.shape[-1], -1, 1)
        elif maps.shape[1:] != found.shape:
            maps = maps.permute(0, 3, 1, 2)
        assert found.shape == maps.shape[1:], f"{name}: {found.shape} units, expected {tuple(maps.shape[1:])}"
        for _ in range(3):
            unit = tuple(int(torch.randint(n, (1,), generator=case.random)) for n in found.shape)
            (gradient,) = torch.autograd.grad(maps[0][unit], pixels, retain_graph=True)
            rows, columns = gradient[0].any(0).nonzero(as_tuple=True)
            if len(rows):
                top, left, bottom, right = found.box(*unit)
                inside = top <= rows.min() and rows.max() < bottom and left <= columns.min() and columns.max() < right
                assert inside, f"{name}, unit {unit}: pixels outside of {(top, left, bottom, right)}"
    told = sorted({operator for field in fields.values() for operator in field.approximations})
    return f"boxes may be too large behind {', '.join(told)}" if told else ""


def check_filters(case: Case) -> str:
    weights = viz.filters(case.model)
    size = list(weights.shape[2:])
    first: list[Tensor] = []
    handles = [
        m.register_forward_hook(lambda m, args, out: first.append(m.weight.detach()))
        for m in case.model.modules()
        if isinstance(m, nn.Conv2d)
    ]
    with torch.no_grad():
        case.model(case.images)
    for handle in handles:
        handle.remove()
    assert torch.equal(weights, first[0].float()), "not the first convolution that runs"
    return "patch embedding: filters as large as patches" if size[0] >= 14 else ""


METHODS: dict[str, Callable[[Case], str]] = {
    "saliency": check_saliency,
    "input_x_gradient": check_input_x_gradient,
    "smooth_grad": check_smooth_grad,
    "integrated_gradients": check_integrated_gradients,
    "guided_backprop": check_guided_backprop,
    "deconvnet": check_deconvnet,
    "grad_cam": check_grad_cam,
    "hires_cam": check_hires_cam,
    "layer_cam": check_layer_cam,
    "guided_grad_cam": check_guided_grad_cam,
    "occlusion": check_occlusion,
    "LayerUnits": check_layer_units,
    "activations": check_activations,
    "attention_rollout": check_attention_rollout,
    "receptive_field": check_receptive_field,
    "filters": check_filters,
}


# --- The table -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """What came out for a model.

    Attributes:
        layer: The layer that class activation maps take by default, and the size of its maps.
        cells: By method, the mark "✓" or "–", and a remark, which may be empty.
    """

    layer: str
    cells: dict[str, tuple[str, str]]


def examine(entry: Entry) -> Row:
    """Runs all checks on a model.

    Raises:
        AssertionError: If a method gives something else than its reference; the message names both.
    """
    case = Case(entry)
    cells = {}
    for name, check in METHODS.items():
        try:
            cells[name] = "✓", check(case)
        except UsageError as error:
            cells[name] = "–", _shortened(str(error))
        except AssertionError as error:
            raise AssertionError(f"{entry.name}, {name} (layer {case.layer}): {error}") from error
    height, width = case.folded(case.at_layer[0]).shape[2:]
    return Row(f"`{case.layer}` {height}×{width}", cells)


_REASONS = {
    "there are none between pixels and score": "no ReLU ({only}) whose rule it could change: refused",
    "shows no attention between tokens": "no attention between tokens: refused",
    "attends within windows": "attention within windows, which layers can't be multiplied over: refused",
}


def _shortened(message: str) -> str:
    """The core of an error message, the same for models with the same reason."""
    for words, reason in _REASONS.items():
        if words in message:
            return reason.format(only=message.partition("(")[2].partition(")")[0])
    return message


_HEAD = """# Methods and models

<!-- Written by docs/models.py; run it again instead of editing. -->

Which method computes on which model what it says. **✓**: it ran on the model as it is, and gave the numbers of a
reference that is not ours, to {tolerance:g} of the largest: Captum or autograd by hand (gradients), every call of a
ReLU replaced by a function with the rule written out (guided backprop, deconvnet), hooks and the formula (class
activation maps, activations, `LayerUnits`), windows covered one by one (occlusion), attention weights from the
network's own unfused code (rollout); receptive fields hold all pixels that have a gradient. **–**: the method says in
one sentence that it has no meaning for the model, and draws nothing. Numbers refer to the remarks below.

Made by `uv run --group timm docs/models.py` with {versions};
random weights, float64, images as small as the networks take them. The second column is the layer that class activation
maps take when none is named, and the size of its maps.
"""

_TAIL = """
## Models that return no class scores

Every method takes `score`, a function from what the model returns to (N, classes). Segmentation above:

```python
{whole_image}
```

and detection, one object at a time:

```python
{box_score}
```
"""


def render(rows: dict[str, Row]) -> str:
    """The page, for `parse` to read back."""
    remarks: dict[str, int] = {}
    lines = [f"| model | layer | {' | '.join(METHODS)} |", f"| --- | --- |{' :-: |' * len(METHODS)}"]
    for name, row in rows.items():
        cells = []
        for mark, remark in row.cells.values():
            number = f"<sup>{remarks.setdefault(remark, len(remarks) + 1)}</sup>" if remark else ""
            cells.append(f"{mark}{number}")
        lines.append(f"| {name} | {row.layer} | {' | '.join(cells)} |")
    versions = ", ".join(f"{p} {importlib.metadata.version(p)}" for p in ("torch", "torchvision", "timm"))
    listed = [f"{number}. {remark}" for remark, number in remarks.items()]
    tail = _TAIL.format(**{f.__name__: inspect.getsource(f).strip() for f in (whole_image, box_score)})
    head = _HEAD.format(tolerance=TOLERANCE, versions=versions)
    return "\n".join([head, *lines, "", "## Remarks", "", *listed, tail])


def parse(text: str) -> dict[str, Row]:
    """The rows of a page made by `render`."""
    remarks = dict(re.findall(r"^(\d+)\. (.*)$", text, re.M))
    rows = {}
    for line in text.splitlines():
        if line.startswith("| ") and not line.startswith(("| model |", "| --- |")):
            name, layer, *cells = (cell.strip() for cell in line.strip("|").split("|"))
            found = (re.fullmatch(r"(.)(?:<sup>(\d+)</sup>)?", cell).groups() for cell in cells)
            marks = ((mark, remarks[number] if number else "") for mark, number in found)
            rows[name] = Row(layer, dict(zip(METHODS, marks, strict=True)))
    return rows


def main() -> None:
    words = sys.argv[1:]
    if not words and not HAS_TIMM:
        raise SystemExit("The table has models of timm: uv run --group timm docs/models.py")
    rows = {}
    for name, entry in ENTRIES.items():
        if not words or any(word in name for word in words):
            start = time.perf_counter()
            rows[name] = examine(entry)
            print(f"{name}: {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
    page = render(rows) if HAS_TIMM else ""
    if words:
        print(page or rows)
    else:
        TABLE.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
