"""Time and memory of a whole scoring of image files beside torch-fidelity's and clean-fid's.

    python benchmarks/scoring.py --reals photos.zip --fakes cifar10-test.zip --images 1000 --work FOLDER

Both sets are cut to the same size and written as PNG (as by `agreement.py`), and every tool is given the two folders
through its own entry point. Each run is a process of its own, so that its peak memory is known, without any cache.

What lies outside the network (decoding, resizing, statistics, distances) is measured by itself: `outside` runs the
whole scoring with a network that does next to nothing, but gives as many features and logits of every image. Each tool
stands beside ours with the same scores: torch-fidelity beside all of them (ours adds density and coverage), clean-fid
beside Fréchet and kernel distance, for which it decodes and looks at the images twice.

`whole` is our scoring with Inception, `forward` Inception alone on batches that lie resized in memory, and `overhead`
the ratio of the two. The weights are stand-ins (`stand_ins.py`).

A single thread on a CPU is measured by the time that the process was running, so that others don't count; all else by
the clock.
"""

from __future__ import annotations

import argparse
import importlib
import json
import resource
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import torch_fidelity
from agreement import add_sets, write_folder
from evaluation import CLASSES, CLEAN_FID_HAS_DISTANCE, DIM, IN_PART, KEYS, PROTOCOL, timed
from stand_ins import save_port
from timing import environment, write_report
from torch import Tensor, nn
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x

from maxgan.config import DataConfig
from maxgan.evaluation.catalogue import load_extractor
from maxgan.evaluation.evaluate import Scorer
from maxgan.evaluation.extractors import GRAPH, ModuleExtractor
from maxgan.evaluation.inception import RESOLUTION
from maxgan.evaluation.protocols import Protocol
from maxgan.evaluation.published import PORT_2015
from maxgan.runtime import start

MAP = (32, 32)  # 3 x 32 x 32 means of an image: as many as there are features and logits, and 16 more
assert 3 * MAP[0] * MAP[1] >= DIM + CLASSES


def glance(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return "features" and "logits" of images `(N, 3, 299, 299)` at next to no cost: means of their parts."""
    means = F.adaptive_avg_pool2d(x.float(), MAP).flatten(1)
    return means[:, :DIM], means[:, DIM : DIM + CLASSES]


class Glance(nn.Module):
    """`glance` as a network of ours."""

    forward = staticmethod(glance)


class FidelityGlance(FeatureExtractorBase):
    """`glance` as a network of torch-fidelity's, which resizes within it."""

    def __init__(self, name: str, features_list: list[str], **_: Any) -> None:
        super().__init__(name, features_list)

    @staticmethod
    def get_provided_features_list() -> tuple[str, ...]:
        return "2048", "logits_unbiased"

    @staticmethod
    def get_default_feature_layer_for_metric(metric: str) -> str:
        return {"isc": "logits_unbiased"}.get(metric, "2048")

    @staticmethod
    def can_be_compiled() -> bool:
        return False

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        x = interpolate_bilinear_2d_like_tensorflow1x(x.float(), size=(RESOLUTION, RESOLUTION), align_corners=False)
        found = dict(zip(self.get_provided_features_list(), glance((x - GRAPH) / GRAPH), strict=True))
        return tuple(found[name] for name in self.features_list)


def ours(options: argparse.Namespace, protocol: Protocol, extractor: Any) -> Callable[[], dict[str, float]]:
    """Return what scores the folders with our tool."""
    accelerator = start(options.threads, "no", cpu=options.device == "cpu")

    def score() -> dict[str, float]:
        scorer = Scorer(protocol, extractor, DataConfig(source=options.reals), accelerator, batch_size=options.batch)
        return dict(scorer.score_images(options.fakes).metrics)

    return score


def glancing(resize: str) -> ModuleExtractor:
    """Return our extractor without a network."""
    settings: dict[str, Any] = {"resolution": RESOLUTION, "num_classes": CLASSES, "mean": GRAPH, "std": GRAPH}
    return ModuleExtractor(Glance(), PROTOCOL.extractor, resize=resize, **settings)


def fidelity(options: argparse.Namespace) -> Callable[[], dict[str, float]]:
    """Return what scores the folders with torch-fidelity, without a network."""
    torch_fidelity.register_feature_extractor("glance", FidelityGlance)

    def score() -> dict[str, float]:
        found = torch_fidelity.calculate_metrics(
            input1=options.fakes, input2=options.reals, feature_extractor="glance", batch_size=options.batch,
            isc=True, fid=True, kid=True, prc=True, kid_subset_size=min(1000, options.images),
            cuda=options.device == "cuda", cache=False, save_cpu_ram=True, verbose=False,
        )  # fmt: skip
        return {name: found[key] for name, key in KEYS.items()}

    return score


def clean_fid(options: argparse.Namespace) -> Callable[[], dict[str, float]]:
    """Return what scores the folders with clean-fid, without a network."""
    fid = importlib.import_module("cleanfid.fid")
    settings = {"mode": "clean", "num_workers": 0, "batch_size": options.batch, "verbose": False}
    settings["device"] = torch.device(options.device)

    def look(x: Tensor) -> Tensor:
        return glance((x - GRAPH) / GRAPH)[0]

    def score() -> dict[str, float]:
        fd = fid.compute_fid(options.reals, options.fakes, custom_feat_extractor=look, **settings)
        if options.images > 1000:
            raise SystemExit("clean-fid's kernel distance draws subsets of 1,000 at random: take at most 1,000 images")
        feats = [fid.get_folder_features(x, look, **settings) for x in (options.reals, options.fakes)]
        return {"fd": float(fd), "kd_mean": fid.kernel_distance(*feats, max_subset_size=options.images)}

    return score


def inception(options: argparse.Namespace) -> Any:
    """Return our extractor with its network."""
    path = options.work / PORT_2015.name
    extractor = load_extractor(PROTOCOL.extractor, weights=path, resize="tf1", trust_weights=True)
    return extractor.to(options.device)


def forward(options: argparse.Namespace) -> Callable[[], dict[str, float]]:
    """Return what runs Inception alone on as many images as two sets have."""
    extractor = inception(options)
    generator = torch.Generator().manual_seed(0)
    shape = (options.batch, 3, RESOLUTION, RESOLUTION)
    images = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    extractor(images[:2])  # warm-up
    shown = ((images.float() - GRAPH) / GRAPH).to(options.device)
    sizes = [min(options.batch, options.images - i) for i in range(0, options.images, options.batch)]

    @torch.no_grad()
    def run() -> dict[str, float]:
        for size in 2 * sizes:
            extractor._run(shown[:size])
        return {}

    return run


SIDES: dict[str, Callable[[argparse.Namespace], Callable[[], dict[str, float]]]] = {
    "ours": lambda options: ours(options, PROTOCOL, glancing("tf1")),
    "fidelity": fidelity,
    "ours_in_part": lambda options: ours(options, IN_PART, glancing("clean")),
    "cleanfid": clean_fid,
    "whole": lambda options: ours(options, PROTOCOL, inception(options)),
    "forward": forward,
}


def run_side(options: argparse.Namespace) -> None:
    """Measure one side in this process and print it as a line of JSON."""
    torch.set_num_threads(options.threads)
    scores, seconds = timed(SIDES[options.side](options), options.device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(json.dumps({"seconds": seconds, "peak_memory_gb": peak, "scores": scores}))


def measure(side: str, options: argparse.Namespace) -> dict[str, Any]:
    """Return what a process of its own measures of one side."""
    given = {name: value for name, value in vars(options).items() if name not in ("side", "output", "sides", "rounds")}
    flags = [f"--{name}={value}" for name, value in {**given, "side": side}.items()]
    done = subprocess.run([sys.executable, __file__, *flags], stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(f"{side:<14} {found['seconds']:>8.2f} s {found['peak_memory_gb']:>6.2f} GB", flush=True)
    return found


def main() -> None:
    """Write the files, measure all sides in turn, print the ratios and write JSON if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_sets(parser)
    parser.add_argument("--work", type=Path, required=True, help="folder of images and weights")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=3, help="of all but whole and forward, which run once")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES))
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--output", help="JSON file")
    options = parser.parse_args()
    if options.side:
        run_side(options)
        return
    options.work.mkdir(parents=True, exist_ok=True)
    for name in ("reals", "fakes"):
        folder = options.work / name
        files = write_folder(getattr(options, name), options.images, options.resolution, folder)
        if len(list(folder.glob("*.png"))) != len(files):
            raise SystemExit(f"{folder} holds other images: name another folder in --work")
        setattr(options, name, str(folder))
    if not (options.work / PORT_2015.name).exists():
        save_port(options.work)
    if not CLEAN_FID_HAS_DISTANCE and "cleanfid" in options.sides:
        print("clean-fid's Fréchet distance needs SciPy below 1.18: it is left out")
        options.sides.remove("cleanfid")
    once = [side for side in options.sides if side in ("whole", "forward")]
    runs: dict[str, list[dict[str, Any]]] = {side: [] for side in options.sides}
    for number in range(options.rounds):
        for side in options.sides:
            if side not in once or number == 0:
                runs[side].append(measure(side, options))
    facts: dict[str, Any] = {
        "outside_seconds_per_1000_images": {
            side: statistics.median(run["seconds"] for run in found) / (2 * options.images) * 1000
            for side, found in runs.items()
            if side not in once
        },
        "peak_memory_gb": {side: max(run["peak_memory_gb"] for run in found) for side, found in runs.items()},
    }
    for mine, other in (("ours", "fidelity"), ("ours_in_part", "cleanfid")):
        if {mine, other} <= runs.keys():
            pairs = list(zip(runs[mine], runs[other], strict=True))
            one, two = (run["scores"] for run in pairs[0])
            facts[f"against_{other}"] = {
                "times_faster": statistics.median(theirs["seconds"] / own["seconds"] for own, theirs in pairs),
                "relative_differences": {
                    key: abs(one[key] / value - 1) if value else abs(one[key]) for key, value in two.items()
                },
            }
    if {"whole", "forward"} <= runs.keys():
        whole, alone = (runs[side][0]["seconds"] for side in ("whole", "forward"))
        facts["overhead"] = whole / alone
        facts["seconds_per_1000_images"] = {
            "whole": whole / (2 * options.images) * 1000,
            "forward": alone / (2 * options.images) * 1000,
        }
    print(json.dumps(facts, indent=2))
    if options.output:
        report = {
            "environment": environment(torch.device(options.device)),
            "options": {**vars(options), "work": str(options.work)},
        }
        write_report({**report, **facts, "runs": runs}, options.output)


if __name__ == "__main__":
    main()
