"""The MaxViT block: convolution, block attention and grid attention in any order."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from maxgan.config import GeluForm, Padding, Shortcut
from maxgan.nn.attention import FeedForward, RelativeAttention, to_map, to_tokens
from maxgan.nn.fuse import absorb
from maxgan.nn.mbconv import MBConv
from maxgan.nn.multi_query import MultiAxisAttention
from maxgan.nn.norm import make_norm

# The attention of a block is a slot: name -> constructor(channels, size, head_dim) of a module on (N, H, W, C).
MIXERS: dict[str, Callable[[int, int, int], nn.Module]] = {
    "BA": lambda channels, size, head_dim: RelativeAttention(channels, size, "block", head_dim),
    "GA": lambda channels, size, head_dim: RelativeAttention(channels, size, "grid", head_dim),
}
CONVOLUTION = "C"


def parse_order(order: str) -> tuple[str, ...]:
    """Split an order like `C-BA-GA` into its parts.

    Raises:
        ValueError: for an unknown part, none, or more than one convolution.
    """
    parts = tuple(order.split("-"))
    known = (CONVOLUTION, *MIXERS)
    if any(part not in known for part in parts) or parts.count(CONVOLUTION) > 1:
        raise ValueError(
            f"order must join parts of {', '.join(known)} by '-', with at most one C, like C-BA-GA; not {order!r}"
        )
    return parts


class AttentionLayer(nn.Module):
    """A pre-norm transformer layer on maps: x + mix(norm(x)), then x + ffn(norm(x)).

    Args:
        channels: width C.
        mixer: module from `(N, H, W, C)` to the same shape.
        norm: name of the norm.
        norm_group: images per batch statistic.
        drop_path: stochastic depth of each of the two branches.
        gelu: form of GELU.
    """

    def __init__(
        self,
        channels: int,
        mixer: nn.Module,
        norm: str,
        norm_group: int | None = None,
        drop_path: float = 0.0,
        gelu: GeluForm = "tanh",
    ) -> None:
        super().__init__()
        self.norm = make_norm(norm, channels, norm_group)
        self.attention = mixer
        self.ffn_norm = make_norm(norm, channels, norm_group)
        self.ffn = FeedForward(channels, gelu=gelu)
        self.drop_path = StochasticDepth(drop_path, "row")

    def forward(self, x: Tensor) -> Tensor:
        """Map `(N, C, H, W)` to the same shape."""
        x = x + self.drop_path(to_map(self.attention(to_tokens(self.norm(x)))))
        return x + self.drop_path(to_map(self.ffn(to_tokens(self.ffn_norm(x)))))

    def fuse(self) -> None:
        """Fold the norms into the linear layers after them, where they are BatchNorms."""
        attention = self.attention
        if isinstance(attention, RelativeAttention):
            self.norm, attention.qkv = absorb(self.norm, attention.qkv)
        elif isinstance(attention, MultiAxisAttention):
            self.norm, attention.q, attention.kv = absorb(self.norm, attention.q, attention.kv)
        self.ffn_norm, self.ffn[0] = absorb(self.ffn_norm, self.ffn[0])


class MaxViTBlock(nn.Sequential):
    """The MaxViT block (arXiv 2204.01697, figure 2), its parts in the order that is asked for.

    `C-BA-GA` is the backbone's; `GA-BA-C`, from global to local, the generator's (appendix A.4). Parts may be left out
    or repeated. A block that changes channels or resolution must begin with C.

    Args:
        inputs: input channels.
        outputs: output channels.
        size: side of the attention windows and grids.
        order: parts joined by "-": C (MBConv), BA (block attention), GA (grid attention).
        stride: 1, or 2 to halve the map.
        head_dim: channels of an attention head.
        conv_norm: norm inside MBConv.
        attention_norm: norm of the attention layers.
        norm_group: images per batch statistic.
        drop_path: stochastic depth of each residual branch, MBConv's included.
        gelu: form of GELU.
        padding, shortcut: see MBConv.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        size: int,
        order: str = "C-BA-GA",
        stride: int = 1,
        head_dim: int = 32,
        conv_norm: str = "batch",
        attention_norm: str = "layer",
        norm_group: int | None = None,
        drop_path: float = 0.0,
        gelu: GeluForm = "tanh",
        padding: Padding = "same",
        shortcut: Shortcut = "pool2",
    ) -> None:
        parts = parse_order(order)
        if (stride != 1 or inputs != outputs) and parts[0] != CONVOLUTION:
            raise ValueError(f"order {order!r} must begin with C in a block that changes width or resolution")
        layers: list[nn.Module] = []
        for part in parts:
            if part == CONVOLUTION:
                group = norm_group if conv_norm == "batch" else None
                layers.append(
                    MBConv(
                        inputs,
                        outputs,
                        stride,
                        conv_norm,
                        group,
                        drop_path,
                        gelu=gelu,
                        padding=padding,
                        shortcut=shortcut,
                    )
                )
            else:
                group = norm_group if attention_norm == "batch" else None
                mixer = MIXERS[part](outputs, size, head_dim)
                layers.append(AttentionLayer(outputs, mixer, attention_norm, group, drop_path, gelu))
        super().__init__(*layers)
