"""A run's configs as files that stand alone: nothing of the machine and the cases that it was trained with."""

import json
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from monai.bundle import ComponentLocator, ConfigParser
from monai.bundle.properties import InferProperties

from tomokit.config_rules import (
    SEPARATOR,
    Source,
    copy_tree,
    drop_unread,
    is_component,
    is_text,
    load_source,
    merge,
    references,
    shared_findings,
    walk,
)
from tomokit.config_safety import code_problems, may_import
from tomokit.errors import TomokitError, raise_problems
from tomokit.release.finished import FinishedRun
from tomokit.runs import ONE_DEVICE
from tomokit.splits import PARTS
from tomokit.volumes import stem_of

ROOT = {"_target_": "tomokit.configs.find_bundle_root"}
MODELS = "$@bundle_root + '/models'"  # the weights, and what training chose or fitted
WEIGHTS = "$@bundle_root + '/models/model.pt'"
SCANS, PREDICTIONS, EVALUATION, DATASET = "scans", "predictions", "evaluation", "dataset"  # in the current folder
STAGES = ("train", "evaluate", "inference")
RUN_IDS = ("initialize", "run", "finalize")
# what MONAI and its tools look up in a config of inference, and what a user sets
ROOTS = {str(entry["id"]).split(SEPARATOR)[0] for entry in InferProperties.values()}
ROOTS |= {"network", "imports", "input", "output_dir", *RUN_IDS}
# a path in an expression, but for what is put behind another one
PATH_WITHIN = re.compile(r"(?<!\+ )['\"](~|/[^'\"]+/|[A-Za-z]:[\\/])")
START = "tomokit.runs.start_stage"
WRITER = "tomokit.inference.WritePredictiond"
CHOSEN = "tomokit.postprocessing.ChosenPostprocessingd"
WRITING = "tomokit.engines.attach_inference"
ENSEMBLE = "tomokit.ensembles.Ensemble"
PAIR_SCORES = "tomokit.engines.attach_pair_scores"
TRACKERS = "tomokit.engines.tracking."
BEGUN_WITH = ("pretrained", "teacher", "baseline")  # other runs, or files of weights, that a training begins with

Config = dict[str, Any]


def standalone_configs(run: FinishedRun, bundle: Path, name: str, dataset: str, chosen: bool) -> dict[str, Config]:
    """Return the contents of `train.json`, `evaluate.json` and `inference.json` of a released run.

    Args:
        run: the run.
        bundle: the folder of the bundle that it was trained with, whose overlays make the last two.
        name: of the release.
        dataset: the public name of its data set; "" where it has none.
        chosen: whether the run chose a postprocessing.

    Raises:
        TomokitError: when the bundle lacks an overlay, the run is of another bundle, or a config holds a case's name,
            a path within an expression, or what JSON has not.
    """
    base = _as_json(_neutral(run.train, name, dataset or DATASET), run.folder)
    base |= {key: key.upper() for key in needed_runs(base)}
    makers: dict[str, Callable[[Config], Config]] = {
        "train": _training,
        "evaluate": _evaluation,
        "inference": lambda config: _inference(config, chosen),
    }
    configs = {}
    for stage in STAGES:
        merged = base if stage == "train" else _overlaid(base, bundle, stage, run.folder)
        configs[stage] = _without_paths(makers[stage](merged))
    for stage, config in configs.items():
        _check_traces(stage, config, run)
        check_runs(stage, config, run.folder, bundle)
    return configs


def needed_runs(config: Mapping[str, Any]) -> list[str]:
    """Return the keys of a training's config that name runs or weights which a release does not hold."""
    return [key for key in BEGUN_WITH if isinstance(config.get(key), str)]


def _neutral(config: Mapping[str, Any], name: str, dataset: str) -> Config:
    """Return a run's config without its case lists, for any machine."""
    neutral = copy_tree(dict(config))
    for part in PARTS if isinstance(neutral.get("cases"), dict) else ():
        neutral["cases"].pop(part, None)
    fresh = {"bundle_root": dict(ROOT), "dataset_dir": dataset, "run_dir": f"runs/{name}", "device": ONE_DEVICE}
    return neutral | fresh | {"num_workers": 0, "resume": False}


def _overlaid(base: Config, bundle: Path, stage: str, folder: Path) -> Config:
    """Return the run's config with the bundle's overlay of a stage on it.

    Raises:
        TomokitError: when there is no overlay, or it has keys that do not fit.
    """
    paths = [bundle / "configs" / f"{stage}.{suffix}" for suffix in ConfigParser.suffixes]
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        raise TomokitError(f"{bundle} has no configs/{stage}.yaml; give the bundle that {folder} was trained with")
    merged = merge([Source("train", base), load_source(str(path))])
    raise_problems(_misfit(folder, bundle), [str(finding) for finding in merged.findings])
    return _as_json(merged.config, folder)


def _training(config: Config) -> Config:
    """Return a config that trains again; of an ensemble, one of its networks. Where its maker logged it is not told."""
    if config["network_def"].get("_target_") == ENSEMBLE:
        config = config | {"network_def": config["network_def"]["network"]}
    handlers = config["train"].get("handlers")
    kept = [one for one in handlers or () if not str(_target(one)).startswith(TRACKERS)]
    if not isinstance(handlers, list) or len(kept) == len(handlers):
        return config
    return drop_unread(config | {"train": config["train"] | {"handlers": kept}}, RUN_IDS)


def _evaluation(config: Config) -> Config:
    """Return a config that scores the released weights on the test cases of the same data set."""
    config = config | {"run_dir": EVALUATION, "checkpoint": WEIGHTS}
    kept = {key: config.pop(key) for key in ("initialize", "output_dir") if key in config}  # these write the results
    config = _read_models(config) | kept
    config["initialize"] = _without(config["initialize"], START)
    for entry in config["initialize"]:
        if _target(entry) == PAIR_SCORES:
            entry["decision_dir"] = "@models_dir"
    return closure(config, ROOTS)


def _inference(config: Config, chosen: bool) -> Config:
    """Return a config that predicts, with a folder as its input."""
    config = config | {"dataset_dir": SCANS, "input": "@dataset_dir", "checkpoint": WEIGHTS, "output_dir": PREDICTIONS}
    config = _read_models(config)
    config["initialize"] = _without(config["initialize"], START)
    _write_behind(config)
    if not chosen:
        _drop_transforms(config, CHOSEN)
    config = closure(config, ROOTS)
    if "cases" in config:
        raise TomokitError("configs/inference.yaml of the bundle reads `cases`, which a release has not; change it")
    return config


def _write_behind(config: Config) -> None:
    """Take the writing of label maps out of the postprocessing: MONAI Label and Deploy write its result themselves."""
    writers = _transforms(config, WRITER)
    entries = [entry for entry in config["initialize"] if _target(entry) == WRITING]
    if writers and entries:
        _drop_transforms(config, WRITER)
        entries[0]["write"] = writers[0]["keys"]


def _transforms(config: Config, target: str) -> list[Config]:
    """Return the transforms of the postprocessing of one kind."""
    listed = config.get("postprocessing", {}).get("transforms", [])
    return [entry for entry in listed if _target(entry) == target] if isinstance(listed, list) else []


def _drop_transforms(config: Config, target: str) -> None:
    """Take all transforms of one kind out of the postprocessing."""
    if _transforms(config, target):
        block = config["postprocessing"]
        config["postprocessing"] = block | {"transforms": _without(block["transforms"], target)}


def _without(entries: list[Any], target: str) -> list[Any]:
    """Return a list without the components of one kind."""
    return [entry for entry in entries if _target(entry) != target]


def _target(entry: Any) -> Any:
    """Return a component's target; None of anything else."""
    return entry["_target_"] if is_component(entry) else None


def _read_models(config: Config) -> Config:
    """Return a config that reads from the release's `models/` what the run's folder held."""
    text = json.dumps(config)
    if "@run_dir" not in text:
        return config
    replaced = dict(json.loads(re.sub(r"@run_dir\b", "@models_dir", text)))
    return {"bundle_root": replaced.pop("bundle_root"), "models_dir": MODELS, **replaced}


def closure(config: Mapping[str, Any], keys: Iterable[str]) -> Config:
    """Return some top-level keys of a config and all that they refer to, in their order."""
    readers: dict[str, set[str]] = {}
    for reader, read in references(dict(config)):
        readers.setdefault(reader.split(SEPARATOR)[0], set()).add(read.split(SEPARATOR)[0])
    kept: set[str] = set()
    todo = set(keys) & config.keys()
    while todo:
        key = todo.pop()
        kept.add(key)
        todo |= (readers.get(key, set()) & config.keys()) - kept
    return {key: value for key, value in config.items() if key in kept}


def _without_paths(value: Any) -> Any:
    """Return a config in which a path from the root of a disk is its last part alone."""
    if isinstance(value, dict):
        return {key: _without_paths(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_paths(item) for item in value]
    if isinstance(value, str) and is_text(value) and _is_absolute(value):
        return PureWindowsPath(value).name or value
    return value


def _is_absolute(text: str) -> bool:
    """Return whether a text is a path that means something on one machine only."""
    return text.startswith("~") or PurePosixPath(text).is_absolute() or PureWindowsPath(text).is_absolute()


def _check_traces(stage: str, config: Config, run: FinishedRun) -> None:
    """Raise when a config still tells a case, or a folder of this machine.

    Raises:
        TomokitError: that lists where.
    """
    problems = []
    for key, value in walk(config):
        if not isinstance(value, str) or key.split(SEPARATOR)[0] in ("labels", "modality"):
            continue
        if value in run.names or stem_of(PurePosixPath(value).name) in run.names:
            problems.append(f"`{key}` names the case or patient {value!r}")
        if value.startswith("$") and PATH_WITHIN.search(value):
            problems.append(f"`{key}` holds a path: {value}")
    raise_problems(f"{stage}.json would tell of the training data; change {run.folder}/configs/train.yaml", problems)


def check_runs(stage: str, config: Config, folder: Path, bundle: Path) -> None:
    """Raise when a released config would not start elsewhere, or would run programs or load pickles.

    Args:
        stage: the name of its file, without `.json`.
        config: its content.
        folder: of the run.
        bundle: the folder of its bundle.

    Raises:
        TomokitError: that lists what is wrong.
    """
    merged, locator = merge([Source(f"{stage}.json", config)]), ComponentLocator()
    targets = [str(value["_target_"]) for _, value in walk(config) if is_component(value)]
    raise_problems(
        f"{stage}.json needs code that a release does not carry; publish it as a package, or take MONAI's parts",
        [f"`{target}`" for target in dict.fromkeys(targets) if is_text(target) and not may_import(target)],
    )
    found = code_problems(config, merged, locator)
    unsafe = [f"`{key}`: {text}" for key, _, text, severity in found if severity == "error"]
    raise_problems(f"{stage}.json would not be safe to run", unsafe)
    faults = shared_findings(config, merged, locator, RUN_IDS)
    raise_problems(_misfit(folder, bundle), list(dict.fromkeys(map(str, faults))))


def _as_json(config: Config, folder: Path) -> Config:
    """Return a config that JSON holds as it is.

    Raises:
        TomokitError: when it has keys that are no text, or values that JSON has not.
    """
    try:
        if json.loads(json.dumps(config)) == config:
            return config
    except TypeError:
        pass
    raise TomokitError(
        f"the config of {folder} holds what JSON can't: a key that is no text, a date, or NaN; write it as text"
    )


def _misfit(folder: Path, bundle: Path) -> str:
    """Return the heading of what does not go together."""
    return f"{folder} does not fit the bundle {bundle.name}; give the bundle that it was trained with"
