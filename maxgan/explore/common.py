"""What the commands share: the generator, where its pictures go, and sheets of images with captions."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from maxgan.config import ExploreConfig, FeatureConfig, ScoreConfig
from maxgan.data.transforms import to_uint8
from maxgan.evaluation.catalogue import load_extractor
from maxgan.evaluation.evaluate import default_extractor
from maxgan.evaluation.extractors import ModuleExtractor
from maxgan.evaluation.protocols import PROTOCOLS
from maxgan.files import atomic_path
from maxgan.models.network import Network
from maxgan.runtime import start
from maxgan.sampling import CONFIG, Generator, load_generator, newest_export, run_settings
from maxgan.truncation import Draw, truncated
from maxgan.writers import to_picture

GAP, WIDE_GAP, SIDE = 2, 12, 64
TEXT = 12


@dataclass(frozen=True)
class Subject:
    """A generator that is looked at.

    Attributes:
        generator: in eval mode, on `device`.
        network: the same for inference alone, faster, and with the truncation towards the mean latent, if there is one.
        cut: value at which latents are cut, for `latents_of`.
        device: where both are.
        name: of its file, folder or repository.
        folder: where its pictures go.
    """

    generator: Generator
    network: Draw
    cut: float | None
    device: torch.device
    name: str
    folder: Path

    @property
    def run(self) -> Path:
        """Return the folder of its run, where that has a config: an average lies one deeper."""
        return self.folder if (self.folder / CONFIG).is_file() else self.folder.parent

    @property
    def info(self) -> dict[str, Any]:
        """What its file tells of its training."""
        return getattr(self.generator, "info", {})

    def class_name(self, label: int) -> str:
        """Return the name of a class, or its number."""
        names = self.info.get("class_names") or []
        return str(names[label]) if label < len(names) else str(label)

    def draw(self, z: Tensor, labels: Tensor | None, batch_size: int) -> Tensor:
        """Return the images of latents `(N, latent_dim)` and labels `(N,)`: uint8 `(N, C, H, W)`, on the CPU.

        Raises:
            ValueError: if the generator gives NaN or infinity.
        """
        parts = []
        for first in range(0, len(z), batch_size):
            part = slice(first, first + batch_size)
            with torch.inference_mode():
                own = None if labels is None else labels[part].to(self.device)
                images = self.network(z[part].to(self.device), own)
                if not images.isfinite().all():
                    raise ValueError(f"{self.name} gives NaN or infinity: use another checkpoint")
                parts.append(to_uint8(images).cpu().contiguous())
        return torch.cat(parts)

    def output(self, config: ExploreConfig, default: str) -> Path:
        """Return the path of the picture."""
        return Path(config.output) if config.output is not None else self.folder / default


def open_subject(config: ExploreConfig, truncation: float | None = None) -> Subject:
    """Load the generator of the settings.

    Raises:
        ValueError: if there is none, several processes were started, or the truncation is out of range.
    """
    accelerator = start(config.threads, cpu=config.cpu)
    if accelerator.num_processes > 1:
        raise ValueError(f"this command works in one process, not in {accelerator.num_processes}: start it by itself")
    model = Path(config.model) if config.model is not None else newest_export()
    generator = load_generator(model if config.model is None else config.model, accelerator.device)
    folder = model if model.is_dir() else model.parent if model.is_file() else Path("samples") / model.name
    network, cut = truncated(generator.fuse() if isinstance(generator, Network) else generator, truncation)
    return Subject(generator, network, cut, accelerator.device, str(model), folder)


def open_extractor(config: FeatureConfig, subject: Subject) -> ModuleExtractor | None:
    """Return the extractor of the settings, else that of the generator's run, else the embedded one that fits what was
    trained on, or None."""
    name, weights = config.extractor, config.weights
    resize: str | None = config.resize
    trusted = config.trust_weights
    if name is None:
        own = run_settings(subject.run, "evaluation", ScoreConfig)
        called = own.get("protocol") or ""
        protocol = PROTOCOLS.get(called)
        weights, trusted = weights or own.get("weights"), trusted or bool(own.get("trust_weights"))
        name = own.get("extractor") or (called.removeprefix("fd-") if protocol is None else protocol.extractor) or None
        if protocol is not None:
            resize = resize or protocol.resize
    name = name or default_extractor(str(subject.info.get("source", "")))
    if name is None:
        return None
    return load_extractor(name, weights=weights, resize=resize, trust_weights=trusted).to(subject.device)


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Write values as JSON, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n")


def sheet(
    rows: Sequence[Sequence[Tensor]],
    names: Sequence[str] = (),
    captions: Sequence[Sequence[str]] = (),
    wide_after: int | None = None,
) -> Image.Image:
    """Return rows of images as one picture on white; small ones are enlarged by a whole factor to at least 64 px.

    Args:
        rows: images uint8 `(C, H, W)`, all of one size; rows may differ in length.
        names: text to the left of each row.
        captions: text below each image.
        wide_after: number of columns with a wide gap behind them.
    """
    height, width = rows[0][0].shape[-2:]
    scale = max(1, -(-SIDE // max(height, width)))
    font = ImageFont.load_default(TEXT)
    margin = GAP + (round(max(font.getlength(name) for name in names)) + 8 if names else 0)
    below = TEXT + 5 if captions else 0
    step, drop = width * scale + GAP, height * scale + GAP + below
    columns = max(map(len, rows))
    wide = WIDE_GAP if wide_after is not None else 0
    canvas = Image.new("RGB", (margin + columns * step + wide, GAP + len(rows) * drop), "white")
    draw = ImageDraw.Draw(canvas)
    for i, row in enumerate(rows):
        top = GAP + i * drop
        if names:
            draw.text((margin - 6, top + height * scale / 2), names[i], "black", font, anchor="rm")
        for j, image in enumerate(row):
            left = margin + j * step + (wide if wide_after is not None and j >= wide_after else 0)
            canvas.paste(opaque(image, scale), (left, top))
            if captions:
                place = (left + width * scale / 2, top + height * scale + 2)
                draw.text(place, captions[i][j], "black", font, anchor="ma")
    return canvas


def opaque(image: Tensor, scale: int = 1) -> Image.Image:
    """Return an image uint8 `(C, H, W)` as an RGB picture, enlarged by a whole factor; transparent parts are white."""
    picture = to_picture(image.repeat_interleave(scale, 1).repeat_interleave(scale, 2)).convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
