"""What a computation costs: arithmetic, memory traffic, and the activations that autograd keeps."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Self

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten


def _product(a: Tensor, b: Tensor) -> int:
    """Multiply-adds of (batches of) matrix products `(..., n, k) x (..., k, m)`."""
    return a.numel() * b.shape[-1]


def _convolution(out: Tensor, x: Tensor, kernel: Tensor, transposed: bool) -> int:
    """Multiply-adds of a convolution: each weight of the kernel once for each place of the map, groups included."""
    return x.shape[0] * math.prod((x if transposed else out).shape[2:]) * kernel.numel()


# Not torch's FlopCounterMode: it counts the gradient of a grouped convolution's kernel as that of an ungrouped one (up
# to 2.15 at least), a thousand times too much for MBConv, and tells nothing of single operations.
PRODUCTS: dict[Any, Callable[[Any, tuple[Any, ...]], int]] = {
    aten.mm: lambda out, a: _product(a[0], a[1]),
    aten.bmm: lambda out, a: _product(a[0], a[1]),
    aten.addmm: lambda out, a: _product(a[1], a[2]),
    aten.baddbmm: lambda out, a: _product(a[1], a[2]),
    aten.convolution: lambda out, a: _convolution(out, a[0], a[1], a[6]),
    # As many as forward for each of the two gradients, of image and kernel, that is asked for.
    aten.convolution_backward: lambda out, a: sum(a[10][:2]) * _convolution(a[0], a[1], a[2], a[7]),
}


class Cost(TorchDispatchMode):
    """Counts the operations that run while it is entered, on any device, `meta` included.

    Attributes:
        operations: how often an operation of so many multiply-adds (of convolutions and matrix products; else 0) and
            bytes (its tensors read and written once; views move none) ran.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operations: Counter[tuple[int, int]] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        work = PRODUCTS[func.overloadpacket](out, args) if func.overloadpacket in PRODUCTS else 0
        traffic = 0 if _is_view(func) else sum(map(_bytes, _tensors((args, list((kwargs or {}).values()), out))))
        self.operations[work, traffic] += 1
        return out

    @property
    def multiply_adds(self) -> int:
        """All multiply-adds."""
        return sum(work * count for (work, _), count in self.operations.items())

    def traffic(self, products_only: bool = False) -> int:
        """Return the bytes of all operations, or of convolutions and matrix products alone: what would be left if all
        others were fused into them."""
        return sum(b * count for (work, b), count in self.operations.items() if work or not products_only)

    def seconds(self, rate: float, bandwidth: float) -> float:
        """Return the time of all operations, each at the slower of `rate` multiply-adds and `bandwidth` bytes a
        second."""
        return sum(max(work / rate, b / bandwidth) * count for (work, b), count in self.operations.items())


def _is_view(func: Any) -> bool:
    """Return whether an operation gives its argument's memory another shape, and moves nothing."""
    if func.overloadpacket is aten._unsafe_view:
        return True
    aliases = [returned.alias_info for returned in func._schema.returns]
    return bool(aliases) and all(alias is not None and not alias.is_write for alias in aliases)


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _tensors(part)


def _bytes(tensor: Tensor) -> int:
    return min(tensor.nbytes, tensor.untyped_storage().nbytes())  # an expanded tensor is smaller than it looks


class Kept(saved_tensors_hooks):
    """Counts the bytes that autograd keeps for backward passes while it is entered; memory that is shared counts once.

    Args:
        free: tensors that are there anyway, such as parameters, and don't count.

    Attributes:
        now: bytes that are kept.
        peak: the most of them so far.
    """

    def __init__(self, free: Iterable[Tensor] = ()) -> None:
        super().__init__(lambda tensor: _Handle(tensor, self), lambda handle: handle.tensor)
        self.now = self.peak = 0
        # A storage is one Python object as long as that lives.
        self._free = {id(storage): storage for storage in (tensor.untyped_storage() for tensor in free)}
        self._users: Counter[int] = Counter()

    def __enter__(self) -> Self:  # type: ignore[override]  # torch's returns nothing
        super().__enter__()
        return self

    def add(self, storage: torch.UntypedStorage) -> None:
        """Note one more user of some memory."""
        if id(storage) not in self._free:
            self._users[id(storage)] += 1
            if self._users[id(storage)] == 1:
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)

    def drop(self, storage: torch.UntypedStorage) -> None:
        """Note one user less."""
        if id(storage) not in self._free:
            self._users[id(storage)] -= 1
            if not self._users[id(storage)]:
                self.now -= storage.nbytes()


class _Handle:
    """What autograd holds in place of a tensor, and lets go when it needs it no more."""

    def __init__(self, tensor: Tensor, kept: Kept) -> None:
        # Detached, since a result that is kept for its own derivative would hold that, and that the handle, for ever.
        self.tensor, self.storage, self.kept = tensor.detach(), tensor.untyped_storage(), kept
        kept.add(self.storage)

    def __del__(self) -> None:
        self.kept.drop(self.storage)
