"""Attention rollout against an explicit loop over weights that PyTorch gives out itself."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lit_viz.errors import UsageError
from lit_viz.functional import attention_rollout, attention_weights, recording_attention, rolled_out

Network = Callable[[str], nn.Module]


def images(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def asked(model: nn.Module, x: Tensor) -> list[Tensor]:
    """Weights (N, heads, T, T) of each `nn.MultiheadAttention`, which is asked for them."""
    model, found = copy.deepcopy(model), []
    for module in model.modules():
        if isinstance(module, nn.MultiheadAttention):
            original = module.forward

            def forward(*args: Any, original: Any = original, **kwargs: Any) -> Any:
                out = original(*args, **{**kwargs, "need_weights": True, "average_attn_weights": False})
                found.append(out[1].detach())
                return out

            module.forward = forward  # type: ignore[method-assign]
    model(x)
    return found


def test_equals_a_loop(network: Network) -> None:
    model, x = network("vit"), images(2, 3, 64, 64)
    for fusion in ("mean", "max", "min"):
        for n in range(2):
            mixed = torch.eye(17, dtype=torch.float64)
            for weights in asked(model, x):
                heads = weights[n].double()
                fused = {"mean": heads.mean(0), "max": heads.max(0).values, "min": heads.min(0).values}[fusion]
                step = 0.5 * fused + 0.5 * torch.eye(17)
                for row in step:
                    row /= row.sum()
                mixed = step @ mixed
            found = attention_rollout(model, x, head_fusion=fusion)
            assert found.shape == (2, 4, 4)
            torch.testing.assert_close(found[n].flatten().double(), mixed[0, 1:], rtol=1e-5, atol=1e-8)


def test_weights_are_those_that_pytorch_gives(network: Network) -> None:
    model, x = network("vit"), images(3, 3, 64, 64)
    found = attention_weights(model, x)
    assert [w.shape for w in found] == [(3, 4, 17, 17)] * 3
    for weights, expected in zip(found, asked(model, x), strict=True):
        torch.testing.assert_close(weights, expected, rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(weights.sum(-1), torch.ones(3, 4, 17))


def test_start_layer_and_whose_row(network: Network) -> None:
    model, x = network("vit"), images(2, 3, 64, 64)
    layers = [w.mean(1) for w in asked(model, x)]
    late = rolled_out(layers[2:])
    torch.testing.assert_close(attention_rollout(model, x, start_layer=2).flatten(1), late[:, 0, 1:])
    mean = rolled_out(layers)[:, 1:].mean(1)[:, 1:]
    torch.testing.assert_close(attention_rollout(model, x, token="mean").flatten(1), mean)
    with pytest.raises(UsageError, match="3 layers of attention"):
        attention_rollout(model, x, start_layer=3)


def test_rows_add_up_to_one_and_nothing_mixes_without_attention() -> None:
    layers = [torch.rand(2, 6, 6).softmax(-1) for _ in range(4)]
    torch.testing.assert_close(rolled_out(layers).sum(-1), torch.ones(2, 6))
    assert torch.equal(rolled_out([torch.eye(6)[None]] * 3), torch.eye(6)[None])


def test_discard_drops_the_smallest() -> None:
    attention = torch.tensor([[[0.7, 0.2, 0.1], [0.3, 0.3, 0.4], [0.05, 0.9, 0.05]]])
    step = torch.tensor([[[1.7, 0.2, 0.0], [0.3, 1.3, 0.4], [0.0, 0.9, 1.0]]])  # three of nine: 0.1, 0.05, 0.05
    expected = step / step.sum(-1, keepdim=True)
    torch.testing.assert_close(rolled_out([attention], discard=0.34), expected)
    with pytest.raises(UsageError, match="share"):
        attention_rollout(nn.Identity(), images(1, 3, 8, 8), discard=1.0)


@pytest.mark.parametrize("around", [nullcontext, lambda: torch.autocast("cpu", torch.bfloat16)])
def test_the_output_is_the_same_bit_for_bit(network: Network, around: Callable[[], Any]) -> None:
    model, x, kept = network("vit"), images(2, 3, 64, 64), []
    with around():
        expected = model(x)
        with recording_attention(kept.append):
            found = model(x)
        assert torch.equal(model(x), expected)
    assert torch.equal(found, expected) and len(kept) == 3


@pytest.mark.parametrize("around", [torch.no_grad, torch.inference_mode])
def test_where_the_fast_path_would_hide_the_weights(network: Network, around: Callable[[], Any]) -> None:
    model, x = network("vit"), images(2, 3, 64, 64)
    expected, kept = asked(model, x), []
    rollout = attention_rollout(model, x)
    with around():
        scores = model(x)
        with recording_attention(kept.append):
            torch.testing.assert_close(model(x), scores, rtol=1e-4, atol=1e-4)
        assert torch.equal(attention_rollout(model, x), rollout)
    for weights, given in zip(kept, expected, strict=True):
        torch.testing.assert_close(weights, given, rtol=1e-4, atol=1e-6)


def test_encoder_layers_whose_fast_path_skips_their_parts() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    model = nn.Sequential(nn.Conv2d(3, 16, 4, 4), nn.Flatten(2), Transposed(), nn.TransformerEncoder(layer, 2))
    assert attention_rollout(model.eval(), images(2, 3, 12, 8)).shape == (2, 3, 2)


def test_a_model_in_training_mode_is_left_as_it_was(network: Network) -> None:
    model, x = network("vit").train(), images(2, 3, 64, 64)
    model.encoder.dropout.p = 0.5
    model.encoder.ln.eval()
    state, rng = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    found = attention_rollout(model, x)
    assert model.training and model.encoder.dropout.training and not model.encoder.ln.training
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), rng)
    assert torch.equal(found, attention_rollout(model.eval(), x))


class Transposed(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2)


class Plain(nn.Module):
    """Attention as people write it: by the fused function or by hand, with or without a class token."""

    def __init__(self, *, fused: bool, class_token: bool = True, **options: Any) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(2)
            self.embed, self.qkv = nn.Conv2d(3, 12, 4, 4), nn.Linear(12, 36)
            self.token = nn.Parameter(torch.randn(1, int(class_token), 12))
        self.fused, self.options = fused, options

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], dim=1)
        for _ in range(2):
            q, k, v = self.qkv(x).unflatten(2, (3, 3, 4)).permute(2, 0, 3, 1, 4)
            if self.fused:
                out = F.scaled_dot_product_attention(q, k, v, **self.options)
            else:
                products = q @ k.transpose(-2, -1) * self.options.get("scale", 0.5)
                if "attn_mask" in self.options:
                    mask = self.options["attn_mask"]
                    products = products.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else products + mask
                if self.options.get("is_causal"):
                    products = products + torch.full_like(products, -torch.inf).triu(1)
                out = products.softmax(dim=-1) @ v
            x = x + out.transpose(1, 2).flatten(2)
        return x.mean(1)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"scale": 3.0},
        {"is_causal": True},
        {"attn_mask": torch.arange(7)[:, None] >= torch.arange(7) - 2},
        {"attn_mask": images(7, 7)},
    ],
)
def test_the_fused_function_gives_what_softmax_by_hand_gives(options: dict[str, Any]) -> None:
    x = images(2, 3, 8, 12)
    fused, by_hand = (attention_weights(Plain(fused=f, **options), x) for f in (True, False))
    assert [w.shape for w in fused] == [(2, 3, 7, 7)] * 2
    for a, b in zip(fused, by_hand, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    found = attention_rollout(Plain(fused=True, **options), x)
    expected = rolled_out([w.mean(1) for w in by_hand])[:, 0, 1:].unflatten(1, (2, 3))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_grouped_queries() -> None:
    q, k = images(2, 4, 5, 8), images(2, 2, 5, 8) * 2
    kept: list[Tensor] = []
    with recording_attention(kept.append):
        F.scaled_dot_product_attention(q, k, k, enable_gqa=True)
    expected = (q @ k.repeat_interleave(2, dim=1).transpose(-2, -1) / 8**0.5).softmax(-1)
    torch.testing.assert_close(kept[0], expected)


def test_without_a_class_token_all_patches_ask() -> None:
    model, x = Plain(fused=True, class_token=False), images(2, 3, 8, 12)
    expected = rolled_out([w.mean(1) for w in attention_weights(model, x)]).mean(1).unflatten(1, (2, 3))
    assert torch.equal(attention_rollout(model, x), expected)
    torch.testing.assert_close(expected.sum((1, 2)), torch.ones(2))
    with pytest.raises(UsageError, match="no class token"):
        attention_rollout(model, x, token="class")


@pytest.mark.parametrize("name", ["resnet18", "convnext_tiny"])
def test_convolutional_networks_have_none(name: str, network: Network) -> None:
    with pytest.raises(UsageError, match="no attention between tokens"):
        attention_rollout(network(name), images(1, 3, 64, 64))


@pytest.mark.parametrize("count", [1, 2])
def test_windows_have_no_rollout(count: int, network: Network) -> None:
    with pytest.raises(UsageError, match="within windows"):
        attention_rollout(network("swin_t"), images(count, 3, 64, 64))


def test_other_tokens_have_no_rollout() -> None:
    class Pooled(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            tokens = x.flatten(2).transpose(1, 2)[:, None]
            return (tokens @ tokens[:, :, ::2].transpose(2, 3)).softmax(dim=-1).mean((1, 2))

    with pytest.raises(UsageError, match="16 tokens attend to 8 others"):
        attention_rollout(Pooled(), images(2, 3, 4, 4))


def test_tokens_that_are_no_patches() -> None:
    class Rows(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            tokens = x[:, 0, :, :60].transpose(1, 2)
            return F.scaled_dot_product_attention(tokens, tokens, tokens)

    with pytest.raises(UsageError, match="no grid of square patches"):
        attention_rollout(Rows(), images(2, 3, 10, 1000))


class Reader(nn.Module):
    """Two extra tokens and four patches, one layer of attention, and a head that reads some of them."""

    def __init__(self, reads: slice | list[int]) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(2)
            self.embed, self.token = nn.Conv2d(3, 8, 4, 4), nn.Parameter(torch.randn(1, 2, 8))
            self.attention, self.norm = nn.MultiheadAttention(8, 2, batch_first=True), nn.LayerNorm(8)
        self.reads = reads

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], dim=1)
        x = x + self.attention(x, x, x, need_weights=False)[0]
        return self.norm(x)[:, self.reads].mean(1).softmax(1)


@pytest.mark.parametrize("reads", [[0], [0, 1], slice(2, None), slice(None)])
def test_the_rows_are_those_of_the_tokens_that_the_head_reads(reads: Any) -> None:
    model, x = Reader(reads).eval(), images(2, 3, 8, 8)
    (weights,) = attention_weights(model, x)
    mixed = rolled_out([weights.mean(1)])
    expected = mixed[:, reads].mean(1)[:, 2:].unflatten(1, (2, 2))
    torch.testing.assert_close(attention_rollout(model, x), expected, rtol=1e-5, atol=1e-7)
