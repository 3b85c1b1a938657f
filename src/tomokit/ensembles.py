"""Several runs used together: one network that averages theirs, and the scores of the folds of a cross-validation."""

import copy
import csv
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tomokit import configs
from tomokit.checks import join_ranges, read_range
from tomokit.checks.ranges import FILE as RANGE_FILE
from tomokit.decisions import FILE as DECISION_FILE
from tomokit.engines.checkpoints import find_checkpoint, load, save, weights_of
from tomokit.errors import TomokitError, raise_problems
from tomokit.files import read_json, write_json, write_table
from tomokit.metrics import TASKS, summarise_segmentation, summarise_task
from tomokit.pairs import TASK as PAIRS
from tomokit.pairs import summarise_pairs
from tomokit.postprocessing import FILE, Step, read_steps

# what must be alike in runs whose networks see the same input and mean the same by their output
SHARED_KEYS = (
    "network_def", "strides", "labels", "modality", "spacing", "minimum_size", "image_size", "intensity",
    "preprocessing", "regions", "task",
)  # fmt: skip
TEXT_COLUMNS = ("case", "patient", "class", "truth")
# what an earlier ensemble left that tells of other networks; `predictions/` too
STALE = (FILE, DECISION_FILE, RANGE_FILE, "metrics.json", "cases.csv", "lesions.csv", "overlay.png")
SMALLEST = 1e-12  # a probability whose logarithm is finite, also after a float32 sum


class Ensemble(nn.Module):
    """Networks whose probabilities are averaged, given as logits: a softmax (or sigmoid) afterwards gives the mean.

    One member's output is held at a time.

    Args:
        network: a network; each member is a copy with weights of its own.
        count: the number of members.
        sigmoid: whether each channel is a probability by itself (regions) rather than one of several classes.

    Raises:
        TomokitError: when there is no member.
    Source: Lakshminarayanan et al., Simple and scalable predictive uncertainty estimation, NeurIPS 2017.
    """

    def __init__(self, network: nn.Module, count: int, sigmoid: bool = False) -> None:
        super().__init__()
        if count < 1:
            raise TomokitError(f"an ensemble needs at least one member, got count {count}")
        self.members = nn.ModuleList([network, *(copy.deepcopy(network) for _ in range(count - 1))])
        self.sigmoid = sigmoid
        self.smallest = SMALLEST  # a script knows no global

    def forward(self, image: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Return the logits (B, C, …) of the mean probabilities, float32; `lengths` is what sequences take besides."""
        total = torch.zeros(1, device=image.device)
        for member in self.members:
            if torch.jit.is_scripting():  # a script is of networks that take the image alone
                logits = member(image).float()
            else:
                logits = (member(image) if lengths is None else member(image, lengths)).float()
            total = total + (logits.sigmoid() if self.sigmoid else logits.softmax(1))
        return self.logits_of(total / len(self.members))

    def logits_of(self, mean: Tensor) -> Tensor:
        """Return the logits (B, C, …) of mean probabilities."""
        return torch.logit(mean, eps=1e-7) if self.sigmoid else mean.clamp(min=self.smallest).log()

    @torch.jit.unused
    def with_variance(self, image: Tensor) -> Tensor:
        """Return the logits (B, C, …) and, as one more channel, how far the members disagree, from 0 to 1.

        It is the variance of a class's (or region's) probability among the members, that of the class where it is
        largest, times 4: 1 where half of the members are sure of a class and the others are sure that it is not.
        """
        total = squares = torch.zeros(1, device=image.device)
        for member in self.members:
            logits = member(image).float()
            chances = logits.sigmoid() if self.sigmoid else logits.softmax(1)
            total, squares = total + chances, squares + chances**2
        mean = total / len(self.members)
        variance = (squares / len(self.members) - mean**2).amax(1, keepdim=True).clamp(min=0)
        return torch.cat([self.logits_of(mean), 4 * variance], 1)


def join_runs(runs: str | Path | Sequence[str | Path], run_dir: str | Path, checkpoint: str = "best") -> Path:
    """Return the folder of a new run whose network is the ensemble of `runs`; it is evaluated and used like any run.

    Its config is the first run's with an `Ensemble` as `network_def`. Its test cases are those that every run has kept
    for the test; the runs' other cases count as training. Of the folds of a cross-validation, each case was trained on
    by some, so that no test case is left: `gather_folds` scores those. Of the members' postprocessing it does what all
    of them agree on.

    Args:
        runs: the runs' folders, or one folder with `fold_0`, `fold_1`, ….
        run_dir: the new run's folder; an ensemble that is there is replaced, with its scores and predictions.
        checkpoint: `best` or `last` of each run.

    Raises:
        TomokitError: when a run is not trained, is of another network, label map or preprocessing than the first, or of
            a kind that can't be one network, or `run_dir` holds a trained run.
    """
    folders, run_dir = list_runs(runs), Path(run_dir)
    _check_target(run_dir)
    weights = [weights_of(load(find_checkpoint(folder, checkpoint))) for folder in folders]
    found = [configs.read_config(folder / "configs" / "train.yaml") for folder in folders]
    _check_alike(folders, found, weights)
    if reason := _obstacle(found[0]):
        raise TomokitError(f"these runs can't be joined to an ensemble: {reason}; gather their folds instead")
    steps = _agreed_steps([read_steps(folder / FILE) for folder in folders], found[0].get("labels", {}))
    network = {"_target_": "tomokit.ensembles.Ensemble", "network": found[0]["network_def"], "count": len(folders)}
    network |= {"sigmoid": True} if "regions" in found[0] or found[0].get("task") == "labels" else {}
    cases = found[0]["cases"] | _join_cases([config["cases"] for config in found])
    config = found[0] | {"network_def": network, "cases": cases, "run_dir": str(run_dir)}
    header = "The ensemble of\n" + "\n".join(f"  {folder}" for folder in folders)
    _remove_stale(run_dir)
    configs.write_config(config, run_dir / "configs" / "train.yaml", header)
    for name in ("metadata.json", "logging.conf"):
        if (source := folders[0] / "configs" / name).is_file():
            shutil.copy(source, run_dir / "configs" / name)
    environment = read_json(folders[0] / "environment.json")
    write_json(run_dir / "environment.json", environment | {"members": [str(folder) for folder in folders]})
    joined = {f"members.{i}.{key}": value for i, own in enumerate(weights) for key, value in own.items()}
    save(joined, run_dir / "checkpoints" / "best.pt")
    if steps:
        write_json(run_dir / FILE, {"steps": {str(value): step._asdict() for value, step in steps.items()}})
    ranges = [known for folder in folders if (known := read_range(folder)) is not None]
    if len(ranges) == len(folders):
        write_json(run_dir / RANGE_FILE, join_ranges(ranges, len(cases["training"])))
    print(f"ensemble of {len(folders)} runs: {run_dir}", flush=True)
    return run_dir


def gather_folds(runs: str | Path | Sequence[str | Path], run_dir: str | Path) -> dict[str, Any]:
    """Return the scores of all folds' test cases together; write `cross_validation.json` and `cross_validation.csv`.

    Each case was scored by the one network that did not see it. The mean and its interval are over all cases; `folds`
    tells each fold's own mean, so that the spread between trainings is seen.

    Args:
        runs: the folds' folders, each evaluated, or one folder with `fold_0`, `fold_1`, ….
        run_dir: the folder to write to.

    Raises:
        TomokitError: when a fold is not evaluated, the folds are of several tasks, or a case is in two of them.
    """
    folders, run_dir = list_runs(runs), Path(run_dir)
    unscored = [f"{folder}" for folder in folders if not (folder / "metrics.json").is_file()]
    raise_problems("these folds are not evaluated; run evaluate.yaml on each", unscored)
    measures = [read_json(folder / "metrics.json") for folder in folders]
    tasks = sorted({str(own["task"]) for own in measures})
    if len(tasks) > 1:
        raise TomokitError(f"the folds are of several tasks, {tasks}; gather those of one")
    tables = [read_rows(folder / "cases.csv") for folder in folders]
    _check_cases_once(folders, tables)
    rows = [{**row, "fold": number} for number, table in enumerate(tables) for row in table]
    folds = [
        {"run": str(folder), "checkpoint": own.get("checkpoint"), "summary": own["summary"]}
        for folder, own in zip(folders, measures, strict=True)
    ]
    result = {"task": tasks[0], **_summarise(tasks[0], rows), "folds": folds}
    write_table(run_dir / "cross_validation.csv", rows)
    write_json(run_dir / "cross_validation.json", result)
    print(f"cross-validation over {len(folders)} folds: {run_dir / 'cross_validation.json'}", flush=True)
    return result


def list_runs(runs: str | Path | Sequence[str | Path]) -> list[Path]:
    """Return the folders of runs: those given, or `fold_0`, `fold_1`, … of one folder, in the order of their numbers.

    Raises:
        TomokitError: when there is none, or one is given twice.
    """
    if isinstance(runs, str | Path):
        folders = [path for path in Path(runs).glob("fold_*") if path.name.removeprefix("fold_").isdecimal()]
        folders = sorted(folders, key=lambda path: int(path.name.removeprefix("fold_")))
    else:
        folders = [Path(run) for run in runs]
    if not folders:
        raise TomokitError(f"no runs in {runs}: expected folders fold_0, fold_1, …, or a list of runs as `runs`")
    twice = sorted({str(folder) for folder in folders if folders.count(folder) > 1})
    if twice:
        raise TomokitError(f"a run is given twice: {', '.join(twice)}")
    return folders


def read_rows(path: str | Path) -> list[dict[str, Any]]:
    """Return the rows of a `cases.csv`, its measures as numbers, None where there is none.

    Raises:
        TomokitError: when the file is absent.
    """
    if not Path(path).is_file():
        raise TomokitError(f"{path} does not exist; run evaluate.yaml on the run")
    with Path(path).open(newline="", encoding="utf-8") as file:
        return [{key: _value(key, text) for key, text in row.items()} for row in csv.DictReader(file)]


def _value(column: str, text: str) -> Any:
    """Return a cell as a number, as None when it is empty, or as text."""
    if column in TEXT_COLUMNS:
        return text
    try:
        return float(text) if text else None
    except ValueError:
        return text


def _check_alike(
    folders: Sequence[Path], found: Sequence[Mapping[str, Any]], weights: Sequence[Mapping[str, Tensor]]
) -> None:
    """Raise when runs differ in what their networks take and give."""
    problems = [
        f"`{key}` of {folder} is {config.get(key)!r:.80}, of {folders[0]} {found[0].get(key)!r:.80}"
        for folder, config in zip(folders, found, strict=True)
        for key in SHARED_KEYS
        if config.get(key) != found[0].get(key)
    ]
    shapes = [{key: value.shape for key, value in own.items()} for own in weights]
    problems += [
        f"the weights of {folder} are of another network than those of {folders[0]}"
        for folder, own in zip(folders, shapes, strict=True)
        if own != shapes[0]
    ]
    raise_problems("these runs can't be joined to an ensemble", problems)


def _obstacle(config: Mapping[str, Any]) -> str:
    """Return why runs of this kind can't be one network; "" where they can."""
    if config.get("task") == "value":
        return "of a regression each run has a scale of its own"
    if "joined" in config:
        return "their networks take measures beside the image, which each run scales by its own training cases"
    if "records" in config:
        return "their networks take records, which each run scales by its own training cases"
    if str(config["network_def"].get("_target_", "")).endswith("SiameseNetwork"):
        return "what compares pairs of scans gives no probabilities to average"
    return ""


def _check_target(run_dir: Path) -> None:
    """Raise when a folder holds a run that is no ensemble: it would be lost."""
    if not (run_dir / "checkpoints").exists():
        return
    environment = run_dir / "environment.json"
    if not environment.is_file() or "members" not in read_json(environment):
        raise TomokitError(f"{run_dir} holds a trained run; give the ensemble another `run_dir`")


def _remove_stale(run_dir: Path) -> None:
    """Remove what an earlier ensemble in the folder left of its scores and predictions."""
    for name in STALE:
        (run_dir / name).unlink(missing_ok=True)
    shutil.rmtree(run_dir / "predictions", ignore_errors=True)


def _agreed_steps(members: Sequence[Mapping[int, Step]], labels: Mapping[str, str]) -> dict[int, Step]:
    """Return, and print, the steps that all members do, by label value; of smallest sizes, the smallest."""
    agreed = {}
    for value in sorted({value for own in members for value in own}):
        name = labels.get(str(value), value)
        chosen = [own[value] for own in members if value in own]
        if len(chosen) == len(members) and len({step.largest for step in chosen}) == 1:
            agreed[value] = min(chosen, key=lambda step: step.minimum_ml)
            print(f"postprocessing: of {name} the {agreed[value]}", flush=True)
        else:
            told = "; ".join(str(own.get(value, "nothing")) for own in members)
            print(f"postprocessing: nothing to {name}, since the runs differ: {told}", flush=True)
    return agreed


def _join_cases(cases: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """Return the case lists of an ensemble: what every run kept for the test, and all the rest as training."""
    kept = set.intersection(*(set(own["test"]) for own in cases))
    parts = ("training", "validation", "test")
    every = {name for own in cases for part in parts for name in own[part]}
    return {"training": sorted(every - kept), "validation": [], "test": sorted(kept)}


def _check_cases_once(folders: Sequence[Path], tables: Sequence[Sequence[Mapping[str, Any]]]) -> None:
    """Raise when a case is scored in two folds: they would not be independent."""
    where: dict[str, list[str]] = {}
    for folder, table in zip(folders, tables, strict=True):
        for case in dict.fromkeys(row["case"] for row in table):
            where.setdefault(case, []).append(str(folder))
    raise_problems(
        "the folds share test cases; score their ensemble (ensemble.yaml) on these instead",
        [f"{case} is scored in {' and '.join(names)}" for case, names in where.items() if len(names) > 1],
    )


def _summarise(task: str, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the summary of all rows, as `metrics.json` has it."""
    if task == "segmentation":
        return summarise_segmentation(rows)
    if task == PAIRS:
        return summarise_pairs(rows)
    names = [key.removeprefix("p_") for key in rows[0] if key.startswith("p_")]
    return summarise_task({told: own for own, told in TASKS.items()}[task], rows, names)
