"""Extractors by name: those that others published, those that come with the package, and exported classifiers."""

from __future__ import annotations

from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path

import torch
from torch import nn

from maxgan.checkpoint import load_model
from maxgan.evaluation import published
from maxgan.evaluation.dinov2 import load_dinov2
from maxgan.evaluation.extractors import GRAPH, ClassifierExtractor, ModuleExtractor, TorchScriptExtractor
from maxgan.evaluation.inception import inception_2015, keras_inception
from maxgan.evaluation.published import find_weights, load_torchscript, sha256_of, weights_digest
from maxgan.evaluation.resize import LEVELS
from maxgan.nn.fuse import fuse_modules

RESIZES_OF = {
    "inception-2015": ("clean", "tf1"),
    "inception-2015-torchscript": ("clean", "tf1"),
    "inception-keras": ("tf2",),
    "dinov2": ("clean",),
}
"""The extractors that others published, and the ways to resize for them."""
# ImageNet's mean and deviation, in grey levels.
IMAGENET_MEAN = tuple(LEVELS * x for x in (0.485, 0.456, 0.406))
IMAGENET_STD = tuple(LEVELS * x for x in (0.229, 0.224, 0.225))


def load_extractor(
    name_or_path: str | Path,
    *,
    weights: str | Path | None = None,
    resize: str | None = None,
    trust_weights: bool = False,
) -> ModuleExtractor:
    """Load an extractor: a published one or one of the package (`digits`) by name, or an exported classifier by path.

    Published are `inception-2015` (torch-fidelity's port of the graph of 2015: 2048 features, 1008 logits without bias,
    2023 spatial features), `inception-2015-torchscript` (the archive that clean-fid uses: features alone),
    `inception-keras` (2048 features, 1000 logits with bias; takes unquantised images) and `dinov2` (needs timm). Their
    weights are checked here, before anything long starts.

    Args:
        name_or_path: which.
        weights: file of a published one; unset: where the tool it belongs to downloads it, or downloaded. DINOv2's
            must be named.
        resize: `clean` or `tf1`, which must be said where there is a choice: of the two of 2015.
        trust_weights: take weights with another checksum than the published. A TorchScript archive is code, which
            loading and calling it runs: set this only for one that you made yourself.

    Raises:
        ValueError: if there is no such extractor, the file is no exported classifier, or weights are missing, of
            another checksum or of other shapes.
    """
    name = str(name_or_path)
    if name not in RESIZES_OF:
        if weights is not None or resize is not None or trust_weights:
            raise ValueError(
                f"weights, resize and trust_weights are for {', '.join(RESIZES_OF)}: extractor {name} has its own"
            )
        return _own_classifier(name_or_path)
    if resize not in (choices := RESIZES_OF[name]) and (resize is not None or len(choices) > 1):
        raise ValueError(f"resize of extractor {name} must be {' or '.join(choices)}, not {resize}: scores differ")
    resize = resize or choices[0]
    if name == "inception-2015":
        path, digest = find_weights(published.PORT_2015, weights, trust_weights)
        model = inception_2015(path)
        _fuse(model)
        return ClassifierExtractor(
            model, name, digest, spatial=model.pooled_and_spatial, resize=resize, mean=GRAPH, std=GRAPH
        )
    if name == "inception-2015-torchscript":
        path, digest = find_weights(published.TORCHSCRIPT_2015, weights, trust_weights)
        return TorchScriptExtractor(load_torchscript(path, digest), name, resize, digest)
    if trust_weights:
        raise ValueError(f"trust_weights is for weights with a published checksum, which {name} has not")
    if name == "inception-keras":
        # The user makes the file, so only what it holds identifies the weights.
        keras = keras_inception(find_weights(published.KERAS, weights)[0])
        digest = weights_digest(keras)
        _fuse(keras)
        return ClassifierExtractor(keras, name, digest, resize=resize, unquantised=True)
    if weights is None:
        raise ValueError(f"extractor {name} needs weights: name the file of DINOv2's backbone, .pth or .safetensors")
    dino = load_dinov2(weights)
    return ModuleExtractor(
        dino, f"{name}-{dino.size}", resolution=dino.resolution, mean=IMAGENET_MEAN, std=IMAGENET_STD,
        resize=resize, digest=sha256_of(Path(weights)),
    )  # fmt: skip


def packaged_extractors() -> dict[str, Traversable]:
    """Return the files of the classifiers that come with the package, by name."""
    folder = resources.files("maxgan.evaluation") / "weights"
    entries = folder.iterdir() if folder.is_dir() else []
    return {Path(entry.name).stem: entry for entry in entries if entry.name.endswith(".safetensors")}


def _own_classifier(name_or_path: str | Path) -> ClassifierExtractor:
    packaged = packaged_extractors()
    if str(name_or_path) in packaged:
        with resources.as_file(packaged[str(name_or_path)]) as path:
            return _from_file(path)
    path = Path(name_or_path)
    if not path.is_file():
        known = ", ".join(sorted(packaged)) or "none"
        raise ValueError(
            f"there is no extractor {name_or_path}: give the path of an exported classifier, the name of one that "
            f"comes with the package ({known}), or that of a published one ({', '.join(RESIZES_OF)})"
        )
    return _from_file(path)


def _from_file(path: Path) -> ClassifierExtractor:
    return ClassifierExtractor(load_model(path), path.stem, sha256_of(path))


def _fuse(model: nn.Module) -> None:
    """Fold the norms of a network, whose weights are here to stay."""
    fuse_modules(model)
    model.to(memory_format=torch.channels_last)
