"""Extractors: networks that turn images into features, behind one small interface."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, Self, runtime_checkable

import torch
from torch import Tensor, nn

from maxgan.evaluation.inception import FEATURES, RESOLUTION
from maxgan.evaluation.published import weights_digest
from maxgan.evaluation.resize import LEVELS, RESIZES, convert_channels

# In grey levels: the graph of 2015 subtracts 128 and divides by it.
GRAPH = 128.0


@dataclass(frozen=True)
class Features:
    """What an extractor says of N images."""

    features: Tensor
    """float32 `(N, D)`."""
    logits: Tensor | None
    """float32 `(N, K)` if it classifies."""
    spatial: Tensor | None = None
    """float32 `(N, S)`: part of a map within the network, flattened, if it gives one."""


class Extractor(Protocol):
    """Anything that turns square images into features; all that a metric or a protocol may ask of it.

    Called with images `(N, C, H, H)`: uint8, or where it is `unquantised` also floating-point in [-1, 1], which are
    clamped. It gives features float32 `(N, D)`, and logits float32 `(N, K)` or None, on its device.
    """

    name: str
    """Names the protocol: `fd-NAME`."""
    digest: str
    """SHA-256 in hexadecimal, so that a score says which weights it was made with."""
    resize: str
    """How images of another resolution are brought to this one, a name of `maxgan.evaluation.resize`."""
    resolution: int
    """Side of the images it looks at, in pixels."""
    channels: int
    """Channels it looks at."""
    num_classes: int
    """Number of logits K; 0 if there are none."""
    unquantised: bool
    """Whether it also takes floating-point images, so that generated ones need not be rounded to uint8."""

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
        """Return features `(N, D)` of images `(N, channels, resolution, resolution)`, normalised as it expects."""
        ...

    def classify(self, pooled: Tensor) -> Tensor:
        """Return logits `(N, num_classes)` of features `(N, D)`."""
        ...


class ModuleExtractor:
    """The features that any torch module gives.

    Images may have any resolution. Between 1 and 3 channels they are converted first (RGB to the luma of ITU-R BT.601,
    unrounded; grey to three equal channels); then they are resized, and grey levels are shown as (level - mean) / std.

    Args:
        module: float32 images `(N, channels, resolution, resolution)` to features `(N, D)`, or to a pair of features
            and logits `(N, num_classes)`. It is taken over: float32, evaluation mode, no gradients.
        name: short name, which names the protocol.
        resolution, channels: of what it looks at.
        num_classes: number of logits; 0 if it gives features alone.
        mean, std: in grey levels 0..255, one number or one for each channel; the defaults show [-1, 1], (0, 255) would
            show [0, 1].
        resize: a name of `maxgan.evaluation.resize.RESIZES`.
        digest: SHA-256 of its file; unset: of its weights and of how it is shown images.
        unquantised: whether it also takes floating-point images in [-1, 1].

    Raises:
        ValueError: for another resize, or a deviation that isn't above 0.
    """

    def __init__(
        self,
        module: nn.Module,
        name: str,
        *,
        resolution: int,
        channels: int = 3,
        num_classes: int = 0,
        mean: float | Sequence[float] = LEVELS / 2,
        std: float | Sequence[float] = LEVELS / 2,
        resize: str = "clean",
        digest: str | None = None,
        unquantised: bool = False,
    ) -> None:
        if resize not in RESIZES:
            raise ValueError(f"resize of extractor {name} must be one of {', '.join(RESIZES)}, not {resize!r}")
        self._mean, self._std = (torch.tensor(x, dtype=torch.float32).view(-1, 1, 1) for x in (mean, std))
        if not (self._std > 0).all() or not {len(self._mean), len(self._std)} <= {1, channels}:
            raise ValueError(
                f"mean and std of extractor {name} must be one number or {channels}, std above 0, not {mean}, {std}"
            )
        self._module = module.float().eval()
        for parameter in module.parameters():  # TorchScript's modules have no requires_grad_
            parameter.requires_grad_(False)
        self._device = torch.device("cpu")
        self.name, self.resize, self.unquantised = name, resize, unquantised
        self.resolution, self.channels, self.num_classes = resolution, channels, num_classes
        if digest is None:
            # The same weights that see images otherwise give other features, for which no kept reference may stand.
            shown = (type(module).__qualname__, resolution, channels, self._mean.tolist(), self._std.tolist())
            digest = hashlib.sha256(f"{weights_digest(module)} {shown}".encode()).hexdigest()
        self.digest = digest

    def to(self, device: torch.device | str) -> Self:
        """Move to a device and return itself."""
        self._device = torch.device(device)
        self._module.to(self._device)
        self._mean, self._std = self._mean.to(self._device), self._std.to(self._device)
        return self

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Features:
        """Return features and logits, on the extractor's device, of images `(N, C, H, H)` of any device.

        Raises:
            ValueError: for images of another type or shape, channels that can't be converted, or a module that gives
                something else than it should.
        """
        x = convert_channels(self._levels(images), self.channels)
        with _full_precision(self._device):
            result = self._look(x)
        self._check(result, len(images))
        return result

    def differentiable(self, images: Tensor) -> Tensor:
        """Return the features `(N, D)` of floating-point images in [-1, 1], clamped and not rounded, with gradients."""
        levels = (images.to(self._device).float().clamp(-1, 1) + 1) * (LEVELS / 2)
        with _full_precision(self._device):
            return self._look(convert_channels(levels, self.channels)).features

    def _levels(self, images: Tensor) -> Tensor:
        """Return images as grey levels 0..255, float32, on the extractor's device."""
        known = images.dtype == torch.uint8 or (self.unquantised and images.is_floating_point())
        if not known or images.ndim != 4 or images.shape[2] != images.shape[3]:
            kinds = "square uint8 or floating-point images" if self.unquantised else "square uint8 images"
            raise ValueError(
                f"extractor {self.name} takes {kinds} (N, C, H, H), not {images.dtype} {tuple(images.shape)}: "
                "crop them, and quantise generated ones first"
            )
        x = images.to(self._device).float()
        return x if images.dtype == torch.uint8 else (x.clamp(-1, 1) + 1) * (LEVELS / 2)

    def _look(self, levels: Tensor) -> Features:
        """Return the features of grey levels 0..255, `(N, channels, H, H)`."""
        x = RESIZES[self.resize](levels, self.resolution)
        return self._run((x - self._mean).div_(self._std))

    def _run(self, x: Tensor) -> Features:
        """Return the features of images as the module looks at them."""
        result = self._module(x)
        return Features(*result) if isinstance(result, tuple) else Features(result, None)

    def _check(self, result: Features, count: int) -> None:
        features, logits = result.features, result.logits
        if features.ndim != 2 or len(features) != count or features.dtype != torch.float32:
            raise ValueError(
                f"extractor {self.name} gave {features.dtype} {tuple(features.shape)} for {count} images: its module "
                "must return float32 features (N, D), so pool its maps"
            )
        if (0 if logits is None else logits.shape[-1]) != self.num_classes:
            shape = None if logits is None else tuple(logits.shape)
            raise ValueError(f"extractor {self.name} gave logits {shape}: set num_classes to their number, 0 for none")


class ClassifierExtractor(ModuleExtractor):
    """The features before the head of a classifier, and its logits.

    Args:
        model: a torch module that is also a `Classifier`.
        name, settings: see `ModuleExtractor`; what images the model looks at, it says itself.
        spatial: in place of the model's `pooled`, gives its features and spatial ones, of the same images.

    Raises:
        ValueError: if the model is no classifier.
    """

    def __init__(
        self,
        model: nn.Module,
        name: str,
        digest: str | None = None,
        spatial: Callable[[Tensor], tuple[Tensor, Tensor]] | None = None,
        **settings: Any,
    ) -> None:
        if not isinstance(model, Classifier):
            raise ValueError(
                f"extractor {name} is a {type(model).__name__}, which has no `pooled` and `classify`: "
                "name an exported classifier"
            )
        self._classifier: Classifier = model
        self._spatial = spatial
        sizes = {"resolution": model.resolution, "channels": model.channels, "num_classes": model.num_classes}
        super().__init__(model, name, digest=digest, **{**settings, **sizes})

    def _run(self, x: Tensor) -> Features:
        x = x.contiguous(memory_format=torch.channels_last)
        spatial = None
        if self._spatial is None:
            pooled = self._classifier.pooled(x)
        else:
            pooled, spatial = self._spatial(x)
        return Features(pooled, self._classifier.classify(pooled), spatial)


class TorchScriptExtractor(ModuleExtractor):
    """The features of the archive `inception-2015-12-05.pt`, as clean-fid takes them; it gives no logits.

    Args:
        archive: with `layers`, and a forward that resizes as `tf1` by itself.
        name, resize, digest: see `ModuleExtractor`.
    """

    def __init__(self, archive: Any, name: str, resize: str, digest: str) -> None:
        if not hasattr(archive, "layers"):
            raise ValueError(f"the TorchScript archive of {name} has no `layers`: it must be inception-2015-12-05.pt")
        self._archive = archive
        super().__init__(archive, name, resolution=RESOLUTION, mean=GRAPH, std=GRAPH, resize=resize, digest=digest)

    def _look(self, levels: Tensor) -> Features:
        levels = levels.contiguous(memory_format=torch.channels_last)  # a third faster on a CPU core
        if self.resize == "tf1":
            features = self._archive(levels, return_features=True)
        else:
            shown = (RESIZES[self.resize](levels, self.resolution) - self._mean).div_(self._std)
            features = self._archive.layers(shown.contiguous(memory_format=torch.channels_last))
        return Features(features.reshape(len(levels), FEATURES), None)


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
