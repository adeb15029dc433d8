"""The base class of whole networks, and the file from which each is rebuilt: weights plus arguments in its header."""

from __future__ import annotations

import copy
import dataclasses
import difflib
import json
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar, cast, overload

import torch
from huggingface_hub import ModelCard, ModelHubMixin, hf_hub_download
from huggingface_hub.constants import SAFETENSORS_SINGLE_FILE
from huggingface_hub.errors import HFValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from maxgan.config import ImageFacts
from maxgan.files import atomic_path
from maxgan.nn.fuse import fuse_modules

FORMAT = "maxgan"
FORMAT_VERSION = 1

MODEL_CARD = """---
{{ card_data }}
---

# {{ class_name }}, {{ resolution }} px

{{ facts }}

## Load

```python
from {{ module }} import {{ class_name }}

network = {{ class_name }}.from_pretrained("this repository, its folder or its model.safetensors")
```
{% if is_generator %}
## Sample

```bash
sample.py --model model.safetensors --n 64 --output samples --grid grid.png
```

The same seed gives the same image whatever the batch size. From Python, `network(z{{ label_argument }})` maps
z `(N, {{ latent_dim }})`, standard normal, to images `(N, {{ channels }}, {{ resolution }}, {{ resolution }})` in
[-1, 1].
{% endif %}
## Where it comes from

```json
{{ info }}
```
"""

_classes: dict[str, type[Network]] = {}
N = TypeVar("N", bound="Network")


class Network(nn.Module, ModelHubMixin, library_name="maxgan", model_card_template=MODEL_CARD):
    """A whole network: facts of its images and a config, saved as one safetensors file, shared on the Hugging Face Hub.

    A subclass names its dataclass of settings in `config_class`, which also makes the class known to `load_model`.

    Attributes:
        resolution, channels, num_classes: see ImageFacts.
        config: the settings, a `config_class`.
        info: where the weights come from (images_seen, source, class_names, scores), fit for JSON; kept in the file.

    Raises:
        ValueError: for sizes out of range and unknown settings.
    """

    config_class: ClassVar[type]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "config_class" in cls.__dict__:
            _classes[cls.__name__] = cls

    def __init__(self, resolution: int, channels: int, num_classes: int, config: Any, **settings: Any) -> None:
        super().__init__()
        facts = ImageFacts(resolution, channels, num_classes)
        self.resolution, self.channels, self.num_classes = facts.resolution, facts.channels, facts.num_classes
        self.config = merge_settings(self.config_class, config, settings)
        self.info: dict[str, Any] = {}
        self.fused = False
        # The mixin writes this as config.json, for people and for the Hub's download counter; loading never reads it.
        self._hub_mixin_config = {"class": type(self).__name__, **self.arguments()}

    def fuse(self) -> Self:
        """Return a copy for inference alone, faster, with the same outputs to rounding.

        BatchNorm is folded into the layers beside it, relative-position biases are spread once, and more (`fuse` of
        the parts). The copy is in eval mode; it can't be trained, nor exported: export the network itself.
        """
        fused = copy.deepcopy(self).eval().requires_grad_(False)
        fuse_modules(fused)
        fused.fused = True
        return fused

    def train(self, mode: bool = True) -> Self:
        """Set the mode, as every module does.

        Raises:
            ValueError: for the training mode of a fused copy.
        """
        if mode and self.fused:
            raise ValueError("a fused network is for inference alone: train the network that it was made of")
        return super().train(mode)

    def arguments(self) -> dict[str, Any]:
        """Return what the constructor needs to build this network again, as JSON can hold it."""
        return {
            "resolution": self.resolution,
            "channels": self.channels,
            "num_classes": self.num_classes,
            "config": dataclasses.asdict(self.config),
        }

    def to_metadata(self) -> dict[str, str]:
        """Return the header of the network's file."""
        return {
            "format": FORMAT,
            "format_version": str(FORMAT_VERSION),
            "class": type(self).__name__,
            "arguments": json.dumps(self.arguments()),
            "info": json.dumps(self.info),
        }

    def _save_pretrained(self, save_directory: Path) -> None:
        export_model(self, save_directory / SAFETENSORS_SINGLE_FILE, self.info)

    @classmethod
    def from_pretrained(  # type: ignore[override]  # the file holds every argument, so none is taken
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        device: str | torch.device = "cpu",
        force_download: bool = False,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        revision: str | None = None,
    ) -> Self:
        """Load a network, in eval mode, from a file, a folder of `save_pretrained`, or a Hugging Face Hub repository.

        Raises:
            ValueError: if there is nothing there, or it holds no network of this class.
        """
        path = Path(pretrained_model_name_or_path)
        if path.is_dir():
            # A run's folder holds its export under another name, and perhaps another export beside it.
            files = sorted(path.glob("*.safetensors"))
            path = files[0] if len(files) == 1 else path / SAFETENSORS_SINGLE_FILE
            if files and not path.is_file():
                raise ValueError(f"{path.parent} holds {', '.join(file.name for file in files)}: name one of them")
        elif not path.is_file() and path.suffix != ".safetensors":
            try:
                path = Path(
                    hf_hub_download(
                        str(pretrained_model_name_or_path),
                        SAFETENSORS_SINGLE_FILE,
                        revision=revision,
                        cache_dir=cache_dir,
                        force_download=force_download,
                        token=token,
                        local_files_only=local_files_only,
                    )
                )
            except (OSError, HFValidationError) as error:
                reason = str(error).splitlines()[0]
                raise ValueError(
                    f"{pretrained_model_name_or_path} is neither a file nor a folder here, nor was a model found under "
                    f"that name on the Hugging Face Hub ({reason}): check the name"
                ) from error
        return load_model(path, device, expect=cls)

    def generate_model_card(self, *args: Any, **kwargs: Any) -> ModelCard:
        """Return the README of the repository: what the network is, how to load and use it."""
        colours = {1: "grey", 2: "grey + alpha", 3: "RGB", 4: "RGB + alpha"}[self.channels]
        classes = f"{self.num_classes} classes" if self.num_classes else "no classes"
        parameters = sum(p.numel() for p in self.parameters())
        return super().generate_model_card(
            *args,
            class_name=type(self).__name__,
            module=type(self).__module__,
            resolution=self.resolution,
            channels=self.channels,
            facts=f"Images of {self.resolution} px a side ({colours}), {classes}, {parameters:,} parameters.",
            is_generator=hasattr(self, "latent_dim"),
            latent_dim=getattr(self, "latent_dim", None),
            label_argument=", labels" if self.num_classes else "",
            info=json.dumps(self.info, indent=2),
            **kwargs,
        )


def merge_settings(config_class: Any, config: Any, settings: dict[str, Any]) -> Any:
    """Return `config` (or the defaults of the dataclass `config_class`) with `settings` in place of its fields.

    Raises:
        ValueError: for a config of another class or a setting it doesn't have.
    """
    if config is None:
        config = config_class()
    if not isinstance(config, config_class):
        raise ValueError(f"config must be a {config_class.__name__}, not a {type(config).__name__}")
    names = [field.name for field in dataclasses.fields(config_class)]
    for name in settings:
        if name not in names:
            close = difflib.get_close_matches(name, names, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"it has {', '.join(names)}"
            raise ValueError(f"{config_class.__name__} has no setting {name!r}: {hint}")
    # JSON and YAML give lists; the configs hold tuples, so that they compare and hash.
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in settings.items()}
    return dataclasses.replace(config, **values)


def export_model(model: Network, path: str | Path, info: dict[str, Any], dtype: torch.dtype | None = None) -> None:
    """Write `model` and `info` as one safetensors file, from which `load_model` builds it again; whole or not at all.

    Args:
        info: see Network; it must be fit for JSON, and becomes `model.info`.
        dtype: floating type in the file, such as torch.float16 for half the size; loading gives float32 again.

    Raises:
        ValueError: if a weight is too large for `dtype`, or the network is a fused copy.
        OSError: if the disk is full.
    """
    if model.fused:
        raise ValueError("a fused network can't be exported: export the network that it was made of")
    model.info = dict(info)
    tensors = {}
    for name, tensor in model.state_dict().items():
        kept = tensor.detach().cpu().contiguous()
        if dtype is not None and kept.is_floating_point():
            kept = kept.to(dtype)
            if not torch.equal(kept.isfinite(), tensor.isfinite().cpu()):
                raise ValueError(f"{name} is too large for {dtype}: export {path} in bfloat16 or float32")
        tensors[name] = kept
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata=model.to_metadata())


@overload
def load_model(path: str | Path, device: str | torch.device = ..., expect: None = ...) -> Network: ...
@overload
def load_model(path: str | Path, device: str | torch.device = ..., *, expect: type[N]) -> N: ...
def load_model(path: str | Path, device: str | torch.device = "cpu", expect: type[Network] | None = None) -> Network:
    """Build the network of an exported file, in eval mode, with the file's `info`; the random state is left alone.

    Args:
        expect: class that it must be.

    Raises:
        ValueError: if the file is missing, truncated, not a maxgan model, of a newer version or of another class, or
            its weights don't fit.
    """
    if not Path(path).is_file():
        raise ValueError(f"there is no model file {path}")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            network = _build(path, metadata)
            if expect is not None and not isinstance(network, expect):
                raise ValueError(
                    f"{path} holds a {metadata['class']}, but a {expect.__name__} is needed: name another file"
                )
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(
            f"{path} is no whole safetensors file ({error}): it may be cut short; export or fetch it again"
        ) from error
    _check_tensors(path, network, tensors)
    network.load_state_dict(tensors)
    return network.to(device).eval()


def _build(path: str | Path, metadata: dict[str, str]) -> Network:
    """Return the network that `metadata` describes, with random weights."""
    version = metadata.get("format_version", "")
    if metadata.get("format") != FORMAT or not version.isdecimal():
        raise ValueError(f"{path} is not a maxgan model: its header lacks our metadata")
    if int(version) > FORMAT_VERSION:
        raise ValueError(
            f"{path} has format {version}, but this maxgan reads up to {FORMAT_VERSION}: install a newer maxgan"
        )
    name = metadata.get("class", "")
    if name not in _classes:
        raise ValueError(
            f"{path} holds a {name!r}, which this maxgan doesn't know (it knows {', '.join(sorted(_classes))})"
        )
    network_class = cast(Any, _classes[name])  # each subclass has its own constructor
    try:
        arguments = json.loads(metadata["arguments"])
        settings = arguments.pop("config")
        # Drawing initial weights must not move the random stream of a training run that loads a scorer.
        with torch.random.fork_rng(devices=[]):
            network = network_class(**arguments, **settings)
        network.info = json.loads(metadata["info"])
    except (ValueError, TypeError, KeyError, AttributeError, RuntimeError) as error:
        raise ValueError(f"the header of {path} doesn't describe a {name} ({error}): export it again") from error
    return cast(Network, network)


def _check_tensors(path: str | Path, network: Network, tensors: dict[str, Tensor]) -> None:
    wanted = network.state_dict()
    problems = [f"{name} is missing" for name in wanted if name not in tensors]
    problems += [f"{name} is unknown" for name in tensors if name not in wanted]
    problems += [
        f"{name} is {tuple(tensors[name].shape)} in place of {tuple(tensor.shape)}"
        for name, tensor in wanted.items()
        if name in tensors and tensors[name].shape != tensor.shape
    ]
    if problems:
        more = f"; {len(problems) - 3} more" if len(problems) > 3 else ""
        name = type(network).__name__
        raise ValueError(f"the weights in {path} don't fit a {name} ({'; '.join(problems[:3])}{more}): export it again")
