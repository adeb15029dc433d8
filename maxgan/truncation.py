"""Truncation towards the mean latent: fewer oddities, less variety."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from maxgan.models.latent import LatentGenerator

Draw = Callable[[Tensor, Tensor | None], Tensor]
"""From z `(N, latent_dim)` and labels `(N,)` to images `(N, channels, H, W)`."""

MEAN_LATENTS, MEAN_SEED = 4096, 0


class TruncatedGenerator:
    """A generator whose latents come nearer to their mean: w_mean + psi (w - w_mean) (StyleGAN, arXiv 1812.04948).

    With classes, each has a mean of its own: that of all would lead from every class to a mixture of them. A mean is
    that of w over MEAN_LATENTS fixed z, all at once and for one class at a time, so that it is the same for any batch
    and on any process; it is kept once it was asked for.

    Args:
        generator: one with a mapping, in eval mode.
        psi: 1 leaves the latents as they are, 0 gives the image of the mean.
    """

    def __init__(self, generator: LatentGenerator, psi: float) -> None:
        self.generator = generator
        self.psi = psi
        self._means: dict[int, Tensor] = {}

    def __call__(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """Map z `(N, latent_dim)` and labels `(N,)` to images `(N, channels, H, W)`, nominally in [-1, 1]."""
        w = self.generator.style(z, labels)
        mean = self.mean(0) if labels is None else torch.stack([self.mean(label) for label in labels.tolist()])
        return self.generator.synthesise(mean + self.psi * (w - mean))

    def mean(self, label: int) -> Tensor:
        """Return the mean w `(latent_dim,)` of a class; of all there is, without classes."""
        if label not in self._means:
            generator = self.generator
            stream = torch.Generator().manual_seed(MEAN_SEED)
            # In float64, so that the float32 values don't hang on the vector instructions of the machine.
            z = torch.randn(MEAN_LATENTS, generator.latent_dim, generator=stream, dtype=torch.float64)
            weight = generator.first_map.weight
            labels = torch.full((MEAN_LATENTS,), label, device=weight.device) if generator.num_classes else None
            with torch.no_grad():
                w = generator.style(z.to(weight), labels)
            self._means[label] = w.double().mean(0).to(w.dtype)
        return self._means[label]


def mapped(generator: object) -> LatentGenerator | None:
    """Return the generator if it has a mapping, whose w then is the better space: to truncate and to search in."""
    return generator if isinstance(generator, LatentGenerator) and generator.mapping is not None else None


def truncated(generator: Draw, truncation: float | None) -> tuple[Draw, float | None]:
    """Return what draws with `truncation`, and the value at which z is still to be cut, for `latents_of`.

    Without a mapping the latents' distribution is cut; with one, they come nearer to their mean, and z stays as it is.

    Raises:
        ValueError: for a truncation below 0 towards the mean.
    """
    latent_generator = mapped(generator)
    if truncation is None or latent_generator is None:
        return generator, truncation
    if not truncation >= 0:
        raise ValueError(f"truncation towards the mean latent must be 0 or more, not {truncation}: 0.7 is usual")
    return TruncatedGenerator(latent_generator, truncation), None


def told(generator: object, truncation: float | None) -> float | str | None:
    """Return what a record of samples says of their truncation."""
    return truncation if truncation is None or mapped(generator) is None else f"{truncation} towards the mean latent"
