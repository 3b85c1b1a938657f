"""Small real runs of the bundles, in this process: an import of MONAI for each stage would cost seconds."""

from pathlib import Path
from typing import Any

import monai.bundle
import torch

from tomokit.bundles import bundles_folder

SMALL_UNET = {
    "_target_": "DynUNet",
    "spatial_dims": 3,
    "in_channels": "$len(@modality)",
    "out_channels": "$len(@labels)",
    "kernel_size": [3, 3, 3],
    "strides": [1, 2, 2],
    "upsample_kernel_size": [2, 2],
    "filters": [4, 8, 8],
    "dropout": "@dropout",
}


def config(bundle: str, *names: str) -> list[str]:
    """Return the paths of a bundle's config files."""
    return [str(bundles_folder() / bundle / "configs" / f"{name}.yaml") for name in names]


def layer(name: str) -> str:
    """Return the path of a layer that serves every bundle."""
    return str(bundles_folder() / "_layers" / f"{name}.yaml")


def train(bundle: str, run_dir: Path, *layers: str, files: tuple[str, ...] = (), **overrides: Any) -> Path:
    """Train on two validated epochs with the smoke layer and return the run's folder."""
    given = [*config(bundle, "train", *layers), layer("smoke"), *files]
    monai.bundle.run(config_file=given, run_dir=str(run_dir), **overrides)
    return run_dir


def follow(bundle: str, run: Path, stage: str, /, **overrides: Any) -> None:
    """Run an overlay (`evaluate` or `inference`) on a run's own config."""
    files = [str(run / "configs" / "train.yaml"), *config(bundle, stage)]
    monai.bundle.run(config_file=files, **overrides)


def weights(run_dir: Path, name: str = "last") -> dict[str, torch.Tensor]:
    """Return the network's weights in a checkpoint."""
    content = torch.load(run_dir / "checkpoints" / f"{name}.pt", weights_only=True)
    return content.get("network", content)


def same_weights(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    """Return whether two sets of weights are equal bit for bit."""
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
