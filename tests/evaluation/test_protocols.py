"""Extraction, gathering over processes and comparison."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor

from maxgan.evaluation import scores
from maxgan.evaluation.extractors import ClassifierExtractor, Features
from maxgan.evaluation.neighbours import neighbour_scores
from maxgan.evaluation.protocols import FeatureSet, compare, extract, feature_protocol

# 16 pixels an image, and so 16 features of the stand-in classifier.
IMAGES = torch.randint(0, 256, (60, 1, 4, 4), generator=torch.Generator().manual_seed(0)).byte()
LABELS = torch.arange(60) % 3


@pytest.fixture
def extractor(classifier: Any) -> ClassifierExtractor:
    return ClassifierExtractor(classifier(resolution=4), "pixels")


def batches(images: Tensor, labels: Tensor | None, size: int) -> Iterator[tuple[Tensor, Tensor | None]]:
    for i in range(0, len(images), size):
        yield images[i : i + size], None if labels is None else labels[i : i + size]


def share(extractor: ClassifierExtractor, places: Sequence[int], labels: Tensor | None = LABELS) -> FeatureSet:
    own = torch.as_tensor(places, dtype=torch.int64)
    parts = batches(IMAGES[own], None if labels is None else labels[own], 7)
    return extract(parts, extractor, source="noise", indices=places)


def equal(one: FeatureSet, two: FeatureSet) -> bool:
    """Return whether two sets agree bit for bit, times aside."""
    pairs = [(getattr(one, f.name), getattr(two, f.name)) for f in fields(FeatureSet) if f.name != "seconds"]
    return all(torch.equal(a, b) if isinstance(a, Tensor) and isinstance(b, Tensor) else a == b for a, b in pairs)


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


# Extraction


@pytest.mark.parametrize("size", [1, 7, 60])
def test_extract_keeps_every_image_once_in_order(extractor: ClassifierExtractor, size: int) -> None:
    done: list[int] = []
    found = extract(batches(IMAGES, LABELS, size), extractor, "cpu", source="noise", progress=done.append)
    np.testing.assert_allclose(found.features, IMAGES.flatten(1).numpy() / 127.5 - 1, atol=1e-6)
    assert found.features.dtype == torch.float32
    assert torch.equal(found.predictions, extractor(IMAGES).logits.argmax(1))
    assert torch.equal(found.labels, LABELS)
    assert torch.equal(found.indices, torch.arange(60))
    assert (sum(done), max(done), len(found)) == (60, size, 60)
    assert (found.extractor, found.digest, found.source) == ("pixels", extractor.digest, "noise")
    assert extract(batches(IMAGES, None, size), extractor, source="noise").labels is None


def test_extract_names_the_mistake(extractor: ClassifierExtractor, classifier: Any) -> None:
    with pytest.raises(ValueError, match="60 images where 59 were expected"):
        extract(batches(IMAGES, LABELS, 7), extractor, source="noise", indices=range(59))
    mixed = [(IMAGES[:30], LABELS[:30]), (IMAGES[30:], None)]
    with pytest.raises(ValueError, match="30 of the 60 images of noise have labels"):
        extract(mixed, extractor, source="noise")

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
        extract(batches(images, None, 7), broken, source="noise", indices=range(100, 160))


# Gathering


@pytest.mark.parametrize("labels", [LABELS, None])
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
    extractor: ClassifierExtractor, shares: list[range], labels: Tensor | None
) -> None:
    whole = extract(batches(IMAGES, labels, 60), extractor, source="noise")
    processes = Processes(len(shares))
    parts = [replace(share(extractor, places, labels), seconds=float(len(places))) for places in shares]
    for found in processes.run(lambda rank: parts[rank].gather(processes)):
        assert equal(found, whole)
        assert found.seconds == max(map(len, shares))


@pytest.mark.parametrize(
    ("shares", "message"),
    [
        ([range(31), range(30, 60)], "not a whole set"),  # one image twice
        ([range(29), range(30, 60)], "not a whole set"),  # one missing
        ([range(30), range(30)], "not a whole set"),  # each counts from 0
        ([range(0), range(0)], "must hold images"),
    ],
)
def test_gather_refuses_shares_that_are_no_whole_set_on_every_process(
    extractor: ClassifierExtractor, shares: list[range], message: str
) -> None:
    processes = Processes(2)
    parts = [share(extractor, places) for places in shares]
    for error in processes.run(lambda rank: parts[rank].gather(processes)):
        assert isinstance(error, ValueError)
        assert message in str(error)


def test_gather_refuses_labels_on_some_processes_only(extractor: ClassifierExtractor) -> None:
    processes = Processes(2)
    parts = [share(extractor, range(30)), share(extractor, range(30, 60), labels=None)]
    for error in processes.run(lambda rank: parts[rank].gather(processes)):
        assert isinstance(error, ValueError)
        assert "all with or all without labels" in str(error)


TWO_PROCESSES = """
import sys, torch
from accelerate import Accelerator
from maxgan.evaluation.neighbours import neighbour_scores
from maxgan.evaluation.protocols import FeatureSet
accelerator = Accelerator(cpu=True)
assert accelerator.num_processes == 2
own = torch.arange(5) if accelerator.is_main_process else torch.arange(5, 8)
part = FeatureSet("s", "e", "d", own[:, None] + torch.tensor([0.25, 0.5]), own, None, own * 2, 1.0)
found = part.gather(accelerator)
assert torch.equal(found.features, torch.arange(8.0)[:, None] + torch.tensor([0.25, 0.5]))
assert torch.equal(found.labels, torch.arange(8) * 2) and found.predictions is None
open(f"{sys.argv[1]}/{accelerator.process_index}", "w").close()
"""


@pytest.mark.slow
def test_gather_over_two_real_processes(tmp_path: Path) -> None:
    (script := tmp_path / "two.py").write_text(TWO_PROCESSES)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = os.environ | {"PYTHONPATH": str(Path(scores.__file__).parents[2])}
    subprocess.run([*launch, str(script), str(tmp_path)], check=True, timeout=120, env=environment)
    assert (tmp_path / "0").exists()
    assert (tmp_path / "1").exists()


# Comparison


@pytest.fixture
def real(extractor: ClassifierExtractor) -> FeatureSet:
    return extract(batches(IMAGES, LABELS, 60), extractor, source="reals")


@pytest.fixture
def fake(extractor: ClassifierExtractor) -> FeatureSet:
    return extract(batches(IMAGES[:50] // 2 + 90, LABELS[:50], 60), extractor, source="fakes")


def test_compare_gives_every_score_under_the_extractors_name(
    extractor: ClassifierExtractor, real: FeatureSet, fake: FeatureSet
) -> None:
    protocol = feature_protocol(extractor)
    found = compare(real, fake, protocol, seed=4)
    m = dict(found.metrics)
    (m1, s1), (m2, s2) = ((x.mean(0), np.cov(x, rowvar=False)) for x in (real.features.numpy(), fake.features.numpy()))
    expected = ((m1 - m2) ** 2).sum() + np.trace(s1 + s2 - 2 * scipy.linalg.sqrtm(s1 @ s2).real)
    assert m["fd"] == pytest.approx(expected, rel=1e-5)  # numpy's means of float32 are float32
    floor = scores.half_split_distance(real.features, 10, 4)
    assert (m["fd_half_split_mean"], m["fd_half_split_std"]) == floor
    assert m["fd_ratio"] == m["fd"] / floor[0]
    assert (m["kd_mean"], m["kd_std"]) == scores.kernel_distance(real.features, fake.features, 100, 1000, 4)
    found_near = neighbour_scores(real.features, fake.features, 3, None)
    assert (m["precision"], m["recall"]) == (found_near["precision"], found_near["recall"])
    assert m["accuracy"] == float((fake.predictions == fake.labels).double().mean())
    assert (found.num_reals, found.num_fakes, found.feature_dim, found.seed) == (60, 50, 16, 4)
    assert found.seconds >= real.seconds + fake.seconds
    assert {"maxgan", "torch", "numpy", "python"} == set(found.versions)
    assert found.versions["torch"] == torch.__version__.split("+")[0]
    assert dict(compare(real, fake, protocol, seed=4).metrics) == m
    assert compare(real, fake, protocol, seed=5).metrics["fd_ratio"] != m["fd_ratio"]


def test_scores_are_written_with_their_protocol(
    extractor: ClassifierExtractor, real: FeatureSet, fake: FeatureSet
) -> None:
    found = compare(real, fake, feature_protocol(extractor))
    assert json.loads(found.to_json()) == json.loads(json.dumps(asdict(found)))
    assert json.loads(found.to_json())["protocol"]["name"] == "fd-pixels"
    head, *rows = found.table().splitlines()
    assert head == "fd-pixels: 50 images of fakes against 60 of reals"
    assert "FD-pixels of 10 real half-splits" in rows[1]
    keys = ("fd", "fd_half_split_mean", "fd_ratio", "kd_mean", "precision", "recall", "accuracy")
    ends = set()
    for row, key in zip(rows, keys, strict=True):
        number = f"{found.metrics[key]:.5g}"
        ends.add(row.index(f" {number}") + len(number))
    assert len(ends) == 1
    assert "FID" not in found.table() + found.to_json()
    assert "KID" not in found.table() + found.to_json()


def test_only_the_protocols_metrics_are_computed(
    extractor: ClassifierExtractor, real: FeatureSet, fake: FeatureSet
) -> None:
    protocol = feature_protocol(extractor, num_images=50)
    assert protocol.num_images == 50
    unlabelled = replace(fake, labels=None)
    assert "accuracy" not in compare(real, unlabelled, protocol).metrics
    assert set(compare(real, fake, replace(protocol, metrics=("frechet",))).metrics) == {"fd"}
    only = compare(real, fake, replace(protocol, metrics=("precision_recall",)))
    assert set(only.metrics) == {"precision", "recall"}
    assert len(only.table().splitlines()) == 3


def test_order_of_the_images_does_not_matter(
    extractor: ClassifierExtractor, real: FeatureSet, fake: FeatureSet
) -> None:
    protocol = feature_protocol(extractor)
    turned = extract(batches(IMAGES.flip(0), LABELS.flip(0), 9), extractor, source="reals", indices=range(59, -1, -1))
    assert compare(turned, fake, protocol).metrics == compare(real, fake, protocol).metrics


def test_sets_that_can_not_be_compared_are_refused(
    extractor: ClassifierExtractor, classifier: Any, real: FeatureSet, fake: FeatureSet
) -> None:
    protocol = feature_protocol(extractor)
    with pytest.raises(ValueError, match="noise are not a whole set"):
        compare(real, share(extractor, range(0, 60, 2)), protocol)
    with pytest.raises(ValueError, match="reals was seen by extractor pixels"):
        compare(real, fake, feature_protocol(ClassifierExtractor(classifier(resolution=4), "other")))
    with pytest.raises(ValueError, match="fakes was seen by extractor pixels"):
        compare(real, replace(fake, digest="0" * 64), protocol)
    with pytest.raises(ValueError, match="all images of reals have the same features"):
        compare(replace(real, features=torch.zeros(60, 16)), fake, protocol)


def test_fewer_images_than_features_are_warned_of(
    extractor: ClassifierExtractor, real: FeatureSet, recwarn: pytest.WarningsRecorder
) -> None:
    protocol = feature_protocol(extractor)
    compare(real, share(extractor, range(17)), protocol)
    assert not recwarn.list
    with pytest.warns(UserWarning, match="noise has 16 images for 16 features"):
        compare(real, share(extractor, range(16)), protocol)
