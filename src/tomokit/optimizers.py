"""Optimizers that torch lacks in the form that convolutions on a CPU need."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from tomokit.errors import TomokitError

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # Jordan et al.: singular values to 0.7–1.2 in five rounds
ROUNDS = 5
SMALLEST_SIDE = 8  # of a kernel as a matrix; narrower ones are better left to AdamW


class Muon(torch.optim.Optimizer):
    """Momentum whose step, for each kernel as a matrix (features out, the rest), is made orthogonal; AdamW else.

    On hippocampus 700 of its steps reached what 1,400 of AdamW's did (docs/experiments.md). A kernel's step has the
    size that AdamW's has, so learning rates carry over. What is no matrix (norms, biases, a first convolution of
    one channel) is AdamW's. torch's own `Muon` takes matrices alone, and iterates on the whole matrix in bfloat16;
    here the rounds are on the small side's Gram matrix, which gives the same for a fifth of the arithmetic.

    Args:
        params: the network's parameters.
        lr: the learning rate, 1e-3 to 2e-2.
        weight_decay: the part of each weight that a step of rate 1 takes away.
        momentum: how much of the last step direction stays, 0–1.
        betas: of AdamW.
        eps: of AdamW.

    Raises:
        TomokitError: when a value is out of its range.
    Source: Jordan et al., Muon: an optimizer for hidden layers in neural networks (2024); the scale after Liu et al.,
        Muon is scalable for LLM training, arXiv:2502.16982.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float = 3e-3,
        weight_decay: float = 0.01,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        if not (lr >= 0 and weight_decay >= 0 and 0 <= momentum < 1):
            raise TomokitError(
                "lr and weight_decay must be at least 0, momentum at least 0 and below 1; got "
                f"{lr}, {weight_decay}, {momentum}"
            )
        defaults = {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, "betas": tuple(betas), "eps": eps}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step and return the closure's loss, if one was given."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            with_gradient = [parameter for parameter in group["params"] if parameter.grad is not None]
            for parameter in with_gradient:
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                if is_kernel(parameter):
                    self._step_kernel(parameter, group)
                else:
                    self._step_adam(parameter, group)
        return loss

    def _step_kernel(self, parameter: Tensor, group: dict[str, Any]) -> None:
        """Move a kernel along its orthogonal direction."""
        state = self.state[parameter]
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        momentum, gradient = state["momentum"], parameter.grad
        assert gradient is not None
        momentum.lerp_(gradient, 1 - group["momentum"])
        direction = orthogonal(gradient.lerp(momentum, group["momentum"]))
        columns = parameter.numel() // parameter.shape[0]
        size = 0.2 * max(parameter.shape[0], columns) ** 0.5  # the mean square of AdamW's step
        parameter.add_(direction, alpha=-group["lr"] * size)

    def _step_adam(self, parameter: Tensor, group: dict[str, Any]) -> None:
        """Move anything else as AdamW does."""
        state = self.state[parameter]
        if not state:
            state |= {
                "step": torch.zeros(()),
                "mean": torch.zeros_like(parameter),
                "square": torch.zeros_like(parameter),
            }
        state["step"] += 1
        gradient, count = parameter.grad, state["step"].item()  # kept on the CPU: no synchronisation
        assert gradient is not None
        first, second = group["betas"]
        state["mean"].lerp_(gradient, 1 - first)
        state["square"].lerp_(gradient.square(), 1 - second)
        root = (state["square"] / (1 - second**count)).sqrt_().add_(group["eps"])
        parameter.addcdiv_(state["mean"], root, value=-group["lr"] / (1 - first**count))


def is_kernel(parameter: Tensor) -> bool:
    """Return whether a parameter is stepped as a matrix: of two or more axes, neither side narrow."""
    if parameter.ndim < 2:
        return False
    return min(parameter.shape[0], parameter.numel() // parameter.shape[0]) >= SMALLEST_SIDE


def orthogonal(kernel: Tensor) -> Tensor:
    """Return the kernel (out, …) with the singular values of its matrix (out, rest) brought near 1, in its own form.

    Five rounds of Newton–Schulz on the Gram matrix of the shorter side: each is a polynomial of it, so that the long
    side is multiplied twice in all.
    """
    matrix = kernel.flatten(1)
    tall = matrix.shape[0] > matrix.shape[1]
    if tall:
        matrix = matrix.T
    matrix = matrix / (matrix.norm() + 1e-7)
    gram = (matrix @ matrix.T).double()  # squares the condition
    a, b, c = NEWTON_SCHULZ
    unit = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    product = unit
    for _ in range(ROUNDS):
        factor = a * unit + b * gram + c * (gram @ gram)
        product = factor @ product
        gram = factor @ gram @ factor
    result = product.to(matrix.dtype) @ matrix
    return (result.T if tall else result).reshape(kernel.shape)
