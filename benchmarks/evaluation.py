"""Time of the mathematics of scores beside torch-fidelity's and clean-fid's; `scoring.py` has whole scorings of files.

    python benchmarks/evaluation.py --images 2500 --threads 1

Timed are statistics, Fréchet distance, Inception Score, kernel distance, precision and recall of given features, 2048
of them and 1008 logits, as they arrive in batches: `ours` (with density and coverage too) and `fidelity`; and Fréchet
and kernel distance alone, all that clean-fid has, of `ours_in_part` and `cleanfid`. Each in seconds per 1,000 images of
both sets. All get the same random features, and the largest relative difference of their scores stands beside.

Peak memory is that of the process, so one side is measured at a time: `--side ours`, for example.

A single thread on a CPU is measured by the time that the process was running, so that others don't count; all else by
the clock.
"""

from __future__ import annotations

import argparse
import importlib
import json
import resource
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import scipy
import torch
from timing import environment, write_report
from torch import Tensor
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_isc import isc_features_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric

from maxgan.evaluation.comparison import compare
from maxgan.evaluation.extractors import Features
from maxgan.evaluation.features import Collector, FeatureSet
from maxgan.evaluation.protocols import PROTOCOLS, Protocol

DIM, CLASSES = 2048, 1008
# SciPy 1.18 gives its root of a matrix in another form than clean-fid takes.
CLEAN_FID_HAS_DISTANCE = tuple(map(int, scipy.__version__.split(".")[:2])) < (1, 18)
PROTOCOL = PROTOCOLS["fid50k-train-2015-tf1"]
IN_PART = replace(PROTOCOL, metrics=("frechet", "kernel"))
KEYS = {
    "fd": "frechet_inception_distance",
    "inception_score_mean": "inception_score_mean",
    "kd_mean": "kernel_inception_distance_mean",
    "precision": "precision",
    "recall": "recall",
}


class Given:
    """An "extractor" whose images are the features themselves, `(N, 2048 + 1008)`."""

    name, digest, resize, resolution, channels = PROTOCOL.extractor, "0" * 64, "none", 299, 3
    num_classes, unquantised = CLASSES, False

    def to(self, device: torch.device | str) -> Given:
        return self

    def __call__(self, images: Tensor) -> Features:
        return Features(images[:, :DIM], images[:, DIM:])


class One:
    """A single process."""

    def __init__(self, device: str) -> None:
        self.device = torch.device(device)

    def gather(self, tensor: Tensor) -> Tensor:
        return tensor


def ours(
    extractor: Any, sets: list[Tensor], device: str, batch: int, protocol: Protocol = PROTOCOL
) -> dict[str, float]:
    """Return our scores of the second set against the first."""

    def seen(images: Tensor, kept: Any) -> FeatureSet:
        count = len(images)
        collector = Collector(extractor, device, source="images", indices=range(count), total=count, kept=kept)
        return collector.run((part, None) for part in images.split(batch)).gather(One(device))

    real, fake = seen(sets[0], protocol.kept_of_reals), seen(sets[1], protocol.kept_of_fakes)
    return dict(compare(real, fake, protocol, device=device).metrics)


def ours_in_part(extractor: Any, sets: list[Tensor], device: str, batch: int) -> dict[str, float]:
    """Return of our scores those that clean-fid has, too."""
    return ours(extractor, sets, device, batch, IN_PART)


def cleanfid(extractor: Any, sets: list[Tensor], device: str, batch: int) -> dict[str, float]:
    """Return clean-fid's scores, its functions called as its `compute_fid` and `compute_kid` call them."""
    fid = importlib.import_module("cleanfid.fid")
    seen = [[extractor(part.to(device)).features.cpu().numpy() for part in images.split(batch)] for images in sets]
    real, fake = (np.concatenate(parts) for parts in seen)
    np.random.seed(PROTOCOL.seed)  # its subsets are then torch-fidelity's
    return {"fd": float(fid.fid_from_feats(fake, real)), "kd_mean": fid.kernel_distance(real, fake)}


def fidelity(extractor: Any, sets: list[Tensor], device: str, batch: int) -> dict[str, float]:
    """Return torch-fidelity's scores, its functions called as its `calculate_metrics` calls them."""
    seen = [[extractor(part.to(device)) for part in images.split(batch)] for images in sets]
    real, fake = (torch.cat([part.features.cpu() for part in parts]) for parts in seen)
    logits = torch.cat([part.logits.cpu() for part in seen[1]])
    found = fid_statistics_to_metric(fid_features_to_statistics(fake), fid_features_to_statistics(real), False)
    found |= isc_features_to_metric(logits)
    size = min(PROTOCOL.kernel_subset_size, len(real), len(fake))
    found |= kid_features_to_metric(fake, real, kid_subset_size=size, verbose=False)
    found |= prc_features_to_metric(fake, real, verbose=False)
    return {name: found[key] for name, key in KEYS.items()}


SIDES = {"ours": ours, "fidelity": fidelity, "ours_in_part": ours_in_part, "cleanfid": cleanfid}


def timed(function: Callable[[], Any], device: str) -> tuple[Any, float]:
    """Return what a function gives, and its seconds."""
    alone = device == "cpu" and torch.get_num_threads() == 1
    clock = time.process_time if alone else time.perf_counter
    if device == "cuda":
        torch.cuda.synchronize()
    start = clock()
    result = function()
    if device == "cuda":
        torch.cuda.synchronize()
    return result, clock() - start


def random_features(count: int, seed: int, shift: float) -> Tensor:
    """Return features like Inception's: not negative, correlated, around 0.4; and logits."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(256, DIM, generator=torch.Generator().manual_seed(9)) / 16
    noise = torch.randn(count, DIM, generator=generator)
    features = (torch.randn(count, 256, generator=generator) @ mix + 0.3 * noise + shift).relu()
    return torch.cat([features, 2 * torch.randn(count, CLASSES, generator=generator)], 1)


def main() -> None:
    """Measure, print a table, and write JSON if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1000, help="of each set")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--side", choices=("all", *SIDES), default="all")
    parser.add_argument("--output", help="JSON file")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    extractor: Any = Given()
    sets = [random_features(options.images, 0, 0.3), random_features(options.images, 1, 0.32)]
    lines: dict[str, float] = {}
    scores: dict[str, dict[str, float]] = {}
    for name, function in SIDES.items():
        if name == "cleanfid" and not CLEAN_FID_HAS_DISTANCE:
            print("clean-fid's Fréchet distance needs SciPy below 1.18: it is left out")
        elif options.side in ("all", name):
            arguments = (extractor, sets, options.device, options.batch)
            scores[name], lines[name] = timed(lambda f=function, a=arguments: f(*a), options.device)  # type: ignore[misc]
    per_thousand = {name: seconds / (2 * options.images) * 1000 for name, seconds in lines.items()}
    facts: dict[str, Any] = {"seconds_per_1000_images": per_thousand}
    for mine, other in (("ours", "fidelity"), ("ours_in_part", "cleanfid")):
        if {mine, other} <= scores.keys():
            one, two = scores[mine], scores[other]
            facts[f"against_{other}"] = {
                "largest_relative_difference": max(abs(one[key] / value - 1) for key, value in two.items()),
                "times_faster": lines[other] / lines[mine],
            }
    facts["peak_memory_gb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    facts["scores"] = scores
    print(json.dumps(facts, indent=2))
    if options.output:
        report = {"environment": environment(torch.device(options.device)), "settings": vars(options)}
        write_report(report | facts, options.output)


if __name__ == "__main__":
    main()
