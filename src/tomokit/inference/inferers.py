"""Inferers that change how another one calls the network: in lower precision, or mirrored."""

import contextlib
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from monai.data import MetaTensor
from monai.inferers import Inferer
from torch import Tensor
from torch.overrides import TorchFunctionMode

from tomokit.errors import TomokitError

CONVOLUTIONS = (torch.conv1d, torch.conv2d, torch.conv3d)


class NarrowMapsInFloat32(TorchFunctionMode):
    """Within it, convolutions of maps narrower than their kernel or stride ignore autocast and compute in float32.

    On a CPU torch 2.13 leaves part of the gradient of such a convolution's weights unwritten in bfloat16
    (docs/experiments.md); of wider maps, and in float32, it is right.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call `func` as it is, or a convolution as `_convolve` does."""
        if func in CONVOLUTIONS:
            return _convolve(func, *args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _convolve(
    convolution: Callable[..., Tensor],
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: str | int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> Tensor:
    """Return torch's convolution of (…, C, X[, Y, Z]), in float32 where a width is below the kernel's or the stride."""
    sizes = weight.shape[2:]
    strides, dilations = ([own] * len(sizes) if isinstance(own, int) else own for own in (stride, dilation))
    narrow = any(
        width < max(step, apart * (size - 1) + 1)
        for width, size, step, apart in zip(input.shape[-len(sizes) :], sizes, strides, dilations, strict=True)
    )
    if not narrow:
        return convolution(input, weight, bias, stride, padding, dilation, groups)
    own_bias = None if bias is None else bias.float()
    with torch.autocast("cpu", enabled=False):
        return convolution(input.float(), weight.float(), own_bias, stride, padding, dilation, groups)


class MixedPrecisionInferer(Inferer):
    """Runs another inferer in a lower precision where the hardware has it; what comes back is float32.

    A network that gives a list in training (deep supervision) gives a list here. On a CPU training keeps convolutions
    of the smallest maps in float32 (`NarrowMapsInFloat32`).

    Args:
        inferer: the MONAI inferer that calls the network.
        dtype: `torch.bfloat16`, `torch.float16`, or `torch.float32` for none.
    """

    def __init__(self, inferer: Inferer, dtype: torch.dtype) -> None:
        super().__init__()
        self.inferer = inferer
        self.dtype = dtype

    def __call__(self, inputs: Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Return the network's output for `inputs` (B, C, X, Y[, Z]), in float32."""
        plain = inputs.as_tensor() if isinstance(inputs, MetaTensor) else inputs
        lower = self.dtype != torch.float32
        careful = lower and torch.is_grad_enabled() and plain.device.type == "cpu"
        with (
            torch.autocast(plain.device.type, self.dtype, enabled=lower),
            NarrowMapsInFloat32() if careful else contextlib.nullcontext(),
        ):
            output = self.inferer(plain, network, *args, **kwargs)
        return [logits.float() for logits in output] if isinstance(output, list) else output.float()


def list_flips(axes: Sequence[int]) -> list[tuple[int, ...]]:
    """Return every combination of mirrored axes of (X, Y, Z), as dimensions of (B, C, X, Y, Z); none comes first.

    Raises:
        TomokitError: when one of them is no axis, or there twice.
    """
    if any(axis not in (0, 1, 2) for axis in axes) or len(set(axes)) < len(axes):
        raise TomokitError(f"axes to mirror must be of 0 (x), 1 (y) and 2 (z), each once, got {list(axes)}")
    dimensions = [2 + axis for axis in axes]
    return [flip for count in range(len(axes) + 1) for flip in itertools.combinations(dimensions, count)]


class MirroredInferer(Inferer):
    """Gives the mean of another inferer's logits over the image and its mirror images.

    Logits that lie on the image's axes are flipped back; those of a whole image (B, classes) need not be.

    Args:
        inferer: the MONAI inferer that calls the network.
        spatial_axis: the axes of (X, Y, Z) to mirror, in every combination: n axes cost 2^n passes; empty for none.

    Raises:
        TomokitError: when one of `spatial_axis` is no axis, or there twice.
    """

    def __init__(self, inferer: Inferer, spatial_axis: Sequence[int]) -> None:
        super().__init__()
        self.inferer = inferer
        self.flips = list_flips(spatial_axis)

    def __call__(self, inputs: Tensor, network: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        """Return the mean logits, (B, classes, X, Y[, Z]) or (B, classes), for `inputs` (B, C, X, Y[, Z])."""
        total: Tensor | None = None
        for flip in self.flips:
            logits = self.inferer(inputs.flip(flip), network, *args, **kwargs)
            logits = logits.flip(flip) if logits.ndim == inputs.ndim else logits
            total = logits if total is None else total + logits
        assert total is not None
        return total / len(self.flips)
