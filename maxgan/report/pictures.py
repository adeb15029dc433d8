"""Pictures as data in the page, so that it needs no other file."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

from PIL import Image

from maxgan.report.markup import Markup, tag

LARGE = 300_000
"""Bytes; above, a picture that doesn't move is shown smaller or as WebP."""
SIDE = 1600
QUALITY = 90
SHOWN = 60
"""The most pictures of samples on a page."""


def spread(count: int, most: int = SHOWN) -> list[int]:
    """Return at most `most` of the places 0 to count - 1, evenly, the first and the last among them."""
    if count <= most:
        return list(range(count))
    return [round(i * (count - 1) / (most - 1)) for i in range(most)]


def embed(path: Path, alt: str, **attributes: Any) -> Markup | None:
    """Return an image element that holds the picture itself; None if it can't be read as PNG or GIF or WebP."""
    try:
        data = path.read_bytes()
        with Image.open(io.BytesIO(data), formats=("PNG", "GIF", "WEBP")) as picture:
            picture.load()
            kind, size = str(picture.format).lower(), picture.size
            if len(data) > LARGE and getattr(picture, "n_frames", 1) == 1:
                data, kind, size = _smaller(picture)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return None
    source = f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
    return tag("img", src=source, alt=alt, width=size[0], height=size[1], **attributes)


def _smaller(picture: Image.Image) -> tuple[bytes, str, tuple[int, int]]:
    picture = picture.convert("RGBA" if picture.has_transparency_data else "RGB")
    picture.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, "webp", quality=QUALITY)
    return buffer.getvalue(), "webp", picture.size
