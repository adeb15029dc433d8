"""Standing statistics: those that BatchNorm takes in an averaged generator, found from that generator's own samples."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TypeVar

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from maxgan.models.latent import LatentGenerator
from maxgan.nn.norm import GhostBatchNorm2d
from maxgan.sampling import drawn_at_once, latents_of

G = TypeVar("G", bound=LatentGenerator)

# Of the samples that statistics are taken from: far from the seeds of those that are shown and scored.
FIRST_SEED = 2**31
BATCH_SIZE = 64


def with_standing_statistics(generator: G, images: int, class_counts: Sequence[int] | None = None) -> G:
    """Return the generator in eval mode with the BatchNorm statistics of its own samples (BigGAN, arXiv 1809.11096).

    Running statistics belong to the weights of the last hundreds of updates, and their average reaches farther back;
    the averaged weights have others. While weights still move, a generator that draws well by the statistics of a batch
    draws nothing by those. Here they are means over batches (of GhostBatchNorm2d: groups) of fixed samples, as training
    takes them. No random state is touched.

    Args:
        generator: without BatchNorm it is returned itself, else a copy.
        images: samples, rounded up to whole batches; 0 leaves the statistics as they are.
        class_counts: how often the training images have each class; unset: all alike.
    """
    generator.eval()
    if not images or not any(isinstance(module, _BatchNorm) for module in generator.modules()):
        return generator
    standing = copy.deepcopy(generator)
    norms = [module for module in standing.modules() if isinstance(module, _BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    group = max((norm.group for norm in norms if isinstance(norm, GhostBatchNorm2d)), default=1)
    batch_size = max(group, drawn_at_once(standing.resolution, BATCH_SIZE) // group * group)
    device = standing.first_map.weight.device
    for norm in norms:
        norm.train()
    for count, start in enumerate(range(FIRST_SEED, FIRST_SEED + images, batch_size), 1):
        for norm in norms:
            norm.momentum = 1 / count  # the mean of all batches so far
        seeds = range(start, start + batch_size)
        z, labels = latents_of(seeds, standing.latent_dim, standing.num_classes, class_weights=class_counts)
        with torch.no_grad():
            standing(z.to(device), None if labels is None else labels.to(device))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return standing.eval()
