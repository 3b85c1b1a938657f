"""Optimizers that torch lacks in the form that convolutions on a CPU need."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from tomokit.errors import TomokitError

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # Jordan et al.: singular values to 0.7–1.2 in five rounds
ROUNDS = 5
SMALLEST_SIDE = 8  # of a kernel as a matrix; narrower ones are better left to AdamW


class Muon(torch.optim.Optimizer):
    """Momentum whose step, for each kernel as a matrix (features out, the rest), is made orthogonal; AdamW else.

    On hippocampus 700 of its steps reached what 1,400 of AdamW's did (docs/experiments.md). A kernel's step has the
    size that AdamW's has, so learning rates carry over. What is no matrix (norms, biases, kernels of one
    channel) is AdamW's. torch's own `Muon` takes matrices alone, and iterates on the whole matrix in bfloat16;
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
            moved = [parameter for parameter in group["params"] if parameter.grad is not None]
            self._step_kernels([parameter for parameter in moved if is_kernel(parameter)], group)
            self._step_rest([parameter for parameter in moved if not is_kernel(parameter)], group)
        return loss

    def _step_kernels(self, kernels: Sequence[Tensor], group: dict[str, Any]) -> None:
        """Move kernels along their orthogonal directions."""
        for kernel in kernels:
            self.state[kernel].setdefault("momentum", torch.zeros_like(kernel))
        directions = []
        for kernel in kernels:
            momentum, gradient = self.state[kernel]["momentum"], kernel.grad
            assert gradient is not None
            momentum.lerp_(gradient, 1 - group["momentum"])
            directions.append(torch.lerp(gradient, momentum, group["momentum"]))
        for kernel, direction in zip(kernels, orthogonal(directions), strict=True):
            columns = kernel.numel() // kernel.shape[0]
            size = 0.2 * max(kernel.shape[0], columns) ** 0.5  # the mean square of AdamW's step
            kernel.mul_(1 - group["lr"] * group["weight_decay"]).add_(direction, alpha=-group["lr"] * size)

    def _step_rest(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        """Move anything else as torch's AdamW does."""
        if not parameters:
            return
        for parameter in parameters:
            if not self.state[parameter]:
                # on the device, so that nothing waits for it; not named `step`, which torch restores on the CPU
                count = torch.zeros((), device=parameter.device)
                zeros = torch.zeros_like(parameter)
                self.state[parameter] |= {"count": count, "mean": zeros, "square": zeros.clone()}
        first, second = group["betas"]
        adamw(
            parameters,
            [parameter.grad for parameter in parameters],  # type: ignore[misc]
            [self.state[parameter]["mean"] for parameter in parameters],
            [self.state[parameter]["square"] for parameter in parameters],
            max_exp_avg_sqs=[],
            state_steps=[self.state[parameter]["count"] for parameter in parameters],
            fused=True,
            amsgrad=False,
            beta1=first,
            beta2=second,
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )


def is_kernel(parameter: Tensor) -> bool:
    """Return whether a parameter is stepped as a matrix: of two or more axes, neither side narrow.

    A kernel of one channel for each feature mixes no features: a first convolution's, or a depthwise one's.
    """
    if parameter.ndim < 2 or parameter.shape[1] == 1:
        return False
    return min(parameter.shape[0], parameter.numel() // parameter.shape[0]) >= SMALLEST_SIDE


def orthogonal(kernels: Sequence[Tensor]) -> list[Tensor]:
    """Return each kernel (out, …) with the singular values of its matrix (out, rest) brought near 1, in its own form.

    Five rounds of Newton–Schulz on the Gram matrix of the shorter side: each is a polynomial of it, so that the long
    side is multiplied twice in all. Kernels of the same shorter side go through the rounds together.
    """
    matrices = [kernel.flatten(1) for kernel in kernels]
    wide = [matrix.T if matrix.shape[0] > matrix.shape[1] else matrix for matrix in matrices]
    result: list[Tensor] = [None] * len(kernels)  # type: ignore[list-item]
    for side in sorted({len(matrix) for matrix in wide}):
        members = [number for number, matrix in enumerate(wide) if len(matrix) == side]
        factors = _orthogonal_factors(torch.stack([wide[number] @ wide[number].T for number in members]))
        for number, factor in zip(members, factors, strict=True):
            turned = factor @ wide[number]
            back = turned.T if wide[number].shape != matrices[number].shape else turned
            result[number] = back.reshape(kernels[number].shape)
    return result


def _orthogonal_factors(grams: Tensor) -> Tensor:
    """Return for Gram matrices A·Aᵀ (K, n, n) the matrices (K, n, n) that make A orthogonal from the left."""
    a, b, c = NEWTON_SCHULZ
    norms = grams.diagonal(dim1=1, dim2=2).sum(1).sqrt().add(1e-7)[:, None, None]
    grams = grams / norms**2
    product: Tensor | None = None
    for number in range(ROUNDS):
        factor = torch.baddbmm(grams, grams, grams, beta=b, alpha=c)
        factor.diagonal(dim1=1, dim2=2).add_(a)
        product = factor if product is None else torch.bmm(factor, product)
        if number < ROUNDS - 1:
            grams = torch.bmm(torch.bmm(factor, grams), factor)
    assert product is not None
    return product / norms
