"""What a training would be, without data or GPU: its networks, their memory, and how long it takes."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from maxgan.config import GanConfig, ImageFacts
from maxgan.data.loader import ImageDataset
from maxgan.models import MaxViTBlock
from maxgan.models.discriminator import ResidualBlock
from maxgan.models.residual_generator import UpBlock
from maxgan.nn.attention import RelativeAttention
from maxgan.nn.multi_query import MultiAxisAttention
from maxgan.training.cost import Cost, Kept
from maxgan.training.gan import GanTrainer


@dataclass(frozen=True)
class Gpu:
    """What an estimate needs of a GPU: peak arithmetic in TFLOP/s (dense), memory bandwidth in TB/s."""

    name: str
    float32: float
    half: float
    bandwidth: float


GPUS = (Gpu("A100", 19.5, 312, 2.0), Gpu("H100", 67, 989, 3.35), Gpu("H200", 67, 989, 4.8))
OF_PEAK, OF_BANDWIDTH = 0.4, 0.8
"""What training reaches of both: an assumption, not a measurement."""


class HalfPrecision(TorchFunctionMode):
    """Autocast for `meta` tensors, which torch has none for: types as autocast on a GPU gives them."""

    HALF = (F.conv2d, F.conv_transpose2d, F.linear, torch.matmul, Tensor.matmul, Tensor.__matmul__)

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # D's last layer stays out of autocast.
        if func in self.HALF and not (func is F.linear and len(args[1]) == 1):
            args = [a.to(self.dtype) if isinstance(a, Tensor) and a.is_floating_point() else a for a in args]
        return func(*args, **(kwargs or {}))


class MetaAccelerator:
    """Stands in for accelerate's Accelerator in a training on `meta`, alone and without loss scale."""

    device = torch.device("meta")
    scaler = None
    process_index, num_processes = 0, 1

    def __init__(self, precision: str) -> None:
        self.dtype = {"no": None, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]

    def autocast(self) -> AbstractContextManager[Any]:
        """Return a context of mixed precision."""
        return nullcontext() if self.dtype is None else HalfPrecision(self.dtype)

    def prepare(self, *objects: Any) -> tuple[Any, ...]:
        """Let networks run in mixed precision."""
        for network in objects:
            if isinstance(network, nn.Module):
                network.forward = self._in_autocast(network.forward)
        return objects

    def _in_autocast(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any) -> Any:
            with self.autocast():
                return forward(*args)

        return run

    def backward(self, loss: Tensor) -> None:
        """Run the backward pass."""
        loss.backward()

    def no_sync(self, network: nn.Module) -> AbstractContextManager[Any]:
        """Return an empty context: there is nobody to exchange gradients with."""
        return nullcontext()


def facts_of(config: GanConfig) -> ImageFacts:
    """Return what the networks must know of the images: from the settings if they give the resolution, else from them.

    Raises:
        ValueError: if neither is there, or `dry_classes` contradicts the settings.
    """
    data = config.data
    if config.dry_classes and (data.resolution is None or not data.labels):
        raise ValueError(
            f"dry_classes {config.dry_classes} is for labels of data that is not looked at: set data.resolution, and "
            "data.labels true"
        )
    if data.resolution is not None:
        return ImageFacts(data.resolution, data.channels or 3, config.dry_classes)
    try:
        return ImageDataset(data).facts
    except (ValueError, OSError) as error:
        raise ValueError(f"{error}; a dry run needs no data where data.resolution is set") from error


@dataclass
class Row:
    """One part of a network.

    Attributes:
        side: of the map that it gives, in pixels; None for vectors.
        width: channels that it gives.
        blocks: number of its blocks.
        window: side of the windows and grids of its attention.
        multiply_adds: of a forward pass of one image.
    """

    name: str
    side: int | None = None
    width: int | None = None
    blocks: int | None = None
    window: int | None = None
    parameters: int = 0
    multiply_adds: int = 0


def rows_of(network: nn.Module, *inputs: Tensor | None) -> list[Row]:
    """Return a row for each part of a network on `meta` in the order in which they run, and one for the whole.

    Parts are its children, and the members of those that are lists, dicts or sequences of modules.
    """
    rows: list[Row] = []
    hooks: list[Any] = []
    cost = Cost()

    def watch(name: str, module: nn.Module) -> None:
        row = Row(name, blocks=_blocks(module), window=_window(module), parameters=_count(module))

        def before(*_: Any) -> None:
            row.multiply_adds -= cost.multiply_adds

        def after(_: nn.Module, __: Any, out: Tensor) -> None:
            row.multiply_adds += cost.multiply_adds
            row.side = out.shape[-1] if out.ndim == 4 else None
            row.width = out.shape[1]
            rows.append(row)

        hooks.extend((module.register_forward_pre_hook(before), module.register_forward_hook(after)))

    for name, child in network.named_children():
        if isinstance(child, nn.ModuleList | nn.ModuleDict | nn.Sequential):
            for member_name, member in child.named_children():
                watch(f"{name}.{member_name}", member)
        else:
            watch(name, child)
    with cost, torch.no_grad():
        network(*inputs)
    for hook in hooks:
        hook.remove()
    total = Row("all", parameters=_count(network), multiply_adds=cost.multiply_adds)
    rest = Row(
        "other",
        parameters=total.parameters - sum(row.parameters for row in rows),
        multiply_adds=total.multiply_adds - sum(row.multiply_adds for row in rows),
    )
    return [row for row in (*rows, rest) if row.parameters or row.multiply_adds] + [total]


def _count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def _blocks(part: nn.Module) -> int | None:
    """Return the number of blocks of a part: those that a generator's stage lists, or all of the known kinds."""
    if isinstance(blocks := getattr(part, "blocks", None), nn.Sequential):
        return len(blocks)
    return sum(isinstance(module, MaxViTBlock | ResidualBlock | UpBlock) for module in part.modules()) or None


def _window(part: nn.Module) -> int | None:
    """Return the side of the windows of the first self-attention in a part."""
    for module in part.modules():
        if isinstance(module, RelativeAttention):
            return module.size
        if isinstance(module, MultiAxisAttention):
            return module.patch_size
    return None


class DryRun:
    """The networks of a training on `meta`, and what one update costs there.

    Args:
        config: the settings.

    Attributes:
        facts: of the images.
        generator, discriminator: rows of their tables.
        images: of one micro-batch, on one process.
        memory: bytes by what they are for.

    Raises:
        ValueError: for settings that don't fit.
    """

    def __init__(self, config: GanConfig) -> None:
        self.config = config
        self.facts = facts_of(config)
        training = config.training
        accelerator = MetaAccelerator(training.precision)
        with torch.device("meta"):
            trainer = GanTrainer(config, self.facts, cast(Any, accelerator))
        networks = (trainer.generator, trainer.discriminator)
        self.images = training.batch_size // training.accumulation
        shape = (self.facts.channels, self.facts.resolution, self.facts.resolution)
        reals = torch.empty(self.images, *shape, device="meta").contiguous(memory_format=torch.channels_last)
        labels = torch.empty(self.images, dtype=torch.int64, device="meta") if self.facts.num_classes else None
        one = None if labels is None else labels[:1]
        # In eval mode: batch statistics need groups of images.
        for network in networks:
            network.eval()
        self.generator = rows_of(trainer.generator, torch.empty(1, trainer.latent_dim, device="meta"), one)
        self.discriminator = rows_of(trainer.discriminator, reals[:1], one)
        for network in networks:
            network.train()

        parameters = [parameter for network in networks for parameter in network.parameters()]
        interval = config.loss.penalty_interval
        self._costs: list[tuple[Cost, float]] = []
        kept = Kept(parameters)
        # Half-way, where no schedule is at an end: a penalty whose weight starts at 0 would cost nothing before.
        middle = training.images // training.batch_size // 2 // interval * interval
        for update, share in ((middle, 1 / interval), (middle + 1, 1 - 1 / interval)):
            if share:
                trainer.images_seen = update * training.batch_size
                with Cost() as cost, kept:
                    trainer.update_networks([(reals, labels)] * training.accumulation)
                self._costs.append((cost, share))
        weights = sum(parameter.nbytes for parameter in parameters)
        self.memory = {
            "weights": weights,
            "gradients, of one network at a time": max(
                sum(parameter.nbytes for parameter in network.parameters()) for network in networks
            ),
            "Adam's moments": 2 * weights,
            "moving average": sum(
                tensor.nbytes
                for average in (trainer.ema, *trainer.averages.values())
                for tensor in average.state_dict().values()
            ),
            "activations": kept.peak,
        }

    @property
    def flops(self) -> float:
        """Operations of one update, the mean over those with and without lazy penalties; two a multiply-add."""
        return sum(2 * cost.multiply_adds * share for cost, share in self._costs)

    def seconds(self, gpu: Gpu) -> float:
        """Return the time of one update on one GPU, each operation at OF_PEAK of the GPU's arithmetic or at
        OF_BANDWIDTH of its bandwidth, whichever is slower."""
        peak = gpu.float32 if self.config.training.precision == "no" else gpu.half
        rate = OF_PEAK * peak * 1e12 / 2
        return sum(cost.seconds(rate, OF_BANDWIDTH * gpu.bandwidth * 1e12) * share for cost, share in self._costs)


def describe(config: GanConfig) -> str:
    """Return the report of a dry run: tables of both networks, memory, and time.

    Raises:
        ValueError: for settings that don't fit.
    """
    run = DryRun(config)
    facts, training = run.facts, config.training
    updates = training.images / training.batch_size
    total = sum(run.memory.values())
    lines = [
        f"images of {facts.resolution} x {facts.resolution} x {facts.channels}, {facts.num_classes or 'no'} classes",
        "",
        *_table("generator", run.generator),
        "",
        *_table("discriminator", run.discriminator),
        "",
        f"GB of memory on one process, with micro-batches of {run.images} images",
        *(f"  {name:<36} {size / 1e9:>10.3f}" for name, size in {**run.memory, "all": total}.items()),
        f"  activations are {run.memory['activations'] / run.images / 1e9:.3f} GB an image: more processes, or more "
        "training.accumulation, make micro-batches smaller",
        "",
        f"{run.flops / 1e12:.3f} TFLOP an update of {training.batch_size} images, {updates:,.0f} updates",
    ]
    for gpu in GPUS:
        seconds = run.seconds(gpu)
        hours = seconds * updates / 3600
        lines.append(
            f"  {gpu.name}: {training.batch_size / seconds:,.0f} images/s; {_short(hours / 24)} GPU-days: "
            f"{_short(hours)} hours on one, {_short(hours / 8)} on eight"
        )
    kind = "float32" if training.precision == "no" else training.precision
    lines.append(
        f"  an estimate: each operation at {OF_PEAK:.0%} of the GPU's {kind} peak or {OF_BANDWIDTH:.0%} of its memory "
        "bandwidth, whichever is slower; nothing compiled"
    )
    return "\n".join(lines)


def _short(number: float) -> str:
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def _table(title: str, rows: list[Row]) -> list[str]:
    names = ("map", "width", "blocks", "window")
    lines = [f"{title:<20}" + "".join(f"{name:>8}" for name in names) + f"{'parameters':>14}{'multiply-adds':>18}"]
    for row in rows:
        cells = (f"{value or '':>8}" for value in (row.side, row.width, row.blocks, row.window))
        lines.append(f"  {row.name:<18}{''.join(cells)}{row.parameters:>14,}{row.multiply_adds:>18,}")
    return lines
