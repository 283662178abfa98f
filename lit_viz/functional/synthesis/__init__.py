"""Freeze the network and optimise the image: the core of all methods that make images."""

from lit_viz.functional.synthesis.codes import Code
from lit_viz.functional.synthesis.objectives import (
    Channel,
    ClassScore,
    Direction,
    Energy,
    Objective,
    Unit,
    WeightedSum,
)
from lit_viz.functional.synthesis.optimize import Synthesis, optimize
from lit_viz.functional.synthesis.optimizers import NormalizedSGD
from lit_viz.functional.synthesis.parameterizations import (
    Fourier,
    Parameterization,
    Pixels,
    clip,
    eight_bit_rounded,
    flat,
    normal,
)
from lit_viz.functional.synthesis.reading import Reading, reading
from lit_viz.functional.synthesis.regularizers import (
    Blur,
    ClipSmallContribution,
    ClipSmallNorm,
    Constraint,
    Decay,
    gaussian_blur,
    p_norm,
    total_variation,
)
from lit_viz.functional.synthesis.transforms import Jitter, RandomAffine, Transform

__all__ = [
    "Blur",
    "Channel",
    "ClassScore",
    "ClipSmallContribution",
    "ClipSmallNorm",
    "Code",
    "Constraint",
    "Decay",
    "Direction",
    "Energy",
    "Fourier",
    "Jitter",
    "NormalizedSGD",
    "Objective",
    "Parameterization",
    "Pixels",
    "RandomAffine",
    "Reading",
    "Synthesis",
    "Transform",
    "Unit",
    "WeightedSum",
    "clip",
    "eight_bit_rounded",
    "flat",
    "gaussian_blur",
    "normal",
    "optimize",
    "p_norm",
    "reading",
    "total_variation",
]
