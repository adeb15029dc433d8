"""The page of a run: one HTML file without any other file or network."""

from __future__ import annotations

import base64
import hashlib
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path

from maxgan.files import atomic_path
from maxgan.report.markup import Markup, duration, join, tag
from maxgan.report.record import Record
from maxgan.report.scores import headline, scores_section
from maxgan.report.sections import (
    curves_section,
    environment_section,
    explored_section,
    neighbours_section,
    samples_section,
    settings_section,
    speed_section,
)


def render(record: Record) -> str:
    """Return the page of a run as HTML."""
    sections = [
        ("samples", "Samples", samples_section(record)),
        ("curves", "Curves", curves_section(record)),
        ("scores", "Scores", scores_section(record)),
        ("neighbours", "Nearest training images", neighbours_section(record)),
        ("explored", "Latent space", explored_section(record)),
        ("settings", "Settings", settings_section(record)),
        ("speed", "Speed", speed_section(record)),
        ("environment", "Environment", environment_section(record)),
    ]
    shown = [(name, title, content) for name, title, content in sections if content is not None]
    if record.problems:
        shown.insert(0, ("problems", "Problems", tag("ul", *(tag("li", text) for text in record.problems))))
    body = join(
        tag("a", "Skip to the content", href="#content", class_="skip"),
        tag(
            "header",
            _heading(record),
            tag("nav", *(tag("a", t, href=f"#{n}") for n, t, _ in shown), aria_label="Sections"),
        ),
        tag("main", *(tag("section", tag("h2", t), c, id=n) for n, t, c in shown), id="content"),
        tag("footer", f"Made by maxgan.report at {datetime.now(UTC):%Y-%m-%d %H:%M} UTC from {record.directory.name}."),
    )
    style, script = (_asset(name) for name in ("page.css", "page.js"))
    # Nothing but what this page brings along may run or be fetched, whatever the run's files contain.
    policy = f"default-src 'none'; img-src data:; style-src {_hash(style)}; script-src {_hash(script)}"
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", f"{record.directory.name} - maxgan"),
        tag("style", Markup(style)),
    )
    return f"<!doctype html>\n{tag('html', head, tag('body', body, tag('script', Markup(script))), lang='en')}\n"


def _asset(name: str) -> str:
    return (resources.files("maxgan.report") / name).read_text()


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _heading(record: Record) -> Markup:
    seen, images = record.images_seen, record.images
    if not record.metrics:
        status, state = "no metrics", "failed"
    elif images is not None and seen >= images:
        status, state = "finished", "finished"
    else:
        status, state = "unfinished", "unfinished"
    data = record.settings.get("data")
    facts: list[tuple[str, str]] = [("images seen", f"{seen:,}" + (f" of {images:,}" if images else ""))]
    facts += headline(record)
    if record.seconds:
        facts.append(("time of training", duration(record.seconds)))
    if isinstance(data, dict):
        facts.append(("data", str(data.get("source"))))
    cards = (tag("div", tag("dt", name), tag("dd", value)) for name, value in facts)
    return join(
        tag("p", f"maxgan run, {record.kind}", class_="kind"),
        tag("h1", record.directory.name, " ", tag("span", status, class_=f"badge {state}")),
        tag("dl", *cards, class_="facts"),
    )


def write_page(record: Record, path: Path) -> None:
    """Write the page of a run, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(render(record), encoding="utf-8")
