"""Rules on a config's text, before anything in it is built: who reads each key, what each component takes."""

import contextlib
import difflib
import importlib
import inspect
import math
import os
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from monai.bundle import ComponentLocator, ConfigComponent, ConfigParser
from monai.bundle.properties import InferProperties, TrainProperties
from monai.bundle.reference_resolver import ReferenceResolver
from monai.bundle.utils import MERGE_KEY, merge_kv

from tomokit.labels import lateral_names

SEPARATOR = "::"
OVERRIDES = "command line"
PROPERTY_IDS = frozenset(
    entry["id"] for properties in (TrainProperties, InferProperties) for entry in properties.values()
)
# what MONAI, MONAI Label and the federated client look up by name, whether or not the config refers to it
KNOWN_KEYS = frozenset({"_meta_", "imports", "network", "initialize", "run", "finalize", "search"})
OPENING_KEYS = (
    "bundle_root", "dataset_dir", "split", "fold", "run_dir", "seed", "device", "amp", "epochs",
    "val_interval", "batch_size", "num_workers", "learning_rate", "weight_decay", "resume",
)  # fmt: skip
INFERENCE_KEYS = ("input", "checkpoint", "output_dir")


@dataclass(frozen=True)
class Finding:
    """One problem of a config: the file, the id in it, which rule, what to do, and `error` or `warning`."""

    file: str
    key: str
    kind: str
    message: str
    severity: str = "error"

    def __str__(self) -> str:
        return f"{self.file}: {self.message}" if self.file else self.message


@dataclass(frozen=True)
class Source:
    """A config file, or the overrides given beside the files, with its keys as written."""

    name: str
    content: Mapping[str, Any]


@dataclass
class Merged:
    """Sources merged in order, as MONAI merges them.

    `origin` maps each id to the source that last set it; `stages` holds the config after each source.
    """

    sources: list[Source]
    config: dict[str, Any] = field(default_factory=dict)
    origin: dict[str, int] = field(default_factory=dict)
    stages: list[dict[str, Any]] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)

    def file_of(self, identifier: str) -> str:
        """Return the name of the source that set the id, or the nearest block around it; empty if unknown."""
        while identifier:
            if identifier in self.origin:
                return self.sources[self.origin[identifier]].name
            identifier = identifier.rpartition(SEPARATOR)[0]
        return ""


def copy_tree(value: Any) -> Any:
    """Return new dicts and lists around the same leaves, since an override from Python may be any object."""
    if isinstance(value, dict):
        return {key: copy_tree(item) for key, item in value.items()}
    if isinstance(value, list):
        return [copy_tree(item) for item in value]
    return value


def walk(value: Any, identifier: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every id at or below `identifier`, with its content."""
    if identifier:
        yield identifier, value
    if isinstance(value, dict | list):
        for _, child_id, child in ReferenceResolver.iter_subconfigs(identifier, value):
            yield from walk(child, child_id)


def is_component(value: Any) -> bool:
    """Tell whether MONAI would build this block."""
    return bool(ConfigComponent.is_instantiable(value))


def is_text(value: Any) -> bool:
    """Tell whether a value is plain text or a number, not a reference, an expression or a macro."""
    return not (isinstance(value, str) and value[:1] in ("$", "@", "%"))


def nearest(name: str, candidates: Iterable[str], cutoff: float = 0.6) -> str | None:
    """Return the candidate whose spelling is closest, upper and lower case alike; None if none is close."""
    names = sorted({candidate for candidate in candidates if candidate != name})
    close = difflib.get_close_matches(name.lower(), {n.lower() for n in names}, n=1, cutoff=cutoff)
    alike = [candidate for candidate in names if candidate.lower() in close]
    return max(alike, key=lambda n: difflib.SequenceMatcher(None, name, n).ratio(), default=None)


def suggest(name: str, candidates: Iterable[str]) -> str:
    """Return `; did you mean …?`, or nothing when no candidate is close."""
    match = nearest(name, candidates)
    return f"; did you mean `{match}`?" if match else ""


# ---------------------------------------------------------------------------------------------- merging


def load_source(path: str) -> Source:
    """Return the file's keys as MONAI reads them; whatever MONAI raises on a bad file passes through."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return Source(path, ConfigParser.load_config_file(path))


def merge(sources: Iterable[Source]) -> Merged:
    """Return the sources merged in order; a key that has no place to go is a finding, and is left out."""
    merged = Merged(list(sources))
    parser = ConfigParser(config={})
    for index, source in enumerate(merged.sources):
        for key, value in source.content.items():
            problem = _misplaced(parser.get(), str(key), value)
            if problem:
                merged.findings.append(Finding(source.name, str(key), "parent", problem))
                continue
            _record(merged.origin, parser, str(key), value, index)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                merge_kv(parser, str(key), copy_tree(value))
        merged.stages.append(copy_tree(parser.get()))
    merged.config = copy_tree(parser.get())
    return merged


def _misplaced(config: dict[str, Any], key: str, value: Any) -> str:
    """Say why `key` can't be merged into the config; empty when it can."""
    identifier = ReferenceResolver.normalize_id(key.removeprefix(MERGE_KEY))
    node: Any = config
    parts = identifier.split(SEPARATOR)
    for depth, part in enumerate(parts):
        parent = SEPARATOR.join(parts[:depth])
        last = depth == len(parts) - 1
        if isinstance(node, list):
            if not part.isdigit() or int(part) >= len(node):
                return f"`{identifier}`: `{parent}` has {len(node)} entries, none is `{part}`"
            node = node[int(part)]
        elif not isinstance(node, dict):
            return f"`{identifier}`: `{parent}` is {node!r}, which holds no keys"
        elif part in node:
            node = node[part]
        elif last:
            return ""
        else:
            where = f"`{parent}` has no key `{part}`" if parent else f"there is no key `{part}`"
            return f"`{identifier}`: {where}{suggest(part, map(str, node))}"
    if key.startswith(MERGE_KEY) and not (isinstance(node, dict | list) and isinstance(value, type(node))):
        kinds = f"{type(value).__name__} to {type(node).__name__}"
        return f"`{key}` adds {kinds}; both must be lists or both mappings"
    return ""


def _record(origin: dict[str, int], parser: ConfigParser, key: str, value: Any, index: int) -> None:
    """Note that source `index` sets what `key` holds."""
    identifier = ReferenceResolver.normalize_id(key.removeprefix(MERGE_KEY))
    old = parser.get(identifier) if key.startswith(MERGE_KEY) else None
    if isinstance(old, dict):
        for child, content in value.items():
            _record(origin, parser, f"{identifier}{SEPARATOR}{child}", content, index)
        return
    offset = len(old) if isinstance(old, list) else 0
    if not isinstance(old, list):
        for stale in [known for known in origin if known.startswith(identifier + SEPARATOR)]:
            del origin[stale]
        origin[identifier] = index
    if not isinstance(value, dict | list):
        return
    for child, content in value.items() if isinstance(value, dict) else enumerate(value, offset):
        origin.update(dict.fromkeys((found for found, _ in walk(content, f"{identifier}::{child}")), index))


# ------------------------------------------------------------------------------------- who reads what


def references(config: dict[str, Any]) -> list[tuple[str, str]]:
    """Return (reader, read) pairs of ids: `@id`, `$…@id…`, and `%id` within the same config."""
    pairs = []
    for identifier, value in walk(config):
        if not isinstance(value, str) or not value:
            continue
        try:
            text = ConfigParser.resolve_relative_ids(identifier, value)
        except ValueError:  # more `::` than levels; `undefined_references` reports it
            continue
        if text.startswith("%"):
            path, target = ConfigParser.split_path_id(text[1:])
            pairs += [] if path else [(identifier, target)]
        else:
            pairs += [(identifier, target) for target in ReferenceResolver.match_refs_pattern(text)]
    return pairs


def _within(identifier: str, block: str) -> bool:
    return identifier == block or identifier.startswith(block + SEPARATOR)


def find_unread(config: dict[str, Any], known: Iterable[str], reads: list[tuple[str, str]] | None = None) -> list[str]:
    """Return the ids, highest level first, that neither the config nor MONAI reads.

    `known` are ids read by name; `reads` are more (reader, read) pairs, such as macros already replaced.
    """
    pairs = references(config) + (reads or [])
    known = set(known) | PROPERTY_IDS | KNOWN_KEYS
    return _unread_below(config, "", known, pairs)


def _unread_below(block: dict[str, Any], prefix: str, known: set[str], pairs: list[tuple[str, str]]) -> list[str]:
    unread = []
    for key, value in block.items():
        identifier = f"{prefix}{SEPARATOR}{key}" if prefix else str(key)
        read = [target for reader, target in pairs if not _within(reader, identifier)]
        if identifier in known or identifier in read:
            continue
        partly = any(_within(name, identifier) for name in (*read, *known))
        if partly and isinstance(value, dict) and not is_component(value):
            unread += _unread_below(value, identifier, known, pairs)
        elif not partly:
            unread.append(identifier)
    return unread


def drop_unread(config: dict[str, Any], known: Iterable[str] = ()) -> dict[str, Any]:
    """Return a copy without the keys that later layers left without a reader, so that it passes its own check."""
    config = copy_tree(config)
    while unread := [key for key in find_unread(config, known) if key not in OPENING_KEYS]:
        for identifier in unread:  # dropping one may leave another without its reader
            *parents, key = identifier.split(SEPARATOR)
            block = config
            for parent in parents:
                block = block[parent]
            del block[key]
    return config


def unread_findings(config: dict[str, Any], merged: Merged, known: Iterable[str] = ()) -> list[Finding]:
    """Return a finding for each key that nothing reads, with the nearest name that is read.

    A key that was read until a later layer replaced its reader is no mistake of its writer. Without sources
    (a workflow built in Python) only a key that resembles a read one is reported: a layer may have orphaned it.
    """
    macros = references(merged.config)
    unread = find_unread(config, known, macros)
    findings = []
    for identifier in unread:
        candidates = _sibling_names(config, identifier, set(unread), known)
        name = identifier.rpartition(SEPARATOR)[2]
        if merged.sources:
            worth_saying = _is_own_mistake(identifier, merged, known)
        else:
            worth_saying = nearest(name, candidates, cutoff=0.75) is not None
        if worth_saying:
            text = f"`{identifier}` is read by nothing{suggest(name, candidates)}"
            findings.append(Finding(merged.file_of(identifier), identifier, "unread", text))
    return findings


def _is_own_mistake(identifier: str, merged: Merged, known: Iterable[str]) -> bool:
    """Tell whether a key was set in vain from the start; MONAI's own additions and orphans were not."""
    index = merged.origin.get(identifier)
    if index is None:
        return False
    if identifier in OPENING_KEYS and merged.sources[index].name != OVERRIDES:
        return False  # layers that serve every bundle set these
    return identifier in find_unread(merged.stages[index], known)


def _sibling_names(config: dict[str, Any], identifier: str, unread: set[str], known: Iterable[str]) -> set[str]:
    """Return the names beside an id that something reads."""
    prefix = identifier.rpartition(SEPARATOR)[0]
    everything = [i for i, _ in walk(config) if i not in unread]
    everything += [*PROPERTY_IDS, *KNOWN_KEYS, *known] + ([] if prefix else ["train", "validate"])
    start = prefix + SEPARATOR if prefix else ""
    return {i[len(start) :].split(SEPARATOR)[0] for i in everything if i.startswith(start)}


def undefined_references(config: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the (reader, read) pairs whose read id does not exist."""
    defined = {identifier for identifier, _ in walk(config)} | {""}
    return [(reader, target) for reader, target in references(config) if target not in defined]


def reference_findings(config: dict[str, Any], merged: Merged) -> list[Finding]:
    """Return a finding for each reference to an id that does not exist."""
    defined = [identifier for identifier, _ in walk(config)]
    findings = []
    for reader, target in undefined_references(config):
        same_depth = [i for i in defined if i.count(SEPARATOR) == target.count(SEPARATOR)]
        match = nearest(target, same_depth)
        advice = f"; did you mean `@{match}`?" if match else ""
        text = f"`{reader}` refers to `@{target}`, which is not defined{advice}"
        findings.append(Finding(merged.file_of(reader), reader, "reference", text))
    return findings


def overlay_base(files: list[str], config: dict[str, Any]) -> str | None:
    """Return the path of the `train.*` that these files are an overlay on; None when they stand alone.

    They are an overlay when they lack ids (or the `run` list) that a `train` file in their folder or the one
    above defines.
    """
    lacking = {target for _, target in undefined_references(config)} | ({"run"} - config.keys())
    if not files or not lacking:
        return None
    folder = Path(files[0]).parent
    places = (folder, folder / "..")
    for base in (place / f"train.{end}" for place in places for end in ConfigParser.suffixes):
        if base.is_file() and not any(base.samefile(path) for path in files if Path(path).is_file()):
            with contextlib.suppress(Exception):  # a broken train file explains nothing here
                defined = {i for i, _ in walk(merge([load_source(str(base))]).config)}
                if lacking & defined:
                    return os.path.normpath(base)
    return None


def overlay_message(files: list[str], base: str) -> str:
    """Return the one line that says how to run an overlay."""
    listed = ",".join(f"'{path}'" for path in (base, *files))
    return (
        f"{Path(files[0]).name} is an overlay on {Path(base).name}; run: "
        f'python -m monai.bundle run --config_file "[{listed}]"'
    )


# ---------------------------------------------------------------------------------- targets and arguments


def locate_target(target: str, locator: ComponentLocator) -> tuple[Any, str]:
    """Return what a `_target_` names and an empty text, or None and why it names nothing."""
    modules = locator.get_component_module_name(target)
    if modules:  # a short name of MONAI's; where several modules have it, MONAI takes the first
        module = modules if isinstance(modules, str) else modules[0]
        return getattr(importlib.import_module(module), target), ""
    if "." not in target:
        builtin = getattr(importlib.import_module("builtins"), target, None)
        if builtin is not None:
            return builtin, ""
        table = locator._components_table  # filled by the look-up above; MONAI has no public list
        return None, f"MONAI has no component `{target}`{suggest(target, table)}"
    return _locate_dotted(target.split("."))


def _locate_dotted(parts: list[str]) -> tuple[Any, str]:
    """Import as far as modules go, as `pydoc.locate` does for MONAI, then follow attributes."""
    found: Any = None
    depth = 0
    while depth < len(parts):
        name = ".".join(parts[: depth + 1])
        try:
            found = importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name != name:
                return None, f"`{name}` can't be imported: {error}"
            break
        except Exception as error:  # a module may raise anything while it is imported; the user is told what
            return None, f"`{name}` can't be imported: {type(error).__name__}: {error}"
        depth += 1
    if depth == 0:
        return None, f"there is no package `{parts[0]}`"
    for part in parts[depth:]:
        if not hasattr(found, part):
            return None, f"`{'.'.join(parts[:depth])}` has no `{part}`{suggest(part, dir(found))}"
        found, depth = getattr(found, part), depth + 1
    return found, ""


def component_findings(
    config: dict[str, Any],
    merged: Merged,
    locator: ComponentLocator,
    may_import: Callable[[str], bool] | None = None,
) -> list[Finding]:
    """Return a finding for each `_target_` that does not exist and each argument it does not take, or lacks.

    `may_import` says whether the code behind a dotted target may be imported to look; everything, by default.
    """
    findings = []
    for identifier, block in walk(config):
        target = block.get("_target_") if is_component(block) else None
        if not isinstance(target, str) or not is_text(target) or (may_import and not may_import(target)):
            continue
        component, problem = locate_target(target, locator)
        file = merged.file_of(f"{identifier}{SEPARATOR}_target_")
        if problem:
            text = f"`{identifier}::_target_` is `{target}`, but {problem}"
            findings.append(Finding(file, f"{identifier}::_target_", "target", text))
        elif callable(component):
            findings += _argument_findings(identifier, block, component, merged)
    return findings


def _argument_findings(identifier: str, block: dict[str, Any], component: Any, merged: Merged) -> list[Finding]:
    """Return the arguments that a component does not take, and those it needs and lacks."""
    try:
        parameters = inspect.signature(component).parameters.values()
    except (TypeError, ValueError):  # some of what is written in C has no signature
        return []
    named = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters)
    given = {str(name) for name in block} - ConfigComponent.non_arg_keys
    name_of = getattr(component, "__name__", str(block["_target_"]))
    findings = []
    for argument in sorted(given - named):
        key = f"{identifier}{SEPARATOR}{argument}"
        advice = _mistaken_keyword(argument, component, named) if takes_any else suggest(argument, named)
        if not takes_any or advice:
            text = f"`{key}`: {name_of} has no argument `{argument}`{advice}"
            findings.append(Finding(merged.file_of(key), key, "argument", text))
    needed = {p.name for p in parameters if p.name in named and p.default is p.empty}
    lacking = sorted(needed - given) if block.get("_mode_", "default") == "default" else []
    if lacking:
        words = ", ".join(f"`{argument}`" for argument in lacking)
        text = f"`{identifier}`: {name_of} needs the argument{'s' * (len(lacking) > 1)} {words}"
        findings.append(Finding(merged.file_of(identifier), identifier, "argument", text))
    return findings


def _mistaken_keyword(argument: str, component: Any, named: set[str]) -> str:
    """Return a suggestion when a free keyword is nearly a name of the component's own or of its base classes'.

    A class with `**kwargs` usually hands them to its base (MONAI's DataLoader), but not always (LoadImaged's go
    to its reader), so only a near miss is called a mistake.
    """
    for base in inspect.getmro(component) if inspect.isclass(component) else ():
        with contextlib.suppress(TypeError, ValueError):
            named = named | (set(inspect.signature(base).parameters) - {"args", "kwargs"})
    if argument in named or len(argument) < 4:
        return ""
    match = nearest(argument, named, cutoff=0.85)
    return f"; did you mean `{match}`?" if match else ""


# ---------------------------------------------------------------------------------------- standard values


def _whole(value: Any) -> int:
    number = _number(value)
    if number != int(number):
        raise ValueError(value)
    return int(number)


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise TypeError(value)
    number = float(value) if isinstance(value, str) else value
    if not math.isfinite(number):
        raise ValueError(value)
    return number


def _boolean(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    return {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}[str(value).lower()]


def _words(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise TypeError(value)
    return str(value)


_COUNT = (_whole, 1, math.inf, "a whole number of at least 1")
_SIZE = (_whole, 0, math.inf, "a whole number of at least 0")
_SWITCH = (_boolean, 0, 1, "true or false")
# key: how it is read, least, greatest (itself allowed), and how to say so
STANDARD_VALUES: dict[str, tuple[Callable[[Any], Any], float, float, str]] = {
    **dict.fromkeys(("epochs", "val_interval", "batch_size"), _COUNT),
    **dict.fromkeys(("num_workers", "fold", "patience"), _SIZE),
    **dict.fromkeys(("amp", "resume", "deterministic"), _SWITCH),
    "seed": (_whole, -math.inf, math.inf, "a whole number"),
    "learning_rate": (_number, math.ulp(0.0), math.inf, "a number greater than 0"),
    "weight_decay": (_number, 0, math.inf, "a number of at least 0"),
    "dropout": (_number, 0, math.nextafter(1.0, 0.0), "a number from 0 up to, but not including, 1"),
}
_FLIP = re.compile(r"^((Batch)?(Rand)?(Axis)?Flip(d|D|Dict)?|MirroredInferer|SlabInferer)$")
_TEXTS = ("dataset_dir", "split", "run_dir", "output_dir")


def standard_values(config: dict[str, Any], merged: Merged) -> tuple[dict[str, Any], list[Finding]]:
    """Return standard keys whose text is a value (`"true"`, `"1e-3"`), as that value, and what can't be read.

    The command line passes `--resume true` as text, and YAML 1.1 reads `1e-3` as text.
    """
    values: dict[str, Any] = {}
    findings = []
    for key in config.keys() & STANDARD_VALUES.keys():
        read, least, greatest, words = STANDARD_VALUES[key]
        value = config[key]
        if not is_text(value) or isinstance(value, dict):
            continue
        try:
            values[key] = read(value)
            accepted = least <= values[key] <= greatest
        except (KeyError, TypeError, ValueError, OverflowError):
            accepted = False
        if not accepted:
            values.pop(key, None)
            text = f"`{key}` must be {words}, got {value!r}"
            findings.append(Finding(merged.file_of(key), key, "value", text))
    for key in config.keys() & set(_TEXTS):
        with contextlib.suppress(TypeError):  # `--run_dir 7` arrives as a number
            values[key] = _words(config[key])
    changed = {key: value for key, value in values.items() if not _same(value, config[key])}
    return changed, sorted(findings, key=lambda finding: list(config).index(finding.key))


def spelled_switches(merged: Merged) -> dict[str, bool]:
    """Return the ids that the files set to true or false and the command line to the text of one, as that value."""
    if len(merged.stages) < 2 or merged.sources[-1].name != OVERRIDES:
        return {}
    before = dict(walk(merged.stages[-2]))
    switches = {}
    for key, value in merged.sources[-1].content.items():
        identifier = ReferenceResolver.normalize_id(key)
        if isinstance(before.get(identifier), bool) and str(value).lower() in ("true", "false"):
            switches[identifier] = str(value).lower() == "true"
    return {key: value for key, value in switches.items() if dict(walk(merged.config)).get(key) is not value}


def _same(left: Any, right: Any) -> bool:
    return type(left) is type(right) and bool(left == right)


def flip_findings(config: dict[str, Any], merged: Merged) -> list[Finding]:
    """Return the flips from left to right in a config whose labels tell left from right.

    After orientation to RAS, the first spatial axis runs from left to right; MONAI flips all axes by default.
    """
    labels = config.get("labels")
    names = lateral_names(labels) if isinstance(labels, dict) and all(map(is_text, labels.values())) else []
    findings = []
    for identifier, block in walk(config) if names else ():
        target = block.get("_target_") if is_component(block) else None
        if not isinstance(target, str) or not _FLIP.match(target.rpartition(".")[2]):
            continue
        slabs = target.endswith("SlabInferer")
        axes = block.get("mirror_axes", []) if slabs else None if "AxisFlip" in target else block.get("spatial_axis")
        if isinstance(axes, str) and axes.startswith("@"):
            axes = config.get(axes[1:])
        if axes is None or 0 in (axes if isinstance(axes, list) else [axes]):
            text = f"`{identifier}` flips left to right, but {names[0]!r} in `labels` is of one side; " + (
                "leave 0 out of `mirror_axes`" if slabs else "remove it, or set `spatial_axis` to 1 or 2 (RandFlipd)"
            )
            findings.append(Finding(merged.file_of(identifier), identifier, "flip", text))
    return findings


def plane_findings(config: dict[str, Any], merged: Merged) -> list[Finding]:
    """Return whether a config's network takes images of other dimensions than its `image_size` or `patch_size` has."""
    key = next((key for key in ("image_size", "patch_size") if isinstance(config.get(key), list)), None)
    found: Any = config.get("network_def")
    if is_component(found) and "spatial_dims" not in found:
        found = found.get("network")  # in what only pads its images
    if key is None or not is_component(found):
        return []
    dimensions, length = found.get("spatial_dims"), len(config[key])
    dimensions = config.get("spatial_dims") if dimensions == "@spatial_dims" else dimensions
    if not isinstance(dimensions, int) or dimensions == length:
        return []
    text = f"`network_def` has `spatial_dims` {dimensions}, but `{key}` {config[key]} has {length} numbers; "
    file = merged.file_of("network_def")
    return [Finding(file, "network_def", "dimensions", text + f"set `spatial_dims` to {length}")]


def shared_findings(
    config: dict[str, Any],
    merged: Merged,
    locator: ComponentLocator,
    known: Iterable[str] = (),
    may_import: Callable[[str], bool] | None = None,
) -> list[Finding]:
    """Return what both a starting run and the linter look for in a merged config."""
    misplaced = [source.name for source in merged.sources[1:] if Path(source.name).stem == "train"]
    text = "must come first on the line, its overlays after it, or it replaces what they set"
    return [
        *merged.findings,
        *(Finding(name, "", "order", f"{Path(name).name} {text}") for name in misplaced),
        *unread_findings(config, merged, known),
        *reference_findings(config, merged),
        *component_findings(config, merged, locator, may_import),
        *standard_values(config, merged)[1],
        *flip_findings(config, merged),
        *plane_findings(config, merged),
    ]
