from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from maxgan.config import HiTConfig
from maxgan.models import HiTGenerator, MaxViTGenerator, ResidualDiscriminator
from maxgan.models.convert import from_tensorflow
from maxgan.models.hit import WEIGHT_CUT, plan_stages
from maxgan.models.network import export_model, load_model
from maxgan.nn.multi_query import MultiAxisAttention
from maxgan.sampling import generate, load_generator
from maxgan.training.losses import generator_loss

FIXTURES = Path(__file__).parents[1] / "fixtures"
# Sides, widths, layers, heads and patches as the paper prints them.
PUBLISHED = {
    128: ((512, 512, 256, 128, 128), (2, 2, 2, 2, 2), (16, 8, 4, 4, 4), (4, 4, 8, 8, 0)),
    256: ((512, 512, 256, 128, 64, 64), (2, 2, 2, 2, 1, 1), (16, 8, 4, 4, 4, 4), (4, 4, 8, 8, 0, 0)),
    1024: (
        (512, 512, 256, 128, 64, 64, 32, 32),
        (2, 2, 2, 2, 1, 1, 1, 1),
        (16, 8, 4, 4, 4, 4, 4, 4),
        (4, 4, 8, 8, 0, 0, 0, 0),
    ),
}


def small(resolution: int = 32, channels: int = 3, num_classes: int = 0, **settings: Any) -> HiTGenerator:
    torch.manual_seed(0)
    stages = resolution.bit_length() - 3
    defaults = {
        "latent_dim": 8,
        "latent_tokens": 3,
        "widths": (16, 16, 8, 8)[:stages],
        "depths": (1,) * stages,
        "heads": (4, 2, 2, 2)[:stages],
    }
    return HiTGenerator.from_resolution(resolution, channels, num_classes, **{**defaults, **settings})


def on_meta(resolution: int, channels: int = 3, num_classes: int = 0, **settings: Any) -> HiTGenerator:
    with torch.device("meta"):
        return HiTGenerator.from_resolution(resolution, channels, num_classes, **settings)


def scrambled(model: HiTGenerator) -> HiTGenerator:
    """Draw all weights anew, large enough that every part matters; the initial ones make residual branches tiny."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    return model


# Keras counts as trainable all variables but BatchNorm's moving means and variances, which are no parameters of ours.
@pytest.mark.parametrize(("resolution", "count"), [(128, 32_866_627), (256, 46_217_670)])
def test_parameter_counts_are_those_of_the_official_model(resolution: int, count: int) -> None:
    assert sum(p.numel() for p in on_meta(resolution).parameters()) == count


@pytest.mark.parametrize("resolution", PUBLISHED)
def test_published_models_have_the_published_stages(resolution: int) -> None:
    model = on_meta(resolution)
    rows = list(zip(*PUBLISHED[resolution], strict=True))
    assert len(model.stages) == len(rows)
    for i, (stage, (width, depth, heads, patch)) in enumerate(zip(model.stages, rows, strict=True)):
        assert stage.position.shape == (1, width, 8 * 2**i, 8 * 2**i)
        assert stage.cross_attention.kv.weight.shape == (2 * width // heads, 512)
        assert len(stage.blocks) == depth
        attentions = [m for m in stage.modules() if isinstance(m, MultiAxisAttention)]
        assert [m.patch_size for m in attentions] == [patch] * (depth if patch else 0)
        assert {m.kv.out_features for m in attentions} <= {2 * width // heads}
        assert (str(i) in model.to_rgb) == (patch == 0)
    assert model.latent_dim == (256 if resolution == 128 else 512)
    assert model(torch.zeros(1, model.latent_dim, device="meta")).shape == (1, 3, resolution, resolution)


@pytest.mark.parametrize("resolution", [32, 64, 512])
def test_other_resolutions_take_the_first_stages_of_the_largest_model(resolution: int) -> None:
    plans = plan_stages(resolution, HiTConfig())
    rows = list(zip(*PUBLISHED[1024], strict=True))[: len(plans)]
    assert [plan[1:] for plan in plans] == rows
    assert [plan.side for plan in plans] == [8 * 2**i for i in range(len(rows))]
    for channels, num_classes in ((1, 0), (4, 10)):
        model = on_meta(resolution, channels, num_classes)
        labels = torch.zeros(2, dtype=torch.long, device="meta") if num_classes else None
        z = torch.zeros(2, model.latent_dim, device="meta")
        assert model(z, labels).shape == (2, channels, resolution, resolution)


def listing() -> dict[str, tuple[int, ...]]:
    """Return the names and shapes of the official generator of 128 px."""
    variables = json.loads((FIXTURES / "hit_128.json").read_text())["generator"]["variables"]
    return {name: tuple(shape) for name, shape in variables}


def to_official(model: HiTGenerator) -> dict[str, Tensor]:
    """Return the tensors of `model` by the official names and in TensorFlow's layout."""
    arrays: dict[str, Tensor] = {}
    state = model.state_dict()

    def take(ours: str, official: str) -> None:
        weight, bias = state[f"{ours}.weight"], state[f"{ours}.bias"]
        if f"{ours}.running_mean" in state:
            arrays[f"{official}/gamma"], arrays[f"{official}/beta"] = weight, bias
            arrays[f"{official}/moving_mean"] = state[f"{ours}.running_mean"]
            arrays[f"{official}/moving_variance"] = state[f"{ours}.running_var"]
        else:
            arrays[f"{official}/kernel"], arrays[f"{official}/bias"] = weight.flatten(1).t(), bias

    def take_attention(ours: str, official: str, heads: int) -> None:
        d = state[f"{ours}.kv.weight"].shape[0] // 2
        arrays[f"{official}/q/kernel"] = state[f"{ours}.q.weight"].t().unflatten(1, (heads, d))
        arrays[f"{official}/q/bias"] = state[f"{ours}.q.bias"].view(heads, d)
        for part, rows in (("k", slice(0, d)), ("v", slice(d, None))):
            arrays[f"{official}/{part}/kernel"] = state[f"{ours}.kv.weight"][rows].t()[:, None]
            arrays[f"{official}/{part}/bias"] = state[f"{ours}.kv.bias"][None, rows]
        arrays[f"{official}/out/kernel"] = state[f"{ours}.out.weight"].t().unflatten(0, (heads, d))
        arrays[f"{official}/out/bias"] = state[f"{ours}.out.bias"]

    take("first_map", "image_dense")
    take("tokens", "token_dense")
    take("token_norm", "token_norm")
    arrays["token_position"] = state["token_position"].permute(0, 2, 1, 3)
    rows = list(zip(*PUBLISHED[model.resolution], strict=True))
    for s, (width, depth, heads, patch) in enumerate(rows):
        ours, official = f"stages.{s}", f"stage_{s}"
        arrays[f"{official}/position"] = state[f"{ours}.position"].permute(0, 2, 3, 1)
        take(f"{ours}.cross_norm", f"{official}/cross_attention/norm")
        take_attention(f"{ours}.cross_attention", f"{official}/cross_attention", heads)
        take(f"{ours}.cross_mlp.norm", f"{official}/cross_attention/mlp/norm")
        take(f"{ours}.cross_mlp.ffn.0", f"{official}/cross_attention/mlp/fc1")
        take(f"{ours}.cross_mlp.ffn.2", f"{official}/cross_attention/mlp/fc2")
        for b in range(depth):
            block, theirs = f"{ours}.blocks.{b}", f"{official}/block_{b}"
            mlp = f"{theirs}/mlp" if patch else theirs
            take(f"{block}.norm", f"{theirs}/norm")
            if patch:
                take_attention(f"{block}.attention", theirs, heads)
                take(f"{block}.ffn_norm", f"{mlp}/norm")
            take(f"{block}.ffn.0", f"{mlp}/fc1")
            take(f"{block}.ffn.2", f"{mlp}/fc2")
        if patch == 0:
            take(f"to_rgb.{s}.0", f"{official}/to_rgb/norm")
            take(f"to_rgb.{s}.1", f"{official}/to_rgb")
        if s + 1 < len(rows) and width // 4 != rows[s + 1][0]:
            take(f"ups.{s}.project", f"{official}/upsample")
    return arrays


def test_the_official_names_and_shapes_are_ours() -> None:
    assert {name: tuple(array.shape) for name, array in to_official(on_meta(128)).items()} == listing()


def test_the_256_px_model_survives_the_way_to_official_names_and_back() -> None:
    ours, loaded = (on_meta(256).to_empty(device="cpu") for _ in range(2))
    for seed, model in enumerate((ours, loaded)):
        generator = torch.Generator().manual_seed(seed)
        for name, tensor in model.state_dict().items():
            if name.endswith(".num_batches_tracked"):
                tensor.zero_()
            else:
                tensor.uniform_(generator=generator)
    from_tensorflow(loaded, to_official(ours))
    for name, tensor in ours.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name


@pytest.fixture(scope="module")
def case(official: Callable) -> Any:
    return official("hit_128", "generator")


@pytest.fixture
def official_model(case: Any) -> HiTGenerator:
    model = on_meta(128).to_empty(device="cpu")
    from_tensorflow(model, case.variables)
    return model.to(memory_format=torch.channels_last)


@torch.no_grad()
def check_images(model: HiTGenerator, case: Any, mode: str, tolerance: float, images: int) -> None:
    """Compare with the official images; no pixel may differ by `tolerance` of their deviation."""
    model.train(mode == "train")
    truth = torch.from_numpy(case.arrays[f"image_{mode}"])[:images].permute(0, 3, 1, 2)
    z = torch.from_numpy(case.arrays["latent"])[:images].to(model.token_position.dtype)
    assert (model(z) - truth).abs().max() < tolerance * truth.std()


@pytest.mark.parametrize(
    ("mode", "images"), [("train", 4), ("eval", 1), pytest.param("eval", 4, marks=pytest.mark.slow)]
)
def test_official_weights_give_the_official_images(
    mode: str, images: int, official_model: HiTGenerator, case: Any
) -> None:
    check_images(official_model, case, mode, 1e-4, images)


@pytest.mark.parametrize(
    ("mode", "images"),
    [
        ("eval", 1),
        pytest.param("eval", 4, marks=pytest.mark.slow),
        pytest.param("train", 4, marks=pytest.mark.slow),
    ],
)
def test_official_weights_give_the_official_images_in_float64(
    mode: str, images: int, official_model: HiTGenerator, case: Any
) -> None:
    check_images(official_model.double(), case, mode, 1e-6, images)


@pytest.mark.parametrize("resolution", [32, 64])
@pytest.mark.parametrize("settings", [{}, {"norm": "layer"}, {"norm_group": 2}])
def test_every_parameter_gets_a_finite_gradient(resolution: int, settings: dict[str, Any]) -> None:
    model = scrambled(small(resolution, 3, 4, **settings))
    discriminator = ResidualDiscriminator(resolution, 3, 4, max_width=8)
    labels = torch.tensor([0, 1, 2, 3])
    generator_loss("non_saturating", None, discriminator(model(torch.randn(4, 8), labels), labels)).backward()
    # A key's bias cancels in the softmax, and others in the BatchNorm behind them, so zero is right for some biases.
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any() or name.endswith(".bias"), name


def test_default_weights_train_too() -> None:
    model = small(32)
    model(torch.randn(2, 8)).square().mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_images_sum_the_upsampled_projections_of_the_stages_without_attention() -> None:
    model = scrambled(small(64, patch_sizes=(4, 0, 0, 4))).eval()
    parts: dict[str, Tensor] = {}
    for name, module in model.to_rgb.items():
        module.register_forward_hook(lambda _, __, output, name=name: parts.update({name: output}))
    with torch.no_grad():
        images = model(torch.randn(2, 8))
    # Those without attention, and the last one.
    assert [(name, part.shape[-1]) for name, part in parts.items()] == [("1", 16), ("2", 32), ("3", 64)]
    expected = sum(
        np.kron(part.numpy(), np.ones((1, 1, 64 // part.shape[-1], 64 // part.shape[-1]))) for part in parts.values()
    )
    np.testing.assert_allclose(images.numpy(), expected, rtol=1e-5, atol=1e-5)


def test_positions_tokens_and_classes_reach_the_images() -> None:
    model = scrambled(small(num_classes=3)).eval()
    z, labels = torch.randn(2, 8), torch.tensor([0, 1])
    with torch.no_grad():
        images = model(z, labels)
        assert (model(z, labels.flip(0)) - images).abs().amax((1, 2, 3)).gt(0.01).all()
        assert (model(z + 1, labels) - images).abs().amax((1, 2, 3)).gt(0.01).all()
        for parameter in (model.token_position, *(stage.position for stage in model.stages)):
            before = parameter.clone()
            parameter.add_(torch.randn_like(parameter))
            assert (model(z, labels) - images).abs().max() > 0.01
            parameter.copy_(before)


def test_an_image_does_not_depend_on_the_others_in_eval_mode() -> None:
    model = scrambled(small()).eval().double()
    z = torch.randn(3, 8, dtype=torch.float64)
    torch.testing.assert_close(model(z)[1:2], model(z[1:2]), rtol=1e-12, atol=1e-12)


def test_ghost_groups_are_batches_of_their_own() -> None:
    model = scrambled(small(norm_group=2)).double()
    z = torch.randn(4, 8, dtype=torch.float64)
    together = model(z)
    torch.testing.assert_close(together, torch.cat([model(z[:2]), model(z[2:])]))
    assert (scrambled(small()).double()(z) - together).abs().max() > 0.01


def test_weights_are_drawn_as_in_the_official_model() -> None:
    model = small(64)
    for name, parameter in model.named_parameters():
        if "norm" in name or (name.startswith("to_rgb") and ".0." in name):
            assert torch.equal(parameter, torch.full_like(parameter, float(name.endswith("weight")))), name
        elif name.endswith("bias"):
            assert not parameter.any(), name
        else:
            assert 0 < parameter.abs().max() <= WEIGHT_CUT, name
    # The deviation of a normal that is cut at two of its deviations.
    assert float(model.first_map.weight.detach().std()) == pytest.approx(0.02 * 0.8796, rel=0.02)


@pytest.mark.parametrize("settings", [{}, {"norm": "layer"}, {"norm_group": 2}, {"patch_sizes": (2, 0, 0)}])
def test_maps_stay_in_channels_last_memory(settings: dict[str, Any]) -> None:
    model = small(32, **settings).to(memory_format=torch.channels_last)
    outputs: dict[str, Tensor] = {}
    for name, module in model.named_modules():
        # Inside attention and feed-forward the tensors are tokens, (N, H, W, C) in plain memory: the same bytes.
        if "attention" not in name and "ffn" not in name.removesuffix("ffn_norm"):
            module.register_forward_hook(lambda _, __, output, name=name: outputs.update({name: output}))
    model(torch.randn(4, 8))
    maps = {name: output for name, output in outputs.items() if output.dim() == 4 and output.shape[2] > 1}
    assert len(maps) > 15
    assert [name for name, m in maps.items() if not m.is_contiguous(memory_format=torch.channels_last)] == []


def test_files_keep_the_settings_and_are_sampled_as_any_generator(tmp_path: Path) -> None:
    path = tmp_path / "generator.safetensors"
    model = scrambled(small(num_classes=3, norm_group=2)).eval()
    export_model(model, path, {"images_seen": 5})
    loaded = load_model(path, expect=HiTGenerator)
    assert loaded.config == model.config
    z, labels = torch.randn(2, 8), torch.tensor([0, 2])
    assert torch.equal(loaded(z, labels), model(z, labels))
    batches = list(generate(load_generator(path), range(5), 3, "cpu"))
    assert [tuple(batch.images.shape) for batch in batches] == [(3, 3, 32, 32), (2, 3, 32, 32)]


def test_files_of_another_architecture_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "generator.safetensors"
    export_model(small(), path, {})
    with pytest.raises(ValueError, match="holds a HiTGenerator, but a MaxViTGenerator is needed: name another file"):
        MaxViTGenerator.from_pretrained(path)
    export_model(MaxViTGenerator(8, 1, width=16, head_dim=8, latent_dim=8), path, {})
    with pytest.raises(ValueError, match="holds a MaxViTGenerator, but a HiTGenerator is needed: name another file"):
        load_model(path, expect=HiTGenerator)


def test_labels_and_model_must_agree() -> None:
    with pytest.raises(ValueError, match="has 3 classes: give a label for every z"):
        small(num_classes=3)(torch.zeros(2, 8))
    with pytest.raises(ValueError, match="has 0 classes: it is unconditional, give no labels"):
        small()(torch.zeros(2, 8), torch.zeros(2, dtype=torch.long))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"widths": (64, 64)}, r"hit\.widths \(64, 64\) has 2 entries, but there are 3 stages at 32 px"),
        ({"depths": (1, 1, 1, 1)}, r"hit\.depths .* has 4 entries, but there are 3 stages"),
        ({"heads": (4,)}, r"hit\.heads .* has 1 entries, but there are 3 stages"),
        ({"patch_sizes": ()}, r"hit\.patch_sizes .* has 0 entries, but there are 3 stages"),
        ({"widths": (64, 36, 16)}, "a width of 36 is no multiple of 8 heads: change widths or heads"),
        ({"widths": (16, 0, 16)}, r"hit\.widths and hit\.depths must be at least 1 in every stage, not 0, 2"),
        ({"widths": (16, 16, -4)}, r"hit\.widths and hit\.depths must be at least 1 in every stage, not -4, 2"),
        ({"heads": (16, 8, 0)}, "a width of 256 is no multiple of 0 heads"),
        ({"widths": (15, 16, 16), "heads": (5, 4, 4)}, "heads must be even, not 5"),
        ({"widths": (18, 16, 16), "heads": (2, 2, 2)}, "a width of 18 can't be pixel-shuffled"),
        ({"depths": (1, 0, 1)}, r"hit\.widths and hit\.depths must be at least 1 in every stage, not 512, 0"),
        ({"patch_sizes": (8, 4, 4)}, r"patch_sizes 8 does not fit the 8 x 8 map: use a power of two from 2 to 4"),
        ({"patch_sizes": (4, 6, 4)}, r"hit\.patch_sizes 6 does not fit the 16 x 16 map"),
        ({"patch_sizes": (4, 4, 1)}, r"hit\.patch_sizes 1 does not fit the 32 x 32 map: .* to 16, or 0 for no"),
        ({"patch_sizes": (-4, 4, 4)}, r"hit\.patch_sizes -4 does not fit"),
        ({"latent_tokens": 0}, r"hit\.latent_tokens must be at least 1, not 256, 0"),
        ({"latent_dim": 0}, r"hit\.latent_dim and hit\.latent_tokens must be at least 1, not 0"),
        ({"norm": "group"}, r"norm must be batch.* not 'group'"),
        ({"norm_group": 1}, "norm_group must be at least 2"),
        ({"norm": "layer", "norm_group": 8}, "norm_group is for norm: batch"),
        ({"patches": (4, 4, 8)}, "no setting 'patches': did you mean 'patch_sizes'"),
    ],
)
def test_settings_that_do_not_fit(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        on_meta(32, **settings)


@pytest.mark.parametrize(
    ("resolution", "message"),
    [
        (48, r"power of two from 8 to 1024, not 48: set data\.resolution"),
        (2048, r"power of two from 8 to 1024, not 2048"),
        (16, r"HiT needs images of at least 32 px, not 16: set data\.resolution"),
        (4, "at least 8 x 8 pixels, not 4"),
    ],
)
def test_resolutions_that_do_not_fit(resolution: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        on_meta(resolution)
