"""From z and a class to w: the mapping network in front of a generator."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from maxgan.nn.activation import SLOPE
from maxgan.nn.equalized import make_linear

EPS = 1e-8


class Mapping(nn.Module):
    """A perceptron from z, and the embedding of a class, to the latent w of the same width (StyleGAN, arXiv
    1812.04948).

    Each input is brought to a mean square of 1 (arXiv 1710.10196); every layer is followed by leaky ReLU. The layers
    have the equalised learning rate, as in StyleGAN2, so w has the scale of z at the start, however many there are;
    its hundredfold smaller rate for the mapping is left out.

    Args:
        width: numbers of each input, and of w.
        inputs: how many there are: z, or z and the embedding of its class.
        layers: number of layers, at least 1.
    """

    def __init__(self, width: int, inputs: int, layers: int) -> None:
        super().__init__()
        self.width = width
        self.layers = nn.ModuleList(
            make_linear(width if i else inputs * width, width, equalized=True) for i in range(layers)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map the inputs side by side `(N, inputs * width)` to w `(N, width)`."""
        parts = x.unflatten(1, (-1, self.width))
        x = (parts * (parts.square().mean(2, keepdim=True) + EPS).rsqrt()).flatten(1)
        for layer in self.layers:
            x = F.leaky_relu(layer(x), SLOPE)
        return x
