"""`metadata.json` of a release, true to its run."""

from collections.abc import Mapping, Sequence
from importlib import metadata as packages
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from tomokit.bundles import list_bundles
from tomokit.errors import raise_problems
from tomokit.files import read_json
from tomokit.lint import metadata_findings
from tomokit.planning.rules import is_ct
from tomokit.planning.writing import value_range
from tomokit.release.finished import FinishedRun
from tomokit.release.standalone import Config
from tomokit.release.training_data import TrainingData
from tomokit.runs import input_kinds

UNNAMED = "not named"
PLACEHOLDER = "to be filled in"  # of a plan, as are its description and its first changelog
PLANNED = "planned for"
MOST_NAMES = 8  # of structures or classes in a sentence
TASKS = {
    "segmentation": "Segmentation of {labels} in {modality}",
    "classification": "Classification of {modality}: {labels}",
    "multi_label": "Labels of {modality}: {labels}",
    "regression": "Prediction of {labels} from {modality}",
    "pairs": "Comparison of two scans of one patient, {modality}",
    "enhancement": "Enhancement of {modality}",
    "pretraining": "Self-supervised pretraining on {modality}",
    "anomaly": "Detection of anomalies in {modality}",
    "registration": "Registration of {modality}",
}
DEFAULTS = {"version": "0.1.0", "license": "Apache-2.0", "intended_use": "Research; not a medical device"}
SCORES = ("summary", "per_class", "slices")
VERSIONS = {"monai_version": "monai", "pytorch_version": "torch", "numpy_version": "numpy"}
PLACES = {"pairs": ("first", "second"), "registration": ("fixed", "moving")}  # of the two scans of a pair
VALUE = {"type": "tuples", "format": "raw", "value_range": []}  # of a regression


class Facts(NamedTuple):
    """What a release tells of its run in words.

    Attributes:
        task: what it does, a sentence without its full stop.
        network: its class.
        parameters: how many numbers it learned.
        training: how it came to them.
    """

    task: str
    network: str
    parameters: int
    training: str


def find_facts(run: FinishedRun, inference: Config, network: nn.Module) -> Facts:
    """Return what can be told of a run in words."""
    task = run.metrics.get("task")
    named = (run.train.get("labels") or {}).items()
    labels = [str(name) for value, name in named if value != "0" or task != "segmentation"]  # its 0 is background
    modality = list(dict.fromkeys(map(str, run.train.get("modality", []))))
    kind = TASKS.get(str(task), "Prediction of {labels} from {modality}")
    sentence = kind.format(labels=_listed(labels), modality=" and ".join(modality) or "images")
    parameters = sum(parameter.numel() for parameter in network.parameters())
    return Facts(sentence, _network_name(inference["network_def"]), parameters, tell_training(run))


def describe_release(run: FinishedRun, bundle: Path, name: str, facts: Facts, data: TrainingData) -> dict[str, Any]:
    """Return the metadata of a release.

    What it is meant for, its authors, version and changelog are those of the bundle's `metadata.json`, where that is
    the user's own; numbers, channels, scores and versions are the run's.
    """
    own = _own_words(bundle)
    content = DEFAULTS | {key: value for key, value in run.metadata.items() if key != "changelog"} | own
    version = str(content["version"])
    changelog = {key: text for key, text in own.get("changelog", {}).items() if PLANNED not in text}
    sentence = f"{facts.network}, {facts.training}, on {data.told}"
    content |= {
        "version": version,
        "changelog": {version: sentence} | changelog,
        "required_packages_version": _required(content, run),
        "name": name,
        "task": facts.task,
        "description": own.get("description", f"{facts.task}. {sentence[0].upper()}{sentence[1:]}."),
        "authors": own.get("authors", UNNAMED),
        "copyright": own.get("copyright", UNNAMED),
        "data_source": ", ".join(text for text in (data.title or data.told, data.home) if text),
        "eval_metrics": {key: run.metrics[key] for key in SCORES if key in run.metrics},
        "network_data_format": _tensors(run),
    }
    versions = run.environment["versions"]
    content |= {key: _public(versions[package]) for key, package in VERSIONS.items()}
    intensity = run.train.get("intensity", {})
    count = len(run.train.get("modality", []))
    if "b_min" in intensity or "NormalizeIntensity" in str(intensity):
        content["image_classes"] = f"{count} channel{'s' * (count != 1)}, {value_range(intensity)[1]}"
    return content


def check_metadata(configs: Path) -> None:
    """Raise when the metadata in a folder of configs is not as MONAI's schema wants it.

    Raises:
        TomokitError: that lists what is wrong.
    """
    problems = [finding.message for finding in metadata_findings(configs)]
    raise_problems("metadata.json would be wrong; correct the bundle's", problems)


def is_packaged(bundle: Path) -> bool:
    """Return whether a bundle's folder is one that comes with tomokit."""
    return bundle.resolve() in [folder.resolve() for folder in list_bundles().values()]


def _own_words(bundle: Path) -> dict[str, Any]:
    """Return what the user wrote into the metadata of a bundle of his own, less what a plan put there."""
    if is_packaged(bundle):
        return {}
    words = ("version", "changelog", "description", "authors", "copyright", "license", "references", "intended_use")
    found = {key: value for key, value in read_json(bundle / "configs" / "metadata.json").items() if key in words}
    return {key: value for key, value in found.items() if value != PLACEHOLDER and not _is_planned(value)}


def _is_planned(value: Any) -> bool:
    """Return whether a text is what a plan puts in until the user writes his own."""
    return isinstance(value, str) and PLANNED in value


def _listed(names: Sequence[str]) -> str:
    """Return names as a part of a sentence, or how many they are."""
    if len(names) > MOST_NAMES:
        return f"{len(names)} structures"
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))


def _network_name(definition: Mapping[str, Any]) -> str:
    """Return the class of a network, within what wraps it."""
    inner = definition.get("network")
    if isinstance(inner, Mapping) and "_target_" in inner:
        return _network_name(inner)
    return str(definition["_target_"]).rpartition(".")[2]


def tell_training(run: FinishedRun) -> str:
    """Return how a run came to its weights."""
    cases = run.cases["training"]
    if members := run.environment.get("members"):
        return f"an ensemble of {len(members)} networks"
    epochs = run.validation.get("epochs")
    if measures := run.validation.get("measures"):
        return f"a trained network, with a regression of {measures} measures of {cases} cases beside it"
    if not epochs:
        return f"its features read out of {cases} cases"
    return f"trained for {epochs} epoch{'s' * (epochs > 1)} on {cases} cases"


def _required(content: Mapping[str, Any], run: FinishedRun) -> dict[str, str]:
    """Return the versions of the packages that it needs: of the run, but tomokit's, which made these configs."""
    given = content.get("required_packages_version", {}) | run.environment["versions"]
    names = ["tomokit", *content.get("required_packages_version", {})]
    return {name: _public(given[name]) for name in names} | {"tomokit": packages.version("tomokit")}


def _public(version: str) -> str:
    """Return a version without what tells one build of it from another."""
    return version.partition("+")[0]


def _tensors(run: FinishedRun) -> dict[str, Any]:
    """Return what the network takes and gives."""
    told, config, task = run.metadata["network_data_format"], run.train, run.metrics.get("task")
    inputs = {key: dict(tensor) for key, tensor in told["inputs"].items()}
    outputs = {key: dict(tensor) for key, tensor in told["outputs"].items()}
    size = config.get("patch_size") or config.get("image_size") or inputs["image"]["spatial_shape"]
    shape = ["*" if length == -1 else length for length in size]
    kinds = input_kinds(config)
    image = {"spatial_shape": shape, "is_patch_data": "patch_size" in config}
    if kinds:
        named = [f"{place} scan, {kind}" for place, kind in zip(PLACES.get(str(task), ()), kinds, strict=False)]
        channels = dict(zip(map(str, range(len(kinds))), named or kinds, strict=False))
        image |= {"num_channels": len(kinds), "modality": ", ".join(dict.fromkeys(kinds)), "channel_def": channels}
        image |= {"format": "hounsfield" if all(map(is_ct, kinds)) else "magnitude"}
    if isinstance(config.get("intensity"), Mapping):
        image["value_range"] = value_range(config["intensity"])[0]
    inputs["image"] |= image
    outputs["pred"] |= _output(config, str(task), shape)
    return {"inputs": inputs, "outputs": outputs}


def _output(config: Config, task: str, shape: Sequence[Any]) -> dict[str, Any]:
    """Return what is known of the network's output, by the run's task."""
    if task == "registration":
        return {"spatial_shape": list(shape)}
    labels = {str(value): str(name) for value, name in config.get("labels", {}).items()}
    if task == "pairs" or not labels:
        return {}
    labels = dict(sorted(labels.items(), key=lambda pair: int(pair[0])))
    if task == "segmentation":
        regions = [f"{name}, a region" for name in config.get("regions", {})]
        channels = {str(number): str(name) for number, name in enumerate(regions or labels.values())}
        known = {"spatial_shape": list(shape), "is_patch_data": True, "value_range": []}  # logits
        return {"num_channels": len(channels), "channel_def": channels} | known
    return {"num_channels": len(labels), "channel_def": labels} | (VALUE if task == "regression" else {})
