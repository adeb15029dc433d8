"""Averages beside the first: kept in training, exported, resumed, and made afterwards."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from safetensors.torch import load_file
from torch import Tensor

from maxgan.checkpoint import export_model
from maxgan.cli import to_yaml
from maxgan.config import (
    BestAverageConfig,
    DataConfig,
    DiscriminatorConfig,
    EvaluationConfig,
    GanConfig,
    GanEmaConfig,
    GeneratorConfig,
    OptimConfig,
    RunConfig,
    TrainingConfig,
)
from maxgan.models.latent import LatentGenerator
from maxgan.models.network import Network
from maxgan.sampling import load_generator
from maxgan.training.gan import GanTrainer
from maxgan.training.gan_run import train_gan
from maxgan.training.posthoc import as_the_run, main, reconstruct, snapshots_of
from maxgan.training.power_ema import coefficients, power_decay
from maxgan.training.schedules import ema_decay
from maxgan.training.standing import with_standing_statistics

BATCH, IMAGES = 4, 96
CONFIG = GanConfig(
    generator=GeneratorConfig(latent_dim=8, width=16, head_dim=8, latent_tokens=4, norm="batch", norm_group=4),
    discriminator=DiscriminatorConfig(1 / 128, 16),
    optim=OptimConfig(lr=5e-3),
    ema=GanEmaConfig(others=(4, 8), power=(0.05, 0.1), standing_images=0),
    training=TrainingConfig(images=IMAGES, batch_size=BATCH),
    evaluation=EvaluationConfig(enabled=False),
    run=RunConfig(log_every=48, sample_every=0, checkpoint_every=8, keep=2, tracker="none", threads=1),
)


def train(directory: Path, config: GanConfig = CONFIG) -> int:
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    PartialState._reset_state()
    return train_gan(replace(config, run=replace(config.run, directory=str(directory))))


def floats(state: dict[str, Tensor]) -> Tensor:
    """All weights and statistics in the order of their names."""
    return torch.cat([tensor.double().flatten() for _, tensor in sorted(state.items()) if tensor.is_floating_point()])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Tensor]:
    """The folder of a run, and the generator's weights and statistics after every update."""
    directory = tmp_path_factory.mktemp("averages") / "run"
    course: list[Tensor] = []
    step = GanTrainer.step

    def watched(self: GanTrainer, batches: Any) -> Any:
        metrics = step(self, batches)
        course.append(floats(self.accelerator.unwrap_model(self.generator).state_dict()))
        return metrics

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GanTrainer, "step", watched)
        assert train(directory) == 0
    return directory, torch.stack(course)


def average(course: Tensor, decay: Any) -> Tensor:
    """The average after the last update, computed offline."""
    found = torch.zeros_like(course[0])
    for update, weights in enumerate(course):
        keep = 0.0 if update == 0 else decay((update + 1) * BATCH)
        found = keep * found + (1 - keep) * weights
    return found


@pytest.mark.slow
def test_every_average_is_that_of_the_course(run: tuple[Path, Tensor]) -> None:
    directory, course = run
    for half_life in (4, 8):
        expected = average(course, lambda seen, h=half_life: ema_decay(seen, BATCH, h, CONFIG.ema.warmup))
        found = floats(load_file(directory / "averages" / f"half-life-{half_life}.safetensors"))
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    assert sorted(snapshots_of(directory).values()) == [(w, n) for w in (0.05, 0.1) for n in range(8, IMAGES + 1, 8)]
    for file, (width, seen) in snapshots_of(directory).items():
        expected = average(course[: seen // BATCH], lambda seen, w=width: power_decay(seen, BATCH, w))
        torch.testing.assert_close(floats(load_file(file)), expected, rtol=1e-4, atol=1e-6)
    # A snapshot is a generator, and much smaller than a checkpoint.
    assert load_generator(file).info["images_seen"] == IMAGES  # type: ignore[attr-defined]
    checkpoint = sum(part.stat().st_size for part in (directory / "checkpoints").glob("images-000000096/*"))
    assert file.stat().st_size < checkpoint / 4


@pytest.mark.slow
def test_a_reconstruction_is_the_average_that_training_would_have_kept(run: tuple[Path, Tensor]) -> None:
    directory, course = run
    for width, images in ((0.05, 96), (0.08, 96), (0.2, 96), (0.1, 88)):
        network, distance = reconstruct(directory, width, images)
        expected = average(course[: images // BATCH], lambda seen, w=width: power_decay(seen, BATCH, w))
        scale = (course[images // BATCH - 1] - expected).norm()
        assert (floats(network.state_dict()) - expected).norm() < 0.05 * scale, width
        assert distance < 0.05
        assert (network.info["sigma_rel"], network.info["images_seen"]) == (width, images)
        assert network.info["profile_mismatch"] == pytest.approx(distance, abs=1e-6)
        assert not network.training
    with pytest.raises(ValueError, match="no average at 200 images can be made of snapshots up to 96"):
        reconstruct(directory, 0.1, 200)


@pytest.mark.slow
def test_every_average_has_the_statistics_of_its_own_samples(run: tuple[Path, Tensor], tmp_path: Path) -> None:
    config = replace(CONFIG, ema=replace(CONFIG.ema, standing_images=64))
    assert train(tmp_path / "run", config) == 0
    files = ["averages/half-life-4.safetensors", "snapshots/images-000000048-power-0.1.safetensors"]
    found = [load_generator(tmp_path / "run" / file) for file in files]
    found.append(reconstruct(tmp_path / "run", 0.08)[0])
    known = [load_generator(run[0] / file) for file in files] + [reconstruct(run[0], 0.08)[0]]
    for ours, averaged in zip(found, known, strict=True):
        assert isinstance(ours, LatentGenerator) and isinstance(averaged, LatentGenerator)
        counts = ours.info["class_counts"]
        assert len(counts) == 10 and sum(counts) == 1437  # what posthoc draws the classes by
        expected = with_standing_statistics(averaged, 64, counts).state_dict()
        for name, tensor in ours.state_dict().items():  # the weights are the same: statistics change no training
            if tensor.is_floating_point():
                torch.testing.assert_close(tensor, expected[name], rtol=1e-4, atol=1e-6, msg=name)
        assert not torch.equal(floats(averaged.state_dict()), floats(ours.state_dict()))


@pytest.mark.slow
def test_a_run_that_was_stopped_keeps_the_same_averages(run: tuple[Path, Tensor], tmp_path: Path) -> None:
    directory = tmp_path / "run"
    shutil.copytree(run[0], directory)
    shutil.rmtree(directory / "checkpoints" / "images-000000096")
    for file, (_, seen) in snapshots_of(directory).items():
        if seen == 88:  # killed after its checkpoint, before its snapshots
            file.unlink()
        elif seen == 96:
            file.write_bytes(b"of a course that was lost")
    assert train(directory) == 0
    for folder in ("averages", "snapshots", "checkpoints/images-000000096"):
        files = sorted((run[0] / folder).glob("*.safetensors"))
        assert [file.name for file in files] == sorted(file.name for file in (directory / folder).glob("*.safetensors"))
        for file in files:
            other = load_file(directory / folder / file.name)
            for name, tensor in load_file(file).items():
                assert torch.equal(tensor, other[name]), f"{file}: {name}"


@pytest.mark.slow
def test_a_variance_never_falls_below_zero(tmp_path: Path, run: tuple[Path, Tensor]) -> None:
    (last, profile) = next(reversed(snapshots_of(run[0]).items()))
    for sign, seen in ((1.0, 8), (-1.0, 96)):
        network = Network.from_pretrained(last)
        for name, tensor in network.state_dict().items():
            if name.endswith("running_var"):
                tensor.fill_(max(sign, 0.0))
        export_model(network, tmp_path / "snapshots" / f"images-{seen:09d}-power-0.1.safetensors", {})
    (tmp_path / "config.yaml").write_text(to_yaml(CONFIG))
    factors = coefficients([(0.1, 8), (0.1, 96)], (0.05, 96))
    assert factors[0] < 0
    found, _ = reconstruct(tmp_path, 0.05)
    assert min(t.min() for name, t in found.state_dict().items() if name.endswith("running_var")) == 0
    assert profile[1] == 96


@pytest.mark.slow
def test_the_commands_reconstruct_and_find_the_best(
    run: tuple[Path, Tensor], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = str(run[0])
    main(["reconstruct", directory, "--sigma_rel=0.08", f"--output={tmp_path}/a.safetensors"])
    expected = reconstruct(run[0], 0.08)[0].state_dict()
    assert floats(load_file(tmp_path / "a.safetensors")).equal(floats(expected))

    output = tmp_path / "best.safetensors"
    main(["best", directory, "--n=100", "--sigma_rels=[0.05, 0.2]", "--refine=1", f"--output={output}", "--cpu=true",
          "--threads=1", "--metrics=[frechet]"])  # fmt: skip
    found = json.loads(output.with_suffix(".json").read_text())
    distances = {name: scores["metrics"]["fd"] for name, scores in found["scores"].items()}
    assert distances.keys() == {"generator", "half-life-4", "half-life-8", "power-0.05", "power-0.1", "power-0.2"}
    assert len(set(distances.values())) == 6
    assert found["best"] == min(distances, key=lambda name: distances[name])
    best = load_generator(output)
    assert best.info["scores"]["fd-digits"]["fd"] == distances[found["best"]]  # type: ignore[attr-defined]
    assert f"best: {found['best']}, written to {output}" in capsys.readouterr().out


def test_scores_are_as_the_run_takes_them(tmp_path: Path) -> None:
    evaluation = EvaluationConfig(extractor="cifar10", reference="digits-test", metrics=("frechet",), images=40)
    data = DataConfig(source="digits-train", crop_fraction=0.5, flip=True)
    (tmp_path / "config.yaml").write_text(to_yaml(replace(CONFIG, evaluation=evaluation, data=data)))
    found, cut = as_the_run(BestAverageConfig(reference="digits", seed=3), tmp_path)
    assert (found.extractor, found.reference, list(found.metrics or ()), found.n, found.seed) == (
        "cifar10", "digits", ["frechet"], 40, 3
    )  # fmt: skip
    assert cut == data
    # A protocol has its own extractor, and an extractor its own protocol.
    found, _ = as_the_run(BestAverageConfig(protocol="fid50k-train-2015-clean"), tmp_path)
    assert (found.extractor, found.reference) == (None, "digits-test")
    for content in ("", "[1, 2", "evaluation: 3\n"):  # not a run's: as before
        (tmp_path / "config.yaml").write_text(content)
        assert as_the_run(BestAverageConfig(n=7), tmp_path) == (BestAverageConfig(n=7), DataConfig())


def test_mistakes_end_in_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, message in (
        (["improve"], "usage: python -m maxgan.training.posthoc reconstruct|best RUN"),
        (["reconstruct", str(tmp_path)], "is no folder of a run: generator.safetensors is missing"),
    ):
        with pytest.raises(SystemExit):
            main(arguments)
        assert message in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"has no snapshots of power-function averages: train with ema\.power"):
        reconstruct(tmp_path, 0.1)
