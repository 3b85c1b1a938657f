"""Whole volumes through a network in bounded memory: a part at a time, reduced to labels as it is finished."""

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.data.utils import collate_meta_tensor
from monai.inferers import Inferer
from numpy.typing import NDArray
from torch import Tensor

from tomokit.errors import TomokitError
from tomokit.geometry import spacing_from_affine
from tomokit.inference.backends import BACKENDS, PRECISIONS, Backends
from tomokit.inference.boxes import MARGIN_MM, Box, find_body, grow, reach, whole_box, widen
from tomokit.inference.calling import NetworkCall, Probe, Probes
from tomokit.inference.fields import Field, count_rows, cut_strips, make_field, strip_bytes, too_little
from tomokit.inference.finishing import part_logits, part_nodes, reduce_part
from tomokit.inference.grids import Axis, relate_grids, same_grid
from tomokit.inference.inferers import list_flips
from tomokit.inference.reducing import CONFIDENCE, ENTROPY, VARIANCE, BlockReducer, Map, label_dtype
from tomokit.inference.slabs import sum_slabs
from tomokit.memory import lacks_memory
from tomokit.regions import region_values

logger = logging.getLogger(__name__)

REDUCE = ("logits", "probabilities", "labels")
GRIDS = ("network", "source")
INTERPOLATION = ("linear", "nearest")
TOLD_SECONDS = 15.0  # between lines that say how far a volume is
SAID = 120  # characters of another program's message
TOLD_WINDOWS = 64  # volumes of more windows take long enough to say what is ahead


class SlabInferer(Inferer):
    """Slides a window over whole volumes; gives labels without ever holding classes × volume.

    Windows are evenly spaced and ordered along one axis, in slabs as thick as a window, and row by row within a slab. A
    part to which no window adds any more is normalised, put through the network's last layer, brought to the wanted
    grid, and reduced to labels, in blocks in which only the classes that can win are interpolated. The memory does not
    grow with the length of the volume; where it is short, the slabs are cut into strips. Beside MONAI's
    `SlidingWindowInferer`, labels are those of the interpolated logits.

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
        maps: `{name: channel, …}`: probabilities to keep beside the labels. For the channel also "confidence", the
            probability of the label that is given, "entropy", how uncertain it is, or "variance", how far the members
            of an ensemble disagree (`Ensemble.with_variance`), all from 0 to 1. After a call, the attribute
            `found_maps` has each, (1, X, Y, Z) uint8 in steps of 1/255 on the labels' grid. A volume at a time.
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
        _check_maps(maps or {}, reduce, backend)
        _check_counts(roi_size, sw_batch_size, mirror_axes, dtype)
        self.roi_size = tuple(int(edge) for edge in roi_size)
        self.overlap = overlap
        self.mode = mode
        self.reduce = reduce
        self.grid = grid
        self.nearest = interpolation == "nearest"
        self.batch = sw_batch_size
        self.flips = list_flips(mirror_axes)
        self.body_crop = body_crop
        self.regions = regions
        self.maps = dict(maps or {})
        self.found_maps: dict[str, Tensor] = {}
        self.dtype = dtype
        self._backends = Backends(backend)
        self._probes: Probes = Probes()

    def __call__(self, inputs: Tensor, network: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        """Return what `reduce` says of volumes (B, C, X, Y, Z), or images (B, C, X, Y).

        Of a `MetaTensor` it is one too, with the affine of its grid.

        Raises:
            TomokitError: when the source's grid is wanted of a plain tensor, grids are turned against each other, the
                memory does not suffice, or the backend is not installed, can't take the network, or does not agree.
        """
        if inputs.ndim != 2 + len(self.roi_size):
            raise TomokitError(
                f"`roi_size` {self.roi_size} is of {len(self.roi_size)} axes, the images (B, C, …) are of "
                f"{inputs.ndim - 2}: {tuple(inputs.shape)}"
            )
        if self.maps and len(inputs) > 1:
            raise TomokitError(f"`maps` are of one volume at a time, got {len(inputs)}: set `batch_size: 1`")
        spread = VARIANCE in self.maps.values()
        call = NetworkCall(network, (args, kwargs), self.roi_size, self.flips, self.dtype, spread)
        try:
            # the caller's autocast is not for the way back; the network gets its own
            with torch.no_grad(), torch.autocast(inputs.device.type, enabled=False):
                found = [self._volume(inputs, number, call) for number in range(len(inputs))]
        except (RuntimeError, MemoryError) as error:
            if lacks_memory(error):
                said = " ".join(str(error).split())[:SAID] or "MemoryError"
                raise TomokitError(f"{too_little(self.roi_size, inputs.device)} ({said})") from error
            raise
        if isinstance(found[0], MetaTensor):
            return collate_meta_tensor(found)
        return torch.stack(found)

    def _volume(self, inputs: Tensor, number: int, call: NetworkCall) -> Tensor:
        """Return the result (1 or K, X, Y, Z) of one volume of a batch."""
        image = (inputs.as_tensor() if isinstance(inputs, MetaTensor) else inputs)[number]
        if call.probe is None:
            call.look(image, self._probes)
            call.set_up(image, self._backends, self.batch, bool(self.regions))
        if self.reduce != "labels":
            return _placed(self._scores(image, call), inputs, _affine(inputs, number))
        return self._label_map(inputs, image, number, call)

    # ---------------------------------------------------------------------------------------------- labels

    def _label_map(self, inputs: Tensor, image: Tensor, number: int, call: NetworkCall) -> Tensor:
        """Return a volume's labels (1, X, Y, Z) on the wanted grid."""
        shape, affine, axes = self._wanted_grid(inputs, number)
        values = region_values(self.regions) if self.regions else list(range(call.known.classes))
        _check_channels(self.maps, call.known.classes)
        spacing = spacing_from_affine(_affine(inputs, number)) if isinstance(inputs, MetaTensor) else (1.0,) * 3
        box = find_body(image, spacing) if self.body_crop else whole_box(image.shape[1:])
        self.found_maps, margin = {}, MARGIN_MM
        while True:
            box = widen(box, self.roi_size, image.shape[1:])
            box = reach(box, [axis.places for axis in axes], image.shape[1:])
            out = torch.zeros(shape, dtype=label_dtype(values))
            maps = {name: Map(of, self._outside(of, shape)) for name, of in self.maps.items()}
            self._fill((out, list(maps.values())), image, box, axes, values, call, _file_name(inputs, number))
            grown = grow(box, _inside(out, box, axes), image.shape[1:], spacing, margin)
            if grown == box:
                break
            margin *= 2  # a long structure takes few turns
            logger.info("a structure reaches the body box's face: looking at %s, not %s", grown, box)
            box = grown
        self.found_maps = {name: _placed(found.out[None], inputs, affine) for name, found in maps.items()}
        return _placed(out[None].to(inputs.device), inputs, affine)

    def _outside(self, of: int | str, shape: Sequence[int]) -> Tensor:
        """Return a map as it is outside the body's box, where all is surely background: (X, Y, Z) uint8."""
        sure = of == CONFIDENCE or (of == 0 and not self.regions)
        return torch.full(tuple(shape), 255 if sure else 0, dtype=torch.uint8)

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
        call: NetworkCall,
        name: str,
    ) -> None:
        """Write the labels of what lies in a box of the volume, and the maps, on the wanted grid.

        `results` are the label map (X, Y, Z) and the maps; `name` is the file's, for what is told before it starts.
        """
        out, maps = results
        field = make_field(image, box, axes, self.roi_size, self.overlap, self.mode)
        strips = cut_strips(field, call.known, self.batch)
        if self.grid == "source" and field.windows.number > TOLD_WINDOWS:
            held = sum(each.nbytes for each in (out, *(found.out for found in maps)))
            held += 4 * out.numel() if maps else 0  # while one is written
            logger.info("%s: %s", name, self._outlook(field, strips, call.known, box, image.shape[1:], held))
        sources = [axis.source for axis in axes] + [2] * (3 - len(axes))
        order = [field.order.index(sources.index(source)) for source in range(3)]
        flat = len(axes) == 2
        maps = [Map(found.of, found.out[..., None] if flat else found.out) for found in maps]
        out = out[..., None] if flat else out
        reducer = BlockReducer(values, bool(self.regions), order, out, maps, self.nearest, name)
        rows, done, told = count_rows(field, strips), 0, time.monotonic()
        with call.ready(field.order) as (network, head):
            for number, strip in enumerate(strips):
                wanted = (strip[0], strip[1] + 1)
                parts = sum_slabs(field.image, network, call.known.features, field.windows, wanted, self.batch)
                for part in parts:
                    reduce_part(part, field, number == 0, head, reducer, self.nearest)
                    done += 1
                    if self.grid == "source" and time.monotonic() - told > TOLD_SECONDS:
                        told = time.monotonic()
                        logger.info("%s: %d of %d rows of windows", name, done, rows)

    def _outlook(
        self, field: Field, strips: Sequence[tuple[int, int]], probe: Probe, box: Box, shape: Sequence[int], held: int
    ) -> str:
        """Return a line that says what is ahead: windows, part of the volume, memory, `held` bytes of results in it."""
        size = "×".join(map(str, self.roi_size))
        part = math.prod(high - low for low, high in box) / math.prod(shape)
        sums = strip_bytes(field, probe, max(high - low for low, high in strips))
        active = probe.activations * self.batch
        cut = f" in {len(strips)} strips" if len(strips) > 1 else ""
        passes = f" × {len(self.flips)} mirrored" if len(self.flips) > 1 else ""
        number = count_rows(field, strips) * len(field.windows.starts[2])
        return (
            f"{number} windows of {size}{passes}{cut}, {part:.0%} of the volume; "
            f"about {(sums + active + held) / 1e9:.2g} GB beside the image: {sums / 1e9:.2g} of windows' sums, "
            f"{active / 1e9:.2g} in the network, {held / 1e9:.2g} of labels and maps"
        )

    # ----------------------------------------------------------------------------------------------- scores

    def _scores(self, image: Tensor, call: NetworkCall) -> Tensor:
        """Return the logits or probabilities (K, X, Y[, Z]) of a volume on the network's grid."""
        shape = tuple(image.shape[1:])
        field = make_field(image, whole_box(shape), same_grid(shape), self.roi_size, self.overlap, self.mode)
        lengths = [high - low + 1 for low, high in field.nodes]
        out = torch.empty((call.known.classes, *lengths), device=image.device)
        strip = (field.nodes[1][0], field.nodes[1][1] + 1)
        with call.ready(field.order) as (network, head):
            for part in sum_slabs(field.image, network, call.known.features, field.windows, strip, self.batch):
                (low, high), (left, right) = part_nodes(part, field)
                columns = slice(left - strip[0], right + 1 - strip[0])
                third = (field.nodes[2][0], field.nodes[2][1] + 1)
                for node in range(low, high + 1):
                    logits = part_logits(part, field, ((node, node + 1), (left, right + 1), third), head)
                    out[:, node - field.nodes[0][0], columns] = logits[:, 0]
        back = [1 + field.order.index(axis) for axis in range(3)]
        scores = out.permute(0, *back).reshape(-1, *shape)
        if self.reduce == "logits":
            return scores
        return scores.sigmoid_() if self.regions else scores.softmax(0)


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


def _check_counts(roi_size: Sequence[int], batch: int, mirror_axes: Sequence[int], dtype: torch.dtype) -> None:
    """Refuse a window, a number of windows or a precision that can't be."""
    if isinstance(roi_size, int) or len(roi_size) not in (2, 3) or min(roi_size) < 1:
        raise TomokitError(f"roi_size must be the window's (X, Y[, Z]) in voxels, each at least 1, got {roi_size}")
    if batch < 1:
        raise TomokitError(f"sw_batch_size must be at least 1, got {batch}")
    if any(axis >= len(roi_size) for axis in mirror_axes):
        raise TomokitError(f"mirror_axes {list(mirror_axes)} are not all of a window of {len(roi_size)} axes")
    if dtype not in PRECISIONS:
        known = ", ".join(map(str, PRECISIONS))
        raise TomokitError(f"dtype must be one of {known}, got {dtype!r}")


def _check_maps(maps: Mapping[str, int | str], reduce: str, backend: str) -> None:
    """Refuse maps that nothing would fill."""
    if maps and reduce != "labels":
        raise TomokitError(f"maps ({', '.join(maps)}) come beside labels: set `reduce: labels`, got {reduce!r}")
    if VARIANCE in maps.values() and backend not in ("torch", "auto"):
        raise TomokitError(f"backend {backend} gives no variance of an ensemble; set `backend: torch`")


def _check_channels(maps: Mapping[str, int | str], classes: int) -> None:
    """Refuse a map of what the network does not give."""
    for name, of in maps.items():
        if of not in (ENTROPY, CONFIDENCE, VARIANCE) and not (isinstance(of, int) and 0 <= of < classes):
            raise TomokitError(
                f"map {name} is of {of!r}, not of a channel from 0 to {classes - 1}, '{CONFIDENCE}', '{ENTROPY}' or "
                f"'{VARIANCE}'"
            )
