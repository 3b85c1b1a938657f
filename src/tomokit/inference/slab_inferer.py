"""Whole volumes through a network in bounded memory: a slab at a time, reduced to labels as it is finished."""

import itertools
import logging
import math
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from monai.data import MetaTensor
from monai.data.utils import collate_meta_tensor
from monai.inferers import Inferer
from numpy.typing import NDArray
from torch import Tensor, nn

from tomokit.errors import TomokitError
from tomokit.geometry import spacing_from_affine
from tomokit.inference.backends import BACKENDS, Backends, Sample
from tomokit.inference.boxes import Box, find_body, grow, whole_box
from tomokit.inference.grids import Axis, relate_grids, same_grid, stretches
from tomokit.inference.heads import apply_head, find_head, without_head
from tomokit.inference.reducing import EDGE, ENTROPY, BlockReducer, Map, label_dtype
from tomokit.inference.slabs import Finished, Network, sum_slabs
from tomokit.inference.windows import Windows, place_windows
from tomokit.memory import free_memory
from tomokit.regions import region_values

logger = logging.getLogger(__name__)

REDUCE = ("logits", "probabilities", "labels")
GRIDS = ("network", "source")
INTERPOLATION = ("linear", "nearest")
SHARE = 0.7  # of the free memory that may be planned for
ACTIVATIONS = (
    6  # a network's peak, in its largest layer's outputs: a U-Net's skip, what joins it, both again and the sum
)
TOLD_SECONDS = 15.0  # between lines that say how far a volume is
TOLD_WINDOWS = 8  # volumes of more windows take long enough to say what is ahead
FULL_MEMORY = ("can't allocate memory", "not enough memory", "out of memory")


class Probe(NamedTuple):
    """What one window tells of a network.

    Attributes:
        classes: channels of its output.
        head: the name of its last layer, if that is pointwise and has fewer inputs than outputs; else "".
        features: channels that are kept of each voxel.
        activations: bytes that the network takes for one window, about.
    """

    classes: int
    head: str
    features: int
    activations: int


class Field(NamedTuple):
    """A volume's part that is looked at, with the slab's axis first.

    Attributes:
        image: (C, first, second, third), padded to the window where it is smaller.
        nodes: of each axis, the first and the last voxel that is no padding, in `image`.
        places: of each axis, where the wanted grid's voxels lie, in voxels of `image`.
        order: the network's axis that each axis of `image` is.
        windows: where the windows lie in `image`.
    """

    image: Tensor
    nodes: tuple[tuple[int, int], ...]
    places: tuple[NDArray[np.float64], ...]
    order: tuple[int, ...]
    windows: Windows


class SlabInferer(Inferer):
    """Slides a window over whole volumes; gives labels without ever holding classes × volume.

    Windows are evenly spaced and ordered along one axis. A slab to which no window adds any more is normalised, put
    through the network's last layer, brought to the wanted grid, and reduced to labels, in blocks in which only the
    classes that can win are interpolated. The memory does not grow with the length of the volume; where it is short,
    the slab is cut into strips. Beside MONAI's `SlidingWindowInferer`, labels are those of the interpolated logits.

    Args:
        roi_size: (X, Y, Z) of a window in voxels; smaller volumes are padded with 0, as MONAI does.
        overlap: of neighbouring windows, at least, as part of their edge.
        mode: what a window's voxels weigh: "gaussian" or "constant".
        reduce: "labels" gives (B, 1, X, Y, Z) uint8 (int32 beyond 255 labels); "logits" and "probabilities" give
            (B, K, X, Y, Z) float32 on the network's grid.
        grid: of labels: "network", or "source", the grid of the image's file.
        interpolation: of logits to the source's grid: "linear", or "nearest" (fast).
        sw_batch_size: windows that the network gets at once.
        mirror_axes: axes of (X, Y, Z) along which each window is also seen mirrored; n axes cost 2^n passes.
        body_crop: look only at the box that holds the body, grown where a structure touches its face; the rest is
            background. Only for labels.
        regions: `{name: [labels], …}` where channels are regions that may overlap; each paints its label.
        maps: `{name: channel, …}`: probabilities to keep beside the labels, or "entropy" for the channel: how uncertain
            the labels are, from 0 to 1. After a call, the attribute `found_maps` has each, (1, X, Y, Z) uint8 in steps
            of 1/255 on the labels' grid. A volume at a time.
        dtype: the network's precision: `torch.bfloat16`, `torch.float16`, or `torch.float32`.
        backend: what runs the network: "torch", "compile", "onnx", "openvino", or "auto", the fastest of them here on a
            few of the first volume's windows. It must agree with PyTorch on these (`choose_backend`).

    Raises:
        TomokitError: when an option is none of these, or options exclude each other.
    """

    def __init__(
        self,
        roi_size: Sequence[int],
        overlap: float = 0.5,
        mode: str = "gaussian",
        reduce: str = "labels",
        grid: str = "network",
        interpolation: str = "linear",
        sw_batch_size: int = 1,
        mirror_axes: Sequence[int] = (),
        body_crop: bool = False,
        regions: Mapping[str, Sequence[int]] | None = None,
        maps: Mapping[str, int | str] | None = None,
        dtype: torch.dtype = torch.float32,
        backend: str = "torch",
    ) -> None:
        super().__init__()
        _check_options(reduce, grid, interpolation, backend)
        self.roi_size = tuple(int(edge) for edge in roi_size)
        self.overlap = overlap
        self.mode = mode
        self.reduce = reduce
        self.grid = grid
        self.nearest = interpolation == "nearest"
        self.batch = sw_batch_size
        axes = [2 + axis for axis in mirror_axes]
        self.flips = [flip for count in range(len(axes) + 1) for flip in itertools.combinations(axes, count)]
        self.body_crop = body_crop
        self.regions = regions
        self.maps = dict(maps or {})
        self.found_maps: dict[str, Tensor] = {}
        self.dtype = dtype
        self._backends = Backends(backend)
        self._probes: weakref.WeakKeyDictionary[nn.Module, Probe] = weakref.WeakKeyDictionary()

    def __call__(self, inputs: Tensor, network: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        """Return what `reduce` says of volumes (B, C, X, Y, Z), or images (B, C, X, Y).

        Of a `MetaTensor` it is one too, with the affine of its grid.

        Raises:
            TomokitError: when the source's grid is wanted of a plain tensor, grids are turned against each other, the
                memory does not suffice, or the backend is not installed, can't take the network, or does not agree.
        """
        if self.maps and len(inputs) > 1:
            raise TomokitError(f"`maps` are of one volume at a time, got {len(inputs)}: set `batch_size: 1`")
        call = _Call(self, network, args, kwargs)
        try:
            with torch.no_grad():
                found = [self._volume(inputs, number, call) for number in range(len(inputs))]
        except (RuntimeError, MemoryError) as error:
            if isinstance(error, MemoryError) or any(text in str(error) for text in FULL_MEMORY):
                raise TomokitError(_too_little(self.roi_size)) from error
            raise
        if isinstance(found[0], MetaTensor):
            return collate_meta_tensor(found)
        return torch.stack(found)

    def _volume(self, inputs: Tensor, number: int, call: "_Call") -> Tensor:
        """Return the result (1 or K, X, Y, Z) of one volume of a batch."""
        image = (inputs.as_tensor() if isinstance(inputs, MetaTensor) else inputs)[number]
        if call.probe is None:
            call.look(image, self._probes)
            call.set_up(image, self._backends)
        if self.reduce != "labels":
            return _placed(self._scores(image, call), inputs, _affine(inputs, number))
        return self._label_map(inputs, image, number, call)

    # ---------------------------------------------------------------------------------------------- labels

    def _label_map(self, inputs: Tensor, image: Tensor, number: int, call: "_Call") -> Tensor:
        """Return a volume's labels (1, X, Y, Z) on the wanted grid."""
        shape, affine, axes = self._wanted_grid(inputs, number)
        values = region_values(self.regions) if self.regions else list(range(call.known.classes))
        _check_maps(self.maps, call.known.classes)
        spacing = spacing_from_affine(_affine(inputs, number)) if isinstance(inputs, MetaTensor) else (1.0,) * 3
        box = find_body(image, spacing) if self.body_crop else whole_box(image.shape[1:])
        while True:
            out = torch.zeros(shape, dtype=label_dtype(values))
            maps = {name: Map(of, torch.zeros(shape, dtype=torch.uint8)) for name, of in self.maps.items()}
            self._fill((out, list(maps.values())), image, box, axes, values, call, _file_name(inputs, number))
            grown = grow(box, _inside(out, box, axes), image.shape[1:], spacing)
            if grown == box:
                break
            logger.info("a structure reaches the body box's face: looking at %s, not %s", grown, box)
            box = grown
        self.found_maps = {name: _placed(found.out[None], inputs, affine) for name, found in maps.items()}
        return _placed(out[None], inputs, affine)

    def _wanted_grid(self, inputs: Tensor, number: int) -> tuple[tuple[int, ...], NDArray[Any], tuple[Axis, ...]]:
        """Return shape and affine of the wanted grid, and how it lies along the network's."""
        own = tuple(inputs.shape[2:])
        if self.grid == "network":
            return own, _affine(inputs, number), same_grid(own)
        if not isinstance(inputs, MetaTensor) or "original_affine" not in inputs.meta:
            raise TomokitError("`grid: source` needs images as LoadImaged gives them, with the affine of their file")
        source = np.asarray(inputs.meta["original_affine"], float).reshape(-1, 4, 4)[number]
        shape = np.asarray(inputs.meta["spatial_shape"]).reshape(-1, len(own) if len(own) == 3 else 2)[number]
        shape = tuple(int(length) for length in shape)
        return shape, source, relate_grids(own, _affine(inputs, number), shape, source)

    def _fill(
        self,
        results: tuple[Tensor, list[Map]],
        image: Tensor,
        box: Box,
        axes: Sequence[Axis],
        values: Sequence[int],
        call: "_Call",
        name: str,
    ) -> None:
        """Write the labels of what lies in a box of the volume, and the maps, on the wanted grid.

        `results` are the label map (X, Y, Z) and the maps; `name` is the file's, for what is told before it starts.
        """
        out, maps = results
        field = self._field(image, box, axes)
        strips = self._strips(field, call.known, out)
        if self.grid == "source" and field.windows.number > TOLD_WINDOWS:
            logger.info("%s: %s", name, self._outlook(field, strips, call.known, box, image.shape[1:], out))
        sources = [axis.source for axis in axes] + [2] * (3 - len(axes))
        order = [field.order.index(sources.index(source)) for source in range(3)]
        flat = out.ndim == 2
        maps = [Map(found.of, found.out[..., None] if flat else found.out) for found in maps]
        reducer = BlockReducer(values, bool(self.regions), order, out[..., None] if flat else out, maps)
        total, done, told = len(strips) * len(field.windows.starts[0]), 0, time.monotonic()
        with call.ready(field.order) as (network, head):
            for number, strip in enumerate(strips):
                wanted = (strip[0], strip[1] + 1)
                slabs = sum_slabs(field.image, network, call.known.features, field.windows, wanted, self.batch)
                for slab in slabs:
                    _reduce_slab(slab, field, strip, number == 0, head, reducer, self.nearest)
                    done += 1
                    if self.grid == "source" and time.monotonic() - told > TOLD_SECONDS:
                        told = time.monotonic()
                        logger.info("%s: slab %d of %d", name, done, total)

    def _field(self, image: Tensor, box: Box, axes: Sequence[Axis]) -> Field:
        """Return the part of a volume (C, X, Y[, Z]) in a box, the slab's axis first; an image gets an axis of one."""
        size, places = self.roi_size, [axis.places for axis in axes]
        image = image[(slice(None), *(slice(*part) for part in box))]
        if image.ndim == 3:
            image, size, places = image[..., None], (*size, 1), [*places, np.zeros(1)]
            box = (*box, (0, 1))
        short = [max(0, edge - length) for edge, length in zip(size, image.shape[1:], strict=True)]
        pads = [(lack // 2, lack - lack // 2) for lack in short]
        nodes = [(before, before + high - low - 1) for (before, _), (low, high) in zip(pads, box, strict=True)]
        moved = [place - low + before for place, (low, _), (before, _) in zip(places, box, pads, strict=True)]
        image = nn.functional.pad(image, list(itertools.chain.from_iterable(reversed(pads)))) if any(short) else image
        lengths = image.shape[1:]
        first = min(range(3), key=lambda axis: size[axis] / lengths[axis])  # the slab takes least memory along it
        order = (first, *(axis for axis in range(3) if axis != first))
        windows = place_windows(
            [lengths[axis] for axis in order], [size[axis] for axis in order], self.overlap, self.mode
        )
        image = image.permute(0, *(1 + axis for axis in order))
        return Field(image, _ordered(nodes, order), _ordered(moved, order), order, windows)

    # ----------------------------------------------------------------------------------------------- memory

    def _strips(self, field: Field, probe: Probe, out: Tensor) -> list[tuple[int, int]]:
        """Return the strips, first and last node along the second axis, whose slabs fit into the free memory.

        Raises:
            TomokitError: when not even the narrowest strip fits.
        """
        low, high = field.nodes[1]
        free = SHARE * (free_memory() if field.image.device.type == "cpu" else torch.cuda.mem_get_info()[0])
        count = 1
        while _slab_bytes(field, probe, math.ceil((high - low) / count)) + probe.activations * self.batch > free:
            count *= 2
            if (high - low) / count < EDGE:
                raise TomokitError(_too_little(self.roi_size))
        edges = [low + (high - low) * number // count for number in range(count + 1)]
        return list(itertools.pairwise(edges))

    def _outlook(
        self, field: Field, strips: Sequence[tuple[int, int]], probe: Probe, box: Box, shape: Sequence[int], out: Tensor
    ) -> str:
        """Return a line that says what is ahead: windows, the part of the volume, and memory."""
        size = "×".join(map(str, self.roi_size))
        part = math.prod(high - low for low, high in box) / math.prod(shape)
        slab = _slab_bytes(field, probe, max(high - low for low, high in strips))
        need = slab + probe.activations * self.batch + out.nbytes
        cut = f" in {len(strips)} strips" if len(strips) > 1 else ""
        passes = f" × {len(self.flips)} mirrored" if len(self.flips) > 1 else ""
        return (
            f"{field.windows.number} windows of {size}{passes}{cut}, {part:.0%} of the volume; "
            f"about {need / 1e9:.2g} GB beside the image: {slab / 1e9:.2g} of windows' sums, "
            f"{probe.activations * self.batch / 1e9:.2g} in the network, {out.nbytes / 1e9:.2g} of labels"
        )

    # ----------------------------------------------------------------------------------------------- scores

    def _scores(self, image: Tensor, call: "_Call") -> Tensor:
        """Return the logits or probabilities (K, X, Y[, Z]) of a volume on the network's grid."""
        shape = tuple(image.shape[1:])
        field = self._field(image, whole_box(shape), same_grid(shape))
        lengths = [high - low + 1 for low, high in field.nodes]
        out = torch.empty((call.known.classes, *lengths), device=image.device)
        strip = (field.nodes[1][0], field.nodes[1][1] + 1)
        with call.ready(field.order) as (network, head):
            for slab in sum_slabs(field.image, network, call.known.features, field.windows, strip, self.batch):
                low, high = _slab_nodes(slab, field)
                for node in range(low, high + 1):
                    third = (field.nodes[2][0], field.nodes[2][1] + 1)
                    logits = _logits(slab, field, (node, node + 1), (strip, strip[0]), third, head)
                    out[:, node - field.nodes[0][0]] = logits[:, 0]
        back = [1 + field.order.index(axis) for axis in range(3)]
        scores = out.permute(0, *back).reshape(-1, *shape)
        if self.reduce == "logits":
            return scores
        return scores.sigmoid_() if self.regions else scores.softmax(0)


class _Call:
    """A network as one call of the inferer uses it: in its precision, mirrored, with or without its last layer.

    Args:
        inferer: whose options count.
        network: gives (B, K, X, Y[, Z]).
        args, kwargs: what else the network takes.
    """

    def __init__(self, inferer: SlabInferer, network: Callable[..., Tensor], args: Any, kwargs: Any) -> None:
        self.inferer = inferer
        self.network = network
        self.args = args
        self.kwargs = kwargs
        self.probe: Probe | None = None
        self.run: Network = lambda windows: network(windows, *args, **kwargs)

    @property
    def known(self) -> Probe:
        """Return what the first window told."""
        assert self.probe is not None, "the network is looked at first"
        return self.probe

    def look(self, image: Tensor, probes: "weakref.WeakKeyDictionary[nn.Module, Probe]") -> None:
        """Find out what the network gives for one window of an image (C, X, Y[, Z]), unless `probes` knows it."""
        if isinstance(self.network, nn.Module) and self.network in probes:
            self.probe = probes[self.network]
            return
        size = self.inferer.roi_size
        part = image[(slice(None), *(slice(0, edge) for edge in size))]
        lacks = [(0, edge - length) for edge, length in zip(size, part.shape[1:], strict=True)]
        self.probe = self._probe(nn.functional.pad(part, list(itertools.chain.from_iterable(reversed(lacks))))[None])
        if isinstance(self.network, nn.Module):
            probes[self.network] = self.probe

    def _probe(self, window: Tensor) -> Probe:
        """Return what the network tells by a window (1, C, X, Y[, Z])."""
        sizes: list[int] = []

        def measure(_module: nn.Module, _given: Any, made: Any) -> None:
            if isinstance(made, Tensor):
                sizes.append(made.nbytes)

        network = self.network
        simple = isinstance(network, nn.Module) and not isinstance(network, torch.jit.ScriptModule)
        hooks = [module.register_forward_hook(measure) for module in network.modules()] if simple else []  # type: ignore[attr-defined]
        with self._precision(window):
            if simple:
                output, head = find_head(network, _channels_last(window), *self.args, **self.kwargs)  # type: ignore[arg-type]
            else:
                output, head = network(window, *self.args, **self.kwargs), ""
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

    def set_up(self, image: Tensor, backends: Backends) -> None:
        """Let a backend run the network, if one is wanted; it is compared on windows of an image (C, X, Y[, Z])."""
        if backends.name == "torch" or not backends.can_take(self.network, self.args, self.kwargs):
            return
        windows = _channels_last(_spread_windows(image, self.inferer.roi_size, self.inferer.batch))
        with self._headless() as head, self._precision(windows):
            sample = Sample(windows, head, bool(self.inferer.regions), self.inferer.dtype)
            self.run = backends.get(self.network, sample) or self.run  # type: ignore[arg-type]

    def _headless(self) -> Any:
        """Return a context in which the network leaves out its last layer, which it gives; None where it has none."""
        head = self.known.head
        return without_head(self.network, head) if head else nullcontext()  # type: ignore[arg-type]

    def _precision(self, image: Tensor) -> Any:
        """Return the context in which the network is called."""
        dtype = self.inferer.dtype
        return torch.autocast(image.device.type, dtype, enabled=dtype != torch.float32)

    def ready(self, order: Sequence[int]) -> "_Ready":
        """Return a context that gives the network on windows whose axes stand in that order, and its last layer."""
        return _Ready(self, order)


class _Ready:
    """The context of `_Call.ready`."""

    def __init__(self, call: _Call, order: Sequence[int]) -> None:
        self.call = call
        self.forth = [2 + order.index(axis) for axis in range(3)]
        self.back = [2 + axis for axis in order]
        self.context = call._headless()

    def __enter__(self) -> tuple[Network, nn.Module | None]:
        return self._features, self.context.__enter__()

    def __exit__(self, *raised: Any) -> None:
        self.context.__exit__(*raised)

    def _features(self, windows: Tensor) -> Tensor:
        """Return the features (B, C, …) of windows (B, C, …), both in the order of the field's axes."""
        call = self.call
        image = windows.permute(0, 1, *self.forth)
        flat = len(call.inferer.roi_size) == 2
        image = _channels_last(image[..., 0] if flat else image)
        total: Tensor | None = None
        with call._precision(image):
            for flip in call.inferer.flips:
                found = call.run(image.flip(flip) if flip else image)
                found = found.flip(flip) if flip else found
                total = found if total is None else total + found
        assert total is not None
        total = total / len(call.inferer.flips) if len(call.inferer.flips) > 1 else total
        return (total[..., None] if flat else total).permute(0, 1, *self.back)


# --------------------------------------------------------------------------------------------- parts of a slab


def _reduce_slab(
    slab: Finished,
    field: Field,
    strip: tuple[int, int],
    first_strip: bool,
    head: nn.Module | None,
    reducer: BlockReducer,
    nearest: bool,
) -> None:
    """Write the labels of a finished slab, bar by bar along the third axis."""
    low, high = _slab_nodes(slab, field)
    if high < low or (high == low and slab.carried and low == slab.first):
        return
    fresh = not (slab.carried and low == slab.first)
    third = field.nodes[2]
    along = stretches(field.places[2], *third, EDGE, nearest, True)
    if not along:
        return
    for one in stretches(field.places[0], low, high, EDGE, nearest, fresh):
        for two in stretches(field.places[1], *strip, EDGE, nearest, first_strip):
            logits = _logits(slab, field, one.nodes, (two.nodes, strip[0]), (third[0], third[1] + 1), head)
            reducer.reduce_bar(logits, (one, two), along, third[0])


def _slab_nodes(slab: Finished, field: Field) -> tuple[int, int]:
    """Return the first and the last node of a finished slab that is no padding."""
    low, high = field.nodes[0]
    return max(low, slab.first), min(high, slab.first + len(slab.sums) - 1)


def _logits(
    slab: Finished,
    field: Field,
    first: tuple[int, int],
    second: tuple[tuple[int, int], int],
    third: tuple[int, int],
    head: nn.Module | None,
) -> Tensor:
    """Return the logits (K, first, second, third) of a finished slab's part, float32.

    `first`, `second` and `third` are nodes and one behind the last; with `second` stands the strip's first node.
    """
    (low, high), start = second
    parts = slice(first[0] - slab.first, first[1] - slab.first), slice(low - start, high - start), slice(*third)
    totals = [field.windows.total_weights(axis) for axis in range(3)]
    nodes = (first, (low, high), third)
    one, two, three = (1 / total[slice(*pair)] for total, pair in zip(totals, nodes, strict=True))
    scale = (one[:, None, None] * two[:, None] * three).to(slab.sums.device)
    features = slab.sums[parts] * scale[..., None]
    return apply_head(head, features) if head is not None else features.movedim(-1, 0).contiguous()


def _slab_bytes(field: Field, probe: Probe, second: int) -> int:
    """Return the bytes of a slab whose second axis has so many cells, with its bars' logits."""
    depth, third = field.windows.size[0] + 1, field.image.shape[3]
    bars = (2 * probe.features + 3 * probe.classes) * (EDGE + 1) ** 2 * third
    return 4 * (probe.features * depth * (second + 1) * third + bars)


def _inside(out: Tensor, box: Box, axes: Sequence[Axis]) -> Tensor:
    """Return the labels that lie in a box, in the order of the network's axes: a view of `out`."""
    order = [axis.source for axis in axes]
    view = out.permute(order)
    for number, (axis, (low, high)) in enumerate(zip(axes, box, strict=True)):
        voxels = np.flatnonzero((axis.places >= low) & (axis.places <= high - 1))
        if not len(voxels):
            return view[:0]
        view = view.narrow(number, int(voxels[0]), len(voxels))
        if axis.places[0] > axis.places[-1]:
            view = view.flip(number)
    return view


def _affine(inputs: Tensor, number: int) -> NDArray[np.float64]:
    """Return the affine (4, 4) of a volume of a batch; the identity where none is known."""
    if not isinstance(inputs, MetaTensor):
        return np.eye(4)
    return np.asarray(inputs.affine.cpu(), float).reshape(-1, 4, 4)[number]


def _file_name(inputs: Tensor, number: int) -> str:
    """Return the name of the file that a volume of a batch is from, for a message."""
    names = inputs.meta.get("filename_or_obj", "") if isinstance(inputs, MetaTensor) else ""
    name = names if isinstance(names, str) else names[number]
    return Path(name if isinstance(name, str) else name[0]).name


def _placed(result: Tensor, inputs: Tensor, affine: NDArray[Any]) -> Tensor:
    """Return a result (…, X, Y, Z) with the affine of its grid, where the inputs have one."""
    return MetaTensor(result, affine=torch.as_tensor(affine)) if isinstance(inputs, MetaTensor) else result


def _channels_last(image: Tensor) -> Tensor:
    """Return (B, C, X, Y[, Z]) in channels-last memory order."""
    order = torch.channels_last_3d if image.ndim == 5 else torch.channels_last
    return image.contiguous(memory_format=order)


def _spread_windows(image: Tensor, size: Sequence[int], count: int) -> Tensor:
    """Return windows (B, C, X, Y[, Z]) of an image (C, X, Y[, Z]), spread along its diagonal, away from its corners."""
    pads = [(0, max(0, edge - length)) for edge, length in zip(size, image.shape[1:], strict=True)]
    image = nn.functional.pad(image, list(itertools.chain.from_iterable(reversed(pads))))
    windows = [image] * count
    for axis, edge in enumerate(size, 1):
        room = image.shape[axis] - edge
        windows = [window.narrow(axis, room * (place + 1) // (count + 1), edge) for place, window in enumerate(windows)]
    return torch.stack(windows)


def _ordered(values: Sequence[Any], order: Sequence[int]) -> tuple[Any, ...]:
    """Return values in the order of the field's axes."""
    return tuple(values[axis] for axis in order)


def _check_options(reduce: str, grid: str, interpolation: str, backend: str) -> None:
    """Refuse an option that is none."""
    for name, value, known in (
        ("reduce", reduce, REDUCE),
        ("grid", grid, GRIDS),
        ("interpolation", interpolation, INTERPOLATION),
        ("backend", backend, BACKENDS),
    ):
        if value not in known:
            raise TomokitError(f"{name} must be one of {', '.join(known)}, got {value!r}")
    if reduce != "labels" and grid != "network":
        raise TomokitError(f"only labels come on the source's grid: `reduce: {reduce}` needs `grid: network`")


def _check_maps(maps: Mapping[str, int | str], classes: int) -> None:
    """Refuse a map of what the network does not give."""
    for name, of in maps.items():
        if of != ENTROPY and not (isinstance(of, int) and 0 <= of < classes):
            raise TomokitError(f"map {name} is of {of!r}, not of a channel from 0 to {classes - 1} or of '{ENTROPY}'")


def _too_little(size: Sequence[int]) -> str:
    """Return what to do where the memory does not suffice."""
    window = "×".join(map(str, size))
    return (
        f"the free memory ({free_memory() / 1e9:.2g} GB) does not suffice for windows of {window}; close other "
        "programs, raise the limit, or take a smaller `patch_size`"
    )
