"""Fine-tuning: a network begins with weights of an earlier run or a public file, its body frozen or slower to learn."""

import functools
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ignite.engine import Engine, Events
from torch import Tensor, nn

from tomokit.engines.checkpoints import load, weights_of
from tomokit.engines.hardware import unwrap
from tomokit.errors import TomokitError

logger = logging.getLogger(__name__)

# what MONAI's networks and ours call their last layers
HEADS = frozenset(
    {"output_block", "deep_supervision_heads", "out_tr", "conv_final", "final_conv", "out", "logits", "controller"}
    | {"fc", "_fc", "last_linear", "class_layers", "classification_head"}
)
FREEZE = ("none", "body")
Weights = Mapping[str, Tensor]
SHORTCUT = re.compile(r"\blayer\d+\.\d+\.downsample\.")  # as ResNets name them
SHOWN = 6  # names of tensors in a message


def load_pretrained(
    network: nn.Module,
    source: str | Path,
    freeze: str = "none",
    head: Sequence[str] | None = None,
    adapt_channels: bool = False,
) -> nn.Module:
    """Return the network with all weights of `source` that fit it; what they are, and what is left out, is logged.

    In a config it stands at the trainer, `train::trainer::network`, so that what is trained can be evaluated without
    the source: `{_target_: tomokit.finetuning.load_pretrained, network: "@network", source: "@pretrained"}`.

    A 2D network's weights serve the 3D network that has the same names, as MONAI's ResNet has torchvision's: where the
    dimensions tell so, they are inflated (`inflate`), and their input channels made as many as the network's.

    Args:
        network: the network to train; it is changed in place. Joined with other processes' or not.
        source: the folder of an earlier run (its best weights, else the last ones), or a file of weights: a
            checkpoint of ours or of MONAI, MedicalNet's with `state_dict` and `module.`, or torchvision's.
        freeze: `none`, or `body`: what was loaded is not trained, but for the head; its batch norms keep their
            statistics.
        head: names of the modules that are the head; None finds them by their usual names.
        adapt_channels: for another number of input channels, spread the first convolution's mean over them.

    Raises:
        TomokitError: when there are no such weights, less than half of the body fits, a ResNet's shortcuts are of
            another kind, or the head can't be told.
    """
    if freeze not in FREEZE:
        raise TomokitError(f"freeze must be one of {FREEZE}, got {freeze!r}")
    bare = unwrap(network)
    path = find_source(source)
    own = bare.state_dict()
    weights = _fit_dimensions(_read(path), own, adapt_channels)
    heads = find_head(bare, head)
    matched = {key: value for key, value in weights.items() if key in own and own[key].shape == value.shape}
    _check_share(bare, matched, heads, path)
    _check_shortcuts(own, weights, path)
    bare.load_state_dict(matched, strict=False)
    _report(own, weights, matched, path)
    if freeze == "none":
        return network
    _freeze(bare, matched, heads)
    return rejoin(network)


def find_source(source: str | Path) -> Path:
    """Return the file of weights that `source` means: itself, or the best, else the last, of a run's folder.

    Raises:
        TomokitError: when there is none.
    """
    path = Path(source)
    candidates = [path / "checkpoints" / name for name in ("best.pt", "last.pt")] if path.is_dir() else [path]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    raise TomokitError(
        f"no pretrained weights in {path}; set `pretrained` to a run's folder with checkpoints/best.pt, or to a file"
    )


def find_head(network: nn.Module, head: Sequence[str] | None = None) -> tuple[str, ...]:
    """Return the names of the modules that are the network's head, given or found by their usual names.

    A module without a usual name that holds one other, or a sequence, is looked into; a sequence ends in its head.

    Raises:
        TomokitError: when a given name is no module, or no usual name is there.
    """
    if head is not None:
        modules = dict(network.named_modules())
        unknown = [name for name in head if name not in modules]
        if unknown or not head:
            raise TomokitError(f"`head` must name modules of {type(network).__name__}, got {unknown or list(head)}")
        return tuple(head)
    module, prefix = network, ""
    while True:
        children = {name: child for name, child in module.named_children() if any(True for _ in child.parameters())}
        found = tuple(prefix + name for name in children if name in HEADS)
        if found:
            return found
        if isinstance(module, nn.Sequential) and len(children) > 1:
            return (prefix + list(children)[-1],)
        if len(children) != 1:
            raise TomokitError(
                f"can't tell which modules are the head of {type(network).__name__}; set `head` to some of "
                f"{[prefix + name for name in children]}"
            )
        name, module = children.popitem()
        prefix += name + "."


def inflate(weights: Weights, own: Weights) -> dict[str, Tensor]:
    """Return the weights with each 2D kernel (O, I, X, Y) that `own` has in 3D repeated along z, divided by its depth.

    On a volume whose slices are all alike each layer then gives what the 2D one gives on a slice (but for the padding
    at both ends), so that the norms' statistics hold. The other usual way, the kernel in the middle slice between
    zeros, gives the same there, but sees nothing of a slice's neighbours before it is trained.

    Args:
        weights: of the 2D network, by name.
        own: of the 3D network, for its shapes.

    Source: Carreira and Zisserman, Quo vadis, action recognition?, CVPR 2017.
    """
    inflated = dict(weights)
    for key, value in weights.items():
        wanted = own[key].shape if key in own else value.shape
        if value.ndim == 4 and len(wanted) == 5 and value.shape[2:] == wanted[2:4]:
            inflated[key] = value[..., None].expand(*value.shape, wanted[4]) / wanted[4]
    return inflated


def rate_groups(
    network: nn.Module,
    learning_rate: float,
    factor: float = 0.5,
    groups: int = 3,
    head: Sequence[str] | None = None,
) -> list[dict[str, Any]]:
    """Return the network's parameters in groups for an optimizer, each with its own rate `lr`: the earlier, the lower.

    The head comes first, at the learning rate itself, which is then the one in the logs. The body's kernels, in the
    order in which the network defines them, are shared out evenly over the groups; each group has `factor` times the
    rate of the one behind it, the last one of the head's. A norm or bias goes with the kernel before it. A schedule,
    and `UnfreezeAt`, change all rates alike. In a config it stands at `train::optimizer::params`.

    Args:
        network: the network to train; joined with other processes' or not.
        learning_rate: of the head.
        factor: above 0, at most 1.
        groups: of the body.
        head: names of the modules that are the head; None finds them by their usual names.

    Raises:
        TomokitError: when the factor or the number of groups is out of its range, or the head can't be told.
    Source: Howard and Ruder, Universal language model fine-tuning for text classification, ACL 2018.
    """
    if not 0 < factor <= 1 or groups < 1:
        raise TomokitError(f"the factor must be above 0 and at most 1, groups 1 or more; got {factor} and {groups}")
    bare = unwrap(network)
    heads = find_head(bare, head)
    body = [parameter for name, parameter in bare.named_parameters() if not _within(name, heads)]
    rest = [parameter for name, parameter in bare.named_parameters() if _within(name, heads)]
    rates = [learning_rate * factor**distance for distance in range(groups + 1)]
    parts = list(zip([rest, *reversed(_share_out(body, groups))], rates, strict=True))
    told = ", ".join(f"{len(part)} tensors at {rate:.3g}" for part, rate in parts if part)
    logger.info("learning rates from the head to the first layers: %s", told)
    return [{"params": part, "lr": rate} for part, rate in parts if part]


class LowerRates:
    """Trains with a part of the schedule's learning rates from the first epoch on: a handler of the trainer.

    A bundle's optimizer, or a layer's, brings the rate of training from scratch; fine-tuning takes a part of it.

    Args:
        lr_scheduler: torch's schedule of the optimizer; a checkpoint keeps its lowered rates.
        factor: the learning rate, as part of what the schedule gives.

    Raises:
        TomokitError: when the factor is not above 0.
    """

    def __init__(self, lr_scheduler: Any, factor: float = 0.1) -> None:
        self.lr_scheduler = lr_scheduler
        self.factor = _check_factor(factor)

    def attach(self, engine: Engine) -> None:
        """Lower the rates before the first step of a run; one that is resumed has them in its checkpoint."""
        engine.add_event_handler(Events.EPOCH_STARTED(once=1), self)

    def __call__(self, engine: Any) -> None:
        """Lower the rates."""
        lower_rates(self.lr_scheduler, self.factor)


class UnfreezeAt:
    """Trains a frozen body from an epoch on, at a lower learning rate: a handler of the trainer.

    The optimizer holds all parameters from the start; those that are frozen have no gradient and are left alone. The
    schedule's rates, which a checkpoint keeps, are lowered once, so that a resumed run goes on as it would have.

    Args:
        epochs: how many epochs train the head alone.
        lr_scheduler: torch's schedule of the optimizer.
        factor: the learning rate afterwards, as part of what the schedule gives.

    Raises:
        TomokitError: when the factor is not above 0.
    """

    def __init__(self, epochs: int, lr_scheduler: Any, factor: float = 0.1) -> None:
        self.epochs = epochs
        self.lr_scheduler = lr_scheduler
        self.factor = _check_factor(factor)

    def attach(self, engine: Engine) -> None:
        """Look at the start of each epoch of the trainer whether it is time."""
        engine.add_event_handler(Events.EPOCH_STARTED, self)

    def __call__(self, engine: Any) -> None:
        """Unfreeze the trainer's network in the first epoch after `epochs`, and in a later one that is resumed in."""
        if engine.state.epoch <= self.epochs:
            return
        frozen = [parameter for parameter in unwrap(engine.network).parameters() if not parameter.requires_grad]
        if frozen:
            for parameter in frozen:
                parameter.requires_grad_(True)
            engine.network = rejoin(engine.network)
            logger.info("epoch %d: the whole network is trained from here on", engine.state.epoch)
        if engine.state.epoch == self.epochs + 1:
            lower_rates(self.lr_scheduler, self.factor)


def lower_rates(lr_scheduler: Any, factor: float) -> None:
    """Multiply the optimizer's learning rates by the factor, now and in all that its schedule gives."""
    for group in lr_scheduler.optimizer.param_groups:
        group["lr"] *= factor
    lr_scheduler.base_lrs = [rate * factor for rate in lr_scheduler.base_lrs]


def rejoin(network: nn.Module) -> nn.Module:
    """Return the network, joined anew with the other processes' where it is: what is trained is agreed on once."""
    if not isinstance(network, nn.parallel.DistributedDataParallel):
        return network
    return nn.parallel.DistributedDataParallel(network.module, device_ids=network.device_ids)


def _check_factor(factor: float) -> float:
    """Return the factor of the learning rates, or raise TomokitError when it is not above 0."""
    if not factor > 0:
        raise TomokitError(f"the factor of the learning rate must be above 0, got {factor}")
    return factor


def _read(path: Path) -> dict[str, Tensor]:
    """Return the tensors in a file of weights, by the names the network itself has for them."""
    content = load(path)
    content = content.get("state_dict", content)
    tensors = {key: value for key, value in weights_of(content).items() if isinstance(value, Tensor)}
    return {key.removeprefix("module."): value for key, value in tensors.items()}


def _fit_dimensions(weights: Weights, own: Weights, adapt_channels: bool) -> dict[str, Tensor]:
    """Return the weights, 2D kernels inflated where the network is 3D; channels adapted then, or if so asked."""
    fitted = inflate(weights, own)
    kernels = sum(fitted[key] is not value for key, value in weights.items())
    if kernels:
        logger.info("pretrained: %d 2D kernels were inflated to 3D", kernels)
    return _adapt_channels(fitted, own) if adapt_channels or kernels else fitted


def _adapt_channels(weights: Weights, own: Weights) -> dict[str, Tensor]:
    """Return the weights with the first convolution's input channels made as many as the network's.

    Each channel gets their mean, scaled so that an image repeated in all channels gives the same features.
    """
    first = next((key for key, value in own.items() if value.ndim >= 4 and key in weights), None)
    if first is None or weights[first].shape[1] == own[first].shape[1]:
        return dict(weights)
    old, new = weights[first].shape[1], own[first].shape[1]
    adapted = dict(weights)
    for key, value in weights.items():
        wanted = own[key].shape if key in own else value.shape
        if value.ndim >= 4 and value.shape[1] == old and wanted == (value.shape[0], new, *value.shape[2:]):
            adapted[key] = value.mean(1, keepdim=True).expand(wanted) * (old / new)
    return adapted


def _share_out(body: Sequence[nn.Parameter], groups: int) -> list[list[nn.Parameter]]:
    """Return the body's parameters in groups of as many kernels each, in their order; a kernel has two axes or more."""
    kernels = max(sum(parameter.ndim > 1 for parameter in body), 1)
    parts: list[list[nn.Parameter]] = [[] for _ in range(groups)]
    seen = 0
    for parameter in body:
        seen += parameter.ndim > 1
        parts[max(seen - 1, 0) * groups // kernels].append(parameter)
    return parts


def _within(key: str, modules: Sequence[str]) -> bool:
    """Return whether a parameter's name lies in one of the modules."""
    return any(key.startswith(f"{name}.") for name in modules)


def _check_share(network: nn.Module, matched: Weights, heads: Sequence[str], path: Path) -> None:
    """Raise when less than half of the body's parameters are among the matched ones."""
    body = {key: value.numel() for key, value in network.named_parameters() if not _within(key, heads)}
    found = sum(count for key, count in body.items() if key in matched)
    if 2 * found < max(sum(body.values()), 1):
        missing = ", ".join([key for key in body if key not in matched][:SHOWN])
        raise TomokitError(
            f"the weights of {path} fit only {found} of the {sum(body.values())} parameters of the body of "
            f"{type(network).__name__} ({missing} …); use their own network, and `adapt_channels: true` "
            "for another number of input channels"
        )


def _check_shortcuts(own: Weights, weights: Weights, path: Path) -> None:
    """Raise when a ResNet's blocks add another kind of shortcut to their features than those of the weights did."""
    differing = sorted(key for key in set(own) ^ set(weights) if SHORTCUT.search(key))
    if differing:
        owner = "the file" if differing[0] in weights else "the network"
        raise TomokitError(
            f"the shortcuts of {path} are of another kind than the network's: {differing[0]} is in {owner} alone; "
            "`shortcut_type: B` with `bias_downsample: false` are those of torchvision's files (layer "
            "modes/torchvision) and of MedicalNet's 10 and 50, `shortcut_type: A` those of MedicalNet's 18 and 34"
        )


def _report(own: Mapping[str, Tensor], weights: Weights, matched: Weights, path: Path) -> None:
    """Log how many tensors were taken, and which were left out for what reason."""
    shapes = [
        f"{key} {tuple(weights[key].shape)} for {tuple(own[key].shape)}"
        for key in own
        if key in weights and key not in matched
    ]
    missing = [key for key in own if key not in weights]
    unknown = [key for key in weights if key not in own]
    logger.info("pretrained: %d of %d tensors from %s", len(matched), len(own), path)
    for reason, names in (("of another shape", shapes), ("not in the file", missing), ("not in the network", unknown)):
        if names:
            more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
            logger.info("pretrained: left out, %s: %s%s", reason, ", ".join(names[:SHOWN]), more)


def _freeze(network: nn.Module, matched: Weights, heads: Sequence[str]) -> None:
    """Freeze what was loaded, but for the head; batch norms of the body use and keep their statistics meanwhile."""
    frozen = [
        parameter for name, parameter in network.named_parameters() if name in matched and not _within(name, heads)
    ]
    for parameter in frozen:
        parameter.requires_grad_(False)
    hold = functools.partial(_hold_statistics, frozen[0])
    for name, module in network.named_modules():
        if f"{name}.running_mean" in matched and not _within(f"{name}.", heads):
            module.register_forward_pre_hook(hold)


def _hold_statistics(body: nn.Parameter, module: nn.Module, _: Any) -> None:
    """Run a batch norm as in evaluation as long as the body is frozen: MONAI's trainer sets all modules to training."""
    if not body.requires_grad:
        module.eval()
