"""Speed of a full step of GAN training (D with its penalties, G, both Adams, moving average) by recipe and resolution.

    python benchmarks/gan_step.py --narrow 8 --resolutions 32 --batch 8 --rounds 3        (a CPU: about a minute)
    python benchmarks/gan_step.py --device cuda --precision bf16 --resolutions 32 64 128 --batch 32 --output step.json

What each way of running a recipe gains, on a GPU and on a CPU:

    python benchmarks/gan_step.py --device cuda --recipes cifar10 --resolutions 32 --batch 64 \
        --precision fp32 tf32 bf16 --ways plain fused inductor cudagraphs
    python benchmarks/gan_step.py --recipes digits --resolutions 16 --batch 32 --ways plain fused inductor --threads 1

Every round measures all recipes at all resolutions, in all precisions and ways, one after the other, each time
beginning with another one, with a large matrix product in the first precision and a large copy; what is reported are
medians over the rounds. `ratio` is the median over the rounds of a speed to that of the first recipe, precision and way
at the same resolution: by default MaxViT-GAN against HiT. On one thread of a CPU the time is that of the process, since
other work may run beside it.

Ways: `fused` is the training as it is by default, `plain` has an Adam of single operations, `inductor` and `cudagraphs`
are values of run.compile. Compiling takes minutes, on a CPU many.

The floor of a step is max(operations / rate of the matrix product, bytes / rate of the copy). Operations are those of
convolutions and matrix products, two a multiply-add. Bytes are counted in two ways, while a step runs: `of floor` takes
every operation as it is, its tensors read and written once; `of fused` convolutions and matrix products alone, what
would be left if all others were fused into them. Both are shares of the speed that a floor allows.

Images are noise that lies in memory. fp32 switches TF32 off, tf32 on, for convolutions and matrix products alike.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from timing import Contestant, copy, environment, matrix_product, measure, write_report

from maxgan.cli import parse as parse_config
from maxgan.config import GanConfig, ImageFacts
from maxgan.models.hit import plan_stages
from maxgan.runtime import start
from maxgan.training.cost import Cost
from maxgan.training.gan import GanTrainer

CONFIGS = Path(__file__).parents[1] / "configs"
CLASSES = 10


def recipe_at(name: str, resolution: int, arguments: argparse.Namespace) -> GanConfig:
    """Return a recipe at another resolution and batch, its widths divided by `--narrow`."""
    path = Path(name) if name.endswith(".yaml") else CONFIGS / f"{name}.yaml"
    config, _ = parse_config(GanConfig, [f"--config={path}"])
    training = replace(config.training, batch_size=arguments.batch, accumulation=1)
    config = replace(config, data=replace(config.data, resolution=resolution), training=training)
    by = arguments.narrow
    if by == 1:
        return config
    # The sections of the networks that a recipe doesn't choose must stay as they are.
    if config.networks.generator == "hit":
        widths = tuple(plan.width // by for plan in plan_stages(resolution, config.hit))
        config = replace(config, hit=replace(config.hit, widths=widths))
    else:
        head_dim = max(1, config.generator.head_dim // by)
        width = config.generator.width // by
        config = replace(config, generator=replace(config.generator, width=width, head_dim=head_dim))
    if config.networks.discriminator == "maxvit":
        chosen = config.maxvit_discriminator
        head_dim = max(1, chosen.head_dim // by)
        return replace(config, maxvit_discriminator=replace(chosen, width=chosen.width // by, head_dim=head_dim))
    chosen = config.discriminator
    multiplier, most = chosen.channel_multiplier / by, chosen.max_width // by
    return replace(config, discriminator=replace(chosen, channel_multiplier=multiplier, max_width=most))


def accelerator_of(precision: str, arguments: argparse.Namespace) -> Accelerator:
    """Return an Accelerator; those without autocast that were made before stay so."""
    AcceleratorState._reset_state()
    return start(arguments.threads, "bf16" if precision == "bf16" else "no", cpu=arguments.device == "cpu")


def contestant_of(name: str, resolution: int, precision: str, way: str, arguments: argparse.Namespace) -> Contestant:
    """Return the step of a recipe in one precision and way."""
    config = recipe_at(name, resolution, arguments)
    if way in ("inductor", "cudagraphs"):
        config = replace(config, run=replace(config.run, compile=way))
    channels = 1 if config.data.source.startswith("digits") else 3
    facts = ImageFacts(resolution, channels, CLASSES if config.data.labels else 0)
    trainer = GanTrainer(config, facts, accelerator_of(precision, arguments))
    if way == "plain":
        for optimizer in (trainer.optimizer_g, trainer.optimizer_d):
            for group in optimizer.param_groups:
                group["fused"] = None
    images = torch.randint(0, 256, (arguments.batch, channels, resolution, resolution), dtype=torch.uint8)
    batches = itertools.repeat((images, torch.arange(arguments.batch) % CLASSES))

    def step() -> None:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "tf32"
        trainer.step(batches)

    return Contestant(f"{name} {resolution} {precision} {way}", step, arguments.batch)


def weigh(contestant: Contestant, device: torch.device) -> dict[str, float]:
    """Run a few steps; return the operations and bytes of one as it is written, and on CUDA the most memory."""
    contestant.run()  # compiles
    memory = 0
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        contestant.run()
        memory = torch.cuda.max_memory_allocated(device)
    eager = "inductor" in contestant.name or "cudagraphs" in contestant.name
    with torch.compiler.set_stance("force_eager") if eager else nullcontext(), Cost() as cost:
        contestant.run()
    return {
        "operations": 2 * cost.multiply_adds,
        "bytes": cost.traffic(),
        "bytes_fused": cost.traffic(products_only=True),
        "memory": memory,
    }


def profile(contestant: Contestant, device: torch.device) -> str:
    """Return the table of the operations that take the most time of a step."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profiler:
        contestant.run()
    key = "self_cuda_time_total" if device.type == "cuda" else "self_cpu_time_total"
    return profiler.key_averages().table(sort_by=key, row_limit=20, max_name_column_width=50)


def rows_of(contestants: list[Contestant], costs: list[dict[str, float]], rate: float, bandwidth: float) -> list[Any]:
    """Return a row for each step."""
    first: dict[str, Contestant] = {}
    rows = []
    for contestant, cost in zip(contestants, costs, strict=True):
        recipe, resolution, precision, way = contestant.name.split()
        base = first.setdefault(resolution, contestant)
        speed = statistics.median(contestant.rates)
        floors = (max(cost["operations"] / rate, cost[name] / bandwidth) for name in ("bytes", "bytes_fused"))
        of_floor, of_fused = (floor * speed / contestant.work for floor in floors)
        rows.append(
            {
                "recipe": recipe,
                "resolution": int(resolution),
                "precision": precision,
                "way": way,
                "images_per_second": speed,
                "rounds": contestant.rates,
                "ratio": statistics.median(a / b for a, b in zip(contestant.rates, base.rates, strict=True)),
                **{name: value if name == "memory" else value / contestant.work for name, value in cost.items()},
                "of_floor": of_floor,
                "of_fused": of_fused,
            }
        )
    return rows


def show(rows: list[dict[str, Any]], rate: float, bandwidth: float) -> None:
    """Print the table."""
    print(
        f"\nmatrix product {rate / 1e9:,.0f} GFLOP/s, copy {bandwidth / 1e9:,.1f} GB/s; of one image: GFLOP, MB\n"
        f"{'recipe':<28} {'px':>4} {'in':>4} {'way':>10} {'img/s':>9} {'slowest to fastest':>20} "
        f"{'ratio':>6} {'GFLOP':>8} {'MB':>8} {'fused':>8} {'of floor':>8} {'of fused':>8} {'memory GB':>9}"
    )
    for row in rows:
        spread = f"{min(row['rounds']):.2f} to {max(row['rounds']):.2f}"
        print(
            f"{row['recipe']:<28} {row['resolution']:>4} {row['precision']:>4} {row['way']:>10} "
            f"{row['images_per_second']:>9.2f} {spread:>20} {row['ratio']:>6.2f} "
            f"{row['operations'] / 1e9:>8.2f} {row['bytes'] / 1e6:>8.1f} {row['bytes_fused'] / 1e6:>8.1f} "
            f"{row['of_floor']:>8.1%} {row['of_fused']:>8.1%} "
            f"{row['memory'] / 1e9:>9.2f}",
            flush=True,
        )


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--recipes", nargs="+", default=["imagenet128_paper", "imagenet128_hit"],
        help="names of configs/, or YAML files; ratios are to the first",
    )  # fmt: skip
    parser.add_argument("--resolutions", nargs="+", type=int, default=[128])
    parser.add_argument("--batch", type=int, default=8, help="a multiple of the recipes' norm_group")
    parser.add_argument("--narrow", type=int, default=1, help="divide all widths by this: 1, 2, 4 or 8")
    parser.add_argument("--precision", nargs="+", choices=["fp32", "tf32", "bf16"], default=["fp32"])
    parser.add_argument(
        "--ways", nargs="+", choices=["plain", "fused", "inductor", "cudagraphs"], default=["fused"],
        help="how each is run, see above",
    )  # fmt: skip
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=int, help="CPU threads; unset: the cores at hand")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="shortest time of one measurement")
    parser.add_argument("--profile", action="store_true", help="print where the time of each step goes")
    parser.add_argument("--output", help="JSON file for the figures of every round")
    arguments = parser.parse_args(argv)
    if min(arguments.batch, arguments.rounds, arguments.narrow) < 1:
        parser.error("--batch, --rounds and --narrow must be at least 1")
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: there is no CUDA device")
    return arguments


def main(argv: list[str] | None = None) -> None:
    """Measure all that is asked for."""
    arguments = parse(argv)
    device = accelerator_of(arguments.precision[0], arguments).device
    # Each contestant compiles networks of its own, from the same code.
    torch._dynamo.config.recompile_limit = torch._dynamo.config.accumulated_recompile_limit = 1000
    contestants = [
        contestant_of(name, resolution, precision, way, arguments)
        # An Accelerator of bf16 reads its precision where all that come after it write theirs: it is the last.
        for precision in sorted(arguments.precision, key=lambda precision: precision == "bf16")
        for resolution in arguments.resolutions
        for name in arguments.recipes
        for way in arguments.ways
    ]
    costs = [weigh(contestant, device) for contestant in contestants]
    product = matrix_product(device, torch.bfloat16 if arguments.precision[0] == "bf16" else torch.float32)
    copying = copy(device)
    measure([*contestants, product, copying], arguments.rounds, arguments.seconds, device)
    rate, bandwidth = (statistics.median(contestant.rates) for contestant in (product, copying))
    rows = rows_of(contestants, costs, rate, bandwidth)
    show(rows, rate, bandwidth)
    if arguments.profile:
        for contestant in contestants:
            print(f"\n{contestant.name}\n{profile(contestant, device)}")
    if arguments.output:
        report = {"environment": environment(device), "settings": vars(arguments), "rows": rows}
        report |= {"matrix_product": rate, "copy": bandwidth}
        write_report(report, arguments.output)


if __name__ == "__main__":
    main()
