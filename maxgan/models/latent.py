"""What generators share: from z and a class to what drives the network, a first map, and a few latent tokens."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from maxgan.config import GeneratorConfig, HiTConfig, ResidualGeneratorConfig
from maxgan.models.network import Network
from maxgan.nn.attention import to_map, to_tokens
from maxgan.nn.equalized import EqualizedLinear
from maxgan.nn.mapping import Mapping
from maxgan.nn.norm import make_norm


class LatentGenerator(Network):
    """A generator in two steps: `style` makes the latent w of z and a class, `synthesise` an image of w.

    With classes, a learned class embedding joins z. w is both side by side, or what the mapping network makes of them.

    Attributes:
        section: part of the config that errors name.
        mapping: the mapping network, if there is one.
    """

    section: ClassVar[str] = "generator"
    config: GeneratorConfig | HiTConfig | ResidualGeneratorConfig
    mapping: Mapping | None

    def add_latent_layers(self, width: int, side: int, mapping_layers: int = 0) -> int:
        """Create the layers of `style`, and of a first map of `width` channels and `side`; return the size of w.

        Raises:
            ValueError: for a latent_dim below 1.
        """
        if self.latent_dim < 1:
            raise ValueError(f"{self.section}.latent_dim must be at least 1, not {self.latent_dim}")
        inputs = 2 if self.num_classes else 1
        latent = self.latent_dim * (1 if mapping_layers else inputs)
        self.class_embedding = nn.Embedding(self.num_classes, self.latent_dim) if self.num_classes else None
        self.mapping = Mapping(self.latent_dim, inputs, mapping_layers) if mapping_layers else None
        self.first_side = side
        self.first_map = nn.Linear(latent, width * side * side)
        return latent

    def draw_weights(self, cut: float = 2.0) -> None:
        """Draw kernels from a normal of deviation 0.02 (HiT; the official MaxViT has the same scale), truncated at -cut
        and cut; class embeddings from N(0, 1); biases are zero. The mapping keeps its own.

        Without norms nothing would make up for so small a scale: the deviation is then 1 / sqrt(inputs of a number).
        """
        self._draw_kernels(cut)
        self._draw_classes()

    def _draw_kernels(self, cut: float) -> None:
        plain = self.config.norm == "none"
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d) and not isinstance(module, EqualizedLinear):
                inputs = module.weight[0].numel()
                nn.init.trunc_normal_(module.weight, std=inputs**-0.5 if plain else 0.02, a=-cut, b=cut)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def _draw_classes(self) -> None:
        if self.class_embedding is not None:
            nn.init.normal_(self.class_embedding.weight)

    @property
    def latent_dim(self) -> int:
        """Size of z."""
        return self.config.latent_dim

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return images `(N, channels, resolution, resolution)`, nominally in [-1, 1].

        Args:
            z: `(N, latent_dim)`, standard normal.
            labels: `(N,)` integers in [0, num_classes); needed exactly when the model has classes.

        Raises:
            ValueError: if z or the labels don't fit the model.
        """
        return self.synthesise(self.style(z, labels))

    def style(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return w of z `(N, latent_dim)` and the labels: both joined, or mapped to `(N, latent_dim)`.

        Raises:
            ValueError: if z or the labels don't fit the model.
        """
        joined = self.join_class(z, labels)
        return joined if self.mapping is None else self.mapping(joined)

    def synthesise(self, w: Tensor) -> Tensor:
        """Return images `(N, channels, resolution, resolution)`, nominally in [-1, 1], of w."""
        raise NotImplementedError

    def first(self, w: Tensor) -> Tensor:
        """Return the first map `(N, C, side, side)` of w."""
        return to_map(self.first_map(w).view(w.shape[0], self.first_side, self.first_side, -1))

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


class TokenGenerator(LatentGenerator):
    """A generator that projects w to its first map, and to the latent tokens to which its stages attend (HiT, arXiv
    2106.07631, section 3.3)."""

    config: GeneratorConfig | HiTConfig

    def add_latent_layers(self, width: int, side: int, mapping_layers: int = 0) -> int:
        """Create the layers of `style` and `embed`, for a first map of `side` and tokens, both of `width` channels;
        return the size of w.

        Raises:
            ValueError: for a latent_dim or latent_tokens below 1.
        """
        config = self.config
        if config.latent_dim < 1 or config.latent_tokens < 1:
            raise ValueError(
                f"{self.section}.latent_dim and {self.section}.latent_tokens must be at least 1, "
                f"not {config.latent_dim}, {config.latent_tokens}"
            )
        latent = super().add_latent_layers(width, side, mapping_layers)
        self.tokens = nn.Linear(latent, config.latent_tokens * width)
        self.token_position = nn.Parameter(torch.empty(1, config.latent_tokens, 1, width))
        self.token_norm = make_norm(config.norm, width, config.norm_group)
        return latent

    def draw_weights(self, cut: float = 2.0) -> None:
        """Draw the weights, and the tokens' position as a kernel of deviation 0.02."""
        self._draw_kernels(cut)
        nn.init.trunc_normal_(self.token_position, std=0.02, a=-cut, b=cut)
        self._draw_classes()

    def embed(self, w: Tensor) -> tuple[Tensor, Tensor]:
        """Return the first map `(N, C, side, side)` and the latent tokens `(N, T, C)` of w."""
        tokens = self.tokens(w).view(w.shape[0], self.config.latent_tokens, 1, -1) + self.token_position
        return self.first(w), to_tokens(self.token_norm(to_map(tokens))).flatten(1, 2)
