from __future__ import annotations

import copy
import json
import os
from dataclasses import dataclass
from pathlib import Path

import huggingface_hub.hub_mixin
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from maxgan.models import HiTGenerator, MaxViTGenerator
from maxgan.models.network import Network, export_model, load_model, merge_settings


@dataclass(frozen=True)
class PlainConfig:
    latent_dim: int = 6
    widths: tuple[int, ...] | None = None


class PlainNet(Network, pipeline_tag="unconditional-image-generation"):
    """A generator with every kind of tensor: parameters, float and integer buffers, one that isn't saved."""

    config_class = PlainConfig
    config: PlainConfig

    def __init__(
        self,
        resolution: int,
        channels: int = 3,
        num_classes: int = 0,
        config: PlainConfig | None = None,
        **settings: object,
    ) -> None:
        super().__init__(resolution, channels, num_classes, config, **settings)
        self.linear = nn.Linear(self.config.latent_dim, channels * resolution**2)
        self.norm = nn.BatchNorm1d(channels * resolution**2)
        self.register_buffer("offset", torch.full((1,), 0.25), persistent=False)

    @property
    def latent_dim(self) -> int:
        return self.config.latent_dim

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        x = self.norm(self.linear(z)) + self.offset
        return x.unflatten(1, (self.channels, self.resolution, self.resolution))


class OtherNet(PlainNet):
    config_class = PlainConfig


@pytest.fixture
def network() -> PlainNet:
    torch.manual_seed(0)
    network = PlainNet(8, 1, 0, widths=[4, 2])
    network.norm.running_mean.normal_()
    network.norm.num_batches_tracked.fill_(7)
    return network


def rewrite(path: Path, metadata: dict[str, str] | None = None, **tensors: Tensor | None) -> None:
    """Change metadata or tensors of an exported file; None drops a tensor."""
    with safe_open(path, "pt") as file:
        old = file.metadata()
    kept = {**load_file(path), **tensors}
    save_file({k: v for k, v in kept.items() if v is not None}, path, {**old, **(metadata or {})})


def test_export_and_load_give_the_same_network(network: PlainNet, tmp_path: Path) -> None:
    info = {"images_seen": 5, "class_names": ["a", "ü"], "scores": {"fd": 1.5}}
    export_model(network, tmp_path / "new" / "model.safetensors", info)
    loaded = load_model(tmp_path / "new" / "model.safetensors")
    assert type(loaded) is PlainNet
    assert (loaded.resolution, loaded.channels, loaded.num_classes) == (8, 1, 0)
    assert loaded.config == PlainConfig(widths=(4, 2))
    assert loaded.info == info
    assert not loaded.training
    z = torch.randn(3, 6)
    assert torch.equal(loaded(z), network.eval()(z))
    assert loaded.norm.num_batches_tracked == 7
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["model.safetensors"]


def test_loading_leaves_the_random_state_alone(network: PlainNet, tmp_path: Path) -> None:
    export_model(network, tmp_path / "m.safetensors", {})
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    load_model(tmp_path / "m.safetensors")
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_export_is_half_the_size_and_loads_as_float32(
    network: PlainNet, tmp_path: Path, dtype: torch.dtype
) -> None:
    export_model(network, tmp_path / "full.safetensors", {})
    export_model(network, tmp_path / "half.safetensors", {}, dtype)
    stored = load_file(tmp_path / "half.safetensors")
    assert stored["linear.weight"].dtype == dtype
    assert stored["norm.num_batches_tracked"].dtype == torch.int64
    loaded = load_model(tmp_path / "half.safetensors")
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    for name, tensor in network.state_dict().items():
        assert torch.equal(
            loaded.state_dict()[name], tensor.to(dtype).to(tensor.dtype) if tensor.is_floating_point() else tensor
        )
    assert (tmp_path / "half.safetensors").stat().st_size < 0.65 * (tmp_path / "full.safetensors").stat().st_size


def test_export_refuses_what_overflows_and_keeps_the_old_file(network: PlainNet, tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    export_model(network, path, {"images_seen": 1})
    network.norm.running_var.fill_(1e6)
    with pytest.raises(ValueError, match=r"norm.running_var is too large for torch.float16"):
        export_model(network, path, {"images_seen": 2}, torch.float16)
    assert load_model(path).info == {"images_seen": 1}


def test_settings_are_merged_and_checked() -> None:
    base = PlainConfig(latent_dim=9)
    assert PlainNet(8, config=base, widths=(1,)).config == PlainConfig(latent_dim=9, widths=(1,))
    assert PlainNet(8).config == PlainConfig()
    with pytest.raises(ValueError, match="PlainConfig has no setting 'latent_dym': did you mean 'latent_dim'"):
        PlainNet(8, latent_dym=3)
    with pytest.raises(ValueError, match="it has latent_dim, widths"):
        merge_settings(PlainConfig, None, {"zzz": 1})
    with pytest.raises(ValueError, match="config must be a PlainConfig, not a dict"):
        PlainNet(8, config={"latent_dim": 3})  # type: ignore[arg-type]
    for sizes in ((7, 3, 0), (8, 5, 0), (8, 3, -1)):
        with pytest.raises(ValueError, match=r"must (be|have)"):
            PlainNet(*sizes)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"format": "pt"}, "is not a maxgan model"),
        ({"format_version": "one"}, "is not a maxgan model"),
        ({"format_version": "2"}, "has format 2, but this maxgan reads up to 1: install a newer maxgan"),
        ({"class": "os.system"}, "holds a 'os.system', which this maxgan doesn't know"),
        ({"class": "Network"}, "holds a 'Network', which this maxgan doesn't know"),
        ({"arguments": "{"}, "the header of .* doesn't describe a PlainNet"),
        ({"arguments": "[]"}, "the header of .* doesn't describe a PlainNet"),
        ({"arguments": '{"resolution": 8, "config": {"size": 3}}'}, "no setting 'size'"),
        ({"arguments": '{"resolution": 7, "config": {}}'}, "at least 8 x 8 pixels"),
        (
            {"arguments": '{"resolution": 8, "channels": 1, "config": {"latent_dim": 5}}'},
            r"is \(64, 6\) in place of \(64, 5\)",
        ),
    ],
)
def test_foreign_and_damaged_headers(network: PlainNet, tmp_path: Path, metadata: dict[str, str], message: str) -> None:
    path = tmp_path / "m.safetensors"
    export_model(network, path, {})
    rewrite(path, metadata)
    with pytest.raises(ValueError, match=message) as caught:
        load_model(path)
    assert str(path) in str(caught.value)


def test_wrong_tensors_files_and_classes(network: PlainNet, tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    with pytest.raises(ValueError, match="there is no model file"):
        load_model(path)
    export_model(network, path, {})
    with pytest.raises(ValueError, match=r"m.safetensors holds a PlainNet, but a OtherNet is needed"):
        load_model(path, expect=OtherNet)
    assert isinstance(load_model(path, expect=PlainNet), PlainNet)
    whole = path.read_bytes()
    rewrite(path, **{"linear.bias": None, "extra": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"linear.bias is missing; extra is unknown"):
        load_model(path)
    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match="is not a maxgan model"):
        load_model(path)
    for content in (whole[:-1], whole[:100], whole[:5], b"", b"PK\x03\x04 no safetensors at all", b"\xff" * 64):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="is no whole safetensors file"):
            load_model(path)


class Bomb:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.path),)


def test_no_model_file_can_run_code(tmp_path: Path) -> None:
    folder, exploded = tmp_path / "model", tmp_path / "exploded"
    folder.mkdir()
    for name in ("model.safetensors", "pytorch_model.bin"):
        torch.save(Bomb(exploded), folder / name)
        for path in (folder, folder / name):
            with pytest.raises(ValueError, match=r"is no whole safetensors file"):
                Network.from_pretrained(path)
        with pytest.raises(ValueError, match=r"is no whole safetensors file"):
            load_model(folder / name)
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"there is no model file .*model.safetensors"):
        Network.from_pretrained(folder)
    assert not exploded.exists()
    torch.load(folder / "pytorch_model.bin", weights_only=False)
    assert exploded.exists()  # so the bomb was live


def test_folder_of_save_pretrained(network: PlainNet, tmp_path: Path) -> None:
    network.info = {"source": "digits"}
    network.save_pretrained(tmp_path / "hub")
    assert sorted(file.name for file in (tmp_path / "hub").iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
    ]
    assert json.loads((tmp_path / "hub" / "config.json").read_text())["class"] == "PlainNet"
    card = (tmp_path / "hub" / "README.md").read_text()
    for part in (
        "library_name: maxgan",
        "pipeline_tag: unconditional",
        "PlainNet.from_pretrained(",
        "sample.py --model",
        "digits",
    ):
        assert part in card, part
    z = torch.randn(2, 6)
    expected = network.eval()(z)
    for name in (tmp_path / "hub", str(tmp_path / "hub"), tmp_path / "hub" / "model.safetensors"):
        for loader in (PlainNet, Network):
            loaded = loader.from_pretrained(name)
            assert type(loaded) is PlainNet
            assert torch.equal(loaded(z), expected)
            assert loaded.info == {"source": "digits"}
    with pytest.raises(ValueError, match="a OtherNet is needed"):
        OtherNet.from_pretrained(tmp_path / "hub")


def test_from_pretrained_says_where_it_looked(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"there is no model file .*gone.safetensors"):
        Network.from_pretrained(tmp_path / "gone.safetensors")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"there is no model file .*empty/model.safetensors"):
        Network.from_pretrained(tmp_path / "empty")
    for name in ("generator", "best"):
        (tmp_path / "empty" / f"{name}.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match=r"empty holds best.safetensors, generator.safetensors: name one of them"):
        Network.from_pretrained(tmp_path / "empty")
    for name in ("someone/something", "no/such/folder"):
        with pytest.raises(ValueError, match=f"{name} is neither a file nor a folder here"):
            Network.from_pretrained(name, local_files_only=True, cache_dir=tmp_path / "cache")


def test_push_to_hub_uploads_that_folder(network: PlainNet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uploaded: dict[str, bytes] = {}

    class Hub:
        def __init__(self, token: str | None = None) -> None:
            self.repo_id = "me/net"

        def create_repo(self, **_: object) -> Hub:
            return self

        def upload_folder(self, *, folder_path: Path, **_: object) -> str:
            uploaded.update({file.name: file.read_bytes() for file in Path(folder_path).iterdir()})
            return "url"

    monkeypatch.setattr(huggingface_hub.hub_mixin, "HfApi", Hub)
    network.push_to_hub("me/net")
    assert set(uploaded) == {"README.md", "config.json", "model.safetensors"}
    (tmp_path / "model.safetensors").write_bytes(uploaded["model.safetensors"])
    assert torch.equal(load_model(tmp_path / "model.safetensors").linear.weight, network.linear.weight)


def test_a_copy_is_independent_and_exports_the_same(network: PlainNet, tmp_path: Path) -> None:
    # AveragedModel keeps the EMA in a deep copy.
    twin = copy.deepcopy(network)
    export_model(twin, tmp_path / "m.safetensors", {"images_seen": 1})
    assert network.info == {}
    assert torch.equal(load_model(tmp_path / "m.safetensors").linear.weight, network.linear.weight)


@pytest.mark.parametrize("kind", [MaxViTGenerator, HiTGenerator])
@pytest.mark.parametrize("norm", ["batch", "layer"])
def test_a_fused_generator_gives_the_same_images(kind: type[MaxViTGenerator | HiTGenerator], norm: str) -> None:
    sizes = {"widths": (16, 8, 8), "depths": (1, 1, 1), "latent_dim": 8, "norm": norm}
    if kind is HiTGenerator:
        sizes |= {"heads": (4, 2, 2), "patch_sizes": (4, 4, 0)}
    else:
        sizes |= {"base_resolution": 8, "head_dim": 8}
    network = kind(32, 3, 4, **sizes).double()
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if tensor.is_floating_point():
                tensor.add_(torch.rand_like(tensor) if name.endswith("var") else 0.2 * torch.randn_like(tensor))
    network.eval()
    z, labels = torch.randn(3, 8, dtype=torch.float64), torch.tensor([0, 3, 1])
    fused = network.fuse()
    torch.testing.assert_close(fused(z, labels), network(z, labels), atol=1e-10, rtol=1e-8)
    # Those of the tokens and before RGB stay.
    left = sum(isinstance(module, nn.BatchNorm2d) for module in fused.modules())
    assert left == {("batch", MaxViTGenerator): 2, ("batch", HiTGenerator): 2}.get((norm, kind), 0)
