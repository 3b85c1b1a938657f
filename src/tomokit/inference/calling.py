"""A network as the inferer calls it: in its precision, mirrored, without its last layer, by a backend."""

import itertools
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tomokit.errors import TomokitError
from tomokit.inference.backends import Backends, Sample
from tomokit.inference.heads import find_head, without_head
from tomokit.inference.slabs import Network

# a network's peak, in its largest layer's outputs: a U-Net's skip, what joins it, both again and the sum
ACTIVATIONS = 6


class Probe(NamedTuple):
    """What one window tells of a network.

    Attributes:
        classes: channels of its logits.
        head: the name of its last layer, if that is pointwise and has fewer inputs than outputs; else "".
        features: channels that are kept of each voxel.
        activations: bytes that the network takes for one window, about.
    """

    classes: int
    head: str
    features: int
    activations: int


Probes = weakref.WeakKeyDictionary[nn.Module, Probe]


class NetworkCall:
    """A network with all that one call of an inferer says about it.

    Args:
        network: gives (B, K, X, Y[, Z]).
        given: what else it takes, by place and by name.
        size: of a window, (X, Y, Z) or (X, Y).
        flips: the axes of (B, C, X, Y[, Z]) along which each pass is mirrored.
        dtype: its precision.
        variance: its members' variance is wanted too, as a channel behind the logits.

    Raises:
        TomokitError: when the variance of a network that has no members is wanted.
    """

    def __init__(
        self,
        network: Callable[..., Tensor],
        given: tuple[Sequence[Any], Mapping[str, Any]],
        size: Sequence[int],
        flips: Sequence[tuple[int, ...]],
        dtype: torch.dtype,
        variance: bool,
    ) -> None:
        if variance and not hasattr(network, "with_variance"):
            raise TomokitError(
                f"a map of the variance needs an ensemble of runs, got {type(network).__name__}; join runs with "
                "the layer ensemble.yaml, or take the entropy"
            )
        self.network = network
        self.args, self.kwargs = given
        self.size = tuple(size)
        self.flips = flips
        self.dtype = dtype
        self.variance = variance
        self.probe: Probe | None = None
        call = network.with_variance if variance else network  # type: ignore[attr-defined]
        self.run: Network = lambda windows: call(windows, *self.args, **self.kwargs)

    @property
    def known(self) -> Probe:
        """Return what the first window told."""
        assert self.probe is not None, "the network is looked at first"
        return self.probe

    def look(self, image: Tensor, probes: Probes) -> None:
        """Find out what the network gives for one window of an image (C, X, Y[, Z]), unless `probes` knows it.

        Raises:
            TomokitError: when it gives no logits on its window's grid.
        """
        if isinstance(self.network, nn.Module) and self.network in probes:
            self.probe = probes[self.network]
        else:
            part = image[(slice(None), *(slice(0, edge) for edge in self.size))]
            self.probe = self._probe(_padded(part, self.size)[None])
            if isinstance(self.network, nn.Module):
                probes[self.network] = self.probe
        if self.variance:  # the logits themselves are kept, since the variance is not of features
            self.probe = self.probe._replace(head="", features=self.probe.classes + 1)

    def _probe(self, window: Tensor) -> Probe:
        """Return what the network tells by a window (1, C, X, Y[, Z])."""
        sizes: list[int] = []

        def measure(_module: nn.Module, _given: Any, made: Any) -> None:
            if isinstance(made, Tensor):
                sizes.append(made.nbytes)

        network = self.network
        simple = isinstance(network, nn.Module) and not isinstance(network, torch.jit.ScriptModule)
        hooks = [module.register_forward_hook(measure) for module in network.modules()] if simple else []  # type: ignore[attr-defined]
        try:
            with self._precision(window):
                if simple:
                    output, head = find_head(network, channels_last(window), *self.args, **self.kwargs)  # type: ignore[arg-type]
                else:
                    output, head = network(window, *self.args, **self.kwargs), ""
        finally:
            for hook in hooks:
                hook.remove()
        if not isinstance(output, Tensor) or output.shape[2:] != window.shape[2:]:
            told = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise TomokitError(f"the network must give logits on its window's grid, {tuple(window.shape)}; got {told}")
        classes = output.shape[1]
        features = network.get_submodule(head).weight.shape[1] if head else classes  # type: ignore[attr-defined]
        if features >= classes:
            head, features = "", classes
        kept = [size for size in sizes if not head or size != output.nbytes]  # without its head it makes no such output
        return Probe(classes, head, features, ACTIVATIONS * max(kept or [output.nbytes]))

    def set_up(self, image: Tensor, backends: Backends, batch: int, regions: bool) -> None:
        """Let a backend run the network, if one is wanted; it is compared on windows of an image (C, X, Y[, Z]).

        Raises:
            TomokitError: when a backend was named that can't take the network, or does not agree with PyTorch.
        """
        if backends.name == "torch" or self.variance or not backends.can_take(self.network, self.args, self.kwargs):
            return
        windows = channels_last(_spread_windows(image, self.size, batch))
        with self._headless() as head, self._precision(windows):
            sample = Sample(windows, head, regions, self.dtype)
            self.run = backends.get(self.network, sample) or self.run  # type: ignore[arg-type]

    @contextmanager
    def ready(self, order: Sequence[int]) -> Iterator[tuple[Network, nn.Module | None]]:
        """Give the network on windows whose axes stand in that order, and the last layer that it leaves out."""
        with self._headless() as head:
            yield lambda windows: self._features(windows, order), head

    def _headless(self) -> Any:
        """Return a context in which the network leaves out its last layer, which it gives; None where it has none."""
        head = self.known.head
        return without_head(self.network, head) if head else nullcontext()  # type: ignore[arg-type]

    def _precision(self, image: Tensor) -> Any:
        """Return the context in which the network is called."""
        lower = self.dtype != torch.float32
        # without the cache, which would hold all weights a second time: each is used once in a call
        return torch.autocast(image.device.type, self.dtype, lower, cache_enabled=False)

    def _features(self, windows: Tensor, order: Sequence[int]) -> Tensor:
        """Return the features (B, C, …) of windows (B, C, …), the axes of both in that order; mirrored ones' mean."""
        image = windows.permute(0, 1, *(2 + order.index(axis) for axis in range(3)))
        flat = len(self.size) == 2
        image = channels_last(image[..., 0] if flat else image)
        total: Tensor | None = None
        with self._precision(image):
            for flip in self.flips:
                found = self.run(image.flip(flip) if flip else image)
                found = found.flip(flip) if flip else found
                total = found if total is None else total + found
        assert total is not None
        total = total / len(self.flips) if len(self.flips) > 1 else total
        return (total[..., None] if flat else total).permute(0, 1, *(2 + axis for axis in order))


def channels_last(image: Tensor) -> Tensor:
    """Return (B, C, X, Y[, Z]) in channels-last memory order."""
    order = torch.channels_last_3d if image.ndim == 5 else torch.channels_last
    return image.contiguous(memory_format=order)


def _padded(image: Tensor, size: Sequence[int]) -> Tensor:
    """Return an image (C, X, Y[, Z]), padded with 0 behind its end where it is smaller than a window."""
    pads = [(0, max(0, edge - length)) for edge, length in zip(size, image.shape[1:], strict=True)]
    return nn.functional.pad(image, list(itertools.chain.from_iterable(reversed(pads))))


def _spread_windows(image: Tensor, size: Sequence[int], count: int) -> Tensor:
    """Return windows (B, C, X, Y[, Z]) of an image (C, X, Y[, Z]), spread along its diagonal, away from its corners."""
    image = _padded(image, size)
    windows = [image] * count
    for axis, edge in enumerate(size, 1):
        room = image.shape[axis] - edge
        windows = [window.narrow(axis, room * (place + 1) // (count + 1), edge) for place, window in enumerate(windows)]
    return torch.stack(windows)
