from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.models.maxvit import MaxVit
from torchvision.transforms.v2.functional import normalize

from maxgan.models import HiTGenerator, MaxViT, ResidualDiscriminator, convert
from maxgan.models.backbone import SIZES
from maxgan.models.convert import from_tensorflow, from_timm, from_torchvision, load_resized, read_weights
from maxgan.models.names import clean_tensorflow
from maxgan.models.network import load_model
from maxgan.nn.attention import resize_relative_bias

FIXTURES = Path(__file__).parents[1] / "fixtures"
SMALL: dict[str, Any] = {"stem_width": 16, "stem_stride": 2, "widths": (32, 64), "depths": (1, 2), "head_dim": 32}
PORT = convert.FORMATS["torchvision"].settings


def deviations(ours: Tensor, truth: Any) -> float:
    """Return the root mean square error in standard deviations of the truth."""
    truth = torch.as_tensor(truth)
    return float((ours - truth).square().mean().sqrt() / truth.std(correction=0))


def randomise(model: nn.Module) -> nn.Module:
    """Give `model` weights and statistics at which each of them matters."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.dim() > 1 and tensor.is_floating_point():
                tensor.normal_(std=0.5 if "table" in name else tensor[0].numel() ** -0.5)
            elif tensor.is_floating_point():
                tensor.uniform_() if name.endswith(("bias", "mean")) else tensor.uniform_(0.5, 1.5)
    return model.eval()


def small(resolution: int = 64, num_classes: int = 7, window_size: int | None = None, **settings: Any) -> MaxViT:
    return MaxViT(resolution, 3, num_classes, window_size=window_size, **{**SMALL, **settings}).eval()


@pytest.fixture(scope="module")
def small_timm() -> nn.Module:
    timm = pytest.importorskip("timm")
    return randomise(
        timm.create_model(
            "maxvit_tiny_tf_224", img_size=64, num_classes=7, embed_dim=(32, 64), depths=(1, 2), stem_width=16,
            head_hidden_size=64,
        )
    )  # fmt: skip


@pytest.fixture(scope="module")
def small_torchvision() -> nn.Module:
    return randomise(MaxVit((64, 64), 16, 2, [32, 64], [1, 2], 32, 0.2, num_classes=7))


@torch.no_grad()
def test_official_weights_give_the_official_outputs(official: Callable) -> None:
    case = official("maxvit_tiny_224", "model")
    model = MaxViT.from_name("tiny").eval()
    # As a training's checkpoint has them: in a scope, beside their moving averages and the optimiser's state.
    variables = {f"maxvit/{name}/ExponentialMovingAverage": array for name, array in case.variables.items()}
    variables |= {"maxvit/conv_0/kernel": np.zeros(1), "maxvit/conv_0/kernel/Adam": np.zeros(1), "global_step": 7}
    from_tensorflow(model, variables)
    images = torch.from_numpy(case.arrays["image"]).permute(0, 3, 1, 2)  # channels_last
    last = model.features(images)[-1]
    pooled = last.mean((2, 3))
    assert deviations(last.permute(0, 2, 3, 1), case.arrays["stage_4"]) < 1e-5
    assert deviations(pooled, case.arrays["pooled"]) < 1e-5
    assert deviations(model.classify(pooled), case.arrays["logits"]) < 1e-5
    assert deviations(model.fuse()(images), case.arrays["logits"]) < 1e-5


@pytest.mark.parametrize(
    ("size", "resolution"),
    [
        ("tiny", 224),
        pytest.param("small", 384, marks=pytest.mark.slow),
        pytest.param("base", 512, marks=pytest.mark.slow),
    ],
)
@torch.no_grad()
def test_equals_timm(size: str, resolution: int) -> None:
    timm = pytest.importorskip("timm")
    theirs = randomise(timm.create_model(f"maxvit_{size}_tf_{resolution}"))
    ours = MaxViT.from_name(size, resolution).eval()
    from_timm(ours, theirs)
    x = torch.randn(1, 3, resolution, resolution)
    assert deviations(ours(x), theirs(x)) < 1e-5


@torch.no_grad()
def test_equals_timm_and_torchvision_at_two_stages(small_timm: nn.Module, small_torchvision: nn.Module) -> None:
    x = torch.randn(2, 3, 64, 64)
    ours = small()
    from_timm(ours, small_timm.state_dict())
    assert deviations(ours(x), small_timm(x)) < 1e-5
    ours = small(**PORT)
    from_torchvision(ours, small_torchvision.state_dict())
    assert deviations(ours(x), small_torchvision(x)) < 1e-5


@torch.no_grad()
def test_equals_torchvision() -> None:
    theirs = randomise(torchvision.models.maxvit_t())
    ours = MaxViT.from_name("tiny", **PORT).eval()
    from_torchvision(ours, theirs)
    x = torch.randn(1, 3, 224, 224)
    assert deviations(ours(x), theirs(x)) < 1e-5


@pytest.mark.parametrize("name", ["gelu", "padding", "shortcut"])
@torch.no_grad()
def test_each_setting_of_torchvision_matters(name: str, small_torchvision: nn.Module) -> None:
    ours = small(**PORT)
    from_torchvision(ours, small_torchvision)
    official = small(**{**PORT, name: convert.OFFICIAL[name]})
    official.load_state_dict(ours.state_dict(), strict=False)
    x = torch.randn(2, 3, 64, 64)
    assert deviations(official(x), small_torchvision(x)) > 5e-5


def bilinear(table: np.ndarray, side: int) -> np.ndarray:
    """Resize `(heads, S, S)` with half-pixel centres, written from the definition."""
    source = table.shape[1]
    out = np.zeros((len(table), side, side))
    for y in range(side):
        for x in range(side):
            for i in range(source):
                for j in range(source):
                    # A centre outside the outermost ones takes the outermost value.
                    cy, cx = (min(max((c + 0.5) * source / side - 0.5, 0), source - 1) for c in (y, x))
                    out[:, y, x] += max(1 - abs(cy - i), 0) * max(1 - abs(cx - j), 0) * table[:, i, j]
    return out


@pytest.mark.parametrize(("old", "new"), [(2, 3), (7, 12), (5, 3)])
def test_tables_are_resized_with_half_pixel_centres(old: int, new: int) -> None:
    table = torch.randn(2, 2 * old - 1, 2 * old - 1, dtype=torch.float64)
    resized = resize_relative_bias(table, new)
    np.testing.assert_allclose(resized.numpy(), bilinear(table.numpy(), 2 * new - 1), rtol=1e-12, atol=1e-12)
    assert resize_relative_bias(table, old) is table


@pytest.mark.parametrize("fill", ["timm", "torchvision", "ours"])
def test_another_resolution_resizes_the_tables_alone(
    fill: str, small_timm: nn.Module, small_torchvision: nn.Module
) -> None:
    settings = PORT if fill == "torchvision" else {}
    at_64, at_96 = small(64, **settings), small(96, **settings)
    if fill == "ours":
        randomise(at_64)
        load_resized(at_96, at_64.state_dict())
    else:
        convert_from = from_timm if fill == "timm" else from_torchvision
        for model in (at_64, at_96):
            convert_from(model, small_timm if fill == "timm" else small_torchvision)
    before, after = at_64.state_dict(), at_96.state_dict()
    tables = [name for name in before if name.endswith("relative_bias")]
    assert len(tables) == 6
    for name, weight in before.items():
        if name in tables:
            assert after[name].shape[1:] == (5, 5)
            np.testing.assert_allclose(after[name].numpy(), bilinear(weight.numpy(), 5), rtol=1e-5, atol=1e-6)
        else:
            assert torch.equal(after[name], weight), name


@pytest.fixture(scope="module")
def official_zeros() -> dict[str, np.ndarray]:
    """Variables of the official tiny model, all zero."""
    listing = json.loads((FIXTURES / "maxvit_tiny_224.json").read_text())["model"]["variables"]
    return {name: np.broadcast_to(np.float32(0), shape).copy() for name, shape in listing}


def on_meta(**settings: Any) -> MaxViT:
    with torch.device("meta"):
        return MaxViT.from_name("tiny", **settings)


def test_conversion_lists_what_is_missing_left_over_or_of_another_shape(official_zeros: dict[str, np.ndarray]) -> None:
    arrays = {**official_zeros, "optimizer/step": np.zeros(1), "conv_0/bias": np.zeros(32, np.float32)}
    arrays["inner_dense/weight"] = np.zeros(3, np.float32)
    arrays["block_00_00/attention/relative_bias"] = np.zeros((3, 13, 13), np.float32)
    arrays["block_00_00/mbconv/expand_conv/kernel"] = np.zeros((64, 256), np.float32)
    del arrays["block_00_01/attention_1/k/weight"]
    with pytest.raises(ValueError, match="the weights don't fit the model: ") as error:
        from_tensorflow(on_meta(), arrays)
    assert str(error.value).removeprefix("the weights don't fit the model: ").split("; ") == [
        "block_00_01/attention_1/k/weight is missing",
        "optimizer/step is left over",
        "conv_0/bias as stem.conv1.bias has the shape (32,) in place of (64,)",
        "block_00_00/mbconv/expand_conv/kernel can't be brought to the shape (256, 64, 1, 1) of "
        "stages.0.0.0.expand.weight",
        "block_00_00/attention/relative_bias as stages.0.0.1.attention.relative_bias has the shape (3, 13, 13) in "
        "place of (2, 13, 13)",
        "inner_dense/weight as head.dense.weight has the shape (3,) in place of (512, 512)",
    ]


def zeros_of(model: str) -> dict[str, np.ndarray]:
    """Return the variables of the official HiT `generator` or `discriminator` at 128 px, all zero."""
    listing = json.loads((FIXTURES / "hit_128.json").read_text())[model]["variables"]
    return {name: np.broadcast_to(np.float32(0), shape) for name, shape in listing}


@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")
def test_hit_and_its_discriminator_are_as_strict() -> None:
    message = "the weights don't fit the model: "
    arrays = zeros_of("generator")
    arrays["stage_0/block_2/q/kernel"] = np.zeros((512, 16, 32), np.float32)
    arrays["stage_1/upsample/bias"] = np.zeros(128, np.float32)
    arrays["stage_2/position"] = np.zeros((32, 32, 256), np.float32)
    del arrays["stage_3/block_1/k/bias"], arrays["stage_4/to_rgb/norm/moving_mean"]
    with torch.device("meta"):
        model = HiTGenerator.from_resolution(128)
    with pytest.raises(ValueError, match=message) as error:
        from_tensorflow(model, arrays)
    assert str(error.value).removeprefix(message).split("; ") == [
        "stage_3/block_1/k/bias is missing",
        "stage_4/to_rgb/norm/moving_mean is missing",
        "stage_0/block_2/q/kernel is left over",
        "stage_1/upsample/bias as ups.1.project.bias has the shape (128,) in place of (256,)",
        "stage_2/position can't be brought to the shape (1, 256, 32, 32) of stages.2.position",
    ]
    arrays = zeros_of("discriminator")
    arrays["block_5/skip/kernel"] = arrays.pop("block_4/skip/kernel")
    with torch.device("meta"):
        discriminator = ResidualDiscriminator(128)
    with pytest.raises(ValueError, match=message) as error:
        from_tensorflow(discriminator, arrays)
    assert str(error.value).removeprefix(message).split("; ") == [
        "block_4/skip/kernel is missing",
        "block_5/skip/kernel is left over",
    ]


@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")
def test_weights_without_classes_need_a_model_without_classes() -> None:
    own = "class_embedding.weight of the model is not among them"
    with torch.device("meta"):
        generator, discriminator = HiTGenerator.from_resolution(128, 3, 10), ResidualDiscriminator(128, 3, 10)
        normed = HiTGenerator.from_resolution(128, norm="layer")
    with pytest.raises(ValueError, match=f"{own}; image_dense/kernel as .* in place of"):
        from_tensorflow(generator, zeros_of("generator"))
    with pytest.raises(ValueError, match=f"don't fit the model: {own}$"):
        from_tensorflow(discriminator, zeros_of("discriminator"))
    with pytest.raises(ValueError, match="need a model with norm='batch', not norm='layer': build it with those"):
        from_tensorflow(normed, zeros_of("generator"))
    with pytest.raises(ValueError, match=r"have no name like .*: check the format"):
        from_tensorflow(discriminator, zeros_of("generator"))


def test_a_refused_conversion_changes_nothing(small_timm: nn.Module) -> None:
    model = small()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    weights = small_timm.state_dict()
    del weights["head.fc.bias"]
    with pytest.raises(ValueError, match=r"don't fit the model: head.fc.bias is missing$"):
        from_timm(model, weights)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_our_own_weights_are_listed_by_their_one_name() -> None:
    weights = small().state_dict()
    weights["stem.conv1.bias"] = torch.zeros(3)
    weights["extra"] = weights.pop("head.norm.bias")
    with pytest.raises(ValueError, match="these weights don't fit the model: ") as error:
        load_resized(small(96), weights)
    assert str(error.value).removeprefix("these weights don't fit the model: ").split("; ") == [
        "head.norm.bias is missing",
        "extra is left over",
        "stem.conv1.bias has the shape (3,) in place of (16,)",
    ]


def test_another_number_of_classes_is_named(official_zeros: dict[str, np.ndarray]) -> None:
    message = (
        r"the weights have 1000 classes, the model 10: build it with num_classes=1000, and then call reset_head\(10\)"
    )
    with pytest.raises(ValueError, match=message):
        from_tensorflow(on_meta(num_classes=10), official_zeros)


def test_weights_of_something_else(official_zeros: dict[str, np.ndarray], small_torchvision: nn.Module) -> None:
    with pytest.raises(
        ValueError, match=r"the weights have no name like 'block_00_00/.*, but 'stem.0.0.weight': check the format"
    ):
        from_tensorflow(on_meta(), small_torchvision)
    with pytest.raises(ValueError, match=r"but 'conv1.weight': check the format"):
        from_timm(small(), {"conv1.weight": torch.zeros(1)})
    with pytest.raises(ValueError, match="but nothing: check the format"):
        from_timm(small(), {})
    with pytest.raises(ValueError, match="of more than one model"):
        clean_tensorflow({"a/conv_0/bias": torch.zeros(1), "b/conv_0/bias": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"need a model with order='C-BA-GA', .*, not order='C-GA-BA', .*: build it"):
        from_tensorflow(on_meta(order="C-GA-BA"), official_zeros)
    with pytest.raises(ValueError, match=r"need a model with .*gelu='erf', padding='symmetric', shortcut='pool3'"):
        from_torchvision(small(), small_torchvision)


def test_official_names_lose_their_scope() -> None:
    names = ["conv_0/kernel", "norm_0/gamma", "block_03_01/ffn_1/expand_dense/bias", "block_00_00/mbconv/se/reduce_conv2d/bias"]  # fmt: skip  # noqa: E501
    tensor = torch.zeros(1)
    for scope in ("", "maxvit/", "a/stem/"):
        assert list(clean_tensorflow({scope + name: tensor for name in names})) == names
    averaged = {"conv_0/bias/ExponentialMovingAverage": tensor, "conv_0/bias": tensor, "step": tensor}
    assert list(clean_tensorflow(averaged)) == ["conv_0/bias"]


def test_reads_each_kind_of_file(tmp_path: Path) -> None:
    tensors = {"a/b": torch.arange(6.0).view(2, 3), "c": torch.ones(1)}
    np.savez(tmp_path / "w.npz", **{name: tensor.numpy() for name, tensor in tensors.items()})
    save_file(tensors, tmp_path / "w.safetensors")
    torch.save(tensors, tmp_path / "w.pth")
    torch.save({"state_dict": tensors, "epoch": 3}, tmp_path / "w.pt")
    torch.save({"model": tensors}, tmp_path / "w.bin")
    for suffix in ("npz", "safetensors", "pth", "pt", "bin"):
        read = read_weights(tmp_path / f"w.{suffix}")
        assert read.keys() == tensors.keys()
        assert all(torch.equal(read[name], tensor) for name, tensor in tensors.items())


class Pickled:
    """Code that a pickle would run."""

    def __reduce__(self) -> tuple[Any, ...]:
        return sys.exit, (13,)


@pytest.mark.parametrize("suffix", ["npz", "safetensors", "pth"])
def test_damaged_and_foreign_files_are_refused_in_one_sentence(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"w.{suffix}"
    with pytest.raises(ValueError, match="there is no weight file"):
        read_weights(path)
    whole = {"a": torch.randn(1000)}
    if suffix == "npz":
        np.savez(path, a=whole["a"].numpy())
    elif suffix == "safetensors":
        save_file(whole, path)
    else:
        torch.save(whole, path)
    content = path.read_bytes()
    for damaged in (b"", b"garbage" * 100, content[: len(content) // 2]):
        path.write_bytes(damaged)
        with pytest.raises(
            ValueError, match=f"w.{suffix} holds no weights that can be read .*fetch or export"
        ) as error:
            read_weights(path)
        assert "\n" not in str(error.value)


def test_code_and_other_things_in_files_are_refused(tmp_path: Path) -> None:
    torch.save({"a": Pickled()}, tmp_path / "a.pth")
    np.savez(tmp_path / "b.npz", a=np.array([Pickled()], dtype=object))
    torch.save([torch.zeros(1)], tmp_path / "c.pth")
    torch.save({"a": torch.zeros(1), "epoch": "three"}, tmp_path / "d.pth")
    for name in ("a.pth", "b.npz", "c.pth", "d.pth"):
        with pytest.raises(ValueError, match=f"{name} holds no weights that can be read"):
            read_weights(tmp_path / name)
    (tmp_path / "e.h5").write_bytes(b"")
    with pytest.raises(ValueError, match=r"must be a .npz, .safetensors, .pth, .pt or .bin file"):
        read_weights(tmp_path / "e.h5")


@pytest.mark.parametrize("form", ["timm", "torchvision"])
def test_the_command_converts_a_file(
    form: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    small_timm: nn.Module,
    small_torchvision: nn.Module,
) -> None:
    monkeypatch.setitem(SIZES, "tiny", small().config)
    theirs = small_timm if form == "timm" else small_torchvision
    torch.save(theirs.state_dict(), tmp_path / "w.pth")
    command = [str(tmp_path / "w.pth"), str(tmp_path / "m.safetensors"), "--format", form, "--size", "tiny"]
    convert.main([*command, "--resolution", "64"])
    assert "7 classes, 64 px" in capsys.readouterr().out
    model = load_model(tmp_path / "m.safetensors", expect=MaxViT)
    assert model.info == {"source": f"w.pth ({form})"}
    x = torch.rand(1, 3, 64, 64)
    mean, deviation = {
        "timm": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
        "torchvision": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    }[form]
    with torch.no_grad():
        assert deviations(model(2 * x - 1), theirs(normalize(x, mean, deviation))) < 1e-5
    convert.main([*command, "--resolution", "96", "--normalization", "half"])
    assert load_model(tmp_path / "m.safetensors", expect=MaxViT).config.normalization == "half"
    assert load_model(tmp_path / "m.safetensors").resolution == 96


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["w.npz", "m.safetensors"], "there is no weight file w.npz"),
        (["w.npz", "m.pth"], "must end in .safetensors, not m.pth"),
    ],
)
def test_the_command_ends_in_one_sentence(
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        convert.main([*arguments, "--format", "timm", "--size", "tiny"])
    assert stop.value.code == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
