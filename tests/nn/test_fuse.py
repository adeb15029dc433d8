from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maxgan.nn.attention import RelativeAttention
from maxgan.nn.fuse import SigmoidGelu, fold_after, fold_before, fuse_modules, in_parts
from maxgan.nn.mbconv import MBConv, SameConv2d
from maxgan.nn.partition import Axis


def settled(norm: nn.BatchNorm2d) -> nn.BatchNorm2d:
    """Return the norm with statistics, scale and shift far from their initial ones, in eval mode."""
    assert norm.running_mean is not None and norm.running_var is not None
    for tensor, low, high in (
        (norm.running_mean, -1.0, 1.0),
        (norm.running_var, 0.1, 3.0),
        (norm.weight, -2.0, 2.0),
        (norm.bias, -1.0, 1.0),
    ):
        nn.init.uniform_(tensor, low, high)
    return norm.eval()


@pytest.mark.parametrize("bias", [True, False])
def test_norm_before_linear_or_pointwise_layer_is_folded(bias: bool) -> None:
    norm = settled(nn.BatchNorm2d(5, eps=0.1)).double()
    x = torch.randn(2, 5, 3, 4, dtype=torch.float64)
    conv = nn.Conv2d(5, 7, 1, bias=bias).double()
    linear = nn.Linear(5, 7, bias=bias).double()
    torch.testing.assert_close(fold_before(norm, conv)(x), conv(norm(x)))
    tokens = norm(x).permute(0, 2, 3, 1)
    torch.testing.assert_close(fold_before(norm, linear)(x.permute(0, 2, 3, 1)), linear(tokens))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("groups", [1, 4])
def test_norm_after_convolution_is_folded(bias: bool, groups: int) -> None:
    norm = settled(nn.BatchNorm2d(8, eps=0.1)).double()
    conv = SameConv2d(4, 8, 3, 2, groups, bias).double()
    x = torch.randn(2, 4, 6, 6, dtype=torch.float64)
    folded = fold_after(conv, norm)
    torch.testing.assert_close(folded(x), norm(conv(x)))
    assert conv.bias is None or folded.bias is not conv.bias


@pytest.mark.parametrize("side", [6, 7])
@pytest.mark.parametrize("groups", [1, 4])
def test_fused_same_convolution_pads_as_before(side: int, groups: int) -> None:
    conv = SameConv2d(4, 4, 3, 2, groups).double()
    x = torch.randn(2, 4, side, side + 1, dtype=torch.float64)
    expected = conv(x)
    conv.fuse()
    torch.testing.assert_close(conv(x), expected)
    assert (conv.even_weight is not None) == (conv.stride == (2, 2))


def test_sigmoid_gelu_is_the_tanh_form() -> None:
    x = torch.cat([torch.linspace(-12, 12, 4001), torch.tensor([-1e4, -60.0, 0.0, 60.0, 1e4])])
    exact = F.gelu(x.double(), approximate="tanh")
    assert (SigmoidGelu()(x) - exact).abs().max() <= 1e-6 * x[:4001].abs().max()
    assert SigmoidGelu()(x).isfinite().all()
    torch.testing.assert_close(SigmoidGelu()(x[:4001]).double(), exact[:4001], atol=1e-6, rtol=2e-6)


def test_sigmoid_gelu_leaves_its_input_alone() -> None:
    x = torch.randn(100)
    kept = x.clone()
    SigmoidGelu()(x)
    assert torch.equal(x, kept)


@pytest.mark.parametrize("axis", ["block", "grid"])
def test_fused_attention_gives_the_same(axis: Axis) -> None:
    attention = RelativeAttention(8, 2, axis, head_dim=4).double()
    x = torch.randn(2, 4, 4, 8, dtype=torch.float64)
    expected = attention(x)
    attention.fuse()
    torch.testing.assert_close(attention(x), expected)
    attention.relative_bias.data.zero_()  # no longer looked at
    torch.testing.assert_close(attention(x), expected)


def test_parts_are_as_large_as_the_limit_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def double(x: Tensor) -> Tensor:
        seen.append(len(x))
        return 2 * x

    x = torch.randn(7, 3)
    monkeypatch.setattr("maxgan.nn.fuse.PART_BYTES", 4 * 10 * 3)
    assert torch.equal(in_parts(double, x, widest=10), 2 * x)
    assert seen == [3, 3, 1]
    seen.clear()
    assert torch.equal(in_parts(double, x, widest=1000), 2 * x)
    assert seen == [1] * 7


def test_fusing_walks_into_replaced_parts() -> None:
    network = nn.Sequential(MBConv(4, 4, stride=2)).eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            settled(module)
    x = torch.randn(2, 4, 8, 8)
    with torch.no_grad():
        expected = network(x)
        fuse_modules(network)
        torch.testing.assert_close(network(x), expected, atol=1e-5, rtol=1e-4)
    assert not any(isinstance(module, nn.BatchNorm2d | nn.GELU) for module in network.modules())
    assert network[0].get_submodule("depthwise").even_weight is not None
