"""Trainings in two processes: the weights of one, stopped and resumed bit for bit, and an end that they share."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cluster import PATIENCE, ends, start_each
from safetensors.torch import load_file

from maxgan.training.run import read_metrics

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.slow


def launch(processes: int, script: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    torchrun = ["-m", "torch.distributed.run", f"--nproc_per_node={processes}", "--"] if processes > 1 else []
    command = [sys.executable, *torchrun, str(script)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    return subprocess.run(
        [*command, *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=PATIENCE
    )


WEIGHTS = """
import sys
import torch
from accelerate import Accelerator
from safetensors.torch import save_file
from maxgan.config import *
from maxgan.data.loader import ImageDataset, training_batches
from maxgan.training import gan

torch.set_default_dtype(torch.float64)
gan.to_float = lambda images: images.double() / 127.5 - 1
loss, updates, norm, r2_gamma, accumulation = *sys.argv[1:4], float(sys.argv[4]), int(sys.argv[5])
group = 4 if norm == "batch" else None
config = GanConfig(
    generator=GeneratorConfig(latent_dim=8, width=16, head_dim=8, latent_tokens=4, norm=norm, norm_group=group),
    discriminator=DiscriminatorConfig(1 / 128, 16),
    loss=LossConfig(loss, r1_gamma=2.0, r2_gamma=r2_gamma, bcr_real=1.0, bcr_fake=0.5, penalty_interval=2),
    optim=OptimConfig(updates=updates, eps=1e-4),  # biases before BatchNorm have gradients of rounding alone
    training=TrainingConfig(images=240, batch_size=12, accumulation=accumulation),
)
accelerator = Accelerator(cpu=True)
dataset = ImageDataset(config.data)
trainer = gan.GanTrainer(config, dataset.facts, accelerator)
batches = training_batches(
    dataset, 12, 0, 0, accelerator.process_index, accelerator.num_processes, 0, accumulation
)
# DistributedDataParallel wants one forward for each backward, penalties and consistency included.
passes = {"forward": 0, "backward": 0}

def count(name):
    passes[name] += 1

trainer.objective.register_forward_hook(lambda *_: count("forward"))
next(trainer.discriminator.parameters()).register_hook(lambda _: count("backward"))
for _ in range(20):
    trainer.step(batches)
assert type(trainer.objective).__name__ == (
    "DistributedDataParallel" if accelerator.num_processes > 1 else "DiscriminatorObjective"
)
assert passes == {"forward": 20 * accumulation, "backward": 20 * accumulation}, passes
if accelerator.is_main_process:
    tensors = {f"ema.{k}": v for k, v in trainer.ema.state_dict().items()}
    for network in ("generator", "discriminator"):
        tensors |= {f"{network}.{k}": v for k, v in trainer.watchdog.networks[network].state_dict().items()}
    save_file({k: v.contiguous() for k, v in tensors.items()}, f"w-{accelerator.num_processes}.safetensors")
del trainer
accelerator.free_memory()
accelerator.end_training()
"""


@pytest.mark.parametrize(
    ("processes", "options"),
    [
        (2, ("relativistic", "alternating", "layer", "0.3", "2")),
        (3, ("non_saturating", "simultaneous", "batch", "0", "1")),
    ],
)
def test_many_processes_learn_the_weights_of_one(tmp_path: Path, processes: int, options: tuple[str, ...]) -> None:
    """20 updates in float64, R1, bCR and running statistics included; in float32 Adam makes steps out of rounding."""
    (script := tmp_path / "train.py").write_text(WEIGHTS)
    for count in (1, processes):
        result = launch(count, script, tmp_path, *options)
        assert result.returncode == 0, result.stderr
    one, many = (load_file(tmp_path / f"w-{count}.safetensors") for count in (1, processes))
    assert one.keys() == many.keys()
    for name, tensor in one.items():
        assert tensor.dtype == torch.float64 or name.endswith(("n_averaged", "num_batches_tracked")), name
        assert (many[name] - tensor).abs().max() <= 1e-8, name


TINY = [
    "--generator.latent_dim=8", "--generator.width=16", "--generator.head_dim=8", "--generator.latent_tokens=4",
    "--discriminator.max_width=16", "--training.images=64", "--training.batch_size=8", "--training.accumulation=2",
    "--loss.bcr_real=1", "--run.tracker=none", "--run.log_every=24", "--run.threads=1", "--run.checkpoint_every=16",
    "--run.sample_every=0", "--run.keep=9", "--evaluation.enabled=false", "--data.crop=random",
    "--data.crop_fraction=0.9", "--data.flip=true", "--data.workers=1",
]  # fmt: skip


def everything(directory: Path) -> dict[str, torch.Tensor]:
    """All tensors of the last checkpoint, and the logged numbers but for the times."""
    folder = directory / "checkpoints" / "images-000000064"
    found = {f"{f.name}/{k}": t for f in sorted(folder.glob("*.safetensors")) for k, t in load_file(f).items()}
    for file in sorted(folder.glob("optimizer*.bin")):
        for key, entry in torch.load(file, weights_only=True)["state"].items():
            found |= {f"{file.name}/{key}/{name}": torch.as_tensor(value) for name, value in entry.items()}
    for line in read_metrics(directory / "metrics.jsonl"):
        for name, value in line.items():
            if name not in ("seconds", "images_per_second"):
                found[f"{line['images']}/{name}"] = torch.tensor(value, dtype=torch.float64)
    return found


def test_two_processes_go_on_bit_for_bit(tmp_path: Path) -> None:
    for name in ("whole", "resumed"):
        result = launch(2, ROOT / "train_gan.py", tmp_path, *TINY, f"--run.directory={name}")
        assert result.returncode == 0, result.stderr
        if name == "whole":
            shutil.copytree(tmp_path / "whole", tmp_path / "resumed")
            for images in (48, 64):
                shutil.rmtree(tmp_path / "resumed" / "checkpoints" / f"images-{images:09d}")
    assert "going on from resumed/checkpoints/images-000000032" in result.stdout
    whole, resumed = everything(tmp_path / "whole"), everything(tmp_path / "resumed")
    assert whole.keys() == resumed.keys()
    assert len([name for name in whole if name.startswith("optimizer")]) > 100
    for name, tensor in whole.items():
        assert torch.equal(tensor, resumed[name]), name


FAULT = """
import sys
import torch
from maxgan.training.watchdog import Watchdog

watch_metrics = Watchdog.watch_metrics
times = [1]

def spoilt(self, values, update):
    assert self.accelerator.num_processes == 2
    if update == 3 and self.accelerator.process_index == 1 and times[0]:
        times[0] = 0
        values = {**values, "r1": torch.tensor(torch.nan)}
    return watch_metrics(self, values, update)

Watchdog.watch_metrics = spoilt
sys.argv[0] = "train_gan.py"
from train_gan import main
sys.exit(main())
"""


def test_what_one_process_finds_stops_both_or_takes_both_back(tmp_path: Path) -> None:
    (script := tmp_path / "fault.py").write_text(FAULT)
    # No launcher, which would end the second as soon as the first has left.
    for code, _, errors in ends(start_each(tmp_path, 2, str(script), *TINY, "--run.directory=stopped")):
        assert code == 1, errors
        assert errors.count("error: at update 4, images 24 to 32, r1 became infinite or NaN") == 1, errors
    saved = sorted(folder.name for folder in (tmp_path / "stopped" / "checkpoints").iterdir())
    assert saved == ["images-000000016"]
    result = launch(2, script, tmp_path, *TINY, "--run.directory=stopped", "--watchdog.rollback=1")
    assert result.returncode == 0, result.stderr
    assert "going back from 32 images to 16, with another seed (rollback 1 of 1)" in result.stdout
    assert [line["images"] for line in read_metrics(tmp_path / "stopped" / "metrics.jsonl")] == [24, 48, 64]
