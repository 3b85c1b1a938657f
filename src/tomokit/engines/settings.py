"""What a run tells of itself in logs that may leave the machine: its config, its settings, its scores."""

import re
from collections.abc import Collection, Mapping
from pathlib import Path, PureWindowsPath
from typing import Any

from tomokit.config_rules import is_text
from tomokit.configs import read_config
from tomokit.splits import PARTS
from tomokit.volumes import stem_of

FOLDERS = ("bundle_root", "dataset_dir", "run_dir", "output_dir")  # of which the last part is told
NAMES_OF_THINGS = ("labels", "modality", "fields")  # may hold a "/", and words that are also a case's name
LITERAL = re.compile(r"'([^']*)'|\"([^\"]*)\"")
HIDDEN = "…"


def tell_config(run_dir: str | Path) -> dict[str, Any]:
    """Return a run's merged config without what names a case, a file or a folder; empty where the run has none.

    Of the case lists their lengths are told, of the data set's and the run's folder the last part. Other text that
    holds a path or is a case's name, or an expression with such text in it, becomes "…".
    """
    path = Path(run_dir) / "configs" / "train.yaml"
    if not path.is_file():
        return {}
    config = read_config(path)
    cases = config.get("cases", {})
    lists = {part: cases[part] for part in PARTS if part in cases}
    if lists:
        config["cases"] = {**cases, **{part: len(names) for part, names in lists.items()}}
    names = {str(name) for part in lists.values() for name in part}
    return {
        key: value if key in NAMES_OF_THINGS else _last_part(value) if key in FOLDERS else _hide(value, names)
        for key, value in config.items()
    }


def tell_settings(config: Mapping[str, Any]) -> dict[str, float | str]:
    """Return the numbers, texts and switches at a config's top level; switches as "true" and "false"."""
    return {
        key: str(value).lower() if isinstance(value, bool) else value
        for key, value in config.items()
        if isinstance(value, bool | int | float | str) and is_text(value) and value != HIDDEN
    }


def tell_scores(record: Mapping[str, Any]) -> dict[str, float]:
    """Return what `validation.json` tells of a finished training, as `final/<name>`: the best validation, and costs."""
    best = record["best"]
    scores = {f"final/{record['metric']}": best["metric"], "final/best_epoch": best["epoch"]} if best else {}
    scores["final/loss"] = record["history"][-1]["loss"]
    return scores | {f"final/{key}": record[key] for key in ("seconds", "peak_rss_gb", "parameters")}


def _last_part(value: Any) -> Any:
    """Return the last part of a path; what is no plain text as it is."""
    return PureWindowsPath(value).name if isinstance(value, str) and is_text(value) else value


def _hide(value: Any, names: Collection[str]) -> Any:
    """Return a part of a config in which text that tells a path or one of the names is "…"."""
    if isinstance(value, Mapping):
        return {key: _hide(item, names) for key, item in value.items()}
    if isinstance(value, list):
        return [_hide(item, names) for item in value]
    if not isinstance(value, str):
        return value
    if value.startswith("$"):  # such as `@run_dir + '/predictions'`, of which nothing is told
        texts = [(one or other).removeprefix("/") for one, other in LITERAL.findall(value)]
    else:
        texts = [value] if is_text(value) else []
    tells = any("/" in text or "\\" in text or text in names or stem_of(text) in names for text in texts)
    return HIDDEN if tells else value
