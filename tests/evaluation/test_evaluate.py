"""From generators and folders to scores, with the embedded extractor."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from sklearn.datasets import load_digits
from torch import Tensor, nn

import evaluate
import sample
from maxgan.checkpoint import export_model
from maxgan.config import DataConfig
from maxgan.data.loader import ImageDataset, evaluation_batches
from maxgan.evaluation.evaluate import matched_labels, score_generator, score_images
from maxgan.evaluation.extractors import load_extractor
from maxgan.models import MaxViTGenerator
from maxgan.runtime import share_of
from maxgan.writers import Batch, write_images


class Replay(nn.Module):
    """A "generator" that gives, for a label, training digits of that class one after another."""

    latent_dim, num_classes, resolution, channels = 4, 10, 16, 1

    def __init__(self) -> None:
        super().__init__()
        dataset = ImageDataset(DataConfig(source="digits-train"))
        batches = list(evaluation_batches(dataset, 512, range(len(dataset))))
        images = torch.cat([images for images, _ in batches]).float() / 127.5 - 1
        labels = torch.cat([labels for _, labels in batches])
        self.members = [images[labels == label] for label in range(10)]
        self.next = [0] * 10
        self.eval()

    def forward(self, z: Tensor, labels: Tensor) -> Tensor:
        out = []
        for label in labels.tolist():
            out.append(self.members[label][self.next[label] % len(self.members[label])])
            self.next[label] += 1
        return torch.stack(out)


def test_real_digits_score_as_real_digits() -> None:
    scores = score_generator(
        Replay(), "replay", DataConfig(source="digits"), load_extractor("digits"), Accelerator(cpu=True)
    )
    assert (scores.num_fakes, scores.num_reals) == (1797, 1797)
    assert scores.metrics["fd_ratio"] < 0.25
    assert scores.metrics["accuracy"] > 0.99
    assert scores.metrics["precision"] > 0.99
    assert scores.metrics["recall"] > 0.95
    assert scores.protocol.frechet == "FD-digits"


@pytest.mark.parametrize("count", [7, 360, 1797, 5000])
def test_matched_labels_have_the_frequencies_of_the_reference(count: int) -> None:
    labels = load_digits().target
    drawn = np.bincount(matched_labels(labels, count, 10), minlength=10)
    assert drawn.sum() == count
    assert np.abs(drawn - np.bincount(labels) / len(labels) * count).max() < 1
    assert matched_labels(labels, count, 10) == matched_labels(labels, count, 10)


@pytest.mark.parametrize("processes", [1, 2, 3, 5])
@pytest.mark.parametrize("count", [0, 1, 4, 1797])
def test_shares_of_processes_are_the_whole(processes: int, count: int) -> None:
    class Process:
        def __init__(self, rank: int) -> None:
            self.process_index, self.num_processes = rank, processes

    shares = [list(share_of(count, Process(rank))) for rank in range(processes)]  # type: ignore[arg-type]
    assert [index for share in shares for index in share] == list(range(count))


def test_a_folder_of_reals_against_reals_and_the_script(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dataset = ImageDataset(DataConfig(source="digits-test"))
    batches = [Batch(range(len(dataset)), *next(evaluation_batches(dataset, 360, range(360))))]
    write_images(batches, tmp_path / "fakes.zip")
    evaluate.main([f"--fakes={tmp_path}/fakes.zip", f"--output={tmp_path}/scores.json", "--cpu=true", "--threads=1"])
    written = json.loads((tmp_path / "scores.json").read_text())["metrics"]
    direct = score_images(
        DataConfig(source="digits-test"), DataConfig(source="digits"), load_extractor("digits"), Accelerator(cpu=True)
    ).metrics
    assert written == pytest.approx(dict(direct), rel=1e-5)
    assert written["accuracy"] > 0.98
    assert "FD-digits of 10 real half-splits" in capsys.readouterr().out


def test_the_scripts_take_the_newest_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    generator = MaxViTGenerator(16, 1, 10, width=16, head_dim=8, latent_dim=8, latent_tokens=4, norm="layer")
    for name in ("old", "new"):
        export_model(generator, tmp_path / "runs" / name / "generator.safetensors", {"source": "digits-train"})
    monkeypatch.chdir(tmp_path)
    sample.main(["--n=12", "--grid=grid.png", "--cpu=true", "--threads=1"])
    assert "runs/new/generator.safetensors" in capsys.readouterr().out
    assert len(list((tmp_path / "samples" / "new").glob("*/*.png"))) == 12
    evaluate.main(["--n=80", "--cpu=true", "--threads=1"])
    output = capsys.readouterr().out
    assert "80 images of runs/new/generator.safetensors against 1797 of digits" in output


def test_the_script_names_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, words in (
        (["--fakes=nowhere"], "nowhere"),
        ([f"--fakes={tmp_path}", "--extractor=inception"], "there is no extractor inception"),
        (["--n=1"], "n must be at least 2"),
    ):
        with pytest.raises(SystemExit) as stop:
            evaluate.main([*arguments, "--cpu=true", "--threads=1"])
        assert stop.value.code in (1, 2)
        assert words in capsys.readouterr().err


def test_a_generator_of_other_images_is_not_judged_by_digits(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    generator = MaxViTGenerator(16, 3, 0, width=16, head_dim=8, latent_dim=8, latent_tokens=4)
    export_model(generator, tmp_path / "run" / "generator.safetensors", {"source": "photos.zip"})
    with pytest.raises(SystemExit):
        evaluate.main([f"--fakes={tmp_path}/run", "--cpu=true", "--threads=1"])
    assert "trained on photos.zip, for which there is no embedded extractor" in capsys.readouterr().err


def test_an_output_of_no_known_format_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    generator = MaxViTGenerator(8, 1, 0, width=16, head_dim=8, latent_dim=8, latent_tokens=4)
    export_model(generator, tmp_path / "run" / "generator.safetensors", {})
    with pytest.raises(SystemExit):
        sample.main([f"--model={tmp_path}/run", f"--output={tmp_path}/x.jpg", "--cpu=true", "--threads=1"])
    assert "unknown ending: name a folder, a .zip or an .npz" in capsys.readouterr().err
    sample.main([f"--model={tmp_path}/run", "--n=3", f"--output={tmp_path}/x", "--cpu=true", "--threads=1"])
    assert len(list((tmp_path / "x").glob("*.png"))) == 3
