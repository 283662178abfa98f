"""Attention rollout: which patches of the image reach the output of a vision transformer through its attention."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from lit_viz.errors import UsageError, check_at_least, check_choice
from lit_viz.functional.scores import Model, check_images
from lit_viz.guard import untouched
from lit_viz.layers import first_tensor, token_grid

HeadFusion = Literal["mean", "max", "min"]

_SOFTMAX = (F.softmax, torch.softmax, torch.Tensor.softmax)


def attention_rollout(
    model: Model,
    images: Tensor,
    *,
    discard: float = 0.0,
    head_fusion: HeadFusion = "mean",
    start_layer: int = 0,
    token: Literal["class", "mean"] | None = None,
) -> Tensor:
    r"""How much of each patch arrives at the class token, if tokens were mixed by attention alone.

    $$\tilde A_l = \mathrm{rows}\bigl(\tfrac12 A_l + \tfrac12 I\bigr), \qquad
      R = \tilde A_L \cdots \tilde A_1$$

    from Abnar & Zuidema, *Quantifying Attention Flow in Transformers* (2020): $A_l$ is the attention of layer $l$, one
    number for its heads, $I$ stands for the residual connection, and rows are normalised to 1. The map is the row of
    $R$ of the tokens that the head reads, mostly the class token's. Values, MLPs and norms are left out of account, so
    that it shows where information may come from, not what speaks for a class: **it is the same for every class**.

    Args:
        model: A vision transformer whose tokens all attend to each other, in any code that calls
            `nn.MultiheadAttention`, `F.scaled_dot_product_attention` or takes the softmax itself. Left as it was found.
        images: (N, C, H, W), as the network takes them.
        discard: Share of the smallest attention weights of each layer that are set to zero, in [0, 1).
        head_fusion: What stands for all heads: their mean, largest or smallest weight.
        start_layer: Layers before this one are left out.
        token: Whose row is shown: "class", the first token, or the "mean" of all patches. By default the mean of the
            tokens behind the last layer on which the output depends: the class token; it and the distillation token;
            or all patches, where the head takes their mean.

    Returns:
        (N, h, w), one value for each patch, non-negative; those of an image add up to at most 1.

    Raises:
        UsageError: If the model has no attention (convolutional networks), attends within windows or between other
            tokens (Swin, pyramids: a product over layers has no meaning), or its tokens are no grid of patches.
    """
    check_images(images)
    check_choice("head_fusion", head_fusion, ("mean", "max", "min"))
    check_at_least("start_layer", start_layer, 0)
    if not 0 <= discard < 1:
        raise UsageError(f"discard is a share from 0 to below 1, got {discard}.")
    if token is not None:
        check_choice("token", token, ("class", "mean"))
    fuse = {"mean": lambda a: a.mean(1), "max": lambda a: a.amax(1), "min": lambda a: a.amin(1)}[head_fusion]
    layers = attention_weights(model, images, reduce=fuse)
    if start_layer >= len(layers):
        raise UsageError(f"start_layer is {start_layer}, but there are {len(layers)} layers of attention, from 0.")
    tokens = layers[0].shape[-1]
    grid = token_grid(tokens, (images.shape[2], images.shape[3]))
    if grid is None:
        raise UsageError(
            f"the {tokens} tokens are no grid of square patches of the image, so they can't be shown on it."
        )
    height, width, extra = grid
    if token == "class" and not extra:
        raise UsageError(f"there is no class token: the {tokens} tokens are {height} × {width} patches; token='mean'.")
    mixed = rolled_out(layers[start_layer:], discard=discard)
    if token is None:
        asked = mixed[:, _tokens_read(model, images[:1], tokens, extra).to(mixed.device)]
    else:
        asked = mixed[:, extra:] if token == "mean" else mixed[:, :1]
    return asked.mean(dim=1)[:, extra:].unflatten(1, (height, width))


def _tokens_read(model: Model, image: Tensor, tokens: int, extra: int) -> Tensor:
    """Which tokens of the last layer the output depends on, bool (T,), found out by the gradient for one image."""
    guess = torch.zeros(tokens, dtype=torch.bool)
    guess[: 1 if extra else tokens] = True
    if not isinstance(model, nn.Module):
        return guess
    kept: list[Tensor] = []

    def keep(module: nn.Module, args: Any, output: Any) -> None:
        tensor = first_tensor(output)
        if tensor is not None and tensor.dim() == 3 and tensor.shape[:2] == (1, tokens) and tensor.requires_grad:
            kept.append(tensor)

    with untouched(model, seed=0):
        handles = [module.register_forward_hook(keep) for module in model.modules()]
        try:
            # What lies before an attention is read by all tokens.
            with recording_attention(lambda weights: kept.clear()):
                output = first_tensor(model(image.detach().clone().requires_grad_(True)))
        finally:
            for handle in handles:
                handle.remove()
        if output is None or not output.requires_grad:
            return guess
        # At random: the sum of probabilities is 1 whatever they depend on.
        score = (output * torch.randn(output.shape, dtype=torch.float32).to(output)).sum()
        for tensor in reversed(kept):
            (gradient,) = torch.autograd.grad(score, tensor, retain_graph=True, allow_unused=True)
            if gradient is not None and gradient.any():
                return (gradient[0] != 0).any(dim=1).cpu()
    return guess


def rolled_out(layers: list[Tensor], *, discard: float = 0.0) -> Tensor:
    """The product over layers.

    Args:
        layers: Attention (N, T, T) of each layer, first one first.
        discard: See `attention_rollout`.

    Returns:
        (N, T, T); row i tells what token i is made of, and adds up to 1.

    >>> rolled_out([torch.tensor([[[0.0, 1.0], [0.0, 1.0]]])] * 2)
    tensor([[[0.2500, 0.7500],
             [0.0000, 1.0000]]])
    """
    out = None
    with torch.autocast(layers[0].device.type, enabled=False):
        for attention in layers:
            if discard:
                flat = attention.flatten(1)
                weakest = flat.topk(int(discard * flat.shape[1]), dim=1, largest=False).indices
                attention = flat.scatter(1, weakest, 0.0).view_as(attention)
            step = (attention + torch.eye(attention.shape[-1], dtype=attention.dtype, device=attention.device)) / 2
            step = step / step.sum(dim=-1, keepdim=True)
            out = step if out is None else step @ out
    assert out is not None
    return out


def attention_weights(
    model: Model, images: Tensor, *, reduce: Callable[[Tensor], Tensor] | None = None
) -> list[Tensor]:
    """The attention of all layers of a vision transformer.

    Args:
        model: As for `attention_rollout`.
        images: (N, C, H, W).
        reduce: Applied to each at once, for instance the mean over heads, to keep less.

    Returns:
        For each layer (N, heads, T, T) in float32, or what `reduce` makes of it: row i says how much token i takes from
        each token, adding up to 1.

    Raises:
        UsageError: If there is none, or not between all tokens of each image.
    """
    check_images(images)
    found: list[Tensor] = []
    shapes: list[tuple[int, ...]] = []

    def keep(weights: Tensor) -> None:
        shapes.append(tuple(weights.shape))
        if _misfit(shapes[-1:], len(images)) is None:
            whole = weights if weights.dim() == 4 else weights[:, None]
            found.append(whole.float() if reduce is None else reduce(whole.float()))

    with untouched(model), torch.no_grad(), recording_attention(keep):
        model(images.detach().clone())
    name = type(model).__name__
    if not shapes:
        raise UsageError(
            f"{name} shows no attention between tokens (it calls neither nn.MultiheadAttention nor "
            f"scaled_dot_product_attention nor a softmax over tokens), so there is nothing to roll out; take grad_cam."
        )
    misfit = _misfit(shapes, len(images))
    if misfit is not None:
        raise UsageError(f"attention rollout has no meaning for {name}: {misfit}; take grad_cam or saliency.")
    return found


@contextmanager
def recording_attention(keep: Callable[[Tensor], None]) -> Iterator[None]:
    """Calls `keep` with the attention weights of every attention that is computed inside.

    What is computed doesn't change, but for the rounding of PyTorch's fast path for `nn.MultiheadAttention` without
    gradients, which is not taken. Weights come after the softmax and before any dropout, (batch, heads, T, S), or as
    the code has them where it takes the softmax itself. Fused kernels don't tell theirs: they are computed once more.
    """
    with _Recorder(keep):
        yield


class _Recorder(TorchFunctionMode):
    def __init__(self, keep: Callable[[Tensor], None]) -> None:
        super().__init__()
        self.keep = keep

    # While this runs, the mode is off: what attention calls inside is not seen a second time.
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        if func is F.multi_head_attention_forward:
            with torch.no_grad():
                self.keep(_of_module(args, kwargs))
        elif func is F.scaled_dot_product_attention:
            with torch.no_grad():
                self.keep(_of_product(*args, **kwargs))
        elif func in _SOFTMAX and _between_tokens(output, args, kwargs):
            self.keep(output.detach())
        return output


def _of_module(args: Any, kwargs: Any) -> Tensor:
    """What `nn.MultiheadAttention` would have returned if it had been asked to."""
    bound = inspect.signature(F.multi_head_attention_forward).bind(*args, **kwargs)
    bound.arguments |= {"need_weights": True, "average_attn_weights": False, "training": False}
    weights = F.multi_head_attention_forward(*bound.args, **bound.kwargs)[1]
    assert weights is not None
    return weights


def _of_product(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    with torch.autocast(query.device.type, enabled=False):
        query, key = query.float(), key.float()
        if enable_gqa:
            key = key.repeat_interleave(query.shape[-3] // key.shape[-3], dim=-3)
        products = query @ key.transpose(-2, -1) * (query.shape[-1] ** -0.5 if scale is None else scale)
        if is_causal:
            later = torch.ones(products.shape[-2:], dtype=torch.bool, device=products.device).triu(1)
            products = products.masked_fill(later, -torch.inf)
        if attn_mask is not None:
            hidden = attn_mask.dtype == torch.bool
            products = products.masked_fill(~attn_mask, -torch.inf) if hidden else products + attn_mask
        return products.softmax(dim=-1)


def _between_tokens(output: Tensor, args: Any, kwargs: Any) -> bool:
    """Whether a softmax looks like one of attention: over rows, of several heads or of a square matrix."""
    dim = kwargs.get("dim", args[1] if len(args) > 1 else None)
    if dim not in (-1, output.dim() - 1) or output.shape[-1] == 1:
        return False
    return output.dim() > 3 or (output.dim() == 3 and output.shape[-1] == output.shape[-2])


def _misfit(shapes: list[tuple[int, ...]], count: int) -> str | None:
    """Why attention of these shapes is no mixing of all tokens of an image, layer by layer."""
    for shape in shapes:
        if shape[-1] != shape[-2]:
            return f"{shape[-2]} tokens attend to {shape[-1]} others, so that layers can't be multiplied"
        if len(shape) not in (3, 4) or shape[0] != count:
            return (
                f"it attends within windows or other parts of an image ({' × '.join(map(str, shape))} weights for "
                f"{count} image{'s' * (count > 1)}), and tokens of different windows never meet in one layer"
            )
    if len({shape[-1] for shape in shapes}) > 1:
        return f"its layers have {' and '.join(str(n) for n in sorted({s[-1] for s in shapes}))} tokens, not one number"
    return None
