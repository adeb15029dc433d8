"""Draw images from a trained generator: `sample.py --n 50000`, on one process or several (torchrun)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor
from tqdm import tqdm

from maxgan.checkpoint import together
from maxgan.cli import parse, plain_errors
from maxgan.config import SampleConfig
from maxgan.runtime import share_of, start
from maxgan.sampling import EXPORT_NAME, generate, load_generator, newest_export
from maxgan.writers import Batch, image_grid, save_picture, write_images


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

    share = share_of(config.n, accelerator)
    batches = generate(
        generator,
        seeds[share.start : share.stop],
        config.batch_size,
        accelerator.device,
        parse_classes(config.classes),
        truncation=config.truncation,
    )
    in_grid = seeds[: config.grid_columns**2] if config.grid is not None else seeds[:0]
    first: list[Tensor] = []
    write_images(watch(batches, config.n, accelerator, in_grid, first), output, config.overwrite)
    accelerator.print(f"{config.n} images are in {output}")
    if config.grid is not None:
        first = gather_object(first)
        with together():
            if accelerator.is_main_process:
                save_picture(image_grid(torch.cat(first), config.grid_columns), config.grid)


def watch(
    batches: Iterator[Batch], n: int, accelerator: Accelerator, in_grid: range, first: list[Tensor]
) -> Iterator[Batch]:
    """Pass batches on, show the main process's progress for all, and keep images of the seeds `in_grid` in `first`."""
    with tqdm(total=n, unit=" images", disable=not accelerator.is_main_process) as bar:
        for batch in batches:
            chosen = [seed in in_grid for seed in batch.seeds]
            if any(chosen):
                first.append(batch.images[torch.tensor(chosen)])
            yield batch
            bar.update(min(len(batch.seeds) * accelerator.num_processes, n - bar.n))


def parse_classes(text: str | None) -> list[int] | None:
    """Return the integers of a text such as "3,5"; ValueError if it isn't one."""
    if text is None:
        return None
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f'classes must be numbers with commas between, such as "3,5", not {text!r}') from None


if __name__ == "__main__":
    main()
