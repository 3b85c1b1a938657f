"""The last layer of a network, where it works on each voxel by itself: what comes before it is less to keep."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from tomokit.networks.blocks import Pointwise

CLOSE = 0.02  # of the largest output: what bfloat16 rounds


def find_head(network: nn.Module, image: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, str]:
    """Return the network's output for an image, and the name of its last layer where that is a pointwise convolution.

    The name is "" where the output is made in another way: an average of weighted features, put through the last
    layer, is the average of its outputs only if that layer is linear and the very last.
    """
    inputs: dict[str, Tensor] = {}
    outputs: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, given: tuple[Tensor, ...], made: Tensor) -> None:
            inputs[name], outputs[name] = given[0], made

        return hook

    names = [name for name, module in network.named_modules() if _is_pointwise(module)]
    hooks = [network.get_submodule(name).register_forward_hook(keep(name)) for name in names]
    try:
        output = network(image, *args, **kwargs)
    finally:
        for hook in hooks:
            hook.remove()
    if not isinstance(output, Tensor):
        return output, ""
    for name, made in outputs.items():
        if made.data_ptr() == output.data_ptr() and made.shape == output.shape:
            slices = inputs[name][0, :, :1], output[0, :, :1].float()
            error = (apply_head(network.get_submodule(name), slices[0].movedim(0, -1)) - slices[1]).abs().max()
            # an activation in place would show here
            return output, name if error <= CLOSE * slices[1].abs().max() else ""
    return output, ""


def _is_pointwise(layer: nn.Module) -> bool:
    """Return whether a layer is a convolution that looks at one voxel at a time, at all its channels."""
    if isinstance(layer, Pointwise):
        return True
    if not isinstance(layer, nn.Conv2d | nn.Conv3d) or layer.groups != 1 or isinstance(layer.padding, str):
        return False
    return set(layer.kernel_size) == {1} and set(layer.stride) == {1} and not any(layer.padding)


@contextmanager
def without_head(network: nn.Module, name: str) -> Iterator[nn.Module]:
    """Give the network's last layer, which the network leaves out meanwhile."""
    head = network.get_submodule(name)
    parent = network.get_submodule(name.rpartition(".")[0])
    setattr(parent, name.rpartition(".")[2], nn.Identity())
    try:
        yield head
    finally:
        setattr(parent, name.rpartition(".")[2], head)


def apply_head(head: nn.Module, features: Tensor) -> Tensor:
    """Return the logits (K, …) of features (…, C) by a pointwise convolution, in float32."""
    weight, bias = head.weight, head.bias
    assert isinstance(weight, Tensor)
    logits = weight.float().flatten(1) @ features.float().flatten(0, -2).T
    if isinstance(bias, Tensor):
        logits += bias.float()[:, None]
    return logits.reshape(-1, *features.shape[:-1])
