"""Extractors: networks that turn uint8 images into features, behind one small interface."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Protocol, Self, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maxgan.checkpoint import load_model
from maxgan.data.transforms import to_float

# ITU-R BT.601, as PIL converts to grey.
LUMA = (0.299, 0.587, 0.114)


@dataclass(frozen=True)
class Features:
    """What an extractor says of N images: features float32 `(N, D)`, and logits float32 `(N, K)` if it classifies."""

    features: Tensor
    logits: Tensor | None


class Extractor(Protocol):
    """Anything that turns images into features; called with uint8 `(N, C, H, W)`."""

    name: str
    """Names the protocol: `fd-NAME`."""
    digest: str
    """SHA-256 in hexadecimal, so that a score says which weights it was made with."""
    resize: str
    """How images of another resolution are brought to this one."""
    resolution: int
    """Side of the images it looks at, in pixels."""
    channels: int
    """Channels it looks at."""
    num_classes: int
    """Number of logits K; 0 if there are none."""

    def __call__(self, images: Tensor) -> Features: ...

    def to(self, device: torch.device | str) -> Self:
        """Move to a device and return itself."""
        ...


@runtime_checkable
class Classifier(Protocol):
    """A module with `pooled` and `classify`, and the attributes `resolution`, `channels` and `num_classes`."""

    resolution: int
    channels: int
    num_classes: int

    def pooled(self, x: Tensor) -> Tensor:
        """Return features `(N, D)` of images `(N, channels, resolution, resolution)` in [-1, 1]."""
        ...

    def classify(self, pooled: Tensor) -> Tensor:
        """Return logits `(N, num_classes)` of features `(N, D)`."""
        ...


class ClassifierExtractor:
    """The features before the head of a classifier, and its logits.

    Images may have any resolution. Between 1 and 3 channels they are converted first (RGB to the luma of ITU-R BT.601,
    unrounded; grey to three equal channels); then they are resized (bicubic, antialiased, as PIL does) and clamped to
    [-1, 1].

    Args:
        model: a torch module that is also a `Classifier`. It is taken over: float32, evaluation mode, no gradients.
        name: short name, which names the protocol.
        digest: SHA-256 of its file; unset: of its weights.

    Raises:
        ValueError: if the model is no classifier.
    """

    resize = "bicubic, antialiased, clamped"

    def __init__(self, model: nn.Module, name: str, digest: str | None = None) -> None:
        if not isinstance(model, Classifier):
            raise ValueError(
                f"extractor {name} is a {type(model).__name__}, which has no `pooled` and `classify`: "
                "name an exported classifier"
            )
        self._model = model.float().eval().requires_grad_(False)
        self._classifier: Classifier = model
        self._device = torch.device("cpu")
        self.name = name
        self.digest = _digest(model) if digest is None else digest
        self.resolution, self.channels, self.num_classes = model.resolution, model.channels, model.num_classes

    def to(self, device: torch.device | str) -> Self:
        """Move to a device and return itself."""
        self._device = torch.device(device)
        self._model.to(self._device)
        return self

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Features:
        """Return features and logits, on the extractor's device, of uint8 images `(N, C, H, H)` of any device.

        Raises:
            ValueError: for images of another type or shape, or channels that can't be converted.
        """
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[2] != images.shape[3]:
            raise ValueError(
                f"an extractor takes square uint8 images (N, C, H, H), not {images.dtype} {tuple(images.shape)}: "
                "crop them, and quantise generated ones first"
            )
        x = _convert_channels(to_float(images.to(self._device)), self.channels)
        if x.shape[-1] != self.resolution:
            size = (self.resolution, self.resolution)
            x = F.interpolate(x, size, mode="bicubic", align_corners=False, antialias=True).clamp(-1, 1)
        with _full_precision(self._device):
            pooled = self._classifier.pooled(x.contiguous(memory_format=torch.channels_last))
            return Features(pooled, self._classifier.classify(pooled))


def load_extractor(name_or_path: str | Path) -> ClassifierExtractor:
    """Load an extractor of the package by name (`digits`), or an exported classifier by its path.

    Raises:
        ValueError: if there is no such extractor, or the file is no exported classifier.
    """
    folder = resources.files("maxgan.evaluation") / "weights"
    entries = folder.iterdir() if folder.is_dir() else []
    packaged = {Path(entry.name).stem: entry for entry in entries if entry.name.endswith(".safetensors")}
    if str(name_or_path) in packaged:
        with resources.as_file(packaged[str(name_or_path)]) as path:
            return _from_file(path)
    path = Path(name_or_path)
    if not path.is_file():
        known = ", ".join(sorted(packaged)) or "none"
        raise ValueError(
            f"there is no extractor {name_or_path}: give the path of an exported classifier, "
            f"or the name of one that comes with the package ({known})"
        )
    return _from_file(path)


def _from_file(path: Path) -> ClassifierExtractor:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return ClassifierExtractor(load_model(path), path.stem, digest)


def _convert_channels(x: Tensor, channels: int) -> Tensor:
    """Convert images `(N, C, H, W)` between grey and RGB."""
    given = x.shape[1]
    if given == channels:
        return x
    if given == 1 and channels == 3:
        return x.expand(-1, 3, -1, -1)
    if given == 3 and channels == 1:
        return (x * x.new_tensor(LUMA).view(3, 1, 1)).sum(1, keepdim=True)
    raise ValueError(
        f"the extractor looks at {channels} channels and the images have {given}: "
        "only 1 and 3 can be converted, so set data.channels or choose another extractor"
    )


def _digest(model: nn.Module) -> str:
    """Return the SHA-256 of the names, shapes and values of a model's weights."""
    sha = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        sha.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        sha.update(tensor.cpu().contiguous().numpy().tobytes())
    return sha.hexdigest()


@contextmanager
def _full_precision(device: torch.device) -> Iterator[None]:
    """Compute in plain float32, whatever autocast and reduced-precision products training has switched on."""
    backends: list[Any] = [
        torch.backends.cuda.matmul,
        torch.backends.cudnn.conv,  # type: ignore[attr-defined]
        torch.backends.mkldnn.matmul,  # type: ignore[attr-defined]
        torch.backends.mkldnn.conv,  # type: ignore[attr-defined]
    ]
    before = [backend.fp32_precision for backend in backends]
    try:
        for backend in backends:
            backend.fp32_precision = "ieee"
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        for backend, precision in zip(backends, before, strict=True):
            backend.fp32_precision = precision
