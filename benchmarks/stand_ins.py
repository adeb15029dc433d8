"""Files laid out as the published weights of Inception, with random values, for want of the published ones.

    python benchmarks/stand_ins.py FOLDER

writes torch-fidelity's file and the TorchScript archive of the same network, each by its published name. Every weight
matters and features are of order 1, so that two tools which agree on them read the same file in the same way.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maxgan.evaluation.inception import GRAPH_CLASSES, Inception, port_names
from maxgan.evaluation.published import PORT_2015, TORCHSCRIPT_2015


class Archive(nn.Module):
    """Laid out as inception-2015-12-05.pt: it resizes on TensorFlow 1's grid, then runs its layers."""

    def __init__(self, layers: nn.Module) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, img: Tensor, return_features: bool = False) -> Tensor:
        assert return_features
        n, channels, height, width = img.shape
        theta = torch.eye(2, 3, device=img.device)
        theta[0, 2] += theta[0, 0] / width - theta[0, 0] / 299
        theta[1, 2] += theta[1, 1] / height - theta[1, 1] / 299
        grid = F.affine_grid(theta.unsqueeze(0).repeat([n, 1, 1]), [n, channels, 299, 299], align_corners=False)
        x = F.grid_sample(img.float(), grid, mode="bilinear", padding_mode="border", align_corners=False)
        return self.layers((x - 128) / 128).reshape(-1, 2048)


def save_port(folder: Path) -> Path:
    """Write a file like torch-fidelity's and return its path."""
    generator = torch.Generator().manual_seed(0)
    with torch.device("meta"):
        model = Inception(GRAPH_CLASSES, last_pool_is_max=True)
    weights = {
        "fc.weight": torch.randn(GRAPH_CLASSES, 2048, generator=generator) / 30,
        "fc.bias": torch.randn(GRAPH_CLASSES, generator=generator),
    }
    for (_, convolution), name in zip(model.convolutions(), port_names(), strict=True):
        kernel = convolution.conv.weight
        width = len(kernel)
        weights[f"{name}.conv.weight"] = torch.randn(kernel.shape, generator=generator) * (2 / kernel[0].numel()) ** 0.5
        weights[f"{name}.bn.weight"] = torch.empty(width).uniform_(0.8, 1.2, generator=generator)
        weights[f"{name}.bn.bias"] = torch.randn(width, generator=generator) / 10
        weights[f"{name}.bn.running_mean"] = torch.randn(width, generator=generator) / 10
        weights[f"{name}.bn.running_var"] = torch.empty(width).uniform_(0.8, 1.2, generator=generator)
        weights[f"{name}.bn.num_batches_tracked"] = torch.tensor(0)
    path = folder / PORT_2015.name
    torch.save(weights, path)
    return path


def save_archive(folder: Path, port: Path) -> Path:
    """Write the layers of a file like torch-fidelity's as a TorchScript archive, and return its path."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    network = FeatureExtractorInceptionV3("port", ["2048"], str(port)).eval()
    layers = nn.Sequential(*(child for name, child in network.named_children() if name != "fc"))
    with torch.no_grad():
        traced = torch.jit.trace(layers, torch.zeros(1, 3, 75, 75), check_trace=False)
    path = folder / TORCHSCRIPT_2015.name
    torch.jit.script(Archive(traced)).save(str(path))
    return path


def main() -> None:
    """Write both files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    for path in (port := save_port(folder), save_archive(folder, port)):
        print(path)


if __name__ == "__main__":
    main()
