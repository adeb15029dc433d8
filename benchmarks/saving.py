"""What a checkpoint costs a training: its bytes, the seconds until it is on the disk, and what they are spent on.

    python benchmarks/saving.py --rounds 5 --resolution 128 --classes 1000 --config configs/imagenet128_paper.yaml

Networks, optimisers and moving average of a GAN are saved as training saves them; other settings are those of
train_gan.py. `copy` is a copy of all tensors in memory: what training would still wait for if the rest were written in
the background. `disk` is the time in which the saving process neither computed nor stood in line for a core: what that
would give back to a training on a CPU, which needs the cores that write. Linux only; the disk is that of --folder.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import time
from pathlib import Path

import torch
from timing import environment
from torch import Tensor

from maxgan.checkpoint import save_run_state
from maxgan.cli import parse
from maxgan.config import GanConfig, ImageFacts
from maxgan.runtime import start
from maxgan.training.gan import GanTrainer


def all_tensors(trainer: GanTrainer) -> list[Tensor]:
    """Return what a checkpoint holds, after a step of both optimisers that makes their states."""
    tensors = list(trainer.state().values())
    for network, optimizer in (
        (trainer.generator, trainer.optimizer_g), (trainer.objective, trainer.optimizer_d)
    ):  # fmt: skip
        for parameter in network.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        optimizer.zero_grad()
        tensors += network.state_dict().values()
        tensors += [value for entry in optimizer.optimizer.state.values() for value in entry.values()]
    return tensors


def busy() -> tuple[float, float]:
    """Return the seconds that this thread has computed, and those that it has waited for a core."""
    computed, waited, _ = Path("/proc/thread-self/schedstat").read_text().split()
    return int(computed) / 1e9, int(waited) / 1e9


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--resolution", type=int, default=16)
    parser.add_argument("--channels", type=int, default=1)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=Path("benchmark-checkpoints"), help="made, and removed")
    arguments, settings = parser.parse_known_args()
    config, _ = parse(GanConfig, settings)
    accelerator = start(config.run.threads, cpu=True)
    trainer = GanTrainer(config, ImageFacts(arguments.resolution, arguments.channels, arguments.classes), accelerator)
    tensors = all_tensors(trainer)
    rows = []
    try:
        for i in range(arguments.rounds):
            before = busy()[0]
            copies = [tensor.clone() for tensor in tensors]
            copied = busy()[0] - before
            del copies
            begin, before = time.perf_counter(), busy()
            save_run_state(accelerator, arguments.folder, i, {}, trainer.state(), keep=1)
            wall = time.perf_counter() - begin
            computed, queued = (after - then for after, then in zip(busy(), before, strict=True))
            rows.append((wall - queued, computed, wall - queued - computed, copied))
        size = sum(file.stat().st_size for file in arguments.folder.glob("*/*"))
    finally:
        shutil.rmtree(arguments.folder)
    print(environment(torch.device("cpu")))
    print(f"{size / 1e6:,.0f} MB")
    for name, values in zip(("whole save", "computing", "disk", "copy"), zip(*rows, strict=True), strict=True):
        print(f"{name:<12} {statistics.median(values):8.3f} s   least {min(values):.3f}, most {max(values):.3f}")


if __name__ == "__main__":
    main()
