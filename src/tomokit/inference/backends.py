"""Other programs that run a network's arithmetic, each compared with PyTorch on real windows before it is used."""

import importlib.util
import logging
import os
import statistics
import sys
import time
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from tomokit.errors import TomokitError
from tomokit.inference.heads import apply_head

logger = logging.getLogger(__name__)

Run = Callable[[Tensor], Tensor]

PACKAGES = {"torch": (), "compile": (), "onnx": ("onnx", "onnxscript", "onnxruntime"), "openvino": ("openvino",)}
BACKENDS = (*PACKAGES, "auto")
PRECISIONS = {torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "f16"}
SHARE = 0.9999  # of the voxels, at least, must have PyTorch's label in float32
DIFFERENCE = 1e-3  # of the logits' range, at most, may be between PyTorch's logits and a backend's in float32
LOOSER = 2.0  # in a lower precision: how many times may be added of what PyTorch itself differs in it
TIMES = 3
ROWS = 8


class Backends:
    """One backend, ready for each network: kept from volume to volume, and made anew when the weights have changed.

    Args:
        name: one of `BACKENDS`.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._made: weakref.WeakKeyDictionary[nn.Module, tuple[Any, Run | None]] = weakref.WeakKeyDictionary()

    def can_take(self, network: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
        """Return whether the backends can take a network, called with these arguments beside the image.

        Raises:
            TomokitError: when they can't, and one was named.
        """
        plain = isinstance(network, nn.Module) and not isinstance(network, torch.jit.ScriptModule)
        if plain and not args and not kwargs:
            return True
        needs = "takes only a torch.nn.Module that is called with the image alone"
        if self.name != "auto":
            raise TomokitError(f"backend {self.name} {needs}, got {type(network).__name__}; set `backend: torch`")
        logger.info("backend auto: torch, since any other %s", needs)
        return False

    def get(self, network: nn.Module, sample: "Sample") -> Run | None:
        """Return what `choose_backend` chose for the network, as it is now, and such windows."""
        weights = [(id(tensor), tensor._version) for tensor in (*network.parameters(), *network.buffers())]
        state = (sample.windows.shape, sample.windows.device, weights)  # torch counts the changes of a tensor
        if network not in self._made or self._made[network][0] != state:
            self._made.pop(network, None)  # before the next one takes memory
            self._made[network] = state, choose_backend(self.name, network, sample)
        return self._made[network][1]


class Sample(NamedTuple):
    """Real windows, on which a backend is compared and timed.

    Attributes:
        windows: (B, C, X, Y[, Z]), as many as the network gets at once.
        head: the network's last layer, where the network leaves it out.
        regions: whether channels are regions, each decided by itself, or classes that exclude each other.
        dtype: the network's precision.
    """

    windows: Tensor
    head: nn.Module | None
    regions: bool
    dtype: torch.dtype


class Agreement(NamedTuple):
    """How much of PyTorch's result in float32 another result is.

    Attributes:
        share: of the voxels that have the same label (of regions: of the voxels of all regions).
        difference: the largest between logits, as part of the logits' range.
    """

    share: float
    difference: float


class Trial(NamedTuple):
    """A backend that agrees.

    Attributes:
        run: gives what the network gives, of windows like the sample's, as many at most.
        agreement: with PyTorch in float32.
        seconds: that it takes for a window; 0 where that was not asked for.
    """

    run: Run
    agreement: Agreement
    seconds: float


def choose_backend(name: str, network: nn.Module, sample: Sample) -> Run | None:
    """Return what runs the network's arithmetic on windows like the sample's; None for PyTorch itself.

    A backend must agree with PyTorch in float32 on the sample: in `SHARE` of the labels, with no logit further off than
    `DIFFERENCE` of their range; in a lower precision twice what PyTorch itself differs in it may be added. Call it in
    the context in which the network is called: eval mode, no gradients, autocast of `sample.dtype`.

    Args:
        name: one of `BACKENDS`. "auto" times all that are installed, and takes the fastest that agrees.
        network: as it is called: without its last layer, if that is applied later.
        sample: what to compare on.

    Raises:
        TomokitError: when the named backend is not installed, can't take the network or the device, or does not agree.
    """
    if name == "torch":
        return None
    judge = _Judge(network, sample)
    started = time.perf_counter()
    if name != "auto":
        trial = judge.try_backend(name, timed=False)
        took = time.perf_counter() - started
        logger.info(
            "backend %s agrees with PyTorch to %.4f %%; made in %.0f s", name, 100 * trial.agreement.share, took
        )
        return trial.run
    trials: dict[str, Trial] = {}
    told = []
    for known in PACKAGES:
        try:
            trial = trials[known] = judge.try_backend(known, timed=True)
            told.append(f"{known} {trial.seconds:.3g} s (agrees to {trial.agreement.share:.4%})")
        except TomokitError as error:
            told.append(str(error).removeprefix("backend "))
    best = min(trials, key=lambda known: trials[known].seconds)
    took = time.perf_counter() - started
    logger.info("backend auto: %s; takes %s (measured in %.0f s)", ", ".join(told), best, took)
    return None if best == "torch" else trials[best].run


class _Judge:
    """Makes backends of a network, compares them with PyTorch, and times them.

    Args:
        network: as it is called.
        sample: what to compare on.
    """

    def __init__(self, network: nn.Module, sample: Sample) -> None:
        self.network = network
        self.sample = sample
        with torch.autocast(sample.windows.device.type, enabled=False):
            self.truth = network(sample.windows.float())
        self.own = Agreement(1.0, 0.0)
        if sample.dtype != torch.float32:
            self.own = compare(network(sample.windows), self.truth, sample)

    def try_backend(self, name: str, timed: bool) -> Trial:
        """Return a backend that agrees, with its time for a window if that is wanted.

        Raises:
            TomokitError: when there is no such backend here, or it does not agree.
        """
        windows = self.sample.windows
        _check_available(name, windows.device)
        try:
            run = self.network if name == "torch" else MAKERS[name](self.network, windows, self.sample.dtype)
            agreement = self.own if name == "torch" else compare(run(windows), self.truth, self.sample)
        except Exception as error:  # whatever a compiler or an exporter may raise
            raise TomokitError(f"backend {name} {_reason(error)}") from error
        least = SHARE - LOOSER * (1 - self.own.share)
        most = DIFFERENCE + LOOSER * self.own.difference
        if name != "torch" and not (agreement.share >= least and agreement.difference <= most):
            raise TomokitError(
                f"backend {name} does not agree with PyTorch: {agreement.share:.4%} of the voxels have its label "
                f"({least:.4%} must), logits differ by {agreement.difference:.2g} of their range ({most:.2g} may be)"
            )
        return Trial(run, agreement, _seconds(run, windows) / len(windows) if timed else 0.0)


def compare(found: Tensor, truth: Tensor, sample: Sample) -> Agreement:
    """Return how far features or logits (B, C, X, Y[, Z]) agree with the true ones; a few rows at a time."""
    same, largest, lowest, highest = [], [], [], []
    for first in range(0, truth.shape[2], ROWS):
        ours, theirs = (_logits(part[:, :, first : first + ROWS], sample.head) for part in (found, truth))
        equal = (ours > 0) == (theirs > 0) if sample.regions else ours.argmax(1) == theirs.argmax(1)
        same.append(equal.float().mean() * (ours.shape[2] / truth.shape[2]))
        largest.append((ours - theirs).abs().max())
        lowest.append(theirs.min())
        highest.append(theirs.max())
    extent = float(torch.stack(highest).max() - torch.stack(lowest).min())
    return Agreement(float(sum(same)), float(torch.stack(largest).max()) / max(extent, 1e-30))


def _logits(features: Tensor, head: nn.Module | None) -> Tensor:
    """Return the logits (B, K, X, Y[, Z]) of features, float32."""
    return features.float() if head is None else apply_head(head, features.movedim(1, -1)).movedim(0, 1)


def _seconds(run: Run, windows: Tensor) -> float:
    """Return the median time of a call, after one that warmed up."""
    times = []
    for _ in range(TIMES):
        start = time.perf_counter()
        run(windows)
        if windows.device.type == "cuda":
            torch.cuda.synchronize(windows.device)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def _check_available(name: str, device: torch.device) -> None:
    """Refuse a backend whose packages are missing, or that does not run on the device.

    Raises:
        TomokitError: with what to install.
    """
    missing = [package for package in PACKAGES[name] if importlib.util.find_spec(package) is None]
    if missing:
        raise TomokitError(f"backend {name} is not installed (`pip install 'tomokit[{name}]'`)")
    if PACKAGES[name] and device.type != "cpu":
        raise TomokitError(f"backend {name} runs on the CPU, not on {device} (set `device: cpu` or `backend: torch`)")


def _reason(error: Exception) -> str:
    """Return in one line why a backend could not be made."""
    if "C++ compiler" in str(error):
        return "needs a C++ compiler (install g++ or clang, or set `backend: torch`)"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [""]
    return f"can't take this network ({type(error).__name__}: {lines[0][:200]})"


# ------------------------------------------------------------------------------------------------ the backends


def _compiled(network: nn.Module, windows: Tensor, _dtype: torch.dtype) -> Run:
    """Return the network, compiled by torch for batches of this shape.

    The compiler's files lie in a folder of their own that is removed: torch would keep them in a shared folder, and
    unpickle what it finds there.
    """
    from torch._inductor.utils import fresh_cache

    # modules of its own, since leaving out the last layer would otherwise compile anew; the same weights
    weights = {id(tensor): tensor for tensor in (*network.parameters(), *network.buffers())}
    compiled = torch.compile(deepcopy(network, weights), dynamic=False)
    given = windows.clone()

    def run(windows: Tensor) -> Tensor:
        given[: len(windows)].copy_(windows)  # always of the shape and memory order that it was compiled for
        return compiled(given)[: len(windows)]

    failure: Exception | None = None
    with TemporaryDirectory() as folder, fresh_cache(dir=folder):
        try:
            run(windows)
        except Exception as error:  # kept until the folder is gone
            failure = error
    if failure is not None:
        raise failure
    return run


def _onnx(network: nn.Module, windows: Tensor, _dtype: torch.dtype) -> Run:
    """Return the network in ONNX Runtime, in float32, window by window: a batch is no faster."""
    os.environ.setdefault(
        "ORT_DISABLE_TELEMETRY", "1"
    )  # or its import reports its use, and names the machine in a file
    import onnxruntime

    with _exporting():
        exported = torch.onnx.export(_ChannelsLast(network), (windows[:1].float(),), dynamo=True, verbose=False)
    assert exported is not None, "the dynamo exporter gives a program"
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    model = exported.model_proto.SerializeToString()
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return _one_by_one(lambda window: session.run(None, {name: window})[0])


def _openvino(network: nn.Module, windows: Tensor, dtype: torch.dtype) -> Run:
    """Return the network in OpenVINO, in a precision, window by window: a batch is no faster."""
    openvino = _import_openvino()
    window = windows[:1].float()
    with _exporting():
        program = torch.export.export(_ChannelsLast(network), (window,))
        model = openvino.convert_model(program, input=[list(window.shape)])  # left open, sizes cost a minute and more
    settings = {
        "INFERENCE_PRECISION_HINT": PRECISIONS[dtype],  # without it, bf16 wherever the CPU has it
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
        "ENABLE_CPU_PINNING": False,  # processes beside each other would be bound to the same cores
    }
    compiled = openvino.Core().compile_model(model, "CPU", settings)
    return _one_by_one(lambda window: compiled(window)[0])


MAKERS = {"compile": _compiled, "onnx": _onnx, "openvino": _openvino}


class _ChannelsLast(nn.Module):
    """A network that gives (B, X, Y[, Z], C): the order in which the slab takes it, at no cost inside the backend."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        return self.network(image).movedim(1, -1)


def _one_by_one(infer: Callable[[np.ndarray], np.ndarray]) -> Run:
    """Return a callable for batches of windows (B, C, …) of one that gives (1, …, C) of one window (1, C, …)."""

    def run(windows: Tensor) -> Tensor:
        found = [torch.from_numpy(infer(window.float().contiguous().numpy())) for window in windows.split(1)]
        return (found[0] if len(found) == 1 else torch.cat(found)).movedim(-1, 1)

    return run


def _import_openvino() -> Any:
    """Return OpenVINO, which on import would tell its maker over the network, and leave a file in the user's home."""
    known = "openvino_telemetry" in sys.modules
    if not known:
        sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  # OpenVINO goes without it
    try:
        import openvino
    finally:
        if not known:
            del sys.modules["openvino_telemetry"]
    return openvino


@contextmanager
def _exporting() -> Iterator[None]:
    """Give the context for an export: float32, autocast's casts left out, and silent about torch's own parts."""
    noisy = [logging.getLogger(name) for name in ("torch.onnx", "onnx_ir", "onnxscript")]
    levels = [each.level for each in noisy]
    for each in noisy:
        each.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), torch.autocast("cpu", enabled=False):
            warnings.simplefilter("ignore")
            yield
    finally:
        for each, level in zip(noisy, levels, strict=True):
            each.setLevel(level)
