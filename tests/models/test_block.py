from __future__ import annotations

from itertools import permutations

import pytest
import torch
from torch import Tensor, nn

from maxgan.models.block import AttentionLayer, MaxViTBlock, parse_order
from maxgan.nn.attention import RelativeAttention
from maxgan.nn.mbconv import MBConv
from maxgan.nn.norm import GhostBatchNorm2d, LayerNorm2d

ORDERS = ["-".join(order) for order in permutations(("C", "BA", "GA"))]


def noisy(block: MaxViTBlock) -> MaxViTBlock:
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.normal_(std=0.3)
    return block.double()


@pytest.mark.parametrize("order", ORDERS)
def test_parts_run_one_after_another_in_any_order(order: str) -> None:
    block = noisy(MaxViTBlock(8, 8, 2, order, head_dim=4))
    kinds = ["C" if isinstance(part, MBConv) else {"block": "BA", "grid": "GA"}[part.attention.axis] for part in block]
    assert "-".join(kinds) == order
    x = torch.randn(2, 8, 4, 4, dtype=torch.float64)
    expected = x
    for part in block:
        if isinstance(part, MBConv):
            expected = part(expected)
            continue
        # A pre-norm transformer layer, written on (N, H, W, C).
        tokens = expected.permute(0, 2, 3, 1)
        norm, ffn_norm = (nn.functional.layer_norm(tokens, (8,), n.weight, n.bias) for n in (part.norm, part.ffn_norm))
        tokens = tokens + part.attention(norm)
        ffn_norm = nn.functional.layer_norm(tokens, (8,), part.ffn_norm.weight, part.ffn_norm.bias)
        expected = (tokens + part.ffn(ffn_norm)).permute(0, 3, 1, 2)
    torch.testing.assert_close(block(x), expected)


def test_every_order_gives_another_function() -> None:
    x = torch.randn(2, 8, 4, 4, dtype=torch.float64)
    parts = dict(zip(("C", "BA", "GA"), noisy(MaxViTBlock(8, 8, 2, "C-BA-GA", head_dim=4)), strict=True))
    outputs = [nn.Sequential(*(parts[name] for name in order.split("-")))(x) for order in ORDERS]
    for i, a in enumerate(outputs):
        for b in outputs[:i]:
            assert (a - b).abs().max() > 1e-3


@pytest.mark.parametrize("removed", ["BA", "GA"])
@pytest.mark.parametrize("order", ["C-BA-GA", "GA-BA-C"])
def test_removing_either_attention_changes_the_output(order: str, removed: str) -> None:
    block = noisy(MaxViTBlock(8, 8, 2, order, head_dim=4))
    x = torch.randn(1, 8, 4, 4, dtype=torch.float64)
    whole = block(x)
    attention = block[order.split("-").index(removed)].attention
    attention.register_forward_hook(lambda _, __, output: torch.zeros_like(output))
    assert (block(x) - whole).abs().max() > 1e-3


def reach(block: MaxViTBlock) -> Tensor:
    """Return which pixels the output at (0, 0) depends on."""
    x = torch.randn(1, 4, 4, 4, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(block(x)[0, :, 0, 0].square().sum(), x)
    return gradient[0].abs().sum(0) > 1e-12


def test_blocks_reach_neighbours_grids_reach_strides_and_both_reach_all() -> None:
    def near(order: str) -> Tensor:
        return reach(noisy(MaxViTBlock(4, 4, 2, order, head_dim=4)))

    block, grid = torch.zeros(4, 4, dtype=torch.bool), torch.zeros(4, 4, dtype=torch.bool)
    block[:2, :2] = True
    grid[::2, ::2] = True
    assert torch.equal(near("BA"), block)
    assert torch.equal(near("GA"), grid)
    assert near("GA-BA").all()
    assert near("BA-GA").all()


def test_a_block_that_begins_with_c_may_change_width_and_resolution() -> None:
    x = torch.randn(2, 8, 8, 8)
    assert MaxViTBlock(8, 16, 2, "C-GA-BA", stride=2, head_dim=8)(x).shape == (2, 16, 4, 4)
    assert MaxViTBlock(8, 8, 2, "GA-GA-BA", head_dim=8)(x).shape == x.shape
    for arguments in ({"stride": 2}, {"outputs": 16}):
        with pytest.raises(ValueError, match="order 'GA-BA-C' must begin with C"):
            MaxViTBlock(8, **{"outputs": 8, **arguments}, size=2, order="GA-BA-C", head_dim=8)


@pytest.mark.parametrize("order", ["", "C-", "BA-GA-X", "C-C", "C_BA_GA", "c-ba-ga"])
def test_orders_that_are_none(order: str) -> None:
    with pytest.raises(ValueError, match="order must join parts of C, BA, GA by '-', with at most one C") as error:
        parse_order(order)
    assert repr(order) in str(error.value)


def test_norms_of_the_parts_are_chosen_apart() -> None:
    block = MaxViTBlock(8, 8, 2, head_dim=8, conv_norm="batch", attention_norm="layer", norm_group=4)
    assert isinstance(block[0].pre_norm, GhostBatchNorm2d)
    assert isinstance(block[1].norm, LayerNorm2d)
    assert isinstance(block[2].ffn_norm, LayerNorm2d)
    block = MaxViTBlock(8, 8, 2, head_dim=8, conv_norm="layer", attention_norm="batch")
    assert isinstance(block[0].pre_norm, LayerNorm2d)
    assert type(block[2].ffn_norm) is nn.BatchNorm2d


def test_stochastic_depth_drops_each_branch_of_whole_images() -> None:
    torch.manual_seed(0)
    layer = AttentionLayer(8, RelativeAttention(8, 2, "grid", head_dim=8), "layer", drop_path=0.5)
    x = torch.randn(400, 8, 2, 2)
    kept = (layer(x) != x).flatten(1).any(1).float().mean()
    # Both of two branches are dropped with probability 1/4; three deviations of the share are 0.065.
    assert abs(kept - 0.75) < 0.065
    assert (layer.eval()(x) != x).flatten(1).any(1).all()


def test_second_derivatives_through_a_block() -> None:
    block = noisy(MaxViTBlock(4, 4, 2, "C-BA-GA", head_dim=2, conv_norm="layer"))
    x = torch.randn(1, 4, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(block, (x,), fast_mode=True)
    assert torch.autograd.gradgradcheck(block, (x,), fast_mode=True)
