"""The networks of the inference benchmark: MONAI's DynUNet of nnU-Net's size, trained by the segmentation bundle."""

import os
import statistics
from pathlib import Path
from typing import Any

import yaml
from commands import bundle_run
from inference_data import GRID_MM, label_names, training_set
from loops import bundle_workflow, time_steps

from tomokit.bundles import find_bundle
from tomokit.catalogue import get_dataset
from tomokit.files import read_json, write_json, write_text

FILTERS, STRIDES = [32, 64, 128, 256, 320, 320], [1, 2, 2, 2, 2, 2]
PATCH = [64, 64, 64]  # in training: a step on a window of inference takes half a minute on two CPU cores
TIMED = (2, 4)  # steps that warm up, and steps that are timed
RATE = 0.02  # six times what a plan chooses for a network of this size, which is for longer trainings
RESERVE = 0.8  # of the minutes for the steps; the rest for the program's start, the cases and the last checkpoint


def trained_run(run_dir: Path, classes: int, minutes: float, device: str, real: bool) -> Path:
    """Return the run of a network of so many classes, trained now for at most so many minutes unless it is there.

    Args:
        run_dir: of the run.
        classes: of the network, background too.
        minutes: of the whole training.
        device: "cpu" or "cuda".
        real: train on the hippocampus set, not on trunks.
    """
    if (run_dir / "seconds.json").is_file():
        return run_dir
    configs = find_bundle("segmentation") / "configs"
    layer = run_dir.with_name(f"{run_dir.name}.yaml")
    write_text(layer, yaml.safe_dump(hippocampus_numbers() if real else trunk_numbers(classes), sort_keys=False))
    data = [configs / "data" / "hippocampus.yaml"] if real else []
    files = [configs / "train.yaml", *data, configs / "networks" / "dynunet.yaml", layer]
    overrides = {"device": f"$torch.device('{device}')"}
    epochs = fit_epochs(files, overrides, minutes)
    overrides |= {"run_dir": run_dir, "epochs": epochs, "val_interval": epochs}
    write_json(run_dir / "seconds.json", {"seconds": bundle_run(files, overrides), "epochs": epochs})
    return run_dir


def trunk_numbers(classes: int) -> dict[str, Any]:
    """Return the layer for a training on trunks."""
    folder = training_set(classes).resolve()
    return {"dataset_dir": str(folder), "labels": label_names(classes), "spacing": [GRID_MM] * 3} | _network_numbers()


def hippocampus_numbers() -> dict[str, Any]:
    """Return the layer for a training on the hippocampus set, behind the set's own."""
    get_dataset("hippocampus", source=os.environ.get("TOMOKIT_MIRROR"))
    return _network_numbers() | {"minimum_size": PATCH}


def _network_numbers() -> dict[str, Any]:
    """Return what every network's layer has."""
    kernels = [3] * len(FILTERS)
    sizes = {"patch_size": PATCH, "filters": FILTERS, "strides": STRIDES, "kernel_size": kernels}
    sizes |= {"batch_size": 1, "foreground_share": 0.8}  # more steps in as many minutes, on structures
    # no augmentation: in a few hundred steps it only slows the learning
    return sizes | {"learning_rate": RATE, "train::augmentation": {"_target_": "Compose", "transforms": []}}


def fit_epochs(files: list[Path], overrides: dict[str, Any], minutes: float) -> int:
    """Return how many epochs of a training fit into the minutes, by the time of some of its steps."""
    warm, timed = TIMED
    with bundle_workflow(files, overrides) as workflow:
        trainer = workflow.parser.get_parsed_content("train::trainer")
        seconds = statistics.median(time_steps(trainer, warm + timed)[warm:])
        per_epoch = len(trainer.data_loader)
    return max(1, int(60 * minutes * RESERVE / seconds / per_epoch))


def training_seconds(run_dir: Path) -> float:
    """Return how long the training of a run took."""
    return float(read_json(run_dir / "seconds.json")["seconds"])
