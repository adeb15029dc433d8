"""One pass over images, and gathering over processes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch_fidelity.metric_isc import isc_features_to_metric

from maxgan.evaluation.extractors import ClassifierExtractor, Features
from maxgan.evaluation.features import Collector, FeatureSet, Kept, Share

# 16 pixels an image, and so 16 features of the stand-in classifier.
IMAGES = torch.randint(0, 256, (60, 1, 4, 4), generator=torch.Generator().manual_seed(0)).byte()
LABELS = torch.arange(60) % 3


@pytest.fixture
def extractor(classifier: Any) -> ClassifierExtractor:
    return ClassifierExtractor(classifier(resolution=4), "pixels")


def batches(images: Tensor, labels: Tensor | None, size: int) -> Iterator[tuple[Tensor, Tensor | None]]:
    for i in range(0, len(images), size):
        yield images[i : i + size], None if labels is None else labels[i : i + size]


def collector(extractor: Any, places: Sequence[int] = range(60), kept: Kept | None = None, **options: Any) -> Collector:
    kept = Kept(inception_splits=10) if kept is None else kept
    return Collector(extractor, "cpu", source="noise", indices=places, total=60, kept=kept, **options)


def share(
    extractor: Any, places: Sequence[int], labels: Tensor | None = LABELS, size: int = 7, kept: Kept | None = None
) -> Share:
    own = torch.as_tensor(places, dtype=torch.int64)
    parts = batches(IMAGES[own], None if labels is None else labels[own], size)
    return collector(extractor, places, kept).run(parts)


def assert_equal(one: FeatureSet, two: FeatureSet) -> None:
    """Times aside, two sets agree bit for bit; only sums, and logits in float32, hang on how they were split."""
    np.testing.assert_allclose(one.mean, two.mean, rtol=1e-13, atol=1e-15)
    np.testing.assert_allclose(one.covariance, two.covariance, rtol=1e-11, atol=1e-14)
    assert (one.inception_score or (0, 0)) == pytest.approx(two.inception_score or (0, 0), rel=1e-6)
    for field in fields(FeatureSet):
        a, b = getattr(one, field.name), getattr(two, field.name)
        if field.name not in ("mean", "covariance", "inception_score", "seconds"):
            same = torch.equal(a, b) if isinstance(a, Tensor) and isinstance(b, Tensor) else a == b
            assert same, field.name


class Processes:
    """Threads that gather as accelerate does: parts of equal shape, put together in the order of the processes."""

    device = torch.device("cpu")

    def __init__(self, count: int) -> None:
        self.parts: list[Tensor] = [torch.empty(0)] * count
        self.barrier = threading.Barrier(count, timeout=20)
        self.rank = threading.local()

    def gather(self, tensor: Tensor) -> Tensor:
        self.parts[self.rank.value] = tensor
        self.barrier.wait()
        parts = list(self.parts)
        self.barrier.wait()
        assert len({(part.shape, part.dtype) for part in parts}) == 1
        return torch.cat(parts)

    def run(self, function: Callable[[int], Any]) -> list[Any]:
        def one(rank: int) -> Any:
            self.rank.value = rank
            return function(rank)

        with ThreadPoolExecutor(len(self.parts)) as pool:
            futures = [pool.submit(one, rank) for rank in range(len(self.parts))]
        return [future.exception() or future.result() for future in futures]


ONE = Processes(1)
ONE.rank.value = 0


# Extraction


@pytest.mark.parametrize("size", [1, 7, 60])
def test_a_collector_keeps_every_image_once_in_order(extractor: ClassifierExtractor, size: int) -> None:
    done: list[int] = []
    part = collector(extractor, progress=done.append).run(batches(IMAGES, LABELS, size))
    found = part.gather(ONE)
    expected = IMAGES.flatten(1).numpy() / 127.5 - 1
    np.testing.assert_allclose(found.features, expected, atol=1e-6)
    np.testing.assert_allclose(found.mean, expected.mean(0), atol=1e-6)
    np.testing.assert_allclose(found.covariance, np.cov(expected, rowvar=False), atol=1e-6)
    logits = extractor(IMAGES).logits
    assert found.features.dtype == torch.float32
    assert torch.equal(found.predictions, logits.argmax(1))
    assert torch.equal(found.labels, LABELS)
    assert found.inception_score == pytest.approx(tuple(isc_features_to_metric(logits, 10, False).values()), rel=1e-6)
    assert (sum(done), max(done), found.count, len(part)) == (60, size, 60, 60)
    assert (found.extractor, found.digest, found.source) == ("pixels", extractor.digest, "noise")
    assert share(extractor, range(60), labels=None).gather(ONE).labels is None


def test_only_what_scores_need_is_kept(extractor: ClassifierExtractor) -> None:
    found = share(extractor, range(60), kept=Kept(features=False)).gather(ONE)
    assert found.features is None
    assert found.inception_score is None
    whole = share(extractor, range(60)).gather(ONE)
    assert torch.equal(found.covariance, whole.covariance)
    shuffled = share(extractor, range(60), kept=Kept(False, 4, 5)).gather(ONE)
    expected = isc_features_to_metric(extractor(IMAGES).logits, 4, True, 5)
    assert shuffled.inception_score == pytest.approx(tuple(expected.values()), rel=1e-6)


def test_a_collector_names_the_mistake(extractor: ClassifierExtractor, classifier: Any) -> None:
    with pytest.raises(ValueError, match="more images than the 59 that were expected"):
        collector(extractor, range(59)).run(batches(IMAGES, LABELS, 7))
    with pytest.raises(ValueError, match="56 images where 60 were expected"):
        collector(extractor).run(batches(IMAGES[:56], LABELS[:56], 7))
    mixed = [(IMAGES[:30], LABELS[:30]), (IMAGES[30:], None)]
    with pytest.raises(ValueError, match="30 of the 60 images of noise have labels"):
        collector(extractor).run(mixed)

    class Broken(ClassifierExtractor):
        def __call__(self, images: Tensor) -> Features:
            result = super().__call__(images)
            result.features[images[:, 0, 0, 0] == 77] = torch.nan
            return result

    images = IMAGES.clone()
    images[:, 0, 0, 0] = 0
    images[23, 0, 0, 0] = 77
    broken = Broken(classifier(resolution=4), "broken")
    with pytest.raises(ValueError, match="extractor broken gave NaN or infinite features for image 123 of noise"):
        collector(broken, range(100, 160), Kept()).run(batches(images, None, 7))
    with pytest.raises(ValueError, match="features for file 23"):
        collector(broken, kept=Kept(), where=lambda index: f"file {index}").run(batches(images, None, 7))
    broken.num_classes = 0
    with pytest.raises(ValueError, match="gives no logits"):
        collector(broken)


# Gathering


@pytest.mark.parametrize("labels", [LABELS, None])
@pytest.mark.parametrize("kept", [Kept(inception_splits=10), Kept(features=False)])
@pytest.mark.parametrize(
    "shares",
    [
        [range(60)],
        [range(0, 60, 2), range(1, 60, 2)],
        [range(40, 60), range(40)],
        [range(0), range(59), range(59, 60), range(0)],
        [range(i, 60, 7) for i in range(7)],
    ],
)
def test_gather_gives_the_same_set_for_any_number_of_processes(
    extractor: ClassifierExtractor, shares: list[range], labels: Tensor | None, kept: Kept
) -> None:
    whole = share(extractor, range(60), labels, 60, kept).gather(ONE)
    processes = Processes(len(shares))
    parts = [replace(share(extractor, places, labels, 7, kept), seconds=float(len(places))) for places in shares]
    found = processes.run(lambda rank: parts[rank].gather(processes))
    for one in found:
        assert_equal(one, whole)
        assert torch.equal(one.covariance, found[0].covariance)
        assert one.seconds == max(map(len, shares))


@pytest.mark.parametrize(
    ("shares", "message"),
    [
        ([range(31), range(30, 60)], "not a whole set"),  # one image twice
        ([range(29), range(30, 60)], "not a whole set"),  # one missing
        ([range(30), range(30)], "not a whole set"),  # each counts from 0
        ([range(0), range(0)], "must hold images"),
        ([range(1), range(0)], "has 1 image"),
    ],
)
def test_gather_refuses_shares_that_are_no_whole_set_on_every_process(
    extractor: ClassifierExtractor, shares: list[range], message: str
) -> None:
    processes = Processes(2)
    parts = [share(extractor, places, kept=Kept()) for places in shares]
    for error in processes.run(lambda rank: parts[rank].gather(processes)):
        assert isinstance(error, ValueError)
        assert message in str(error)


def test_gather_refuses_labels_on_some_processes_only(extractor: ClassifierExtractor) -> None:
    processes = Processes(2)
    parts = [share(extractor, range(30)), share(extractor, range(30, 60), labels=None)]
    for error in processes.run(lambda rank: parts[rank].gather(processes)):
        assert isinstance(error, ValueError)
        assert "all with or all without labels" in str(error)
