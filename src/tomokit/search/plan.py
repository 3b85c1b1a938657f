"""What is searched: a bundle's training with its layers, the space, and the schedule that every trial keeps to."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from monai.bundle import ConfigParser

from tomokit import configs
from tomokit.bundles import bundles_folder, find_bundle
from tomokit.config_rules import OVERRIDES, Source, load_source, merge
from tomokit.errors import TomokitError, raise_problems
from tomokit.files import read_json
from tomokit.runs import FREE_KEYS, hash_cases
from tomokit.search.space import Parameter, describe_space, read_space

VALIDATIONS = 5  # at least so many per trial, where there are as many epochs: pruning needs them
OWN_KEYS = ("run_dir", "resume", "epochs", "val_interval")
SHOWN_CHARACTERS = 80


@dataclass(frozen=True)
class Plan:
    """The files and overrides of the training, merged, with its cases by part, the space, and the metric's sense."""

    bundle: Path
    files: list[str]
    overrides: dict[str, Any]
    config: dict[str, Any]
    cases: dict[str, list[dict[str, Any]]]
    parameters: list[Parameter]
    greater_is_better: bool

    def names(self, part: str) -> list[str]:
        """Return the names of a part's cases."""
        return [str(entry["case"]) for entry in self.cases[part]]

    def interval(self, epochs: int) -> int:
        """Return how often a trial of so many epochs validates."""
        return max(1, min(int(self.config["val_interval"]), epochs // VALIDATIONS))

    def files_of_trial(self, path: Path, run: Path, epochs: int, settings: Mapping[str, Any]) -> list[str]:
        """Return the config files of a trial, its own layer written to `path`; it knows of no test case."""
        layer = {
            **self.overrides,
            **settings,
            "run_dir": str(run),
            "resume": False,
            "epochs": epochs,
            "val_interval": self.interval(epochs),
            "cases::training": self.names("training"),
            "cases::validation": self.names("validation"),
            "cases::test": [],
        }
        files = [*self.files, str(path)]
        told = ",".join(f"'{file}'" for file in files)
        header = f'A trial of a search. Again: python -m monai.bundle run --config_file "[{told}]"'
        configs.write_config(layer, path, header)
        return files

    def settings(self, seed: int) -> dict[str, Any]:
        """Return what all processes and later calls of the search must share, as JSON holds it."""
        kept = {key: value for key, value in self.config.items() if key not in (*FREE_KEYS, *OWN_KEYS)}
        used = {part: self.cases[part] for part in ("training", "validation")}
        settings = {
            "config": kept,
            "space": describe_space(self.parameters),
            "data_hash": hash_cases(used),
            "seed": seed,
        }
        return dict(json.loads(json.dumps(settings, default=str)))


def make_plan(
    bundle: str | Path, space: str | Path | None, layers: Sequence[str | Path], overrides: Mapping[str, Any]
) -> Plan:
    """Return the plan, its config merged and its cases selected, before anything is built.

    Args:
        bundle: its name or folder.
        space: a file with the key `search`; None is `_layers/search.yaml`.
        layers: files, or names of the bundle's or the common layers.
        overrides: config ids and values; text is read as YAML reads it.

    Raises:
        TomokitError: when a file, an override, the space, or the split can't be used.
    """
    root = find_bundle(bundle)
    train = root / "configs" / "train.yaml"
    if not train.is_file():
        raise TomokitError(f"{root} has no configs/train.yaml; only a bundle that trains can be searched")
    files = [str(train), *(_find_layer(layer, root) for layer in layers)]
    values = {key: yaml.safe_load(value) if isinstance(value, str) else value for key, value in overrides.items()}
    merged = merge([*(load_source(path) for path in files), Source(OVERRIDES, values)])
    own = [key for key in OWN_KEYS if key in values]
    problems = [f"`{key}` is set by the search itself, got {values[key]!r}; leave it out" for key in own]
    raise_problems("this can't be searched:", problems + [str(finding) for finding in merged.findings])
    common = bundles_folder() / "_layers" / "search.yaml"
    parameters = read_space(space or common, merged.config, lenient=space is None)
    parser = ConfigParser(config=merged.config)
    cases = parser.get_parsed_content("cases")
    if not cases["validation"]:
        raise TomokitError(
            f"the split has {len(cases['training'])} training cases and 0 to validate; a search needs an inner "
            "validation: give `split` a file that has one"
        )
    better = merged.config["validate"]["evaluator"].get("metric_cmp_fn")
    greater = better is None or bool(parser.get_parsed_content("validate::evaluator::metric_cmp_fn")(1.0, 0.0))
    return Plan(root, files, values, parser.get(), cases, parameters, greater)


def compare_settings(folder: Path, began: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raise when a search is gone on with otherwise than it began.

    Raises:
        TomokitError: which names each difference.
    """
    problems = []
    for block in ("config", "space"):
        for key in sorted(set(began[block]) | set(now[block])):
            before, after = (_shorten(source[block].get(key)) for source in (began, now))
            if began[block].get(key) != now[block].get(key):
                problems.append(f"`{key}` ({block}) is {after}, the search began with {before}")
    for key in ("seed", "epochs"):
        if key in now and now[key] != began[key]:
            problems.append(f"`{key}` is {now[key]}, the search began with {began[key]}")
    if now["data_hash"] != began["data_hash"]:
        problems.append("the cases' files are not those the search began with")
    raise_problems(f"{folder} is a search of something else; give another folder to begin anew:", problems)


def fit_epochs(plan: Plan, times: Mapping[str, float], seconds: float) -> int:
    """Return the most epochs, at least 1 and at most the config's, with which a trial takes at most `seconds`.

    `times` holds the seconds that a trial's start, an epoch and a validation take.
    """
    for epochs in range(int(plan.config["epochs"]), 1, -1):
        validations = math.ceil(epochs / plan.interval(epochs))
        if times["start"] + epochs * times["epoch"] + validations * times["validation"] <= seconds:
            return epochs
    return 1


def _find_layer(layer: str | Path, root: Path) -> str:
    """Return the path of a layer given as a file, or by its name: of the bundle, of a plan's packaged one, common."""
    folders = [root / "configs", bundles_folder() / "_layers"]
    if (root / "fingerprint.json").is_file():
        folders.insert(1, bundles_folder() / read_json(root / "fingerprint.json")["task"] / "configs")
    places = [Path(layer), *(folder / f"{layer}.yaml" for folder in folders)]
    for path in places:
        if path.is_file():
            return str(path)
    raise TomokitError(f"no layer {str(layer)!r}: looked for {', '.join(map(str, places))}")


def _shorten(value: Any) -> str:
    """Return a value as a short text."""
    text = repr(value)
    return text if len(text) <= SHOWN_CHARACTERS else text[:SHOWN_CHARACTERS] + " …"
