"""HTML and SVG that are escaped by construction: text becomes markup through `tag` alone."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any


class Markup(str):
    """Text that is markup already, so that it isn't escaped once more."""


VOID = frozenset({"img", "input", "line", "circle", "polyline", "rect", "meta"})


def tag(name: str, /, *children: str | Markup | None, **attributes: Any) -> Markup:
    """Return an element.

    Args:
        name: of the element.
        children: markup as it is, other text escaped; None is left out.
        attributes: `class_` is `class`, and other underscores are hyphens; True gives a bare attribute, None and False
            none.
    """
    parts = []
    for key, value in attributes.items():
        key = key.rstrip("_").replace("_", "-")
        if value is True:
            parts.append(f" {key}")
        elif value is not None and value is not False:
            parts.append(f' {key}="{html.escape(str(value))}"')
    opening = f"<{name}{''.join(parts)}>"
    if name in VOID and not children:
        # HTML's void elements take no end tag, and those of SVG close themselves.
        return Markup(opening if name in ("img", "input", "meta") else opening[:-1] + "/>")
    return Markup(f"{opening}{join(*children)}</{name}>")


def join(*children: str | Markup | None) -> Markup:
    """Return markup and escaped text one after the other."""
    return Markup(
        "".join(child if isinstance(child, Markup) else html.escape(child) for child in children if child is not None)
    )


def table(head: list[str], rows: list[list[str | Markup]], **attributes: Any) -> Markup:
    """Return a table that scrolls sideways where it is too wide; the first cell of a row is its heading."""
    body = [tag("tr", tag("th", row[0], scope="row"), *(tag("td", cell) for cell in row[1:])) for row in rows]
    top = tag("thead", tag("tr", *(tag("th", cell, scope="col") for cell in head))) if any(head) else None
    return tag("div", tag("table", top, tag("tbody", *body), **attributes), class_="scroll", tabindex=0)


def missing(text: str) -> Markup:
    """Return a paragraph that says what isn't there."""
    return tag("p", text, class_="missing")


def duration(seconds: float) -> str:
    """Return a time as a person would say it."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:,} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def plain(value: Any) -> str:
    """Return a setting or another plain value as text."""
    if value is None:
        return "unset"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return ", ".join(f"{name} {plain(part)}" for name, part in value.items() if part is not None)
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(map(plain, value))
    return str(value)
