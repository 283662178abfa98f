"""Objects cut out of the shipped photographs by hand and laid over textures: images whose true masks are known."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter
from scipy.ndimage import gaussian_filter, gaussian_gradient_magnitude
from skimage import data
from sklearn.datasets import load_sample_image
from torch import Tensor

Array = NDArray[np.float32]
Outline = list[tuple[int, int]]

# fmt: off
_CAT: Outline = [
    (34, 0), (398, 0), (388, 20), (375, 42), (362, 62), (352, 78), (358, 95), (363, 112), (363, 128), (358, 150),
    (350, 172), (338, 195), (326, 215), (318, 238), (308, 256), (294, 270), (276, 281), (262, 284), (255, 300),
    (0, 300), (0, 150), (14, 125), (30, 116), (33, 90), (31, 60), (32, 30),
]
_COFFEE: Outline = [
    (285, 18), (320, 22), (350, 32), (375, 47), (390, 64), (400, 70), (408, 67), (418, 68), (424, 75), (424, 82),
    (417, 105), (435, 120), (452, 142), (466, 168), (476, 196), (480, 225), (475, 258), (462, 290), (443, 320),
    (417, 345), (383, 366), (343, 382), (295, 390), (248, 388), (202, 375), (157, 353), (121, 325), (97, 292),
    (83, 258), (77, 222), (80, 190), (90, 160), (105, 132), (125, 110), (150, 90), (180, 72), (190, 58), (208, 42),
    (230, 30), (255, 22),
]
_MOTORCYCLE: Outline = [
    (92, 198), (96, 194), (128, 192), (133, 200), (145, 204), (141, 190), (138, 165), (140, 152), (152, 145),
    (164, 147), (167, 154), (168, 160), (188, 161), (212, 166), (232, 173), (246, 186), (266, 196), (290, 196),
    (318, 190), (345, 188), (357, 192), (372, 185), (400, 170), (430, 163), (455, 162), (466, 155), (466, 130),
    (480, 122), (500, 118), (502, 105), (515, 98), (530, 102), (537, 118), (552, 125), (560, 135), (566, 120),
    (578, 119), (582, 130), (576, 141), (562, 143), (560, 165), (545, 185), (552, 192), (552, 198), (545, 203),
    (570, 245), (580, 262), (605, 265), (620, 275), (640, 295), (644, 303), (635, 312), (655, 325), (670, 345),
    (680, 370), (684, 400), (678, 430), (665, 445), (640, 454), (610, 450), (580, 430), (555, 400), (535, 370),
    (520, 340), (514, 328), (505, 328), (508, 305), (520, 285), (512, 260), (500, 230), (488, 215), (470, 240),
    (472, 262), (477, 285), (477, 305), (470, 335), (455, 355), (435, 370), (410, 380), (370, 376), (335, 370),
    (337, 390), (339, 430), (324, 434), (330, 426), (328, 395), (320, 375), (280, 372), (260, 390), (235, 400),
    (200, 402), (170, 392), (145, 370), (128, 340), (121, 310), (122, 285), (130, 262), (150, 244), (146, 240),
    (128, 238), (114, 246), (103, 244),
]
_FLOWER: Outline = [
    (315, 85), (330, 92), (345, 93), (360, 98), (380, 103), (390, 113), (405, 118), (412, 132), (425, 140),
    (430, 155), (433, 175), (440, 190), (444, 212), (443, 235), (438, 255), (430, 280), (419, 295), (412, 314),
    (397, 333), (378, 336), (365, 347), (345, 354), (320, 358), (290, 359), (270, 354), (250, 350), (235, 342),
    (215, 330), (202, 318), (194, 305), (183, 292), (178, 275), (172, 262), (170, 240), (170, 215), (174, 200),
    (178, 190), (176, 178), (181, 170), (188, 172), (188, 158), (192, 145), (202, 135), (208, 120), (225, 113),
    (240, 103), (262, 96), (280, 97), (300, 88),
]
_PALACE: Outline = [
    (196, 32), (205, 29), (214, 32), (212, 45), (217, 55), (218, 63), (232, 78), (250, 90), (266, 98), (282, 105),
    (300, 112), (318, 118), (320, 124), (308, 132), (295, 138), (293, 160), (310, 166), (328, 172), (330, 180),
    (320, 183), (320, 225), (327, 229), (327, 237), (318, 240), (335, 245), (352, 255), (345, 262), (340, 272),
    (342, 300), (348, 308), (348, 316), (300, 333), (178, 343), (150, 336), (125, 332), (75, 330), (80, 315),
    (80, 280), (65, 276), (62, 270), (75, 252), (94, 244), (94, 235), (100, 232), (100, 188), (84, 182), (86, 170),
    (108, 163), (119, 158), (119, 142), (108, 138), (95, 130), (97, 108), (118, 104), (140, 97), (160, 88),
    (180, 75), (193, 62), (194, 54), (198, 46),
]
_SHUTTLE: Outline = [
    (402, 0), (430, 0), (436, 25), (438, 60), (441, 45), (445, 40), (450, 48), (454, 70), (455, 200), (456, 235),
    (457, 268), (440, 270), (438, 240), (428, 238), (425, 272), (395, 272), (390, 245), (382, 258), (368, 272),
    (372, 255), (382, 235), (372, 230), (354, 228), (354, 215), (372, 188), (377, 170), (378, 110), (380, 100),
    (381, 55), (385, 42), (390, 42), (394, 60), (397, 30),
]
# fmt: on

_PHOTOGRAPHS: dict[str, tuple[Callable[[], NDArray[np.uint8]], Outline]] = {
    "cat": (data.chelsea, _CAT),
    "coffee": (data.coffee, _COFFEE),
    "motorcycle": (lambda: data.stereo_motorcycle()[0], _MOTORCYCLE),
    "flower": (lambda: load_sample_image("flower.jpg"), _FLOWER),
    "palace": (lambda: load_sample_image("china.jpg"), _PALACE),
    "shuttle": (data.astronaut, _SHUTTLE),
}

OBJECTS = tuple(_PHOTOGRAPHS)
"""Names of the objects. `outline` gives their polygons."""

TEXTURES = ("brick", "grass", "gravel", "wood", "leaves", "noise")
"""Names of the backgrounds."""

_TINTS = {"brick": (1.0, 0.62, 0.5), "grass": (0.75, 1.0, 0.45), "gravel": (1.0, 0.93, 0.82)}


@dataclass(frozen=True)
class Composites:
    """Images with known objects.

    Attributes:
        images: (N, 3, size, size), colours in [0, 1].
        masks: (N, size, size) bool, where the object is.
        names: What the object is, one of `OBJECTS`.
        textures: What is behind it, one of `TEXTURES`, or two with a comma between.
    """

    images: Tensor
    masks: Tensor
    names: list[str]
    textures: list[str]

    def __len__(self) -> int:
        return len(self.names)


def outline(name: str) -> Outline:
    """Vertices (x, y) of an object in the pixels of its photograph."""
    return _PHOTOGRAPHS[name][1]


def composites(
    count: int = 24,
    *,
    size: int = 224,
    seed: int = 0,
    objects: Sequence[str] = OBJECTS,
    textures: Sequence[str] = TEXTURES,
    scale: tuple[float, float] = (0.5, 0.9),
    clutter: float = 0.3,
) -> Composites:
    """Objects in turn, at places, sizes and over textures drawn at random; half of them mirrored.

    A second texture in irregular spots is what a method has to tell an object from; with one alone, the object is all
    that differs from the rest.

    Args:
        count: How many.
        size: Side of the images, px.
        seed: The same images for the same seed, whatever the global generators are at.
        objects: Which of `OBJECTS`.
        textures: Which of `TEXTURES`.
        scale: Least and largest longer side of an object, as a share of `size`.
        clutter: Share of the background that is of a second texture; 0 for none.
    """
    random = np.random.default_rng(seed)
    images, masks, names, behind = [], [], [], []
    for i in range(count):
        name = objects[i % len(objects)]
        first, *others = random.permutation(list(textures)).tolist()
        second = others[0] if others and clutter > 0 else None
        colors, cover = _cut_out(name, round(size * random.uniform(*scale)), bool(random.integers(2)))
        height, width = cover.shape
        top, left = (int(random.integers(size - side + 1)) for side in (height, width))
        image = _texture(first, size, random)
        if second is not None:
            spots = _spots(size, clutter, random)[..., None]
            image += spots * (_texture(second, size, random) - image)
        place = np.s_[top : top + height, left : left + width]
        image[place] += cover[..., None] * (colors - image[place])
        mask = np.zeros((size, size), dtype=bool)
        mask[place] = cover >= 0.5
        images.append(torch.from_numpy(image).permute(2, 0, 1))
        masks.append(torch.from_numpy(mask))
        names.append(name)
        behind.append(first if second is None else f"{first}, {second}")
    return Composites(torch.stack(images).contiguous(), torch.stack(masks), names, behind)


def _cut_out(name: str, longer: int, mirrored: bool) -> tuple[Array, Array]:
    """An object's bounding box, colours (h, w, 3), and how far each pixel is covered (h, w), in [0, 1]."""
    load, vertices = _PHOTOGRAPHS[name]
    photograph = Image.fromarray(np.asarray(load()))
    points = np.array(vertices, dtype=float)
    low, high = points.min(axis=0), points.max(axis=0)
    factor = longer / (high - low).max()
    width, height = (max(1, round(side)) for side in (high - low) * factor)
    colors = photograph.resize((width, height), Image.Resampling.BICUBIC, box=(*low, *high), reducing_gap=None)
    # Covered by four by four subpixels and softened as a lens does, so that no staircase gives the seam away; half a
    # pixel less than the outline, so that no rim of the old background does.
    fine = Image.new("L", (4 * width, 4 * height))
    ImageDraw.Draw(fine).polygon([tuple(p) for p in (points - low) * factor * 4], fill=255)
    soft = fine.filter(ImageFilter.MinFilter(5)).filter(ImageFilter.GaussianBlur(2.4))
    soft = soft.resize((width, height), Image.Resampling.BOX)
    step = slice(None, None, -1 if mirrored else 1)
    return _floats(colors)[:, step], _floats(soft)[:, step]


def _texture(name: str, size: int, random: np.random.Generator) -> Array:
    """A seeded part of a texture, (size, size, 3)."""
    if name == "noise":
        return _noise(size, random)
    if name == "wood":
        source = data.coffee()[:400, 485:]
    elif name == "leaves":
        source = load_sample_image("china.jpg")[345:, 370:550]
    else:
        source = getattr(data, name)()
    tile = _floats(Image.fromarray(source).convert("RGB")) * np.float32(_TINTS.get(name, (1.0, 1.0, 1.0)))
    # Mirrored on, so that small parts of photographs fill the image without seams.
    tile = np.concatenate([tile, tile[::-1]])
    tile = np.concatenate([tile, tile[:, ::-1]], axis=1)
    side = min(round(size * random.uniform(1.0, 1.4)), *tile.shape[:2])
    top, left = (int(random.integers(length - side + 1)) for length in tile.shape[:2])
    patch = Image.fromarray((tile[top : top + side, left : left + side] * 255).astype(np.uint8))
    light = np.float32(random.uniform(0.7, 1.2))
    return np.clip(_floats(patch.resize((size, size), Image.Resampling.BICUBIC)) * light, 0, 1)


def _spots(size: int, share: float, random: np.random.Generator) -> Array:
    """Irregular spots with soft edges, (size, size) in [0, 1], 1 on that share."""
    smooth = gaussian_filter(random.standard_normal((size, size)), size / 9, mode="reflect")
    smooth = (smooth - np.quantile(smooth, 1 - share)) / gaussian_gradient_magnitude(smooth, 1).mean()
    return np.clip(smooth + 0.5, 0, 1).astype(np.float32)


def _noise(size: int, random: np.random.Generator) -> Array:
    """Colour noise whose amplitude falls as 1/f, as that of photographs does."""
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None])
    frequency[0, 0] = np.inf
    grey, colored = (
        np.fft.irfft2(np.fft.rfft2(random.standard_normal((k, size, size))) / frequency, s=(size, size)) for k in (1, 3)
    )
    field = 3 * grey / grey.std() + colored / colored.std()
    return np.clip(random.uniform(0.3, 0.6, (3, 1, 1)) + 0.045 * field, 0, 1).transpose(1, 2, 0).astype(np.float32)


def _floats(picture: Image.Image) -> Array:
    return np.asarray(picture, dtype=np.float32) / 255
