"""Leave a model as it was found: modes, `requires_grad`, buffers, random generators, autograd state."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


@contextmanager
def isolated_rng(seed: int | None = None) -> Iterator[None]:
    """Whatever happens inside, the global generators of torch (every device), NumPy and Python go on as before.

    Args:
        seed: If given, the generators are seeded inside, so that the body is reproducible.
    """
    cpu, numpy, python = torch.random.get_rng_state(), np.random.get_state(), random.getstate()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() and torch.cuda.is_initialized() else None
    mps = torch.mps.get_rng_state() if torch.backends.mps.is_available() else None
    try:
        if seed is not None:
            torch.manual_seed(seed)
            np.random.seed(seed % 2**32)
            random.seed(seed)
        yield
    finally:
        torch.random.set_rng_state(cpu)
        np.random.set_state(numpy)
        random.setstate(python)
        if cuda is not None:
            torch.cuda.set_rng_state_all(cuda)
        if mps is not None:
            torch.mps.set_rng_state(mps)


@contextmanager
def untouched(model: Callable[..., Any], *, seed: int | None = None) -> Iterator[None]:
    """A look at a model that leaves no trace in it.

    Inside, the model is in evaluation mode, gradients can be taken even under `torch.inference_mode`, compiled
    parts run eagerly (hooks added after compilation never fire otherwise) and the global generators are set apart.
    Afterwards, also after an exception, each module has its own mode back (frozen batch norms stay frozen), each
    parameter its `requires_grad`, each buffer its value, and the generators their state. What a `forward` writes
    elsewhere (attributes of Python, values of parameters) stays written.

    Take gradients with `torch.autograd.grad`: `backward` would add to the parameters' `.grad`.

    Args:
        model: A module; any other callable only gets the autograd and generator state.
        seed: Seeds the generators inside, see `isolated_rng`.

    >>> net = nn.Sequential(nn.BatchNorm2d(3), nn.Dropout()).train()
    >>> with untouched(net):
    ...     _ = net(torch.randn(2, 3, 4, 4)), net.training
    >>> net.training, net[0].num_batches_tracked.item()
    (True, 0)
    """
    module = model if isinstance(model, nn.Module) else nn.Module()
    modes = [(m, m.training) for m in module.modules()]
    grads = [(p, p.requires_grad) for p in module.parameters()]
    with torch.inference_mode(False), torch.no_grad():
        buffers = [(b, _version(b), b.clone()) for b in module.buffers() if not _is_lazy(b)]
        # TorchScript keeps its buffers where nobody can register another one.
        plain = [m for m, _ in modes if not isinstance(m, torch.jit.ScriptModule)]
        registered = [(m, set(m._buffers)) for m in plain]
        slots = [(m, name, b) for m in plain for name, b in m._buffers.items() if b is None or not _is_lazy(b)]
    with isolated_rng(seed), torch.inference_mode(False), torch.enable_grad(), _eager():
        try:
            for m, _ in modes:
                m.training = False
            yield
        finally:
            for m, mode in modes:
                m.training = mode
            for p, flag in grads:
                if p.requires_grad != flag:
                    p.requires_grad_(flag)
            for m, names in registered:
                for name in m._buffers.keys() - names:
                    del m._buffers[name]
            for m, name, buffer in slots:
                m._buffers[name] = buffer  # some modules put a new tensor in its place
            for buffer, version, value in buffers:
                if version is None or buffer._version != version:
                    with torch.inference_mode(buffer.is_inference()), torch.no_grad():
                        buffer.copy_(value)


def _version(buffer: Tensor) -> int | None:
    return None if buffer.is_inference() else buffer._version


def _is_lazy(tensor: Tensor) -> bool:
    return isinstance(tensor, nn.parameter.UninitializedTensorMixin)


def _eager() -> Any:
    # Nothing has been compiled where dynamo was never imported, and importing it takes a second.
    if "torch._dynamo" not in sys.modules:
        return nullcontext()
    return torch.compiler.set_stance("force_eager")
