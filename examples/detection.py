"""Train torchvision's Faster or Mask R-CNN on a MaxViT backbone, on drawn shapes or on images with COCO annotations.

    accelerate launch examples/detection.py                                   # shapes, 3 minutes of one core
    accelerate launch examples/detection.py --config configs/maxvit_tiny_coco_detection.yaml

Writes the detector's weights, the detections of the test images (COCO's result format, as pycocotools reads it) and a
picture of the first ones; prints which share of the objects is found, and which share of the detections is right (with
the default settings 93 % and 60 %). A thin example: no resume, and the test runs on the main process alone.
"""

from __future__ import annotations

import dataclasses
import json
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image, ImageDraw
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.models.detection import FasterRCNN, MaskRCNN
from torchvision.ops import box_iou, masks_to_boxes
from torchvision.transforms import v2
from torchvision.transforms.v2.functional import pil_to_tensor
from torchvision.tv_tensors import BoundingBoxes, BoundingBoxFormat, Mask
from torchvision.utils import draw_bounding_boxes, make_grid

from maxgan.cli import parse, plain_errors
from maxgan.config import BackboneConfig
from maxgan.files import atomic_path
from maxgan.models import MaxViT
from maxgan.models.convert import load_resized
from maxgan.models.detection import detection_backbone
from maxgan.models.network import load_model
from maxgan.runtime import start
from maxgan.training.classifier import parameter_groups

SHAPES = BackboneConfig(
    stem_width=16, stem_stride=2, widths=(32, 32, 64, 64), depths=(1, 1, 1, 1), window_size=None, head_dim=16
)
# A detection counts from this score, and is right from this overlap with an object of its class.
LEAST_SCORE = 0.5
LEAST_OVERLAP = 0.5


@dataclass(frozen=True)
class DetectionConfig:
    """Train a detector on a MaxViT backbone. Without any argument it learns drawn rectangles and ellipses."""

    images: str | None = None
    """Folder of the training images; unset: drawn shapes."""
    annotations: str | None = None
    """COCO's JSON file of them."""
    test_images: str | None = None
    """Folder of the test images."""
    test_annotations: str | None = None
    """COCO's JSON file of them."""
    classifier: str | None = None
    """Classifier file to start from, its tables resized to the windows of `resolution`; unset: a small backbone with
    random weights."""
    freeze_statistics: bool = False
    """Keep BatchNorm on the classifier's statistics: for a few images a process."""
    masks: bool = False
    """Mask R-CNN; off: Faster R-CNN."""
    pyramid_width: int = 64
    """Channels of the feature pyramid."""
    regions: int = 64
    """Regions of each training image that the second stage learns from."""
    resolution: int = 128
    """Images are scaled into a square of this side, and padded."""
    scale_min: float = 1.0
    """Training images are scaled further by a random factor from this one."""
    scale_max: float = 1.0
    """To this one; then a square of `resolution` is cut out."""
    flip: bool = True
    """Mirror training images left to right at random."""
    updates: int = 300
    """Updates of the training."""
    batch_size: int = 8
    """Images of one update over all processes."""
    lr: float = 1e-3
    """Peak learning rate of AdamW; it rises for a fifteenth of the training, and falls as a cosine."""
    weight_decay: float = 1e-4
    """Decoupled weight decay of the kernels."""
    precision: Literal["no", "bf16", "fp16"] = "no"
    """Mixed precision; `no` is float32."""
    seed: int = 0
    """Seed of weights, order and augmentation."""
    workers: int = 0
    """Decoding processes beside each training process."""
    output: str = "runs/detection"
    """Folder of the results."""
    threads: int | None = None
    """CPU threads of each process; unset: the cores at hand."""


Item = tuple[Tensor, dict[str, Tensor]]


class ShapesDataset(Dataset[Item]):
    """Grey noise with one to three rectangles and ellipses; image i is always the same."""

    names = ("rectangle", "ellipse")
    ids = (1, 2)

    def __init__(self, length: int, resolution: int, seed: int) -> None:
        self.length, self.resolution, self.seed = length, resolution, seed

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Item:
        rng = np.random.default_rng((self.seed, index))
        width, height = (int(n) for n in rng.integers(self.resolution * 3 // 4, self.resolution + 1, 2))
        image = Image.fromarray(rng.integers(96, 160, (height, width, 3), dtype=np.uint8))
        masks, labels = np.zeros((0, height, width), bool), []
        for _ in range(rng.integers(1, 4)):
            kind = int(rng.integers(2))
            sides = rng.integers(self.resolution // 5, self.resolution // 2, 2)
            corner = rng.integers(0, (width, height) - sides)
            box = [*corner.tolist(), *(corner + sides - 1).tolist()]
            colour = tuple(int(c) for c in rng.choice([0, 255], 3))
            layer = Image.new("1", (width, height))
            for canvas, ink in ((image, colour), (layer, 1)):
                draw = ImageDraw.Draw(canvas)
                (draw.rectangle if kind == 0 else draw.ellipse)(box, fill=ink)
            # What comes later hides what was there.
            masks = np.concatenate([masks & ~np.array(layer), np.array(layer)[None]])
            labels.append(kind + 1)
        seen = masks.any((1, 2))
        tensor = torch.from_numpy(masks[seen])
        boxes = masks_to_boxes(tensor) + torch.tensor([0.0, 0.0, 1.0, 1.0])
        return _item(image, boxes, torch.tensor(labels)[torch.from_numpy(seen)], tensor, index)


class CocoDataset(Dataset[Item]):
    """A folder of images with COCO's annotations; crowds are left out, and images without objects."""

    def __init__(self, folder: str, annotations: str) -> None:
        if not Path(annotations).is_file():
            raise ValueError(f"there is no file of annotations {annotations}")
        content = json.loads(Path(annotations).read_text())
        categories = sorted(content["categories"], key=lambda category: category["id"])
        self.names = tuple(category["name"] for category in categories)
        self.ids = tuple(category["id"] for category in categories)
        self.label = {category: i + 1 for i, category in enumerate(self.ids)}
        self.objects: dict[int, list[dict[str, Any]]] = defaultdict(list)
        for thing in content["annotations"]:
            if not thing.get("iscrowd") and min(thing["bbox"][2:]) > 0:
                self.objects[thing["image_id"]].append(thing)
        self.images = [image for image in content["images"] if image["id"] in self.objects]
        self.folder = Path(folder)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Item:
        entry = self.images[index]
        with Image.open(self.folder / entry["file_name"]) as file:
            image = file.convert("RGB")
        things = self.objects[entry["id"]]
        boxes = torch.tensor([thing["bbox"] for thing in things], dtype=torch.float32)
        boxes[:, 2:] += boxes[:, :2]
        masks = []
        for thing in things:
            layer = Image.new("1", image.size)
            for polygon in thing.get("segmentation", []):
                ImageDraw.Draw(layer).polygon(polygon, fill=1)
            masks.append(np.array(layer))
        labels = torch.tensor([self.label[thing["category_id"]] for thing in things])
        return _item(image, boxes, labels, torch.from_numpy(np.stack(masks)), entry["id"])


def _item(image: Image.Image, boxes: Tensor, labels: Tensor, masks: Tensor, image_id: int) -> Item:
    pixels = v2.functional.to_dtype(pil_to_tensor(image), torch.float32, scale=True)
    return pixels, {
        "boxes": BoundingBoxes(boxes, format=BoundingBoxFormat.XYXY, canvas_size=(image.height, image.width)),
        "labels": labels,
        "masks": Mask(masks.to(torch.uint8)),
        "image_id": torch.tensor(image_id),
    }


class Augmented(Dataset[Item]):
    """Items flipped, scaled and cut at random; boxes follow, and those that leave the image are dropped."""

    def __init__(self, items: ShapesDataset | CocoDataset, config: DetectionConfig) -> None:
        square = (config.resolution, config.resolution)
        steps: list[v2.Transform] = [v2.RandomHorizontalFlip()] if config.flip else []
        if (config.scale_min, config.scale_max) != (1.0, 1.0):
            steps.append(v2.ScaleJitter(square, (config.scale_min, config.scale_max)))
            # Padded here already, for torchvision would scale a small image up again. Grey, which is 0 to the network.
            steps.append(v2.RandomCrop(square, pad_if_needed=True, fill={Tensor: 0.5, "others": 0}))
        self.items, self.change = items, v2.Compose([*steps, v2.SanitizeBoundingBoxes()])

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Item:
        return self.change(*self.items[index])


def collate(items: list[Item]) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """Return lists, as detectors take images of any size, of plain tensors."""
    targets = [{name: value.as_subclass(Tensor) for name, value in target.items()} for _, target in items]
    return [image.as_subclass(Tensor) for image, _ in items], targets


def make_detector(config: DetectionConfig, num_classes: int) -> FasterRCNN:
    """Return a detector of `num_classes` classes (background not counted) with the backbone that the config names."""
    if config.classifier is None:
        model = MaxViT(config.resolution, config=SHAPES)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                # At the official 0.01 the running variance would keep 5 % of its start, 1, after 300 updates: far more
                # than the variances of a new network, and nothing would be found in evaluation.
                module.momentum = 0.1
    else:
        classifier = load_model(config.classifier, expect=MaxViT)
        model = MaxViT(config.resolution, classifier.channels, classifier.num_classes, classifier.config)
        load_resized(model, classifier.state_dict())
    return (MaskRCNN if config.masks else FasterRCNN)(
        detection_backbone(model, config.pyramid_width, config.freeze_statistics),
        num_classes + 1,
        box_batch_size_per_image=config.regions,
        min_size=config.resolution,
        max_size=config.resolution,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )


def make_sets(config: DetectionConfig) -> tuple[ShapesDataset | CocoDataset, ShapesDataset | CocoDataset]:
    """Return the training and the test set."""
    paths = (config.images, config.annotations, config.test_images, config.test_annotations)
    if not any(paths):
        length = config.updates * config.batch_size
        return ShapesDataset(length, config.resolution, 0), ShapesDataset(64, config.resolution, 1)
    if config.images and config.annotations and config.test_images and config.test_annotations:
        return (
            CocoDataset(config.images, config.annotations),
            CocoDataset(config.test_images, config.test_annotations),
        )
    raise ValueError("set images, annotations, test_images and test_annotations, or none of them")


@torch.no_grad()
def judge(
    detector: FasterRCNN, items: ShapesDataset | CocoDataset, device: torch.device, output: Path
) -> dict[str, float]:
    """Write detections.json and detections.png, and return the shares of objects found and of detections right."""
    detector.eval()
    found = objects = right = detections = 0
    results, pictures = [], []
    for index in range(len(items)):
        image, target = items[index]
        result = {name: value.cpu() for name, value in detector([image.to(device)])[0].items()}
        corners = result["boxes"].tolist()
        for (left, top, x, y), label, score in zip(corners, result["labels"], result["scores"], strict=True):
            results.append(
                {
                    "image_id": int(target["image_id"]),
                    "category_id": items.ids[int(label) - 1],
                    "bbox": [left, top, x - left, y - top],
                    "score": float(score),
                }
            )
        sure = result["scores"] >= LEAST_SCORE
        boxes, labels = result["boxes"][sure], result["labels"][sure]
        overlaps = box_iou(target["boxes"].as_subclass(Tensor), boxes) * (target["labels"][:, None] == labels)
        hits = overlaps >= LEAST_OVERLAP
        found, objects = found + int(hits.any(1).sum()), objects + len(hits)
        right, detections = right + int(hits.any(0).sum()), detections + len(boxes)
        if index < 16:
            names = [items.names[int(label) - 1] for label in labels]
            picture = (image * 255).to(torch.uint8)
            if len(boxes):
                picture = draw_bounding_boxes(picture, boxes, names, colors="yellow")
            pictures.append(v2.functional.resize(picture, [256, 256]))
    with atomic_path(output / "detections.json") as path:
        path.write_text(json.dumps(results))
    with atomic_path(output / "detections.png") as path:
        Image.fromarray(make_grid(pictures, 4).permute(1, 2, 0).numpy()).save(path)
    return {"found": found / max(objects, 1), "right": right / max(detections, 1)}


def train(config: DetectionConfig) -> dict[str, float]:
    """Train and judge; return the scores (empty in all processes but the main one)."""
    torch.manual_seed(config.seed)
    accelerator = start(config.threads, config.precision)
    items, test = make_sets(config)
    detector: Any = make_detector(config, len(items.names))
    optimizer = torch.optim.AdamW(parameter_groups(detector, config.weight_decay), config.lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, [config.lr] * 2, config.updates, pct_start=1 / 15, cycle_momentum=False
    )
    if config.batch_size % accelerator.num_processes:
        raise ValueError(f"batch_size {config.batch_size} must be a multiple of {accelerator.num_processes} processes")
    share = config.batch_size // accelerator.num_processes
    loader = DataLoader(
        Augmented(items, config), share, shuffle=True, drop_last=True, num_workers=config.workers, collate_fn=collate
    )
    if len(loader) < accelerator.num_processes:
        raise ValueError(f"{len(items)} training images are fewer than batch_size {config.batch_size}")
    detector, optimizer, loader = accelerator.prepare(detector, optimizer, loader)
    detector.train()
    update = 0
    while update < config.updates:
        for images, targets in loader:
            with accelerator.autocast():
                losses = detector(images, targets)
                loss = torch.stack(list(losses.values())).sum()
            optimizer.zero_grad()
            accelerator.backward(loss)
            optimizer.step()
            schedule.step()
            update += 1
            if update % max(1, config.updates // 20) == 0:
                parts = ", ".join(f"{name.removeprefix('loss_')} {value.item():.3f}" for name, value in losses.items())
                accelerator.print(f"update {update}: loss {loss.item():.3f} ({parts})")
            if update == config.updates:
                break
    scores: dict[str, float] = {}
    detector = accelerator.unwrap_model(detector)
    if accelerator.is_main_process:
        output = Path(config.output)
        settings = {"config": json.dumps(dataclasses.asdict(config)), "classes": json.dumps(items.names)}
        with atomic_path(output / "detector.safetensors") as path:
            save_file(
                {name: t.detach().cpu().contiguous() for name, t in detector.state_dict().items()}, path, settings
            )
        scores = judge(detector, test, accelerator.device, output)
        print(f"objects found: {scores['found']:.1%}, detections right: {scores['right']:.1%}; see {output}")
    accelerator.end_training()
    return scores


if __name__ == "__main__":
    with plain_errors():
        train(parse(DetectionConfig)[0])
