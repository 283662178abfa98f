"""Shapes of the decoder and the discriminator, no checkerboard, and files that are none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lit_viz.errors import UsageError
from lit_viz.networks import Decoder, Discriminator, load_decoder
from lit_viz.networks.decoder import FORMAT
from lit_viz.pixels import PixelSpace

SPACE = PixelSpace((0.5,), (0.25,))


@pytest.mark.parametrize(
    ("code", "image"),
    [
        ((6,), (1, 32, 32)),
        ((6,), (3, 33, 17)),
        ((6,), (1, 3, 2)),
        ((4, 1, 1), (3, 20, 20)),
        ((4, 2, 9), (3, 33, 17)),
        ((4, 7, 7), (3, 50, 50)),
        ((4, 5, 40), (3, 33, 17)),
        ((4, 12, 16), (3, 12, 16)),
    ],
)
def test_any_code_and_any_size(code: tuple[int, ...], image: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    decoder = Decoder(code, image, width=2)
    values = torch.randn(3, *code)
    colors = decoder(values).detach()
    assert colors.shape == (3, *image) and colors.dtype == torch.float32
    assert 0 <= float(colors.min()) < float(colors.max()) <= 1
    decoder.eval()
    torch.testing.assert_close(decoder(values)[1:2], decoder(values[1:2]))  # images don't influence each other
    below, above = decoder.sizes[:-1], decoder.sizes[1:]
    assert all(a <= 2 * b for small, large in zip(below, above, strict=True) for b, a in zip(small, large, strict=True))


def varies(make: nn.Module, border: int = 0) -> bool:
    """Whether maps that are the same everywhere become an image that isn't, away from its border."""
    codes = torch.randn(1, 4, 1, 1, generator=torch.Generator().manual_seed(1)).expand(1, 4, 12, 12)
    with torch.no_grad():
        inside = make(codes)[0, :, border : 96 - border, border : 96 - border]
    return bool((inside.amax(dim=(1, 2)) - inside.amin(dim=(1, 2)) > 1e-5).any())


def test_no_checkerboard_and_no_frame() -> None:
    torch.manual_seed(0)
    assert not varies(Decoder((4, 12, 12), (3, 96, 96), width=4).eval())
    up = [nn.ConvTranspose2d(4, 4, 3, stride=2, padding=1, output_padding=1) for _ in range(3)]
    assert varies(nn.Sequential(*up, nn.Conv2d(4, 3, 3, padding=1)), border=32), "which the test would see"


def test_shapes_that_are_none() -> None:
    with pytest.raises(UsageError, match="a code is a vector"):
        Decoder((3, 4), (3, 8, 8))
    with pytest.raises(UsageError, match=r"\(C, H, W\)"):
        Decoder((3,), (8, 8))
    with pytest.raises(UsageError, match=r"takes codes \(3,\), but got \(4,\)"):
        Decoder((3,), (3, 8, 8), width=1)(torch.zeros(1, 4))


@pytest.mark.parametrize(
    ("code", "image", "size"),
    [
        ((6,), (1, 28, 28), (7, 7)),
        ((6,), (1, 32, 32), (4, 4)),
        ((5, 8, 8), (3, 64, 64), (4, 4)),
        ((5, 2, 9), (3, 64, 64), (4, 4)),
        ((4, 7, 7), (3, 224, 224), (7, 7)),
        ((4, 56, 56), (3, 224, 224), (7, 7)),
        ((6,), (3, 33, 17), (8, 4)),
        ((1,), (1, 3, 2), (3, 2)),
    ],
)
def test_a_discriminator_looks_at_image_and_code(
    code: tuple[int, ...], image: tuple[int, int, int], size: tuple[int, int]
) -> None:
    torch.manual_seed(0)
    judge = Discriminator(code, image, width=2)
    colors, codes = torch.rand(3, *image), torch.randn(3, *code)
    state = torch.get_rng_state()
    logits = judge(colors, codes)
    assert torch.equal(torch.get_rng_state(), state)
    assert logits.shape == (3,) and judge.size == size
    torch.testing.assert_close(judge(colors[1:2], codes[1:2]), logits[1:2])  # images don't influence each other
    torch.testing.assert_close(judge(colors, 1000 * codes), judge(colors, 2000 * codes), rtol=0.1, atol=0.01)
    for values in (colors, codes):
        values.requires_grad_()
    seen = torch.autograd.grad(judge(colors, codes).sum(), [colors, codes])
    assert (seen[0].flatten(2).abs().sum(dim=2) > 0).all()
    assert code == (1,) or (seen[1].flatten(1).abs().sum(dim=1) > 0).all()
    assert (seen[0] != 0).all(dim=1).sum() > 0.9 * (seen[0] != 0).all(dim=1).numel()


def checkpoint(**changes: Any) -> dict[str, Any]:
    """As FeatureDecoder leaves them, as far as it is read."""
    torch.manual_seed(0)
    state: dict[str, Tensor] = {f"decoder.{k}": v for k, v in Decoder((3,), (1, 8, 8), width=1).state_dict().items()}
    state["code_count"] = torch.tensor(5)
    state["code_mean"], state["code_variance"] = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.0, 4.0, 9.0])
    state["code_minimum"] = torch.tensor([0.0, 0.5, 0.0])
    built = {"code_shape": (3,), "image_shape": (1, 8, 8), "width": 1}
    return {"state_dict": {**state, **changes}, FORMAT: built}


def test_what_is_loaded(tmp_path: Path) -> None:
    torch.save(checkpoint(), tmp_path / "one.ckpt")
    code = load_decoder(tmp_path / "one.ckpt", SPACE)
    assert code.mean.tolist() == [1.0, 2.0, 3.0] and code.std.tolist() == [1.0, 2.0, 3.0] and code.nonnegative
    values = torch.tensor([[9.0, -1.0, 4.0]])
    code.project(values)
    torch.testing.assert_close(values, torch.tensor([[4.0, 0.0, 3.96]]))
    decoder = Decoder((3,), (1, 8, 8), width=1)
    found = checkpoint()["state_dict"]
    decoder.load_state_dict({k[8:]: v for k, v in found.items() if k.startswith("decoder.")})
    torch.testing.assert_close(code.images(values), (decoder.eval()(values) - 0.5) / 0.25)
    torch.save(checkpoint(code_minimum=torch.tensor([0.0, -0.5, 0.0])), tmp_path / "two.ckpt")
    assert not load_decoder(str(tmp_path / "two.ckpt"), SPACE).nonnegative


def test_float32_whatever_it_was_trained_in_and_whatever_the_default(tmp_path: Path) -> None:
    saved = checkpoint()
    saved["state_dict"] = {k: v.bfloat16() if v.is_floating_point() else v for k, v in saved["state_dict"].items()}
    torch.save(saved, tmp_path / "one.ckpt")
    torch.set_default_dtype(torch.bfloat16)
    try:
        code = load_decoder(tmp_path / "one.ckpt", SPACE)
        noise = code.noise(1, seed=0)
    finally:
        torch.set_default_dtype(torch.float32)
    types = {v.dtype for v in (*code.decoder.parameters(), code.mean, code.std, noise, code.images(noise))}
    assert types == {torch.float32}


def test_other_files(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no decoder at .*nowhere.ckpt; give a checkpoint of FeatureDecoder"):
        load_decoder(tmp_path / "nowhere.ckpt", SPACE)
    (tmp_path / "text.ckpt").write_text("no checkpoint")
    with pytest.raises(UsageError, match="can't be read safely"):
        load_decoder(tmp_path / "text.ckpt", SPACE)
    for other in ({"state_dict": nn.Linear(2, 2).state_dict()}, [1, 2]):
        torch.save(other, tmp_path / "other.ckpt")
        with pytest.raises(UsageError, match="holds no decoder"):
            load_decoder(tmp_path / "other.ckpt", SPACE)
    torch.save(nn.Linear(2, 2), tmp_path / "pickled.ckpt")
    with pytest.raises(UsageError, match="can't be read safely"):
        load_decoder(tmp_path / "pickled.ckpt", SPACE)
    torch.save(checkpoint(code_count=torch.tensor(0)), tmp_path / "fresh.ckpt")
    with pytest.raises(UsageError, match="has seen no images yet"):
        load_decoder(tmp_path / "fresh.ckpt", SPACE)
    broken = checkpoint()
    del broken["state_dict"]["decoder.last.weight"]
    torch.save(broken, tmp_path / "broken.ckpt")
    with pytest.raises(UsageError, match="is damaged"):
        load_decoder(tmp_path / "broken.ckpt", SPACE)
