"""Nearest real images, and inversion."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from maxgan.config import DataConfig, InvertConfig, NeighboursConfig
from maxgan.data.loader import ImageDataset
from maxgan.data.transforms import to_uint8
from maxgan.evaluation.catalogue import load_extractor
from maxgan.explore import neighbours
from maxgan.explore.__main__ import main
from maxgan.explore.invert import invert, invert_image, make_loss, root_mean_square
from maxgan.explore.neighbours import find_neighbours, show_neighbours
from maxgan.models import ResidualGenerator
from maxgan.models.network import export_model, load_model
from maxgan.sampling import generate, latents_of, load_generator


def images_of(model: Path, seeds: range) -> tuple[Tensor, Tensor | None]:
    (batch,) = generate(load_generator(model), seeds, len(seeds), "cpu")
    return batch.images, batch.labels


def test_neighbours_equal_a_loop_over_all_pairs() -> None:
    generator = torch.Generator().manual_seed(0)
    fakes, reals = torch.randn(9, 5, generator=generator), torch.randn(21, 5, generator=generator)
    reals[20] = reals[0]  # two copies
    fakes[3] = reals[7]
    places = [0, 2, 7, 19, 20]
    found = find_neighbours(fakes, reals.split(4), 4, reals[places], places)
    for i, fake in enumerate(fakes.tolist()):
        by_distance = sorted((math.dist(fake, real), j) for j, real in enumerate(reals.tolist()))[:4]
        assert found.distances[i].tolist() == pytest.approx([distance for distance, _ in by_distance], rel=1e-12)
        for j, (distance, _) in zip(found.indices[i].tolist(), by_distance, strict=True):
            assert math.dist(fake, reals[j].tolist()) == pytest.approx(distance, rel=1e-12)
    assert found.distances[3, 0] == 0
    for distance, i in zip(found.among_reals.tolist(), places, strict=True):
        others = [math.dist(reals[i].tolist(), real.tolist()) for j, real in enumerate(reals) if j != i]
        assert distance == pytest.approx(min(others), rel=1e-12)
    assert (found.among_reals[0], found.among_reals[-1]) == (0, 0)


def test_a_copied_image_is_found_and_shown_first(painter: Path, tmp_path: Path) -> None:
    """Among the reals are images of the generator itself: seed 4 is one of them, so it has learned that by heart."""
    samples, _ = images_of(painter, range(100, 130))
    copied, _ = images_of(painter, range(4, 5))
    reals = torch.cat([samples[:17], copied, samples[17:]]).permute(0, 2, 3, 1).numpy()
    np.savez(tmp_path / "reals.npz", images=reals)
    reference = str(tmp_path / "reals.npz")
    config = NeighboursConfig(str(painter), n=12, rows=3, k=2, batch_size=5, reference=reference)
    sentence = show_neighbours(config)
    told = json.loads((painter.parent / "neighbours.json").read_text())
    assert (told["reals"], told["samples"], told["extractor"]) == (31, 12, "digits")
    first = told["shown"][0]
    assert first["seed"] == 4
    assert "17" in first["reals"][0]
    # The batches that were extracted have other sizes, which changes the last bits of features.
    assert first["distances"][0] < 1e-4 < first["distances"][1]
    nearest = [shown["distances"][0] for shown in told["shown"]]
    assert nearest == sorted(nearest)
    assert told["samples_to_nearest_real"][0] == nearest[0]
    assert f"{told['samples_to_nearest_real'][3]:.4g} of samples" in sentence
    # Every image of a row: the sample, a wide gap, the reals.
    picture = np.asarray(Image.open(painter.parent / "neighbours.png"))
    for row, shown in enumerate(told["shown"]):
        top = 2 + row * (64 + 2 + 17)
        places = [2, *(2 + 12 + 66 * column for column in (1, 2))]
        wanted = [images_of(painter, range(shown["seed"], shown["seed"] + 1))[0][0, 0].numpy()]
        wanted += [
            reals[int("".join(filter(str.isdigit, where.rpartition("[")[2])))][..., 0] for where in shown["reals"]
        ]
        for left, image in zip(places, wanted, strict=True):
            assert (picture[top : top + 64 : 4, left : left + 64 : 4, 0] == image).all()
    again = (painter.parent / "neighbours.json").read_bytes()
    show_neighbours(config)
    assert (painter.parent / "neighbours.json").read_bytes() == again


def test_too_few_reals_are_said_before_anything_is_drawn(painter: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "reals.npz", images=np.zeros((3, 16, 16, 1), dtype=np.uint8))
    reference = str(tmp_path / "reals.npz")
    with pytest.raises(ValueError, match=r"reals.npz has 3 images, and k = 8 needs at least 8: lower k"):
        show_neighbours(NeighboursConfig(str(painter), reference=reference))


def test_with_a_mapping_the_search_is_in_w(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = ResidualGenerator(8, 1, 3, latent_dim=4, width=8, mapping_layers=2).eval()
    with torch.no_grad():
        model.first_map.weight.normal_(std=0.5)  # so that the latent makes more of the image than at the start
        for block in model.stages:
            for parameter in block.parameters():
                parameter.normal_(std=0.3)
        model.out.weight.normal_(std=0.05)
        model.out.bias.zero_()
    export_model(model, tmp_path / "g.safetensors", {})
    made, labels = images_of(tmp_path / "g.safetensors", range(1000, 1001))
    assert labels is not None and made.float().std() > 10
    Image.fromarray(made[0, 0].numpy()).save(tmp_path / "made.png")
    options = ("--feature_weight", "0", "--candidates", "32", "--starts", "4", "--steps", "80")
    options += ("--label", str(int(labels)))
    main(["invert", str(tmp_path / "made.png"), "--model", str(tmp_path / "g.safetensors"), *options])
    told = json.loads((tmp_path / "inversion.json").read_text())["found"]
    z, drawn = latents_of(range(32), 4, 3, [int(labels)])
    candidates = to_uint8(model(z, drawn)).detach()
    first = min(root_mean_square(image, made[0]) for image in candidates)
    assert "z" not in told[0] and told[0]["error"] < 0.2 * first, first
    # w alone makes the image.
    image = to_uint8(model.synthesise(torch.tensor([told[0]["w"]]))).detach()
    assert root_mean_square(image[0], made[0]) == pytest.approx(told[0]["error"], abs=0.1)


def test_an_extractor_is_asked_for_where_none_fits(plain_painter: Path) -> None:
    model = str(plain_painter)
    with pytest.raises(ValueError, match="resize of extractor inception-2015 must be clean or tf1"):
        show_neighbours(NeighboursConfig(model, extractor="inception-2015"))
    export_model(load_model(model), model, {"source": "photos.zip"})
    with pytest.raises(ValueError, match=r"no embedded extractor for photos\.zip: name one with extractor"):
        show_neighbours(NeighboursConfig(model))


def test_extractor_and_cut_are_those_of_the_run(painter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one that its protocol names, and images cut as they were trained on; of an average in a folder below, too."""
    pictures = np.random.default_rng(0).integers(0, 256, (9, 16, 24, 1), dtype=np.uint8)
    np.savez(tmp_path / "wide.npz", images=pictures)
    source = str(tmp_path / "wide.npz")
    average = painter.parent / "averages" / "best.safetensors"
    export_model(load_model(painter), average, {"source": source})
    config = {"evaluation": {"protocol": "fd-cifar10"}, "data": {"source": source, "crop": "whole"}}
    (painter.parent / "config.yaml").write_text(json.dumps(config))
    cut: list[DataConfig] = []

    def opened(config: DataConfig) -> ImageDataset:
        cut.append(config)
        return ImageDataset(config)

    monkeypatch.setattr(neighbours, "ImageDataset", opened)
    show_neighbours(NeighboursConfig(str(average), n=4, rows=2, k=2))
    told = json.loads((average.parent / "neighbours.json").read_text())
    assert (told["extractor"], told["reals"], cut[0].crop) == ("cifar10", 9, "whole")
    show_neighbours(NeighboursConfig(str(average), n=4, rows=2, k=2, reference=source, extractor="digits"))
    told = json.loads((average.parent / "neighbours.json").read_text())
    assert (told["extractor"], cut[1].crop) == ("digits", DataConfig.crop)


OPTIONS = ("--candidates", "64", "--starts", "2", "--steps", "120")


@pytest.mark.parametrize("feature_weight", ["0", pytest.param("0.1", marks=pytest.mark.slow)])
def test_an_image_that_the_generator_made_is_recovered(painter: Path, tmp_path: Path, feature_weight: str) -> None:
    made, labels = images_of(painter, range(1000, 1001))
    assert labels is not None
    Image.fromarray(made[0, 0].numpy()).save(tmp_path / "made.png")
    image = str(tmp_path / "made.png")
    main(["invert", image, "--model", str(painter), "--feature_weight", feature_weight, *OPTIONS])
    told = json.loads((painter.parent / "inversion.json").read_text())
    best = told["found"][0]
    # Half a grey level is what rounding alone may leave.
    assert best["error"] < 0.5
    assert best["loss"] <= told["found"][1]["loss"]
    assert best["label"] == int(labels[0])
    z, _ = latents_of([1000], 6, 3)
    assert best["z"] == pytest.approx(z[0].tolist(), abs=0.05)
    assert best["latent_length"] == pytest.approx(float(z.norm()) / math.sqrt(6), abs=0.05)
    picture = np.asarray(Image.open(painter.parent / "inversion.png"))
    assert (picture[2:66:4, 2:66:4, 0] == made[0, 0].numpy()).all()
    shown = picture[2:66:4, 80:144:4, 0].astype(float)
    assert np.sqrt(np.square(shown - made[0, 0].numpy()).mean()) == pytest.approx(best["error"])
    other = (int(labels[0]) + 1) % 3
    for _ in range(2):
        invert_image(InvertConfig(str(painter), image=image, label=other, candidates=8, steps=2))
        again, told = told, json.loads((painter.parent / "inversion.json").read_text())
    assert told == again
    assert {found["label"] for found in told["found"]} == {other}


def test_the_loss_is_that_of_pixels_and_of_features(painter: Path) -> None:
    images, _ = images_of(painter, range(3))
    floats = images.float() / 127.5 - 1
    extractor = load_extractor("digits")
    features = extractor(images).features
    pixels = [float((floats[i] - floats[2]).square().mean()) for i in range(3)]
    of_features = [float((features[i] - features[2]).square().sum() / features[2].square().sum()) for i in range(3)]
    found = make_loss(floats[2:], extractor, 0.3)(floats)
    assert found.tolist() == pytest.approx([p + 0.3 * f for p, f in zip(pixels, of_features, strict=True)], abs=1e-6)
    assert found[2] == pytest.approx(0, abs=1e-9)
    for none in (make_loss(floats[2:], None, 0.3), make_loss(floats[2:], extractor, 0)):
        assert none(floats).tolist() == pytest.approx(pixels)


def test_features_have_gradients_and_are_those_of_the_extractor(painter: Path) -> None:
    images, _ = images_of(painter, range(2))
    extractor = load_extractor("digits")
    x = (images.float() / 127.5 - 1).mul(0.9).requires_grad_()
    direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    (gradient,) = torch.autograd.grad(extractor.differentiable(x).square().sum(), x)
    step = 1e-2 * direction
    with torch.no_grad():
        ends = [float(extractor.differentiable(x + sign * step).square().sum()) for sign in (1, -1)]
    assert float((gradient * step).sum()) == pytest.approx((ends[0] - ends[1]) / 2, rel=0.02)
    torch.testing.assert_close(extractor.differentiable(images.float() / 127.5 - 1), extractor(images).features)


def test_every_start_is_optimised_on_its_own() -> None:
    """On a quadratic, each start goes to the minimum, whatever the others do; the best of all steps is kept."""

    class Line:
        latent_dim, num_classes, resolution, channels = 2, 0, 8, 1

        def __call__(self, z: Tensor, labels: Tensor | None) -> Tensor:
            return z.sum(1).view(-1, 1, 1, 1).expand(-1, 1, 8, 8)

    z = torch.tensor([[9.0, 9.0], [1.0, 1.0], [-2.0, -1.0], [0.6, 0.0]])
    target = torch.full((1, 1, 8, 8), 0.5)
    config = InvertConfig(image="x", starts=3, candidates=4, steps=200, batch_size=3)
    found = invert(Line(), make_loss(target, None, 1), z, None, config)
    assert found.losses.tolist() == pytest.approx([0, 0, 0], abs=1e-5)
    assert (found.losses.diff() >= 0).all()
    torch.testing.assert_close(found.images, target.expand(3, 1, 8, 8), rtol=0, atol=3e-3)
    # The farthest candidate is no start; along the other diagonal nothing pulls.
    assert sorted(round(float(a - b), 2) for a, b in found.z) == [-1.0, 0.0, 0.6]
    with pytest.raises(ValueError, match="NaN or infinity"):
        invert(Line(), make_loss(target * math.nan, None, 1), z, None, config)
    assert (
        root_mean_square(torch.tensor([0, 3], dtype=torch.uint8), torch.tensor([4, 0], dtype=torch.uint8)) == 12.5**0.5
    )
