"""Two sets to scores, against the scores computed one by one, and what they are told with."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
import scipy.linalg
import torch

from maxgan.evaluation import neighbours, scores
from maxgan.evaluation.comparison import OfReals, Scores, compare
from maxgan.evaluation.features import FeatureSet
from maxgan.evaluation.neighbours import neighbour_scores
from maxgan.evaluation.protocols import PROTOCOLS, Protocol

DIM = 16
EVERY = (
    "frechet",
    "half_split",
    "inception_score",
    "kernel",
    "precision_recall",
    "density_coverage",
    "class_frechet",
    "accuracy",
)
PROTOCOL = Protocol("fd-pixels", "pixels", "FD-pixels", "KD-pixels", "IS-pixels", "clean", seed=4)


def features_of(source: str, count: int, seed: int, shift: float = 0.0) -> FeatureSet:
    rng = np.random.default_rng(seed)
    features = torch.from_numpy(rng.normal(size=(count, DIM)).astype(np.float32) + np.float32(shift))
    exact = features.double()
    return FeatureSet(
        source=source,
        extractor="pixels",
        digest="0123456789abcdef",
        count=count,
        mean=exact.mean(0),
        covariance=torch.from_numpy(np.cov(exact, rowvar=False)),
        features=features,
        predictions=torch.from_numpy(rng.integers(3, size=count)),
        labels=torch.arange(count) % 3,
        inception_score=(2.5, 0.25),
        content=f"hash of {source}",
        seconds=1.5,
    )


@pytest.fixture
def real() -> FeatureSet:
    return features_of("reals", 60, 0)


@pytest.fixture
def fake() -> FeatureSet:
    return features_of("fakes", 50, 1, 0.3)


def test_what_hangs_on_the_reals_alone_is_found_once(
    real: FeatureSet, fake: FeatureSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    protocol, other = replace(PROTOCOL, metrics=EVERY), features_of("others", 40, 2, -0.2)
    alone = [dict(compare(real, part, protocol).metrics) for part in (fake, other)]
    known = OfReals()
    assert dict(compare(real, fake, protocol, known=known).metrics) == alone[0]
    monkeypatch.setattr(scores, "half_split_distance", None)
    monkeypatch.setattr(neighbours, "real_radii", None)
    assert dict(compare(real, other, protocol, known=known).metrics) == alone[1]
    with pytest.raises(TypeError):
        compare(real, other, protocol)


def test_compare_gives_every_score(real: FeatureSet, fake: FeatureSet) -> None:
    protocol = replace(PROTOCOL, metrics=EVERY, resamples=3, extrapolation_points=4)
    found = compare(real, fake, protocol, {"seed": 7})
    m = dict(found.metrics)
    (m1, s1), (m2, s2) = ((x.mean.numpy(), x.covariance.numpy()) for x in (real, fake))
    expected = ((m1 - m2) ** 2).sum() + np.trace(s1 + s2 - 2 * scipy.linalg.sqrtm(s1 @ s2).real)
    assert m.pop("fd") == pytest.approx(expected, rel=1e-10)
    floor = scores.half_split_distance(real.features, 10, 4)
    assert (m.pop("fd_half_split_mean"), m.pop("fd_half_split_std")) == floor
    assert m.pop("fd_ratio") == found.metrics["fd"] / floor[0]
    resampled = scores.resampled_distance(real.mean, real.covariance, fake.features, 3, 4)
    assert (m.pop("fd_resampled_mean"), m.pop("fd_resampled_std")) == resampled
    assert m.pop("fd_infinity") == scores.extrapolated_distance(real.mean, real.covariance, fake.features, 4, 4)
    assert (m.pop("inception_score_mean"), m.pop("inception_score_std")) == (2.5, 0.25)
    assert (m.pop("kd_mean"), m.pop("kd_std")) == scores.kernel_distance(real.features, fake.features, 100, 1000, 4)
    near = neighbour_scores(real.features, fake.features, 3, 5)
    assert {name: m.pop(name) for name in near} == near
    classes = scores.class_distances(real.features, real.labels, fake.features, fake.labels)
    assert found.class_fd == classes
    assert m.pop("class_fd") == pytest.approx(np.mean(list(classes.values())))
    assert m.pop("accuracy") == float((fake.predictions == fake.labels).double().mean())
    assert not m
    assert (found.num_reals, found.num_fakes, found.feature_dim, found.sampling) == (60, 50, 16, {"seed": 7})
    assert found.device == "cpu"
    assert (found.reference_digest, found.fake_digest) == ("hash of reals", "hash of fakes")
    assert found.seconds >= 3
    assert found.versions["torch"] == torch.__version__.split("+")[0]
    assert compare(real, fake, protocol).metrics == found.metrics
    assert compare(real, fake, replace(protocol, seed=5)).metrics["fd_ratio"] != found.metrics["fd_ratio"]


def test_scores_are_written_with_their_protocol_and_read_back(real: FeatureSet, fake: FeatureSet) -> None:
    found = compare(real, fake, replace(PROTOCOL, metrics=EVERY), {"seed": 7})
    assert json.loads(found.to_json()) == json.loads(json.dumps(asdict(found)))
    assert Scores.from_json(found.to_json()) == found
    assert json.loads(found.to_json())["protocol"]["name"] == "fd-pixels"
    head, *rows = found.table().splitlines()
    assert head == "fd-pixels: 50 images of fakes against 60 of reals"
    assert "FD-pixels of 10 real half-splits" in rows[1]
    keys = ("fd", "fd_half_split_mean", "fd_ratio", "inception_score_mean", "kd_mean", "precision", "recall", "density",
            "coverage", "class_fd", "accuracy")  # fmt: skip
    ends = set()
    for row, key in zip(rows, keys, strict=True):
        number = f"{found.metrics[key]:.5g}"
        ends.add(row.index(f" {number}") + len(number))
    assert len(ends) == 1
    for word in ("FID", "KID"):
        assert word not in found.table() + found.to_json()


def test_only_the_protocols_metrics_are_computed(real: FeatureSet, fake: FeatureSet) -> None:
    def names(protocol: Protocol, fakes: FeatureSet = fake) -> set[str]:
        return set(compare(real, fakes, protocol).metrics)

    assert "accuracy" not in names(PROTOCOL, replace(fake, labels=None))
    assert names(replace(PROTOCOL, metrics=("frechet",))) == {"fd"}
    assert names(replace(PROTOCOL, metrics=("precision_recall",))) == {"precision", "recall"}
    assert names(replace(PROTOCOL, metrics=("density_coverage",))) == {"density", "coverage"}
    with pytest.warns(UserWarning, match="class_frechet is left out: reals and fakes need labels"):
        assert names(replace(PROTOCOL, metrics=("frechet", "class_frechet")), replace(fake, labels=None)) == {"fd"}
    with pytest.raises(ValueError, match="nothing is left of accuracy, since fakes has no labels or pixels no classes"):
        names(replace(PROTOCOL, metrics=("accuracy",)), replace(fake, predictions=None))
    only = compare(real, fake, replace(PROTOCOL, metrics=("precision_recall",)))
    assert len(only.table().splitlines()) == 3


def test_statistics_alone_give_what_they_can(real: FeatureSet, fake: FeatureSet) -> None:
    alone = replace(real, features=None, labels=None, count=None)
    found = compare(alone, fake, replace(PROTOCOL, metrics=("frechet", "inception_score"), resamples=2))
    assert found.metrics["fd"] == compare(real, fake, PROTOCOL).metrics["fd"]
    assert "against an unknown number of reals" in found.table()
    assert "FD-pixels of 2 resamplings" in found.table()
    for metric in ("kernel", "half_split", "precision_recall"):
        with pytest.raises(ValueError, match="reals holds no features"):
            compare(alone, fake, replace(PROTOCOL, metrics=(metric,)))
    with pytest.raises(ValueError, match="without logits' statistics"):
        compare(real, replace(fake, inception_score=None), replace(PROTOCOL, metrics=("inception_score",)))


@pytest.mark.parametrize("protocol", PROTOCOLS.values(), ids=lambda protocol: protocol.name)
def test_published_protocols_keep_what_their_metrics_need(
    protocol: Protocol, real: FeatureSet, fake: FeatureSet
) -> None:
    assert (protocol.kept_of_fakes.inception_splits, protocol.num_images) == (10, 50_000)
    parts = [replace(part, extractor=protocol.extractor) for part in (real, fake)]
    expected = {"fd", "inception_score_mean", "inception_score_std"}
    if protocol.name == "adm-train-npz":  # what ADM publishes of the reals has no features
        assert not protocol.kept_of_reals.features and protocol.kept_of_reals.spatial
        parts = [replace(part, spatial=(part.mean, part.covariance)) for part in parts]
        expected |= {"sfd"}
    else:
        assert protocol.kept_of_reals.features
        expected |= {"kd_mean", "kd_std", "precision", "recall", "density", "coverage"}
    found = compare(*parts, protocol)
    assert set(found.metrics) == expected
    assert "FID" in found.table()


def test_sets_that_can_not_be_compared_are_refused(real: FeatureSet, fake: FeatureSet) -> None:
    with pytest.raises(ValueError, match="reals was seen by extractor pixels"):
        compare(real, fake, replace(PROTOCOL, extractor="other"))
    with pytest.raises(ValueError, match="fakes was seen by extractor pixels"):
        compare(real, replace(fake, digest="0" * 64), PROTOCOL)
    with pytest.raises(ValueError, match="all images of reals have the same features"):
        compare(replace(real, features=torch.zeros(60, DIM)), fake, PROTOCOL)


def test_fewer_images_than_features_are_warned_of(real: FeatureSet, recwarn: pytest.WarningsRecorder) -> None:
    compare(real, features_of("few", DIM + 1, 3), PROTOCOL)
    assert not recwarn.list
    with pytest.warns(UserWarning, match="few has 16 images for 16 features"):
        compare(real, features_of("few", DIM, 3), PROTOCOL)
