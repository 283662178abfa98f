"""Work on many copies of images, in batches that fit into memory."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from tqdm.auto import tqdm

# Elements in one batch by default: 16 images of 3×224×224, or 196 of 3×64×64.
BATCH_ELEMENTS = 16 * 3 * 224 * 224


def in_batches(
    run: Callable[[Tensor], Tensor],
    total: int,
    batch_size: int,
    device: torch.device,
    *,
    description: str = "",
    unit: str = "image",
    progress: bool = False,
) -> Tensor:
    """Runs `run` over 0 … total − 1 in batches, halving them whenever memory runs out.

    Args:
        run: From indices (n,) int64 to results (n, …).
        total: How many there are.
        batch_size: How many at once, to start with.
        device: Where the indices are.
        description: Of the progress bar.
        unit: Of the progress bar.
        progress: Show a bar if it takes longer than three seconds.

    Returns:
        The results in order, (total, …).
    """
    done: list[Tensor] = []
    start = 0
    with tqdm(total=total, desc=description, unit=unit, delay=3, disable=not progress, leave=False) as bar:
        while start < total:
            indices = torch.arange(start, min(start + batch_size, total), device=device)
            try:
                done.append(run(indices))
            except RuntimeError as error:
                if not out_of_memory(error) or batch_size == 1:
                    raise
                batch_size = max(1, batch_size // 2)
            else:
                start += len(indices)
                bar.update(len(indices))
                continue
            # Outside the handler, so that the failed pass no longer holds its tensors.
            release_memory(device)
    return torch.cat(done)


def fitting(image: Tensor) -> int:
    """How many copies of an image (C, H, W) a batch holds by default."""
    return max(1, BATCH_ELEMENTS // image.numel())


def out_of_memory(error: RuntimeError) -> bool:
    """Whether an error says that there is no memory left."""
    told = ("can't allocate memory", "out of memory", "CUDNN_STATUS_ALLOC_FAILED", "CUBLAS_STATUS_ALLOC_FAILED")
    return isinstance(error, torch.OutOfMemoryError) or any(words in str(error) for words in told)


def release_memory(device: torch.device) -> None:
    """Gives back what torch keeps of a device's memory without using it."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
