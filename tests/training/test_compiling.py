"""Compiled trainings learn what the others learn, compile no more than once for each use, and say where they can't."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from safetensors.torch import load_file
from torch import nn

from maxgan.checkpoint import load_model
from maxgan.config import (
    AugmentConfig,
    BackboneConfig,
    ClassifierConfig,
    DataConfig,
    DiscriminatorConfig,
    EvaluationConfig,
    GanConfig,
    GeneratorConfig,
    LossConfig,
    OptimConfig,
    RunConfig,
    TrainingConfig,
)
from maxgan.data.loader import ImageDataset, training_batches
from maxgan.models import MaxViTGenerator, ResidualDiscriminator
from maxgan.sampling import generate
from maxgan.training import compiling, gan_run
from maxgan.training.classifier import ClassifierTrainer
from maxgan.training.compiling import Compiling
from maxgan.training.gan import GanTrainer

ROOT = Path(__file__).parents[2]
TINY = GanConfig(
    data=DataConfig(resolution=8),
    generator=GeneratorConfig(latent_dim=8, width=8, head_dim=8, latent_tokens=4),
    discriminator=DiscriminatorConfig(1 / 128, 8),
    training=TrainingConfig(images=64, batch_size=8),
)


def trainer_of(config: GanConfig, compile: str = "none", accelerator: Accelerator | None = None) -> GanTrainer:
    config = replace(config, run=replace(config.run, compile=compile))
    return GanTrainer(config, ImageDataset(config.data).facts, accelerator or Accelerator(cpu=True))


@pytest.fixture
def in_float64(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("maxgan.training.gan.to_float", lambda images: images.double() / 127.5 - 1)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Networks are traced as for compiling and run by torch itself, which takes seconds in place of minutes.

    Gives a list of the operations in each graph.
    """
    graphs: list[int] = []

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(len(graph.graph.nodes))
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)

    original = nn.Module.compile

    def compile(self: nn.Module, dynamic: bool, mode: None = None) -> None:
        original(self, backend=backend, dynamic=dynamic)

    monkeypatch.setattr(nn.Module, "compile", compile)
    monkeypatch.setattr(compiling, "_try", lambda _: None)
    yield graphs
    torch.compiler.reset()


def test_graphs_are_refused_where_they_cannot_be() -> None:
    with pytest.raises(ValueError, match=r"run\.compile cudagraphs needs a CUDA device, and this is cpu: take induct"):
        Compiling("cudagraphs", torch.device("cpu"))
    with pytest.raises(ValueError, match=r"run\.compile cudagraphs .* training\.accumulation 2 micro-batches: take"):
        Compiling("cudagraphs", torch.device("cuda"), accumulation=2)
    assert not Compiling("cudagraphs", torch.device("meta")).on


@pytest.mark.slow
def test_without_a_compiler_one_sentence_says_so(tmp_path: Path) -> None:
    script = "import torch\nfrom maxgan.training.compiling import Compiling\nCompiling('inductor', torch.device('cpu'))"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "CXX": "/nowhere/g++"}
    result = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert result.returncode == 1
    assert "\nValueError: run.compile needs a C++ compiler such as g++, which fails here (" in result.stderr
    assert "): mend that, or set run.compile none" in result.stderr


LAZY = LossConfig("relativistic", r1_gamma=1.0, r2_gamma=0.5, bcr_real=1.0, penalty_interval=2)
# G with gradients and without, D without any, for G alone, and, for itself, of reals with fakes and of changed reals;
# or G with gradients, D the same and, for itself, of one batch at a time.
VARIANTS = {
    "lazy": (LAZY, "alternating", None, 1, 6),
    "finite-difference": (replace(LAZY, penalty="finite_difference"), "simultaneous", "ada,cutout", 2, 5),
}


def train_both(config: GanConfig) -> None:
    """Three updates of a compiled training and of one that isn't: the same weights; the last must compile nothing."""
    trainers = trainer_of(config), trainer_of(config, "inductor")
    for trainer in trainers:
        batches = training_batches(ImageDataset(config.data), 8, 0, accumulation=config.training.accumulation)
        for update in range(4):
            stance = "fail_on_recompile" if update > 1 else "default"
            with torch.compiler.set_stance(stance):  # type: ignore[arg-type]
                metrics = trainer.step(batches)
            assert ("r1" in metrics) == (update % 2 == 0)
    one, two = ({**t.watchdog.networks["generator"].state_dict(), **t.discriminator.state_dict()} for t in trainers)
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-8, atol=1e-9, msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.usefixtures("in_float64")
def test_weights_are_those_of_plain_networks(variant: str, traced: list[int]) -> None:
    loss, updates, policy, accumulation, graphs = VARIANTS[variant]
    train_both(
        replace(
            TINY,
            loss=loss,
            augment=AugmentConfig(policy, 0.7) if policy else AugmentConfig(),
            optim=OptimConfig(updates=updates),  # type: ignore[arg-type]
            training=replace(TINY.training, accumulation=accumulation),
        )
    )
    # Whole networks, not parts of them.
    assert len(traced) == graphs
    assert min(traced) > 10


@pytest.mark.slow
@pytest.mark.usefixtures("in_float64")
def test_gradients_by_the_compiler_itself() -> None:
    """Of D alone: to compile a whole generator takes minutes."""
    torch.manual_seed(0)
    one = ResidualDiscriminator(8, 1, 3, channel_multiplier=1 / 128, max_width=8)
    two = ResidualDiscriminator(8, 1, 3, config=one.config)
    two.load_state_dict(one.state_dict())
    two.compile(dynamic=False)
    images, labels = torch.randn(4, 1, 8, 8), torch.tensor([0, 1, 2, 1])
    for network in (one, two):
        network(images, labels).square().sum().backward()
    for (name, p), q in zip(one.named_parameters(), two.parameters(), strict=True):
        torch.testing.assert_close(q.grad, p.grad, rtol=1e-9, atol=1e-12, msg=name)
    torch.compiler.reset()


@pytest.mark.slow
@pytest.mark.usefixtures("in_float64", "traced")
def test_ghost_batch_norm_keeps_its_statistics() -> None:
    torch.manual_seed(0)
    one = MaxViTGenerator(8, 1, 0, latent_dim=8, width=8, head_dim=8, latent_tokens=4, norm="batch", norm_group=4)
    two = MaxViTGenerator(8, 1, 0, config=one.config)
    two.load_state_dict(one.state_dict())
    Compiling("inductor", torch.device("cpu")).apply(two)
    for _ in range(2):
        z, weights = torch.randn(8, 8), torch.randn(8, 1, 8, 8)
        for network in (one, two):
            network.zero_grad()
            (network(z) * weights).sum().backward()
    for (name, p), q in zip(one.named_parameters(), two.parameters(), strict=True):
        torch.testing.assert_close(q.grad, p.grad, rtol=1e-9, atol=1e-10, msg=name)
    for (name, p), q in zip(one.named_buffers(), two.buffers(), strict=True):
        torch.testing.assert_close(q, p, msg=name)


@pytest.mark.slow
def test_samples_of_compiled_code_are_the_same_and_compiled_for_once(traced: list[int]) -> None:
    torch.manual_seed(0)
    generator = MaxViTGenerator(8, 1, 3, latent_dim=8, width=8, head_dim=8, latent_tokens=4).eval()
    seeds = range(5, 15)  # in batches of 4, 4 and 2
    plain = list(generate(generator, seeds, 4, "cpu", quantise=False))
    for count in (10, 3):
        found = list(generate(generator, seeds[:count], 4, "cpu", quantise=False, compiled=True))
        assert [len(batch.images) for batch in found] == ([4, 4, 2] if count == 10 else [3])
        for one, two in zip(plain, found, strict=False):
            assert one.labels is not None and two.labels is not None
            assert two.labels.tolist() == one.labels.tolist()[: len(two.labels)]
            torch.testing.assert_close(two.images, one.images[: len(two.images)], rtol=0, atol=1e-5)
    assert len(traced) == 1


def train(config: GanConfig) -> int:
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    PartialState._reset_state()
    return gan_run.train_gan(config)


@pytest.mark.slow
@pytest.mark.usefixtures("traced")
def test_a_compiled_run_is_saved_resumed_and_exported_as_any_other(tmp_path: Path) -> None:
    def config(folder: str, compile: str, **changes: Any) -> GanConfig:
        run = RunConfig(
            directory=str(tmp_path / folder), compile=compile, tracker="none", sample_every=0, log_every=16,
            checkpoint_every=16, keep=9, threads=1,
        )  # fmt: skip
        training = TrainingConfig(images=32, batch_size=8, precision="bf16")
        evaluation = EvaluationConfig(every=16, images=40, metrics=("frechet",), cache=str(tmp_path / "cache"))
        return replace(TINY, training=training, run=run, evaluation=evaluation, **changes)

    assert train(config("whole", "inductor")) == 0
    checkpoints = tmp_path / "whole" / "checkpoints"
    whole = load_file(checkpoints / "images-000000032" / "model.safetensors")
    assert train(config("plain", "none")) == 0
    plain = load_file(tmp_path / "plain" / "checkpoints" / "images-000000032" / "model.safetensors")
    assert whole.keys() == plain.keys()
    for name, tensor in plain.items():
        torch.testing.assert_close(whole[name], tensor, rtol=0, atol=0.02, msg=name)  # four steps of Adam in bf16
    exported = load_model(tmp_path / "whole" / "generator.safetensors")
    assert exported.state_dict().keys() == load_model(tmp_path / "plain" / "generator.safetensors").state_dict().keys()
    # Stopped half-way, it goes on bit for bit.
    shutil.copytree(tmp_path / "whole", tmp_path / "resumed")
    shutil.rmtree(tmp_path / "resumed" / "checkpoints" / "images-000000032")
    assert train(config("resumed", "inductor")) == 0
    resumed = load_file(tmp_path / "resumed" / "checkpoints" / "images-000000032" / "model.safetensors")
    assert all(torch.equal(resumed[name], tensor) for name, tensor in whole.items())
    # How networks run doesn't name another run.
    assert train(config("whole", "none")) == 0


@pytest.mark.slow
def test_a_classifier_learns_the_same_compiled(traced: list[int]) -> None:
    lines = []
    for compile in ("none", "inductor"):
        config = ClassifierConfig(
            data=DataConfig(resolution=8),
            backbone=BackboneConfig(stem_width=8, widths=(8,), depths=(1,), window_size=2, head_dim=4),
            training=TrainingConfig(images=24, batch_size=8),
            run=RunConfig(sample_every=0, compile=compile),  # type: ignore[arg-type]
        )
        dataset = ImageDataset(config.data)
        accelerator = Accelerator(cpu=True, step_scheduler_with_optimizer=False)
        trainer = ClassifierTrainer(config, dataset.facts, accelerator)
        batches = training_batches(dataset, 8, 0)
        lines.append([float(trainer.step(batches)["loss"]) for _ in range(3)])
    assert len(traced) == 1
    assert lines[1] == pytest.approx(lines[0], rel=1e-4)


PROCESSES = """
import sys
from dataclasses import replace
import torch
from accelerate import Accelerator
from safetensors.torch import save_file
from maxgan.data.loader import ImageDataset, training_batches
from maxgan.training import compiling, gan

sys.path.insert(0, sys.argv[1])
from test_compiling import LAZY, TINY, trainer_of

torch.set_default_dtype(torch.float64)
gan.to_float = lambda images: images.double() / 127.5 - 1
compiling._try = lambda _: None
original = torch.nn.Module.compile
torch.nn.Module.compile = lambda self, dynamic, mode: original(self, backend="aot_eager", dynamic=dynamic)
accelerator = Accelerator(cpu=True)
many = accelerator.num_processes > 1
config = replace(TINY, loss=LAZY, training=replace(TINY.training, accumulation=2))
trainer = trainer_of(config, "inductor" if many else "none", accelerator)
rank, processes = accelerator.process_index, accelerator.num_processes
batches = training_batches(ImageDataset(config.data), 8, 0, 0, rank, processes, 0, 2)
for update in range(4):
    with torch.compiler.set_stance("fail_on_recompile" if update > 1 else "default"):
        trainer.step(batches)
assert type(trainer.generator).__name__ == ("DistributedDataParallel" if many else "MaxViTGenerator")
if accelerator.is_main_process:
    networks = trainer.watchdog.networks
    tensors = {f"{name}.{k}": v for name in networks for k, v in networks[name].state_dict().items()}
    save_file({k: v.contiguous() for k, v in tensors.items()}, f"w-{accelerator.num_processes}.safetensors")
del trainer
accelerator.free_memory()
accelerator.end_training()
"""


@pytest.mark.slow
def test_two_processes_with_compiled_networks_learn_what_one_learns_without(tmp_path: Path) -> None:
    (script := tmp_path / "train.py").write_text(PROCESSES)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    for launcher in ([], ["-m", "torch.distributed.run", "--nproc_per_node=2", "--"]):
        command = [sys.executable, *launcher, str(script), str(Path(__file__).parent)]
        result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600)
        assert result.returncode == 0, result.stderr
    one, two = (load_file(tmp_path / f"w-{count}.safetensors") for count in (1, 2))
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-8, atol=1e-9, msg=name)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize("mode", ["inductor", "cudagraphs"])
def test_gradients_on_a_gpu_are_those_of_plain_networks(mode: str, precision: str) -> None:
    """Norms of the gradients over updates, since Adam makes steps out of rounding; the last update compiles nothing."""
    norms = []
    for compile in ("none", mode):
        training = replace(TINY.training, precision=precision)  # type: ignore[arg-type]
        config = replace(TINY, loss=LAZY, training=training)
        trainer = trainer_of(config, compile, Accelerator(mixed_precision=precision))
        batches = training_batches(ImageDataset(config.data), 8, 0)
        metrics = []
        for update in range(5):
            with torch.compiler.set_stance("fail_on_recompile" if update > 3 else "default"):
                metrics.append(trainer.step(batches))
        norms.append([metrics[i][f"gradient_norm_{name}"] for i in range(5) for name in ("generator", "discriminator")])
        AcceleratorState._reset_state(reset_partial_state=True)
    torch.testing.assert_close(norms[1], norms[0], rtol=0.05 if precision == "bf16" else 1e-3, atol=0)
