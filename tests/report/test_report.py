from __future__ import annotations

import base64
import hashlib
import io
import json
import math
import os
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from headless import Browser
from PIL import Image

from maxgan.cli import to_yaml
from maxgan.config import (
    ClassifierConfig,
    DataConfig,
    DiscriminatorConfig,
    EvaluationConfig,
    GanConfig,
    GeneratorConfig,
    OptimConfig,
    RunConfig,
    TrainingConfig,
)
from maxgan.evaluation.comparison import Scores
from maxgan.evaluation.protocols import Protocol
from maxgan.report import pictures
from maxgan.report.__main__ import main
from maxgan.report.page import render
from maxgan.report.pictures import embed, spread
from maxgan.report.record import newest_run, read_record
from maxgan.training.gan_run import train_gan
from maxgan.training.run import note_start

VOID = {"img", "input", "meta"}


class Page(HTMLParser):
    """The elements of a page in their order, each with its attributes and the text right within it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None], list[str]]] = []
        self.open: list[tuple[str, list[str]]] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, name: str, attributes: list[tuple[str, str | None]]) -> None:
        own: list[str] = []
        self.elements.append((name, dict(attributes), own))
        if name not in VOID:
            self.open.append((name, own))

    def handle_startendtag(self, name: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((name, dict(attributes), []))

    def handle_endtag(self, name: str) -> None:
        assert self.open.pop()[0] == name

    def handle_data(self, text: str) -> None:
        for _, own in self.open:
            own.append(text)

    def all(self, name: str, **attributes: str) -> list[tuple[dict[str, str | None], str]]:
        """Attributes and whole text of the elements of that name."""
        return [
            (given, "".join(own))
            for found, given, own in self.elements
            if found == name and attributes.items() <= given.items()
        ]

    def section(self, name: str) -> str:
        return self.all("section", id=name)[0][1]


def scores(fd: float, **changes: Any) -> Scores:
    protocol = Protocol("fd-digits", "digits", "FD-digits", "KD-digits", "IS-digits", "clean")
    metrics = {"fd": fd, "fd_half_split_mean": 0.4617, "fd_half_split_std": 0.2452, "precision": 0.846}
    return Scores(
        protocol, metrics, "digits", "some run", 1797, 256, 64, "a" * 64, "b" * 64, "c" * 64, 2.5, {"torch": "2.15"},
        sampling={"seed": 0, "truncation": None}, **changes,
    )  # fmt: skip


def lines(until: int) -> list[dict[str, float]]:
    found: list[dict[str, float]] = []
    for seen in range(100, until + 1, 100):
        loss = 2 + math.sin(seen)
        found.append({"images": seen, "loss_generator": loss, "real_logit": -loss, "images_per_second": 50.0})
        found[-1]["seconds"] = seen / 50
        found[-1]["something_new"] = seen
    return found


def picture(path: Path, grey: int, side: int = 20) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (side, side), grey).save(path)


CONFIG = GanConfig(
    data=DataConfig(source="digits-train"), optim=OptimConfig(lr=1e-4), training=TrainingConfig(images=800)
)


def make_run(directory: Path, until: int = 800, config: Any = CONFIG) -> Path:
    directory.mkdir(parents=True)
    (directory / "config.yaml").write_text(to_yaml(config))
    (directory / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines(until)))
    return directory


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A finished GAN."""
    directory = make_run(tmp_path / "digits-0123")
    for seen, grey in ((400, 50), (800, 200)):
        picture(directory / "samples" / f"{seen:09d}.png", grey)
        (directory / "scores").mkdir(exist_ok=True)
        (directory / "scores" / f"{seen:09d}.json").write_text(scores(1000 / seen).to_json())
    (directory / "scores.json").write_text(scores(1.25).to_json())
    picture(directory / "reals.png", 100)
    picture(directory / "neighbours.png", 150)
    return directory


def page_of(directory: Path) -> Page:
    return Page(render(read_record(directory)))


def test_a_page_tells_everything_of_a_finished_run(run: Path) -> None:
    page = page_of(run)
    facts = dict(zip((t for _, t in page.all("dt")), (t for _, t in page.all("dd")), strict=True))
    assert facts == {
        "images seen": "800 of 800", "FD-digits": "1.25", "time of training": "16 s", "data": "digits-train",
    }  # fmt: skip
    assert page.all("span", **{"class": "badge finished"})
    assert [title for _, title in page.all("h3")] == ["loss", "logits of D", "something new", "images per second"]
    assert "fd-digits: 256 images of some run against 1797 of digits" in page.section("scores")
    for text in ("0.4617 ± 0.245", "a" * 64, "clean", "version of torch", "1.25 (best)"):
        assert text in page.section("scores"), text
    assert "images per second, over the whole training50" in page.section("speed")
    assert "Not computed" not in page.section("neighbours")
    assert not page.all("section", id="problems")


def test_pictures_are_the_files_themselves(run: Path) -> None:
    images = [given for given, _ in page_of(run).all("img")]
    files = ["samples/000000400.png", "samples/000000800.png", "reals.png", "neighbours.png"]
    for given, name in zip(images, files, strict=True):
        assert given["src"] == f"data:image/png;base64,{base64.b64encode((run / name).read_bytes()).decode()}"
        assert (given["width"], given["height"]) == ("20", "20")
        assert given["alt"]
    assert [given.get("data-images") for given in images] == ["400", "800", None, None]


def test_nothing_is_fetched_and_only_the_page_s_own_script_may_run(run: Path) -> None:
    page = page_of(run)
    for name, given, _ in page.elements:
        assert not [key for key in given if key.startswith("on") or key == "style"], (name, given)
        for key in ("src", "href", "action", "data", "srcset"):
            assert given.get(key, "#").startswith(("#", "data:image/")), (name, given)
    assert not page.all("link")
    policy = page.all("meta", **{"http-equiv": "Content-Security-Policy"})[0][0]["content"] or ""
    scripts = [text for given, text in page.all("script") if given.get("type") != "application/json"]
    for text in (*scripts, page.all("style")[0][1]):
        assert base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() in policy
    assert len(scripts) == 1
    assert policy.startswith("default-src 'none'; img-src data:; ")


def test_distances_to_the_nearest_images_are_told(run: Path) -> None:
    assert "no numbers" in page_of(run).section("neighbours")
    told = {"samples": 12, "reals": 31, "reference": "<i>", "extractor": "digits", "extractor_digest": "ab" * 32}
    told |= {"quantiles": [0.0, 0.5], "samples_to_nearest_real": [0.25, 0.75]}
    (run / "neighbours.json").write_text(json.dumps(told))
    assert "no numbers" in page_of(run).section("neighbours")
    (run / "neighbours.json").write_text(json.dumps(told | {"reals_to_nearest_other_real": [0.5, 1.125]}))
    page = page_of(run)
    assert "of 12 samples to the nearest of 31 images of <i>" in page.section("neighbours")
    assert "of digits (abababababab)." in page.section("neighbours")
    rows = [text for _, text in page.all("tr")]
    first = rows.index("samplesimages")
    assert rows[first + 1 : first + 3] == ["smallest0.250.5", "50 % are below0.751.125"]


def test_changed_settings_come_first(run: Path) -> None:
    config = (run / "config.yaml").read_text().replace("seed: 0", "seed: 0\n  forgotten: [1, 2]")
    (run / "config.yaml").write_text(config)
    rows = [text for _, text in page_of(run).all("tr")]
    first = rows.index("settingvaluedefault")
    assert rows[first + 1 : first + 4] == [
        "optim.lr0.0001start 0.0005, end 1e-05, shape cosine",
        "training.forgotten1, 2no such setting now",
        "training.images80025600",
    ]
    assert "run.trackerauto" in rows


EVIL = "</script><img src=x onerror=alert(1)>'\"&{{"


def test_what_stands_in_files_is_only_text(tmp_path: Path) -> None:
    directory = make_run(tmp_path / "<b>run", 200, replace(CONFIG, data=DataConfig(source=EVIL)))
    metrics = {"images": 300, EVIL: 1.0, "r1": float("nan"), "r2": "<i>", "list": [1], "loss_generator": 1e300}
    with (directory / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(metrics) + "\n[1]\n" + '{"images": -5, "r1": 3}\n{"images": "<"}\n')
    evil = replace(scores(1.0), fake_source=EVIL, versions={EVIL: EVIL}, sampling={EVIL: EVIL})
    (directory / "scores.json").write_text(evil.to_json())
    (directory / "environment.json").write_text(json.dumps([{"time": EVIL, "versions": {EVIL: [EVIL]}}, 3]))
    page = page_of(directory)
    assert not page.all("img")
    assert not page.all("b") or all(given == {} for given, _ in page.all("b"))
    assert EVIL in page.section("scores")
    assert EVIL in page.section("settings")
    assert EVIL in page.section("environment")
    assert EVIL.replace("_", " ") in [title for _, title in page.all("h3")]
    assert "penalties" not in [title for _, title in page.all("h3")]
    assert page.all("title")[0][1] == "<b>run - maxgan"


def test_an_unfinished_run_says_what_is_missing(tmp_path: Path) -> None:
    directory = make_run(tmp_path / "run", 200)
    (directory / "scores").mkdir()
    (directory / "scores" / "000000200.json").write_text(scores(7.5).to_json())
    page = page_of(directory)
    assert page.all("span", **{"class": "badge unfinished"})
    assert "no pictures of samples yet" in page.section("samples")
    assert "newest scores along the training" in page.section("scores")
    assert "FD-digits7.5" in page.section("scores")
    assert "time left at this pace12 s" in page.section("speed")
    assert "no generator yet" in page.section("neighbours")
    (directory / "generator.safetensors").touch()
    assert f"python -m maxgan.report {directory} --neighbours true" in page_of(directory).section("neighbours")


def test_a_run_that_failed_at_once_has_a_page(tmp_path: Path) -> None:
    directory = tmp_path / "run"
    directory.mkdir()
    (directory / "config.yaml").write_text(to_yaml(CONFIG))
    page = page_of(directory)
    assert page.all("span", **{"class": "badge failed"})
    assert "There are no metrics" in page.section("curves")
    assert "after 320 images" in page.section("curves")
    assert "There are no scores" in page.section("scores")
    assert "Nothing was measured" in page.section("speed")
    assert "didn't note where" in page.section("environment")


def test_damaged_files_are_named_and_left_out(run: Path) -> None:
    (run / "samples" / "000000800.png").write_bytes((run / "samples" / "000000800.png").read_bytes()[:40])
    (run / "scores.json").write_text('{"protocol": 3}')
    (run / "scores" / "000000400.json").write_text("{")
    (run / "environment.json").write_bytes(b"\xff\xfe")
    (run / "config.yaml").write_text("- a\n- b: [")
    page = page_of(run)
    problems = page.section("problems")
    for name in ("samples/000000800.png", "scores.json", "scores/000000400.json", "environment.json", "config.yaml"):
        assert name in problems, name
    assert [given["data-images"] for given, _ in page.all("img") if "data-images" in given] == ["400"]
    assert "newest scores along the training" in page.section("scores")


def test_a_classifier_has_accuracy_and_no_samples(tmp_path: Path) -> None:
    directory = make_run(tmp_path / "run", 200, ClassifierConfig())
    page = page_of(directory)
    assert "There is no accuracy" in page.section("scores")
    (directory / "scores.json").write_text(
        json.dumps({"test": "digits-test", "test_crop": "center", "images": 360, "top1": 0.9972, "top5": 1.0})
    )
    picture(directory / "confusion.png", 9)
    page = page_of(directory)
    assert "On the 360 images of digits-test" in page.section("scores")
    assert "top-199.72 %top-5100.00 %" in page.section("scores")
    assert len(page.all("img")) == 1
    assert not page.all("section", id="samples")
    assert not page.all("section", id="neighbours")
    assert "top-1 accuracy" in [text for _, text in page.all("dt")]


def test_large_pictures_are_made_smaller_and_moving_ones_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "LARGE", 2000)
    monkeypatch.setattr(pictures, "SIDE", 40)
    noise = torch.randint(256, (28, 80, 3), dtype=torch.uint8).numpy()
    Image.fromarray(noise).save(tmp_path / "large.png")
    image = embed(tmp_path / "large.png", "noise")
    assert image is not None
    data = base64.b64decode(image.partition("base64,")[2].partition('"')[0])
    with Image.open(io.BytesIO(data)) as shown:
        assert (shown.format, shown.size) == ("WEBP", (40, 14))
    assert 'width="40" height="14"' in image
    frames = [Image.fromarray(noise[:, i * 20 : (i + 1) * 20]) for i in range(3)]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    assert (tmp_path / "moving.gif").stat().st_size > 2000
    moving = embed(tmp_path / "moving.gif", "noise")
    assert moving is not None
    assert base64.b64encode((tmp_path / "moving.gif").read_bytes()).decode() in moving
    assert embed(tmp_path / "none.png", "") is None


def test_many_pictures_are_spread_evenly() -> None:
    assert spread(3, 5) == [0, 1, 2]
    assert spread(101, 5) == [0, 25, 50, 75, 100]


def test_the_command_writes_the_newest_run_s_page(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    older = make_run(tmp_path / "runs" / "older", 100)
    newer = make_run(tmp_path / "runs" / "newer", 100)
    os.utime(older / "config.yaml", (1, 1))
    assert newest_run(tmp_path / "runs") == newer
    monkeypatch.chdir(tmp_path)
    main([])
    assert (newer / "report.html").read_text().startswith("<!doctype html>")
    assert "open it in a browser" in capsys.readouterr().out
    main([str(run), "--output", str(tmp_path / "page.html")])
    assert "digits-0123" in (tmp_path / "page.html").read_text()
    with pytest.raises(SystemExit) as end:
        main([str(tmp_path)])
    assert end.value.code == 1
    assert (
        capsys.readouterr().err == f"error: {tmp_path} holds no run (config.yaml is missing): name the folder of one\n"
    )
    with pytest.raises(SystemExit):
        main(["--output", "page.png"])
    assert "output must be an .html file, not page.png" in capsys.readouterr().err
    monkeypatch.chdir(run)
    with pytest.raises(ValueError, match="there is no run in runs: train one first"):
        newest_run()


def test_every_start_of_a_run_is_noted(run: Path) -> None:
    accelerator: Any = SimpleNamespace(is_main_process=True, device=torch.device("cpu"), num_processes=2)
    note_start(run, accelerator)
    note_start(run, accelerator)
    starts = json.loads((run / "environment.json").read_text())
    assert [(start["processes"], start["device"]) for start in starts] == [(2, "cpu")] * 2
    assert starts[0]["versions"]["torch"].startswith(torch.__version__.partition("+")[0])
    text = page_of(run).section("environment")
    assert f"started {starts[0]['time']}" in text
    assert "went on" in text
    assert "processes 2" in text


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a real run, with its page."""
    directory = tmp_path_factory.mktemp("trained") / "digits run"
    config = GanConfig(
        generator=GeneratorConfig(latent_dim=8, width=16, head_dim=8, latent_tokens=4),
        discriminator=DiscriminatorConfig(1 / 128, 16),
        training=TrainingConfig(images=64, batch_size=16),
        evaluation=EvaluationConfig(every=32, images=64, metrics=("frechet", "precision_recall")),
        run=RunConfig(directory=str(directory), log_every=16, sample_every=32, tracker="none", threads=1),
    )
    assert train_gan(config) == 0
    # With an extractor that only the run's settings name.
    stored = (directory / "config.yaml").read_text()
    (directory / "config.yaml").write_text(stored.replace("extractor: null", "extractor: cifar10"))
    main([str(directory), "--neighbours=true"])
    return directory


@pytest.mark.slow
def test_the_page_shows_what_a_training_writes(trained: Path) -> None:
    directory, page = trained, page_of(trained)
    assert (trained / "report.html").read_text() == render(read_record(trained))
    assert not page.all("section", id="problems")
    assert "in the features of cifar10" in page.section("neighbours")
    assert page.all("span", **{"class": "badge finished"})
    titles = [text for _, text in page.all("h3")]
    for title in ("loss", "logits of D", "penalties", "Fréchet distance", "likeness", "images per second"):
        assert title in titles
    assert [given["data-images"] for given, _ in page.all("img") if "data-images" in given] == ["32", "64"]
    fd = json.loads((directory / "scores.json").read_text())["metrics"]["fd"]
    assert f"FD-digits{fd:.5g}" in page.section("scores")
    assert page.section("environment").count("started") == 1


@pytest.mark.slow
def test_a_browser_shows_the_page_of_a_training(trained: Path, browser: Browser) -> None:
    browser.look(1200, dark=False)
    browser.open(trained / "report.html")
    assert browser.value("[...document.images].length") == 4  # samples twice, reals, neighbours
    assert browser.value("[...document.images].every(i => i.complete && i.naturalWidth > 0)")
    browser.value("document.getElementById('slider').focus()")
    browser.press("ArrowLeft")
    assert browser.value("document.getElementById('seen').textContent") == "32"


@pytest.mark.slow
def test_a_browser_shows_it(run: Path, browser: Browser, tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text(render(read_record(run)))
    browser.look(1200, dark=False)
    browser.open(tmp_path / "page.html")
    visible = (
        "[...document.querySelectorAll('#samples-over-time img')]"
        ".filter(image => image.offsetHeight).map(image => +image.dataset.images)"
    )
    assert browser.value(visible) == [800]
    assert browser.value("[...document.images].every(i => i.complete && i.naturalWidth == 20)")
    # Keys on the slider turn the pictures and move the line in every chart.
    browser.value("document.getElementById('slider').focus()")
    browser.press("ArrowLeft")
    assert browser.value(visible) == [400]
    assert browser.value("document.getElementById('seen').textContent") == "400"
    lines_at = "[...document.querySelectorAll('.shown')].map(l => +l.getAttribute('x1'))"
    assert browser.value(lines_at) == [48 + 300 / 2] * 4
    browser.press("ArrowRight")
    assert browser.value(visible) == [800]
    # The way there by the Tab key alone, from the button before it.
    browser.value("document.getElementById('earlier').focus()")
    browser.press("Enter")
    assert browser.value(visible) == [400]
    browser.press("Tab")
    assert browser.value("document.activeElement.id") == "slider"

    # Values by keys, and by pointing.
    expected = {line["images"]: line["loss_generator"] for line in lines(800)}
    read = "['.at span', '.legend b'].map(part => document.querySelector(`.chart ${part}`).textContent)"
    browser.value("document.querySelector('.chart').focus()")
    for key, images in (("Home", 100), ("ArrowRight", 200), ("ArrowRight", 300), ("End", 800), ("ArrowLeft", 700)):
        browser.press(key)
        seen, value = browser.value(read)
        assert (int(seen), float(value)) == (images, pytest.approx(expected[images], rel=1e-3))
    browser.value("document.querySelector('.chart').scrollIntoView()")
    corner = "document.querySelector('.chart svg').getBoundingClientRect().toJSON()"
    box = browser.value(corner)
    browser.point(box["x"] + box["width"] * (48 + 300 * 0.49) / 360, box["y"] + box["height"] / 2)
    assert int(browser.value(read)[0]) == 400
    assert browser.errors == []
    assert [address for address in browser.requests if not address.startswith(("data:", "file:"))] == []


@pytest.mark.slow
def test_it_is_legible_on_a_phone_and_in_the_dark(run: Path, browser: Browser, tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text(render(read_record(run)))
    brightness = {}
    for dark in (False, True):
        browser.look(360, dark)
        browser.open(tmp_path / "page.html")
        # Nothing reaches beyond the screen, and the smallest letters of a chart can be read.
        assert browser.value("document.documentElement.scrollWidth") == 360
        assert (
            browser.value(
                "Math.min(...[...document.querySelectorAll('svg text')].map(t => t.getBoundingClientRect().height))"
            )
            > 11
        )
        with Image.open(io.BytesIO(browser.picture())) as shown:
            grey = shown.convert("L")
            brightness[dark] = grey.getpixel((2, 2))
            assert len(grey.resize((36, 36)).getcolors()) > 5
    assert brightness[True] < 40 < 230 < brightness[False]


@pytest.mark.slow
def test_nothing_that_stands_in_files_runs(tmp_path: Path, browser: Browser) -> None:
    directory = make_run(tmp_path / "run", 200, replace(CONFIG, data=DataConfig(source=EVIL)))
    (directory / "scores.json").write_text(replace(scores(1.0), fake_source=EVIL).to_json())
    page = render(read_record(directory))
    # Even markup that got through would be stopped by the page's policy.
    (tmp_path / "page.html").write_text(
        page.replace("</main>", "<img src=x onerror='ran = 1'><script>ran = 2</script></main>")
    )
    browser.open(tmp_path / "page.html")
    assert browser.value("typeof ran") == "undefined"
    assert any("Content Security Policy" in error for error in browser.errors)
