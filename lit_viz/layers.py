"""Find a layer by its dotted name, read what goes in or comes out of it, and bring it to (N, C, H, W)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lit_viz.errors import UsageError, nearest

WRAPPER = "_orig_mod"  # what `torch.compile` puts between a module and its name

_EXTRA_TOKENS = (0, 1, 2, 4, 5, 8, 9, 16)  # class token, distillation token, four or eight registers …

Reducer = Callable[[Tensor], Any]


def named_layers(model: nn.Module) -> dict[str, nn.Module]:
    """All layers below `model` by dotted name; the wrappers of `torch.compile` don't show in names."""
    layers = {}
    for name, module in model.named_modules():
        parts = [part for part in name.split(".") if part and part != WRAPPER]
        if parts and type(module).__name__ != "OptimizedModule":
            layers.setdefault(".".join(parts), module)
    return layers


def find_layer(model: nn.Module, name: str) -> tuple[str, nn.Module]:
    """Finds a layer by its dotted name, or by the end of it where that is unique.

    Args:
        model: Any module.
        name: As in `model.named_modules()`, for instance `"network.layer3.0.conv1"`; `"layer3.0.conv1"` finds it
            too when no other name ends like that.

    Returns:
        The full name and the module.

    Raises:
        UsageError: If there is no such layer (the nearest names are listed), or several names end like that.

    >>> find_layer(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()), "0")
    ('0', Conv2d(3, 8, kernel_size=(3, 3), stride=(1, 1)))
    """
    wanted = ".".join(part for part in str(name).split(".") if part and part != WRAPPER)
    try:
        # Hooks are set for every batch: no walk through the whole model for a name that is right.
        exact = model.get_submodule(wanted) if wanted else model
    except AttributeError:
        exact = None
    if wanted and exact is not None:
        return wanted, getattr(exact, WRAPPER, exact)
    layers = named_layers(model)
    if wanted in layers:
        return wanted, layers[wanted]
    endings = [full for full in layers if full.endswith("." + wanted)]
    if len(endings) == 1:
        return endings[0], layers[endings[0]]
    if endings:
        raise UsageError(f"{type(model).__name__} has several layers named '{name}': {', '.join(endings[:6])}.")
    raise UsageError(f"{type(model).__name__} has no layer '{name}'; {nearest(wanted, layers)}")


def convolutions(model: nn.Module) -> dict[str, nn.Conv2d]:
    """All 2-d convolutions by dotted name, in the order of definition."""
    return {n: m for n, m in named_layers(model).items() if isinstance(m, nn.Conv2d)}


def first_convolution(model: nn.Module) -> tuple[str, nn.Conv2d]:
    """The first 2-d convolution in the order of definition.

    Raises:
        UsageError: If the model has none.
    """
    found = convolutions(model)
    if not found:
        raise UsageError(f"{type(model).__name__} has no 2-d convolution, so there are no filters to show.")
    return next(iter(found.items()))


@contextmanager
def capture(
    model: nn.Module,
    names: Iterable[str],
    *,
    where: Literal["output", "input"] = "output",
    reduce: Reducer | None = None,
) -> Iterator[dict[str, list[Any]]]:
    """Collects what the named layers put out (or take in) while the body runs.

    Args:
        model: Any module; hooks are removed at the end, also after an exception.
        names: Dotted names, see `find_layer`.
        where: The layer's output, or its first input.
        reduce: Applied to each tensor at once, while it is sure to be intact: a following in-place ReLU would
            change what is kept here. Without it the tensor itself is kept.

    Yields:
        For each full layer name the list of captured values, one for each call of the layer.
    """
    layers = dict(find_layer(model, name) for name in names)
    values: dict[str, list[Any]] = {name: [] for name in layers}
    handles = []
    try:
        for name, layer in layers.items():
            handles.append(keep_calls(layer, values[name], where, reduce))
        yield values
    finally:
        for handle in handles:
            handle.remove()


def head_of(model: nn.Module, run: Callable[[], Any], classes: int) -> str:
    """The layer that puts out the class scores: its input is "the features" of the lecture.

    Args:
        model: Any module.
        run: Runs the model once, inside a guard.
        classes: Number of scores.

    Returns:
        Name of the last linear or convolutional layer called whose output holds `classes` numbers for each place.

    Raises:
        UsageError: If there is none, with the remedy.
    """
    order: list[str] = []
    handles = []
    candidates = {n: m for n, m in named_layers(model).items() if isinstance(m, (nn.Linear, nn.Conv2d))}
    try:
        for name, layer in candidates.items():
            handles.append(layer.register_forward_hook(lambda *_, name=name: order.append(name)))
        run()
    finally:
        for handle in handles:
            handle.remove()
    for name in reversed(order):
        if getattr(candidates[name], "out_features", getattr(candidates[name], "out_channels", None)) == classes:
            return name
    raise UsageError(
        f"{type(model).__name__} has no linear layer that gives its {classes} scores; name a layer, "
        f"for instance layer={order[-1]!r}."
        if order
        else "the model calls no linear or convolutional layer; name one."
    )


def as_maps(values: Tensor, *, image_size: tuple[int, int] | None = None) -> Tensor:
    """Brings a layer's output to maps (N, C, H, W).

    * (N, C, H, W) stays; (N, H, W, C) is permuted when its shape fits the image's aspect ratio better.
    * Tokens (N, T, D) become (N, D, T, 1): one unit per feature, one place per token.
    * Vectors (N, D) become (N, D, 1, 1).

    Args:
        values: A layer's output.
        image_size: Height and width of the network's input; decides between the two 4-d layouts.

    Raises:
        UsageError: For anything else.
    """
    if values.dim() == 4:
        return values.permute(0, 3, 1, 2) if _channels_last(values.shape, image_size) else values
    if values.dim() == 3:
        return values.transpose(1, 2).unsqueeze(3)
    if values.dim() == 2:
        return values[:, :, None, None]
    raise UsageError(f"a layer output of shape {tuple(values.shape)} has no channels and places to look at.")


def spatial_maps(values: Tensor, *, image_size: tuple[int, int]) -> Tensor | None:
    """A layer's output as maps of places in the image, or None where it has none.

    * (N, C, H, W) stays; (N, H, W, C) is permuted, see `as_maps`.
    * Tokens (N, T, D) are folded back into (N, D, h, w), without class and register tokens, see `token_grid`.

    Args:
        values: A layer's output.
        image_size: Height and width of the network's input.
    """
    if values.dim() == 4:
        return as_maps(values, image_size=image_size)
    grid = token_grid(values.shape[1], image_size) if values.dim() == 3 else None
    if grid is None:
        return None
    height, width, extra = grid
    return values[:, extra:].transpose(1, 2).unflatten(2, (height, width))


def token_grid(tokens: int, image_size: tuple[int, int]) -> tuple[int, int, int] | None:
    """How the tokens of a vision transformer lie on the image.

    Args:
        tokens: How many there are.
        image_size: Height and width of the image.

    Returns:
        Rows, columns, and how many tokens come first that stand for no place (class token, registers, at most 16);
        None where no square patches give that number. Patches that fill the image are preferred: 9 tokens of 32×32
        pixels are a class token, four registers and 2×2 patches of 16 pixels, and no 3×3 patches.

    >>> token_grid(197, (224, 224)), token_grid(9, (32, 32))
    ((14, 14, 1), (2, 2, 5))
    """
    height, width = image_size
    found: list[tuple[bool, int, int, int]] = []
    for extra in range(min(16, tokens - 1) + 1):
        for patch in range(1, min(height, width) + 1):
            rows, columns = height // patch, width // patch
            if rows * columns == tokens - extra:
                # Numbers of extra tokens that networks have: 37 tokens of 100×100 are 6×6 and one, not 5×5 and twelve.
                fills = height % patch == 0 and width % patch == 0 and extra in _EXTRA_TOKENS
                found.append((not fills, extra, rows, columns))
            if rows * columns < tokens - extra:
                break
    if not found:
        return None
    _, extra, rows, columns = min(found)
    return rows, columns, extra


def first_tensor(value: Any) -> Tensor | None:
    """The first floating-point tensor inside nested tuples, lists and dicts, or None."""
    if isinstance(value, Tensor):
        return value if value.is_floating_point() else None
    items: Sequence[Any] = ()
    if isinstance(value, dict):
        items = list(value.values())
    elif isinstance(value, (list, tuple)):
        items = value
    for item in items:
        found = first_tensor(item)
        if found is not None:
            return found
    return None


def _channels_last(shape: torch.Size, image_size: tuple[int, int] | None) -> bool:
    _, a, b, c = shape
    if image_size is None:
        return a == b != c
    aspect = image_size[0] / image_size[1]

    def misfit(height: int, width: int) -> float:
        # Rounding in strided layers moves a map's aspect by up to one row or column.
        return max(0.0, abs(height - aspect * width) - 1.0) / max(height, width)

    # Both must hold: strides that differ along rows and columns make narrow maps of square images.
    return misfit(b, c) > misfit(a, b) and misfit(a, b) < 0.1


def keep_calls(
    layer: nn.Module, into: list[Any], where: Literal["output", "input"] = "output", reduce: Reducer | None = None
) -> torch.utils.hooks.RemovableHandle:
    """The hook behind `capture`, for a layer at hand; whoever installs it removes it."""

    def keep(value: Any) -> None:
        tensor = first_tensor(value)
        if tensor is not None:
            into.append(tensor if reduce is None else reduce(tensor))

    if where == "input":
        return layer.register_forward_pre_hook(lambda _, args, kwargs: keep((args, kwargs)), with_kwargs=True)
    return layer.register_forward_hook(lambda _, args, output: keep(output))
