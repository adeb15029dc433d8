"""Extractors against PIL's conversions, and what they refuse."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from maxgan.evaluation import catalogue
from maxgan.evaluation.catalogue import load_extractor
from maxgan.evaluation.extractors import ClassifierExtractor, ModuleExtractor


def noise(count: int, channels: int, side: int) -> Tensor:
    return torch.randint(0, 256, (count, channels, side, side), generator=torch.Generator().manual_seed(0)).byte()


def test_images_of_its_own_kind_are_shown_as_they_are(classifier: Any) -> None:
    model = classifier(resolution=8).train().double()
    extractor = ClassifierExtractor(model, "pixels")
    images = noise(3, 1, 8)
    found = extractor(images)
    np.testing.assert_allclose(found.features, images.flatten(1).numpy() / 127.5 - 1, atol=1e-6)
    assert found.features.dtype == found.logits.dtype == torch.float32
    np.testing.assert_allclose(found.logits, found.features @ model.head.weight.T, rtol=1e-5)
    assert not found.features.requires_grad
    assert (extractor.resolution, extractor.channels, extractor.num_classes) == (8, 1, 3)


@pytest.mark.parametrize("side", [32, 5])
def test_resize_is_pils_antialiased_bicubic_clamped(classifier: Any, side: int) -> None:
    images = noise(2, 1, side)
    images[1] = 255 * (torch.arange(side) % 4 < 2)  # overshoots beyond [-1, 1] where it is enlarged
    found = ClassifierExtractor(classifier(resolution=12), "pixels")(images).features.view(2, 12, 12)
    for image, resized in zip(images, found, strict=True):
        scaled = Image.fromarray(image[0].numpy().astype(np.float32) / 127.5 - 1)
        expected = np.asarray(scaled.resize((12, 12), Image.Resampling.BICUBIC)).clip(-1, 1)
        np.testing.assert_allclose(resized, expected, atol=1e-5)


def test_channels_convert_as_in_pil(classifier: Any) -> None:
    colour = noise(4, 3, 8)
    grey = ClassifierExtractor(classifier(resolution=8), "pixels")(colour).features.view(4, 8, 8)
    for image, found in zip(colour, grey, strict=True):
        expected = np.asarray(Image.fromarray(image.permute(1, 2, 0).numpy()).convert("L"))
        np.testing.assert_allclose((found.numpy() + 1) * 127.5, expected, atol=0.51)  # PIL rounds to whole levels
    shown = ClassifierExtractor(classifier(resolution=8, channels=3), "pixels")(colour[:, :1]).features.view(4, 3, 8, 8)
    np.testing.assert_allclose(shown, (colour[:, :1].numpy() / 127.5 - 1).repeat(3, axis=1), atol=1e-6)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (noise(2, 4, 8), "looks at 1 channels and the images have 4"),
        (noise(2, 2, 8), "looks at 1 channels and the images have 2"),
        (noise(2, 1, 8).float(), "square uint8"),
        (noise(2, 1, 8)[..., :6], "square uint8"),
        (noise(2, 1, 8)[0], "square uint8"),
    ],
)
def test_other_images_are_refused(classifier: Any, images: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ClassifierExtractor(classifier(resolution=8), "pixels")(images)


def test_precision_switched_on_by_training_does_not_reach_features(classifier: Any) -> None:
    spots = (torch.backends.mkldnn.matmul, torch.backends.cuda.matmul, torch.backends.cudnn.conv)
    seen = []

    class Spy(classifier):  # type: ignore[misc]
        def pooled(self, x: Tensor) -> Tensor:
            seen.extend(spot.fp32_precision for spot in spots)
            return super().pooled(x)

        def classify(self, pooled: Tensor) -> Tensor:
            if self.broken:
                raise RuntimeError("broken")
            return super().classify(pooled)

    extractor = ClassifierExtractor(model := Spy(resolution=8), "pixels")
    images, model.broken = noise(3, 1, 8), False
    plain = extractor(images)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        during = [spot.fp32_precision for spot in spots]
        assert during[0] != "ieee"
        with torch.autocast("cpu", torch.bfloat16):
            found = extractor(images)
            model.broken = True
            with pytest.raises(RuntimeError, match="broken"):
                extractor(images)
            assert torch.is_autocast_enabled("cpu")
        assert [spot.fp32_precision for spot in spots] == during
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)
    assert set(seen) == {"ieee"}
    assert found.logits.dtype == torch.float32
    assert torch.equal(found.logits, plain.logits)


def test_digest_follows_the_weights(classifier: Any) -> None:
    first, same, other = classifier(), classifier(), classifier()
    with torch.no_grad():
        other.head.bias[1] += 1e-6
    digests = [ClassifierExtractor(model, "pixels").digest for model in (first, same, other)]
    assert digests[0] == digests[1] != digests[2]
    assert len(bytes.fromhex(digests[0])) == 32


def test_a_file_is_loaded_by_path_and_a_packaged_one_by_name(
    classifier: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "little.safetensors").write_bytes(b"packaged")
    (tmp_path / "weights" / "README.txt").write_bytes(b"no model")
    (mine := tmp_path / "mine.safetensors").write_bytes(b"by path")
    loaded: list[bytes] = []

    def load(path: Path) -> nn.Module:
        loaded.append(Path(path).read_bytes())
        return classifier()

    monkeypatch.setattr(catalogue, "load_model", load)
    monkeypatch.setattr(catalogue.resources, "files", lambda package: tmp_path)
    for name, content in (("little", b"packaged"), (mine, b"by path")):
        extractor = load_extractor(name)
        assert extractor.name == Path(name).stem
        assert extractor.digest == hashlib.sha256(content).hexdigest()
        assert loaded.pop() == content
    for missing in ("README", tmp_path, "nothing.safetensors"):
        with pytest.raises(ValueError, match=r"no extractor .*package \(little\)"):
            load_extractor(missing)


def test_a_model_that_is_no_classifier_is_refused() -> None:
    with pytest.raises(ValueError, match="extractor g is a Linear, which has no `pooled`"):
        ClassifierExtractor(nn.Linear(2, 2), "g")


class Means(nn.Module):
    """Means of the channels as features, and as logits their negatives where asked for."""

    def __init__(self, logits: bool) -> None:
        super().__init__()
        self.logits, self.scale = logits, nn.Parameter(torch.ones((), dtype=torch.float64))

    def forward(self, x: Tensor) -> Any:
        self.seen = x
        features = x.mean((2, 3)) * self.scale
        return (features, -features) if self.logits else features


def test_any_module_sees_the_range_that_it_asks_for() -> None:
    images = noise(2, 3, 8)
    mean, std = (1.0, 2.0, 3.0), (10.0, 20.0, 30.0)
    extractor = ModuleExtractor(module := Means(False), "means", resolution=8, mean=mean, std=std)
    found = extractor(images)
    expected = (images.numpy() - np.reshape(mean, (3, 1, 1))) / np.reshape(std, (3, 1, 1))
    np.testing.assert_allclose(module.seen, expected, rtol=1e-6)
    np.testing.assert_allclose(found.features, expected.mean((2, 3)), rtol=1e-5)
    assert found.logits is None
    assert found.features.dtype == torch.float32
    assert not module.scale.requires_grad
    ModuleExtractor(module, "means", resolution=8, mean=0, std=255)(images)
    assert torch.equal(module.seen, images.float() / 255)
    other = ModuleExtractor(Means(False), "means", resolution=8)
    # What is shown otherwise gives other features: the digest, under which references are kept, must tell them apart.
    settings: list[dict[str, Any]] = [
        {"mean": mean, "std": std},
        {"mean": 1},
        {"std": 255},
        {"resolution": 12},
        {"channels": 1},
    ]
    digests = [ModuleExtractor(Means(False), "means", **{"resolution": 8, **each}).digest for each in settings]
    assert digests[0] == extractor.digest
    assert len({other.digest, *digests}) == 6
    assert ModuleExtractor(Means(True), "means", resolution=8).digest == other.digest
    with torch.no_grad():
        module.scale += 1
    assert ModuleExtractor(module, "means", resolution=8).digest != other.digest


def test_a_module_may_give_logits_and_chooses_its_resize_and_channels() -> None:
    extractor = ModuleExtractor(
        module := Means(True), "means", resolution=12, channels=1, num_classes=1, resize="tf1", unquantised=True
    )
    found = extractor(noise(2, 3, 8).float() / 127.5 - 1)
    assert module.seen.shape == (2, 1, 12, 12)
    assert torch.equal(found.logits, -found.features)
    assert extractor.resize == "tf1"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"resize": "bicubic"}, "must be one of clean, tf1, tf2, not 'bicubic'"),
        ({"std": 0}, "std above 0"),
        ({"mean": (1.0, 2.0)}, "one number or 3"),
    ],
)
def test_settings_of_a_module_are_checked(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ModuleExtractor(Means(False), "means", resolution=8, **settings)


def test_a_module_that_gives_something_else_is_refused() -> None:
    with pytest.raises(ValueError, match=r"gave torch.float32 \(2, 3, 8, 8\) for 2 images: .* pool its maps"):
        ModuleExtractor(nn.Identity(), "maps", resolution=8)(noise(2, 3, 8))
    with pytest.raises(ValueError, match=r"gave logits \(2, 3\): set num_classes"):
        ModuleExtractor(Means(True), "means", resolution=8)(noise(2, 3, 8))
    with pytest.raises(ValueError, match="gave logits None: set num_classes"):
        ModuleExtractor(Means(False), "means", resolution=8, num_classes=3)(noise(2, 3, 8))


@pytest.mark.parametrize(("name", "channels", "resolution"), [("digits", 1, 16), ("cifar10", 3, 32)])
def test_packaged_classifiers_are_those_of_their_page(name: str, channels: int, resolution: int) -> None:
    extractor = load_extractor(name)
    page = (Path(catalogue.__file__).parent / "weights" / "README.md").read_text()
    assert f"`{extractor.digest}`" in page
    assert (extractor.name, extractor.channels, extractor.resolution) == (name, channels, resolution)
    found = extractor(torch.randint(0, 256, (2, channels, resolution, resolution), dtype=torch.uint8))
    assert found.features.isfinite().all()
    assert found.logits is not None and found.logits.shape == (2, 10)
