"""A plan as a bundle: the packaged bundle's own texts, with the planned numbers and their reasons set in."""

import re
import shutil
import textwrap
from collections.abc import Mapping
from dataclasses import asdict
from itertools import count
from pathlib import Path
from typing import Any

import yaml

from tomokit.bundles import find_bundle
from tomokit.errors import TomokitError, raise_problems
from tomokit.files import read_json, write_json, write_text
from tomokit.planning.fingerprint import Fingerprint
from tomokit.planning.rules import Choice, is_ct, plain

WIDTH = 120
FILES = ("configs/evaluate.yaml", "configs/inference.yaml", "configs/logging.conf")


def check_target(out: Path) -> None:
    """Raise when a plan can't be written to a folder: it is there, and holds something else than an earlier plan.

    Raises:
        TomokitError: that says so.
    """
    if out.exists() and not out.is_dir():
        raise TomokitError(f"{out} is a file; give another --out")
    if out.is_dir() and any(out.iterdir()) and not (out / "fingerprint.json").is_file():
        raise TomokitError(f"{out} is there and holds no earlier plan (no fingerprint.json); give another --out")


def put_in_place(staged: Path, out: Path) -> Path | None:
    """Move a written bundle to its place and return where an earlier plan there was moved to, if there was one.

    Raises:
        TomokitError: when the earlier plan can't be moved aside.
    """
    check_target(out)
    earlier = None
    if out.is_dir() and any(out.iterdir()):
        earlier = _free_name(out)
        try:
            out.rename(earlier)
        except OSError as error:
            raise TomokitError(
                f"the earlier plan {out} can't be moved to {earlier} ({error.strerror}); give another --out"
            ) from error
    if not out.is_dir():
        staged.rename(out)
        return earlier
    for item in staged.iterdir():  # an empty folder stays: it may be a mount point, or where the user is
        shutil.move(item, out / item.name)
    return None


def _free_name(folder: Path) -> Path:
    """Return the first of `<name>.1`, `<name>.2`, … that is free."""
    return next(path for number in count(1) if not (path := folder.with_name(f"{folder.name}.{number}")).exists())


def write_bundle(
    places: tuple[Path, Path], fingerprint: Fingerprint, choices: Mapping[str, Choice], given: Mapping[str, Any]
) -> None:
    """Write the bundle of a plan.

    Args:
        places: the folder to write, and the one where it is going to lie, which its texts tell.
        fingerprint: of the set.
        choices: the planned keys.
        given: further keys and their values, such as the split.

    Raises:
        TomokitError: when the packaged bundle lacks a key that is to be set.
    """
    folder, out = places
    packaged = find_bundle(fingerprint.task)
    shutil.rmtree(folder, ignore_errors=True)

    def place(text: str) -> str:
        text = text.replace(f"bundles/{fingerprint.task}/", f"{out}/")
        return text.replace(f"runs/{fingerprint.task}", f"runs/{out.name}")

    text = (packaged / "configs" / "train.yaml").read_text(encoding="utf-8")
    own: dict[str, Any] = {"dataset_dir": fingerprint.dataset, "run_dir": f"runs/{out.name}"}
    own |= {"modality": fingerprint.modality, "labels": dict(fingerprint.labels)}
    text = set_keys(place(text), {key: Choice(value, "") for key, value in {**own, **given}.items()} | dict(choices))
    name = Path(fingerprint.dataset).name
    head = f"# Planned for {name}: each planned number has its reason above it; docs/README.md lists them.\n"
    write_text(folder / "configs" / "train.yaml", head + text)
    for file in FILES:
        write_text(folder / file, place((packaged / file).read_text(encoding="utf-8")))
    write_json(folder / "configs" / "metadata.json", _fit_metadata(packaged, fingerprint, choices))
    write_json(folder / "fingerprint.json", asdict(fingerprint) | {"anisotropy": fingerprint.anisotropy})
    write_json(folder / "plan.json", {key: plain(choice._asdict()) for key, choice in choices.items()})
    write_text(folder / "docs" / "README.md", _readme(out, fingerprint, choices))


def read_packaged(task: str, name: str = "train") -> dict[str, Any]:
    """Return a packaged config of a task, such as "train" or the layer "modes/partly_labelled", as YAML holds it."""
    text = (find_bundle(task) / "configs" / f"{name}.yaml").read_text(encoding="utf-8")
    return dict(yaml.safe_load(text))


def set_keys(text: str, choices: Mapping[str, Choice]) -> str:
    """Return a config's text with the values of keys such as `spacing` or `train::loss` replaced.

    The reason stands above each; other comments and the order of the keys stay.

    Raises:
        TomokitError: that names the keys the text lacks.
    """
    lines = text.splitlines()
    missing = []
    for key, choice in choices.items():
        found = _find(lines, key.split("::"))
        if found is None:
            missing.append(f"`{key}` (planned: {plain(choice.value)!r})")
            continue
        start, end = found
        lines[start:end] = _lines_of(lines[start], key.split("::")[-1], choice)
    raise_problems(
        "the packaged train.yaml lacks these keys, so the plan does not fit it; install tomokit again", missing
    )
    return "\n".join(lines) + "\n"


def _find(lines: list[str], path: list[str]) -> tuple[int, int] | None:
    """Return the first line of a key's block and the line after its last, None where there is no such key."""
    start, end, indent = 0, len(lines), ""
    for depth, key in enumerate(path):
        pattern = re.compile(rf"{indent}{re.escape(key)}:(\s|$)")
        at = next((number for number in range(start, end) if pattern.match(lines[number])), None)
        if at is None:
            return None
        end = _end_of_block(lines, at, end, len(indent))
        start = at if depth == len(path) - 1 else at + 1
        inner = next((line for line in lines[at + 1 : end] if line.strip() and not line.lstrip().startswith("#")), "")
        indent = inner[: len(inner) - len(inner.lstrip())]
    return start, end


def _end_of_block(lines: list[str], at: int, end: int, indent: int) -> int:
    """Return the line after the last one that belongs to the key at a line: the last that lies deeper."""
    last = at + 1
    for number in range(at + 1, end):
        line = lines[number]
        depth = len(line) - len(line.lstrip())
        if line.strip() and depth <= indent:
            break
        if line.strip():
            last = number + 1
    return last


def _lines_of(line: str, key: str, choice: Choice) -> list[str]:
    """Return a key's new lines: its reason as comment, and the value with the comment that stood behind the old one."""
    margin = line[: len(line) - len(line.lstrip())]
    behind = re.search(r"\s+#[^'\"]*$", line)
    told = textwrap.wrap(choice.reason, WIDTH - len(margin) - 2)
    return [f"{margin}# {part}" for part in told] + [
        f"{margin}{key}: {_dump(choice.value)}{behind.group() if behind else ''}"
    ]


def _dump(value: Any) -> str:
    """Return a value as one line of YAML."""
    text = yaml.safe_dump(plain(value), default_flow_style=True, width=10**6, sort_keys=False, allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...")


def _fit_metadata(packaged: Path, fingerprint: Fingerprint, choices: Mapping[str, Choice]) -> dict[str, Any]:
    """Return the packaged metadata with the set's own channels, labels and sizes."""
    content: dict[str, Any] = read_json(packaged / "configs" / "metadata.json")
    name = Path(fingerprint.dataset).name
    content |= {
        "name": f"{name} {fingerprint.task}",
        "changelog": {"0.1.0": f"planned for {name}"},
        "version": "0.1.0",
        "description": f"{fingerprint.task.capitalize()} planned for the data set {name}.",
        "authors": "to be filled in",
        "copyright": "to be filled in",
        "data_source": name,
    }
    kinds = list(fingerprint.modality)
    size = choices.get("patch_size") or choices["image_size"]
    image = content["network_data_format"]["inputs"]["image"]
    image |= {"num_channels": len(kinds), "modality": ", ".join(kinds), "spatial_shape": list(size.value)}
    image |= {"channel_def": {str(number): kind for number, kind in enumerate(kinds)}}
    image |= {"format": "hounsfield" if all(map(is_ct, kinds)) else "magnitude"}
    image["value_range"], told = value_range(choices["intensity"].value)
    content["image_classes"] = f"{len(kinds)} channel{'s' * (len(kinds) > 1)}, {told}"
    pred = content["network_data_format"]["outputs"]["pred"]
    pred |= {"num_channels": len(fingerprint.labels), "channel_def": dict(fingerprint.labels)}
    if fingerprint.task == "segmentation":
        pred["spatial_shape"] = list(size.value)
    return content


def value_range(intensity: Mapping[str, Any]) -> tuple[list[float], str]:
    """Return the range of the network's input, empty where it has none, and how its intensities are told."""
    if "b_min" in intensity:
        low, high = intensity["b_min"], intensity["b_max"]
        return [low, high], f"intensities scaled to [{low:g}, {high:g}]"
    return [], "intensities of mean 0 and deviation 1"


def _readme(out: Path, fingerprint: Fingerprint, choices: Mapping[str, Choice]) -> str:
    """Return the bundle's page: what it is for, how it runs, and each number with its reason."""
    cases, rows = fingerprint.cases, []
    for key, choice in choices.items():
        value, reason = (text.replace("|", "\\|") for text in (_dump(choice.value), choice.reason))
        rows.append(f"| `{key}` | `{value}` | {reason} |")
    return "\n".join(
        [
            f"# {Path(fingerprint.dataset).name}",
            f"A plan for {fingerprint.task}, made by `tomokit plan` from {cases['training']} training and "
            f"{cases['validation']} validation cases. `fingerprint.json` holds what was measured, `plan.json` the "
            "numbers.",
            "```",
            f"make train BUNDLE={out}",
            f"python -m monai.bundle run --config_file {out}/configs/train.yaml",
            "```",
            "Intended for research; not a medical device.",
            "",
            "| key | value | reason |",
            "|---|---|---|",
            *rows,
            "",
        ]
    )
