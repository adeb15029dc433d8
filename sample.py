"""Draw images from a trained generator: `sample.py --n 50000`, on one process or several (torchrun); --reference scores
them in the same pass."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn
from tqdm import tqdm

from maxgan.checkpoint import together
from maxgan.cli import parse, plain_errors
from maxgan.config import SampleConfig
from maxgan.evaluation.evaluate import make_scorer, report
from maxgan.evaluation.features import Collector
from maxgan.evaluation.published import weights_digest
from maxgan.runtime import share_of, start
from maxgan.sampling import EXPORT_NAME, generate, load_generator, newest_export, parse_classes
from maxgan.truncation import told
from maxgan.writers import Batch, check_output, image_grid, save_picture, write_images


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line and sample; a user's mistake ends in one sentence."""
    config, _ = parse(SampleConfig, argv)
    accelerator = start(config.threads, cpu=config.cpu)
    with plain_errors():
        sample(config, accelerator)
    # Not after an unexpected error: with NCCL it would wait for processes that still work.
    accelerator.end_training()


def sample(config: SampleConfig, accelerator: Accelerator) -> None:
    """Draw and write the images of `config`, this process its share of them."""
    model = Path(config.model) if config.model is not None else newest_export()
    generator = load_generator(model, accelerator.device)
    name = model.parent.name if model.name == EXPORT_NAME else model.stem
    output = Path(config.output) if config.output is not None else Path("samples") / name
    seeds = range(config.seed, config.seed + config.n)
    accelerator.print(f"sampling {config.n} images of {generator.resolution} px from {model} to {output}")

    # The reference may take hours before the first image is drawn.
    with together():
        if accelerator.is_main_process:
            check_output(output, config.overwrite)
            if config.scores is not None and Path(config.scores).is_dir():
                raise ValueError(f"scores {config.scores} is a folder: name a .json file in it")
    scorer, classes = None, parse_classes(config.classes)
    if config.reference is not None:
        source = str(getattr(generator, "info", {}).get("source", ""))
        scorer = make_scorer(config, source, accelerator, generator, batch_size=config.batch_size)
        if scorer.protocol.quantisation != "uint8":
            raise ValueError(f"protocol {scorer.protocol.name} scores images that no file holds: use evaluate.py")
        if classes is None and (matched := scorer.classes(generator, config.n)) is not None:
            classes = list(np.roll(matched, config.seed % config.n))
    share = share_of(config.n, accelerator)
    batches = generate(
        generator,
        seeds[share.start : share.stop],
        config.batch_size,
        accelerator.device,
        classes,
        truncation=config.truncation,
    )
    collector: Collector | None = None
    if scorer is not None:
        with scorer.showing("reference"):
            collector = scorer.collector(str(model), config.n)
    in_grid = seeds[: config.grid_columns**2] if config.grid is not None else seeds[:0]
    first: list[Tensor] = []
    write_images(watch(batches, config.n, accelerator, in_grid, first, collector), output, config.overwrite)
    accelerator.print(f"{config.n} images are in {output}")
    if config.grid is not None:
        first = gather_object(first)
        with together():
            if accelerator.is_main_process:
                save_picture(image_grid(torch.cat(first), config.grid_columns), config.grid)
    if scorer is not None and collector is not None:
        assert isinstance(generator, nn.Module)
        drawn = "uniform" if classes is None else "as the reference" if config.classes is None else config.classes
        sampling = {"seed": config.seed, "truncation": told(generator, config.truncation), "labels": drawn}
        report(scorer.score(collector, weights_digest(generator), sampling), config.scores, accelerator)


def watch(
    batches: Iterator[Batch],
    n: int,
    accelerator: Accelerator,
    in_grid: range,
    first: list[Tensor],
    collector: Collector | None,
) -> Iterator[Batch]:
    """Pass batches on, and to the collector; show the main process's progress for all, and keep images of the seeds
    `in_grid` in `first`."""
    with tqdm(total=n, unit=" images", disable=not accelerator.is_main_process) as bar:
        for batch in batches:
            chosen = [seed in in_grid for seed in batch.seeds]
            if any(chosen):
                first.append(batch.images[torch.tensor(chosen)])
            if collector is not None:
                collector.add(batch.images, batch.labels)
            yield batch
            bar.update(min(len(batch.seeds) * accelerator.num_processes, n - bar.n))


if __name__ == "__main__":
    main()
