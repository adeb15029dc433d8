"""The published extractors against torch-fidelity and clean-fid, on the same photos and the same weights."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.stand_ins import save_archive
from maxgan.evaluation.catalogue import load_extractor
from maxgan.evaluation.extractors import ModuleExtractor
from maxgan.evaluation.published import PORT_2015, TORCHSCRIPT_2015


def deviations(ours: Tensor, truth: Any) -> float:
    """Return the largest error in standard deviations of the truth."""
    return float((ours - truth).abs().max() / truth.std(correction=0))


@pytest.fixture(scope="module")
def archive(port_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The port's layers as a TorchScript archive, in a folder and by the name that clean-fid reads."""
    pytest.importorskip("torch_fidelity")
    return save_archive(tmp_path_factory.mktemp("archive"), port_weights)


@pytest.fixture(scope="module")
def port(port_weights: Path) -> Callable[[str], ModuleExtractor]:
    return cache(
        lambda resize: load_extractor("inception-2015", weights=port_weights, resize=resize, trust_weights=True)
    )


def resized(photos: Tensor, side: int) -> Tensor:
    """Return the first photo at another side: pixels are repeated or left out, so that no filter is used."""
    index = torch.arange(side) * 299 // side
    return photos[:1, :, index][..., index]


@pytest.mark.parametrize("side", [64, 299, 400])
def test_2015_equals_torch_fidelity(
    side: int, photos: Tensor, port_weights: Path, fidelity: Any, port: Callable[[str], ModuleExtractor]
) -> None:
    images = resized(photos, side)
    maps: list[Tensor] = []
    hook = fidelity.Mixed_6d.branch1x1.register_forward_hook(lambda *args: maps.append(args[-1]))
    features, logits, biased = fidelity(images)
    hook.remove()
    found = port("tf1")(images)
    # The graph's mixed_6/conv, of whose map ADM's evaluator flattens 7 channels, which stand last in it.
    spatial = maps[0].permute(0, 2, 3, 1)[..., :7].reshape(len(images), -1)
    assert spatial.shape[1] == 2023
    assert deviations(found.spatial, spatial) < 1e-4
    assert deviations(found.features, features) < 1e-4
    assert deviations(found.logits, logits) < 1e-4
    assert deviations(biased, logits) > 0.01  # the bias that is left out matters
    assert found.features.dtype == found.logits.dtype == torch.float32
    assert (port("tf1").resolution, port("tf1").num_classes, port("tf1").unquantised) == (299, 1008, False)
    assert port("tf1").digest == hashlib.sha256(port_weights.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("resize", "mode"), [("clean", "clean"), pytest.param("tf1", "legacy_tensorflow", marks=pytest.mark.slow)]
)
def test_2015_equals_clean_fid(
    resize: str, mode: str, photos: Tensor, archive: Path, port: Callable[[str], ModuleExtractor]
) -> None:
    pytest.importorskip("cleanfid")
    from cleanfid.inception_torchscript import InceptionV3W
    from cleanfid.resize import build_resizer

    images = resized(photos, 400)
    theirs = InceptionV3W(str(archive.parent), download=False, resize_inside=resize == "tf1")
    shown = torch.from_numpy(build_resizer(mode)(images[0].permute(1, 2, 0).numpy()))
    with torch.no_grad():
        expected = theirs(shown.permute(2, 0, 1)[None].float())
    script = load_extractor("inception-2015-torchscript", weights=archive, resize=resize, trust_weights=True)
    found = script(images)
    assert found.logits is None
    assert script.num_classes == 0
    assert deviations(found.features, expected) < 1e-4
    assert deviations(port(resize)(images).features, expected) < 1e-4


def test_keras_takes_unquantised_images(
    official: Callable, published_names: Callable, photos: Tensor, tmp_path: Path
) -> None:
    case = official("keras_inception_v3", "model")
    np.savez(tmp_path / "keras.npz", **published_names(case.variables))
    extractor = load_extractor("inception-keras", weights=tmp_path / "keras.npz")
    assert (extractor.resize, extractor.num_classes, extractor.unquantised) == ("tf2", 1000, True)
    found = extractor(torch.from_numpy(case.arrays["image"][:1]).permute(0, 3, 1, 2))
    # In float32, with made-up weights whose features hardly differ; test_inception.py compares in float64.
    assert deviations(found.features, torch.from_numpy(case.arrays["features"][:1])) < 1e-3
    assert deviations(found.logits, torch.from_numpy(case.arrays["logits"][:1])) < 1e-3
    images = resized(photos, 64)
    floats = images.float() / 127.5 - 1
    beyond = torch.where(floats > 0.5, 2.0, floats)
    whole = extractor(images).features[0]
    same, finer, clamped, cut = extractor(
        torch.cat([floats, floats + 0.3 / 127.5, beyond, beyond.clamp(-1, 1)])
    ).features
    assert deviations(same, whole) < 1e-3
    assert deviations(finer, whole) > 2e-3  # a third of a grey level is seen
    assert torch.equal(clamped, cut)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("inception-2015", {}, "must be clean or tf1, not None: scores differ"),
        ("inception-2015", {"resize": "tf2"}, "must be clean or tf1, not tf2"),
        ("inception-keras", {"resize": "clean"}, "must be tf2, not clean"),
        ("inception-keras", {"trust_weights": True}, "which inception-keras has not"),
        ("dinov2", {}, "needs weights"),
        ("digits", {"resize": "clean"}, "extractor digits has its own"),
        ("digits", {"weights": "w.pth"}, "extractor digits has its own"),
        ("inception-2016", {}, "or that of a published one .inception-2015, "),
    ],
)
def test_settings_that_fit_no_extractor_are_refused(name: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_extractor(name, **settings)


def test_code_of_unknown_origin_is_not_run(archive: Path, port_weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*_: Any, **__: Any) -> None:
        raise AssertionError("loaded")

    monkeypatch.setattr(torch.jit, "load", run)
    monkeypatch.setattr(torch, "load", run)
    for name, file, weights in (
        ("inception-2015-torchscript", TORCHSCRIPT_2015, archive),
        ("inception-2015", PORT_2015, port_weights),
    ):
        with pytest.raises(ValueError, match=f"the published {file.name} has {file.sha256[:12]}"):
            load_extractor(name, weights=weights, resize="clean")


def test_an_archive_without_layers_is_refused(tmp_path: Path) -> None:
    torch.jit.script(nn.Linear(2, 2)).save(str(tmp_path / "linear.pt"))
    with pytest.raises(ValueError, match="has no `layers`"):
        load_extractor("inception-2015-torchscript", weights=tmp_path / "linear.pt", resize="clean", trust_weights=True)


@pytest.mark.slow
@pytest.mark.parametrize("resize", ["clean", "tf1"])
def test_features_have_gradients_where_they_are_asked_for(
    photos: Tensor, port: Callable[[str], ModuleExtractor], resize: str
) -> None:
    extractor = port(resize)
    levels = F.interpolate(photos[:1].float(), (64, 64), mode="area").round().to(torch.uint8)
    x = levels.float() / 127.5 - 1
    torch.testing.assert_close(extractor.differentiable(x), extractor(levels).features, rtol=1e-4, atol=1e-4)
    x = (0.9 * x).requires_grad_()
    (gradient,) = torch.autograd.grad(extractor.differentiable(x).square().sum(), x)
    step = 1e-3 * gradient / gradient.norm()
    with torch.no_grad():
        ends = [float(extractor.differentiable(x + sign * step).square().sum()) for sign in (1, -1)]
    assert float((gradient * step).sum()) == pytest.approx((ends[0] - ends[1]) / 2, rel=0.02)
