"""Sheets of classes and paths through latents."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from maxgan.config import ClassSheetConfig, InterpolateConfig, InvertConfig, NeighboursConfig
from maxgan.explore import classes as class_sheets
from maxgan.explore.__main__ import main
from maxgan.explore.common import opaque, sheet
from maxgan.explore.interpolate import closed_path, make_interpolation, slerp
from maxgan.explore.invert import invert_image
from maxgan.sampling import generate, latents_of, load_generator


def drawn(model: Path, seed: int, label: int | None, **options: object) -> np.ndarray:
    """The image of a seed as sample.py draws it, RGB `(16, 16, 3)`."""
    labels = None if label is None else [label]
    (batch,) = generate(load_generator(model), [seed], 1, "cpu", labels, **options)
    return np.asarray(opaque(batch.images[0]))


def tile(picture: np.ndarray, row: int, column: int, margin: int = 2, scale: int = 4) -> np.ndarray:
    """The image at a place of a sheet of 16 x 16 images, in its own size."""
    top, left = 2 + row * (16 * scale + 2), margin + column * (16 * scale + 2)
    return picture[top : top + 16 * scale : scale, left : left + 16 * scale : scale]


def test_a_spherical_interpolation_follows_the_great_circle() -> None:
    a, b = torch.tensor([3.0, 0, 0], dtype=torch.float64), torch.tensor([3 * 0.6, 3 * 0.8, 0], dtype=torch.float64)
    angle = math.acos(0.6)
    times = [0.0, 0.2, 0.5, 1.0]
    found = slerp(a, b, torch.tensor(times, dtype=torch.float64))
    # In the plane of both, at a constant speed and length.
    expected = [[3 * math.cos(t * angle), 3 * math.sin(t * angle), 0] for t in times]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-12)


def test_a_spherical_interpolation_equals_the_formula_for_any_lengths() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 64))
    w = math.acos(a @ b / math.sqrt(a @ a) / math.sqrt(b @ b))
    for t in (0.0, 0.1, 0.7, 1.0):
        expected = math.sin((1 - t) * w) / math.sin(w) * a + math.sin(t * w) / math.sin(w) * b
        found = slerp(torch.from_numpy(a), torch.from_numpy(b), torch.tensor([t], dtype=torch.float64))
        np.testing.assert_allclose(found[0].numpy(), expected, rtol=1e-10, atol=1e-12)


def test_parallel_latents_are_joined_by_a_line() -> None:
    a = torch.tensor([1.0, 2.0])
    t = torch.tensor([0.0, 0.25])
    assert slerp(a, 3 * a, t).tolist() == [[1, 2], [1.5, 3]]
    assert slerp(a, a, t).tolist() == [[1, 2], [1, 2]]


def test_a_path_is_closed() -> None:
    points = torch.randn(3, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    path = closed_path(points, 5)
    assert path.shape == (15, 20)
    torch.testing.assert_close(path[::5], points, rtol=0, atol=1e-14)
    # What would follow the last frame is the first one.
    one = torch.ones(1, dtype=torch.float64)
    torch.testing.assert_close(slerp(points[2], points[0], one)[0], path[0])
    torch.testing.assert_close(slerp(points[2], points[0], 0.8 * one)[0], path[14])


def test_the_animation_has_every_frame_and_repeats_for_ever(
    painter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "path.gif"
    arguments = ["interpolate", "--model", str(painter), "--points", "2", "--frames", "3", "--paths", "4"]
    main([*arguments, "--columns", "6", "--fps", "10", "--seed", "5", "--output", str(output)])
    assert f"4 closed paths of 6 frames through {painter} are in {output}" in capsys.readouterr().out
    frames = []
    with Image.open(output) as animation:
        assert (animation.n_frames, animation.info["loop"]) == (6, 0)
        for number in range(6):
            animation.seek(number)
            assert animation.info["duration"] == 100
            frames.append(np.asarray(animation.convert("RGB")))
    # Path p leads through the seeds 5 + 2 p and 6 + 2 p, in class p modulo 3; the latents are frames 0 and 3.
    for path in range(4):
        for frame, seed in ((0, 5 + 2 * path), (3, 6 + 2 * path)):
            assert (tile(frames[frame], 0, path) == drawn(painter, seed, path % 3)).all()
    # Between them, images of the latents between them.
    z, labels = latents_of([7, 8], 6, 3, [1])
    assert labels is not None
    between = slerp(*z, torch.tensor([2 / 3]))
    image = load_generator(painter)(between, labels[:1])[0, 0].detach().numpy()
    assert np.abs(tile(frames[2], 0, 1)[..., 0] - (image + 1) * 127.5).max() <= 1
    strip = np.asarray(Image.open(tmp_path / "path.png"))
    margin = strip.shape[1] - 6 * 66
    for path in range(4):
        assert (strip[2 + path * 66 : 66 + path * 66, 2 : margin - 2] < 128).any(), "the name of its class"
        for frame in range(6):
            assert (tile(strip, path, frame, margin) == tile(frames[frame], 0, path)).all()


def test_without_classes_there_are_four_paths_and_webp_keeps_all_colours(plain_painter: Path) -> None:
    output = plain_painter.parent / "path.webp"
    make_interpolation(InterpolateConfig(str(plain_painter), points=2, frames=1, output=str(output)))
    with Image.open(output) as animation:
        assert (animation.n_frames, animation.info["loop"]) == (2, 0)
        animation.seek(1)
        frame = np.asarray(animation.convert("RGB"))
    assert frame.shape == (68, 4 * 66 + 2, 3)
    for path in range(4):
        assert (tile(frame, 0, path) == drawn(plain_painter, 2 * path + 1, None)).all()
    make_interpolation(InterpolateConfig(str(plain_painter.parent), points=2, frames=1, paths=7))
    with Image.open(plain_painter.parent / "interpolation.gif") as animation:
        assert animation.size == (5 * 66 + 2, 2 * 66 + 2)


def test_a_sheet_has_a_row_for_each_class_and_a_latent_for_each_column(
    painter: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    main(["classes", "--model", str(painter), "--columns", "4", "--seed", "3", "--truncation", "0.5"])
    output = painter.parent / "classes.png"
    assert capsys.readouterr().out == f"3 classes of {painter} are in {output}\n"
    picture = np.asarray(Image.open(output))
    margin = picture.shape[1] - 4 * 66
    for row in range(3):
        assert (picture[2 + row * 66 : 66 + row * 66, 2 : margin - 2] < 128).any(), "the name of the class"
        for column in range(4):
            assert (tile(picture, row, column, margin) == drawn(painter, 3 + column, row, truncation=0.5)).all()
    class_sheets.make_sheet(ClassSheetConfig(str(painter), columns=1, classes="2,0"))
    picture = np.asarray(Image.open(output))
    assert (tile(picture, 1, 0, picture.shape[1] - 66) == drawn(painter, 0, 0)).all()
    monkeypatch.setattr(class_sheets, "MOST_ROWS", 2)
    told = class_sheets.make_sheet(ClassSheetConfig(str(painter)))
    assert told.endswith("; 1 classes are left out, name them with --classes")


def test_rows_may_have_gaps_and_captions() -> None:
    image = torch.zeros(4, 100, 100, dtype=torch.uint8)
    picture = sheet([[image, image], [image]], captions=[["a", "b"], ["c"]], wide_after=1)
    assert picture.size == (2 + 2 * 102 + 12, 2 + 2 * (102 + 17))
    # What is transparent is white.
    assert picture.getpixel((10, 10)) == (255, 255, 255)


def mistake(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code in (1, 2)
    return capsys.readouterr().err


def test_a_mistaken_command_gets_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert mistake(capsys) == (
        "error: usage: python -m maxgan.explore classes|interpolate|neighbours|invert [...]; COMMAND --help lists all\n"
    )
    assert "usage" in mistake(capsys, "--model", "x")
    assert "there is no setting 'column'; did you mean 'columns'?" in mistake(capsys, "classes", "--column", "3")


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        (InterpolateConfig, {"points": 1}, "points must be at least 2, not 1"),
        (InterpolateConfig, {"fps": 60}, "fps must be from 1 to 50, not 60"),
        (InterpolateConfig, {"output": "x.mp4"}, "output must be a .gif or .webp file, not x.mp4"),
        (ClassSheetConfig, {"output": "x.gif"}, "output must be a .png file, not x.gif"),
        (ClassSheetConfig, {"threads": 0}, "threads must be at least 1, not 0"),
        (NeighboursConfig, {"k": 0}, "k must be at least 1, not 0"),
        (InvertConfig, {}, "image is missing: name the file"),
        (InvertConfig, {"image": "x", "starts": 9, "candidates": 3}, "starts must be at most candidates, not 9 of 3"),
        (InvertConfig, {"image": "x", "lr": 0.0}, "lr must be above 0 and feature_weight 0 or more, not 0.0 and 1.0"),
    ],
)
def test_settings_out_of_range_are_refused(kind: type[Any], settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        kind(**settings)


def test_what_a_generator_has_not_is_refused(plain_painter: Path, tmp_path: Path) -> None:
    model = str(plain_painter)
    with pytest.raises(ValueError, match="has no classes to make rows of"):
        class_sheets.make_sheet(ClassSheetConfig(model))
    with pytest.raises(ValueError, match="this generator has no classes"):
        make_interpolation(InterpolateConfig(model, classes="1"))
    with pytest.raises(ValueError, match=r"there is no image none\.png"):
        invert_image(InvertConfig(model, image="none.png"))
    Image.new("RGB", (20, 20)).save(tmp_path / "x.png")
    with pytest.raises(ValueError, match="label must be below the number of classes 0, not 0"):
        invert_image(InvertConfig(model, image=str(tmp_path / "x.png"), label=0))
    assert [file.name for file in plain_painter.parent.iterdir()] == ["generator.safetensors"]
