"""A whole training: resuming, signals, run folders; what a user relies on."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import tarfile
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from PIL import Image
from safetensors.torch import load_file

from maxgan.checkpoint import find_run_state, load_model
from maxgan.config import (
    AugmentConfig,
    DataConfig,
    DiscriminatorConfig,
    EvaluationConfig,
    GanConfig,
    GanEmaConfig,
    GeneratorConfig,
    HiTConfig,
    LossConfig,
    MaxViTDiscriminatorConfig,
    NetworksConfig,
    OptimConfig,
    RunConfig,
    TrainingConfig,
)
from maxgan.data.loader import ImageDataset
from maxgan.models import HiTGenerator
from maxgan.models.latent import LatentGenerator
from maxgan.models.network import Network
from maxgan.sampling import generate, load_generator
from maxgan.training import gan_run
from maxgan.training.gan import GanTrainer
from maxgan.training.loop import Loop
from maxgan.training.run import MetricsLog, read_metrics, run_directory
from maxgan.training.standing import with_standing_statistics

GENERATOR = GeneratorConfig(
    latent_dim=8, width=16, head_dim=8, latent_tokens=4, window_size=4, norm="batch", norm_group=4
)
TINY = GanConfig(
    generator=GENERATOR,
    discriminator=DiscriminatorConfig(1 / 128, 16),
    loss=LossConfig(r2_gamma=0.1, penalty_interval=2),
    training=TrainingConfig(images=96, batch_size=16, accumulation=2),
    evaluation=EvaluationConfig(enabled=False),
    run=RunConfig(log_every=48, sample_every=96, checkpoint_every=32, keep=9, tracker="none", threads=1),
)

# What D makes of images that it has not seen.
LOOKED_AT = {
    "discriminator_accuracy_training", "discriminator_accuracy_held_out", "training_logit", "held_out_logit",
    "sample_logit",
}  # fmt: skip

HIT = replace(
    TINY,
    data=DataConfig(resolution=32),
    networks=NetworksConfig("hit", "maxvit"),
    generator=GanConfig().generator,
    hit=HiTConfig(8, 4, widths=(16, 16, 8), depths=(1, 1, 1), heads=(4, 2, 2), norm_group=4),
    discriminator=GanConfig().discriminator,
    maxvit_discriminator=MaxViTDiscriminatorConfig(width=4, depth=1, head_dim=4),
    loss=LossConfig("non_saturating", r1_gamma=1.0, bcr_real=1.0, bcr_fake=0.5, bcr_augment="cutout,color"),
    augment=AugmentConfig("ada,cutout", target=-0.9, adapt_images=1000),
    optim=OptimConfig(updates="simultaneous"),
    training=TrainingConfig(images=24, batch_size=4),
    run=replace(TINY.run, checkpoint_every=12, log_every=4),
)


def at(directory: Path, config: GanConfig = TINY, **run: Any) -> GanConfig:
    return replace(config, run=replace(config.run, directory=str(directory), **run))


def train(config: GanConfig) -> int:
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    PartialState._reset_state()
    return gan_run.train_gan(config)


def states(checkpoint: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor of a checkpoint: networks, moving average, meters, optimisers."""
    files = sorted(checkpoint.glob("*.safetensors"))
    assert len(files) == 3
    for file in files:
        for name, tensor in sorted(load_file(file).items()):
            yield f"{file.name}/{name}", tensor
    for file in sorted(checkpoint.glob("optimizer*.bin")):
        state = torch.load(file, weights_only=True)["state"]
        assert state
        for key, entry in state.items():
            for name, value in entry.items():
                yield f"{file.name}/{key}/{name}", torch.as_tensor(value)


def assert_same(a: Path, b: Path) -> None:
    one, two = dict(states(a)), dict(states(b))
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, two[name]), name


def without_times(directory: Path) -> list[dict[str, float]]:
    timed = {"seconds", "images_per_second"}
    return [{k: v for k, v in line.items() if k not in timed} for line in read_metrics(directory / "metrics.jsonl")]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 96 images without interruption, with a checkpoint every 32."""
    directory = tmp_path_factory.mktemp("run") / "whole"
    assert train(at(directory)) == 0
    return directory


def is_average(generator: Network, checkpoint: Path) -> bool:
    """Tell whether a generator has the averaged weights of a checkpoint, and the standing statistics of these."""
    kept = dict(states(checkpoint))
    tensors = {name: kept[f"tensors.safetensors/trainer/module.{name}"] for name in generator.state_dict()}
    average = load_generator(checkpoint.parents[1] / "generator.safetensors")
    assert isinstance(average, LatentGenerator)
    average.load_state_dict(tensors)
    counts = generator.info["class_counts"]
    expected = with_standing_statistics(average, GanEmaConfig.standing_images, counts).state_dict()
    for name, tensor in generator.state_dict().items():
        running = "running" in name
        torch.testing.assert_close(tensor, expected[name], rtol=1e-5 * running, atol=1e-6 * running, msg=name)
        if running and torch.equal(tensor, tensors[name]):
            return False
    return len(counts) == 10


def test_a_run_holds_all_that_it_promises(whole: Path) -> None:
    for name in ("config.yaml", "metrics.jsonl", "reals.png", "curves.png", "generator.safetensors"):
        assert (whole / name).stat().st_size > 0, name
    assert [p.name for p in sorted((whole / "checkpoints").iterdir())] == [f"images-{n:09d}" for n in (32, 64, 96)]
    assert [line["images"] for line in read_metrics(whole / "metrics.jsonl")] == [48, 96]
    with Image.open(whole / "samples" / "000000096.png") as picture:
        assert picture.size == (10 * 66 + 2, 10 * 66 + 2)
    generator = load_model(whole / "generator.safetensors")
    assert generator.info["images_seen"] == 96
    assert generator.info["class_names"] == [str(digit) for digit in range(10)]
    assert is_average(generator, whole / "checkpoints" / "images-000000096")


def test_stopped_at_a_checkpoint_and_resumed_is_bit_identical(whole: Path, tmp_path: Path) -> None:
    directory = tmp_path / "resumed"
    shutil.copytree(whole, directory)
    for name in ("images-000000064", "images-000000096"):
        shutil.rmtree(directory / "checkpoints" / name)
    assert train(at(directory)) == 0
    assert_same(whole / "checkpoints/images-000000096", directory / "checkpoints/images-000000096")
    # Image 32 lies within a logged interval: its means are part of the checkpoint.
    assert without_times(directory) == without_times(whole)


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), pytest.param(signal.SIGUSR1, 75, marks=pytest.mark.slow)]
)
def test_a_signal_saves_at_once_and_the_same_command_goes_on(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, code: int
) -> None:
    directory = tmp_path / "stopped"
    step = GanTrainer.step

    def interrupted(self: GanTrainer, batches: Any) -> Any:
        if self.images_seen == 32:
            os.kill(os.getpid(), number)
        return step(self, batches)

    monkeypatch.setattr(GanTrainer, "step", interrupted)
    before = signal.getsignal(number)
    assert train(at(directory)) == code
    assert signal.getsignal(number) is before
    assert (directory / "checkpoints" / "images-000000048").is_dir()
    monkeypatch.setattr(GanTrainer, "step", step)
    assert train(at(directory)) == 0
    assert_same(whole / "checkpoints/images-000000096", directory / "checkpoints/images-000000096")
    assert without_times(directory) == without_times(whole)


def test_a_damaged_checkpoint_is_passed_over_and_a_torn_metrics_line_dropped(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = tmp_path / "damaged"
    shutil.copytree(whole, directory)
    file = directory / "checkpoints" / "images-000000096" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with (directory / "metrics.jsonl").open("a") as metrics:
        metrics.write('{"images": 112, "loss_gen')
    assert train(at(directory)) == 0
    assert "passing over the checkpoint" in capsys.readouterr().out
    assert_same(whole / "checkpoints/images-000000096", directory / "checkpoints/images-000000096")
    assert without_times(directory) == without_times(whole)


def test_a_finished_run_says_so_and_does_nothing(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in (whole / "checkpoints").rglob("*")}
    assert train(at(whole)) == 0
    assert "this run is finished" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in (whole / "checkpoints").rglob("*")} == before


def test_a_run_that_was_killed_before_its_curves_gets_them(whole: Path, tmp_path: Path) -> None:
    directory = tmp_path / "killed"
    shutil.copytree(whole, directory)
    (directory / "curves.png").unlink()
    assert train(at(directory)) == 0
    assert (directory / "curves.png").stat().st_size > 0
    assert_same(whole / "checkpoints/images-000000096", directory / "checkpoints/images-000000096")


@pytest.mark.slow
def test_the_baseline_with_all_options_is_resumed_and_sampled(whole: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    assert train(at(first, HIT)) == 0
    shutil.copytree(first, second)
    shutil.rmtree(second / "checkpoints" / "images-000000024")
    assert train(at(second, HIT)) == 0
    assert_same(first / "checkpoints/images-000000024", second / "checkpoints/images-000000024")
    assert without_times(first) == without_times(second)
    assert {"bcr_real", "bcr_fake", "r1"} <= without_times(first)[-1].keys()
    # Adapted once, after four updates, the sum of the signs of three lying in a checkpoint.
    probabilities = [line["augment_probability"] for line in without_times(first)]
    assert probabilities == pytest.approx([0, 0, 0, 0, 0.016, 0.016])

    generator = load_generator(first)
    assert isinstance(generator, HiTGenerator)
    (batch,) = generate(generator, range(3), 3, "cpu")
    assert batch.images.shape == (3, 1, 32, 32)

    # A checkpoint of other networks, put where it doesn't belong.
    shutil.rmtree(second / "checkpoints")
    shutil.copytree(whole / "checkpoints", second / "checkpoints")
    with pytest.raises(ValueError, match=r"checkpoint .*images-000000096 doesn't fit this run .*: start another run"):
        train(at(second, HIT))


def test_a_folder_of_another_config_is_refused(whole: Path) -> None:
    config = at(whole, replace(TINY, optim=replace(TINY.optim, lr=1e-3)))
    with pytest.raises(ValueError, match=r"holds a run with other settings .*optim.lr: .*0\.0005.* -> 0\.001"):
        train(config)
    # What doesn't change learning may differ.
    assert train(at(whole, keep=5)) == 0


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(ValueError, match="is not empty and holds no run"):
        train(at(tmp_path))
    assert (tmp_path / "thesis.txt").read_text() == "precious"


def test_changing_a_learning_setting_names_another_folder() -> None:
    named = replace(TINY, run=replace(TINY.run, directory=None, root="r", name="n"))
    one = run_directory(named, "x")
    two = run_directory(replace(named, ema=replace(named.ema, half_life=1)), "x")
    three = run_directory(replace(named, run=replace(named.run, keep=3)), "x")
    assert one == three
    assert one != two
    assert str(one).startswith("r/n-")


def test_what_a_process_left_that_was_killed_before_its_config_was_there_is_no_obstacle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (".lock", ".tmp-12345678-config.yaml"):
        (tmp_path / name).touch()
    monkeypatch.setattr(Loop, "train", lambda _: signal.SIGUSR1)
    assert train(at(tmp_path)) == 75
    assert not list(tmp_path.rglob(".tmp-*"))


def test_processes_that_do_not_divide_the_batch_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Accelerator, "num_processes", 3)
    with pytest.raises(ValueError, match=r"training\.batch_size 16 .* over 3 processes .*accumulation 2: .* of 6, or"):
        train(at(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_machines_with_unlike_data_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("maxgan.training.loop.gather_object", lambda mine: [*mine, 1436])
    with pytest.raises(
        ValueError, match=r"the processes find 1,436 to 1,437 images in data\.source digits-train: give"
    ):
        train(at(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_run_in_use_is_refused(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fcntl

    monkeypatch.setattr("maxgan.training.run.LOCK_SECONDS", 0)
    with (whole / ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(ValueError, match="is training in"):
            train(at(whole))


def test_a_full_disk_leaves_the_last_checkpoint_and_one_sentence(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = tmp_path / "full"
    shutil.copytree(whole, directory)
    shutil.rmtree(directory / "checkpoints" / "images-000000096")
    import errno

    import maxgan.checkpoint

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as context:
        context.setattr(maxgan.checkpoint, "save_file", full)
        with pytest.raises(OSError, match=r"images-000000096"):
            train(at(directory))
    assert [p.name for p in sorted((directory / "checkpoints").iterdir())] == ["images-000000032", "images-000000064"]
    assert train(at(directory)) == 0
    assert_same(whole / "checkpoints/images-000000096", directory / "checkpoints/images-000000096")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_under_the_metrics_is_said_in_one_sentence(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl", 0)
    log.close()
    log._file = Path("/dev/full").open("a")  # noqa: SIM115
    with pytest.raises(OSError, match="no space left on the disk to write /dev/full: free some"), closing(log):
        log.write({"images": 1})


@pytest.mark.slow
def test_a_run_goes_on_when_a_disk_that_was_full_has_room(whole: Path, tmp_path: Path) -> None:
    """A real one: of too few bytes for all three checkpoints."""
    disk = tmp_path / "disk"
    disk.mkdir()
    size = sum(path.stat().st_size for path in (whole / "checkpoints").rglob("*") if path.is_file())
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("may not mount a small disk")
    try:
        directory = disk / "run"
        with pytest.raises(OSError, match=r"^no space left on the disk to write .*: free some and start again; .*$"):
            train(at(directory))
        assert not list(directory.rglob(".tmp-*"))
        newest = find_run_state(directory / "checkpoints", pytest.fail)
        assert newest is not None
        assert_same(whole / "checkpoints" / newest.name, newest)
        subprocess.run(["mount", "-o", "remount,size=1g", str(disk)], check=True)
        assert train(at(directory)) == 0
        assert_same(whole / "checkpoints/images-000000096", directory / "checkpoints/images-000000096")
        assert without_times(directory) == without_times(whole)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.slow
def test_a_shard_that_changes_under_way_stops_the_run_and_it_goes_on_when_that_is_mended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard = tmp_path / "images.tar"
    noise = np.random.default_rng(0)
    with tarfile.open(shard, "w") as archive:
        for i in range(20):
            png = io.BytesIO()
            Image.fromarray(noise.integers(0, 256, (12, 12, 3), dtype=np.uint8)).save(png, "png")
            entry = tarfile.TarInfo(f"{i}.png")
            entry.size = len(png.getvalue())
            archive.addfile(entry, io.BytesIO(png.getvalue()))
    content = shard.read_bytes()
    data = DataConfig(source=str(shard), resolution=8, crop="random", crop_fraction=0.9)  # so that memory keeps none
    config = replace(TINY, data=data, training=TrainingConfig(images=64, batch_size=16))
    assert train(at(tmp_path / "whole", config)) == 0
    step = GanTrainer.step

    def damaging(self: GanTrainer, batches: Any) -> Any:
        if self.images_seen == 48:
            shard.write_bytes(content[:5000] + b"changed" + content[5000:])
        return step(self, batches)

    monkeypatch.setattr(GanTrainer, "step", damaging)
    with pytest.raises(ValueError, match=r"images\.tar.* changed") as caught:
        train(at(tmp_path / "stopped", config))
    assert "\n" not in str(caught.value)
    newest = find_run_state(tmp_path / "stopped" / "checkpoints", pytest.fail)
    assert newest is not None
    assert newest.name == "images-000000032"
    monkeypatch.setattr(GanTrainer, "step", step)
    shard.write_bytes(content)
    assert train(at(tmp_path / "stopped", config)) == 0
    last = "checkpoints/images-000000064"
    assert_same(tmp_path / "whole" / last, tmp_path / "stopped" / last)
    assert without_times(tmp_path / "stopped") == without_times(tmp_path / "whole")


def test_a_decoding_process_that_is_killed_amid_an_update_is_told_of(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch raises this from a handler of SIGCHLD, wherever the training is."""

    def struck(self: GanTrainer, batches: Any) -> Any:
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. ")

    directory = tmp_path / "struck"
    shutil.copytree(whole, directory)
    shutil.rmtree(directory / "checkpoints" / "images-000000096")
    monkeypatch.setattr(GanTrainer, "step", struck)
    with pytest.raises(OSError, match=r"decoding process was ended .* \(DataLoader .* Killed\): the same command goes"):
        train(at(directory))


def test_another_number_of_images_is_told_of(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = tmp_path / "other"
    shutil.copytree(whole, directory)
    monkeypatch.setattr(Loop, "train", lambda _: signal.SIGTERM)
    for lost, told in ((0, 0), (1, 1)):
        shutil.rmtree(directory / "checkpoints" / ("images-000000064" if lost else "images-000000096"))
        monkeypatch.setattr("maxgan.data.sources.Digits.__len__", lambda self, lost=lost: len(self._pixels) - lost)
        assert train(at(directory)) == 75
        said = capsys.readouterr().out
        assert said.count("the data has 1,436 images and had 1,437 when") == told
        assert "going on from" in said


def test_a_loss_that_is_not_finite_stops_the_run_before_it_is_saved(tmp_path: Path) -> None:
    config = replace(TINY, optim=replace(TINY.optim, lr=1e30))
    with pytest.raises(ValueError, match=r"at update \d+, images .* became infinite or NaN: the run stops"):
        train(at(tmp_path / "nan", config))
    assert not (tmp_path / "nan" / "checkpoints").exists()


def test_unlabelled_training_and_scores_that_cannot_be_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    noise = torch.Generator().manual_seed(0)
    for i in range(20):
        pixels = torch.randint(0, 256, (20, 24, 3), generator=noise, dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(folder / f"{i}.png")
    config = replace(
        TINY,
        data=DataConfig(source=str(folder), resolution=8, crop="random", crop_fraction=0.9, flip=True),
        evaluation=EvaluationConfig(),
        training=TrainingConfig(images=32, batch_size=16),
    )
    assert train(at(tmp_path / "run", config)) == 0
    assert "no embedded extractor" in capsys.readouterr().out
    generator = load_model(tmp_path / "run" / "generator.safetensors")
    assert (generator.resolution, generator.channels, generator.num_classes) == (8, 3, 0)


@pytest.mark.parametrize(
    ("num_classes", "columns", "images"),
    [(0, 10, 100), (1, 10, 100), (2, 10, 100), (3, 9, 99), (7, 7, 98), (1000, 10, 100)],
)
def test_a_column_of_a_grid_is_of_one_class_and_few_classes_make_no_strip(
    num_classes: int, columns: int, images: int, tmp_path: Path
) -> None:
    classes, found = gan_run.grid_classes(num_classes)
    assert (len(classes), found) == (min(num_classes, 10), columns)
    # Enough of each class, in an order that helps nobody.
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(max(num_classes, 1)), 100))
    content = {"images": np.zeros((len(labels), 8, 8, 1), np.uint8), **({"labels": labels} if num_classes else {})}
    np.savez(tmp_path / "set.npz", **content)
    dataset = ImageDataset(DataConfig(source=str(tmp_path / "set.npz")))
    indices, found = gan_run.grid_of_reals(dataset)
    assert (len(indices), len(set(indices)), found) == (images, images, columns)
    if num_classes:
        rows = labels[indices].reshape(-1, columns)
        assert (rows == np.resize(classes, columns)).all()


@pytest.mark.parametrize("resolution", [12, 2048])
def test_a_resolution_that_is_no_power_of_two_is_refused(tmp_path: Path, resolution: int) -> None:
    config = replace(TINY, data=DataConfig(resolution=resolution))
    with pytest.raises(ValueError, match=r"power of two from 8 to 1024"):
        train(at(tmp_path / "run", config))


def test_scores_at_the_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = replace(TINY, evaluation=EvaluationConfig(images=100), training=TrainingConfig(images=32, batch_size=16))
    assert train(at(tmp_path / "run", config)) == 0
    scores = json.loads((tmp_path / "run" / "scores.json").read_text())
    assert scores["protocol"]["name"] == "fd-digits"
    assert scores["num_fakes"] == 100
    assert scores["num_reals"] == 1797
    assert "FD-digits" in capsys.readouterr().out
    assert load_model(tmp_path / "run" / "generator.safetensors").info["scores"]["fd-digits"]["fd"] > 0
    # How D does on images that it has not seen is told at the end too.
    last = read_metrics(tmp_path / "run" / "metrics.jsonl")[-1]
    assert set(last) == {"images", *LOOKED_AT}


SCORED = replace(
    TINY,
    evaluation=EvaluationConfig(every=32, images=80, reference="digits-test", metrics=("frechet", "precision_recall")),
    run=replace(TINY.run, sample_every=0),
)


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 96 images, scored every 32."""
    directory = tmp_path_factory.mktemp("run") / "scored"
    assert train(at(directory, SCORED)) == 0
    return directory


def score_lines(directory: Path) -> list[dict[str, float]]:
    return [line for line in read_metrics(directory / "metrics.jsonl") if "fd" in line]


def test_scores_along_a_training_keep_the_best_generator(scored: Path, whole: Path) -> None:
    lines = score_lines(scored)
    assert [line["images"] for line in lines] == [32, 64, 96]
    assert set(lines[0]) == {"images", "fd", "precision", "recall", *LOOKED_AT}
    best = min(lines, key=lambda line: line["fd"])
    generator = load_model(scored / "best.safetensors")
    assert generator.info["images_seen"] == best["images"]
    assert generator.info["scores"]["fd-digits"]["fd"] == best["fd"]
    assert is_average(generator, scored / "checkpoints" / f"images-{best['images']:09d}")
    histories = sorted((scored / "scores").iterdir())
    assert [file.name for file in histories] == [f"{images:09d}.json" for images in (32, 64, 96)]
    assert (scored / "scores.json").read_text() == histories[-1].read_text()
    assert json.loads(histories[0].read_text())["metrics"]["fd"] == lines[0]["fd"]
    # To be scored changes nothing in what is learned.
    assert_same(whole / "checkpoints/images-000000096", scored / "checkpoints/images-000000096")


@pytest.mark.slow
def test_a_scored_run_goes_on_without_scoring_again(
    scored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = tmp_path / "resumed"
    shutil.copytree(scored, directory)
    shutil.rmtree(directory / "checkpoints" / "images-000000096")
    for name in ("curves.png", "scores.json"):
        (directory / name).unlink()
    times: list[int] = []
    score_now = gan_run.GanRun.score_now

    def counted(self: gan_run.GanRun) -> dict[str, float]:
        times.append(self.trainer.images_seen)
        return score_now(self)

    monkeypatch.setattr(gan_run.GanRun, "score_now", counted)
    (directory / "scores" / ".tmp-12345678-000000096.json").touch()  # of a process that was killed
    assert train(at(directory, SCORED, keep=1)) == 0
    assert times == [96]
    best = int(min(score_lines(scored), key=lambda line: line["fd"])["images"])
    kept = [path.name for path in sorted((directory / "checkpoints").iterdir())]
    assert kept == [f"images-{images:09d}" for images in sorted({best, 96})]
    assert score_lines(directory) == score_lines(scored)
    # Killed after its last checkpoint, a run has its scores already.
    (directory / "curves.png").unlink()
    (directory / "scores.json").unlink()
    assert train(at(directory, SCORED)) == 0
    assert times == [96]
    assert json.loads((directory / "scores.json").read_text())["num_fakes"] == 80


@pytest.mark.slow
def test_scores_by_something_else_are_not_compared(
    scored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = tmp_path / "changed"
    shutil.copytree(scored, directory)
    shutil.rmtree(directory / "checkpoints" / "images-000000096")
    evaluation = replace(SCORED.evaluation, images=40)
    assert train(at(directory, replace(SCORED, evaluation=evaluation))) == 0
    told = capsys.readouterr().out
    assert "the scores of this run were by fd-digits with 80 images against digits-test (extractor " in told
    assert "and are by fd-digits with 40 images against digits-test" in told
    info = load_model(directory / "best.safetensors").info
    assert info["images_seen"] == 96 and json.loads((directory / "scores.json").read_text())["num_fakes"] == 40


def test_a_run_killed_before_it_wrote_its_best_generator_writes_it(
    scored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = tmp_path / "killed"
    shutil.copytree(scored, directory)
    line = min(score_lines(scored), key=lambda line: line["fd"])
    for folder in (directory / "checkpoints").iterdir():
        if int(folder.name.split("-")[1]) > line["images"]:
            shutil.rmtree(folder)
    (directory / "best.safetensors").unlink()
    (directory / "curves.png").unlink()
    monkeypatch.setattr(Loop, "train", lambda _: signal.SIGTERM)
    assert train(at(directory, SCORED)) == 75
    info = load_model(directory / "best.safetensors").info
    assert (info["images_seen"], info["scores"]["fd-digits"]["fd"]) == (line["images"], line["fd"])


def test_scores_along_a_training_need_a_distance() -> None:
    with pytest.raises(ValueError, match="add frechet to metrics"):
        EvaluationConfig(every=10, metrics=("kernel",))
    with pytest.raises(ValueError, match=r"evaluation\.every"):
        EvaluationConfig(every=10, enabled=False)
