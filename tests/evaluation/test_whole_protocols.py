"""Whole Inception protocols by the scripts, as a user runs them, with stand-ins for the published weights."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric

import evaluate
import sample
from maxgan.checkpoint import export_model
from maxgan.models import MaxViTGenerator

COUNT, SIDE = 12, 32


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory, photos: Tensor) -> Path:
    """A folder with a generator file, and a folder of photographs of many sizes."""
    folder = tmp_path_factory.mktemp("work")
    torch.manual_seed(0)
    generator = MaxViTGenerator(SIDE, 3, 0, width=16, head_dim=8, latent_dim=8, latent_tokens=4, norm="layer")
    export_model(generator, folder / "generator.safetensors", {"source": "photos.zip"})
    (folder / "photos").mkdir()
    for i in range(COUNT):
        cut = photos[i % 2, :, 4 * i : 200 - 3 * i, 5 * i : 180].permute(1, 2, 0)
        Image.fromarray(cut.numpy()).save(folder / "photos" / f"{i:02}.png")
    return folder


def score(work: Path, name: str, *arguments: str) -> dict[str, Any]:
    """Run evaluate.py and return what it writes."""
    evaluate.main([*arguments, f"--reference={work}/photos", f"--output={work}/{name}.json", f"--cache={work}/cache",
                   "--batch_size=6", "--cpu=true", "--threads=1"])  # fmt: skip
    found: dict[str, Any] = json.loads((work / f"{name}.json").read_text())
    return found


@pytest.mark.slow
def test_a_generator_file_against_a_folder_by_the_clean_protocol(
    work: Path, port_weights: Path, fidelity: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    protocol = ["--protocol=fid50k-train-2015-clean", f"--weights={port_weights}", "--trust_weights=true"]
    model = f"{work}/generator.safetensors"
    drawn = score(work, "drawn", f"--fakes={model}", f"--n={COUNT}", "--seed=3", *protocol)
    output = capsys.readouterr()
    assert "fid50k-train-2015-clean-with-12-images: 12 images of" in output.out
    assert "warning: " in output.err and "has 12 images for 2048 features" in output.err
    assert (drawn["num_reals"], drawn["num_fakes"], drawn["feature_dim"]) == (COUNT, COUNT, 2048)
    assert drawn["protocol"]["resize"] == "clean"
    assert drawn["sampling"] == {"seed": 3, "truncation": None, "labels": None}

    # The same by hand: samples on disk, clean-fid's resize, torch-fidelity's network and scores.
    pytest.importorskip("cleanfid")
    resize = importlib.import_module("cleanfid.resize").build_resizer("clean")
    sample.main([f"--model={model}", f"--n={COUNT}", "--seed=3", f"--output={work}/fakes", "--cpu=true", "--threads=1"])

    def features(picture: Image.Image) -> Tensor:
        x = torch.from_numpy(resize(np.asarray(picture))).permute(2, 0, 1)[None]
        layers = (child for name, child in fidelity.named_children() if name != "fc")
        return torch.nn.Sequential(*layers)((x - 128) / 128).flatten(1)

    fakes = [Image.open(file) for file in sorted((work / "fakes").glob("*.png"))]
    reals = []
    for file in sorted((work / "photos").glob("*.png")):
        picture = Image.open(file)
        side, left, top = min(picture.size), *((length - min(picture.size)) // 2 for length in picture.size)
        square = picture.crop((left, top, left + side, top + side))
        reals.append(square.resize((SIDE, SIDE), Image.Resampling.BICUBIC))
    assert len(fakes) == len(reals) == COUNT
    with torch.no_grad():
        fake, real = (torch.cat([features(picture) for picture in part]).double() for part in (fakes, reals))
    # Features of random weights hardly differ among images, so float32 shows.
    distance = fid_statistics_to_metric(*(fid_features_to_statistics(part) for part in (fake, real)), False)
    assert drawn["metrics"]["fd"] == pytest.approx(distance["frechet_inception_distance"], rel=1e-3)
    kernel = kid_features_to_metric(fake, real, kid_subset_size=COUNT, verbose=False)
    assert drawn["metrics"]["kd_mean"] == pytest.approx(kernel["kernel_inception_distance_mean"], rel=1e-3)


@pytest.mark.slow
def test_a_generator_file_against_a_folder_by_the_protocol_of_hit(
    work: Path, official: Callable, published_names: Callable, capsys: pytest.CaptureFixture[str]
) -> None:
    np.savez(work / "keras.npz", **published_names(official("keras_inception_v3", "model").variables))
    protocol = ["--protocol=hit-val50k", f"--weights={work}/keras.npz"]
    drawn = score(work, "hit", f"--fakes={work}/generator.safetensors", f"--n={COUNT}", *protocol)
    assert "hit-val50k-with-12-images" in capsys.readouterr().out
    assert (drawn["protocol"]["quantisation"], drawn["protocol"]["reference_crop"]) == ("none", 0.875)
    names = {"fd", "inception_score_mean", "kd_mean", "precision", "recall", "density", "coverage"}
    assert names <= drawn["metrics"].keys()
    assert drawn["metrics"]["fd"] > 0
    assert 1 <= drawn["metrics"]["inception_score_mean"] <= 1000
    # Images that a file holds are quantised, which moves the score a little.
    sample.main([f"--model={work}/generator.safetensors", f"--n={COUNT}", f"--output={work}/fakes.npz", "--cpu=true",
                 "--threads=1"])  # fmt: skip
    held = score(work, "held", f"--fakes={work}/fakes.npz", *protocol)
    assert held["metrics"]["fd"] != drawn["metrics"]["fd"]
    assert held["metrics"]["fd"] == pytest.approx(drawn["metrics"]["fd"], rel=1e-2)
