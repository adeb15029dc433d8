"""Classifier training against torchvision, scikit-learn and closed forms; stopped and resumed runs against whole."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from safetensors.torch import load_file
from sklearn.metrics import accuracy_score, confusion_matrix, top_k_accuracy_score
from torch import Tensor, nn
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2.functional import affine

from maxgan.checkpoint import load_model
from maxgan.cli import parse, to_yaml
from maxgan.config import (
    AffineConfig,
    BackboneConfig,
    ClassifierConfig,
    ClassifierOptimConfig,
    DataConfig,
    ImageFacts,
    RunConfig,
    TrainingConfig,
)
from maxgan.data.loader import ImageDataset, evaluation_batches, training_batches
from maxgan.evaluation.extractors import load_extractor
from maxgan.models import MaxViT
from maxgan.training.classifier import ClassifierTrainer, change_affine, make_schedule, parameter_groups
from maxgan.training.classifier_run import measure_accuracy, train_classifier

ROOT = Path(__file__).parents[2]
TINY = BackboneConfig(stem_width=8, widths=(16,), depths=(1,), head_dim=8, drop_path=0.3)
CPU = SimpleNamespace(device=torch.device("cpu"), process_index=0, num_processes=1, reduce=lambda x, reduction: x)


def config_for(directory: Path, images: int = 192, **changes: Any) -> ClassifierConfig:
    config = ClassifierConfig(
        backbone=TINY,
        optim=ClassifierOptimConfig(lr=1e-2),
        training=TrainingConfig(images=images, batch_size=16, accumulation=2),
        run=RunConfig(
            directory=str(directory), log_every=48, sample_every=0, checkpoint_every=96, tracker="none", threads=1
        ),
    )
    return replace(config, **changes)


def metrics(directory: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [{name: line[name] for name in line if name not in ("seconds", "images_per_second")} for line in lines]


def flatten(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from flatten(inner, f"{name}/{key}")
    else:
        yield name, value.tolist() if isinstance(value, Tensor) else value


def weights(file: Path) -> dict[str, bytes]:
    return {name: tensor.numpy().tobytes() for name, tensor in load_file(file).items()}


def saved_state(folder: Path) -> dict[str, Any]:
    names = ("optimizer.bin", "scheduler.bin")
    return {name: dict(flatten(torch.load(folder / name, weights_only=True))) for name in names}


def test_affine_changes_are_torchvisions() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(5, 2, 16, 16, generator=generator) * 2 - 1
    change = torch.rand(5, 4, generator=generator) * 2 - 1
    config = AffineConfig(rotate=40, scale=0.3, shift=0.2)
    found = change_affine(images, change, config)
    for image, row, result in zip(images, change.tolist(), found, strict=True):
        angle, scale = row[0] * 40, 1 + row[1] * 0.3
        shift = [row[2] * 0.2 * 16, row[3] * 0.2 * 16]
        # With padding by 0 to all sides, which is black here, there is no edge to what torchvision looks at.
        padded = nn.functional.pad(image + 1, (16, 16, 16, 16))
        expected = affine(padded, angle, shift, scale, [0.0], InterpolationMode.BILINEAR)[:, 16:-16, 16:-16] - 1
        torch.testing.assert_close(result, expected, atol=1e-4, rtol=0)
    assert found.min() == -1  # corners have come in, black


def test_weight_decay_spares_biases_norms_and_position_tables() -> None:
    network = MaxViT(16, 1, 10, config=TINY)
    decayed, spared = parameter_groups(network, 0.05)
    kernels = {id(m.weight) for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)}
    assert {id(p) for p in decayed["params"]} == kernels
    assert {id(p) for p in spared["params"]} == {id(p) for p in network.parameters()} - kernels
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.05, 0)
    tables = {id(p) for name, p in network.named_parameters() if name.endswith("relative_bias")}
    assert len(tables) == 2


@pytest.mark.parametrize(("updates", "warmup"), [(40, 0.25), (7, 0.0), (3, 0.9), (1, 0.5)])
def test_schedule_is_the_closed_form(updates: int, warmup: float) -> None:
    optimizer = torch.optim.AdamW(parameter_groups(nn.Linear(2, 2), 0.1), 3e-3)
    schedule = make_schedule(optimizer, ClassifierOptimConfig(lr=3e-3, min_lr=1e-4, warmup=warmup), updates)
    risen = int(warmup * updates)
    for update in range(updates):
        if update <= risen:
            expected = 3e-3 * (update + 1) / (risen + 1)
        else:
            turn = math.pi * (update - risen) / (updates - risen)
            expected = 1e-4 + (3e-3 - 1e-4) * (1 + math.cos(turn)) / 2
        assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([expected] * 2, rel=1e-6)
        optimizer.step()
        schedule.step()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(1e-4)


def first_step(**changes: Any) -> tuple[dict[str, float], ClassifierTrainer]:
    config = replace(config_for(Path("unused")), backbone=replace(TINY, drop_path=0.0), **changes)
    dataset = ImageDataset(config.data)
    accelerator = Accelerator(cpu=True, step_scheduler_with_optimizer=False)
    trainer = ClassifierTrainer(config, dataset.facts, accelerator)
    training = config.training
    batches = training_batches(dataset, training.batch_size, training.seed, accumulation=training.accumulation)
    return {name: value.item() for name, value in trainer.step(batches).items()}, trainer


def test_one_update_is_that_of_plain_pytorch() -> None:
    found, trainer = first_step(affine=AffineConfig(0, 0, 0), training=TrainingConfig(images=160, batch_size=16))
    torch.manual_seed(0)
    network = MaxViT(16, 1, 10, config=replace(TINY, drop_path=0.0)).train()
    images, labels = next(training_batches(ImageDataset(DataConfig()), 16, 0))
    logits = network(images / 127.5 - 1)
    target = 0.9 * nn.functional.one_hot(labels, 10) + 0.1 / 10
    loss = -(target * logits.log_softmax(1)).sum(1).mean()
    loss.backward()
    norm = math.sqrt(sum(float(p.grad.square().sum()) for p in network.parameters() if p.grad is not None))
    rate = 1e-2 / 2  # one update of ten is warm-up
    assert found == pytest.approx(
        {"loss": loss.item(), "accuracy": (logits.argmax(1) == labels).float().mean().item(), "learning_rate": rate}
    )
    moved = dict(trainer.bare_network.named_parameters())
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None
        gradient = parameter.grad / max(1.0, norm)
        decay = 0.05 if name.endswith("weight") and parameter.ndim > 1 else 0.0
        # AdamW's first step: both bias-corrected moments are those of this gradient.
        expected = parameter * (1 - rate * decay) - rate * gradient / (gradient.abs() + 1e-8)
        large = gradient.abs() > 1e-5  # elsewhere the sign of a tiny gradient may differ
        torch.testing.assert_close(moved[name][large], expected[large], atol=2e-4, rtol=0)


def test_augmentation_does_not_depend_on_processes_or_accumulation(monkeypatch: pytest.MonkeyPatch) -> None:
    _, trainer = first_step(training=TrainingConfig(images=160, batch_size=16))
    whole = torch.cat(trainer._affine_changes(16))
    assert whole.shape == (16, 4)
    assert len(whole.unique()) == 64
    monkeypatch.setattr(
        trainer, "config", replace(trainer.config, training=TrainingConfig(batch_size=16, accumulation=2))
    )
    parts = []
    for rank in range(2):
        monkeypatch.setattr(trainer, "accelerator", SimpleNamespace(process_index=rank))
        parts += trainer._affine_changes(4)
    assert torch.equal(torch.cat(parts), whole)
    trainer.images_seen += 16
    assert not torch.equal(trainer._affine_changes(4)[0], parts[2])


def test_loss_falls_and_a_trained_run_classifies(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name, darkest in (("dark", 0), ("light", 96)):
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(32):
            pixels = rng.integers(darkest, darkest + 160, (16, 16), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / name / f"{i}.png")
    source = str(tmp_path / "images")
    config = config_for(tmp_path / "run", 480, data=DataConfig(source), test=source)
    assert train_classifier(config) == 0
    lines = metrics(tmp_path / "run")
    assert [line["images"] for line in lines] == list(range(48, 481, 48))
    assert lines[0]["loss"] == pytest.approx(math.log(2), abs=0.2)
    assert lines[-1]["loss"] < 0.5 * lines[0]["loss"]
    scores = json.loads((tmp_path / "run" / "scores.json").read_text())
    assert scores == {"test": source, "images": 64, "top1": 1.0, "images_seen": 480}


def test_writes_what_it_says_and_says_when_it_is_finished(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    config = config_for(tmp_path / "run", 96)
    assert train_classifier(config, command="the command") == 0
    exported = tmp_path / "run" / "classifier.safetensors"
    network = load_model(exported, expect=MaxViT)
    test = ImageDataset(DataConfig("digits-test"))
    images, labels = next(evaluation_batches(test, 360, range(360)))
    with torch.no_grad():
        logits = network(images / 127.5 - 1).numpy()
    top1, top5 = accuracy_score(labels, logits.argmax(1)), top_k_accuracy_score(labels, logits, k=5)
    scores = json.loads((tmp_path / "run" / "scores.json").read_text())
    assert scores == {"test": "digits-test", "images": 360, "top1": top1, "top5": top5, "images_seen": 96}
    assert network.info["accuracy"] == {"test": "digits-test", "images": 360, "top1": top1, "top5": top5}
    assert network.info["command"] == "the command"
    assert network.info["class_names"] == [str(digit) for digit in range(10)]
    assert network.info["images_seen"] == 96
    for picture in ("curves.png", "confusion.png"):
        with Image.open(tmp_path / "run" / picture) as image:
            assert np.asarray(image.convert("L")).std() > 10

    before = exported.stat().st_mtime_ns
    capsys.readouterr()
    assert train_classifier(config) == 0
    assert "this run is finished (96 images)" in capsys.readouterr().out
    assert exported.stat().st_mtime_ns == before
    # Another test set doesn't change what is learned: the finished run is measured on it.
    folder_of_images(tmp_path / "other", tuple("0123456789"), 1)
    assert train_classifier(replace(config, test=str(tmp_path / "other"))) == 0
    assert "accuracy on the 10 images of" in capsys.readouterr().out
    assert json.loads((tmp_path / "run" / "scores.json").read_text())["images"] == 10


def test_a_stopped_run_goes_on_bit_for_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = tmp_path / "whole"
    assert train_classifier(config_for(whole, test=None)) == 0
    assert len(metrics(whole)) == 4
    step = ClassifierTrainer.step
    for stop_at in (6, 8):  # updates: at a checkpoint and a logged line, and off both
        parts = tmp_path / str(stop_at)

        def stopping(self: ClassifierTrainer, batches: Any, last: int = stop_at) -> dict[str, Tensor]:
            if self.update == last - 1:
                signal.raise_signal(signal.SIGTERM)
            return step(self, batches)

        with monkeypatch.context() as patch:
            patch.setattr(ClassifierTrainer, "step", stopping)
            assert train_classifier(config_for(parts, test=None)) == 128 + signal.SIGTERM
        assert (parts / f"checkpoints/images-{16 * stop_at:09d}").is_dir()
        torch.manual_seed(1234)
        assert train_classifier(config_for(parts, test=None)) == 0

        assert metrics(parts) == metrics(whole)
        assert weights(parts / "classifier.safetensors") == weights(whole / "classifier.safetensors")
        a, b = (folder / "checkpoints/images-000000192" for folder in (parts, whole))
        assert weights(a / "model.safetensors") == weights(b / "model.safetensors")
        assert saved_state(a) == saved_state(b)


class Fixed(nn.Module):
    """Logits that are sums over stripes of the image, wrong often enough."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, : 25 * self.num_classes].view(len(x), self.num_classes, 25).sum(2)


def test_accuracy_is_scikit_learns_whatever_the_processes(tmp_path: Path) -> None:
    test = ImageDataset(DataConfig("digits-test"))
    images, labels = next(evaluation_batches(test, 360, range(360)))
    logits = Fixed(10)(images / 127.5 - 1)
    found = measure_accuracy(Fixed(10), test, CPU)  # type: ignore[arg-type]
    assert found.images == 360
    predicted = logits.argmax(1)
    assert found.fractions() == {
        "top1": accuracy_score(labels, predicted),
        "top5": top_k_accuracy_score(labels, logits, k=5),
    }
    assert np.array_equal(found.confusion, confusion_matrix(labels, predicted))
    assert 0 < found.fractions()["top1"] < found.fractions()["top5"] < 1
    shares = []  # 360 images are not 7 equal shares
    for rank in range(7):
        one = SimpleNamespace(**{**vars(CPU), "process_index": rank, "num_processes": 7})
        shares.append(measure_accuracy(Fixed(10), test, one))  # type: ignore[arg-type]
    assert torch.equal(torch.stack([share.confusion for share in shares]).sum(0), found.confusion)
    assert sum(share.in_top5 or 0 for share in shares) == found.in_top5
    folder_of_images(tmp_path, ("a", "b", "c"), 3)
    few = measure_accuracy(Fixed(3), ImageDataset(DataConfig(str(tmp_path))), CPU)  # type: ignore[arg-type]
    assert list(few.fractions()) == ["top1"]


def folder_of_images(folder: Path, classes: tuple[str, ...], count: int) -> None:
    rng = np.random.default_rng(0)
    for name in classes:
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            Image.fromarray(rng.integers(0, 256, (16, 16), dtype=np.uint8)).save(folder / name / f"{i}.png")


@pytest.mark.parametrize(
    ("data", "test", "message"),
    [
        (
            DataConfig("plain"),
            None,
            "the images of plain have none: sort them into class folders or add a dataset.json",
        ),
        (DataConfig(labels=False), None, "the images of digits-train have none: set data.labels"),
        (DataConfig(), "plain", "images of test plain have no labels"),
        (DataConfig(), "two", "test two has 2 classes and data.source digits-train has 10"),
        (DataConfig(), "gone", "the images of the setting test can't be used: .*gone does not exist"),
    ],
)
def test_data_that_gives_no_classifier_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: DataConfig, test: str | None, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    folder_of_images(Path("plain"), (".",), 2)
    folder_of_images(Path("two"), ("cat", "dog"), 2)
    with pytest.raises(ValueError, match=message):
        train_classifier(config_for(Path("run"), data=data, test=test))


def test_settings_out_of_range_are_named() -> None:
    wrong: list[tuple[Any, dict[str, Any]]] = [
        (ClassifierOptimConfig, {"lr": 0.0}),
        (ClassifierOptimConfig, {"min_lr": 1.0}),
        (ClassifierOptimConfig, {"warmup": 1.0}),
        (ClassifierOptimConfig, {"label_smoothing": -0.1}),
        (ClassifierOptimConfig, {"weight_decay": -1.0}),
        (ClassifierOptimConfig, {"gradient_clip": 0.0}),
        (AffineConfig, {"rotate": 181.0}),
        (AffineConfig, {"scale": 1.0}),
        (AffineConfig, {"shift": -0.1}),
    ]
    for config_class, setting in wrong:
        with pytest.raises(ValueError, match=next(iter(setting))):
            config_class(**setting)
    with pytest.raises(ValueError, match=r"run\.sample_every"):
        ClassifierConfig(run=RunConfig())


def test_the_config_file_is_the_default() -> None:
    config, name = parse(ClassifierConfig, ["--config", str(ROOT / "configs" / "digits_classifier.yaml")])
    assert (config, name) == (ClassifierConfig(), "digits_classifier")
    changed, _ = parse(
        ClassifierConfig, ["--run.threads", "1", "--affine.rotate", "5", "--optim.gradient_clip", "null"]
    )
    assert changed.run == replace(ClassifierConfig().run, threads=1)
    assert (changed.affine, changed.optim.gradient_clip) == (AffineConfig(rotate=5.0), None)


def test_the_packaged_classifier_reads_digits_it_has_not_seen() -> None:
    extractor = load_extractor("digits")
    test = ImageDataset(DataConfig("digits-test"))
    images, labels = next(evaluation_batches(test, 360, range(360)))
    logits = extractor(images).logits
    assert logits is not None
    assert accuracy_score(labels, logits.argmax(1)) >= 0.99
    facts = ImageFacts(extractor.resolution, extractor.channels, extractor.num_classes)
    assert facts == ImageFacts(16, 1, 10)
    file = ROOT / "maxgan" / "evaluation" / "weights" / "digits.safetensors"
    assert extractor.digest in file.with_name("README.md").read_text()


@pytest.mark.slow
def test_two_processes_train_as_one_run(tmp_path: Path) -> None:
    config = config_for(tmp_path / "two", 320)
    (tmp_path / "tiny.yaml").write_text(to_yaml(config))
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--rdzv-backend", "c10d"]
    command += ["--rdzv-endpoint", "localhost:0", str(ROOT / "train_classifier.py"), "--config", "tiny.yaml"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    result = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout.count("accuracy on the 360 images") == 1
    manifest = json.loads((tmp_path / "two/checkpoints/images-000000320/manifest.json").read_text())
    assert manifest["processes"] == 2
    assert train_classifier(config_for(tmp_path / "one", 320)) == 0
    two, one = metrics(tmp_path / "two"), metrics(tmp_path / "one")
    assert [line["learning_rate"] for line in two] == pytest.approx([line["learning_rate"] for line in one])
    assert two[-1]["loss"] < two[0]["loss"]
