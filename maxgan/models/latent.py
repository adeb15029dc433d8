"""What generators share: from z and a class to a first map and a few latent tokens."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from maxgan.config import GeneratorConfig, HiTConfig
from maxgan.models.network import Network
from maxgan.nn.attention import to_map, to_tokens
from maxgan.nn.norm import make_norm


class LatentGenerator(Network):
    """A generator that projects z to its first map, and to the latent tokens to which its stages attend (HiT, arXiv
    2106.07631, section 3.3). With classes, a learned class embedding joins z.

    Attributes:
        section: part of the config that errors name.
    """

    section: ClassVar[str] = "generator"
    config: GeneratorConfig | HiTConfig

    def add_latent_layers(self, width: int, side: int) -> None:
        """Create the layers of `embed`, for a first map of `side` and tokens, both of `width` channels.

        Raises:
            ValueError: for a latent_dim or latent_tokens below 1.
        """
        config = self.config
        if config.latent_dim < 1 or config.latent_tokens < 1:
            raise ValueError(
                f"{self.section}.latent_dim and {self.section}.latent_tokens must be at least 1, "
                f"not {config.latent_dim}, {config.latent_tokens}"
            )
        latent = self.latent_dim * (2 if self.num_classes else 1)
        self.class_embedding = nn.Embedding(self.num_classes, self.latent_dim) if self.num_classes else None
        self.first_side = side
        self.first_map = nn.Linear(latent, width * side * side)
        self.tokens = nn.Linear(latent, config.latent_tokens * width)
        self.token_position = nn.Parameter(torch.empty(1, config.latent_tokens, 1, width))
        self.token_norm = make_norm(config.norm, width, config.norm_group)

    def draw_weights(self, cut: float = 2.0) -> None:
        """Draw kernels and the tokens' position from a normal of deviation 0.02 (HiT; the official MaxViT has the same
        scale), truncated at -cut and cut; class embeddings from N(0, 1); biases are zero.

        Without norms nothing would make up for so small a scale: the deviation is then 1 / sqrt(inputs of a number).
        """
        plain = self.config.norm == "none"
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                inputs = module.weight[0].numel()
                nn.init.trunc_normal_(module.weight, std=inputs**-0.5 if plain else 0.02, a=-cut, b=cut)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.trunc_normal_(self.token_position, std=0.02, a=-cut, b=cut)
        if self.class_embedding is not None:
            nn.init.normal_(self.class_embedding.weight)

    @property
    def latent_dim(self) -> int:
        """Size of z."""
        return self.config.latent_dim

    def embed(self, z: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the first map `(N, C, side, side)` and the latent tokens `(N, T, C)` of z `(N, latent_dim)`."""
        z = self.join_class(z, labels)
        n, side = z.shape[0], self.first_side
        x = to_map(self.first_map(z).view(n, side, side, -1))
        tokens = self.tokens(z).view(n, self.config.latent_tokens, 1, -1) + self.token_position
        return x, to_tokens(self.token_norm(to_map(tokens))).flatten(1, 2)

    def join_class(self, z: Tensor, labels: Tensor | None) -> Tensor:
        """Append the class embedding to z; ValueError if z or the labels don't fit the model."""
        if z.dim() != 2 or z.shape[1] != self.latent_dim:
            raise ValueError(
                f"this generator takes z (N, {self.latent_dim}), not {tuple(z.shape)}: draw latents of "
                f"{self.section}.latent_dim {self.latent_dim}"
            )
        if (labels is None) != (self.class_embedding is None):
            raise ValueError(
                f"this generator has {self.num_classes} classes: "
                + ("give a label for every z" if labels is None else "it is unconditional, give no labels")
            )
        if self.class_embedding is None or labels is None:
            return z
        return torch.cat([z, self.class_embedding(labels)], 1)
