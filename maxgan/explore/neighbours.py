"""The real images nearest to samples: whether a generator has learned images by heart."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from maxgan.config import DataConfig, NeighboursConfig
from maxgan.data.loader import ImageDataset, evaluation_batches
from maxgan.evaluation.extractors import ModuleExtractor
from maxgan.evaluation.neighbours import nearest
from maxgan.explore.common import open_extractor, open_subject, sheet, write_json
from maxgan.sampling import generate
from maxgan.truncation import told
from maxgan.writers import save_picture

QUANTILES = (0.0, 0.01, 0.1, 0.5, 0.9)


@dataclass(frozen=True)
class Neighbours:
    """The reals nearest to each of N samples.

    Attributes:
        distances: float64 `(N, k)`, ascending.
        indices: int64 `(N, k)`, of the reals.
        among_reals: float64 `(R,)`, of some reals to the nearest other real: what distances are usual.
    """

    distances: Tensor
    indices: Tensor
    among_reals: Tensor


def find_neighbours(fakes: Tensor, reals: Tensor, k: int) -> Neighbours:
    """Return the k reals `(M, D)` nearest to each of the fakes `(N, D)`, and compare with at most N of the reals.

    Raises:
        ValueError: for fewer than 2 reals, or fewer than k.
    """
    if len(reals) < 2:
        raise ValueError(f"there is {len(reals)} real image: neighbours need at least 2")
    distances, indices = nearest(fakes, reals, k)
    chosen = torch.from_numpy(np.linspace(0, len(reals) - 1, min(len(fakes), len(reals))).round().astype(np.int64))
    near, which = nearest(reals[chosen], reals, 2)
    # The nearest of the two that isn't the image itself; of two copies either may come first.
    other = (which != chosen[:, None]).int().argmax(1)
    return Neighbours(distances, indices, near.gather(1, other[:, None])[:, 0])


def show_neighbours(config: NeighboursConfig) -> str:
    """Write the picture and the distances; return a sentence that says what they tell.

    Raises:
        ValueError: if extractor or real images are missing or don't fit.
    """
    subject = open_subject(config)
    generator = subject.generator
    source = config.reference or str(subject.info.get("source", ""))
    extractor = open_extractor(config, subject)
    if not source or extractor is None:
        raise ValueError(
            f"there is no embedded extractor for {source or 'unknown images'}: name one with extractor, and the real "
            "images with reference"
        )
    dataset = ImageDataset(
        DataConfig(source=source, resolution=generator.resolution, channels=generator.channels, labels=False)
    )
    seeds = range(config.seed, config.seed + config.n)
    with tqdm(total=config.n + len(dataset), unit=" images", leave=False) as bar:
        batches = generate(generator, seeds, config.batch_size, subject.device, truncation=config.truncation)
        samples = torch.cat([batch.images for batch in batches])
        fakes = _features(samples.split(config.batch_size), extractor, bar)
        images = evaluation_batches(dataset, config.batch_size, range(len(dataset)))
        reals = _features((batch for batch, _ in images), extractor, bar)
    found = find_neighbours(fakes, reals, config.k)
    shown = found.distances[:, 0].argsort(stable=True)[: config.rows].tolist()
    rows, captions = [], []
    for row in shown:
        indices, distances = found.indices[row].tolist(), found.distances[row].tolist()
        rows.append([samples[row], *(torch.from_numpy(dataset.read(index)) for index in indices)])
        captions.append([f"seed {seeds[row]}", *(f"{distance:.3g}" for distance in distances)])
    output = subject.output(config, "neighbours.png")
    save_picture(sheet(rows, captions=captions, wide_after=1), output)
    ours, usual = (_quantiles(x) for x in (found.distances[:, 0], found.among_reals))
    values = {
        "generator": subject.name,
        "reference": source,
        "reals": len(dataset),
        "extractor": extractor.name,
        "extractor_digest": extractor.digest,
        "resize": extractor.resize,
        "truncation": told(generator, config.truncation),
        "samples": config.n,
        "quantiles": list(QUANTILES),
        "samples_to_nearest_real": ours,
        "reals_to_nearest_other_real": usual,
        "shown": [
            {
                "seed": seeds[row],
                "reals": [dataset.source.where(index) for index in found.indices[row].tolist()],
                "distances": found.distances[row].tolist(),
            }
            for row in shown
        ],
    }
    write_json(output.with_suffix(".json"), values)
    middle = QUANTILES.index(0.5)
    return (
        f"the {len(shown)} of {config.n} samples that are nearest to an image of {source} are in {output}; median "
        f"distance to the nearest in the features of {extractor.name}: {ours[middle]:.4g} of samples, "
        f"{usual[middle]:.4g} of one real to another"
    )


def _features(batches: Iterable[Tensor], extractor: ModuleExtractor, bar: tqdm) -> Tensor:
    """Return the features `(N, D)` of batches of images, on the CPU."""
    features = []
    for images in batches:
        features.append(extractor(images).features.cpu())
        bar.update(len(images))
    return torch.cat(features)


def _quantiles(distances: Tensor) -> list[float]:
    return torch.quantile(distances, torch.tensor(QUANTILES, dtype=distances.dtype)).tolist()
