"""Classifier training against scikit-learn and closed forms; stopped and resumed runs against whole."""

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

from maxgan.checkpoint import export_model, load_model
from maxgan.cli import parse, to_yaml
from maxgan.config import (
    AffineConfig,
    BackboneConfig,
    ClassifierConfig,
    ClassifierOptimConfig,
    DataConfig,
    EmaConfig,
    ImageFacts,
    MixConfig,
    RunConfig,
    TrainingConfig,
)
from maxgan.data.loader import ImageDataset, evaluation_batches, training_batches
from maxgan.evaluation.catalogue import load_extractor
from maxgan.models import MaxViT
from maxgan.training.classifier import ClassifierTrainer, make_schedule, parameter_groups
from maxgan.training.classifier_run import (
    ClassifierRun,
    evaluate_classifier,
    measure_accuracy,
    open_test,
    train_classifier,
)
from maxgan.training.schedules import ema_decay

ROOT = Path(__file__).parents[2]
TINY = BackboneConfig(stem_width=8, widths=(16,), depths=(1,), head_dim=8, drop_path=0.3)
# Everything that draws random numbers or keeps a state.
ALL = {
    "mix": MixConfig(randaugment_ops=2, mixup=0.8, cutmix=1.0),
    "ema": EmaConfig(half_life=100),
    "data": DataConfig(resolution=16, crop="resized", flip=True),
}
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
    schedule = make_schedule(optimizer, ClassifierOptimConfig(lr=3e-3, min_lr=1e-4, warmup=warmup), 8 * updates - 7, 8)
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


def test_warmup_in_images_then_a_constant_rate() -> None:
    optimizer = torch.optim.AdamW(parameter_groups(nn.Linear(2, 2), 0.1), 3e-3)
    config = ClassifierOptimConfig(lr=3e-3, schedule="constant", warmup_images=31)  # 3 updates of 10, and a bit
    schedule = make_schedule(optimizer, config, 200, 10)
    rates = []
    for _ in range(20):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates == pytest.approx([3e-3 / 4, 6e-3 / 4, 9e-3 / 4] + [3e-3] * 17)


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


def test_what_all_processes_share_of_the_statistics_is_averaged(monkeypatch: pytest.MonkeyPatch) -> None:
    def share(network: nn.Module, accelerator: Accelerator) -> None:
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                assert module.running_mean is not None
                module.running_mean.fill_(7)

    monkeypatch.setattr("maxgan.training.classifier.share_statistics", share)
    _, trainer = first_step(ema=EmaConfig(half_life=100))
    assert trainer.ema is not None
    means = [tensor for name, tensor in trainer.ema.state_dict().items() if name.endswith("running_mean")]
    assert means
    assert all((tensor == 7).all() for tensor in means)


def test_a_mixed_update_is_that_of_soft_targets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Checked in the loss and the accuracy that the update reports, with a mix of 0.7 and 0.3."""
    batches: list[Tensor] = []

    def blend(images: Tensor, labels: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        one_hot = nn.functional.one_hot(labels, 10).float()
        batches.append(0.7 * images + 0.3 * images.flip(0))
        return batches[-1], 0.7 * one_hot + 0.3 * one_hot.flip(0)

    monkeypatch.setattr("maxgan.training.classifier.Mix", lambda config, num_classes: blend)
    plain = {"affine": AffineConfig(0, 0, 0), "training": TrainingConfig(images=160, batch_size=16)}
    found, _ = first_step(mix=MixConfig(mixup=0.8), **plain)
    torch.manual_seed(0)
    network = MaxViT(16, 1, 10, config=replace(TINY, drop_path=0.0)).train()
    images, labels = next(training_batches(ImageDataset(DataConfig()), 16, 0))
    torch.testing.assert_close(batches[0], 0.7 * (images / 127.5 - 1) + 0.3 * (images.flip(0) / 127.5 - 1))
    one_hot = nn.functional.one_hot(labels, 10)
    shares = 0.7 * one_hot + 0.3 * one_hot.flip(0)
    logits = network(batches[0])
    loss = -((0.9 * shares + 0.01) * logits.log_softmax(1)).sum(1).mean()
    accuracy = np.mean([row[choice] for row, choice in zip(shares.tolist(), logits.argmax(1).tolist(), strict=True)])
    assert found["loss"] == pytest.approx(loss.item())
    assert found["accuracy"] == pytest.approx(accuracy, abs=1e-6)


def test_what_is_mixed_follows_from_seed_and_update() -> None:
    small = {"training": TrainingConfig(images=160, batch_size=16), "mix": MixConfig(mixup=0.8)}
    _, trainer = first_step(**small)
    images, labels = next(training_batches(ImageDataset(DataConfig()), 16, 0))
    change = torch.zeros(16, 4)
    first, second = (trainer._to_input(images, labels, change)[0] for _ in range(2))
    assert torch.equal(first, second)
    trainer.images_seen += 16
    assert not torch.equal(trainer._to_input(images, labels, change)[0], first)


def test_the_average_is_exported_and_measured(tmp_path: Path) -> None:
    config = config_for(tmp_path / "run", 48, ema=EmaConfig(half_life=100, warmup=0.0), test="digits-test")
    assert train_classifier(config) == 0
    exported = load_model(tmp_path / "run" / "classifier.safetensors", expect=MaxViT).state_dict()
    accelerator = Accelerator(cpu=True, step_scheduler_with_optimizer=False)
    torch.set_num_threads(1)
    dataset = ImageDataset(config.data)
    trainer = ClassifierTrainer(replace(config, ema=EmaConfig(half_life=0)), dataset.facts, accelerator)
    assert trainer.result is trainer.bare_network
    batches = training_batches(dataset, 16, 0, accumulation=2)
    averaged: dict[str, Tensor] = {}
    for _ in range(3):
        trainer.step(batches)
        now = {name: tensor.double() for name, tensor in trainer.bare_network.state_dict().items()}
        decay = 0.5 ** (16 / 100)
        averaged = {name: decay * averaged[name] + (1 - decay) * now[name] for name in now} if averaged else now
    for name, tensor in averaged.items():
        if not name.endswith("num_batches_tracked"):
            torch.testing.assert_close(exported[name].double(), tensor, atol=2e-3, rtol=2e-3)
    moved = {name: tensor for name, tensor in trainer.bare_network.state_dict().items() if tensor.ndim > 1}
    assert any((exported[name] - tensor).abs().max() > 5e-3 for name, tensor in moved.items())


def test_a_training_starts_from_another_resolution(tmp_path: Path) -> None:
    old = MaxViT(16, 1, 10, config=replace(TINY, head_dim=8))
    for parameter in old.parameters():
        nn.init.normal_(parameter)
    export_model(old, tmp_path / "old.safetensors", {})
    larger = replace(TINY, window_size=8, drop_path=0.1)
    config = config_for(
        tmp_path / "run", backbone=larger, data=DataConfig(resolution=32), init=str(tmp_path / "old.safetensors")
    )
    accelerator = Accelerator(cpu=True, step_scheduler_with_optimizer=False)
    facts = ImageFacts(32, 1, 10)
    trainer = ClassifierTrainer(config, facts, accelerator, load_model(tmp_path / "old.safetensors", expect=MaxViT))
    weights_now, tables = trainer.bare_network.state_dict(), 0
    for name, tensor in old.state_dict().items():
        if name.endswith("relative_bias"):
            tables += 1
            # Pillow's bilinear resizing has half-pixel centres.
            expected = [
                np.asarray(Image.fromarray(head.numpy()).resize((15, 15), Image.Resampling.BILINEAR)) for head in tensor
            ]
            torch.testing.assert_close(weights_now[name], torch.from_numpy(np.stack(expected)))
        else:
            assert torch.equal(weights_now[name], tensor)
    assert tables == 2


def test_a_training_from_other_classes_begins_its_last_layer_anew(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = MaxViT(16, 1, 4, config=TINY)
    export_model(old, tmp_path / "old.safetensors", {"class_names": ["a", "b", "c", "d"]})
    config = config_for(tmp_path / "run", init=str(tmp_path / "old.safetensors"))
    run = ClassifierRun(config, tmp_path / "run", Accelerator(cpu=True, step_scheduler_with_optimizer=False), "")
    assert "knows 4 classes and digits-train has 10: its last layer starts anew" in capsys.readouterr().out
    now = run.trainer.bare_network.state_dict()
    differing = [name for name, tensor in old.state_dict().items() if not torch.equal(tensor, now[name])]
    assert differing == ["head.logits.weight", "head.logits.bias"]
    assert now["head.logits.weight"].shape == (10, 16)


@pytest.mark.parametrize(
    ("init", "message"),
    [
        ("gone.safetensors", "there is no model file gone.safetensors"),
        ("order.safetensors", r"init order.safetensors has other settings \(backbone.order: C-GA-BA -> C-BA-GA;"),
    ],
)
def test_a_start_that_does_not_fit_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, init: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    export_model(MaxViT(16, 1, 10, config=replace(TINY, order="C-GA-BA")), "order.safetensors", {})
    with pytest.raises(ValueError, match=message):
        train_classifier(config_for(Path("run"), init=init))
    assert not Path("run").exists()


def test_augmentation_does_not_depend_on_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    _, trainer = first_step(training=TrainingConfig(images=160, batch_size=16))
    whole = trainer._affine_changes()
    assert whole.shape == (16, 4)
    assert len(whole.unique()) == 64
    parts = []
    for rank in range(2):
        monkeypatch.setattr(trainer, "accelerator", SimpleNamespace(process_index=rank, num_processes=2))
        parts.append(trainer._affine_changes())
    assert torch.equal(torch.cat(parts), whole)
    trainer.images_seen += 16
    assert not torch.equal(trainer._affine_changes(), parts[1])


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
    assert scores == {"test": source, "test_crop": "center", "images": 64, "top1": 1.0, "images_seen": 480}


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
    crop = {"test_crop": "center"}
    assert scores == {"test": "digits-test", **crop, "images": 360, "top1": top1, "top5": top5, "images_seen": 96}
    assert network.info["accuracy"] == {"test": "digits-test", "images": 360, "top1": top1, "top5": top5}
    assert network.info["command"] == "the command"
    assert network.info["class_names"] == [str(digit) for digit in range(10)]
    assert network.info["images_seen"] == 96
    for picture in ("curves.png", "confusion.png"):
        with Image.open(tmp_path / "run" / picture) as image:
            assert np.asarray(image.convert("L")).std() > 10

    before = exported.stat().st_mtime_ns
    said = capsys.readouterr().out
    assert "6 updates are few" in said
    assert "raise training.images to 11,200 or more" in said  # 700 updates of 16
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
    assert train_classifier(config_for(whole, test=None, **ALL)) == 0
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
            assert train_classifier(config_for(parts, test=None, **ALL)) == 75
        assert (parts / f"checkpoints/images-{16 * stop_at:09d}").is_dir()
        torch.manual_seed(1234)
        assert train_classifier(config_for(parts, test=None, **ALL)) == 0

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


def test_evaluate_prints_the_accuracy_of_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    digits = [str(digit) for digit in range(10)]
    network = MaxViT(16, 1, 10, config=TINY)
    nn.init.normal_(network.head.logits.weight)
    export_model(network, "named.safetensors", {"class_names": digits})
    export_model(network, "nameless.safetensors", {})
    images, labels = next(evaluation_batches(ImageDataset(DataConfig("digits-test")), 360, range(360)))
    with torch.no_grad():
        logits = network.eval()(images / 127.5 - 1).numpy()
    top1 = 100 * accuracy_score(labels, logits.argmax(1))
    top5 = 100 * top_k_accuracy_score(labels, logits, k=5)
    # Other settings of the backbone than the file's don't matter, nor does a training set that isn't there.
    config = ClassifierConfig(data=DataConfig("gone"), run=config_for(Path("run")).run)
    for file in ("named.safetensors", "nameless.safetensors"):
        assert evaluate_classifier(replace(config, evaluate=file)) == 0
        line = f"accuracy on the 360 images of digits-test: top-1 {top1:.2f} %, top-5 {top5:.2f} %"
        assert line in capsys.readouterr().out
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["named.safetensors", "nameless.safetensors"]

    with pytest.raises(ValueError, match=r"there is no model file gone\.safetensors"):
        evaluate_classifier(replace(config, evaluate="gone.safetensors"))
    folder_of_images(Path("two"), ("cat", "dog"), 1)
    for file, reason in (
        ("named.safetensors", r" \('0' is a class of only one of them\)"),
        ("nameless.safetensors", ""),
    ):
        message = f"test two has 2 classes and the classifier {file} has 10{reason}: give both the same"
        with pytest.raises(ValueError, match=message):
            evaluate_classifier(replace(config, evaluate=file, test="two"))


def test_the_test_images_are_cut_as_asked(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Wide images whose middle says one class and whose sides, which only `whole` shows, the other."""
    for name, middle in (("dark", 0), ("light", 255)):
        (tmp_path / "images" / name).mkdir(parents=True)
        pixels = np.full((16, 64), 255 - middle, dtype=np.uint8)
        pixels[:, 24:40] = middle
        Image.fromarray(pixels).save(tmp_path / "images" / name / "0.png")
    network = MaxViT(16, 1, 2, config=TINY)
    network.forward = lambda x: torch.stack([-x.mean((1, 2, 3)), x.mean((1, 2, 3))], 1)  # type: ignore[method-assign]
    for crop, correct in (("center", 2), ("whole", 0)):
        config = ClassifierConfig(test=str(tmp_path / "images"), test_crop=crop)  # type: ignore[arg-type]
        test = open_test(config, ImageFacts(16, 1, 2), ["dark", "light"], "it")
        assert int(measure_accuracy(network, test, CPU).confusion.trace()) == correct  # type: ignore[arg-type]


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
        (ClassifierOptimConfig, {"warmup_images": -1}),
        (MixConfig, {"randaugment_ops": -1}),
        (MixConfig, {"randaugment_magnitude": 31}),
        (MixConfig, {"mixup": -0.1}),
        (MixConfig, {"cutmix": -0.1}),
    ]
    for config_class, setting in wrong:
        with pytest.raises(ValueError, match=next(iter(setting))):
            config_class(**setting)
    with pytest.raises(ValueError, match=r"run\.sample_every"):
        ClassifierConfig(run=RunConfig())
    with pytest.raises(ValueError, match=r"optim\.warmup_images 960 must be fewer than training\.images 960"):
        ClassifierConfig(optim=ClassifierOptimConfig(warmup_images=960), training=TrainingConfig(images=960))
    with pytest.raises(ValueError, match="evaluate needs images to measure accuracy on: set test"):
        ClassifierConfig(evaluate="a.safetensors", test=None)


def test_the_config_file_is_the_default() -> None:
    config, name = parse(ClassifierConfig, ["--config", str(ROOT / "configs" / "digits_classifier.yaml")])
    assert (config, name) == (ClassifierConfig(), "digits_classifier")
    changed, _ = parse(
        ClassifierConfig, ["--run.threads", "1", "--affine.rotate", "5", "--optim.gradient_clip", "null"]
    )
    assert changed.run == replace(ClassifierConfig().run, threads=1)
    assert (changed.affine, changed.optim.gradient_clip) == (AffineConfig(rotate=5.0), None)


@pytest.mark.parametrize(
    ("name", "parameters", "epochs", "images_each"),
    [
        ("maxvit_tiny_imagenet", 30_916_528, 300, 1_281_167),
        ("maxvit_tiny_imagenet_384", 30_977_008, 30, 1_281_167),
        ("maxvit_tiny_imagenet_512", 31_049_584, 30, 1_281_167),
        ("cifar10_classifier", None, None, None),
    ],
)
def test_recipes_are_the_papers(name: str, parameters: int | None, epochs: int, images_each: int) -> None:
    config, _ = parse(ClassifierConfig, ["--config", str(ROOT / "configs" / f"{name}.yaml")])
    resolution = config.data.resolution
    assert resolution is not None
    with torch.device("meta"):
        network = MaxViT(resolution, 3, 1000 if parameters else 10, config=config.backbone)
    count = sum(parameter.numel() for parameter in network.parameters())
    training = config.training
    if parameters is None:
        assert count <= 2_000_000
        return
    assert count == parameters
    assert training.images == epochs * images_each
    optim = config.optim
    if resolution == 224:
        assert (training.batch_size, optim.lr, optim.min_lr, optim.weight_decay) == (4096, 3e-3, 1e-5, 0.05)
        assert (optim.warmup_images, config.ema.half_life) == (10_000 * 4096, 0)
    else:
        assert (training.batch_size, optim.lr, optim.schedule, optim.weight_decay) == (512, 5e-5, "constant", 1e-8)
        decay = ema_decay(training.images, 512, config.ema.half_life, config.ema.warmup)
        assert decay == pytest.approx(0.9999, abs=1e-9)
        assert optim.warmup == 0
    assert config.mix == MixConfig(2, 15, 0.8, 0.0)
    assert (optim.gradient_clip, optim.label_smoothing, config.backbone.drop_path) == (1.0, 0.1, 0.2)
    assert (config.data.crop, config.test_crop) == ("resized", "center" if resolution == 224 else "whole")


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
