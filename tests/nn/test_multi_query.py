from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from maxgan.nn.multi_query import MultiAxisAttention, MultiQueryCrossAttention, attend_shared


def noisy(module: nn.Module) -> nn.Module:
    """Give every weight a size at which it matters, in float64."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=0.5)
    return module.double()


def attention_of_one(query: Tensor, keys: list[Tensor], values: list[Tensor]) -> Tensor:
    """Return what one query of `(d,)` reads from a list of keys and values, by the formula."""
    weights = torch.stack([(query @ key / math.sqrt(len(query))).exp() for key in keys])
    return sum(w * v for w, v in zip(weights / weights.sum(), values, strict=True))


@pytest.mark.parametrize(("side", "patch", "heads"), [(4, 2, 2), (8, 2, 4), (8, 4, 2)])
@torch.no_grad()
def test_equals_a_loop_over_pixels_and_heads(side: int, patch: int, heads: int) -> None:
    d = 3
    layer = noisy(MultiAxisAttention(heads * d, heads, patch))
    x = torch.randn(2, side, side, heads * d, dtype=torch.float64)
    queries = (x @ layer.q.weight.T + layer.q.bias).unflatten(-1, (heads, d))
    keys, values = (x @ layer.kv.weight.T + layer.kv.bias).unflatten(-1, (2, d)).unbind(-2)
    pixels = [(y, z) for y in range(side) for z in range(side)]
    mixed = torch.zeros_like(x)
    for y, z in pixels:
        local = [(a, b) for a, b in pixels if (a // patch, b // patch) == (y // patch, z // patch)]
        dilated = [(a, b) for a, b in pixels if (a % patch, b % patch) == (y % patch, z % patch)]
        assert len(local) == patch**2
        assert len(dilated) == (side // patch) ** 2
        for head in range(heads):
            seen = local if head < heads // 2 else dilated
            for n in range(2):
                mixed[n, y, z, head * d : (head + 1) * d] = attention_of_one(
                    queries[n, y, z, head], [keys[n, a, b] for a, b in seen], [values[n, a, b] for a, b in seen]
                )
    expected = mixed @ layer.out.weight.T + layer.out.bias
    torch.testing.assert_close(layer(x), expected, rtol=1e-12, atol=1e-12)


@torch.no_grad()
def test_cross_attention_equals_a_loop_over_pixels_and_heads() -> None:
    heads, d, tokens = 2, 3, 5
    layer = noisy(MultiQueryCrossAttention(heads * d, 4, heads))
    x, latent = torch.randn(2, 3, 3, heads * d).double(), torch.randn(2, tokens, 4).double()
    queries = x @ layer.q.weight.T + layer.q.bias
    keys, values = (latent @ layer.kv.weight.T + layer.kv.bias).unflatten(-1, (2, d)).unbind(-2)
    mixed = torch.zeros_like(x)
    for n in range(2):
        for y in range(3):
            for z in range(3):
                for head in range(heads):
                    channels = slice(head * d, (head + 1) * d)
                    mixed[n, y, z, channels] = attention_of_one(queries[n, y, z, channels], [*keys[n]], [*values[n]])
    expected = mixed @ layer.out.weight.T + layer.out.bias
    torch.testing.assert_close(layer(x, latent), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("crossing", [False, True])
def test_first_and_second_derivatives(crossing: bool) -> None:
    layer = noisy(MultiQueryCrossAttention(4, 3, 2) if crossing else MultiAxisAttention(4, 2, 2))
    parameters = dict(layer.named_parameters())
    names = ("q.weight", "kv.weight", "out.weight")
    inputs = [torch.randn(1, 4, 4, 4, dtype=torch.float64, requires_grad=True)]
    if crossing:
        inputs.append(torch.randn(1, 2, 3, dtype=torch.float64, requires_grad=True))

    def run(*arguments: Tensor) -> Tensor:
        given, weights = arguments[: len(inputs)], arguments[len(inputs) :]
        return torch.func.functional_call(layer, {**parameters, **dict(zip(names, weights, strict=True))}, given)

    arguments = (*inputs, *(parameters[name] for name in names))
    assert torch.autograd.gradcheck(run, arguments, fast_mode=True)
    assert torch.autograd.gradgradcheck(run, arguments, fast_mode=True)


def test_all_heads_read_the_same_values() -> None:
    v = torch.randn(1, 1, 1, 4)
    out = attend_shared(torch.randn(1, 1, 2, 12), torch.randn(1, 1, 1, 4), v)
    torch.testing.assert_close(out, v.repeat(1, 1, 2, 3))


def test_sizes_that_do_not_fit() -> None:
    for heads in (4, 0):
        with pytest.raises(ValueError, match=f"a width of 30 is no multiple of {heads} heads: change widths or heads"):
            MultiAxisAttention(30, heads, 2)
        with pytest.raises(ValueError, match=f"a width of 30 is no multiple of {heads} heads"):
            MultiQueryCrossAttention(30, 8, heads)
    with pytest.raises(ValueError, match="heads must be even, not 3: half of them is local"):
        MultiAxisAttention(30, 3, 2)
    with pytest.raises(ValueError, match="6 x 6 can't be split by window_size 4"):
        MultiAxisAttention(32, 2, 4)(torch.zeros(1, 6, 6, 32))
