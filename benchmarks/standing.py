"""Over how many samples a BatchNorm generator needs its standing statistics: Fréchet distance by each number.

    python train_gan.py --generator.norm batch --generator.norm_group 8 --ema.standing_images 0
    python benchmarks/standing.py runs/digits-.../generator.safetensors

The generator must have the averages of running statistics (`ema.standing_images 0`), which are the first row. The
second is by the statistics of each batch of samples, as the discriminator saw them in training.
"""

from __future__ import annotations

import argparse
import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from maxgan.cli import plain_errors
from maxgan.config import ScoreConfig
from maxgan.evaluation.evaluate import make_scorer
from maxgan.models.latent import LatentGenerator
from maxgan.runtime import start
from maxgan.sampling import load_generator
from maxgan.training.standing import with_standing_statistics


class ByBatch:
    """A generator that takes its statistics from each batch that it is given."""

    def __init__(self, generator: LatentGenerator) -> None:
        self.network = copy.deepcopy(generator).train()

    def __getattr__(self, name: str) -> Any:
        if name == "training":  # what is drawn here hangs on its batch on purpose
            raise AttributeError(name)
        return getattr(self.network, name)

    def __call__(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """Map z `(N, latent_dim)` and labels `(N,)` to images."""
        return self.network(z, labels)


def main() -> None:
    """Score one generator by every kind of statistics, and print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("generator", type=Path)
    parser.add_argument("--images", type=int, nargs="+", default=[64, 256, 1024, 4096], help="samples")
    parser.add_argument("--extractor", help="unset: that of the digits")
    parser.add_argument("--reference", help="unset: what the generator was trained on, all digits for digits")
    parser.add_argument("--n", type=int, default=1792, help="samples that are scored, a multiple of 128")
    parser.add_argument("--threads", type=int)
    options = parser.parse_args()
    if options.n < 128 or options.n % 128:
        raise ValueError(f"--n must be a multiple of 128, the batch that is scored at once, not {options.n}")
    accelerator = start(options.threads)
    generator = load_generator(options.generator, accelerator.device)
    if not isinstance(generator, LatentGenerator) or not any(
        isinstance(module, nn.BatchNorm2d) for module in generator.modules()
    ):
        raise ValueError(f"{options.generator} has no BatchNorm: train one with generator.norm batch")
    settings = ScoreConfig(extractor=options.extractor, reference=options.reference)
    scorer = make_scorer(settings, str(generator.info.get("source", "")), accelerator, generator)
    rows: dict[str, Any] = {"averages of running ones": generator, "of each batch": ByBatch(generator)}
    for images in options.images:
        counts = generator.info.get("class_counts")
        rows[f"standing, {images:,} samples"] = with_standing_statistics(generator, images, counts)
    print(f"| statistics | {scorer.protocol.name}: FD | precision | recall |\n| --- | --- | --- | --- |")
    for name, contestant in rows.items():
        metrics = scorer.score_generator(contestant, name, options.n).metrics
        print(f"| {name} | " + " | ".join(f"{metrics[key]:.3f}" for key in ("fd", "precision", "recall")) + " |")


if __name__ == "__main__":
    with plain_errors(), torch.no_grad():
        main()
