"""The sections of a page but its scores, each from what the run's folder has."""

from __future__ import annotations

import shlex
from typing import Any

from maxgan.evaluation.comparison import versions
from maxgan.report.charts import Points, chart
from maxgan.report.markup import Markup, duration, join, missing, plain, table, tag
from maxgan.report.pictures import SHOWN, embed, spread
from maxgan.report.record import NEIGHBOURS, Record
from maxgan.sampling import EXPORT_NAME
from maxgan.training import classifier_run, gan_run
from maxgan.training.pictures import FRACTIONS

EXPLORED = {
    "classes.png": "A row for each class; the same latents in every row",
    "interpolation.gif": "A closed path through latents",
    "interpolation.webp": "A closed path through latents",
    "interpolation.png": "The same path, a row for each",
    "inversion.png": "A given picture, and what comes nearest to it",
}
"""Pictures that maxgan.explore puts beside a generator."""
TIMES = ("images", "seconds")


def samples_section(record: Record) -> Markup | None:
    if record.kind == "classifier":
        return None
    chosen = [record.samples[place] for place in spread(len(record.samples))]
    pictures = []
    for seen, path in chosen:
        if (image := embed(path, f"Samples after {seen:,} images", data_images=seen)) is None:
            record.problems.append(f"samples/{path.name} can't be read as a picture, and is left out.")
        else:
            pictures.append((seen, image))
    reals = embed(record.directory / "reals.png", "Training images")
    real = tag("figure", tag("figcaption", "Training images"), reals) if reals is not None else None
    if not pictures:
        wait = "They come every run.sample_every images and at the end."
        return join(missing(f"There are no pictures of samples yet. {wait}"), real)
    last = len(pictures) - 1
    control = tag(
        "div",
        tag(
            "button",
            "\N{SINGLE LEFT-POINTING ANGLE QUOTATION MARK}",
            type="button",
            id="earlier",
            aria_label="Earlier samples",
        ),
        tag("input", type="range", id="slider", min=0, max=last, step=1, value=last, aria_label="Samples over time"),
        tag(
            "button",
            "\N{SINGLE RIGHT-POINTING ANGLE QUOTATION MARK}",
            type="button",
            id="later",
            aria_label="Later samples",
        ),
        tag("button", "Play", type="button", id="play"),
        class_="control",
        hidden=True,
    )
    note = f" {len(pictures)} of {len(record.samples)} pictures, evenly chosen." if len(record.samples) > SHOWN else ""
    return join(
        tag(
            "p",
            "From latents that stay the same through the run, not chosen by hand." + note,
        ),
        control,
        tag(
            "div",
            tag(
                "figure",
                tag("figcaption", "Samples after ", tag("output", f"{pictures[-1][0]:,}", id="seen"), " images"),
                *(image for _, image in pictures),
                id="samples-over-time",
            ),
            real,
            class_="pair",
        ),
    )


def curves_section(record: Record) -> Markup:
    panels = _panels(record)
    if not panels:
        every = record.settings.get("run", {})
        every = every.get("log_every") if isinstance(every, dict) else None
        first = f" The first line comes after {every} images." if every else ""
        return missing(
            f"There are no metrics: the run stopped, or failed, before their first line.{first} Its terminal says why."
        )
    end = record.images or record.images_seen
    charts = (
        chart(title, curves, end, FRACTIONS.issuperset(curves)) for title, curves in panels.items() if title != "speed"
    )
    hint = "Point at a chart, or focus it and use the arrow keys, to read values."
    return join(tag("p", hint), tag("div", *charts, class_="charts"))


def _panels(record: Record) -> dict[str, dict[str, Points]]:
    """Return the curves of every chart: the panels of the run's kind, and one for each metric that is in none."""
    panels = gan_run.PANELS if record.kind == "GAN" else classifier_run.PANELS
    named = {title: list(names) for title, names in panels.items()}
    if record.kind == "GAN":
        # What a perfect generator would reach.
        named["Fréchet distance"].append("fd_half_split_mean")
    known = {name for names in named.values() for name in names}
    found = dict.fromkeys(name for line in record.metrics for name in line if not name.endswith("_std"))
    named |= {name.replace("_", " "): [name] for name in found if name not in known and name not in TIMES}
    result = {}
    for title, names in named.items():
        curves = {name: _points(record, name) for name in names if name in found}
        if curves:
            result[title] = curves
    return result


def _points(record: Record, name: str) -> Points:
    lines = [line for line in record.metrics if name in line]
    return [line["images"] for line in lines], [line[name] for line in lines]


def neighbours_section(record: Record) -> Markup | None:
    if record.kind == "classifier":
        return None
    image = embed(record.directory / f"{NEIGHBOURS}.png", "Samples, and the training images nearest to each")
    if image is None:
        if not (record.directory / EXPORT_NAME).is_file():
            return missing("There is no generator yet.")
        command = shlex.join(["python", "-m", "maxgan.report", str(record.directory), "--neighbours", "true"])
        return join(missing("Not computed. This command does, and makes this page anew:"), _command(command))
    caption = "Left: samples. Right: the real images nearest to each, with their distances."
    return tag("div", tag("figure", tag("figcaption", caption), image), _distances(record), class_="pair")


def _distances(record: Record) -> Markup | None:
    """Return how near samples come to reals, and reals to each other."""
    found = record.neighbours or {}
    columns = [found.get(name) for name in ("quantiles", "samples_to_nearest_real", "reals_to_nearest_other_real")]
    if not all(isinstance(column, list) and all(isinstance(x, int | float) for x in column) for column in columns):
        return missing("Their neighbours.json is missing or of another version, so there are no numbers.")
    rows: list[list[str | Markup]] = [
        ["smallest" if share == 0 else f"{100 * share:g} % are below", f"{sample:.4g}", f"{real:.4g}"]
        for share, sample, real in zip(*columns, strict=False)
    ]
    what = (
        f"Distances of {plain(found.get('samples'))} samples to the nearest of {plain(found.get('reals'))} images of "
        f"{plain(found.get('reference'))}, and of such images to the nearest other one, in the features of "
        f"{plain(found.get('extractor'))} ({plain(found.get('extractor_digest'))[:12]}). Shown are the samples that "
        "come nearest. A generator that copies has far smaller distances than the images among each other."
    )
    return tag("div", tag("p", what), table(["", "samples", "images"], rows, class_="numbers"))


def _command(text: str) -> Markup:
    return tag("pre", tag("code", text), tabindex=0)


def explored_section(record: Record) -> Markup | None:
    if record.kind == "classifier":
        return None
    found = [(text, embed(record.directory / name, text)) for name, text in EXPLORED.items()]
    # Each can be closed, since what moves must be able to stop.
    shown = [tag("details", tag("summary", text), image, open=True) for text, image in found if image is not None]
    return tag("div", *shown, class_="pair") if shown else None


def settings_section(record: Record) -> Markup:
    if not record.settings:
        return missing("The run's config.yaml can't be read.")
    stored, default = _flat(record.settings), _flat(record.defaults)
    changed = sorted(name for name in stored if name not in default or stored[name] != default[name])
    rows: list[list[str | Markup]] = [
        [
            name,
            tag("code", plain(stored[name])),
            tag("code", plain(default[name])) if name in default else "no such setting now",
        ]
        for name in changed
    ]
    every: list[list[str | Markup]] = [[name, tag("code", plain(value))] for name, value in stored.items()]
    return join(
        table(["setting", "value", "default"], rows) if rows else tag("p", "Every setting has its default."),
        tag("details", tag("summary", f"All {len(stored)} settings"), table(["setting", "value"], every)),
    )


def _flat(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of each section by their dotted names; a field may have parts itself, as a schedule has."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        fields = {f"{name}.{field}": part for field, part in value.items()} if isinstance(value, dict) else None
        flat |= {str(name): value} if fields is None else fields
    return flat


def speed_section(record: Record) -> Markup:
    if not record.seconds:
        return missing("Nothing was measured yet.")
    mean = record.images_seen / record.seconds
    rows: list[list[str | Markup]] = [
        ["images per second, over the whole training", f"{mean:.4g}"],
        ["time of training", duration(record.seconds)],
    ]
    if record.images is not None and record.images > record.images_seen:
        rows.append(["time left at this pace", duration((record.images - record.images_seen) / mean)])
    curves = _panels(record).get("speed")
    drawn = chart("images per second", curves, record.images or record.images_seen) if curves else None
    return tag("div", table(["", ""], rows, class_="numbers"), drawn, class_="charts")


def environment_section(record: Record) -> Markup:
    rows: list[list[str | Markup]] = []
    for number, start in enumerate(record.starts):
        label = "started" if number == 0 else "went on"
        rows.append(
            [
                f"{label} {plain(start.get('time'))}",
                "; ".join(f"{name} {plain(value)}" for name, value in _flat(start).items() if name != "time"),
            ]
        )
    now = "; ".join(f"{name} {value}" for name, value in versions().items())
    rows.append(["this page", now])
    return join(
        None if record.starts else missing("The run didn't note where it was started."),
        table(["", ""], rows),
    )
