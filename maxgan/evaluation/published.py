"""Weights that others publish: where their files are looked for, their checksums, and what to do without a network."""

from __future__ import annotations

import hashlib
import io
import warnings
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

import torch
from filelock import FileLock
from torch import nn


@dataclass(frozen=True)
class WeightFile:
    """One published file of weights."""

    name: str
    """Name of the file."""
    url: str
    """Where it, or what it is made from, is published."""
    sha256: str | None
    """In hexadecimal; unset where the file is made by its user, so that it has no published checksum."""
    also_in: str | None = None
    """Folder that another tool keeps it in, beside torch.hub's."""
    howto: str | None = None
    """How the file is made from what `url` publishes; unset: it is downloaded as it is."""


PORT_2015 = WeightFile(
    "weights-inception-2015-12-05-6726825d.pth",
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth",
    "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
)
TORCHSCRIPT_2015 = WeightFile(
    "inception-2015-12-05.pt",
    "https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/inception-2015-12-05.pt",
    "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4",
    also_in="/tmp",
)
KERAS = WeightFile(
    "inception_v3_weights_tf_dim_ordering_tf_kernels.npz",
    "https://storage.googleapis.com/tensorflow/keras-applications/inception_v3/"
    "inception_v3_weights_tf_dim_ordering_tf_kernels.h5",
    None,
    howto="made of it by the command at the head of maxgan/evaluation/inception.py",
)


def find_weights(file: WeightFile, path: str | Path | None = None, trust: bool = False) -> tuple[Path, str]:
    """Return the path and the SHA-256 of a published file, downloaded if it is in none of the usual places.

    Args:
        file: what is looked for.
        path: where it is; unset: torch.hub's folder of checkpoints, then `file.also_in`.
        trust: take a file at `path` that is another than the published.

    Raises:
        ValueError: if there is no such file and it can't be downloaded, which says what to put where, or its checksum
            is another than the published.
    """
    if path is not None:
        found = Path(path).expanduser()
        if not found.is_file():
            raise ValueError(f"there is no weight file {found}: fetch {file.url}{_made(file)} and name it")
    else:
        if trust:
            raise ValueError("trust_weights is for a file that you name: set weights")
        found = _usual(file) or _download(file)
    digest = sha256_of(found)
    if file.sha256 not in (None, digest) and not trust:
        raise ValueError(
            f"{found} has the SHA-256 {digest[:12]}..., and the published {file.name} has {str(file.sha256)[:12]}...: "
            f"fetch {file.url} again, or set trust_weights if they are weights of your own"
        )
    return found, digest


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def weights_digest(model: nn.Module) -> str:
    """Return the SHA-256 of the names, shapes and values of a model's weights."""
    sha = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        sha.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        sha.update(tensor.cpu().contiguous().numpy().tobytes())
    return sha.hexdigest()


def load_torchscript(path: Path, digest: str) -> nn.Module:
    """Load the archive of a network, which runs the code in it.

    Args:
        path, digest: as `find_weights` returned them.

    Raises:
        ValueError: if it is none, or is no longer the file that was checked.
    """
    # What is checked is what is loaded: the file may lie in a folder that everyone writes to.
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != digest:
        raise ValueError(f"{path} has changed since its checksum was taken: fetch it again")
    try:
        with warnings.catch_warnings():
            # PyTorch advises another format, which whoever fetches this file can't choose.
            warnings.filterwarnings("ignore", "`torch.jit.load` is deprecated")
            archive: nn.Module = torch.jit.load(io.BytesIO(content), map_location="cpu")
    except RuntimeError as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path} is no TorchScript archive that can be read ({reason}): fetch it again") from error
    return archive


def _usual(file: WeightFile) -> Path | None:
    folders = [_hub(), *([Path(file.also_in)] if file.also_in else [])]
    return next((folder / file.name for folder in folders if (folder / file.name).is_file()), None)


def _download(file: WeightFile) -> Path:
    path = _hub() / file.name
    if file.howto is not None:
        raise ValueError(f"{file.name} is missing: fetch {file.url} and put the .npz{_made(file)} at {path}")
    assert file.sha256 is not None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Of several processes one downloads; the others wait, and find what it has brought.
        with FileLock(path.with_name(f"{path.name}.lock")):
            if not path.is_file():
                # It comes under a temporary name, which it loses once its checksum has been found right.
                torch.hub.download_url_to_file(file.url, str(path), file.sha256)
    except (OSError, RuntimeError, HTTPException) as error:
        raise ValueError(f"{file.name} can't be downloaded ({error}): fetch {file.url} and put it at {path}") from error
    return path


def _hub() -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints"


def _made(file: WeightFile) -> str:
    return f", {file.howto}," if file.howto else ""
