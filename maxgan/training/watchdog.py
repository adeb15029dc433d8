"""Numbers that are not finite, found without waiting for the device at every update."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from accelerate import Accelerator
from torch import Tensor, nn

NEVER = 1 << 62
PENALTIES = ("r1", "r2")


class NotFinite(ValueError):
    """A number became infinite or NaN, and so will all that is computed from it."""


class Watchdog:
    """Remembers at which update each metric and each gradient was first not finite, and refuses to go on from there.

    The memory is on the device: an update adds to it without waiting, and `check` reads it where the process waits in
    any case. By then the weights are spoilt and tell nothing: the gradients had to be looked at before the step.

    Args:
        accelerator: of this process.
        networks: not wrapped, by name.
        optimizers: whose states are checked before they are saved.
        batch_size: images of one update.

    Attributes:
        norms: of the gradients looked at last, over all parameters of a network, by `gradient_norm_NETWORK`; with a
            loss scale 0 where an update is left out.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        networks: Mapping[str, nn.Module],
        optimizers: Mapping[str, torch.optim.Optimizer],
        batch_size: int,
    ) -> None:
        self.accelerator = accelerator
        self.networks, self.optimizers = networks, optimizers
        self.batch_size = batch_size
        self._parameters = {
            name: {f"{name}.{key}": parameter for key, parameter in network.named_parameters()}
            for name, network in networks.items()
        }
        self._metrics: dict[tuple[str, ...], Tensor] = {}
        self._gradients: dict[tuple[str, ...], Tensor] = {}
        self.norms: dict[str, Tensor] = {}

    def watch_gradients(self, network: str, update: int) -> None:
        """Look at the gradients of a network, after the backward pass and before its optimiser's step."""
        # A norm is not finite if and only if a number in it isn't, or its square is out of range, as it is in Adam.
        norms = {
            name: torch.linalg.vector_norm(p.grad)
            for name, p in self._parameters[network].items()
            if p.grad is not None
        }
        total = torch.linalg.vector_norm(torch.stack(list(norms.values())))
        scale = self._loss_scale()
        if scale is not None:
            total = torch.where(total.isfinite(), total / scale, 0.0)
        self.norms[f"gradient_norm_{network}"] = total
        if scale is None or scale < 1:
            _note(self._gradients, norms, update)

    def watch_metrics(self, values: dict[str, Tensor], update: int) -> dict[str, Tensor]:
        """Look at the scalars of an update, and return them; with a loss scale, a penalty that left its range is 0.

        The gradient that an exact penalty is taken from is scaled too, and overflows first: see `watch_gradients`.
        """
        scale = self._loss_scale()
        if scale is not None and scale >= 1:
            penalties = {name: values[name] for name in PENALTIES if name in values}
            values = values | {name: torch.where(v.isfinite(), v, 0.0) for name, v in penalties.items()}
        _note(self._metrics, values, update)
        return values

    def _loss_scale(self) -> float | None:
        """Return the loss scale, which waits for the device; None without one.

        A scaler tries out how much float16 can bear, and leaves out an update that was too much. Only where there is
        nothing left to scale down, below 1, is the number itself to blame.
        """
        return None if self.accelerator.scaler is None else self.accelerator.scaler.get_scale()

    def check(self) -> None:
        """Raise NotFinite, on every process alike, if a metric or a gradient has not been finite on any; all call it.

        The message names the update, the first metric and the first parameter, in the order in which they were watched.
        """
        metrics, gradients = self._read(self._metrics), self._read(self._gradients)
        first = min([*metrics.values(), *gradients.values()], default=NEVER)
        if first == NEVER:
            return
        terms = [name for name, update in metrics.items() if update == first]
        parameters = [name for name, update in gradients.items() if update == first]
        found = terms[:1]
        if parameters:
            more = f" (and {len(parameters) - 1} more, the last {parameters[-1]})" if len(parameters) > 1 else ""
            found.append(f"the gradient of {parameters[0]}{more}")
        raise NotFinite(
            f"at update {first + 1}, images {first * self.batch_size} to {(first + 1) * self.batch_size}, "
            f"{' and '.join(found)} became infinite or NaN: the run stops and its checkpoints stay as they were; lower "
            "the learning rate, strengthen the regularisation, or let it go back with --watchdog.rollback 1"
        )

    def check_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Raise NotFinite, on every process alike, if weights, optimisers or further tensors hold such a number.

        A square or a sum within the optimiser can leave the range of numbers although every gradient was finite.
        """
        state = dict(tensors)
        names: dict[Tensor, str] = {}
        for name, network in self.networks.items():
            state |= {f"{name}.{key}": tensor for key, tensor in network.state_dict().items()}
            names |= {parameter: key for key, parameter in self._parameters[name].items()}
        for optimizer in self.optimizers.values():
            for parameter, entry in optimizer.state.items():
                state |= {f"{key} of {names[parameter]}": t for key, t in entry.items() if isinstance(t, Tensor)}
        device = self.accelerator.device
        found: dict[tuple[str, ...], Tensor] = {}
        flags = {
            name: torch.where(tensor.isfinite().all(), 0.0, torch.nan).to(device)
            for name, tensor in state.items()
            if tensor.is_floating_point()
        }
        _note(found, flags, 0)
        spoilt = [name for name, update in self._read(found).items() if update < NEVER]
        if spoilt:
            raise NotFinite(
                f"{spoilt[0]} holds numbers that are infinite or NaN, though no gradient was: the run stops and its "
                "checkpoints stay as they were; lower the learning rate or strengthen the regularisation"
            )

    def forget(self) -> None:
        """Start anew, from weights that are finite."""
        self._metrics, self._gradients = {}, {}

    def _read(self, found: dict[tuple[str, ...], Tensor]) -> dict[str, int]:
        """Return the first update by name, over all processes."""
        if not found:
            return {}
        first = torch.cat(list(found.values()))
        if self.accelerator.num_processes > 1:
            first = self.accelerator.gather(first[None]).amin(0)
        merged: dict[str, int] = {}
        for name, update in zip((name for names in found for name in names), first.tolist(), strict=True):
            merged[name] = min(update, merged.get(name, NEVER))
        return merged


def _note(found: dict[tuple[str, ...], Tensor], values: dict[str, Tensor], update: int) -> None:
    finite = torch.stack(list(values.values())).isfinite()
    names = tuple(values)  # lazy penalties come and go
    if names not in found:
        found[names] = torch.full_like(finite, NEVER, dtype=torch.int64)
    found[names] = torch.where(finite, found[names], found[names].clamp(max=update))
