"""Backends give PyTorch's labels and logits, are refused where they don't, and leave nothing behind."""

import importlib.util
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from monai.networks.nets import DynUNet

import tomokit.inference.backends as module
from tomokit.errors import TomokitError
from tomokit.inference import SlabInferer
from tomokit.inference.backends import Sample, compare
from tomokit.networks import LeanUNet, PaddedNetwork

WINDOW = (13, 16, 15)


def needs(name):
    missing = [package for package in module.PACKAGES[name] if importlib.util.find_spec(package) is None]
    return pytest.mark.skipif(bool(missing), reason=f"needs {', '.join(missing)}: pip install 'tomokit[{name}]'")


ONNX = pytest.param("onnx", marks=needs("onnx"))
OPENVINO = pytest.param("openvino", marks=needs("openvino"))


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.no_grad():
        yield


def lean_unet():
    """Return a network whose 24 classes have a pointwise last layer on 8 features."""
    torch.manual_seed(0)
    return LeanUNet(3, 1, 24, filters=[8, 16], strides=[1, 2], kernel_size=[3, 3], heads=1, dropout=0.0).eval()


def dynunet():
    """Return MONAI's U-Net with 3 classes, padded to sizes that it takes."""
    torch.manual_seed(0)
    norm = ("instance", {"affine": True})
    return PaddedNetwork(DynUNet(3, 1, 3, [3, 3, 3], [1, 2, 2], [2, 2], filters=[4, 8, 8], norm_name=norm), 4).eval()


def volume():
    return torch.randn(1, 1, 18, 20, 27, generator=torch.Generator().manual_seed(1))


class Exported(torch.nn.Module):
    """Two classes; other labels once it is exported, if it is fickle; slow before, by `seconds`."""

    def __init__(self, fickle=False, seconds=0.0):
        super().__init__()
        self.layer = torch.nn.Conv3d(1, 2, 3, padding=1)
        self.fickle = fickle
        self.seconds = seconds

    def forward(self, image, scale=1):
        if not torch.compiler.is_compiling():
            time.sleep(self.seconds)
        return self.layer(image) * scale * (-1 if self.fickle and torch.compiler.is_compiling() else 1)


class Branching(torch.nn.Module):
    """Takes its way by what is in the image."""

    def forward(self, image):
        return torch.cat([image, -image], 1) if image.mean() > 0 else torch.cat([-image, image], 1)


# ------------------------------------------------------------------------------------------------------------ parity


@pytest.mark.parametrize("backend", [ONNX, OPENVINO])
@pytest.mark.parametrize("make", [lean_unet, dynunet])
def test_logits_and_labels_are_pytorchs(make, backend):
    network, image = make(), volume()
    truth = SlabInferer(WINDOW, reduce="logits")(image, network)
    logits = SlabInferer(WINDOW, reduce="logits", backend=backend, sw_batch_size=3)(image, network)
    assert logits.shape == truth.shape
    torch.testing.assert_close(logits, truth, atol=1e-4, rtol=1e-4)
    labels = SlabInferer(WINDOW, backend=backend)(image, network)
    assert (labels[:, 0] == truth.argmax(1)).float().mean() >= 0.9999


def test_compiled_labels_are_pytorchs_volume_after_volume():
    network, image = lean_unet(), volume()
    inferer = SlabInferer(WINDOW, reduce="logits", backend="compile", sw_batch_size=5)  # 8 windows: 5 and 3
    for _ in range(2):
        truth = SlabInferer(WINDOW, reduce="logits")(image, network)
        torch.testing.assert_close(inferer(image, network), truth, atol=1e-4, rtol=1e-4)
        image = image.permute(0, 1, 4, 3, 2).flip(2)  # windows in another order of axes
    assert all(type(layer) is not torch.nn.Identity for layer in network.logits[-1:])


@pytest.mark.parametrize("backend", [ONNX, OPENVINO])
def test_images_and_mirrored_regions_go_through_a_backend(backend):
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(4, 9, 1))
    regions = {f"region {number}": [number] for number in range(1, 10)}
    options = {"mirror_axes": [0], "regions": regions, "sw_batch_size": 2}
    image = torch.randn(2, 1, 20, 29)
    truth = SlabInferer((16, 13), **options)(image, network)
    labels = SlabInferer((16, 13), backend=backend, **options)(image, network)
    assert (labels == truth).float().mean() >= 0.999


@needs("openvino")
def test_openvinos_precision_is_the_one_asked_for():
    network, image = lean_unet(), volume()
    truth = SlabInferer(WINDOW, reduce="logits")(image, network)
    error = {}
    for dtype in (torch.float32, torch.bfloat16):
        found = SlabInferer(WINDOW, reduce="logits", backend="openvino", dtype=dtype)(image, network)
        error[dtype] = float((found - truth).abs().max() / (truth.max() - truth.min()))
    assert error[torch.float32] < 1e-5
    if torch.cpu.get_capabilities().get("avx512_bf16", False):  # others calculate in float32
        assert 1e-4 < error[torch.bfloat16] < 0.05


@pytest.mark.parametrize("backend", [ONNX, OPENVINO])
def test_a_backend_is_kept_until_the_weights_change(backend, caplog):
    network, image = dynunet(), volume()
    inferer = SlabInferer(WINDOW, reduce="logits", backend=backend)
    with caplog.at_level("INFO"):
        for _ in range(2):
            inferer(image, network)
        assert caplog.text.count("agrees with PyTorch") == 1
        network.network.input_block.conv1.conv.weight.mul_(-1)
        logits = inferer(image, network)
        assert caplog.text.count("agrees with PyTorch") == 2
    torch.testing.assert_close(logits, SlabInferer(WINDOW, reduce="logits")(image, network), atol=1e-4, rtol=1e-4)


def test_agreement_is_counted_and_measured():
    truth = torch.zeros(1, 2, 10, 4, 4)
    truth[:, 0] = 3.0
    found = truth.clone()
    found[:, 0, 9, 0, :2] = -1.0  # 2 of 160 voxels turn, in the second block of rows
    windows = torch.zeros(1, 1, 10, 4, 4)
    share, difference = compare(found, truth, Sample(windows, None, False, torch.float32))
    assert share == pytest.approx(158 / 160)
    assert difference == pytest.approx(4 / 3)
    share, _ = compare(found, truth, Sample(windows, None, True, torch.float32))
    assert share == pytest.approx(318 / 320)
    share, _ = compare(truth.flip(1), truth, Sample(windows, torch.nn.Conv3d(2, 2, 1), False, torch.float32))
    assert 0 <= share <= 1
    assert not compare(truth * torch.nan, truth, Sample(windows, None, False, torch.float32)).difference <= 1


# -------------------------------------------------------------------------------------------------------------- auto


def auto(network, monkeypatch, caplog, packages, **options):
    """Return what `auto` says, of some of the backends."""
    monkeypatch.setattr(module, "PACKAGES", packages)
    with caplog.at_level("INFO"):
        labels = SlabInferer(WINDOW, backend="auto", **options)(volume(), network)
    assert (labels == SlabInferer(WINDOW)(volume(), network)).float().mean() >= 0.999
    return next(line for line in caplog.messages if line.startswith("backend auto"))


@pytest.mark.parametrize("backend", [ONNX, OPENVINO])
def test_auto_takes_the_fastest(backend, monkeypatch, caplog):
    packages = {"torch": (), backend: module.PACKAGES[backend]}
    told = auto(Exported(seconds=0.1), monkeypatch, caplog, packages)
    assert f"takes {backend} (measured in" in told


def test_auto_keeps_pytorch_where_others_are_slower_or_missing(monkeypatch, caplog):
    def slow(network, windows, dtype):
        return lambda windows: time.sleep(0.1) or network(windows)

    monkeypatch.setattr(module, "MAKERS", {"compile": slow})
    told = auto(Exported(), monkeypatch, caplog, {"torch": (), "compile": (), "onnx": ("no_such_package",)})
    assert "compile 0.1" in told
    assert "(agrees to 100.0000%), onnx is not installed (`pip install 'tomokit[onnx]'`); takes torch" in told


@needs("openvino")
def test_auto_passes_over_what_does_not_agree(monkeypatch, caplog):
    packages = {"torch": (), "openvino": ("openvino",)}
    told = auto(Exported(fickle=True, seconds=0.1), monkeypatch, caplog, packages)
    assert "openvino does not agree with PyTorch: 0.0000% of the voxels" in told
    assert "takes torch" in told


def test_auto_leaves_what_is_no_module_to_pytorch(caplog):
    network = Exported()
    with caplog.at_level("INFO"):
        labels = SlabInferer(WINDOW, backend="auto")(volume(), lambda image: network(image).clone())
    assert "backend auto: torch, since any other takes only a torch.nn.Module" in caplog.text
    assert torch.equal(labels, SlabInferer(WINDOW)(volume(), network))


# ------------------------------------------------------------------------------------------------------------ errors


def test_an_unknown_backend_is_refused():
    with pytest.raises(
        TomokitError, match="backend must be one of torch, compile, onnx, openvino, auto, got 'tensorrt'"
    ):
        SlabInferer(WINDOW, backend="tensorrt")


@pytest.mark.parametrize("backend", ["onnx", "openvino"])
def test_a_missing_package_is_named_with_its_remedy(backend, monkeypatch):
    monkeypatch.setitem(module.PACKAGES, backend, ("no_such_package",))
    with pytest.raises(
        TomokitError, match=rf"backend {backend} is not installed \(`pip install 'tomokit\[{backend}\]'`\)"
    ):
        SlabInferer(WINDOW, backend=backend)(volume(), Exported())


@needs("openvino")
def test_a_backend_of_another_device_is_refused():
    with pytest.raises(TomokitError, match=r"backend openvino runs on the CPU, not on cuda:0 \(set `device: cpu`"):
        module._check_available("openvino", torch.device("cuda:0"))


@pytest.mark.parametrize("backend", [ONNX, OPENVINO])
def test_a_network_that_is_exported_wrongly_is_refused(backend):
    told = rf"backend {backend} does not agree with PyTorch: 0.0000% of the voxels have its label \(99.9900% must\)"
    with pytest.raises(TomokitError, match=told):
        SlabInferer(WINDOW, backend=backend)(volume(), Exported(fickle=True))


@pytest.mark.parametrize("backend", [ONNX, OPENVINO])
def test_a_network_that_depends_on_the_image_is_refused(backend):
    with pytest.raises(TomokitError, match=f"backend {backend} can't take this network") as caught:
        SlabInferer(WINDOW, backend=backend)(volume(), Branching())
    assert "\n" not in str(caught.value)


def test_a_function_and_further_arguments_are_refused():
    told = "backend compile takes only a torch.nn.Module that is called with the image alone, got "
    with pytest.raises(TomokitError, match=told + "function"):
        SlabInferer(WINDOW, backend="compile")(volume(), lambda image: image)
    with pytest.raises(TomokitError, match=told + "Exported"):
        SlabInferer(WINDOW, backend="compile")(volume(), Exported(), scale=2)


ALONE = """
import sys, torch
from tomokit.errors import TomokitError
from tomokit.inference import SlabInferer
network = torch.nn.Sequential(torch.nn.Conv3d(1, 2, 3, padding=1), torch.nn.Tanh()).eval()
for backend in sys.argv[1:]:
    try:
        SlabInferer((8, 8, 8), backend=backend)(torch.randn(1, 1, 8, 8, 8), network)
    except TomokitError as error:
        print(error)
print("telemetry" if "openvino_telemetry" in sys.modules else "silent")
"""


def test_without_a_compiler_one_line_says_so_and_no_backend_leaves_files(tmp_path):
    installed = [name for name in ("onnx", "openvino") if not needs(name).args[0]]
    folders = {name: str(tmp_path / name) for name in ("HOME", "TMPDIR", "XDG_CACHE_HOME", "XDG_CONFIG_HOME")}
    for folder in folders.values():
        Path(folder).mkdir()
    done = subprocess.run(
        [sys.executable, "-c", ALONE, *installed, "compile"],
        env={**os.environ, **folders, "CXX": "/no/such/compiler"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    told = "backend compile needs a C++ compiler (install g++ or clang, or set `backend: torch`)"
    assert done.stdout.splitlines() == [told, "silent"], done.stdout + done.stderr[-2000:]
    left = [path for path in tmp_path.rglob("*") if not path.is_dir() and "matplotlib" not in path.parts]
    assert left == []
