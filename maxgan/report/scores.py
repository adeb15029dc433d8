"""The scores of a run with all that they compare by, and a classifier's accuracy."""

from __future__ import annotations

import json
from typing import Any

from maxgan.evaluation.comparison import Scores
from maxgan.report.markup import Markup, join, missing, plain, table, tag
from maxgan.report.pictures import embed
from maxgan.report.record import Record


def headline(record: Record) -> list[tuple[str, str]]:
    """Return the one score that stands for a run."""
    if record.kind == "classifier":
        top = (record.scores or {}).get("top1")
        return [("top-1 accuracy", f"{100 * top:.2f} %")] if isinstance(top, int | float) else []
    scores = generator_scores(record.scores)
    if scores is None or "fd" not in scores.metrics:
        return []
    return [(scores.protocol.frechet, f"{scores.metrics['fd']:.4g}")]


def generator_scores(values: dict[str, Any] | None) -> Scores | None:
    """Return the scores of a generator; None for other content, such as that of another version."""
    if values is None:
        return None
    try:
        scores = Scores.from_json(json.dumps(values))
        numbers = [number for row in scores.rows() for number in row[1:]]
        return scores if all(number is None or isinstance(number, int | float) for number in numbers) else None
    except (KeyError, TypeError, ValueError, AttributeError):
        return None


def scores_section(record: Record) -> Markup:
    if record.kind == "classifier":
        return _accuracy(record)
    scores = generator_scores(record.scores)
    if scores is None:
        last = next((found for _, values in reversed(record.history) if (found := generator_scores(values))), None)
        if record.scores is not None:
            record.problems.append("scores.json holds no scores of this version, and is left out.")
        if last is None:
            return missing("There are no scores. A run is scored at its end, and along it with evaluation.every.")
        note: Markup | None = missing("The run isn't finished: these are the newest scores along the training.")
        scores = last
    else:
        note = None
    rows: list[list[str | Markup]] = [
        [label, f"{value:.5g}" + (f" ± {deviation:.3g}" if deviation is not None else "")]
        for label, value, deviation in scores.rows()
    ]
    protocol = {f"protocol {name}": value for name, value in vars(scores.protocol).items()}
    facts: dict[str, Any] = {
        **protocol,
        "extractor SHA-256": scores.extractor_digest,
        "reference SHA-256": scores.reference_digest,
        "generator SHA-256": scores.fake_digest,
        **{f"sampling {name}": value for name, value in scores.sampling.items()},
        **{f"version of {name}": value for name, value in scores.versions.items()},
        "seconds": f"{scores.seconds:.1f}",
    }
    how = table(["", ""], [[name, plain(value)] for name, value in facts.items()])
    return join(
        note,
        tag("p", scores.title()),
        table(["score", "value"], rows, class_="numbers"),
        tag(
            "details",
            tag("summary", "Protocol, hashes and versions: scores that differ in one of them don't compare"),
            how,
        ),
        _history(record),
    )


def _history(record: Record) -> Markup | None:
    """Return a table of the scores along the training."""
    scored = [(seen, scores) for seen, values in record.history if (scores := generator_scores(values)) is not None]
    if len(scored) < 2:
        return None
    names = list(dict.fromkeys(name for _, scores in scored for name in scores.metrics))
    best = min((scores.metrics["fd"] for _, scores in scored if "fd" in scores.metrics), default=None)
    rows: list[list[str | Markup]] = []
    for seen, scores in scored:
        cells: list[str | Markup] = []
        for name in names:
            value = scores.metrics.get(name)
            text = "" if value is None else f"{value:.4g}"
            cells.append(tag("strong", f"{text} (best)") if name == "fd" and value == best else text)
        rows.append([f"{seen:,}", *cells])
    head = ["images seen", *(name.replace("_", " ") for name in names)]
    return tag("details", tag("summary", "Scores along the training"), table(head, rows, class_="numbers"))


def _accuracy(record: Record) -> Markup:
    scores = record.scores or {}
    rows: list[list[str | Markup]] = [
        [f"top-{name[3:]}", f"{100 * scores[name]:.2f} %"]
        for name in ("top1", "top5")
        if isinstance(scores.get(name), int | float)
    ]
    if not rows:
        return missing("There is no accuracy. It is measured at the end of the run, on the images of the setting test.")
    confusion = embed(record.directory / "confusion.png", "Confusion matrix: true classes down, predicted across")
    measured = (
        f"On the {plain(scores.get('images'))} images of {plain(scores.get('test'))}, by the exported classifier."
    )
    return join(
        tag("p", measured),
        table(["score", "value"], rows, class_="numbers"),
        tag("figure", tag("figcaption", "Confusion matrix"), confusion) if confusion is not None else None,
    )
