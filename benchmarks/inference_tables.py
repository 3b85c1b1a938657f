"""What the inference benchmark's rows say: tables for the terminal and the docs, and whether each goal is met."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from blocks import markdown_table

Rows = Sequence[Mapping[str, Any]]
MOST_RATIO = {"hippocampus": 1.2, "ct400-3": 1.3, "ct400-25": 1.3, "ct400-118": 2.0, "ct800-118": 2.0}
MOST_GB = {"ct400-25": 2.0, "ct400-118": 3.0}
LEAST_SPEEDUP = 2.0
MOST_GROWTH = 1.2
LEAST_SHARE, LEAST_DICE, LEAST_DICE_BF16 = 0.9999, 0.999, 0.995
SYSTEM_HEAD = ["data", "system", "seconds", "in the network", "windows", "peak GB", "× the bare network"]
SYSTEM_HEAD += ["tomokit is faster by", "labels as tomokit's", "hardware"]
PART_HEAD = ["data", "tomokit", "seconds", "× tomokit's", "windows", "peak GB", "labels as tomokit's", "lowest Dice"]
PARITY_HEAD = ["data", "equal voxels, float32", "lowest Dice, float32", "lowest Dice, bfloat16", "structures found"]
GOAL_HEAD = ["goal", "data", "measured", ""]
ABSENT = "—"
PART = "tomokit, "  # what the name of a part's row begins with


class Goal(NamedTuple):
    """One line of what must be shown.

    Attributes:
        text: the goal.
        dataset: where it was measured.
        measured: the value.
        met: None where it could not be told.
    """

    text: str
    dataset: str
    measured: str
    met: bool | None

    @property
    def verdict(self) -> str:
        """Return "met", "missed" or "not told"."""
        return {True: "met", False: "missed", None: "not told"}[self.met]


class Found:
    """The rows of one kind of hardware, by data set, system and metric.

    Args:
        rows: of the benchmark.
        hardware: whose rows.
    """

    def __init__(self, rows: Rows, hardware: str) -> None:
        self.hardware = hardware
        own = [row for row in rows if row["hardware"] == hardware]
        self.by_name = {(row["dataset"], row["system"], row["metric"]): row for row in own}
        measured = list(dict.fromkeys(row["dataset"] for row in own))
        self.datasets = sorted(measured, key=lambda name: list(MOST_RATIO).index(name))

    def row(self, dataset: str, system: str, metric: str = "seconds") -> Mapping[str, Any] | None:
        """Return a row, or None where it was not measured."""
        return self.by_name.get((dataset, system, metric))

    def value(self, dataset: str, system: str, metric: str) -> float | None:
        """Return a row's value; None where there is none."""
        row = self.row(dataset, system, metric)
        return None if row is None else row["value"]

    def systems(self, dataset: str, parts: bool) -> list[str]:
        """Return the systems of a data set in the order they were measured: `tomokit` and its parts, or all others."""
        names = [name for data, name, metric in self.by_name if data == dataset and metric == "seconds"]
        return [name for name in names if (name.startswith(PART) or name == "tomokit" if parts else PART not in name)]


# --------------------------------------------------------------------------------------------------- tables


def block(rows: Rows, kind: str) -> str:
    """Return the Markdown table of a kind for the docs: `systems`, `parts`, `parity` or `goals`."""
    makers = {
        "systems": (SYSTEM_HEAD, system_lines),
        "parts": (PART_HEAD, part_lines),
        "parity": (PARITY_HEAD, parity_lines),
        "goals": (GOAL_HEAD, goal_lines),
    }
    head, lines = makers[kind]
    return markdown_table(head, [line for found in all_found(rows) for line in lines(found)])


def all_found(rows: Rows) -> list[Found]:
    """Return the rows of each kind of hardware."""
    return [Found(rows, hardware) for hardware in dict.fromkeys(row["hardware"] for row in rows)]


def system_lines(found: Found) -> list[list[str]]:
    """Return a line per data set and system, a note where there is no time."""
    lines = []
    for dataset in found.datasets:
        for system in found.systems(dataset, parts=False):
            row = found.row(dataset, system)
            assert row is not None
            if row["value"] is None:
                lines.append([dataset, system, row["note"], *[ABSENT] * 6, found.hardware])
                continue
            ratios = [found.value(dataset, system, metric) for metric in ("ratio_to_bare", "tomokit_is_faster_by")]
            share = None if system == "tomokit" else found.value(dataset, system, "agreement")
            times = [_number(row["value"], 1), _number(row["network_seconds"], 1), str(row["windows"])]
            told = [_number(row["peak_rss_gb"]), *map(_number, ratios), _share(share), found.hardware]
            lines.append([dataset, system, *times, *told])
    return lines


def part_lines(found: Found) -> list[list[str]]:
    """Return a line for `tomokit` and for each of its parts switched off, of the data sets where they were."""
    lines = []
    for dataset in found.datasets:
        systems = found.systems(dataset, parts=True)
        for system in systems if len(systems) > 1 else []:
            row = found.row(dataset, system)
            assert row is not None
            if row["value"] is None:
                lines.append([dataset, system.removeprefix(PART), row["note"], *[ABSENT] * 5])
                continue
            agreement = found.row(dataset, system, "agreement") if system != "tomokit" else None
            ratio = found.value(dataset, system, "seconds / tomokit's")
            told = [ABSENT, ABSENT]
            if agreement is not None:
                told = [_share(agreement["value"]), _number(agreement["lowest_dice"], 4)]
            name = "as it is" if system == "tomokit" else system.removeprefix(PART)
            cells = [dataset, name, _number(row["value"], 1), _number(ratio), str(row["windows"])]
            lines.append([*cells, _number(row["peak_rss_gb"]), *told])
    return lines


def parity_lines(found: Found) -> list[list[str]]:
    """Return a line per data set: labels beside MONAI's full logits, same windows and weights."""
    lines = []
    for dataset in found.datasets:
        row = found.row(dataset, "tomokit", "agreement")
        if row is not None and row["value"] is not None:
            dice = _number(row["lowest_dice"], 4), _number(row["lowest_dice_bfloat16"], 4)
            lines.append([dataset, _share(row["value"]), *dice, str(row["structures"])])
    return lines


def goal_lines(found: Found) -> list[list[str]]:
    """Return a line per goal."""
    return [[goal.text, goal.dataset, goal.measured, goal.verdict] for goal in all_goals(found)]


# ---------------------------------------------------------------------------------------------------- goals


def all_goals(found: Found) -> list[Goal]:
    """Return every goal that concerns what was measured."""
    goals = []
    for dataset in found.datasets:
        goals += [*_ratio_goals(found, dataset), *_memory_goals(found, dataset), *_agreement_goals(found, dataset)]
    return goals


def _ratio_goals(found: Found, dataset: str) -> list[Goal]:
    """Return the goals of time: beside the bare network, and beside MONAI."""
    goals = []
    ratio = found.value(dataset, "tomokit", "ratio_to_bare")
    if ratio is not None and dataset in MOST_RATIO:
        most = MOST_RATIO[dataset]
        goals.append(Goal(f"time ≤ {most:g} × the bare network", dataset, f"{ratio:.2f} ×", ratio <= most))
    for system in ("monai", "monai-nearest") if dataset.startswith("ct") else ():
        row = found.row(dataset, system, "tomokit_is_faster_by")
        if row is None:
            continue
        text, value = f"≥ {LEAST_SPEEDUP:g} × faster than {system}", row["value"]
        measured = row["note"] if value is None else f"{value:.2f} ×"
        goals.append(Goal(text, dataset, measured, None if value is None else value >= LEAST_SPEEDUP))
    return goals


def _memory_goals(found: Found, dataset: str) -> list[Goal]:
    """Return the goals of memory: the peak, and how it grows with the length of the scan."""
    goals = []
    peak = found.value(dataset, "tomokit", "peak_rss_gb")
    if peak is not None and dataset in MOST_GB and found.hardware.endswith("cores"):
        most = MOST_GB[dataset]
        goals.append(Goal(f"peak ≤ {most:g} GB", dataset, f"{peak:.2f} GB", peak <= most))
    longer, shorter = (found.row(name, "tomokit", "peak_rss_gb") for name in ("ct800-118", "ct400-118"))
    if dataset == "ct800-118" and longer is not None and shorter is not None:
        files = longer["files_gb"] - shorter["files_gb"]
        growth = (longer["value"] - files) / shorter["value"]
        text = f"400 to 800 slices: peak less source and label map ≤ {MOST_GROWTH:g} ×"
        goals.append(Goal(text, dataset, f"{growth:.2f} ×", growth <= MOST_GROWTH))
    return goals


def _agreement_goals(found: Found, dataset: str) -> list[Goal]:
    """Return the goals of equal labels: with MONAI's full logits, and without the body crop."""
    goals = []
    row = found.row(dataset, "tomokit", "agreement")
    if row is not None and row["value"] is not None:
        for text, value, least in (
            (f"voxels as MONAI's full logits ≥ {LEAST_SHARE:.2%}", row["value"], LEAST_SHARE),
            (f"lowest Dice, float32 ≥ {LEAST_DICE:g}", row["lowest_dice"], LEAST_DICE),
            (f"lowest Dice, bfloat16 ≥ {LEAST_DICE_BF16:g}", row["lowest_dice_bfloat16"], LEAST_DICE_BF16),
        ):
            measured = ABSENT if value is None else f"{value:.5f}"
            goals.append(Goal(text, dataset, measured, None if value is None else value >= least))
    whole = found.row(dataset, PART + "whole field", "agreement")
    if whole is not None and whole["value"] is not None and whole["lowest_dice"] is not None:
        text, dice = f"lowest Dice with and without body crop ≥ {LEAST_DICE:g}", whole["lowest_dice"]
        goals.append(Goal(text, dataset, f"{dice:.5f}", dice >= LEAST_DICE))
    return goals


def _number(value: float | None, digits: int = 2) -> str:
    """Return a number with so many digits behind the point; a dash for none."""
    return ABSENT if value is None else f"{value:.{digits}f}"


def _share(value: float | None) -> str:
    """Return a share as a percentage; a dash for none."""
    return ABSENT if value is None else f"{value:.3%}"
