"""The real images nearest to samples: whether a generator has learned images by heart."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from maxgan.config import DataConfig, NeighboursConfig
from maxgan.data.loader import ImageDataset, evaluation_batches
from maxgan.evaluation.neighbours import nearest
from maxgan.evaluation.statistics import exact_device
from maxgan.explore.common import open_extractor, open_subject, sheet, write_json
from maxgan.sampling import generate, run_settings
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


def find_neighbours(
    fakes: Tensor, reals: Iterable[Tensor], k: int, some_reals: Tensor, places: Sequence[int]
) -> Neighbours:
    """Return the k reals nearest to each of the fakes, and the distances of some reals to the others.

    Args:
        fakes: features `(N, D)`.
        reals: features of all reals in parts `(M, D)`, few of them held at a time.
        k: reals to find, at most all.
        some_reals: features `(R, D)` of the reals at `places`.
        places: indices of those.
    """
    distances, indices = (x.cpu() for x in nearest(torch.cat([fakes, some_reals]), reals, max(k, 2)))
    near, which = distances[len(fakes) :, :2], indices[len(fakes) :, :2]
    # The nearest of the two that isn't the image itself; of two copies either may come first.
    other = (which != torch.tensor(places)[:, None]).int().argmax(1)
    among_reals = near.gather(1, other[:, None])[:, 0]
    return Neighbours(distances[: len(fakes), :k], indices[: len(fakes), :k], among_reals)


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
    # Cut, streamed and kept as they were trained on.
    own = {} if config.reference else run_settings(subject.run, "data", DataConfig)
    own = own if own.get("source") == source else {}
    size = {"resolution": generator.resolution, "channels": generator.channels}
    dataset = ImageDataset(DataConfig(**{**own, "source": source, **size, "labels": False}))
    if len(dataset) < max(config.k, 2):
        raise ValueError(
            f"{source} has {len(dataset)} images, and k = {config.k} needs at least {max(config.k, 2)}: lower k, or "
            "name more images with reference"
        )
    seeds = range(config.seed, config.seed + config.n)
    # As many reals as samples, evenly chosen, tell what distances are usual.
    places = np.linspace(0, len(dataset) - 1, min(config.n, len(dataset))).round().astype(int).tolist()
    with tqdm(total=config.n + len(places) + len(dataset), unit=" images", leave=False) as bar:

        def features(batches: Iterable[Tensor]) -> Iterator[Tensor]:
            for images in batches:
                yield extractor(images).features.to(exact_device(subject.device))
                bar.update(len(images))

        def reals(indices: Sequence[int]) -> Iterator[Tensor]:
            return features(images for images, _ in evaluation_batches(dataset, config.batch_size, indices))

        batches = generate(generator, seeds, config.batch_size, subject.device, truncation=config.truncation)
        samples = torch.cat([batch.images for batch in batches])
        fakes = torch.cat(list(features(samples.split(config.batch_size))))
        found = find_neighbours(fakes, reals(range(len(dataset))), config.k, torch.cat(list(reals(places))), places)
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


def _quantiles(distances: Tensor) -> list[float]:
    return torch.quantile(distances, torch.tensor(QUANTILES, dtype=distances.dtype)).tolist()
