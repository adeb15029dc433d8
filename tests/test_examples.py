"""The examples run, and their recipes are read."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from PIL import Image, ImageDraw
from safetensors import safe_open

from maxgan.cli import parse
from maxgan.models import MaxViT
from maxgan.models.network import export_model

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def detection() -> Iterator[ModuleType]:
    spec = importlib.util.spec_from_file_location("detection_example", ROOT / "examples" / "detection.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look up their own module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def test_the_recipe_is_read(detection: ModuleType) -> None:
    config, name = parse(
        detection.DetectionConfig, ["--config", str(ROOT / "configs" / "maxvit_tiny_coco_detection.yaml")]
    )
    assert name == "maxvit_tiny_coco_detection"
    assert (config.resolution, config.batch_size, config.masks) == (896, 256, True)


def test_drawn_shapes_have_tight_boxes_around_what_is_seen(detection: ModuleType) -> None:
    shapes = detection.ShapesDataset(20, 64, 0)
    kinds = set()
    for i in range(20):
        image, target = shapes[i]
        assert torch.equal(image, shapes[i][0])
        assert len(target["boxes"]) == len(target["labels"]) == len(target["masks"]) > 0
        assert (target["masks"].sum(0) <= 1).all()
        for box, label, mask in zip(target["boxes"], target["labels"], target["masks"], strict=True):
            rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
            assert box.tolist() == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            # One colour, of black and white parts, unlike the noise.
            assert set(image[:, mask.bool()].unique(dim=1).flatten().tolist()) <= {0.0, 1.0}
            kinds.add(int(label))
    assert kinds == {1, 2}


def coco(folder: Path) -> dict[str, str]:
    """Write three images with a triangle or a rectangle of category 7 or 3, a crowd, and an image without objects."""
    images, annotations = [], []
    for i in range(4):
        image = Image.new("L" if i == 1 else "RGB", (40 + 8 * i, 48), 128)
        if i < 3:
            polygon = [4, 6, 34, 6, 34, 40] + ([4, 40] if i == 1 else [])
            ImageDraw.Draw(image).polygon(polygon, fill="white")
            annotations += [
                {"image_id": 10 + i, "bbox": [4, 6, 30, 34], "category_id": 3 if i == 1 else 7,
                 "segmentation": [polygon], "iscrowd": 0},
                {"image_id": 10 + i, "bbox": [0, 0, 8, 8], "category_id": 7,
                 "segmentation": {"counts": [], "size": [48, 40]}, "iscrowd": 1},
            ]  # fmt: skip
        image.save(folder / f"{i}.png")
        images.append({"id": 10 + i, "file_name": f"{i}.png"})
    categories = [{"id": 7, "name": "triangle"}, {"id": 3, "name": "rectangle"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "coco.json").write_text(json.dumps(content))
    return {"images": str(folder), "annotations": str(folder / "coco.json")}


def test_coco_annotations(detection: ModuleType, tmp_path: Path) -> None:
    items = detection.CocoDataset(**{k.replace("images", "folder"): v for k, v in coco(tmp_path).items()})
    assert (items.names, items.ids) == (("rectangle", "triangle"), (3, 7))
    assert len(items) == 3
    for i, (label, area) in enumerate([(2, 34 * 30 / 2), (1, 34 * 30), (2, 34 * 30 / 2)]):
        image, target = items[i]
        assert image.shape == (3, 48, 40 + 8 * i)
        assert target["image_id"] == 10 + i
        assert target["labels"].tolist() == [label]
        assert target["boxes"].tolist() == [[4.0, 6.0, 34.0, 40.0]]
        # Drawn with its outline, so up to half its length larger.
        assert area <= target["masks"].sum() <= area + 70
    with pytest.raises(ValueError, match="there is no file of annotations"):
        detection.CocoDataset(str(tmp_path), "nothing.json")


def test_boxes_follow_augmentation(detection: ModuleType, tmp_path: Path) -> None:
    coco(tmp_path)
    items = detection.CocoDataset(str(tmp_path), str(tmp_path / "coco.json"))
    config = detection.DetectionConfig(resolution=64, scale_min=0.5, scale_max=1.5)
    augmented = detection.Augmented(items, config)
    torch.manual_seed(0)
    sides = set()
    for _ in range(20):
        ([image], [target]) = detection.collate([augmented[1]])  # the rectangle: tight also where the crop cuts it
        assert image.shape == (3, 64, 64)
        assert type(target["boxes"]) is torch.Tensor
        assert len(target["boxes"]) == len(target["labels"]) == len(target["masks"])
        for (left, top, right, bottom), mask in zip(target["boxes"].tolist(), target["masks"], strict=True):
            rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
            # The mask has its outline too, a pixel, here scaled by up to 2.
            assert left == pytest.approx(columns.min().item(), abs=3)
            assert top == pytest.approx(rows.min().item(), abs=3)
            assert right == pytest.approx(columns.max().item() + 1, abs=3)
            assert bottom == pytest.approx(rows.max().item() + 1, abs=3)
            assert image[0, mask.bool()].mean() > 0.9  # white, where the mask is
            sides.add(round(right - left))
    assert len(sides) > 5


def test_flips_mirror_image_box_and_mask(detection: ModuleType, tmp_path: Path) -> None:
    coco(tmp_path)
    items = detection.CocoDataset(str(tmp_path), str(tmp_path / "coco.json"))
    plain, target = items[0]
    torch.manual_seed(0)
    flipped = 0
    for _ in range(20):
        image, changed = detection.Augmented(items, detection.DetectionConfig())[0]
        if torch.equal(image, plain):
            assert torch.equal(changed["masks"], target["masks"])
            assert changed["boxes"].tolist() == [[4.0, 6.0, 34.0, 40.0]]
        else:
            flipped += 1
            assert torch.equal(image, plain.flip(2))
            assert torch.equal(changed["masks"], target["masks"].flip(2))
            assert changed["boxes"].tolist() == [[6.0, 6.0, 36.0, 40.0]]
    assert 0 < flipped < 20


@pytest.mark.slow
@pytest.mark.parametrize("masks", [False, True])
def test_detection_runs_on_coco_from_a_classifier(
    detection: ModuleType, tmp_path: Path, masks: bool, capsys: pytest.CaptureFixture
) -> None:
    files = coco(tmp_path)
    small: dict[str, Any] = {
        "stem_width": 8,
        "stem_stride": 2,
        "widths": (16,) * 4,
        "depths": (1,) * 4,
        "window_size": None,
    }
    export_model(MaxViT(96, 3, 5, **small), tmp_path / "classifier.safetensors", {})
    config = detection.DetectionConfig(
        **files, test_images=files["images"], test_annotations=files["annotations"],
        classifier=str(tmp_path / "classifier.safetensors"), freeze_statistics=True, masks=masks, pyramid_width=16,
        regions=16, resolution=64, scale_min=0.5, scale_max=1.5, updates=4, batch_size=2, threads=1,
        output=str(tmp_path / "out"),
    )  # fmt: skip
    scores = detection.train(config)
    assert all(0 <= score <= 1 for score in scores.values())
    assert "objects found" in capsys.readouterr().out
    for found in json.loads((tmp_path / "out" / "detections.json").read_text()):
        assert found["image_id"] in (10, 11, 12)
        assert found["category_id"] in (3, 7)
    with safe_open(tmp_path / "out" / "detector.safetensors", "pt") as file:
        assert any(name.startswith("roi_heads.mask") for name in file.keys()) is masks  # noqa: SIM118
        assert json.loads(file.metadata()["classes"]) == ["rectangle", "triangle"]
    with Image.open(tmp_path / "out" / "detections.png") as picture:
        assert picture.width > 256


def test_some_of_the_files_is_a_mistake(detection: ModuleType) -> None:
    with pytest.raises(ValueError, match="set images, annotations, test_images and test_annotations, or none"):
        detection.make_sets(detection.DetectionConfig(images="train"))
