"""Curves as inline SVG, with axes that can be read and the numbers that hovering shows."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

from maxgan.report.markup import Markup, tag

WIDTH, HEIGHT = 360, 225
LEFT, RIGHT, TOP, BOTTOM = 48, 12, 10, 40
POINTS = 400
"""The most points of a curve: more are not told apart, and make the page large."""
DOTTED = 30
"""Up to so many points each gets a dot."""
COLOURS = 6
LOG_RATIO = 50
"""A chart of positive values whose largest is so many times the smallest gets a logarithmic axis."""
TICKS = 5

Points = tuple[Sequence[float], Sequence[float]]


@dataclass(frozen=True)
class Axis:
    """Values from `low` to `high`, linear or logarithmic, with marks at round numbers."""

    low: float
    high: float
    log: bool
    ticks: tuple[float, ...]

    def place(self, value: float) -> float:
        """Return where a value lies: 0 at `low`, 1 at `high`."""
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)


def linear_axis(low: float, high: float, whole: bool = False) -> Axis:
    """Return an axis that begins and ends at round numbers, 1, 2 or 5 times a power of ten apart.

    Args:
        low, high: what it has to hold.
        whole: end at `high` itself, as an axis of images seen does.
    """
    if high - low <= 1e-12 * max(abs(low), abs(high)):
        # One value alone, or several that differ by rounding.
        low, high = low - (abs(low) or 1) / 2, high + (abs(high) or 1) / 2
    raw = (high - low) / TICKS
    magnitude = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * magnitude for factor in (1, 2, 5, 10) if factor * magnitude >= raw * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    if whole:
        return Axis(low, high, False, tuple(i * step for i in range(first, last + 1) if low <= i * step <= high))
    return Axis(first * step, last * step, False, tuple(i * step for i in range(first, last + 1)))


def log_axis(low: float, high: float) -> Axis:
    """Return an axis over positive values, with marks at 1, 2 and 5 times the powers of ten, or fewer of them."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks: tuple[float, ...] = ()
    for factors, step in (((1, 2, 5), 1), ((1, 3), 1), *(((1,), step) for step in range(1, len(powers) + 1))):
        ticks = tuple(f * 10.0**power for power in powers[::step] for f in factors if low <= f * 10.0**power <= high)
        if len(ticks) <= TICKS + 3:
            break
    return Axis(low * 0.9, high * 1.1, True, ticks)


def short(value: float) -> str:
    """Return a number as the marks of an axis show it: 12800 is 12.8k."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size * (1 - 1e-9):
            return f"{value / size:.4g}{letter}"
    return f"{value:.4g}"


def thin(points: Points) -> Points:
    """Return at most POINTS points: the means of as many equal stretches of a longer curve."""
    xs, ys = points
    size = math.ceil(len(xs) / POINTS)
    if size <= 1:
        return points
    parts = [slice(start, start + size) for start in range(0, len(xs), size)]
    # The stretch ends at the images seen of its last value, so that the curve reaches the end of the training.
    return [xs[part][-1] for part in parts], [sum(ys[part]) / len(ys[part]) for part in parts]


@dataclass(frozen=True)
class Frame:
    """The rectangle of a chart and what lies where in it."""

    x: Axis
    y: Axis

    def across(self, images: float) -> float:
        """Return the place of a number of images seen, from the left."""
        return round(LEFT + self.x.place(images) * (WIDTH - LEFT - RIGHT), 2)

    def down(self, value: float) -> float:
        """Return the place of a value, from the top."""
        return round(HEIGHT - BOTTOM - self.y.place(value) * (HEIGHT - TOP - BOTTOM), 2)

    def draw(self) -> list[Markup]:
        """Return both axes with their marks, and the lines that the page's script moves."""
        right, base = WIDTH - RIGHT, HEIGHT - BOTTOM
        parts: list[Markup] = []
        for value in self.y.ticks:
            y = self.down(value)
            parts.append(tag("line", x1=LEFT, x2=right, y1=y, y2=y, class_="grid"))
            parts.append(tag("text", short(value), x=LEFT - 7, y=y + 4, text_anchor="end"))
        for images in self.x.ticks:
            x = self.across(images)
            parts.append(tag("line", x1=x, x2=x, y1=base, y2=base + 4, class_="axis"))
            parts.append(tag("text", short(images), x=x, y=base + 18, text_anchor="middle"))
        parts.append(tag("line", x1=LEFT, x2=right, y1=base, y2=base, class_="axis"))
        parts.append(tag("text", "images seen", x=right, y=HEIGHT - 5, text_anchor="end"))
        for name in ("shown", "cross"):
            parts.append(tag("line", x1=LEFT, x2=LEFT, y1=TOP, y2=base, class_=name, hidden=True))
        return parts


def chart(title: str, curves: dict[str, Points], end: float, fractions: bool = False) -> Markup:
    """Return a figure with curves over images seen, a legend that shows values, and the data that its script reads.

    Args:
        title: of the chart.
        curves: name -> images seen and values, in order, at least one point each.
        end: images of the whole axis.
        fractions: let the other axis go from 0 to 1.
    """
    drawn = {name: thin(points) for name, points in curves.items()}
    values = [y for _, ys in drawn.values() for y in ys]
    low, high = min(values), max(values)
    last = max(xs[-1] for xs, _ in drawn.values())
    if fractions:
        low, high = 0.0, 1.0
    y_axis = log_axis(low, high) if low > 0 and high / low > LOG_RATIO else linear_axis(low, high)
    frame = Frame(linear_axis(0, max(end, last), whole=True), y_axis)
    parts, legend, data = frame.draw(), [], []
    for number, (name, (xs, ys)) in enumerate(drawn.items()):
        places = [(frame.across(x), frame.down(y)) for x, y in zip(xs, ys, strict=True)]
        colour = f"c{number % COLOURS}"
        parts.append(tag("polyline", points=" ".join(f"{x},{y}" for x, y in places), class_=f"curve {colour}"))
        if len(places) <= DOTTED:
            parts += [tag("circle", cx=x, cy=y, r=2.5, class_=colour) for x, y in places]
        parts.append(tag("circle", cx=0, cy=0, r=4.5, class_=f"mark {colour}", hidden=True))
        legend.append(tag("li", tag("i", class_=colour), f"{name.replace('_', ' ')} ", tag("b", f"{ys[-1]:.4g}")))
        data.append({"x": list(xs), "y": [float(f"{y:.6g}") for y in ys], "places": places})
    averaged = max(math.ceil(len(xs) / POINTS) for xs, _ in curves.values())
    if y_axis.log:
        legend.append(tag("li", "log axis"))
    if averaged > 1:
        legend.append(tag("li", f"each point is the mean of {averaged} lines"))
    text = json.dumps({"scale": [frame.x.low, frame.x.high, LEFT, WIDTH - RIGHT], "curves": data})
    return tag(
        "figure",
        tag(
            "figcaption",
            tag("h3", title),
            tag("small", "at ", tag("span", f"{int(last):,}"), " images", class_="at"),
        ),
        tag("ul", *legend, class_="legend", aria_live="polite"),
        tag("svg", *parts, viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img", aria_label=f"{title} over images seen"),
        # A closing tag within the data can't end the element.
        tag("script", Markup(text.replace("<", "\\u003c")), type="application/json"),
        class_="chart",
        tabindex=0,
    )
