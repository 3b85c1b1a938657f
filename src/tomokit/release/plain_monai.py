"""A released segmentation that needs MONAI alone, where its network is MONAI's own."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from monai.bundle import ComponentLocator, ConfigParser
from torch import Tensor

from tomokit.config_rules import copy_tree, is_component, locate_target, walk
from tomokit.networks import PaddedNetwork
from tomokit.postprocessing import Step
from tomokit.release.standalone import PREDICTIONS, SCANS, WEIGHTS, Config, closure
from tomokit.runs import ONE_DEVICE

PADDED = "tomokit.networks.PaddedNetwork"
SLABS = "tomokit.inference.SlabInferer"
PREFIX = "network."
OWN = ("monai", "torch", "numpy")
READER = {"_target_": "tomokit.reading.ScanReader"}  # of NIfTI, and others
SPACING = "tomokit.spacing.SeparableSpacingd"  # gives what MONAI's does
POSTFIX = "seg"  # the scans may lie in the output folder
NAMES = re.compile(r"\btomokit\b")


def unpad(configs: Mapping[str, Config], weights: dict[str, Tensor]) -> tuple[dict[str, Config], dict[str, Tensor]]:
    """Return configs and weights without the padding around a network that gets windows which need none.

    The network's wrapper pads an image to multiples of a size. All windows are alike: where they are such a multiple,
    the network inside, often MONAI's own, is all there is.
    """
    inference = configs["inference"]
    if inference["network_def"].get("_target_") != PADDED or inference["inferer"].get("_target_") != SLABS:
        return dict(configs), weights
    window = read_option(inference, "roi_size")
    network = ConfigParser(copy_tree(inference)).get_parsed_content("network_def")
    assert isinstance(network, PaddedNetwork)
    steps = zip(window, network.multiple, strict=False)  # images have two axes
    if any(size % step or size < network.minimum for size, step in steps):
        return dict(configs), weights
    bare = {stage: config | {"network_def": config["network_def"]["network"]} for stage, config in configs.items()}
    return bare, {key.removeprefix(PREFIX): value for key, value in weights.items()}


def read_option(inference: Config, name: str) -> Any:
    """Return the value of an option of a config's inferer."""
    return ConfigParser(copy_tree(inference)).get_parsed_content(f"inferer::{name}")


def find_obstacle(inference: Config) -> str:
    """Return why a config of inference can't be done with MONAI alone; "" where it can."""
    inferer = inference["inferer"]
    if inferer.get("_target_") != SLABS:
        return "its answers are made by tomokit, not by transforms of MONAI"
    if "regions" in inferer:
        return "its network tells regions, from which tomokit paints the label map"
    if len(inference.get("modality", [])) > 1:
        return "a case has several files, which MONAI does not find in a folder"
    foreign = list(dict.fromkeys(_foreign(with_monais_parts(closure(inference, ["network_def", "preprocessing"])))))
    return f"it is made with {', '.join(foreign)}, not with MONAI's own parts" if foreign else ""


def plain_config(inference: Config) -> Config:
    """Return a config of inference that needs MONAI alone, with the same network, preprocessing and windows.

    Logits are brought to the source's grid by MONAI's `Invertd`, where the largest one wins, as tomokit does it.
    """
    pred = {"keys": "pred"}
    parts = with_monais_parts(closure(inference, ["network_def", "preprocessing"]))
    sliding = {"roi_size": list(read_option(inference, "roi_size")), "overlap": read_option(inference, "overlap")}
    return {
        "imports": ["$import glob"],
        "bundle_root": ".",
        "dataset_dir": SCANS,
        "input": "@dataset_dir",
        "output_dir": PREDICTIONS,
        "device": ONE_DEVICE,
        **parts,
        "network": "$@network_def.to(@device)",
        "dataset": {
            "_target_": "Dataset",
            # one scan, or nothing there, which the reader then says
            "data": "$[{'image': path} for path in sorted(glob.glob(@input + '/*.nii*')) or [@input]]",
            "transform": "@preprocessing",
        },
        "dataloader": {"_target_": "DataLoader", "dataset": "@dataset", "batch_size": 1, "num_workers": 0},
        "inferer": {
            "_target_": "SlidingWindowInferer",
            **sliding,
            "mode": inference["inferer"].get("mode", "gaussian"),
            "sw_batch_size": inference["inferer"].get("sw_batch_size", 1),
        },
        "postprocessing": {
            "_target_": "Compose",
            "transforms": [
                {"_target_": "Invertd", **pred, "transform": "@preprocessing", "orig_keys": "image"}
                | {"nearest_interp": False, "to_tensor": True},
                {"_target_": "AsDiscreted", **pred, "argmax": True},
                {"_target_": "SaveImaged", **pred, "output_dir": "@output_dir", "output_postfix": POSTFIX}
                | {"separate_folder": False, "resample": False, "output_dtype": "$np.int16"},
            ],
        },
        "handlers": [{"_target_": "CheckpointLoader", "load_path": WEIGHTS, "load_dict": {"model": "@network"}}],
        "evaluator": {
            "_target_": "SupervisedEvaluator",
            "device": "@device",
            "val_data_loader": "@dataloader",
            "network": "@network",
            "inferer": "@inferer",
            "postprocessing": "@postprocessing",
            "val_handlers": "@handlers",
        },
        "run": ["$@evaluator.run()"],
    }


def with_monais_parts(config: Config) -> Config:
    """Return a config in which MONAI's reader and resampling stand for ours, which do the same with NIfTI."""
    config = copy_tree(config)
    for _, value in walk(config):
        if is_component(value) and value["_target_"] == SPACING:
            value["_target_"] = "Spacingd"
        if is_component(value) and value.get("reader") == READER:
            value["reader"] = "NibabelReader"
    return config


def list_differences(inference: Config, steps: Mapping[int, Step]) -> list[str]:
    """Return what MONAI alone does not do of a released inference."""
    found = ["looks at the whole volume, and holds the logits of all classes"]
    if inference.get("mirror_axes"):
        found.append("does no mirrored passes")
    if steps:
        found.append("does no postprocessing")
    if inference.get("amp"):
        found.append("computes in float32 on all hardware")
    return found


def _foreign(config: Config) -> Iterator[str]:
    """Yield the targets and expressions of a config that need more than MONAI, torch and numpy."""
    locator = ComponentLocator()
    for _, value in walk(config):
        if isinstance(value, str) and value.startswith("$") and NAMES.search(value):
            yield value
        if not is_component(value):
            continue
        target = str(value["_target_"])
        found = locate_target(target, locator)[0]
        if str(getattr(found, "__module__", "")).partition(".")[0] not in OWN:
            yield target
