from __future__ import annotations

import json
import math
import re

import pytest

from maxgan.report.charts import POINTS, Axis, chart, linear_axis, log_axis, short, thin
from maxgan.report.markup import Markup, table, tag


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0, 10, [0, 2, 4, 6, 8, 10]),
        (0.03, 0.94, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (-2.1, 7.3, [-4, -2, 0, 2, 4, 6, 8]),
        (33, 86, [20, 40, 60, 80, 100]),
        (5, 5, [2, 3, 4, 5, 6, 7, 8]),
        (0, 0, [-0.6, -0.4, -0.2, 0, 0.2, 0.4, 0.6]),
    ],
)
def test_linear_axes_begin_and_end_at_round_numbers(low: float, high: float, ticks: list[float]) -> None:
    axis = linear_axis(low, high)
    assert axis.ticks == pytest.approx(ticks)
    assert (axis.low, axis.high) == pytest.approx((ticks[0], ticks[-1]))


def test_an_axis_of_images_ends_at_the_last_one() -> None:
    assert linear_axis(0, 25_600, whole=True) == Axis(0, 25_600, False, (0, 10_000, 20_000))


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0.04, 4.9, [0.05, 0.1, 0.2, 0.5, 1, 2]),
        (0.0006, 0.6, [0.001, 0.003, 0.01, 0.03, 0.1, 0.3]),
        (1e-6, 20, [1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1, 10]),
        (1e-9, 1e9, [1e-9, 1e-6, 1e-3, 1, 1e3, 1e6, 1e9]),
    ],
)
def test_logarithmic_axes_have_few_marks_at_round_numbers(low: float, high: float, ticks: list[float]) -> None:
    axis = log_axis(low, high)
    assert axis.ticks == pytest.approx(ticks, rel=1e-12)
    assert axis.place(axis.low) == 0
    assert axis.place(axis.high) == pytest.approx(1)
    assert axis.place(math.sqrt(axis.low * axis.high)) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("value", "text"), [(0.05, "0.05"), (-2, "-2"), (999, "999"), (12_800, "12.8k"), (2.5e6, "2.5M"), (1e9, "1G")]
)
def test_marks_are_short(value: float, text: str) -> None:
    assert short(value) == text


def test_long_curves_become_means_of_stretches() -> None:
    xs, ys = list(range(1, 1001)), [float(i * i % 17) for i in range(1000)]
    thinned = thin((xs, ys))
    assert len(thinned[0]) == 334 <= POINTS
    assert thinned[0][:2] == [3, 6]
    assert thinned[0][-1] == 1000
    assert thinned[1][1] == pytest.approx(sum(ys[3:6]) / 3)
    assert thinned[1][-1] == ys[-1]
    assert thin((xs[:POINTS], ys[:POINTS])) == (xs[:POINTS], ys[:POINTS])


def test_curves_go_through_their_points() -> None:
    figure = chart("logits", {"real_logit": ([100, 200, 400], [-1.0, 3.0, 0.5])}, end=1000)
    drawn = re.search(r'<polyline points="([^"]*)"', figure)
    assert drawn is not None
    places = [tuple(map(float, place.split(","))) for place in drawn[1].split()]
    # Between the frame's sides 48 and 348, and its base 185 (-1) and top 10 (3).
    assert places == [(78, 185), (108, 10), (168, pytest.approx(185 - 175 * 1.5 / 4, abs=0.01))]
    data = json.loads(figure.partition('type="application/json">')[2].partition("</script>")[0])
    assert data["curves"] == [{"x": [100, 200, 400], "y": [-1, 3, 0.5], "places": [list(place) for place in places]}]
    assert data["scale"] == [0, 1000, 48, 348]
    assert "log axis" not in figure
    assert "log axis" in chart("penalty", {"r1": ([1, 2], [0.1, 5.1])}, 2)
    assert "mean of 3 lines" in chart("loss", {"loss": (range(900), range(900))}, 2)


def test_fractions_are_shown_on_all_of_their_axis() -> None:
    svg = chart("D on held-out images", {"training": ([100], [0.75]), "held out": ([100], [0.5])}, 100, fractions=True)
    (data,) = re.findall(r'<script type="application/json">(.*?)</script>', svg)
    (_, training), (_, held_out) = (curve["places"][0] for curve in json.loads(data)["curves"])
    # 225 units high with 10 above and 40 below the chart, so that a quarter of the axis has 43.75.
    assert held_out - training == pytest.approx(43.75)
    assert held_out == pytest.approx(10 + 175 / 2)


def test_text_is_escaped_and_markup_is_not() -> None:
    assert tag("b", "a < b & c", title='"x" & <y>') == '<b title="&quot;x&quot; &amp; &lt;y&gt;">a &lt; b &amp; c</b>'
    assert tag("p", tag("i", "<"), None, Markup("<br>"), hidden=True, id=None) == "<p hidden><i>&lt;</i><br></p>"
    assert (
        tag("td", class_="a") + tag("line", x1=0) + tag("img", alt="")
        == '<td class="a"></td><line x1="0"/><img alt="">'
    )
    assert '<th scope="row">&lt;a&gt;</th><td>&lt;b&gt;</td>' in table(["", ""], [["<a>", "<b>"]])
