import io

import numpy as np
import pytest
import torch
from PIL import Image

from lit_viz.data.base import PreparedImages, eight_bit, split_indices
from lit_viz.errors import UsageError
from lit_viz.pixels import PixelSpace

RAMP = np.linspace(0, 255, 64).round().astype(np.uint8).reshape(8, 8)


def reread(picture: Image.Image, kind: str, **options) -> Image.Image:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return Image.open(buffer)


def test_grey_and_colour_both_ways():
    grey = Image.fromarray(RAMP)
    assert np.array_equal(np.array(eight_bit(grey, 3)), np.repeat(RAMP[..., None], 3, axis=2))
    assert np.array_equal(np.array(eight_bit(grey, 1)), RAMP)
    assert eight_bit(Image.new("RGB", (4, 4), "red"), 1).getpixel((0, 0)) == 76


def test_sixteen_bits_are_scaled_not_cut_off():
    picture = reread(Image.fromarray(RAMP.astype(np.uint16) * 257), "PNG")
    assert picture.mode.startswith("I")
    assert np.array_equal(np.array(eight_bit(picture, 1)), RAMP)


@pytest.mark.parametrize("full", [1.0, 255.0, 7000.0])
def test_floating_point_is_scaled(full: float):
    picture = reread(Image.fromarray(RAMP.astype(np.float32) / 255 * full), "TIFF")
    assert picture.mode == "F"
    assert np.abs(np.array(eight_bit(picture, 1)).astype(int) - RAMP).max() <= 1


def test_transparent_becomes_white():
    picture = Image.new("RGBA", (4, 4), (255, 0, 0, 255))
    picture.putpixel((0, 0), (0, 255, 0, 0))
    for kind in (
        picture,
        reread(picture.convert("P"), "PNG", transparency=picture.convert("P").getpixel((0, 0))),
    ):
        assert eight_bit(kind, 3).getpixel((0, 0)) == (255, 255, 255)
        assert eight_bit(kind, 3).getpixel((1, 1))[0] > 250


def test_cmyk():
    picture = reread(Image.new("RGB", (8, 8), (200, 30, 60)).convert("CMYK"), "JPEG", quality=100)
    assert picture.mode == "CMYK"
    assert np.abs(np.array(eight_bit(picture, 3))[4, 4].astype(int) - (200, 30, 60)).max() < 12


def test_camera_rotation():
    exif = Image.Exif()
    exif[0x0112] = 6  # Turned by 90 degrees.
    picture = reread(Image.new("RGB", (8, 16)), "JPEG", exif=exif)
    assert eight_bit(picture, 3).size == (16, 8)


def test_prepared_image_is_normalised_and_square():
    picture = Image.new("RGB", (40, 20), (255, 0, 51))
    data = PreparedImages([(picture, 3)], [0], PixelSpace((0.5, 0.5, 0.1), (0.25, 0.5, 0.1)), size=10)
    image, label = data[0]
    assert (image.shape, image.dtype, label) == ((3, 10, 10), torch.float32, 3)
    torch.testing.assert_close(image[:, 5, 5], torch.tensor([2.0, -1.0, 1.0]))


def test_prepared_image_keeps_orientation_and_channels():
    picture = Image.fromarray(np.stack([RAMP[:4], RAMP[4:], 255 - RAMP[:4]], axis=-1))
    image = PreparedImages([(picture, 0)], [0], PixelSpace())[0][0]
    assert torch.equal((image * 255).round().byte(), torch.from_numpy(np.array(picture)).permute(2, 0, 1))


def test_random_crops_and_flips_follow_the_seed():
    rng = np.random.default_rng(0)
    picture = Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8))
    data = PreparedImages([(picture, 0)], [0], PixelSpace(), size=16, random_crop=True, random_flip=True)
    torch.manual_seed(0)
    first, second = data[0][0], data[0][0]
    torch.manual_seed(0)
    assert torch.equal(first, data[0][0]) and not torch.equal(first, second)


def test_captions_follow_the_indices():
    class Source(list):
        captions = ("a", "b", "c")

    data = PreparedImages(Source([None] * 3), [2, 0], PixelSpace())
    assert data.captions == ["c", "a"]
    assert PreparedImages([None], [0], PixelSpace()).captions is None


def test_random_crop_needs_a_size():
    with pytest.raises(UsageError, match="needs a size"):
        PreparedImages([], [], PixelSpace(), random_crop=True)


def test_mean_must_fit_the_channels():
    with pytest.raises(UsageError, match="one value, or 1"):
        PreparedImages([], [], PixelSpace((0.5,) * 3, (0.5,) * 3), channels=1)


def test_split_is_seeded_and_complete():
    kept, held_out = split_indices(100, 0.2, 0)
    assert len(held_out) == 20 and sorted(kept + held_out) == list(range(100))
    assert split_indices(100, 0.2, 0) == (kept, held_out) != split_indices(100, 0.2, 1)
    assert [len(part) for part in split_indices(2, 0.01, 0)] == [1, 1]
    assert split_indices(1, 0.9, 0) == ([0], [])
