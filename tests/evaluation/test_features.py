"""One pass over images, and gathering over processes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch_fidelity.metric_isc import isc_features_to_metric

from maxgan.evaluation import statistics
from maxgan.evaluation.comparison import compare
from maxgan.evaluation.extractors import ClassifierExtractor, Features
from maxgan.evaluation.features import Collector, FeatureSet, Kept, Share
from maxgan.evaluation.protocols import customised, feature_protocol
from maxgan.runtime import share_of

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


def assert_equal(one: FeatureSet, two: FeatureSet, rel: float = 1e-6) -> None:
    """Times aside, two sets agree bit for bit; only the Inception Score hangs on the order of a sum, and on logits in
    float32."""
    assert (one.inception_score or (0, 0)) == pytest.approx(two.inception_score or (0, 0), rel=rel)
    for field in fields(FeatureSet):
        a, b = getattr(one, field.name), getattr(two, field.name)
        if field.name not in ("inception_score", "spatial", "seconds"):
            same = torch.equal(a, b) if isinstance(a, Tensor) and isinstance(b, Tensor) else a == b
            assert same, field.name


class Processes:
    """Threads that gather as accelerate does: parts of equal shape, put together in the order of the processes."""

    device = torch.device("cpu")

    def __init__(self, count: int) -> None:
        self.parts: list[Tensor] = [torch.empty(0)] * count
        self.barrier = threading.Barrier(count, timeout=300)
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


@pytest.mark.parametrize("chunk", [256, 8])
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
    extractor: ClassifierExtractor,
    shares: list[range],
    labels: Tensor | None,
    kept: Kept,
    chunk: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(statistics, "CHUNK_IMAGES", chunk)
    whole = share(extractor, range(60), labels, 60, kept).gather(ONE)
    processes = Processes(len(shares))
    parts = [replace(share(extractor, places, labels, 7, kept), seconds=float(len(places))) for places in shares]
    found = processes.run(lambda rank: parts[rank].gather(processes))
    for one in found:
        assert_equal(one, whole)
        assert one.seconds == max(map(len, shares))


class Given:
    """An "extractor" whose images are the features; some of them stand for logits and for spatial features, too."""

    name, digest, resize, resolution, channels, num_classes, unquantised = "given", "0", "none", 1, 1, 8, False

    def to(self, device: torch.device | str) -> Given:
        return self

    def __call__(self, images: Tensor) -> Features:
        return Features(images, images[:, :8], images[:, 20:])


def nearly_singular(count: int, seed: int) -> Tensor:
    """Return float32 features `(count, 60)` around 3 whose variance falls from 1 to 1e-16, beside one of zeros."""
    rng = np.random.default_rng(seed)
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(60, 60)))[0]
    x = 3 + rng.normal(size=(count, 60)) * 10 ** -np.linspace(0, 8, 60) @ turn
    x[:, 30] = 0
    return torch.from_numpy(x.astype(np.float32))


def scores_of(processes: int, size: int) -> tuple[FeatureSet, FeatureSet, dict[str, float]]:
    """Return reals and fakes seen by so many processes in batches of a size, and all scores but Inception's."""
    metrics = ("frechet", "spatial_frechet", "half_split", "kernel", "precision_recall", "density_coverage",
               "class_frechet")  # fmt: skip
    protocol = customised(feature_protocol(Given()), metrics, resamples=3, extrapolation_points=4)
    sets = []
    for images in (nearly_singular(700, 1), nearly_singular(530, 2)):
        labels = torch.arange(len(images)) // 350
        group = Processes(processes)

        def part(rank: int, images: Tensor = images, labels: Tensor = labels, group: Processes = group) -> FeatureSet:
            places = share_of(len(images), SimpleNamespace(process_index=rank, num_processes=processes))  # type: ignore[arg-type]
            kept = Kept(inception_splits=10, spatial=True)
            one = Collector(Given(), "cpu", source="noise", indices=places, total=len(images), kept=kept)
            own = slice(places.start, places.stop)
            return one.run(batches(images[own], labels[own], size)).gather(group)

        sets.append(group.run(part)[-1])
    return sets[0], sets[1], dict(compare(sets[0], sets[1], protocol).metrics)


@pytest.fixture(scope="module")
def scores_of_one() -> tuple[FeatureSet, FeatureSet, dict[str, float]]:
    return scores_of(1, 64)


@pytest.mark.parametrize(("processes", "size"), [(1, 1), (1, 1000), (2, 64), (3, 7), (5, 64)])
def test_scores_hang_neither_on_processes_nor_on_batches(
    scores_of_one: tuple[FeatureSet, FeatureSet, dict[str, float]], processes: int, size: int
) -> None:
    real, fake, expected = scores_of_one
    assert torch.linalg.cond(real.covariance) > 1e15
    found = scores_of(processes, size)
    for one, whole in zip(found[:2], (real, fake), strict=True):
        assert_equal(one, whole, rel=1e-14)
        assert one.spatial is not None
        assert whole.spatial is not None
        assert torch.equal(torch.vstack(one.spatial), torch.vstack(whole.spatial))
    assert found[2] == expected
    assert len(expected) == 15


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
