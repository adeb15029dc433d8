"""The latent whose image is nearest to a given one."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from maxgan.config import InvertConfig
from maxgan.data.base import decode
from maxgan.data.transforms import cut, set_channels, to_array, to_float, to_uint8
from maxgan.evaluation.extractors import ModuleExtractor
from maxgan.explore.common import Subject, open_extractor, open_subject, sheet, write_json
from maxgan.sampling import Generator, latents_of
from maxgan.truncation import Draw, mapped
from maxgan.writers import save_picture


@dataclass(frozen=True)
class Inversion:
    """S latents and their images, the nearest first.

    Attributes:
        z: float32 `(S, latent_dim)`; w where the generator has a mapping.
        labels: int64 `(S,)`, or None without classes.
        images: float32 `(S, C, H, W)`, nominally in [-1, 1].
        losses: float32 `(S,)`.
    """

    z: Tensor
    labels: Tensor | None
    images: Tensor
    losses: Tensor


Loss = Callable[[Tensor], Tensor]
"""From images `(N, C, H, W)` to the loss `(N,)` of each."""


def make_loss(target: Tensor, extractor: ModuleExtractor | None, feature_weight: float) -> Loss:
    """Return how far images are from the target float `(1, C, H, W)`: mean squared error of pixels in [-1, 1], and
    `feature_weight` times the squared distance of features over their squared length.
    """
    weighted = extractor is not None and feature_weight > 0
    wanted = extractor.differentiable(target).detach() if extractor is not None and weighted else None

    def loss(images: Tensor) -> Tensor:
        pixels = (images - target).square().mean((1, 2, 3))
        if extractor is None or wanted is None:
            return pixels
        features = extractor.differentiable(images)
        return pixels + feature_weight * (features - wanted).square().sum(1) / wanted.square().sum()

    return loss


def invert(
    draw: Draw, loss: Loss, z: Tensor, labels: Tensor | None, config: InvertConfig, show: bool = False
) -> Inversion:
    """Return the latents of least loss that Adam finds from the best of the candidates.

    Args:
        draw: from latents and labels to images, without gradients of its parameters.
        loss: of images.
        z: the candidates `(N, latent_dim)`, on the generator's device.
        labels: of the candidates `(N,)`, or None without classes; they stay as they are.
        config: starts, steps and learning rate.
        show: show a progress bar.

    Raises:
        ValueError: if the generator gives NaN or infinity.
    """
    with torch.no_grad():
        parts = range(0, len(z), config.batch_size)
        first = [
            loss(draw(z[i : i + config.batch_size], None if labels is None else labels[i : i + config.batch_size]))
            for i in parts
        ]
        chosen = torch.cat(first).argsort(stable=True)[: config.starts]
    z, labels = z[chosen].clone().requires_grad_(), None if labels is None else labels[chosen]
    best, losses = z.detach().clone(), torch.full((len(z),), torch.inf, device=z.device)
    optimiser = torch.optim.Adam([z], lr=config.lr)
    for step in tqdm(range(config.steps + 1), unit=" steps", leave=False, disable=not show):
        # The starts don't hang on each other, so the gradient of their sum is that of each.
        found = loss(draw(z, labels))
        if not found.isfinite().all():
            raise ValueError("the generator or the extractor gives NaN or infinity: use another checkpoint")
        with torch.no_grad():
            better = found < losses
            best[better], losses[better] = z[better], found[better]
        if step == config.steps:
            break
        optimiser.param_groups[0]["lr"] = config.lr * 0.5 * (1 + math.cos(math.pi * step / config.steps))
        (z.grad,) = torch.autograd.grad(found.sum(), z)
        optimiser.step()
    order = losses.argsort(stable=True)
    best, labels = best[order], None if labels is None else labels[order]
    with torch.no_grad():
        return Inversion(best, labels, draw(best, labels), losses[order])


def invert_image(config: InvertConfig) -> str:
    """Write the picture, the latents and their errors; return a sentence that says how near they come.

    Raises:
        ValueError: if the image can't be read, or the generator doesn't have the class that is named.
    """
    subject = open_subject(config)
    generator, device = subject.generator, subject.device
    if config.label is not None and config.label >= generator.num_classes:
        raise ValueError(f"label must be below the number of classes {generator.num_classes}, not {config.label}")
    target = read_image(config.image, generator)
    extractor = open_extractor(config, subject)
    loss = make_loss(to_float(target)[None].to(device), extractor, config.feature_weight)
    seeds = range(config.seed, config.seed + config.candidates)
    classes = None if config.label is None else [config.label]
    z, labels = latents_of(seeds, generator.latent_dim, generator.num_classes, classes)
    z, labels = z.to(device), None if labels is None else labels.to(device)
    if isinstance(generator, nn.Module):
        generator.requires_grad_(False)
    draw: Draw = generator
    if (latent_generator := mapped(generator)) is not None:
        # w reaches what no z does, and isn't brought to one length as z is.
        z, synthesise = latent_generator.style(z, labels), latent_generator.synthesise
        draw = lambda w, _: synthesise(w)  # noqa: E731
    found = invert(draw, loss, z, labels, config, show=True)
    images = to_uint8(found.images).cpu()
    errors = [root_mean_square(image, target) for image in images]
    output = subject.output(config, "inversion.png")
    captions = [["given", *(f"error {error:.3g}" for error in errors)]]
    save_picture(sheet([[target, *torch.unbind(images)]], captions=captions, wide_after=1), output)
    write_json(output.with_suffix(".json"), _values(found, errors, config, subject, extractor))
    nearest = min(errors)
    return (
        f"the nearest image of {subject.name} differs from {config.image} by {nearest:.3g} of 255 grey levels (root "
        f"mean square): see {output}" + ("" if extractor is not None else "; by pixels alone, as there is no extractor")
    )


def _values(
    found: Inversion, errors: list[float], config: InvertConfig, subject: Subject, extractor: ModuleExtractor | None
) -> dict[str, object]:
    results = [
        {
            "error": error,
            "loss": float(found.losses[i]),
            "label": None if found.labels is None else int(found.labels[i]),
            # Of a Gaussian latent it is near 1.
            "latent_length": float(found.z[i].norm()) / math.sqrt(found.z.shape[1]),
            "w" if mapped(subject.generator) else "z": found.z[i].tolist(),
        }
        for i, error in enumerate(errors)
    ]
    return {
        "generator": subject.name,
        "image": config.image,
        "extractor": None if extractor is None else extractor.name,
        "extractor_digest": None if extractor is None else extractor.digest,
        "feature_weight": config.feature_weight,
        "steps": config.steps,
        "found": results,
    }


def read_image(path: str, generator: Generator) -> Tensor:
    """Return the image of a file as the generator makes them: uint8 `(C, H, W)`.

    Raises:
        ValueError: if it can't be read.
    """
    if not Path(path).is_file():
        raise ValueError(f"there is no image {path}")
    picture = set_channels(decode(Path(path).read_bytes(), path), generator.channels)
    return torch.tensor(to_array(cut(picture, generator.resolution)))


def root_mean_square(one: Tensor, two: Tensor) -> float:
    """Return the root of the mean squared difference of two images uint8, in grey levels."""
    return float((one.double() - two.double()).square().mean().sqrt())
