"""The space of a search: which config ids vary, over what, and what the bundle itself sets there."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from monai.bundle.reference_resolver import ReferenceResolver

from tomokit.config_rules import find_unread, is_component, is_text, suggest, walk
from tomokit.configs import read_config
from tomokit.errors import TomokitError, raise_problems

RANGE_KEYS = ("low", "high", "log", "step")
SCALARS = (bool, int, float, str)


@dataclass(frozen=True)
class Parameter:
    """One thing that varies: a number in a range, one of some choices, or one of some layers.

    `options` maps the name of each choice to its value, or of each layer to its content. `default` is what the
    bundle sets (of layers: the name of one), `inside` tells whether that belongs to the space.
    """

    name: str
    kind: str  # number, choices or layers
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    step: float | None = None
    whole: bool = False
    options: Mapping[Any, Any] = field(default_factory=dict)
    default: Any = None
    inside: bool = True


def read_space(path: str | Path, config: Mapping[str, Any], lenient: bool = False) -> list[Parameter]:
    """Return the parameters of a space file, each with what the merged `config` sets there.

    The file holds one key, `search`, which maps a config id to `{low, high}` (with `log` or `step`) or to
    `{choices: […]}`, and any other name to `{layers: {name: file or content, …}}`. A file is looked for beside
    the space file; an empty layer is what the bundle itself has. With `lenient`, ids that the config lacks, or
    that nothing in it reads, are left out: the common space is of what most bundles have.

    Raises:
        TomokitError: lists every malformed entry with its key and value.
    """
    content = read_config(path)
    space = content.get("search")
    if list(content) != ["search"] or not isinstance(space, dict) or not space:
        raise TomokitError(f"{path} must hold one key, `search`, with a mapping of config ids, got {content!r:.200}")
    items = dict(walk(dict(config)))
    unread = find_unread(dict(config), ("initialize", "run", "finalize"))
    problems: list[str] = []
    found: list[Parameter] = []
    for key, entry in space.items():
        name = ReferenceResolver.normalize_id(str(key))
        layered = isinstance(entry, dict) and "layers" in entry
        if lenient and not layered and (name not in items or name in unread):
            continue
        if name in unread and not layered:
            problems.append(f"`{name}` is read by nothing in the config, so that {items[name]!r} stays without effect")
            continue
        try:
            found.append(_read_entry(name, entry, items, Path(path).parent))
        except TomokitError as error:
            problems.append(str(error))
    raise_problems(f"{path}: the space has {len(problems)} problem{'s' * (len(problems) > 1)}:", problems)
    return found


def draw(trial: Any, parameters: Sequence[Parameter], defaults: bool) -> dict[str, Any]:
    """Return what Optuna's trial draws, by parameter; with `defaults`, those that the space lacks are left out."""
    drawn: dict[str, Any] = {}
    for parameter in parameters:
        name = parameter.name
        if defaults and not parameter.inside:
            continue
        if parameter.kind != "number":
            drawn[name] = trial.suggest_categorical(name, list(parameter.options))
        elif parameter.whole:
            step = int(parameter.step or 1)
            drawn[name] = trial.suggest_int(name, int(parameter.low), int(parameter.high), step=step, log=parameter.log)
        else:
            drawn[name] = trial.suggest_float(
                name, parameter.low, parameter.high, step=parameter.step, log=parameter.log
            )
    return drawn


def default_draw(parameters: Sequence[Parameter]) -> dict[str, Any]:
    """Return what a trial must draw to be the bundle's own settings, where the space has them."""
    return {p.name: p.default if p.kind == "number" else _label(p.default) for p in parameters if p.inside}


def settings_of(parameters: Sequence[Parameter], drawn: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config keys that a draw sets: the layers' own first, then every other parameter's."""
    settings: dict[str, Any] = {}
    for parameter in parameters:
        if parameter.kind == "layers" and parameter.name in drawn:
            settings |= parameter.options[drawn[parameter.name]]
    for parameter in parameters:
        if parameter.kind != "layers" and parameter.name in drawn:
            value = drawn[parameter.name]
            settings[parameter.name] = parameter.options[value] if parameter.kind == "choices" else value
    return settings


def describe_space(parameters: Sequence[Parameter]) -> dict[str, Any]:
    """Return the space as JSON holds it: what is compared when a search goes on."""
    described = {}
    for parameter in parameters:
        if parameter.kind == "number":
            entry: dict[str, Any] = {"low": parameter.low, "high": parameter.high, "log": parameter.log}
            entry |= {} if parameter.step is None else {"step": parameter.step}
        else:
            options = parameter.options
            entry = {parameter.kind: dict(options) if parameter.kind == "layers" else list(options.values())}
        described[parameter.name] = entry | {"default": parameter.default}
    return dict(json.loads(json.dumps(described)))


def _read_entry(name: str, entry: Any, items: Mapping[str, Any], folder: Path) -> Parameter:
    """Return one parameter.

    Raises:
        TomokitError: says what is wrong with the entry, with its value.
    """
    if not isinstance(entry, dict) or not entry:
        raise TomokitError(f"`{name}` must be {{low, high}}, {{choices}} or {{layers}}, got {entry!r}")
    if "layers" in entry:
        return _read_layers(name, entry, items, folder)
    default = _default(name, items)
    if "choices" in entry:
        return _read_choices(name, entry, default)
    return _read_range(name, entry, default)


def _default(name: str, items: Mapping[str, Any]) -> Any:
    """Return what the config sets, references followed."""
    if name not in items:
        raise TomokitError(f"`{name}` is not a key of the config{suggest(name, items)}")
    value = items[name]
    for _ in items:
        if not (isinstance(value, str) and value.startswith("@")):
            break
        value = items.get(ReferenceResolver.normalize_id(value[1:]))
    if is_component(value) or not is_text(value) or isinstance(value, dict):
        raise TomokitError(f"`{name}` holds {value!r:.80} in the config; search a key that holds a plain value")
    return value


def _read_range(name: str, entry: Mapping[str, Any], default: Any) -> Parameter:
    """Return a number's range."""
    unknown = [key for key in entry if key not in RANGE_KEYS]
    if unknown:
        known = (*RANGE_KEYS, "choices", "layers")
        raise TomokitError(f"`{name}` has the key `{unknown[0]}`{suggest(str(unknown[0]), known)}, got {dict(entry)!r}")
    low, high, step = (_number(name, key, entry.get(key)) for key in ("low", "high", "step"))
    log = entry.get("log", False)
    if low is None or high is None or not low < high:
        raise TomokitError(f"`{name}` needs `low` below `high`, got {dict(entry)!r}")
    if not isinstance(log, bool) or (log and (low <= 0 or step is not None)):
        raise TomokitError(f"`{name}`: `log` is true or false, and needs `low` above 0 and no `step`: {dict(entry)!r}")
    if step is not None and not 0 < step <= high - low:
        raise TomokitError(f"`{name}`: `step` must be above 0 and at most high - low, got {dict(entry)!r}")
    own = _number(name, "default", default)
    whole = all(value is None or isinstance(value, int) for value in (low, high, step, own))
    inside = own is not None and low <= own <= high
    if inside and step is not None and own is not None:
        inside = math.isclose((own - low) / step, round((own - low) / step), abs_tol=1e-9)
    return Parameter(name, "number", low, high, log, step, whole, default=own, inside=inside)


def _read_choices(name: str, entry: Mapping[str, Any], default: Any) -> Parameter:
    """Return one of some values; a list or mapping goes by its JSON text, since Optuna keeps plain values only."""
    choices = entry["choices"]
    if list(entry) != ["choices"] or not isinstance(choices, list) or len({repr(c) for c in choices}) < 2:
        raise TomokitError(f"`{name}`: `choices` must stand alone, a list of two or more values, got {dict(entry)!r}")
    options = {_label(choice): choice for choice in choices}
    if len(options) < len(choices):
        raise TomokitError(f"`{name}`: `choices` holds a value twice, got {choices!r}")
    return Parameter(name, "choices", options=options, default=default, inside=_label(default) in options)


def _read_layers(name: str, entry: Mapping[str, Any], items: Mapping[str, Any], folder: Path) -> Parameter:
    """Return one of some layers; the empty one is what the bundle has, else no trial is the bundle's own."""
    layers = entry["layers"]
    if list(entry) != ["layers"] or not isinstance(layers, dict) or len(layers) < 2:
        text = "`layers` must stand alone, a mapping of two or more names to a file or keys"
        raise TomokitError(f"`{name}`: {text}, got {dict(entry)!r}")
    options: dict[str, dict[str, Any]] = {}
    for label, layer in layers.items():
        content = read_config(folder / layer) if isinstance(layer, str) else layer or {}
        if not isinstance(content, dict):
            raise TomokitError(f"`{name}`: the layer {label!r} must be a file or a mapping of keys, got {layer!r}")
        options[str(label)] = {ReferenceResolver.normalize_id(str(key)): value for key, value in content.items()}
        absent = [key for key in options[str(label)] if key.removeprefix("+") not in items]
        if absent:
            where = f"`{name}`: the layer {label!r} sets `{absent[0]}`"
            raise TomokitError(f"{where}, which is not a key of the config{suggest(absent[0], items)}")
    own = next((label for label, content in options.items() if not content), None)
    return Parameter(name, "layers", options=options, default=own, inside=own is not None)


def _number(name: str, key: str, value: Any) -> float | None:
    """Return a number, also one that YAML 1.1 reads as text (`1e-4`); None for None."""
    if value is None or (isinstance(value, int) and not isinstance(value, bool)):
        return value
    try:
        number = float(value) if isinstance(value, str | float) else math.nan
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise TomokitError(f"`{name}`: `{key}` must be a number, got {value!r}")
    return number


def _label(value: Any) -> Any:
    """Return the value as Optuna keeps it."""
    return value if value is None or isinstance(value, SCALARS) else json.dumps(value)
