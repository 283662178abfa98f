"""Guided backprop and deconvnet: gradients that change their way at each ReLU, so that only what excites remains."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.graph import Node

from lit_viz.errors import UsageError
from lit_viz.functional.saliency import input_gradient
from lit_viz.functional.scores import Model, Score, Target

Rule = Callable[[Tensor, Tensor], Tensor]
"""From the gradient before a ReLU, as backprop has it, and the one behind it, to the one that goes on."""

# Nodes of autograd by the activation function that put them there. A node may be a rectifier with some bounds only.
_BOUNDS = {
    "ClampBackward1": ("_saved_min", "_saved_max"),
    "ClampMinBackward0": ("_saved_min", None),
    "HardtanhBackward0": ("_saved_min_val", "_saved_max_val"),
    "ThresholdBackward0": ("_saved_threshold", None),
}
_OTHERS = {
    "EluBackward0": "ELU",
    "GeluBackward0": "GELU",
    "HardswishBackward0": "Hardswish",
    "LeakyReluBackward0": "LeakyReLU",
    "LogSigmoidBackward0": "LogSigmoid",
    "MishBackward0": "Mish",
    "PreluKernelBackward0": "PReLU",
    "RreluWithNoiseBackward0": "RReLU",
    "SiluBackward0": "SiLU",
    "SoftplusBackward0": "Softplus",
    "TanhBackward0": "tanh",
}
# What brings the gradient back in the same way for every image.
_LINEAR = {
    "AccumulateGrad",
    "AdaptiveAvgPool2DBackward0",
    "AddBackward0",
    "AddmmBackward0",
    "AvgPool2DBackward0",
    "CatBackward0",
    "CloneBackward0",
    "ConstantPadNdBackward0",
    "ConvolutionBackward0",
    "CudnnBatchNormBackward0",
    "GatherBackward0",
    "IndexBackward0",
    "MeanBackward1",
    "MmBackward0",
    "MvBackward0",
    "NativeBatchNormBackward0",
    "PermuteBackward0",
    "ReflectionPad2DBackward0",
    "ReplicationPad2DBackward0",
    "ReshapeAliasBackward0",
    "SelectBackward0",
    "SliceBackward0",
    "SqueezeBackward0",
    "SqueezeBackward1",
    "SubBackward0",
    "SumBackward0",
    "SumBackward1",
    "TBackward0",
    "TransposeBackward0",
    "UnsafeViewBackward0",
    "UnsqueezeBackward0",
    "ViewBackward0",
}

# Its own operators (RoI pooling, deformable convolution) are no activation functions.
_TORCHVISION = "GeneratedBackwardFor_torchvision_"


@dataclass(frozen=True)
class Activations:
    """The activation functions between an output and the pixels.

    Attributes:
        rectifiers: Nodes of autograd of all ReLUs (and ReLU6), one for each call.
        others: Names of activation functions for which guided backprop and deconvnet have no rule.
        switches: Whether anything but ReLUs may depend on the image, such as where a max pool had its maximum. If not,
            deconvnet gives the same for every image.
    """

    rectifiers: list[Node]
    others: list[str]
    switches: bool

    @property
    def note(self) -> str:
        """In words, what has no rule; empty where all have."""
        return f"no rule for {', '.join(self.others)}: the plain gradient passes there" if self.others else ""


def guided_backprop(model: Model, images: Tensor, target: Target = None, *, score: Score | None = None) -> Tensor:
    r"""Gradient of a class score that goes back only along paths which excite it.

    At each ReLU $a = \max(0, z)$ the gradient passes where both the ReLU and the gradient are positive:

    $$R^z = [z > 0]\,[R^a > 0]\,R^a$$

    from Springenberg, Dosovitskiy, Brox & Riedmiller, *Striving for Simplicity: The All Convolutional Net* (2015).
    The rule belongs to the ReLU, not to the tensor that it reads: where a skip connection reads the same tensor, its
    gradient is left alone. It holds for each call of a ReLU, be it a module, a function, in place, `clamp(min=0)`, used
    several times; in a ReLU6 $z$ must also lie below 6.

    For the gradient of a unit or channel in the middle of a network give `LayerUnits(model, layer)` for `model`.

    Args:
        model: Maps (N, C, H, W) to (N, K) scores; with `score`, to anything. Left as it was found.
        images: (N, C, H, W), as the network takes them.
        target: Class index, N indices, or None for the predicted class.
        score: See `lit_viz.functional.class_scores`.

    Returns:
        (N, C, H, W), signed, in units of score per unit of network input. A picture of what excites, not an account
        of what the score depends on: it hardly changes with the weights of late layers (Adebayo et al. 2018).

    Raises:
        UsageError: As `saliency`, and if there is no ReLU between pixels and score, so that this would be the gradient.

    Warns:
        UserWarning: If there are other activation functions as well (GELU, SiLU …), where the plain gradient passes.

    >>> skip = lambda x: (10 * x - x.relu()).flatten(1).sum(1, keepdim=True)
    >>> guided_backprop(skip, torch.tensor([[[[1.0, -1.0]]]]), 0)
    tensor([[[[10., 10.]]]])
    """
    return _with_rule(_guided, model, images, target, score)


def deconvnet(model: Model, images: Tensor, target: Target = None, *, score: Score | None = None) -> Tensor:
    r"""The signal that a deconvolutional network brings from a class score back to the pixels.

    At each ReLU the signal is rectified itself, and it does not matter what the ReLU had seen:

    $$R^z = [R^a > 0]\,R^a$$

    from Zeiler & Fergus, *Visualizing and Understanding Convolutional Networks* (2014), as a rule of backprop in
    Simonyan, Vedaldi & Zisserman (2014), section 4; max pooling sends it to where the maximum was ("switches").
    Nothing else ties it to the image: a network without max pooling gives every image the same picture, which a warning
    says (Springenberg et al. 2015). Arguments, result, errors and further warnings are those of `guided_backprop`.

    >>> skip = lambda x: (x.relu() + 10 * x).flatten(1).sum(1, keepdim=True)
    >>> deconvnet(skip, torch.tensor([[[[1.0, -1.0]]]]), 0)
    tensor([[[[11., 11.]]]])
    """
    return _with_rule(_deconv, model, images, target, score)


def find_activations(output: Tensor) -> Activations:
    """The activation functions that autograd went through on the way to `output`.

    Args:
        output: With a graph.

    Raises:
        UsageError: For a part compiled by TorchScript, whose inside can't be seen.
    """
    rectifiers, others, switches = [], set(), False
    for node in _nodes(output.grad_fn):
        name = node.name().split("::")[-1]
        if name == "ReluBackward0" or _is_rectifier(node, name):
            rectifiers.append(node)
        elif name in _OTHERS:
            others.add(_OTHERS[name])
        elif name == "DifferentiableGraphBackward":
            raise UsageError(
                "a part of the model is compiled by TorchScript, so its ReLUs can't be found; load it anew."
            )
        elif isinstance(node, torch.autograd.function.BackwardCFunction) and not name.startswith(_TORCHVISION):
            others.add(f"{name.removesuffix('Backward')} (of Python)")
        elif name not in _LINEAR:
            switches = True
    return Activations(rectifiers, sorted(others), switches or bool(others))


def _guided(before: Tensor, behind: Tensor) -> Tensor:
    return before.clamp(min=0)


def _deconv(before: Tensor, behind: Tensor) -> Tensor:
    return behind.clamp(min=0)


def _with_rule(rule: Rule, model: Model, images: Tensor, target: Target, score: Score | None) -> Tensor:
    def install(chosen: Tensor) -> None:
        found = find_activations(chosen)
        if not found.rectifiers:
            between = f"only {', '.join(found.others)}" if found.others else "no activation function"
            raise UsageError(
                f"guided backprop and deconvnet change the gradient at ReLUs, and there are none between pixels and "
                f"score ({between}); take saliency, smooth_grad or integrated_gradients."
            )
        if found.others:
            warnings.warn(f"guided backprop and deconvnet: {found.note}.", stacklevel=5)
        if rule is _deconv and not found.switches:
            warnings.warn(
                "deconvnet gives the same for every image here, since the network has no max pooling; take "
                "guided_backprop.",
                stacklevel=5,
            )
        for node in found.rectifiers:
            node.register_hook(lambda before, behind: (rule(before[0], behind[0]), *before[1:]))

    return input_gradient(model, images, target, score=score, on_graph=install)


def _nodes(root: Node | None) -> Iterator[Node]:
    """All nodes of a graph, each once."""
    # Python's objects for nodes must stay alive, or the same node comes as another object.
    seen = set() if root is None else {root}
    stack = list(seen)
    while stack:
        node = stack.pop()
        yield node
        for further, _ in node.next_functions:
            if further is not None and further not in seen:
                seen.add(further)
                stack.append(further)


def _is_rectifier(node: Node, name: str) -> bool:
    if name not in _BOUNDS:
        return False
    low, high = (attribute and getattr(node, attribute) for attribute in _BOUNDS[name])
    return low == 0 and (high is None or high > 0)
