"""Statistics of reference images: kept by their content, and shared as one file that other tools read too."""

from __future__ import annotations

import hashlib
import json
import os
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import maxgan
from maxgan.data.arrays import array_names, read_array
from maxgan.data.loader import ImageDataset
from maxgan.evaluation.extractors import Extractor
from maxgan.evaluation.features import FeatureSet, Kept
from maxgan.files import atomic_path

# What a score of the same images may hang on, besides the protocol and the weights.
CODE = ("data", "evaluation", "models", "nn")
OFF = "off"


def cache_folder(setting: str | None) -> Path | None:
    """Return the folder of kept references: as set, None for `off`, else maxgan in the user's cache folder."""
    if setting == OFF:
        return None
    if setting is not None:
        return Path(setting).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "maxgan" / "references"


@lru_cache(maxsize=1)
def code_version() -> str:
    """Return the SHA-256 of all code between a file of an image and its features, and the versions of what it uses."""
    sha = hashlib.sha256()
    root = Path(maxgan.__file__).parent
    for package in CODE:
        for file in sorted((root / package).rglob("*.py")):
            sha.update(f"{file.relative_to(root).as_posix()}\n".encode() + file.read_bytes())
    for library in ("torch", "numpy", "pillow"):
        sha.update(f"{library} {metadata.version(library)}\n".encode())
    return sha.hexdigest()


def content_of(dataset: ImageDataset) -> str:
    """Return the SHA-256 of all that the images of a data set are made of: files, labels, and how they are cut."""
    cut = dataset.config
    facts = [
        dataset.source.fingerprint(),
        dataset.facts.resolution,
        dataset.facts.channels,
        cut.crop if cut.crop == "whole" else "center",
        cut.crop_fraction,
    ]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def reference_key(content: str, extractor: Extractor, kept: Kept, device: str) -> str:
    """Return the name under which statistics are kept: another for any change that could change a score."""
    facts = [content, extractor.name, extractor.digest, extractor.resize, kept.features, kept.spatial, device,
             code_version()]  # fmt: skip
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def save_reference(path: str | Path, reference: FeatureSet, resize: str) -> None:
    """Write a reference as one npz, whole or not at all.

    It holds `mu` and `sigma` float64, as ADM's and clean-fid's files do; where they were kept, `mu_s` and `sigma_s` of
    the spatial features, as ADM's do, and `feats` float32, as clean-fid's for KID; `labels`, `predictions`, and what
    they were made by as JSON text: `maxgan`.
    """
    facts = {
        "source": reference.source,
        "extractor": reference.extractor,
        "digest": reference.digest,
        "resize": resize,
        "count": reference.count,
        "content": reference.content,
    }
    arrays: dict[str, Any] = {
        "mu": reference.mean.numpy(),
        "sigma": reference.covariance.numpy(),
        "maxgan": np.array(json.dumps(facts)),
    }
    spatial = (None, None) if reference.spatial is None else reference.spatial
    for name, value in (
        ("mu_s", spatial[0]),
        ("sigma_s", spatial[1]),
        ("feats", reference.features),
        ("labels", reference.labels),
        ("predictions", reference.predictions),
    ):
        if value is not None:
            arrays[name] = value.numpy()
    with atomic_path(path) as temporary, temporary.open("wb") as stream:
        np.savez(stream, **arrays)


def is_statistics(path: str | Path) -> bool:
    """Return whether a path is an npz of statistics rather than of images."""
    path = Path(path).expanduser()
    return path.suffix.lower() == ".npz" and path.is_file() and "mu" in array_names(str(path))


def load_reference(path: str | Path, extractor: Extractor) -> FeatureSet:
    """Read a reference: our own file, or `mu` and `sigma` of ADM or clean-fid. Nothing is unpickled.

    `mu_s` and `sigma_s` (the spatial features', of ADM) and `feats` (clean-fid's) are taken where they are there.

    A file of ours says what it was made by, and must fit. Others say nothing: that they are of this extractor and this
    way to resize is their user's word.

    Raises:
        ValueError: for a file that is damaged, or made by another extractor, other weights or another way to resize.
    """
    path = Path(path).expanduser()
    names = array_names(str(path))

    def array(name: str) -> np.ndarray:
        return np.array(read_array(str(path), name))

    def moments(suffix: str = "") -> tuple[Tensor, Tensor]:
        mean, covariance = (torch.from_numpy(array(name + suffix).astype(np.float64)) for name in ("mu", "sigma"))
        dim = mean.numel()
        fits = mean.shape == (dim,) and covariance.shape == (dim, dim)
        if not fits or not (mean.isfinite().all() and covariance.isfinite().all()):
            raise ValueError(
                f"mu{suffix} and sigma{suffix} of {path} must be finite, (D,) and (D, D), not {tuple(mean.shape)} and "
                f"{tuple(covariance.shape)}: make the statistics again"
            )
        return mean, covariance

    mean, covariance = moments()
    spatial = moments("_s") if {"mu_s", "sigma_s"} <= set(names) else None
    features = torch.from_numpy(array("feats").astype(np.float32)) if "feats" in names else None
    facts: dict[str, Any]
    if "maxgan" in names:
        try:
            facts = json.loads(str(array("maxgan")))
        except ValueError as error:
            raise ValueError(f"{path} can't be read as a reference ({error}): make it again") from error
        theirs = (facts["extractor"], facts["digest"], facts["resize"])
        ours = (extractor.name, extractor.digest, extractor.resize)
        if theirs != ours:
            shown = [f"{name} ({digest[:12]}), resize {resize}" for name, digest, resize in (theirs, ours)]
            raise ValueError(f"{path} was made by extractor {shown[0]}, not {shown[1]}: name the reference's protocol")
    else:
        with path.open("rb") as stream:
            content = hashlib.file_digest(stream, "sha256").hexdigest()
        count = None if features is None else len(features)
        facts = {"source": str(path), "count": count, "content": content}
    labels, predictions = (
        torch.from_numpy(array(name)) if name in names and "maxgan" in names else None
        for name in ("labels", "predictions")
    )
    return FeatureSet(
        source=facts["source"],
        extractor=extractor.name,
        digest=extractor.digest,
        count=facts["count"],
        mean=mean,
        covariance=covariance,
        features=features,
        spatial=spatial,
        labels=labels,
        predictions=predictions,
        content=facts["content"],
    )
