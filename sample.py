"""Draw images from a trained generator: `sample.py --n 50000`, on one process or several (torchrun)."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from torch import Tensor
from tqdm import tqdm

from maxgan.checkpoint import together
from maxgan.cli import available_cores, fail, parse
from maxgan.files import atomic_path
from maxgan.sampling import EXPORT_NAME, generate, load_generator, newest_export
from maxgan.writers import Batch, image_grid, write_images


@dataclass(frozen=True)
class SampleConfig:
    """Draw images from a trained generator; without any argument, from that of the newest run."""

    n: int = 64
    """Number of images."""
    model: str | None = None
    """Generator: file, folder, or Hugging Face Hub repository; unset: runs/*/generator.safetensors written last."""
    output: str | None = None
    """Where the images go: a folder of PNGs, a .zip or an .npz; unset: samples/<run name>."""
    seed: int = 0
    """Seed of the first image; the others follow one by one. A seed always gives the same image."""
    classes: str | None = None
    """Classes to draw in turn, such as "3,5"; unset: all at random."""
    truncation: float | None = None
    """Draw the latents from a normal cut at this value: fewer oddities, less variety; unset: not cut."""
    batch_size: int = 64
    """Images at once on each process."""
    grid: str | None = None
    """PNG file for one picture of the first images."""
    grid_columns: int = 8
    """Columns, and at most as many rows, of that picture."""
    device: str | None = None
    """cpu, cuda, or such as cuda:1; unset: an accelerator if there is one. Several processes take one each."""
    overwrite: bool = False
    """Replace the samples that are there."""

    def __post_init__(self) -> None:
        for name, least in (("n", 1), ("seed", 0), ("batch_size", 1), ("grid_columns", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, not {getattr(self, name)}")
        if self.device is not None and self.device != "cpu" and not torch.accelerator.is_available():
            raise ValueError(f"device {self.device} is not available on this machine: use cpu")
        if self.grid is not None and Path(self.grid).suffix.lower() != ".png":
            raise ValueError(f"grid must be a .png file, not {self.grid}")


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line and sample; a user's mistake ends in one sentence."""
    config, _ = parse(SampleConfig, argv)
    state = PartialState(cpu=config.device == "cpu" or not torch.accelerator.is_available())
    try:
        sample(config, state)
    except (ValueError, OSError) as error:
        fail(str(error), code=1)
    finally:
        state.destroy_process_group()


def sample(config: SampleConfig, state: PartialState) -> None:
    """Draw and write the images of `config`, this process its share of them."""
    device = torch.device(config.device) if config.device and state.num_processes == 1 else state.device
    if device.type == "cpu":
        # Launchers export OMP_NUM_THREADS=1, which would leave a single process on one core.
        torch.set_num_threads(max(1, available_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))
    model = Path(config.model) if config.model is not None else newest_export()
    generator = load_generator(model, device)
    name = model.parent.name if model.name == EXPORT_NAME else model.stem
    output = Path(config.output) if config.output is not None else Path("samples") / name
    seeds = range(config.seed, config.seed + config.n)
    state.print(f"sampling {config.n} images of {generator.resolution} px from {model} to {output}")

    # Not split_between_processes: with fewer seeds than processes it gives the last one several times.
    share = seeds[slice(*(config.n * i // state.num_processes for i in (state.process_index, state.process_index + 1)))]
    batches = generate(
        generator, share, config.batch_size, device, parse_classes(config.classes), truncation=config.truncation
    )
    in_grid = seeds[: config.grid_columns**2] if config.grid is not None else seeds[:0]
    first: list[Tensor] = []
    write_images(watch(batches, config.n, state, in_grid, first), output, config.overwrite)
    if config.grid is not None:
        first = gather_object(first)
        with together():
            if state.is_main_process:
                with atomic_path(config.grid) as path:
                    image_grid(torch.cat(first), config.grid_columns).save(path)


def watch(
    batches: Iterator[Batch], n: int, state: PartialState, in_grid: range, first: list[Tensor]
) -> Iterator[Batch]:
    """Pass batches on, show the main process's progress for all, and keep images of the seeds `in_grid` in `first`."""
    with tqdm(total=n, unit=" images", disable=not state.is_main_process) as bar:
        for batch in batches:
            chosen = [seed in in_grid for seed in batch.seeds]
            if any(chosen):
                first.append(batch.images[torch.tensor(chosen)])
            yield batch
            bar.update(min(len(batch.seeds) * state.num_processes, n - bar.n))


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
