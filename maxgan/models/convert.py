"""Weights from elsewhere for our networks, and the command that turns a backbone's checkpoint files into ours.

    python -m maxgan.models.convert SOURCE DEST --format timm --size tiny --resolution 224

Every function here is strict, and leaves the model unchanged when it raises. Tables of relative positions of another
window, so weights of another resolution, are resized as the official code does.

What a port does otherwise than the official code is a setting of the backbone where it changes the function (`FORMATS`
says which), and is otherwise folded into the weights: torchvision's logit scale C^-0.5 becomes part of the query's
weights, its missing biases become zeros, its table of relative positions is turned round. What matters in training
alone stays ours: timm's BatchNorm momentum of 0.1, and the ports' stochastic depth, linspace(0, rate, n).

Not converted: timm's maxvit_*_rw_* and maxvit_rmlp_*, another network. Their stem has two widths, their MBConv expands
its input's width with SiLU, BatchNorm and LayerNorm have other epsilons, the last norm comes before pooling, and most
have no hidden layer in the head: five more settings that serve nothing else.

Weights expect images normalised as in their training, and our networks take [-1, 1]: `--normalization` says what is to
be done between. `half`, nothing, is right for the official and timm's weights at 384 and 512 px and those of
ImageNet-21K; `imagenet` for the official and timm's of ImageNet-1K at 224 px, and, taken if nothing is said, for
torchvision's.

Official checkpoints are TensorFlow's own format, for which there is no maintained reader without TensorFlow. With it,

    python -c "import sys, numpy, tensorflow as tf; r = tf.train.load_checkpoint(sys.argv[1]); numpy.savez(sys.argv[2],
    **{n: r.get_tensor(n) for n in r.get_variable_to_shape_map()})" CHECKPOINT weights.npz

writes a file that the command takes as `--format tensorflow`.
"""

from __future__ import annotations

import argparse
import pickle
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from maxgan.cli import plain_errors
from maxgan.config import Normalization
from maxgan.models import names
from maxgan.models.backbone import SIZES, MaxViT
from maxgan.models.discriminator import ResidualDiscriminator
from maxgan.models.hit import HiTGenerator
from maxgan.models.names import Entry
from maxgan.models.network import Network, export_model
from maxgan.nn.attention import resize_relative_bias

Source = nn.Module | Mapping[str, Any] | str | Path

READ_ERRORS = (
    OSError,
    ValueError,
    TypeError,
    RuntimeError,
    EOFError,
    SafetensorError,
    pickle.UnpicklingError,
    zipfile.BadZipFile,
)
OFFICIAL = {"order": "C-BA-GA", "gelu": "tanh", "padding": "same", "shortcut": "pool2"}


class Format(NamedTuple):
    """One implementation: the settings with which our network computes the same, and how its weights are called.

    Attributes:
        settings: fields of the network's config.
        clean: drops from its tensors what is no weight, and brings the names to those of `entries`.
        entries: lists (our name, their names, change of layout) for every weight of a model of ours.
    """

    settings: dict[str, Any]
    clean: Callable[[dict[str, Tensor]], dict[str, Tensor]]
    entries: Callable[[Any], list[Entry]]


FORMATS = {
    "tensorflow": Format(OFFICIAL, names.clean_tensorflow, names.tensorflow),
    "timm": Format(OFFICIAL, dict, names.timm),
    "torchvision": Format(
        {"order": "C-BA-GA", "gelu": "erf", "padding": "symmetric", "shortcut": "pool3"},
        names.clean_torchvision,
        names.torchvision,
    ),
}
HIT = Format({"norm": "batch"}, dict, names.hit)
RESIDUAL = Format({"equalized_lr": False, "minibatch_deviation": False}, dict, names.residual)


def from_tensorflow(model: MaxViT | HiTGenerator | ResidualDiscriminator, source: Source) -> None:
    """Fill a network with the variables of the official MaxViT (google-research/maxvit) or HiT
    (google-research/hit-gan).

    Args:
        model: of the same widths, depths and classes; a backbone at any resolution that its windows fit.
        source: arrays, or a file of them (`read_weights`), in TensorFlow's layout: kernels (H, W, in, out), depthwise
            (H, W, C, 1), dense (in, out), q, k, v (C, heads, d), o (heads, d, C), positions (1, H, W, C). For a
            backbone by the official names such as `block_00_00/attention/q/weight`, below any scope; of a training's
            checkpoint, which has moving averages of all variables, these are taken and nothing else, as the official
            evaluation does. For HiT by the names of `names.hit`, such as `stage_0/block_1/q/kernel`, and for its
            discriminator by those of `names.residual`, such as `block_0/conv1/kernel`.

    Raises:
        ValueError: if a variable is missing, left over or of another shape, or the model has weights of its own, such
            as of classes, or settings with which it would compute something else.
    """
    form = FORMATS["tensorflow"]
    if isinstance(model, HiTGenerator):
        form = HIT
    elif isinstance(model, ResidualDiscriminator):
        form = RESIDUAL
    _fill(model, form, source)


def from_timm(model: MaxViT, source: Source) -> None:
    """Fill a backbone with the weights of timm's `maxvit_*_tf_*`.

    Args:
        model: as for from_tensorflow.
        source: timm's model, its state dict, or a file of that.

    Raises:
        ValueError: as from_tensorflow.
    """
    _fill(model, FORMATS["timm"], source)


def from_torchvision(model: MaxViT, source: Source) -> None:
    """Fill a backbone with the weights of torchvision's `maxvit_t`.

    Args:
        model: as for from_tensorflow, with the settings `FORMATS["torchvision"].settings`.
        source: torchvision's model, its state dict, or a file of that.

    Raises:
        ValueError: as from_tensorflow.
    """
    _fill(model, FORMATS["torchvision"], source)


def load_resized(model: MaxViT, state_dict: Mapping[str, Tensor]) -> None:
    """Fill a backbone with the weights of ours of another resolution, its tables of relative positions resized.

    Args:
        model: the same but for its resolution and window.
        state_dict: the weights, by our names.

    Raises:
        ValueError: if a weight is missing, left over, or of another shape. The model is then unchanged.
    """
    _assign(model, Format({}, dict, names.ours), state_dict, "these weights")


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Return the tensors of a .npz, .safetensors, .pth, .pt or .bin file by name; nothing is unpickled but tensors.

    Of a torch file that holds them under `state_dict` or `model`, that part is taken.

    Raises:
        ValueError: if there is no such file, it has another suffix, is damaged, or holds something else.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"there is no weight file {path}")
    try:
        if path.suffix == ".npz":
            # np.load itself leaves a damaged file open.
            with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
                return _as_tensors({name: file[name] for name in file.files})
        if path.suffix == ".safetensors":
            return load_file(path)
        if path.suffix in (".pth", ".pt", ".bin"):
            content = torch.load(path, map_location="cpu", weights_only=True)
            for key in ("state_dict", "model"):
                if isinstance(content, dict) and isinstance(content.get(key), dict):
                    content = content[key]
            return _as_tensors(content)
    except READ_ERRORS as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path} holds no weights that can be read ({reason}): fetch or export it again") from error
    raise ValueError(f"{path} must be a .npz, .safetensors, .pth, .pt or .bin file of named tensors")


def convert_file(
    path: str | Path, form: str, size: str, resolution: int = 224, normalization: Normalization | None = None
) -> MaxViT:
    """Return the backbone of a checkpoint file, in eval mode; it has the weights' number of classes and channels.

    Args:
        path: see read_weights.
        form: `tensorflow`, `timm` or `torchvision`.
        size: see MaxViT.from_name.
        resolution: may differ from that of the weights.
        normalization: see BackboneConfig; None takes `imagenet` for torchvision's weights and `half` for others.

    Raises:
        ValueError: as read_weights, MaxViT and from_tensorflow.
    """
    if form not in FORMATS:
        raise ValueError(f"the format must be one of {', '.join(FORMATS)}, not {form!r}")
    settings, clean, entries = FORMATS[form]
    if normalization is None:
        normalization = "imagenet" if form == "torchvision" else "half"
    tensors = clean(read_weights(path))
    with torch.device("meta"):
        sketch = MaxViT.from_name(size, resolution, **settings)
    classes, channels = sketch.num_classes, sketch.channels
    # What is missing or has another shape stays as it is here, for `_assign` to list.
    for ours, theirs, layout in entries(sketch):
        if ours == "head.logits.weight" and theirs[0] in tensors and tensors[theirs[0]].dim() == 2:
            classes = len(layout(tensors[theirs[0]]))
        if ours == "stem.conv1.weight" and theirs[0] in tensors and tensors[theirs[0]].dim() == 4:
            channels = layout(tensors[theirs[0]]).shape[1]
    model = MaxViT.from_name(size, resolution, classes, channels, **settings, normalization=normalization)
    _assign(model, FORMATS[form], tensors, f"the weights of {path}")
    return model.eval()


def _fill(model: Network, form: Format, source: Source) -> None:
    if isinstance(source, nn.Module):
        tensors = source.state_dict()
    else:
        tensors = read_weights(source) if isinstance(source, str | Path) else _as_tensors(source)
    origin = f"the weights of {source}" if isinstance(source, str | Path) else "the weights"
    _assign(model, form, form.clean(tensors), origin)


def _as_tensors(content: Any) -> dict[str, Tensor]:
    if not isinstance(content, Mapping):
        raise ValueError(f"a {type(content).__name__} in place of named tensors")
    try:
        return {str(name): torch.as_tensor(value) for name, value in content.items()}
    except (TypeError, ValueError, RuntimeError):
        raise ValueError("something else than tensors among them") from None


def _assign(model: Network, form: Format, tensors: Mapping[str, Tensor], origin: str) -> None:
    """Load `tensors` into `model`, all or none; or raise ValueError, which calls them `origin`."""
    if any(getattr(model.config, name) != value for name, value in form.settings.items()):
        needed = ", ".join(f"{name}={value!r}" for name, value in form.settings.items())
        found = ", ".join(f"{name}={getattr(model.config, name)!r}" for name in form.settings)
        raise ValueError(f"{origin} need a model with {needed}, not {found}: build it with those")
    entries = form.entries(model)
    known = {name for _, theirs, _ in entries for name in theirs}
    if not known & tensors.keys():
        first = repr(next(iter(tensors))) if tensors else "nothing"
        raise ValueError(f"{origin} have no name like {sorted(known)[0]!r}, but {first}: check the format")
    problems = [f"{name} is missing" for name in sorted(known - tensors.keys())]
    problems += [f"{name} is left over" for name in sorted(tensors.keys() - known)]
    wanted = model.state_dict()
    # What TensorFlow has no variable for (BatchNorm's count of batches) stays.
    filled = {ours for ours, _, _ in entries}
    problems += [
        f"{name} of the model is not among them"
        for name in wanted
        if name not in filled and not name.endswith(".num_batches_tracked")
    ]
    weights: dict[str, Tensor] = {}
    for ours, theirs, layout in entries:
        if any(name not in tensors for name in theirs):
            continue
        shape = wanted[ours].shape
        try:
            weight = layout(*(tensors[name] for name in theirs)) if theirs else torch.zeros(shape)
            if ours.endswith("relative_bias") and weight.shape[1] % 2 and weight.shape[1] == weight.shape[2]:
                weight = resize_relative_bias(weight, (shape[-1] + 1) // 2)
        except (RuntimeError, IndexError):
            problems.append(f"{', '.join(theirs)} can't be brought to the shape {tuple(shape)} of {ours}")
            continue
        if ours == "head.logits.weight" and weight.dim() == 2 and len(weight) != shape[0]:
            raise ValueError(
                f"{origin} have {len(weight)} classes, the model {shape[0]}: build it with "
                f"num_classes={len(weight)}, and then call reset_head({shape[0]})"
            )
        if weight.shape != shape:
            subject = f"{', '.join(theirs)} as {ours}" if theirs != (ours,) else ours
            problems.append(f"{subject} has the shape {tuple(weight.shape)} in place of {tuple(shape)}")
        weights[ours] = weight
    if problems:
        raise ValueError(f"{origin} don't fit the model: {'; '.join(problems)}")
    model.load_state_dict({**wanted, **weights})


def main(argv: Sequence[str] | None = None) -> None:
    """Convert one file as the command line says; a user's mistake ends in one sentence."""
    lines = (__doc__ or "").split("\n\n")
    parser = argparse.ArgumentParser(
        prog="python -m maxgan.models.convert",
        description="Convert a MaxViT checkpoint to one file of maxgan.",
        epilog="\n\n".join(lines[-4:]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", help="file of named tensors: .npz, .safetensors, .pth, .pt or .bin")
    parser.add_argument("dest", help="file to write, .safetensors")
    parser.add_argument("--format", required=True, choices=FORMATS, help="whose weights they are")
    parser.add_argument("--size", required=True, choices=SIZES, help="size of the model")
    parser.add_argument("--resolution", type=int, default=224, help="side of the images; tables are resized to it")
    parser.add_argument(
        "--normalization", choices=get_args(Normalization), help="what the weights take; unset: that of the format"
    )
    arguments = parser.parse_args(argv)
    with plain_errors():
        if Path(arguments.dest).suffix != ".safetensors":
            raise ValueError(f"the file to write must end in .safetensors, not {arguments.dest}")
        model = convert_file(
            arguments.source, arguments.format, arguments.size, arguments.resolution, arguments.normalization
        )
        export_model(model, arguments.dest, {"source": f"{Path(arguments.source).name} ({arguments.format})"})
    parameters = sum(parameter.numel() for parameter in model.parameters())
    print(f"{arguments.dest}: {parameters:,} parameters, {model.num_classes} classes, {model.resolution} px")


if __name__ == "__main__":
    main()
