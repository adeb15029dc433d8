"""Speed of our MaxViT beside timm's and torchvision's: images a second, in turn in one run.

    python benchmarks/backbone.py --size tiny --resolution 224 --batch 4 --threads 2 --rounds 5
    python benchmarks/backbone.py --device cuda --batch 128 --precision bf16 --output backbone.json

Every round measures all models one after the other, each time beginning with another one, and a large matrix product;
what is reported are medians over the rounds. `ratio` is the median over the rounds of a model's speed to that of the
faster of timm and torchvision in the same round, eager to eager and compiled to compiled, so that a machine whose speed
drifts doesn't change it. `of matmul` is the share of the matrix product's arithmetic rate: multiply-adds of
convolutions, linear layers and attention products at two operations each, a training step counted as three forwards.

`maxgan fused` is our model after `fuse()`, for inference alone. Weights are random, stochastic depth is off, and all
maps are channels_last (`--peer_formats` measures timm and torchvision in plain memory too, and compares with the
fastest). A training step is forward, cross-entropy, backward and AdamW. Inductor's freezing for compiled forwards:
TORCHINDUCTOR_FREEZING=1 in the environment, for all models alike.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import os
import statistics
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import timm
import torch
import torch.nn.functional as F
import torchvision
from timing import Contestant, environment, matrix_product, measure, write_report
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from maxgan.models import MaxViT
from maxgan.models.backbone import SIZES

OURS, FUSED = "maxgan", "maxgan fused"
CLASSES = 1000
FORMATS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}


def make_ours(size: str, resolution: int) -> nn.Module:
    """Return our model."""
    return MaxViT.from_name(size, resolution, CLASSES)


def make_timm(size: str, resolution: int) -> nn.Module:
    """Return timm's port of the official model."""
    return timm.create_model(f"maxvit_{size}_tf_224", img_size=resolution, num_classes=CLASSES)


def make_torchvision(size: str, resolution: int) -> nn.Module:
    """Return torchvision's model, at the paper's sizes: it ships only the tiny one ready made."""
    config = SIZES[size]
    return torchvision.models.maxvit.MaxVit(
        input_size=(resolution, resolution),
        stem_channels=config.stem_width,
        partition_size=resolution // 32,
        block_channels=list(config.widths),
        block_layers=list(config.depths),
        head_dim=config.head_dim,
        stochastic_depth_prob=0.0,
        num_classes=CLASSES,
    )


MAKERS: dict[str, Callable[[str, int], nn.Module]] = {
    OURS: make_ours,
    "timm": make_timm,
    "torchvision": make_torchvision,
}


def forward_pass(model: nn.Module, images: Tensor, autocast: Callable[[], AbstractContextManager]) -> Callable:
    """Return a function that classifies the images."""

    def run() -> None:
        with torch.no_grad(), autocast():
            model(images)

    return run


def training_step(model: nn.Module, images: Tensor, autocast: Callable[[], AbstractContextManager]) -> Callable:
    """Return a function that makes one update."""
    labels = torch.arange(len(images), device=images.device) % CLASSES
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4)

    def run() -> None:
        with autocast():
            loss = F.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return run


def multiply_adds(name: str, size: str, resolution: int) -> float:
    """Return those of the forward pass of one image, counted on a model without data."""
    with torch.device("meta"):
        model = MAKERS[name](size, resolution).eval()
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(torch.empty(1, 3, resolution, resolution))
    return counter.get_total_flops() / 2


def compare(
    arguments: argparse.Namespace, models: dict[str, nn.Module], mode: str, precision: str, execution: str
) -> list[dict[str, Any]]:
    """Measure all models in one setting; return a row for each, and one for the matrix product."""
    device = torch.device(arguments.device)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32

    def autocast() -> AbstractContextManager:
        return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")

    images = torch.randn(arguments.batch, 3, arguments.resolution, arguments.resolution, device=device)
    contestants = []
    for name, model in models.items():
        if mode == "train" and name == FUSED:
            continue
        memory = FORMATS["contiguous" if name.endswith("contiguous") else "channels_last"]
        # A copy, as training moves the weights, and each setting is to begin with the same.
        twin = copy.deepcopy(model).train(mode == "train")
        runner: Any = torch.compile(twin) if execution == "compiled" else twin
        make = training_step if mode == "train" else forward_pass
        contestants.append(
            Contestant(name, make(runner, images.contiguous(memory_format=memory), autocast), arguments.batch)
        )
    product = matrix_product(device, dtype)
    measure([*contestants, product], arguments.rounds, arguments.seconds, device)
    torch.compiler.reset()

    peak = statistics.median(product.rates)
    peers = [c.rates for c in contestants if c.name.split()[0] != OURS]
    rows = []
    for contestant in contestants:
        row = {
            "mode": mode,
            "precision": precision,
            "execution": execution,
            "model": contestant.name,
            "images_per_second": statistics.median(contestant.rates),
            "rounds": contestant.rates,
        }
        if peers:
            fastest = [max(rates) for rates in zip(*peers, strict=True)]
            row["ratio"] = statistics.median(a / b for a, b in zip(contestant.rates, fastest, strict=True))
        operations = 2 * arguments.multiply_adds[contestant.name.split()[0]] * (3 if mode == "train" else 1)
        row["of_matmul"] = row["images_per_second"] * operations / peak
        row["matmul_gflops"] = peak / 1e9
        rows.append(row)
    return rows


def show(rows: list[dict[str, Any]]) -> None:
    """Print a table of one setting."""
    first = rows[0]
    print(
        f"\n{first['mode']}, {first['precision']}, {first['execution']}; "
        f"matrix product {first['matmul_gflops']:,.0f} GFLOP/s\n"
        f"  {'model':<24} {'img/s':>10} {'slowest to fastest':>22} {'ratio':>7} {'of matmul':>10}"
    )
    for row in rows:
        spread = f"{min(row['rounds']):.2f} to {max(row['rounds']):.2f}"
        ratio = f"{row['ratio']:.2f}" if "ratio" in row else "-"
        speed, share = row["images_per_second"], row["of_matmul"]
        print(f"  {row['model']:<24} {speed:>10.2f} {spread:>22} {ratio:>7} {share:>10.1%}", flush=True)


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=list(SIZES), default="tiny")
    parser.add_argument("--resolution", type=int, default=224, help="a multiple of 32")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="shortest time of one measurement")
    parser.add_argument("--models", nargs="+", choices=list(MAKERS), default=list(MAKERS))
    parser.add_argument("--modes", nargs="+", choices=["forward", "train"], default=["forward", "train"])
    parser.add_argument("--precision", nargs="+", choices=["fp32", "bf16"], default=["fp32", "bf16"])
    parser.add_argument("--execution", nargs="+", choices=["eager", "compiled"], default=["eager", "compiled"])
    parser.add_argument(
        "--peer_formats", nargs="+", choices=list(FORMATS), default=["channels_last"],
        help="memory format of timm's and torchvision's maps",
    )  # fmt: skip
    parser.add_argument("--output", help="JSON file for the figures of every round; unset: printed")
    arguments = parser.parse_args()
    if arguments.resolution < 64 or arguments.resolution % 32:
        parser.error(f"--resolution must be a multiple of 32 and at least 64, not {arguments.resolution}")
    if min(arguments.batch, arguments.threads, arguments.rounds) < 1:
        parser.error("--batch, --threads and --rounds must be at least 1")
    return arguments


def main() -> None:
    """Measure every setting that is asked for."""
    arguments = parse()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    arguments.multiply_adds = {
        name: multiply_adds(name, arguments.size, arguments.resolution) for name in arguments.models
    }
    models: dict[str, nn.Module] = {}
    for name in arguments.models:
        model = MAKERS[name](arguments.size, arguments.resolution).to(arguments.device)
        for memory in ["channels_last"] if name == OURS else arguments.peer_formats:
            label = name if memory == "channels_last" else f"{name} contiguous"
            models[label] = copy.deepcopy(model).to(memory_format=FORMATS[memory])
            if isinstance(model, MaxViT):
                models[FUSED] = model.to(memory_format=torch.channels_last).fuse()
    tables: list[list[dict[str, Any]]] = []
    for setting in itertools.product(arguments.modes, arguments.precision, arguments.execution):
        tables.append(compare(arguments, models, *setting))
        show(tables[-1])
    report = {
        "environment": {
            **environment(torch.device(arguments.device)),
            "timm": timm.__version__,
            "torchvision": torchvision.__version__,
            "freezing": os.environ.get("TORCHINDUCTOR_FREEZING") == "1",
        },
        "settings": vars(arguments),
        "rows": [row for table in tables for row in table],
    }
    write_report(report, arguments.output)


if __name__ == "__main__":
    main()
