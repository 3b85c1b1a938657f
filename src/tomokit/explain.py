"""Where in an image a classifier's answer comes from, and how far such a map can be believed.

Maps are (1, X, Y[, Z]), float32, on the image's own grid, from 0 (no part in the answer) to 1 (the greatest part). They
are made by MONAI's classes on a copy of the network in evaluation mode, so that no hook, gradient or mode stays behind.
"""

import copy
import functools
import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import scipy.ndimage
import scipy.stats
import torch
from monai.visualize import GradCAM, GradCAMpp, OcclusionSensitivity
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from tomokit.errors import TomokitError

METHODS = ("gradcam", "gradcam++", "occlusion")
MOST_PASSES = 1000  # of the network, for one map of occlusion
PARTS = 4  # patches that an axis holds side by side, where no size is given
EXTENT = 8  # voxels along each axis of the layer that Grad-CAM explains, at least: coarser maps miss (docs/evidence.md)
ALIKE = 0.5  # rank correlation with an untrained network's maps from which on a map does not depend on the weights
BLUR = 8  # the part of an axis that is the deviation of the blur: 1/8
BATCH = 16
ROUNDING = 1e-5  # of the log odds: a smaller fall is float32's
Explainer = Callable[[nn.Module, Tensor, int], Tensor]


class Randomisation(NamedTuple):
    """How maps of a trained network agree with those of copies whose layers were drawn anew, from the top.

    Attributes:
        layers: how many were drawn anew, ascending; the last is all that hold weights.
        correlations: Spearman's, of each number the mean over images and draws.
    """

    layers: tuple[int, ...]
    correlations: tuple[float, ...]

    @property
    def depends(self) -> bool:
        """Whether the maps change once all weights are drawn anew."""
        return self.correlations[-1] < ALIKE

    @property
    def verdict(self) -> str:
        """What that says of the maps."""
        return "depends on the weights" if self.depends else "does not depend on the weights"


class Areas(NamedTuple):
    """Areas, 0–1, under a class's probability as voxels are inserted or deleted in a map's order, and in a random one.

    A good map has a large `insertion`, well above `random_insertion`, and a small `deletion`, well below
    `random_deletion`.
    """

    insertion: float
    deletion: float
    random_insertion: float
    random_deletion: float


class Pointing(NamedTuple):
    """Whether a map points into a mask.

    Attributes:
        hit: 1 where its maximum lies in it, 0 elsewhere; of several equal maxima their share in it.
        energy: the share of the map's sum that lies in it, 0–1.
    """

    hit: float
    energy: float


# ------------------------------------------------------------------------------------------------------- maps


def make_explainer(method: str, extent: int = EXTENT) -> Explainer:
    """Return the function that makes a map of (network, image, class index) by one of `METHODS`.

    `extent` is that of `find_layer`; occlusion has no use for it.

    Raises:
        TomokitError: when there is no such method, or `extent` is below 2.
    """
    if method not in METHODS:
        raise TomokitError(f"`method` must be one of {', '.join(METHODS)}, got {method!r}")
    _check_extent(extent)
    if method == "occlusion":
        return occlusion_map
    return functools.partial(grad_cam, extent=extent, plus=method == "gradcam++")


def grad_cam(network: nn.Module, image: Tensor, class_index: int, extent: int = EXTENT, plus: bool = False) -> Tensor:
    """Return the map of a class by Grad-CAM or, with `plus`, Grad-CAM++, (1, X, Y[, Z]), 0–1.

    It is as coarse as the layer that `find_layer` finds, and interpolated linearly. It is 0 everywhere where nothing
    speaks for the class.

    Args:
        network: gives logits (B, classes).
        image: (1, C, X, Y[, Z]).
        class_index: of the class, from 0.
        extent: the fewest voxels of that layer's map along each axis.
        plus: weigh by squared gradients, which is kinder to several small places.

    Raises:
        TomokitError: when the image or the class does not fit the network, or it has no such layer.
    Source: Selvaraju et al., Grad-CAM, ICCV 2017; Chattopadhay et al., Grad-CAM++, WACV 2018.
    """
    _check_class(network, image, class_index)
    layer = find_layer(network, image, extent)
    own = _Relative(_copied(network)).eval()
    method = GradCAMpp if plus else GradCAM
    # MONAI's own postprocessing turns the map upside down
    make = method(own, target_layers=f"network.{layer}", postprocessing=_as_it_is)
    with torch.enable_grad():
        found = make(_own_image(image).requires_grad_(), class_idx=class_index)
    return _scaled(found[0].detach())


def occlusion_map(
    network: nn.Module,
    image: Tensor,
    class_index: int,
    patch: int | Sequence[int] | None = None,
    stride: int | Sequence[int] | None = None,
) -> Tensor:
    """Return the map of a class by occlusion, (1, X, Y[, Z]), 0–1: how far its log odds fall where a patch is covered.

    A patch takes the mean of its image, channel by channel. What a voxel gets is the mean over the patches that cover
    it; where the odds rise it is 0. Log odds, since a probability near 1 hardly moves.

    Args:
        network: gives logits (B, classes).
        image: (1, C, X, Y[, Z]).
        class_index: of the class, from 0.
        patch: voxels of a patch, of all axes or of each; None: a quarter of the image, along each axis.
        stride: voxels from a patch to the next; None: half a patch.

    Raises:
        TomokitError: when the image or the class does not fit the network, a patch or a stride is impossible, or more
            than 1000 passes of the network would be needed.
    Source: Zeiler and Fergus, Visualizing and understanding convolutional networks, ECCV 2014.
    """
    _check_class(network, image, class_index)
    sizes = tuple(image.shape[2:])
    edges = _per_axis("patch", patch, sizes, [math.ceil(size / PARTS) for size in sizes])
    steps = _per_axis("stride", stride, edges, [math.ceil(edge / 2) for edge in edges])
    own_image = _own_image(image)
    mean = own_image.mean(dim=tuple(range(2, image.ndim)), keepdim=True)
    own = _Margin(_copied(network), class_index, mean).eval()
    _check_passes(sizes, edges, steps)
    # MONAI takes the step for the whole part of patch × (1 - overlap): half a voxel more keeps that clear of rounding
    overlap = [max(0.0, 1 - (step + 0.5) / edge) for edge, step in zip(edges, steps, strict=True)]
    # given `True` for `activate`, MONAI takes the sigmoid of all classes where the image has one channel; its mean is
    # that of all channels together
    occlude = OcclusionSensitivity(own, edges, BATCH, verbose=False, mode=0.0, overlap=overlap, activate=False)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Using a non-tuple sequence")  # how MONAI indexes its patches
        before = own(own_image - mean)
        after = torch.as_tensor(occlude(own_image - mean)[0])
    fall = before.item() - _plain(after)[0]
    return _scaled(torch.where(fall > ROUNDING * (1 + abs(before.item())), fall, 0 * fall))


def find_layer(network: nn.Module, image: Tensor, extent: int = EXTENT) -> str:
    """Return the name of the last module whose output is a map of features with room in it.

    That is (1, features, X', Y'[, Z']) with `extent` voxels or more along each axis (or all that the image has).

    Args:
        network: gives logits (B, classes).
        image: (1, C, X, Y[, Z]), with which it is run once.
        extent: 2 or more.

    Raises:
        TomokitError: when `extent` is below 2; when there is none, or what comes behind it reads it as a sequence, as
            a vision transformer does.
    """
    _check_extent(extent)
    found, reader = "", ""
    least = [min(extent, size) for size in image.shape[2:]]

    def look(name: str, module: nn.Module, output: Any) -> None:
        nonlocal found, reader
        if isinstance(output, Tensor) and output.ndim == image.ndim and len(output) == 1:
            if all(size >= fewest for size, fewest in zip(output.shape[2:], least, strict=True)):
                found, reader = name, ""
        elif isinstance(output, Tensor) and output.ndim == 3 and _has_weights(module):
            reader = name

    _run_watched(network, image, look)
    if found and not reader:
        return found
    why = (
        f"reads its last feature map ({found}) as a sequence ({reader})"
        if found
        else f"has no layer with a feature map of {extent} or more voxels (`extent`) along each axis"
    )
    raise TomokitError(
        f"Grad-CAM can't explain this network: {_name_of(network)} {why}, of an image {tuple(image.shape)}; take "
        "occlusion (`method: occlusion`)"
    )


# ------------------------------------------------------------------------------------------------- how good they are


def randomisation_check(
    explain: Explainer,
    network: nn.Module,
    images: Sequence[Tensor],
    classes: Sequence[int],
    draws: int = 2,
    stages: int = 6,
    seed: int = 0,
) -> Randomisation:
    """Return how far maps change when the network's layers are drawn anew, as at the start of a training, from the top.

    A map that stays the same, rank for rank, shows the image, not what the network learned.

    Args:
        explain: makes a map of (network, image, class index).
        network: the trained one; it stays as it is.
        images: each (1, C, X, Y[, Z]).
        classes: of each image the class that is explained.
        draws: how many untrained networks the maps are compared with.
        stages: how many numbers of layers are tried, the last of them all.
        seed: of the weights.

    Raises:
        TomokitError: when there is no image, or not a class for each, `draws` or `stages` is below 1, or no layer holds
            weights.
    Source: Adebayo et al., Sanity checks for saliency maps, NeurIPS 2018.
    """
    if not images or len(images) != len(classes):
        raise TomokitError(f"each image needs a class, and there must be one; got {len(images)} and {len(classes)}")
    if draws < 1 or stages < 1:
        raise TomokitError(f"`draws` and `stages` must be 1 or more, got {draws} and {stages}")
    names = _list_layers(network, images[0])
    counts = sorted({math.ceil(len(names) * (number + 1) / stages) for number in range(stages)})
    pairs = list(zip(images, classes, strict=True))
    maps = [explain(network, image, number) for image, number in pairs]
    found = np.zeros((draws, len(counts)))
    for draw in range(draws):
        own = copy.deepcopy(network)
        modules = dict(own.named_modules())
        for place, (done, count) in enumerate(zip([0, *counts], counts, strict=False)):
            _draw_anew([modules[name] for name in names[done:count]], seed + 1000 * draw + place)
            others = [explain(own, image, number) for image, number in pairs]
            found[draw, place] = np.mean([rank_correlation(a, b) for a, b in zip(maps, others, strict=True)])
    return Randomisation(tuple(counts), tuple(found.mean(axis=0).tolist()))


def rank_correlation(one: Tensor, other: Tensor) -> float:
    """Return Spearman's rank correlation of two maps: 1 where they are equal, 0 where one alone is constant."""
    first, second = (_array(heat).ravel() for heat in (one, other))
    if np.array_equal(first, second):
        return 1.0
    if np.ptp(first) == 0 or np.ptp(second) == 0:
        return 0.0
    return float(scipy.stats.spearmanr(first, second).statistic)


def insertion_deletion(
    network: nn.Module, image: Tensor, heat: Tensor, class_index: int, steps: int = 20, seed: int = 0
) -> Areas:
    """Return the areas under a class's probability as a map's voxels are inserted and deleted, most important first.

    They are inserted into the blurred image (a Gaussian's deviation is an eighth of each axis), and deleted from the
    image, where each channel's mean takes their place. Voxels of equal importance come in the random order that the map
    is compared with.

    Args:
        network: gives logits (B, classes).
        image: (1, C, X, Y[, Z]).
        heat: the map, (1, X, Y[, Z]).
        class_index: of the class, from 0.
        steps: equal shares of the voxels.
        seed: of the random order.

    Raises:
        TomokitError: when the image or the class does not fit the network, or the map the image; `steps` is below 1.
    Source: Petsiuk et al., RISE: Randomized input sampling for explanation of black-box models, BMVC 2018.
    """
    _check_class(network, image, class_index)
    if tuple(heat.shape) != (1, *image.shape[2:]):
        raise TomokitError(f"the map {tuple(heat.shape)} does not lie on the image {tuple(image.shape)}")
    if steps < 1:
        raise TomokitError(f"`steps` must be 1 or more, got {steps}")
    whole, own = _own_image(image), _copied(network)
    values = _array(heat).ravel()
    chance = np.random.default_rng(seed).permutation(len(values))
    mean = whole.mean(dim=tuple(range(2, whole.ndim)), keepdim=True).expand_as(whole)
    ranked = np.lexsort((np.argsort(chance), -values))
    areas = [
        _area(own, start, end, order, class_index, steps)
        for order in (ranked, chance)
        for start, end in ((_blurred(whole), whole), (whole, mean))
    ]
    return Areas(areas[0], areas[1], areas[2], areas[3])


def pointing_hit(
    heat: Tensor | ArrayLike, mask: ArrayLike, spacing: Sequence[float] | None = None, tolerance: float = 0.0
) -> Pointing:
    """Return whether a map's maximum lies in a mask or near it, and the share of the map's sum in it.

    A constant map scores what chance does: the mask's share of the grid. An empty one (all 0) has no energy.

    Args:
        heat: the map, (X, Y[, Z]), or (1, X, Y[, Z]), 0 or more.
        mask: (X, Y[, Z]), above 0 in the structure.
        spacing: of the voxels in mm; None: 1 along each axis.
        tolerance: how far outside the mask a maximum may lie, in the unit of `spacing`; no energy is counted there.

    Raises:
        TomokitError: when the shapes differ, the mask is empty, or `tolerance` is negative.
    Source: Zhang et al., Top-down neural attention by excitation backprop, IJCV 126 (2018).
    """
    inside = np.asarray(mask) > 0
    values = _array(heat)
    values = values[0] if values.ndim == inside.ndim + 1 else values
    if values.shape != inside.shape:
        raise TomokitError(f"the map {values.shape} does not lie on the mask {inside.shape}")
    if tolerance < 0:
        raise TomokitError(f"`tolerance` must be 0 or more, got {tolerance}")
    near = near_mask(inside, spacing, tolerance)
    total = float(values.sum(dtype=np.float64))
    energy = float(values[inside].sum(dtype=np.float64)) / total if total > 0 else 0.0
    return Pointing(float(near[values == values.max()].mean()), energy)


def near_mask(mask: ArrayLike, spacing: Sequence[float] | None = None, tolerance: float = 0.0) -> NDArray[np.bool_]:
    """Return where a mask (X, Y[, Z]) is above 0, or no further away than `tolerance`, in the unit of `spacing`.

    Raises:
        TomokitError: when the mask is empty.
    """
    inside = np.asarray(mask) > 0
    if not inside.any():
        raise TomokitError(f"the mask {inside.shape} is empty, so nothing can point into it; leave the case out")
    if tolerance <= 0:
        return inside
    away = scipy.ndimage.distance_transform_edt(~inside, sampling=spacing)
    return np.asarray(away <= tolerance)


# ------------------------------------------------------------------------------------------------------- parts


class _Relative(nn.Module):
    """A network whose logits are 0, with their own gradient: Grad-CAM++ takes the exponential, which overflows."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        """Return (B, classes), all 0."""
        logits = self.network(image).float()
        return logits - logits.detach()


class _Margin(nn.Module):
    """The log odds of one class, (B, 1), of an image whose mean (1, C, 1, 1[, 1]) was taken off."""

    def __init__(self, network: nn.Module, class_index: int, mean: Tensor) -> None:
        super().__init__()
        self.network = network
        self.class_index = class_index
        self.mean = mean

    def forward(self, image: Tensor) -> Tensor:
        """Return the logit less those of all other classes together."""
        logits = self.network(image + self.mean).float()
        others = [number for number in range(logits.shape[1]) if number != self.class_index]
        return (logits[:, self.class_index] - logits[:, others].logsumexp(1)).unsqueeze(1)


def _copied(network: nn.Module) -> nn.Module:
    """Return a copy in evaluation mode that changes nothing in place, whose weights take no gradient."""
    own = copy.deepcopy(network).eval().requires_grad_(False)
    for module in own.modules():
        if getattr(module, "inplace", False) is True:  # hooks can't hold on to what is overwritten
            module.inplace = False  # type: ignore[assignment]
    own.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]  # torch's stubs lack this form
    return own


def _own_image(image: Tensor) -> Tensor:
    """Return a plain float32 copy of an image."""
    return _plain(image).detach().clone(memory_format=torch.contiguous_format).float()


def _plain(tensor: Tensor) -> Tensor:
    """Return a tensor without MONAI's metadata."""
    return tensor.as_subclass(Tensor)


def _array(heat: Tensor | ArrayLike) -> NDArray[Any]:
    """Return a map as an array."""
    return _plain(heat).detach().cpu().numpy() if isinstance(heat, Tensor) else np.asarray(heat)


def _as_it_is(heat: Tensor) -> Tensor:
    """Return a map unchanged, in place of MONAI's scaling of it."""
    return heat


def _scaled(heat: Tensor) -> Tensor:
    """Return a map (1, X, Y[, Z]) without what is negative, its maximum 1; 0 everywhere where nothing is positive.

    Raises:
        TomokitError: when a value is not finite.
    """
    if not torch.isfinite(heat).all():
        raise TomokitError("the network gives values that are not finite, so there is no map; check its weights")
    heat = heat.float().clamp(min=0)
    most = heat.max()
    return heat / most if most > 0 else heat


def _check_class(network: nn.Module, image: Tensor, class_index: int) -> None:
    """Raise when an image is no batch of one, or the network has no such class for it.

    Raises:
        TomokitError: that gives the shape, or the number of classes.
    """
    if image.ndim not in (4, 5) or len(image) != 1:
        raise TomokitError(f"an image must be (1, C, X, Y) or (1, C, X, Y, Z), got {tuple(image.shape)}")
    with torch.no_grad():
        logits = _copied(network)(_own_image(image))
    if logits.ndim != 2 or logits.shape[1] < 2:
        shape = tuple(logits.shape)
        raise TomokitError(
            f"{_name_of(network)} must give logits (1, classes) of two classes or more, it gives {shape}"
        )
    if not 0 <= class_index < logits.shape[1]:
        raise TomokitError(f"class {class_index} is none of the network's {logits.shape[1]} classes, counted from 0")


def _check_extent(extent: int) -> None:
    """Raise when a layer's map would have no room.

    Raises:
        TomokitError: that gives the number.
    """
    if extent < 2:
        raise TomokitError(f"`extent` must be 2 or more voxels, got {extent}")


def _per_axis(
    name: str, given: int | Sequence[int] | None, most: Sequence[int], default: Sequence[int]
) -> tuple[int, ...]:
    """Return an edge for each axis, none above `most`.

    Raises:
        TomokitError: when one is out of its range, or there are not as many as axes.
    """
    if given is None:
        return tuple(default)
    edges = (given,) * len(most) if isinstance(given, int) else tuple(given)
    if len(edges) != len(most) or any(not 1 <= edge <= limit for edge, limit in zip(edges, most, strict=True)):
        raise TomokitError(f"`{name}` must be 1 to {list(most)} voxels along the axes, got {given}")
    return edges


def _check_passes(sizes: Sequence[int], edges: Sequence[int], steps: Sequence[int]) -> None:
    """Raise when there are too many patches.

    Raises:
        TomokitError: that gives their number.
    """
    along = zip(sizes, edges, steps, strict=True)
    passes = math.prod(math.ceil((size - edge) / step) + 1 for size, edge, step in along)
    if passes > MOST_PASSES:
        raise TomokitError(f"occlusion would take {passes} passes, more than {MOST_PASSES}; take a larger `stride`")


def _run_watched(network: nn.Module, image: Tensor, look: Callable[[str, nn.Module, Any], None]) -> None:
    """Run a copy of the network once; `look` gets each module's name, the module and what it gave, as each is done."""
    own = _copied(network)
    for name, module in own.named_modules():
        if name:
            module.register_forward_hook(functools.partial(_tell, look, name))
    with torch.no_grad():
        own(_own_image(image))


def _tell(look: Callable[[str, nn.Module, Any], None], name: str, module: nn.Module, _: Any, output: Any) -> None:
    """Hand a module's output on, as a hook."""
    look(name, module, output)


def _has_weights(module: nn.Module) -> bool:
    """Return whether a module itself holds weights."""
    return next(module.parameters(recurse=False), None) is not None


def _list_layers(network: nn.Module, image: Tensor) -> list[str]:
    """Return the names of the modules that hold weights, from the last that runs to the first; then those that don't.

    A module whose weights another one reads runs by no hook.
    """
    ran: dict[str, None] = {}

    def look(name: str, module: nn.Module, _: Any) -> None:
        if _has_weights(module):
            ran.setdefault(name)

    _run_watched(network, image, look)
    held = [name for name, module in network.named_modules() if _has_weights(module)]
    if not held:
        raise TomokitError(f"{_name_of(network)} has no weights to draw anew")
    return [*reversed(ran), *(name for name in held if name not in ran)]


def _draw_anew(modules: Sequence[nn.Module], seed: int) -> None:
    """Give modules the weights of a fresh start; what has no such start a normal one of its own deviation."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        for module in modules:
            if callable(reset := getattr(module, "reset_parameters", None)):
                reset()
                continue
            for weight in module.parameters(recurse=False):
                weight.normal_(0, float(weight.std()) if weight.numel() > 1 else 1.0)


def _blurred(image: Tensor) -> Tensor:
    """Return an image (1, C, X, Y[, Z]) blurred along its axes."""
    deviations = [0.0, 0.0, *(size / BLUR for size in image.shape[2:])]
    found = scipy.ndimage.gaussian_filter(image.cpu().numpy(), deviations, mode="nearest")
    return torch.as_tensor(found, device=image.device)


def _area(
    network: nn.Module, start: Tensor, end: Tensor, order: NDArray[np.intp], class_index: int, steps: int
) -> float:
    """Return the area under a class's probability as `end` takes the place of `start`, voxel by voxel in an order."""
    counts = np.round(np.linspace(0, len(order), steps + 1)).astype(int)
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = np.arange(len(order))
    ranks = torch.as_tensor(rank, device=start.device).reshape(1, 1, *start.shape[2:])
    chances: list[float] = []
    with torch.no_grad():
        for first in range(0, len(counts), BATCH):
            images = [torch.where(ranks < int(count), end, start) for count in counts[first : first + BATCH]]
            chances += network(torch.cat(images)).float().softmax(1)[:, class_index].tolist()
    return float(np.trapezoid(chances, counts / len(order)))


def _name_of(network: nn.Module) -> str:
    """Return a network's class, for a message."""
    return type(network).__name__
