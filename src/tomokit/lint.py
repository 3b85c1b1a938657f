"""What is wrong in a bundle's configs, found without running them."""

import functools
import inspect
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jsonschema
import yaml
from monai.bundle import ComponentLocator, ConfigParser
from monai.bundle.properties import InferProperties, TrainProperties
from monai.utils.misc import CheckKeyDuplicatesYamlLoader
from rich.console import Console

from tomokit.bundles import bundles_folder
from tomokit.config_rules import (
    INFERENCE_KEYS,
    OPENING_KEYS,
    OVERRIDES,
    Finding,
    Merged,
    Source,
    copy_tree,
    is_component,
    is_text,
    load_source,
    locate_target,
    merge,
    overlay_base,
    overlay_message,
    shared_findings,
    undefined_references,
    walk,
)
from tomokit.config_safety import code_problems, may_import
from tomokit.errors import TomokitError
from tomokit.files import read_json

__all__ = ["Finding", "lint_bundle", "lint_main"]

SCHEMA_NAME = "metadata_schema.json"
CHECK = "tomokit.configs.check_config"
_SUFFIXES = (".yaml", ".yml", ".json")
_LABEL = re.compile(r"label|mask|seg(?!ment_id)", re.IGNORECASE)
_RESAMPLERS = re.compile(
    r"^(Rand|Separable)?(Spacing|Resize|Rotate|Affine|Zoom|3DElastic|2DElastic|SpatialResample|ResampleToMatch|"
    r"GridDistortion|ResizeWithPadOrCropInterpolated)(d|D|Dict)$"
)
_ROTATION = re.compile(r"^(Rand)?(Rotate|Affine|3DElastic|2DElastic|SimulateLowResolutionAffine)(d|D|Dict)?$")
_ROTATION_ARGUMENTS = ("angle", "range_x", "range_y", "range_z", "rotate_range", "rotate_params")
_FULL_TURN = 3.15  # radians; a half turn to either side, rounded up
_METRIC_ARGUMENTS = ("key_metric_name", "metric_name", "metrics", "metric_details")
_METRIC_BLOCKS = ("key_val_metric", "key_train_metric", "additional_metrics")
_LOADERS = re.compile(r"DataLoader$")

Problem = tuple[str, str, str, str]  # id, kind, message, severity


def lint_bundle(
    path_or_files: str | Path | Sequence[str | Path], overrides: Mapping[str, Any] | None = None
) -> list[Finding]:
    """Return all findings on a bundle's folder, or on config files merged in order.

    A folder is linted as its `train` config alone, with each overlay beside it, and with each layer below it.

    Raises:
        TomokitError: when the folder holds no config, or the installation has no bundles.
    """
    if isinstance(path_or_files, str | Path) and Path(path_or_files).suffix not in _SUFFIXES:
        file_sets = _file_sets(Path(path_or_files))
    else:
        given = [path_or_files] if isinstance(path_or_files, str | Path) else path_or_files
        file_sets = [[str(path) for path in given]]
    findings = metadata_findings(Path(file_sets[0][0]).parent)
    for files in file_sets:
        findings += _lint_files(files, dict(overrides or {}))
    return list(dict.fromkeys(findings))


def lint_main(
    path_or_files: str | Path | Sequence[str | Path], overrides: Mapping[str, Any] | None = None, quiet: bool = False
) -> int:
    """Print the findings, and their count unless `quiet`; return the status: 1 when one is an error, else 0."""
    console = Console(stderr=False, soft_wrap=True, highlight=False)
    findings = lint_bundle(path_or_files, overrides)
    for finding in findings:
        style = "red" if finding.severity == "error" else "yellow"
        console.print(f"[{style}]{finding.severity}[/] ", end="")
        console.print(str(finding), markup=False)
    errors = sum(finding.severity == "error" for finding in findings)
    name = path_or_files if isinstance(path_or_files, str | Path) else ", ".join(map(str, path_or_files))
    if not quiet:
        console.print(f"{name}: {errors} errors, {len(findings) - errors} warnings", markup=False)
    return int(errors > 0)


# ------------------------------------------------------------------------------------- which files together


def _file_sets(folder: Path) -> list[list[str]]:
    """Return the lists of files that make runnable configs: `train`, its overlays and layers, and what stands alone."""
    configs = folder / "configs" if (folder / "configs").is_dir() else folder
    files = [path for path in sorted(configs.glob("*")) if path.suffix in _SUFFIXES and path.stem != "metadata"]
    if not files:
        raise TomokitError(f"{folder} holds no config: expected {configs}/train.yaml")
    base = next((path for path in files if path.stem == "train"), None)
    if base is None:
        return [[str(path)] for path in files]
    common = folder.resolve().parent / "_layers"
    layers = [path for path in sorted(configs.glob("*/*")) if path.suffix in (".yaml", ".yml")]
    layers += sorted(common.glob("*.yaml"))
    overlays = [[str(base), str(path)] if _is_overlay(path) else [str(path)] for path in files if path != base]
    return [[str(base)], *overlays, *([str(base), str(path)] for path in layers)]


def _is_overlay(path: Path) -> bool:
    """Tell whether a file needs another one below it: it can't be merged, refers to what it lacks, or has no `run`."""
    try:
        merged = merge([load_source(str(path))])
    except Exception:  # it is explained when it is linted, once: alone
        return False
    return bool(merged.findings or undefined_references(merged.config) or "run" not in merged.config)


def _lint_files(files: list[str], overrides: dict[str, Any]) -> list[Finding]:
    """Return the findings on files merged in order."""
    findings = [finding for path in files for finding in _file_findings(path)]
    if any(finding.kind in ("missing", "syntax") for finding in findings):
        return findings
    sources = [load_source(path) for path in files] + ([Source(OVERRIDES, overrides)] if overrides else [])
    merged = merge(sources)
    base = overlay_base(files, merged.config)
    if base:
        return [*findings, Finding(files[0], "", "overlay", overlay_message(files, base))]
    config, problem = _resolve(merged)
    if problem:
        return [*findings, *merged.findings, Finding(files[-1], "", "macro", problem)]
    locator = ComponentLocator()
    findings += shared_findings(config, merged, locator, may_import=may_import)
    for rule in _RULES:
        findings += [Finding(merged.file_of(p[0]) or files[0], *p) for p in rule(config, merged, locator)]
    return findings


def _resolve(merged: Merged) -> tuple[dict[str, Any], str]:
    """Return the config with relative ids and macros replaced as MONAI does; or why it can't be."""
    config = copy_tree(merged.config)
    for identifier, value in walk(merged.config):
        if isinstance(value, str) and value.startswith("%") and ConfigParser.split_path_id(value[1:])[0]:
            *parents, key = identifier.split("::")
            block = functools.reduce(lambda b, k: b[int(k) if isinstance(b, list) else k], parents, config)
            block[int(key) if isinstance(block, list) else key] = None  # `code_problems` reports it
    parser = ConfigParser(config=config)
    try:
        parser.resolve_macro_and_relative_ids()
    except (KeyError, ValueError, IndexError) as error:
        return config, f"an id can't be resolved: {error}"
    return dict(parser.get()), ""


def _file_findings(path: str) -> list[Finding]:
    """Return what keeps MONAI from reading a file, and the keys that it holds twice."""
    try:
        content = load_source(path).content
        duplicates = _duplicate_keys(Path(path).read_text(encoding="utf-8"), path)
    except FileNotFoundError:
        return [Finding(path, "", "missing", "the file does not exist; correct the path")]
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 0
        return [Finding(path, f"line {line}", "syntax", f"line {line} is not valid YAML: {error.problem}")]
    except (json.JSONDecodeError, yaml.YAMLError, UnicodeDecodeError, ValueError) as error:
        return [Finding(path, "", "syntax", f"the file can't be read: {error}")]
    except (TypeError, AttributeError):
        content, duplicates = None, []
    if not isinstance(content, dict):
        return [Finding(path, "", "syntax", f"the file must hold keys and values, it holds {content!r}")]
    return [Finding(path, key, "duplicate", text) for key, text in duplicates]


@functools.lru_cache
def _duplicate_keys(text: str, path: str) -> list[tuple[str, str]]:
    """Return (key, message) for each key that a mapping of the file holds twice; the later one wins in silence."""
    if path.lower().endswith(".json"):
        twice: list[tuple[str, str]] = []
        json.loads(text, object_pairs_hook=lambda pairs: twice.extend(_repeated([k for k, _ in pairs])))
        return twice
    nodes = [yaml.compose(text, CheckKeyDuplicatesYamlLoader)]
    found = []
    while nodes:
        node = nodes.pop()
        if isinstance(node, yaml.MappingNode):
            found += _repeated([k.value for k, _ in node.value], [k.start_mark.line + 1 for k, _ in node.value])
            nodes += [value for _, value in node.value]
        elif isinstance(node, yaml.SequenceNode):
            nodes += node.value
    return found


def _repeated(keys: list[str], lines: list[int] | None = None) -> list[tuple[str, str]]:
    again = [position for position, key in enumerate(keys) if key in keys[:position]]
    where = [f" again in line {lines[position]}" if lines else " twice" for position in again]
    return [(keys[p], f"`{keys[p]}` is given{w}; the later one wins") for p, w in zip(again, where, strict=True)]


def metadata_findings(configs: Path) -> list[Finding]:
    """Return what the metadata lacks, by the schema that is kept with the bundles."""
    path = configs / "metadata.json"
    if not path.is_file():
        return [Finding(str(path), "", "metadata", "there is no metadata.json; MONAI's verbs and tools need it")]
    try:
        metadata = read_json(path)
    except TomokitError as error:
        return [Finding(str(path), "", "metadata", str(error))]
    schema = read_json(bundles_folder() / "_layers" / SCHEMA_NAME)
    validator = jsonschema.Draft7Validator(schema)
    errors = sorted(validator.iter_errors(metadata), key=lambda error: list(map(str, error.absolute_path)))
    keys = ["::".join(map(str, error.absolute_path)) for error in errors]
    return [
        Finding(str(path), key, "metadata", f"`{key}`: {error.message}" if key else error.message)
        for key, error in zip(keys, errors, strict=True)
    ]


# ------------------------------------------------------------------------------------------------- rules


def _components(config: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield (id, last part of the target's name, block) of each component with a plain target."""
    for identifier, value in walk(config):
        if is_component(value) and isinstance(value["_target_"], str) and is_text(value["_target_"]):
            yield identifier, value["_target_"].rpartition(".")[2], value


def _follow(config: dict[str, Any], value: Any) -> Any:
    """Return what a plain reference leads to; anything else as it is."""
    if not _is_reference(value):
        return value
    items = dict(walk(config))
    for _ in range(10):  # a circle of references is MONAI's to report
        if not (_is_reference(value) and value[1:] in items):
            break
        value = items[value[1:]]
    return value


def _is_reference(value: Any) -> bool:
    """Tell whether a value is `@` with the id of another one."""
    return isinstance(value, str) and value.startswith("@")


def _kind_of_run(config: dict[str, Any]) -> str:
    """Return `train` when the run reaches MONAI's training ids, `infer` when it reaches `evaluator`, else nothing."""
    text = json.dumps(config.get("run", ""), default=str)
    if "@train::" in text or "@validate::" in text:
        return "train"
    return "infer" if "@evaluator" in text else ""


def _initialize_rule(config: dict[str, Any], merged: Merged, _: ComponentLocator) -> Iterator[Problem]:
    """The check comes first, or a mistyped override trains the default."""
    first = config.get("initialize")
    first = first[0] if isinstance(first, list) and first else first
    target = first.get("_target_") if isinstance(first, dict) else first
    if "run" in config and target != CHECK:
        text = f"the first entry of `initialize` must be {{_target_: {CHECK}}}, it is {target!r}"
        yield "initialize", "check", text, "error"


def _handlers_rule(config: dict[str, Any], merged: Merged, _: ComponentLocator) -> Iterator[Problem]:
    """MONAI's tracking, property check and MONAI Label index and append to these lists."""
    items = dict(walk(config))
    for key in ("train::handlers", "validate::handlers", "handlers"):
        value = items.get(key, [])
        if not isinstance(value, list) or not all(is_component(entry) for entry in value):
            yield key, "handlers", f"`{key}` must be a list of `_target_` entries, it is {value!r:.80}", "error"


def _property_rule(config: dict[str, Any], merged: Merged, _: ComponentLocator) -> Iterator[Problem]:
    """MONAI's `check_properties`, on the text: it would build everything."""
    items = dict(walk(config))
    kind = _kind_of_run(config)
    properties = {"train": TrainProperties, "infer": InferProperties}.get(kind, {})
    for name, entry in properties.items():
        key, reader = entry["id"], entry.get("refer_id")
        if entry["required"] and key not in items:
            yield key, "property", f"`{key}` is missing, which MONAI's tools look up as `{name}`", "error"
        used = items.get(reader) if reader else None
        if isinstance(used, str) and not used.startswith("$") and used != f"@{key}":
            text = f"`{reader}` is `{used}`; MONAI's tools expect `@{key}` there"
            yield str(reader), "property", text, "error"


def _metric_rule(config: dict[str, Any], merged: Merged, _: ComponentLocator) -> Iterator[Problem]:
    """A metric name that no engine defines is dropped in silence."""
    blocks = [
        _follow(config, block[argument])
        for _, _, block in _components(config)
        for argument in _METRIC_BLOCKS
        if argument in block
    ]
    if any(not isinstance(block, dict) for block in blocks) or not blocks:
        return
    defined = {str(name) for block in blocks for name in block}
    for identifier, name, block in _components(config):
        for argument in _METRIC_ARGUMENTS:
            if argument == "metrics" and not name.endswith("Saver"):
                continue
            value = _follow(config, block.get(argument))
            for asked in value if isinstance(value, list) else [value]:
                if isinstance(asked, str) and is_text(asked) and asked not in {*defined, "*"}:
                    key = f"{identifier}::{argument}"
                    text = f"`{key}` asks for `{asked}`, defined are: {', '.join(sorted(defined))}"
                    yield key, "metric", text, "error"


def _label_rule(config: dict[str, Any], merged: Merged, locator: ComponentLocator) -> Iterator[Problem]:
    """A label resampled by anything but the nearest voxel gets values that mean nothing."""
    for identifier, name, block in _components(config):
        if not _RESAMPLERS.match(name):
            continue
        keys = _follow(config, block.get("keys"))
        keys = [keys] if isinstance(keys, str) else keys
        if not isinstance(keys, list) or not all(isinstance(key, str) and is_text(key) for key in keys):
            continue
        mode = _follow(config, block["mode"]) if "mode" in block else _default(block["_target_"], "mode", locator)
        modes = mode if isinstance(mode, list) else [mode] * len(keys)
        for key, chosen in zip(keys, modes, strict=False):
            if _LABEL.search(key) and is_text(chosen) and str(chosen) not in ("nearest", "nearest-exact", "0"):
                text = f"`{identifier}`: {name} resamples `{key}` with mode {chosen!s}; labels need nearest"
                yield identifier, "label", text, "error"


def _default(target: str, argument: str, locator: ComponentLocator) -> Any:
    """Return a component's default for an argument, as text; an expression where it can't be known."""
    component = locate_target(target, locator)[0] if may_import(target) else None
    if not callable(component):
        return "$unknown"
    try:
        return str(inspect.signature(component).parameters[argument].default)
    except (KeyError, TypeError, ValueError):
        return "$unknown"


def _numbers(value: Any) -> Iterator[float]:
    if isinstance(value, list):
        for item in value:
            yield from _numbers(item)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield float(value)


def _rotation_rule(config: dict[str, Any], merged: Merged, _: ComponentLocator) -> Iterator[Problem]:
    """MONAI rotates by radians."""
    for identifier, name, block in _components(config):
        for argument in _ROTATION_ARGUMENTS if _ROTATION.match(name) else ():
            value = _follow(config, block.get(argument))
            largest = max(map(abs, _numbers(value)), default=0.0)
            if largest > _FULL_TURN:
                key = f"{identifier}::{argument}"
                turn = f"{largest:g} radians are {math.degrees(largest):.0f}°"
                text = f"`{key}` is {value}, and {turn}; write {math.radians(largest):.4f} for {largest:g}°"
                yield key, "rotation", text, "error"


def _inversion_rule(config: dict[str, Any], merged: Merged, _: ComponentLocator) -> Iterator[Problem]:
    """Labels interpolated linearly on their way back get values between classes."""
    for identifier, value in walk(config):
        steps = [_follow(config, step) for step in value] if isinstance(value, list) else []
        decided: set[str] = set()
        for position, step in enumerate(steps):
            if not is_component(step):
                continue
            name = str(step["_target_"]).rpartition(".")[2]
            keys = step.get("keys", [])
            keys = {keys} if isinstance(keys, str) else {str(key) for key in keys}
            if re.match(r"AsDiscrete(d|D|Dict)$", name) and step.get("argmax"):
                decided |= keys
            elif re.match(r"Invert(d|D|Dict)$", name) and step.get("nearest_interp") is False and keys & decided:
                key = f"{identifier}::{position}"
                text = f"`{key}`: Invertd interpolates {', '.join(sorted(keys & decided))} linearly after its argmax"
                yield key, "inversion", f"{text}; invert first, or set `nearest_interp: true`", "error"


def _labels_rule(config: dict[str, Any], merged: Merged, _: ComponentLocator) -> Iterator[Problem]:
    """Of labels there is nothing to decide any more, and they are on their grid."""
    for _identifier, _name, block in _components(config):
        inferer, chain = _follow(config, block.get("inferer")), _follow(config, block.get("postprocessing"))
        gives_labels = is_component(inferer) and str(inferer["_target_"]).endswith(".SlabInferer")
        if not gives_labels or inferer.get("reduce", "labels") != "labels" or not is_component(chain):
            continue
        steps = [_follow(config, step) for step in chain.get("transforms") or []]
        for position, step in enumerate(steps):
            name = str(step["_target_"]).rpartition(".")[2] if is_component(step) else ""
            if re.match(r"(AsDiscrete|Activations|Invert)(d|D|Dict)$", name) and "pred" in step.get("keys", []):
                key = str(block["postprocessing"]).removeprefix("@") + f"::transforms::{position}"
                text = f"`{key}`: {name} works on logits, but the inferer gives labels on their grid; leave it out"
                yield key, "labels", f"{text}, or set the inferer's `reduce: logits`", "error"


def _overlay_rule(config: dict[str, Any], merged: Merged, _: ComponentLocator) -> Iterator[Problem]:
    """What inference builds differently from training was never tested."""
    if _kind_of_run(config) != "infer":
        return
    key_of = re.compile(r"^(network_def|network|preprocessing)(::|#|$)")
    for source in merged.sources[1:]:
        own_run = "run" in source.content
        for key in source.content if own_run else ():
            if key_of.match(str(key)):
                text = f"`{key}` is built differently from training; change it in the training config"
                yield str(key), "difference", text, "error"
    alone = Path(merged.sources[0].name)
    base = next((p for p in (alone.with_name(f"train{end}") for end in _SUFFIXES) if p.is_file()), None)
    if alone.stem == "train" or base is None or _file_findings(str(base)):
        return
    train = merge([load_source(str(base))]).config
    for key in ("network_def", "preprocessing"):
        if key in train and key in config and _expanded(train, train[key]) != _expanded(config, config[key]):
            yield key, "difference", f"`{key}` is not the one of {base.name}; build both alike", "error"


def _expanded(config: dict[str, Any], value: Any) -> Any:
    """Return a block with its plain references replaced by what they lead to."""
    value = _follow(config, value)
    if isinstance(value, dict):
        return {key: _expanded(config, item) for key, item in value.items()}
    return [_expanded(config, item) for item in value] if isinstance(value, list) else value


def _loader_rule(config: dict[str, Any], merged: Merged, _: ComponentLocator) -> Iterator[Problem]:
    """Training draws its cases in random order, nothing else does."""
    for identifier, name, block in _components(config):
        if not _LOADERS.search(name):
            continue
        shuffle = _follow(config, block.get("shuffle", False))
        if identifier.startswith("train::"):
            ordered = shuffle in (False, "false") and not any(block.get(k) for k in ("sampler", "batch_sampler"))
            if ordered:
                text = f"`{identifier}` draws the training cases in fixed order; set `shuffle: true` or a `sampler`"
                yield identifier, "shuffle", text, "error"
        elif shuffle is True:
            key = f"{identifier}::shuffle"
            yield key, "shuffle", f"`{key}` is true, outside training; cases must keep their order", "error"


def _opening_rule(config: dict[str, Any], merged: Merged, _: ComponentLocator) -> Iterator[Problem]:
    """Every training config opens alike, so that layers serve every bundle; inference adds its own three."""
    first = merged.sources[0]
    if Path(first.name).stem == "train":
        keys = [key for key in first.content if key != "imports"]
        missing = [key for key in OPENING_KEYS if key not in keys]
        if missing:
            yield "", "opening", f"the opening keys lack {', '.join(missing)}", "error"
        elif keys[: len(OPENING_KEYS)] != list(OPENING_KEYS):
            yield "", "opening", f"must open with the keys {', '.join(OPENING_KEYS)}, in this order", "error"
    last = [source for source in merged.sources if source.name != OVERRIDES][-1]
    missing = [key for key in INFERENCE_KEYS if key not in config]
    if Path(last.name).stem == "inference" and missing:
        yield "run", "opening", f"inference lacks the keys {', '.join(missing)}", "error"


_RULES: tuple[Callable[[dict[str, Any], Merged, ComponentLocator], Iterator[Problem]], ...] = (
    _initialize_rule,
    _handlers_rule,
    _property_rule,
    _metric_rule,
    _label_rule,
    _rotation_rule,
    _inversion_rule,
    _labels_rule,
    _overlay_rule,
    _loader_rule,
    _opening_rule,
    code_problems,
)
