"""Seeds to images: the same image for a seed whatever the batch size or number of processes."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
import yaml
from scipy.special import ndtr, ndtri
from torch import Tensor, nn

from maxgan.data.transforms import to_uint8
from maxgan.models.network import Network
from maxgan.truncation import truncated
from maxgan.writers import Batch, image_grid, write_images

__all__ = [
    "Batch",
    "Generator",
    "drawn_at_once",
    "generate",
    "image_grid",
    "latents_of",
    "load_generator",
    "newest_export",
    "parse_classes",
    "run_settings",
    "truncate",
    "write_images",
]

EXPORT_NAME = "generator.safetensors"
CONFIG = "config.yaml"
"""Files in the folder of a run."""


@runtime_checkable
class Generator(Protocol):
    """What sampling asks of a network."""

    @property
    def latent_dim(self) -> int: ...
    @property
    def num_classes(self) -> int: ...
    @property
    def resolution(self) -> int: ...
    @property
    def channels(self) -> int: ...
    def __call__(self, z: Tensor, labels: Tensor | None, /) -> Tensor:
        """Map z `(N, latent_dim)` and labels `(N,)` to images `(N, channels, H, W)`, nominally in [-1, 1]."""


def drawn_at_once(resolution: int, most: int) -> int:
    """Return how many images of a resolution in pixels fit memory at once: `most` up to 256 px, of larger ones fewer.

    At 1024 px the largest map of one image takes half a gigabyte.
    """
    return max(1, min(most, most * 256**2 // resolution**2))


def newest_export(runs: str | Path = "runs") -> Path:
    """Return the generator file that was written last in the folders of `runs`; ValueError if there is none."""
    files = sorted(Path(runs).glob(f"*/{EXPORT_NAME}"), key=lambda file: file.stat().st_mtime)
    if not files:
        raise ValueError(f"there is no {runs}/*/{EXPORT_NAME}: train a generator first, or name one with --model")
    return files[-1]


def run_settings(folder: Path, section: str, kind: type[Any]) -> dict[str, Any]:
    """Return those settings of a section of a run's config that are fields of the dataclass `kind`; none where the
    folder has no config that can be read."""
    try:
        stored = yaml.safe_load((folder / CONFIG).read_text())[section]
        return {field.name: stored[field.name] for field in dataclasses.fields(kind) if field.name in stored}
    except (OSError, ValueError, yaml.YAMLError, LookupError, TypeError):
        return {}


def load_generator(model: str | Path, device: str | torch.device = "cpu") -> Generator:
    """Load a generator, in channels_last memory and eval mode, from whatever `Network.from_pretrained` takes.

    Raises:
        ValueError: if there is none.
    """
    network = Network.from_pretrained(model, device=device)
    if not isinstance(network, Generator):
        raise ValueError(
            f"{model} holds a {type(network).__name__}, which is no generator: name another file with --model"
        )
    network.to(memory_format=torch.channels_last)
    return network


def latents_of(
    seeds: Sequence[int],
    latent_dim: int,
    num_classes: int,
    classes: Sequence[int] | None = None,
    class_weights: Sequence[float] | None = None,
    truncation: float | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Return z float32 `(N, latent_dim)` and labels int64 `(N,)` (None without classes), each from its own seed alone.

    Args:
        seeds: integers from 0 to 2**32 - 1; of larger ones PyTorch's generator takes the last 32 bits alone.
        classes: labels to use in turn: seed s takes `classes[s % len(classes)]`.
        class_weights: relative frequencies of the `num_classes` labels; unset: uniform.
        truncation: t > 0 draws z from the normal cut to [-t, t]; z moves continuously with t.

    Raises:
        ValueError: for values out of range.
    """
    _check_classes(num_classes, classes, class_weights)
    if truncation is not None and not truncation > 0:
        raise ValueError(f"truncation must be positive, not {truncation}")
    # In float64, so that the float32 values don't hang on the vector instructions of the machine.
    z = torch.empty(len(seeds), latent_dim, dtype=torch.float64)
    uniform = torch.empty(len(seeds), dtype=torch.float64)
    for i, seed in enumerate(seeds):
        if not 0 <= seed < 2**32:
            raise ValueError(f"seeds must be from 0 to 2**32 - 1, not {seed}")
        stream = torch.Generator().manual_seed(seed)
        torch.randn(latent_dim, generator=stream, out=z[i])
        torch.rand((), generator=stream, out=uniform[i])
    if truncation is not None:
        z = truncate(z, truncation)
    if not num_classes:
        return z.float(), None
    if classes is not None:
        return z.float(), torch.tensor([classes[seed % len(classes)] for seed in seeds], dtype=torch.int64)
    weights = torch.tensor(class_weights or [1.0] * num_classes, dtype=torch.float64)
    edges = weights.cumsum(0) / weights.sum()
    # The last edge may fall short of 1 by rounding; the last class of positive weight takes the rest.
    last = int(weights.nonzero().max())
    return z.float(), torch.searchsorted(edges, uniform, right=True).clamp(max=last)


def parse_classes(text: str | None) -> list[int] | None:
    """Return the integers of a text such as "3,5"; ValueError if it isn't one."""
    if text is None:
        return None
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f'classes must be numbers with commas between, such as "3,5", not {text!r}') from None


def truncate(z: Tensor, t: float) -> Tensor:
    """Map standard normal z (float64) to the standard normal cut to [-t, t], keeping the order: quantile to quantile.

    The lower half is mapped and the upper mirrored, since the distribution function loses its digits near 1. SciPy's
    functions, since torch.special.ndtr is 0 below -8.3.
    """
    tail = ndtr(-t)
    cut = torch.from_numpy(ndtri(tail + ndtr(-z.abs().numpy()) * (1 - 2 * tail)))
    return torch.copysign(cut, z).clamp(-t, t)


def _check_classes(num_classes: int, classes: Sequence[int] | None, weights: Sequence[float] | None) -> None:
    if not num_classes:
        if classes is not None or weights is not None:
            raise ValueError("this generator has no classes: leave classes out")
        return
    if classes is not None and weights is not None:
        raise ValueError("give classes or class_weights, not both")
    if classes is not None and (not classes or min(classes) < 0 or max(classes) >= num_classes):
        raise ValueError(f"classes must be from 0 to {num_classes - 1}, not {list(classes)}")
    if weights is not None and (len(weights) != num_classes or min(weights) < 0 or not sum(weights) > 0):
        raise ValueError(
            f"class_weights must be {num_classes} numbers of 0 or more, some positive, not {list(weights)}"
        )


def generate(
    generator: Generator,
    seeds: Sequence[int],
    batch_size: int,
    device: str | torch.device,
    classes: Sequence[int] | None = None,
    class_weights: Sequence[float] | None = None,
    truncation: float | None = None,
    quantise: bool = True,
    compiled: bool = False,
) -> Iterator[Batch]:
    """Yield the images of `seeds` in batches, the last one smaller.

    Args:
        generator: in eval mode, on `device`.
        classes, class_weights: see `latents_of`.
        truncation: towards the mean latent where the generator has a mapping (maxgan.truncation), else of z, see
            `latents_of`.
        quantise: False gives float images, clipped to [-1, 1], for protocols that score them so.
        compiled: run as compiled code (torch.compile), which takes a minute the first time in a process.

    Raises:
        ValueError: if the generator gives NaN or infinity.
    """
    assert not getattr(generator, "training", False), (
        "batch statistics would tie an image to its batch: call eval() first"
    )
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, not {batch_size}")
    network, cut = truncated(generator.fuse() if isinstance(generator, Network) else generator, truncation)
    if compiled and isinstance(network, nn.Module):
        network.compile(dynamic=False)  # another copy of the same network takes the code of the first
    for start in range(0, len(seeds), batch_size):
        chunk = seeds[start : start + batch_size]
        z, labels = latents_of(chunk, generator.latent_dim, generator.num_classes, classes, class_weights, cut)
        # Compiled code is for one size: the last batch is filled up.
        rows = torch.arange(batch_size if compiled else len(chunk)) % len(chunk)
        # Not around the yield: the mode would leak into the caller.
        with torch.inference_mode():
            images = network(z[rows].to(device), None if labels is None else labels[rows].to(device))[: len(chunk)]
            if not images.isfinite().all():
                raise ValueError(
                    f"the generator gives NaN or infinity for seeds {chunk[0]} to {chunk[-1]}: use another checkpoint"
                )
        yield Batch(chunk, (to_uint8(images) if quantise else images.float().clamp(-1, 1)).cpu().contiguous(), labels)
