"""Scores of real images by this project and by torch-fidelity, clean-fid and torchmetrics, with the same weights.

    python benchmarks/agreement.py --reals photos.zip --fakes others.zip --images 1000 --work FOLDER

`--fakes` can be any other images. Both sets are cut to the same size and written as PNG, which each tool then reads,
resizes and looks at by itself; features are kept in `--work` in parts, so that a run which was stopped goes on. The
weights are stand-ins (`stand_ins.py`) unless `--weights` names a folder with the published files.

`features` and `logits` are the largest difference between ours and theirs over all images, in standard deviations of
theirs. `whole` is the relative difference of the scores, each tool from its own features, and `maths` that of the same
(their) features in float64. With fewer images than features the covariances are singular, and the noise of the tools'
roots shows in the Fréchet distance. So `fd_at_full_rank` is of the first 64 features, and `fd_without_roots` tells how
far ours and theirs lie from another way to the distance that takes no root.
"""

from __future__ import annotations

import argparse
import importlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from evaluation import CLASSES, CLEAN_FID_HAS_DISTANCE, DIM, PROTOCOL, Given, ours
from stand_ins import save_archive, save_port
from torch import Tensor, nn
from torch_fidelity.datasets import ImagesPathDataset
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_isc import isc_features_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric
from torchmetrics.image import FrechetInceptionDistance, InceptionScore, KernelInceptionDistance
from torchmetrics.image.fid import NoTrainInceptionV3

from maxgan.config import DataConfig
from maxgan.data.loader import ImageDataset, evaluation_batches
from maxgan.evaluation import scores
from maxgan.evaluation.catalogue import load_extractor
from maxgan.evaluation.published import PORT_2015, TORCHSCRIPT_2015
from maxgan.evaluation.statistics import InceptionStatistics, inception_splits
from maxgan.files import atomic_path
from maxgan.writers import Batch, write_images

PART, BATCH, SEED, FEW = 250, 25, 2020, 64
# Tool and resize, ours that it is compared with.
RIVALS = {"fidelity-tf1": "ours-tf1", "cleanfid-legacy_tensorflow": "ours-tf1", "cleanfid-clean": "ours-clean"}
Look = Callable[[list[Path]], Tensor]
Pair = tuple[Tensor, Tensor]


def add_sets(parser: argparse.ArgumentParser) -> None:
    """Add the options that name two sets of images."""
    parser.add_argument("--reals", required=True, help="source of images")
    parser.add_argument("--fakes", required=True, help="source of other images")
    parser.add_argument("--images", type=int, default=1000, help="of each set")
    parser.add_argument("--resolution", type=int, default=128, help="that both are cut to")


def write_folder(source: str, count: int, resolution: int, folder: Path) -> list[Path]:
    """Write the first `count` images of a source as PNG, spread evenly over it, and return their paths."""
    if not folder.exists():
        dataset = ImageDataset(DataConfig(source=source, resolution=resolution, channels=3, labels=False))
        chosen = np.linspace(0, len(dataset) - 1, count).astype(int).tolist()
        parts = evaluation_batches(dataset, BATCH, chosen)
        write_images((Batch(range(i * BATCH, i * BATCH + len(x)), x, None) for i, (x, _) in enumerate(parts)), folder)
    return sorted(folder.glob("*.png"))[:count]


def ways_to_look(weights: Path) -> dict[str, Callable[[], Look]]:
    """Return, by tool and resize, what loads a network, which maps files to features, and logits if it has them."""

    def own(resize: str) -> Look:
        extractor = load_extractor(
            "inception-2015", weights=weights / PORT_2015.name, resize=resize, trust_weights=True
        )

        def look(files: list[Path]) -> Tensor:
            dataset = ImageDataset(DataConfig(source=str(files[0].parent)))
            places = {dataset.source.where(i): i for i in range(len(dataset))}
            images, _ = next(evaluation_batches(dataset, len(files), [places[str(file)] for file in files]))
            found = extractor(images)
            assert found.logits is not None
            return torch.cat([found.features, found.logits], 1)

        return look

    def fidelity() -> Look:
        network = FeatureExtractorInceptionV3("port", ["2048", "logits_unbiased"], str(weights / PORT_2015.name))

        def look(files: list[Path]) -> Tensor:
            dataset = ImagesPathDataset(files)
            return torch.cat(network(torch.stack([dataset[i] for i in range(len(files))])), 1)

        return look

    def clean_fid(mode: str) -> Look:
        fid = importlib.import_module("cleanfid.fid")
        inception = importlib.import_module("cleanfid.inception_torchscript")
        network = inception.InceptionV3W(str(weights), download=False, resize_inside=mode != "clean")

        def look(files: list[Path]) -> Tensor:
            settings = {"num_workers": 0, "batch_size": BATCH, "device": torch.device("cpu"), "verbose": False}
            return torch.from_numpy(fid.get_files_features(list(map(str, files)), network, mode=mode, **settings))

        return look

    return {
        "ours-tf1": lambda: own("tf1"),
        "fidelity-tf1": fidelity,
        "ours-clean": lambda: own("clean"),
        "cleanfid-clean": lambda: clean_fid("clean"),
        "cleanfid-legacy_tensorflow": lambda: clean_fid("legacy_tensorflow"),
    }


@torch.no_grad()
def seen(name: str, load: Callable[[], Look], files: list[Path], work: Path) -> Tensor:
    """Return features of all files, from what was kept of them where there is something."""
    look: Look | None = None
    parts = []
    for start in range(0, len(files), PART):
        kept = work / f"{files[0].parent.name}-{name}-{start:06}.npy"
        part = files[start : start + PART]
        if not kept.exists() or len(np.load(kept, mmap_mode="r")) < len(part):
            look = load() if look is None else look
            found = torch.cat([look(part[i : i + BATCH]) for i in range(0, len(part), BATCH)])
            with atomic_path(kept) as path:
                np.save(path, found.numpy())
            print(kept, flush=True)
        parts.append(torch.from_numpy(np.load(kept)[: len(part)]))
    return torch.cat(parts)


def differences(mine: dict[str, float], other: dict[str, float]) -> dict[str, float]:
    """Return the relative differences of what both have."""
    return {name: abs(mine[name] / value - 1) if value else abs(mine[name]) for name, value in other.items()}


def by_ours(real: Tensor, fake: Tensor) -> dict[str, float]:
    """Return our scores of features, and logits if there are any."""
    real, fake = (torch.nn.functional.pad(x, (0, DIM + CLASSES - x.shape[1])) for x in (real, fake))
    return ours(Given(), [real, fake], "cpu", 100, replace(PROTOCOL, kernel_subset_size=subset_size(real, fake)))


def subset_size(real: Tensor, fake: Tensor) -> int:
    """Return the images of a subset of kernel distances: fewer than all, so that they have a deviation."""
    return min(1000, len(real) // 2, len(fake) // 2)


def fidelity_distance(real: Tensor, fake: Tensor) -> float:
    """Return torch-fidelity's Fréchet distance."""
    statistics = [fid_features_to_statistics(x) for x in (fake, real)]
    return float(fid_statistics_to_metric(*statistics, False)["frechet_inception_distance"])


def by_fidelity(real: Tensor, fake: Tensor) -> dict[str, float]:
    """Return torch-fidelity's other scores of features and logits."""
    sets = (fake[:, :DIM], real[:, :DIM])
    size = subset_size(real, fake)
    found = isc_features_to_metric(fake[:, DIM:]) | prc_features_to_metric(*sets, verbose=False)
    found |= kid_features_to_metric(*sets, kid_subset_size=size, verbose=False)
    return {
        "inception_score_mean": found["inception_score_mean"],
        "kd_mean": found["kernel_inception_distance_mean"],
        "kd_std": found["kernel_inception_distance_std"],
        "precision": found["precision"],
        "recall": found["recall"],
    }


def clean_fid_distance(real: Tensor, fake: Tensor) -> float:
    """Return clean-fid's Fréchet distance, which needs SciPy below 1.18."""
    return float(importlib.import_module("cleanfid.fid").fid_from_feats(fake.numpy(), real.numpy()))


def by_clean_fid(real: Tensor, fake: Tensor) -> dict[str, float]:
    """Return clean-fid's other score of features."""
    np.random.seed(SEED)  # its subsets are then those of torch-fidelity, and so ours
    settings = {"max_subset_size": subset_size(real, fake)}
    fid = importlib.import_module("cleanfid.fid")
    return {"kd_mean": fid.kernel_distance(real.numpy(), fake.numpy(), **settings)}


def torchmetrics_distance(real: Tensor, fake: Tensor) -> float:
    """Return torchmetrics' Fréchet distance."""
    distance = FrechetInceptionDistance(Replay(real.shape[1])).set_dtype(torch.float64)
    distance.update(real, real=True)
    distance.update(fake, real=False)
    return float(distance.compute())


def by_torchmetrics(real: Tensor, fake: Tensor) -> dict[str, float]:
    """Return torchmetrics' other scores; its subsets and splits are drawn otherwise, so a single one is taken."""
    size = min(len(real), len(fake))
    kernel = KernelInceptionDistance(Replay(DIM), subsets=1, subset_size=size).set_dtype(torch.float64)
    kernel.update(real[:size, :DIM], real=True)
    kernel.update(fake[:size, :DIM], real=False)
    score = InceptionScore(Replay(CLASSES), splits=1).set_dtype(torch.float64)
    score.update(fake[:, DIM:])
    return {"kd_whole": float(kernel.compute()[0]), "inception_score_whole": float(score.compute()[0])}


class Replay(nn.Module):
    """A network whose images are their features."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, x: Tensor) -> Tensor:
        return x


def whole_sets(real: Tensor, fake: Tensor) -> dict[str, float]:
    """Return our scores with a single subset and split."""
    statistics = InceptionStatistics(CLASSES, 1)
    statistics.update(fake[:, DIM:], inception_splits(len(fake), 1, None))
    size = min(len(real), len(fake))
    return {
        "kd_whole": scores.kernel_distance(real[:size, :DIM], fake[:size, :DIM], 1, size)[0],
        "inception_score_whole": statistics.score()[0],
    }


def rootless(real: Tensor, fake: Tensor) -> float:
    """Return the Fréchet distance of features another way, without roots of matrices or of eigenvalues.

    tr (S1 S2)^(1/2) is the sum of the singular values of X1 X2^T / (N - 1), the features centred.
    """
    one, two = (x.double().numpy() for x in (real, fake))
    means = one.mean(0), two.mean(0)
    one, two = ((x - mean) / (len(x) - 1) ** 0.5 for x, mean in zip((one, two), means, strict=True))
    values = np.linalg.svd(one @ two.T, compute_uv=False)
    return float(((means[0] - means[1]) ** 2).sum() + (one**2).sum() + (two**2).sum() - 2 * values.sum())


TOOLS = {
    "fidelity": (fidelity_distance, by_fidelity, by_ours),
    "cleanfid": (clean_fid_distance, by_clean_fid, by_ours),
    "torchmetrics": (torchmetrics_distance, by_torchmetrics, whole_sets),
}


def compared(tool: str, mine: Pair, theirs: Pair) -> dict[str, Any]:
    """Return how far our scores of `mine` lie from the tool's scores of `theirs`, features as each has seen them."""
    distance, others, our_others = TOOLS[tool]
    seen = tuple(x[:, :DIM] for x in theirs)
    exact = tuple(x.double() for x in theirs)
    facts: dict[str, Any] = {
        "features": max(float((a[:, :DIM] - b).abs().max() / b.std()) for a, b in zip(mine, seen, strict=True))
    }
    if mine[0].shape == theirs[0].shape:
        logits = [(a[:, DIM:], b[:, DIM:]) for a, b in zip(mine, theirs, strict=True)]
        facts["logits"] = max(float((a - b).abs().max() / b.std()) for a, b in logits)
    truth = rootless(*seen)
    own = scores.frechet_distance_of_features
    facts["maths"] = differences(our_others(*exact), others(*exact))
    has_distance = tool != "cleanfid" or CLEAN_FID_HAS_DISTANCE
    if has_distance:
        few = tuple(x[:, :FEW] for x in exact)
        facts["maths"]["fd_at_full_rank"] = abs(own(*few) / distance(*few) - 1)
        whole = {"fd": distance(*seen)} | others(*theirs)
        facts["fd_without_roots"] = {"ours": abs(own(*seen) / truth - 1), "theirs": abs(whole["fd"] / truth - 1)}
        mine_whole = {"fd": own(*(x[:, :DIM] for x in mine))} | our_others(*mine)
        facts["whole"] = differences(mine_whole, whole)
        facts["scores"] = whole
    return facts


def main() -> None:
    """Extract, compare, print and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_sets(parser)
    parser.add_argument("--weights", type=Path, help="folder of both published files; unset: stand-ins are made")
    parser.add_argument("--work", type=Path, required=True, help="folder of images and features")
    parser.add_argument("--tools", nargs="+", choices=RIVALS, default=list(RIVALS))
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    work: Path = options.work
    work.mkdir(parents=True, exist_ok=True)
    weights = options.weights or work
    if options.weights is None and not (work / TORCHSCRIPT_2015.name).exists():
        save_archive(work, save_port(work))
    sources = {"reals": options.reals, "fakes": options.fakes}
    files = [write_folder(source, options.images, options.resolution, work / name) for name, source in sources.items()]
    loads = ways_to_look(weights)
    found = {}
    for name in dict.fromkeys(name for rival in options.tools for name in (RIVALS[rival], rival)):
        real, fake = (seen(name, loads[name], part, work) for part in files)
        found[name] = (real, fake)
    facts = {name: compared(name.partition("-")[0], found[RIVALS[name]], found[name]) for name in options.tools}
    if "fidelity-tf1" in found:
        # torchmetrics looks through torch-fidelity's network; its own way to resize is off.
        network = NoTrainInceptionV3("port", ["2048"], str(weights / PORT_2015.name), antialias=False)
        dataset = ImagesPathDataset(files[0][:BATCH])
        looked = network(torch.stack([dataset[i] for i in range(len(dataset))]))
        same = torch.equal(looked, found["fidelity-tf1"][0][: len(looked), :DIM])
        facts["torchmetrics"] = {"same_features_as_fidelity": same}
        facts["torchmetrics"] |= compared("torchmetrics", found["ours-tf1"], found["fidelity-tf1"])
    report = json.dumps({"images": options.images, **facts}, indent=2)
    print(report)
    with atomic_path(work / "agreement.json") as path:
        path.write_text(report)


if __name__ == "__main__":
    main()
