"""Whole scores against torch-fidelity, clean-fid and torchmetrics, on the same features."""

from __future__ import annotations

import importlib
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import scipy
import torch
from torch import Tensor, nn
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_isc import isc_features_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric

from maxgan.evaluation.comparison import compare
from maxgan.evaluation.extractors import ModuleExtractor
from maxgan.evaluation.features import Collector, FeatureSet
from maxgan.evaluation.protocols import PROTOCOLS, Protocol
from maxgan.evaluation.scores import frechet_distance

DIM, CLASSES, COUNT = 48, 1008, 1100
PROTOCOL = replace(PROTOCOLS["fid50k-train-2015-clean"], extractor="port", kernel_subsets=20, kernel_subset_size=300)


class One:
    """A single process."""

    device = torch.device("cpu")

    def gather(self, tensor: Tensor) -> Tensor:
        return tensor


class Port(nn.Module):
    """A small network in the place of Inception: features in the range of its own, and 1008 logits."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.register_buffer("mix", torch.randn(192, DIM, generator=generator) / 8)
        self.register_buffer("head", torch.randn(DIM, CLASSES, generator=generator))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = (x.flatten(1) @ self.mix).relu()
        return features, features @ self.head


@pytest.fixture(scope="module")
def extractor() -> ModuleExtractor:
    return ModuleExtractor(Port(), "port", resolution=8, num_classes=CLASSES)


def images(seed: int, levels: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(COUNT, 3, 8, 8, generator=generator) * levels).byte()


def seen(extractor: ModuleExtractor, images: Tensor, protocol: Protocol) -> FeatureSet:
    collector = Collector(
        extractor, "cpu", source="images", indices=range(COUNT), total=COUNT, kept=protocol.kept_of_fakes
    )
    return collector.run((part, None) for part in images.split(100)).gather(One())


@pytest.fixture(scope="module")
def sets(extractor: ModuleExtractor) -> tuple[Tensor, Tensor]:
    return images(0, 256), images(1, 200)


@pytest.fixture(scope="module")
def ours(extractor: ModuleExtractor, sets: tuple[Tensor, Tensor]) -> dict[str, float]:
    real, fake = (seen(extractor, part, PROTOCOL) for part in sets)
    return dict(compare(real, fake, PROTOCOL).metrics)


def test_scores_equal_torch_fidelity(
    extractor: ModuleExtractor, sets: tuple[Tensor, Tensor], ours: dict[str, float]
) -> None:
    real, fake = (extractor(part) for part in sets)
    statistics = [fid_features_to_statistics(part.features) for part in (fake, real)]
    expected = fid_statistics_to_metric(*statistics, False)
    expected |= isc_features_to_metric(fake.logits)
    # Its KID is of float32 features; in float64 the same numbers are multiplied exactly.
    features = fake.features.double(), real.features.double()
    options = {"kid_subsets": 20, "kid_subset_size": 300, "rng_seed": 2020, "verbose": False}
    expected |= kid_features_to_metric(*features, **options)
    expected |= prc_features_to_metric(*features, prc_batch_size=500, verbose=False)
    assert ours["fd"] == pytest.approx(expected["frechet_inception_distance"], rel=1e-6)
    for name in ("inception_score_mean", "inception_score_std"):
        assert ours[name] == pytest.approx(expected[name], rel=1e-6), name
    assert ours["kd_mean"] == pytest.approx(expected["kernel_inception_distance_mean"], rel=1e-6)
    assert ours["kd_std"] == pytest.approx(expected["kernel_inception_distance_std"], rel=1e-6)
    for name in ("precision", "recall"):
        assert ours[name] == pytest.approx(expected[name], abs=1e-6)
        assert 0 < ours[name] < 1


def test_scores_equal_clean_fid(
    extractor: ModuleExtractor, sets: tuple[Tensor, Tensor], ours: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("cleanfid")
    fid = importlib.import_module("cleanfid.fid")
    real, fake = (extractor(part).features.double().numpy() for part in sets)
    if tuple(map(int, scipy.__version__.split(".")[:2])) >= (1, 18):  # which has no sqrtm(disp=): its statistics remain
        monkeypatch.setattr(fid, "frechet_distance", frechet_distance)
    assert ours["fd"] == pytest.approx(fid.fid_from_feats(fake, real), rel=1e-6)
    np.random.seed(2020)
    # Its subsets are drawn otherwise, and its mean is over all images of both sets with 1 subset of all.
    whole = replace(PROTOCOL, kernel_subsets=1, kernel_subset_size=COUNT)
    found = compare(*(seen(extractor, part, whole) for part in sets), whole).metrics["kd_mean"]
    assert found == pytest.approx(fid.kernel_distance(fake, real, num_subsets=1, max_subset_size=COUNT), rel=1e-6)


def test_scores_equal_torchmetrics(
    extractor: ModuleExtractor, sets: tuple[Tensor, Tensor], ours: dict[str, float]
) -> None:
    image = pytest.importorskip("torchmetrics.image")

    class Looking(nn.Module):
        """Features or logits, which it sums in the type that they have."""

        def __init__(self, what: str, num_features: int) -> None:
            super().__init__()
            self.what, self.num_features = what, num_features

        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = getattr(extractor(x), self.what)
            return found.double()

    module: Any = Looking("features", DIM)
    distance = image.FrechetInceptionDistance(module).set_dtype(torch.float64)
    for part, is_real in zip(sets, (True, False), strict=True):
        distance.update(part, real=is_real)
    assert ours["fd"] == pytest.approx(float(distance.compute()), rel=1e-6)
    # Its subsets and splits are drawn otherwise, so there is one of all.
    kernel = image.KernelInceptionDistance(module, subsets=1, subset_size=COUNT).set_dtype(torch.float64)
    score = image.InceptionScore(Looking("logits", CLASSES), splits=1).set_dtype(torch.float64)
    score.update(sets[1])
    for part, is_real in zip(sets, (True, False), strict=True):
        kernel.update(part, real=is_real)
    whole = replace(PROTOCOL, kernel_subsets=1, kernel_subset_size=COUNT, inception_splits=1)
    found = compare(*(seen(extractor, part, whole) for part in sets), whole).metrics
    assert found["kd_mean"] == pytest.approx(float(kernel.compute()[0]), rel=1e-6)
    assert found["inception_score_mean"] == pytest.approx(float(score.compute()[0]), rel=1e-6)
