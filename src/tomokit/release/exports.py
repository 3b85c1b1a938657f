"""A released network as files of other runtimes, each kept only where it computes the same as the network."""

import contextlib
import io
import json
import logging
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from monai.bundle import ConfigParser
from monai.data import save_net_with_metadata
from numpy.typing import NDArray
from torch import Tensor, nn

from tomokit.config_rules import copy_tree
from tomokit.errors import TomokitError
from tomokit.release.standalone import Config

TOLERANCE = 1e-4  # of the largest logit; float32 runtimes differ by some 1e-6
SLICES = 8  # of the example of a network that takes any number
ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
SIZES = ("patch_size", "image_size", "window")  # keys that tell the size of what a network takes, in voxels
SHOWN = 160  # characters of a reason


class Export(NamedTuple):
    """A file of another runtime.

    Attributes:
        name: of the file.
        difference: from the network on a window, as part of the largest logit; None where the file was left out.
        reason: why it was left out.
    """

    name: str
    difference: float | None
    reason: str = ""


class Example(NamedTuple):
    """A network and what it takes: an image (1, C, X, Y[, Z]) and, by their names, what else."""

    network: nn.Module
    inputs: dict[str, Tensor]


def build_network(inference: Config, folder: Path, weights: Mapping[str, Tensor]) -> nn.Module:
    """Return the network that a released config of inference builds, on the CPU, with its weights.

    Args:
        inference: the config.
        folder: of the release, where it lies now.
        weights: which must fit.

    Raises:
        TomokitError: when the weights are of another network.
    """
    network: nn.Module = _parser(inference, folder).get_parsed_content("network")
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        told = str(error).splitlines()[0]
        raise TomokitError(f"the run's weights do not fit the network of its config: {told}; train it again") from error
    return network.eval()


def export_network(
    network: nn.Module, inference: Config, folder: Path, metadata: Mapping[str, Any], configs: Mapping[str, Config]
) -> list[Export]:
    """Return what became of `models/model.ts` and `models/model.onnx` in a release's folder.

    Args:
        network: the released one.
        inference: its config, which tells what it takes.
        folder: of the release.
        metadata, configs: what the TorchScript file holds besides, by the names of the files.
    """
    models = folder / "models"
    try:
        example = Example(network, _example(_parser(inference, folder)))
    except Exception as error:  # a bundle of one's own may have other keys, and its parts raise what they like
        return [Export(name, None, f"no example of its input is known: {error}") for name in ("model.ts", "model.onnx")]
    return [
        export_torchscript(example, models / "model.ts", metadata, configs),
        export_onnx(example, models / "model.onnx"),
    ]


def export_torchscript(
    example: Example, path: Path, metadata: Mapping[str, Any], configs: Mapping[str, Config]
) -> Export:
    """Write the network as TorchScript with metadata and configs inside, as MONAI Deploy reads it; tell how it agrees.

    It is scripted, or traced on a window where its code is more than TorchScript knows.
    """
    extra = {f"{name}.json": json.dumps(config).encode() for name, config in configs.items()}

    def write() -> Callable[..., Any]:
        with _quiet(), torch.no_grad():
            script = _script(example)
            save_net_with_metadata(
                script, str(path), include_config_vals=False, meta_values=metadata, more_extra_files=extra
            )
            _drop_sources(path)
            return torch.jit.load(path)

    return _kept_if_equal(example, path, write)


def export_onnx(example: Example, path: Path) -> Export:
    """Write the network as ONNX, for one window of this size at a time; tell how ONNX Runtime agrees with it."""
    missing = [name for name in ONNX_PACKAGES if find_spec(name) is None]
    if missing:
        reason = f"{', '.join(missing)} is not installed: pip install tomokit[onnx]"
        return Export(path.name, None, reason)
    inputs = {name: tensor.numpy() for name, tensor in example.inputs.items()}

    def write() -> Callable[..., Any]:
        import onnxruntime

        path.write_bytes(_onnx_bytes(example))
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        wanted = {entry.name for entry in session.get_inputs()}
        given = {name: array for name, array in inputs.items() if name in wanted}
        return lambda *_: torch.from_numpy(np.asarray(session.run(None, given)[0]))

    return _kept_if_equal(example, path, write)


def _parser(inference: Config, folder: Path) -> ConfigParser:
    """Return the parser of a config that lies in a folder, for the CPU."""
    return ConfigParser(copy_tree(inference) | {"bundle_root": str(folder), "device": "cpu"})


def _example(parser: ConfigParser) -> dict[str, Tensor]:
    """Return an example of what the network of a config takes, the image first, drawn with a fixed seed."""
    generator = torch.Generator().manual_seed(0)
    key = next((key for key in SIZES if key in parser.get()), None)
    if key is None:
        raise TomokitError(f"its config has none of {', '.join(SIZES)}")
    size = [SLICES if length < 0 else length for length in parser.get_parsed_content(key)]
    own = "in_channels" in (parser.get("network_def") or {})  # of a registration both scans', each of the one modality
    channels = (
        parser.get_parsed_content("network_def::in_channels") if own else len(parser.get_parsed_content("modality"))
    )
    known: dict[str, Callable[[], Tensor]] = {
        "record": lambda: torch.randn(1, sum(parser.get_parsed_content("record_features")), generator=generator),
        "presence": lambda: torch.ones(1, channels),
        "features": lambda: torch.randn(1, len(parser.get_parsed_content("measures").names), generator=generator),
        "lengths": lambda: torch.tensor([size[parser.get_parsed_content("slice_axis")]]),
    }
    inputs = {"image": torch.randn(1, channels, *size, generator=generator)}
    prepare = parser["evaluator"].get("prepare_batch", {})
    extra = parser.get_parsed_content("evaluator::prepare_batch::extra") if "extra" in prepare else []
    return inputs | {name: known[name]() for name in extra}


def _script(example: Example) -> Any:
    """Return a network as TorchScript: scripted, or else traced."""
    try:
        return torch.jit.script(example.network)
    except Exception:  # torch raises all kinds of them for code that it can't script
        return torch.jit.trace(example.network, tuple(example.inputs.values()))


def _drop_sources(path: Path) -> None:
    """Take what tells the source files' paths on this machine out of a TorchScript file."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(buffer, "w") as new:
        for entry in old.infolist():
            if not entry.filename.endswith(".debug_pkl"):
                new.writestr(entry, old.read(entry))
    path.write_bytes(buffer.getvalue())


def _onnx_bytes(example: Example) -> bytes:
    """Return a network as ONNX, without the notes that tell the source files' paths on this machine."""
    with _quiet(), torch.no_grad():
        program: Any = torch.onnx.export(
            example.network,
            tuple(example.inputs.values()),
            input_names=list(example.inputs),
            output_names=["pred"],
            dynamo=True,
            verbose=False,
        )
    model = program.model_proto
    functions = list(model.functions)
    for part in [model, model.graph, *model.graph.node, *functions, *(node for own in functions for node in own.node)]:
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    return bytes(model.SerializeToString())


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep an exporter's pages of notes from the user, who is told the reason where it fails."""
    level = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            with contextlib.redirect_stderr(io.StringIO()):
                yield
    finally:
        logging.disable(level)


def _kept_if_equal(example: Example, path: Path, write: Callable[[], Callable[..., Any]]) -> Export:
    """Write a file, and remove it again where that fails, or where it does not compute what the network does."""
    try:
        with torch.no_grad():
            found = write()(*example.inputs.values())
            difference = _difference(found, example.network(*example.inputs.values()))
    except Exception as error:  # exporters raise all kinds of them; what the user needs is told in the reason
        path.unlink(missing_ok=True)
        cause = error.__cause__ or error
        told = " ".join([type(cause).__name__, *str(cause).strip().splitlines()[:1]])
        return Export(path.name, None, f"the network can't be exported: {told[:SHOWN]}")
    if not difference <= TOLERANCE:
        path.unlink()
        return Export(path.name, None, f"its logits differ from the network's by {difference:.1g} of the largest")
    return Export(path.name, difference)


def _difference(found: Tensor, expected: Tensor) -> float:
    """Return how far two outputs lie apart, as part of the largest value; infinite where their shapes differ."""
    first, second = _array(found), _array(expected)
    if first.shape != second.shape:
        return float("inf")
    return float(np.abs(first - second).max() / max(np.abs(second).max(), np.finfo(np.float32).tiny))


def _array(output: Tensor) -> NDArray[np.float64]:
    """Return an output as an array."""
    return output.detach().double().numpy()
