"""Protocols: what a score's name stands for. Two scores compare only where all of this is equal."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from maxgan.config import Metric
from maxgan.evaluation.catalogue import RESIZES_OF, load_extractor
from maxgan.evaluation.extractors import Extractor
from maxgan.evaluation.features import Kept

TRAINING = "the training set, all images"
# The same network in two files, and what the second doesn't give: logits and spatial features.
ARCHIVE_OF = {"inception-2015": "inception-2015-torchscript"}
NOT_OF_ARCHIVE = {"inception_score", "spatial_frechet"}
# Metrics that need the features themselves, of both sets.
NEEDS_FEATURES = {"half_split", "kernel", "precision_recall", "density_coverage", "class_frechet"}


@dataclass(frozen=True)
class Protocol:
    """All that must be equal for two scores to be comparable; a score is never told without it."""

    name: str
    """`fd-NAME`, or that of a published protocol."""
    extractor: str
    """Name of the extractor."""
    frechet: str
    """What its Fréchet distance is called; `FID` is for Inception features only, `sFID` for its spatial ones."""
    kernel: str
    """What its kernel distance is called; `KID` is for Inception features only."""
    inception: str
    """What its Inception Score is called; `IS` is for Inception's logits only."""
    resize: str
    """How images are brought to the extractor's resolution."""
    quantisation: Literal["uint8", "none"] = "uint8"
    """Form of generated images before they are resized: whole grey levels, or clipped only."""
    cut: Literal["fakes", "extractor"] = "fakes"
    """Resolution that images from files are cut to before that: that of the fakes, or the extractor's own."""
    reference: str = "as named"
    """Which images are the reals."""
    reference_crop: float = 1.0
    """Side of the central square that is kept of the reals, as a fraction of the shorter side."""
    num_images: int | None = None
    """Number of fakes; unset: as many as there are reals, at most 50,000."""
    metrics: tuple[Metric, ...] = ("frechet", "half_split", "kernel", "precision_recall", "accuracy")
    """What is computed; `half_split` gives the noise floor of `frechet`, `accuracy` and `class_frechet` need labels."""
    half_splits: int = 10
    """Random splits of the reals."""
    inception_logits: int | None = None
    """Logits of the Inception Score; unset: as many as the extractor gives."""
    inception_splits: int = 10
    """Parts of the fakes that the Inception Score is a mean over."""
    inception_seed: int | None = None
    """Seed of their shuffle before; unset: contiguous parts, as in the original code."""
    kernel_subsets: int = 100
    """Random subsets of the kernel distance."""
    kernel_subset_size: int = 1000
    """Images of each, at most all."""
    neighbours: int = 3
    """The k of precision and recall."""
    density_neighbours: int = 5
    """The k of density and coverage."""
    resamples: int = 0
    """Resamplings of the fakes for the deviation of the Fréchet distance; 0 for none."""
    extrapolation_points: int = 0
    """Numbers of fakes from which it is extrapolated to infinitely many; 0 for none."""
    seed: int = 0
    """Of random splits, subsets and resamplings."""

    @property
    def kept_of_reals(self) -> Kept:
        """What a pass over the reals keeps."""
        return Kept(bool(NEEDS_FEATURES & set(self.metrics)), spatial="spatial_frechet" in self.metrics)

    @property
    def kept_of_fakes(self) -> Kept:
        """What a pass over the fakes keeps."""
        uncertain = self.resamples or self.extrapolation_points
        needed = bool((NEEDS_FEATURES - {"half_split"}) & set(self.metrics) or uncertain)
        splits = self.inception_splits if "inception_score" in self.metrics else 0
        return Kept(needed, splits, self.inception_seed, "spatial_frechet" in self.metrics)


def feature_protocol(extractor: Extractor, num_images: int | None = None) -> Protocol:
    """Return the protocol `fd-NAME` of an extractor that is not Inception: its scores are FD-NAME, KD-NAME, IS-NAME."""
    name = extractor.name
    labels = (f"FD-{name}", f"KD-{name}", f"IS-{name}")
    return Protocol(f"fd-{name}", name, *labels, extractor.resize, cut="extractor", num_images=num_images)


# What can be had of mean and covariance alone, which is what ADM publishes.
_OF_STATISTICS: tuple[Metric, ...] = ("frechet", "spatial_frechet", "inception_score")
_PUBLISHED: tuple[Metric, ...] = ("frechet", "inception_score", "kernel", "precision_recall", "density_coverage")


def _inception(name: str, extractor: str, logits: int, resize: str, reference: str, crop: float = 1.0) -> Protocol:
    return Protocol(
        name,
        extractor,
        "FID",
        "KID",
        "IS",
        resize,
        reference=reference,
        reference_crop=crop,
        num_images=50_000,
        metrics=_PUBLISHED,
        inception_logits=logits,
        # torch-fidelity's, so that its scores of the same features are the same.
        inception_seed=2020,
        seed=2020,
    )


PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        _inception("fid50k-train-2015-clean", "inception-2015", 1008, "clean", TRAINING),
        _inception("fid50k-train-2015-tf1", "inception-2015", 1008, "tf1", TRAINING),
        replace(
            _inception("adm-train-npz", "inception-2015", 1008, "tf1", "means and covariances that ADM published"),
            metrics=_OF_STATISTICS,
            # Of ADM's evaluator: images in their order.
            inception_seed=None,
        ),
        replace(
            _inception(
                "hit-val50k", "inception-keras", 1000, "tf2", "the 50,000 ImageNet validation images", crop=0.875
            ),
            quantisation="none",
        ),
    )
}
"""The published protocols by name; `maxgan.evaluation.resize` tells what the ways to resize are."""


def choose_protocol(
    name: str | None, extractor: str | None = None, weights: str | None = None, trust_weights: bool = False
) -> tuple[Protocol, Extractor]:
    """Return a protocol and its extractor.

    Args:
        name: of a published protocol, or `fd-NAME`; None: the one that the extractor names.
        extractor: name or file of what `load_extractor` takes, for `fd-NAME`; or `inception-2015-torchscript`, for the
            protocols of the same network, without the scores that it lacks the outputs for.
        weights, trust_weights: see `load_extractor`.

    Raises:
        ValueError: for an unknown protocol, or settings that don't belong to it.
    """
    if name is None or name.startswith("fd-"):
        chosen = extractor if extractor is not None else (name or "").removeprefix("fd-")
        if not chosen:
            raise ValueError("name a protocol, or an extractor to compare by")
        if len(RESIZES_OF.get(chosen, ())) > 1:
            known = [p.name for p in PROTOCOLS.values() if chosen in (p.extractor, ARCHIVE_OF.get(p.extractor))]
            raise ValueError(
                f"extractor {chosen} takes images resized in more than one way, and scores differ: name "
                f"{' or '.join(known)} in protocol"
            )
        loaded: Extractor = load_extractor(chosen, weights=weights, trust_weights=trust_weights)
        protocol = feature_protocol(loaded)
        # DINOv2's name tells its size, which its file tells.
        if name not in (None, protocol.name, f"fd-{chosen}"):
            raise ValueError(f"protocol {name} and extractor {chosen} contradict each other: name one of them")
        return protocol, loaded
    if name not in PROTOCOLS:
        near = [known for known in PROTOCOLS if known.startswith(name)]
        near = near or difflib.get_close_matches(name, PROTOCOLS, n=1) or list(PROTOCOLS)
        raise ValueError(f"there is no protocol {name}: name {' or '.join(near)}, or fd-NAME of a classifier")
    protocol = PROTOCOLS[name]
    if extractor not in (None, protocol.extractor):
        if extractor != ARCHIVE_OF.get(protocol.extractor):
            raise ValueError(f"protocol {name} has its own extractor: leave extractor {extractor} out")
        metrics = tuple(metric for metric in protocol.metrics if metric not in NOT_OF_ARCHIVE)
        protocol = replace(protocol, extractor=extractor, metrics=metrics)
    return protocol, load_extractor(
        protocol.extractor, weights=weights, resize=protocol.resize, trust_weights=trust_weights
    )


def customised(
    protocol: Protocol, metrics: Sequence[Metric] | None = None, resamples: int = 0, extrapolation_points: int = 0
) -> Protocol:
    """Return a protocol with other metrics, or with uncertainties; none of its scores changes its value by that.

    Raises:
        ValueError: for a single resampling or point, which has no deviation and no slope.
    """
    if resamples == 1 or extrapolation_points == 1:
        raise ValueError(
            f"resamples and extrapolation_points must be 0 or at least 2, not {resamples} and {extrapolation_points}"
        )
    metrics = protocol.metrics if metrics is None else tuple(metrics)
    return replace(protocol, metrics=metrics, resamples=resamples, extrapolation_points=extrapolation_points)


def with_images(protocol: Protocol, count: int) -> Protocol:
    """Return a protocol for another number of fakes, whose name says so where a number is part of the protocol."""
    if protocol.num_images in (None, count):
        return replace(protocol, num_images=count)
    return replace(protocol, name=f"{protocol.name}-with-{count}-images", num_images=count)
