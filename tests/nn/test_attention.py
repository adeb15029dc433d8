from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maxgan.nn.attention import CrossAttention, FeedForward, RelativeAttention, attend, relative_bias, to_map, to_tokens
from maxgan.nn.partition import Axis

AXES: list[Axis] = ["block", "grid"]


def noisy(module: nn.Module) -> nn.Module:
    """Give every weight a size at which it matters, in float64."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=0.5)
    return module.double()


def members(height: int, width: int, size: int, axis: Axis) -> list[list[tuple[int, int]]]:
    """Return the pixels of every window or grid, row by row."""
    rows, columns = height // size, width // size
    if axis == "block":
        return [
            [(r * size + i, c * size + j) for i in range(size) for j in range(size)]
            for r in range(rows)
            for c in range(columns)
        ]
    return [
        [(r + i * rows, c + j * columns) for i in range(size) for j in range(size)]
        for r in range(rows)
        for c in range(columns)
    ]


@pytest.mark.parametrize("axis", AXES)
def test_equals_a_loop_over_windows_heads_queries_and_keys(axis: Axis) -> None:
    height, width, size, heads, d = 4, 6, 2, 2, 3
    layer = noisy(RelativeAttention(heads * d, size, axis, head_dim=d))
    x = torch.randn(2, height, width, heads * d, dtype=torch.float64)
    qkv = (x @ layer.qkv.weight.T + layer.qkv.bias).unflatten(-1, (3, heads, d))
    mixed = torch.zeros_like(x)
    for n in range(2):
        for pixels in members(height, width, size, axis):
            for head in range(heads):
                for i, (y, z) in enumerate(pixels):
                    logits = []
                    for j, (ky, kz) in enumerate(pixels):
                        dy, dx = j // size - i // size, j % size - i % size
                        bias = layer.relative_bias[head, dy + size - 1, dx + size - 1]
                        logits.append(qkv[n, y, z, 0, head] @ qkv[n, ky, kz, 1, head] / math.sqrt(d) + bias)
                    weights = torch.stack(logits).exp() / torch.stack(logits).exp().sum()
                    values = torch.stack([qkv[n, ky, kz, 2, head] for ky, kz in pixels])
                    mixed[n, y, z, head * d : (head + 1) * d] = weights @ values
    expected = mixed @ layer.out.weight.T + layer.out.bias
    torch.testing.assert_close(layer(x), expected, rtol=1e-12, atol=1e-12)


def test_the_bias_is_indexed_by_key_minus_query() -> None:
    size, heads = 3, 2
    table = torch.randn(heads, 2 * size - 1, 2 * size - 1)
    bias = relative_bias(table)
    assert bias.shape == (heads, size**2, size**2)
    for query in range(size**2):
        for key in range(size**2):
            dy, dx = key // size - query // size, key % size - query % size
            assert torch.equal(bias[:, query, key], table[:, dy + size - 1, dx + size - 1])


def test_cross_attention_equals_torch() -> None:
    channels, token_channels, heads, d = 6, 5, 2, 3
    layer = noisy(CrossAttention(channels, token_channels, head_dim=d))
    truth = nn.MultiheadAttention(
        channels, heads, kdim=token_channels, vdim=token_channels, batch_first=True, dtype=torch.float64
    )
    with torch.no_grad():
        truth.q_proj_weight.copy_(layer.q.weight)
        truth.k_proj_weight.copy_(layer.kv.weight[:channels])
        truth.v_proj_weight.copy_(layer.kv.weight[channels:])
        truth.in_proj_bias.copy_(torch.cat([layer.q.bias, layer.kv.bias]))
        truth.out_proj.load_state_dict(layer.out.state_dict())
    x = torch.randn(2, 3, 4, channels, dtype=torch.float64)
    tokens = torch.randn(2, 7, token_channels, dtype=torch.float64)
    expected, _ = truth(x.flatten(1, 2), tokens, tokens, need_weights=False)
    torch.testing.assert_close(layer(x, tokens), expected.view_as(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("axis", AXES)
def test_first_and_second_derivatives_of_attention(axis: Axis) -> None:
    layer = noisy(RelativeAttention(4, 2, axis, head_dim=2))
    parameters = dict(layer.named_parameters())
    names = ("qkv.weight", "relative_bias", "out.weight")

    def run(x: Tensor, *weights: Tensor) -> Tensor:
        return torch.func.functional_call(layer, {**parameters, **dict(zip(names, weights, strict=True))}, x)

    x = torch.randn(1, 4, 4, 4, dtype=torch.float64, requires_grad=True)
    arguments = (x, *(parameters[name] for name in names))
    assert torch.autograd.gradcheck(run, arguments)
    assert torch.autograd.gradgradcheck(run, arguments, fast_mode=True)


def test_first_and_second_derivatives_of_cross_attention() -> None:
    layer = noisy(CrossAttention(4, 3, head_dim=2))
    x = torch.randn(2, 2, 2, 4, dtype=torch.float64, requires_grad=True)
    tokens = torch.randn(2, 3, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(layer, (x, tokens))
    assert torch.autograd.gradgradcheck(layer, (x, tokens), fast_mode=True)


def test_gradients_are_bit_identical_over_runs_with_threads() -> None:
    # Enough heads and windows that the sums are shared out among the threads.
    layer = RelativeAttention(128, 8, "grid", head_dim=2)
    x = torch.randn(4, 16, 16, 128)

    def gradients() -> list[Tensor]:
        layer.zero_grad()
        layer(x).square().sum().backward()
        return [parameter.grad.clone() for parameter in layer.parameters() if parameter.grad is not None]

    threads = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        first = gradients()
        assert len(first) == 5
        for _ in range(5):
            assert all(torch.equal(a, b) for a, b in zip(first, gradients(), strict=True))
    finally:
        torch.set_num_threads(threads)


def test_softmax_runs_in_float32_under_bfloat16() -> None:
    q, k = torch.zeros(1, 1, 1, 4, dtype=torch.bfloat16), torch.zeros(1, 1, 3, 4, dtype=torch.bfloat16)
    # Three weights of 1/3 add up to 1.002 in bfloat16.
    out = attend(q, k, torch.ones(1, 1, 3, 1))
    torch.testing.assert_close(out, torch.ones(1, 1, 1, 1), rtol=1e-6, atol=0)
    assert attend(q, k, torch.ones(1, 1, 3, 1, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_feed_forward_is_linear_tanh_gelu_linear() -> None:
    layer = noisy(FeedForward(3))
    x = torch.randn(2, 5, 3, dtype=torch.float64)
    h = x @ layer[0].weight.T + layer[0].bias
    assert h.shape[-1] == 12
    h = 0.5 * h * (1 + torch.tanh(math.sqrt(2 / math.pi) * (h + 0.044715 * h**3)))
    torch.testing.assert_close(layer(x), F.linear(h, layer[2].weight, layer[2].bias))


def test_maps_and_tokens_are_views_of_each_other() -> None:
    x = torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last)
    tokens = to_tokens(x)
    assert tokens.shape == (2, 4, 5, 3)
    assert tokens.is_contiguous()
    assert to_map(tokens).data_ptr() == x.data_ptr()
    assert to_map(tokens).stride() == x.stride()


def test_sizes_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="a width of 30 is no multiple of head_dim 16"):
        RelativeAttention(30, 4, "block", head_dim=16)
    with pytest.raises(ValueError, match="a width of 30 is no multiple of head_dim 16"):
        CrossAttention(30, 8, head_dim=16)
    with pytest.raises(ValueError, match="no multiple of head_dim 0"):
        CrossAttention(30, 8, head_dim=0)
    with pytest.raises(ValueError, match="window_size must be at least 2, not 1"):
        RelativeAttention(32, 1, "grid")
    with pytest.raises(ValueError, match="6 x 8 can't be split by window_size 4"):
        RelativeAttention(32, 4, "grid")(torch.zeros(1, 6, 8, 32))
