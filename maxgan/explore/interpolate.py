"""A closed path through latents, as an animation and as a strip."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from maxgan.config import InterpolateConfig
from maxgan.explore.common import open_subject, sheet
from maxgan.files import atomic_path
from maxgan.sampling import latents_of, parse_classes
from maxgan.writers import save_picture

MOST_PATHS, PLAIN_PATHS, COLUMNS = 10, 4, 5
GIF_TICK = 10
"""A GIF counts time in hundredths of a second: in milliseconds."""


def slerp(a: Tensor, b: Tensor, t: Tensor) -> Tensor:
    """Return the spherical interpolation from a to b, `(D,)`, at each t in [0, 1], `(T,)`: `(T, D)`.

    sin((1 - t) w) / sin(w) a + sin(t w) / sin(w) b, with the angle w between them (Shoemake 1985), as White (arXiv
    1609.04468) proposes it for latents; the line where they are parallel.
    """
    cosine = torch.dot(a, b) / (a.norm() * b.norm()).clamp_min(torch.finfo(a.dtype).tiny)
    angle = torch.acos(cosine.clamp(-1, 1))
    t = t[:, None]
    if angle.sin() < 1e-6:
        return (1 - t) * a + t * b
    return (((1 - t) * angle).sin() * a + (t * angle).sin() * b) / angle.sin()


def closed_path(points: Tensor, frames: int) -> Tensor:
    """Return `(P * frames, D)`: from each of the points `(P, D)` to the next, and from the last to the first.

    Every point is a frame, and the frame after the last would be the first again.
    """
    steps = torch.arange(frames, dtype=points.dtype) / frames
    return torch.cat([slerp(a, b, steps) for a, b in zip(points, points.roll(-1, 0), strict=True)])


def make_interpolation(config: InterpolateConfig) -> str:
    """Write animation and strip; return a sentence that says where they are.

    Raises:
        ValueError: if the generator has no such classes.
    """
    subject = open_subject(config, config.truncation)
    generator = subject.generator
    classes = parse_classes(config.classes)
    if generator.num_classes and classes is None:
        classes = list(range(generator.num_classes))
    paths = config.paths or (min(len(classes), MOST_PATHS) if classes else PLAIN_PATHS)
    images: list[Tensor] = []
    names: list[str] = []
    for path in range(paths):
        first = config.seed + path * config.points
        seeds = range(first, first + config.points)
        own = [classes[path % len(classes)]] if classes is not None else None
        names += [subject.class_name(label) for label in own or ()]
        points, labels = latents_of(seeds, generator.latent_dim, generator.num_classes, own, truncation=subject.cut)
        z = closed_path(points.double(), config.frames).float()
        labels = labels[:1].expand(len(z)) if labels is not None else None
        images.append(subject.draw(z, labels, config.batch_size))
    count = config.points * config.frames
    places = [round(column * count / config.columns) for column in range(min(config.columns, count))]
    output = subject.output(config, "interpolation.gif")
    strip = output.with_suffix(".png")
    save_animation([_frame(torch.stack([path[i] for path in images])) for i in range(count)], output, config.fps)
    save_picture(sheet([[path[place] for place in places] for path in images], names), strip)
    return f"{paths} closed paths of {count} frames through {subject.name} are in {output}, and as a strip in {strip}"


def _frame(images: Tensor) -> Image.Image:
    """Return one image of every path, in a row of at most five."""
    return sheet([list(torch.unbind(row)) for row in images.split(COLUMNS)])


def save_animation(frames: list[Image.Image], path: Path, fps: int) -> None:
    """Write frames that repeat for ever as .gif or, with all colours, as .webp; whole or not at all."""
    still = 1000 / fps
    options: dict[str, object] = {"lossless": True, "duration": round(still)}
    if path.suffix.lower() == ".gif":
        options = {"duration": GIF_TICK * round(still / GIF_TICK), "optimize": False, "disposal": 1}
    with atomic_path(path) as temporary:
        first, *rest = frames
        kind = path.suffix[1:].lower()
        first.save(temporary, kind, save_all=True, append_images=rest, loop=0, **options)
