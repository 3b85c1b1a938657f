"""Volumes read as sequences of slices: what evaluation and inference tell of their slices, and of the slices' order."""

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.data import MetaTensor
from nibabel.affines import apply_affine
from numpy.typing import NDArray
from torch import Tensor

from tomokit.engines.comparison import compare_rows
from tomokit.engines.evaluation import Entries, check_test_cases, write_before_errors
from tomokit.engines.hardware import plain
from tomokit.engines.slice_pictures import Rows, draw_slices, finding_of, pick_volumes, shows_finding
from tomokit.errors import TomokitError
from tomokit.files import read_json, write_json, write_table
from tomokit.metrics import mean_auc, summarise_classification
from tomokit.runs import is_main_process
from tomokit.statistics import Interval, bootstrap_mean, bootstrap_statistic

TABLE, PICTURE = "slices.csv", "slices.png"
SHUFFLED = "shuffled slices"  # as a rival in metrics.json
Numbers = NDArray[np.float64]


def attach_slice_scores(
    evaluator: Any,
    run_dir: str | Path,
    labels: Mapping[str, str],
    cases: Mapping[str, Entries],
    axis: int = -1,
    stride: int = 1,
) -> None:
    """Write `slices.csv` and `slices.png`, and add `slices` to `metrics.json`, at the end of an evaluation.

    It stands behind `attach_classification_scores`, which writes `metrics.json`. Slices without a known class are in
    the table and not scored; nothing is done where the network tells nothing of slices.

    Args:
        evaluator: its output holds `pred_windows`, probabilities (classes, T), or else nothing of slices.
        run_dir: the run's folder.
        labels: the classes, `{"0": name, …}`, the first of them "nothing found".
        cases: the split; of its `test` entries `slice_labels` are scored by, in the order of the slices in RAS.
        axis: of (x, y, z), along which the slices lie.
        stride: slices from a window to the next.

    Raises:
        TomokitError: when there is no test case; later, when a case has not as many slice labels as slices.
    """
    check_test_cases(cases)
    if not is_main_process():
        return
    folder, names = Path(run_dir), _names(labels)
    truths = {entry["case"]: entry.get("slice_labels") for entry in cases["test"]}
    rows = _collect(evaluator, names, axis, stride, truths)

    def finish(_: Engine) -> None:
        if not rows:
            return
        path = folder / "metrics.json"
        measures, scores = read_json(path) | {"picture": PICTURE}, summarise_slices(rows, names)
        if scores is not None:
            measures["slices"] = scores
            hit = f"the most suspicious one of a volume with a finding shows it: {_tell(scores['hit'])}"
            print(f"slices: AUC {_tell(scores['auc'])}; {hit}", flush=True)
        write_json(path, measures)
        _write(evaluator, folder, rows, names, axis)

    evaluator.add_event_handler(Events.COMPLETED, finish)


def attach_slice_table(
    evaluator: Any, output_dir: str | Path, labels: Mapping[str, str], axis: int = -1, stride: int = 1
) -> None:
    """Write `<output_dir>/slices.csv` and `slices.png` at the end, where the network tells something of slices.

    The table is written before an error too. It stands before `attach_class_table`, which raises the error again.

    Args:
        evaluator: as in `attach_slice_scores`.
        output_dir: the folder to write to.
        labels: the classes, `{"0": name, …}`, the first of them "nothing found".
        axis: of (x, y, z), along which the slices lie.
        stride: slices from a window to the next.
    """
    names = _names(labels)
    rows = _collect(evaluator, names, axis, stride, {})
    write_before_errors(evaluator, Path(output_dir) / TABLE, rows, "slice")
    evaluator.add_event_handler(Events.COMPLETED, lambda _: _write(evaluator, Path(output_dir), rows, names, axis))


def attach_shuffled_scores(
    evaluator: Any,
    run_dir: str | Path,
    labels: Mapping[str, str],
    cases: Mapping[str, Entries],
    postprocessing: Callable[[dict[str, Any]], dict[str, Any]],
    axis: int = -1,
    seed: int = 0,
    shuffle_slices: bool = True,
) -> None:
    """Score the test volumes once more, their slices in a random order; add what that costs to `metrics.json`.

    The network stands there as a rival of itself, `shuffled slices`; `comparisons` tell how far its AUC in order lies
    above that (DeLong's test on the same volumes). A network that takes no notice of the order loses nothing,
    but for what its windows show of neighbours.

    Args:
        evaluator: its output holds `pred`, probabilities (classes,).
        run_dir: the run's folder.
        labels: the classes, `{"0": name, …}`.
        cases: the split; `test` is scored.
        postprocessing: the evaluator's: it makes `pred` of the network's output.
        axis: of (x, y, z), along which the slices lie.
        seed: of the orders.
        shuffle_slices: false attaches nothing.

    Raises:
        TomokitError: when there is no test case.
    """
    check_test_cases(cases)
    if not (shuffle_slices and is_main_process()):
        return
    names, path = _names(labels), Path(run_dir) / "metrics.json"
    ordered: dict[str, list[float]] = {}

    def keep(engine: Any) -> None:
        for item, output in zip(engine.state.batch, engine.state.output, strict=True):
            ordered[item["case"]] = _values(output["pred"])

    def finish(_: Engine) -> None:
        shuffled = answer_shuffled(evaluator, postprocessing, axis, seed)
        ours, others = (_volume_rows(answers, cases["test"], names) for answers in (ordered, shuffled))
        measures, cost = read_json(path), compare_rows("classes", ours, others, names)
        rivals = measures.get("rivals", {}) | {SHUFFLED: summarise_classification(others, names)}
        comparisons = measures.get("comparisons", {}) | {SHUFFLED: cost}
        write_json(path, measures | {"rivals": rivals, "comparisons": comparisons})
        auc = _tell(rivals[SHUFFLED]["summary"]["auc"])
        told = [f"{name} {_tell({'mean': own['difference'], 'ci95': own['ci95']})}" for name, own in cost.items()]
        costs = ", ".join(told) or "unknown, of so few volumes"
        print(f"slices in a random order: AUC of the volumes {auc}; that costs: {costs}", flush=True)

    evaluator.add_event_handler(Events.ITERATION_COMPLETED, keep)
    evaluator.add_event_handler(Events.COMPLETED, finish)


def slice_rows(
    item: Mapping[str, Any],
    output: Mapping[str, Any],
    names: Sequence[str],
    axis: int = -1,
    stride: int = 1,
    truth: Sequence[int] | None = None,
) -> list[dict[str, Any]]:
    """Return a row for each slice of a volume, with its window's probabilities; none where the output has no windows.

    A row has "case", "patient" where it is told, "slice" (from 0, at the feet, the back or the left), "position_mm" (of
    the slice's centre along that axis of the world, RAS), "truth" where it is known, and "p_<class>" of each class.

    Args:
        item: the volume as it is read: `case`, `image` (C, X, Y, Z), and `lengths`, its slices.
        output: what became of the network's output; `pred_windows` (classes, T).
        names: the classes in the order of their numbers.
        axis: of (X, Y, Z), along which the slices lie.
        stride: slices from a window to the next.
        truth: the class of each slice, -1 where unknown.

    Raises:
        TomokitError: when there are not as many slice labels as slices.
    """
    if "pred_windows" not in output:
        return []
    count = int(item["lengths"])
    if truth is not None and len(truth) != count:
        raise TomokitError(
            f"{item['case']} has {len(truth)} slice labels for {count} slices; `spacing` and `image_size` must be -1 "
            "along `slice_axis`, so that the slices stay what they are"
        )
    chances = plain(torch.as_tensor(output["pred_windows"])).float().cpu().T.tolist()
    own = {key: item[key] for key in ("case", "patient") if key in item}
    rows = []
    for number, place in enumerate(slice_positions(item["image"], axis, count)):
        row = own | {"slice": number, "position_mm": round(place, 2)}
        if truth is not None and truth[number] >= 0:
            row["truth"] = names[truth[number]]
        values = chances[number // stride]
        rows.append(row | {f"p_{name}": value for name, value in zip(names, values, strict=True)})
    return rows


def slice_positions(image: Tensor, axis: int, count: int) -> list[float]:
    """Return the world coordinates in mm, RAS, of the centres of an image's first `count` slices along their axis.

    Args:
        image: (C, X, Y, Z), turned to RAS; its slices are 1 mm apart, from 0, where it knows no grid.
        axis: of (X, Y, Z), along which the slices lie.
        count: of slices.
    """
    affine = image.affine.cpu().numpy() if isinstance(image, MetaTensor) else np.eye(4)
    points = np.tile((np.array(image.shape[1:], dtype=float) - 1) / 2, (count, 1))
    points[:, axis % 3] = np.arange(count)
    return [float(place) for place in apply_affine(affine, points)[:, axis % 3]]


def summarise_slices(rows: Rows, names: Sequence[str]) -> dict[str, Any] | None:
    """Return `{"auc", "hit"}` over the slices whose class is known; None where none is.

    "auc" is that of all slices of all volumes together; of several classes the mean of each against the rest. "hit"
    is the share of the volumes with a finding whose most suspicious slice shows one. Each is `{"mean", "ci95", "n",
    "cases"}`, the interval from resamples of patients, each with all slices; "cases" counts slices or volumes.

    Args:
        rows: of slices, as `slice_rows` returns them, with "patient".
        names: the classes, the first of them "nothing found".
    """
    known = [row for row in rows if "truth" in row]
    if not known:
        return None
    truth, scores, patients = _columns(known, names)
    auc = functools.partial(mean_auc, positives=_positives(truth, names))
    hits = find_hits(known, names)
    patients_with = [patient for patient, _ in hits]
    hit = bootstrap_mean(list(hits.values()), patients_with) if hits else Interval(None, None, None, 0)
    return {
        "auc": _entry(bootstrap_statistic(auc, [truth, scores], patients), len(known)),
        "hit": _entry(hit, len(hits)),
    }


def find_hits(rows: Rows, names: Sequence[str]) -> dict[tuple[str, str], float]:
    """Return for each volume with a finding, by patient and case, 1 if its most suspicious slice shows one, else 0."""
    volumes: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        volumes.setdefault((str(row["patient"]), row["case"]), []).append(row)
    return {
        key: float(shows_finding(max(own, key=lambda row: finding_of(row, names)), names))
        for key, own in volumes.items()
        if any(shows_finding(row, names) for row in own)
    }


def answer_shuffled(
    evaluator: Any, postprocessing: Callable[[dict[str, Any]], dict[str, Any]], axis: int, seed: int
) -> dict[str, list[float]]:
    """Return what the evaluator's network says of each case, by name, when its slices come in a random order."""
    generator = torch.Generator().manual_seed(seed)
    evaluator.network.eval()
    answers = {}
    for batch in evaluator.data_loader:
        prepared = evaluator.prepare_batch(batch, evaluator.state.device, evaluator.non_blocking, **evaluator.to_kwargs)
        image, _, args, kwargs = prepared
        shuffled = permute_slices(image, batch["lengths"], axis, generator)
        with torch.inference_mode():
            outputs = evaluator.inferer(shuffled, evaluator.network, *args, **kwargs)
        for case, output in zip(batch["case"], outputs, strict=True):
            answers[case] = _values(postprocessing({"pred": output})["pred"])
    return answers


def permute_slices(image: Tensor, lengths: Tensor, axis: int, generator: torch.Generator) -> Tensor:
    """Return volumes (B, C, X, Y, Z) with the first `lengths` (B,) slices of each in a drawn order, padding left."""
    dim = axis % 3 + 1
    shuffled = []
    for volume, length in zip(image, lengths.tolist(), strict=True):
        order = torch.cat([torch.randperm(length, generator=generator), torch.arange(length, volume.shape[dim])])
        shuffled.append(volume.index_select(dim, order.to(volume.device)))
    return torch.stack(shuffled)


def _collect(
    evaluator: Engine, names: Sequence[str], axis: int, stride: int, truths: Mapping[str, Sequence[int] | None]
) -> list[dict[str, Any]]:
    """Return a list that fills with the rows of the slices while the evaluator runs."""
    rows: list[dict[str, Any]] = []

    def keep(engine: Any) -> None:
        for item, output in zip(engine.state.batch, engine.state.output, strict=True):
            rows.extend(slice_rows(item, output, names, axis, stride, truths.get(item["case"])))

    evaluator.add_event_handler(Events.ITERATION_COMPLETED, keep)
    return rows


def _write(evaluator: Any, folder: Path, rows: Rows, names: Sequence[str], axis: int) -> None:
    """Write the table and the picture, and say where they are; nothing without rows."""
    if not rows:
        return
    write_table(folder / TABLE, rows)
    dataset = evaluator.data_loader.dataset
    places = {entry["case"]: place for place, entry in enumerate(dataset.data)}
    chosen = pick_volumes(rows, names)
    volumes = [([row for row in rows if row["case"] == case], dataset[places[case]]["image"]) for case in chosen]
    draw_slices(volumes, names, folder / PICTURE, axis)
    print(f"slices: {folder / TABLE}, {folder / PICTURE}", flush=True)


def _names(labels: Mapping[str, str]) -> list[str]:
    """Return the names of the classes in the order of their numbers."""
    return [labels[key] for key in sorted(labels, key=int)]


def _values(answer: Any) -> list[float]:
    """Return a tensor's numbers."""
    return [float(value) for value in plain(torch.as_tensor(answer)).flatten()]


def _volume_rows(
    answers: Mapping[str, Sequence[float]], entries: Entries, names: Sequence[str]
) -> list[dict[str, Any]]:
    """Return a row of the truth and the probabilities of each volume, as `summarise_classification` takes them."""
    return [
        {"case": entry["case"], "patient": entry["patient"], "truth": names[entry["label"]]}
        | {f"p_{name}": value for name, value in zip(names, answers[entry["case"]], strict=True)}
        for entry in entries
    ]


def _columns(rows: Rows, names: Sequence[str]) -> tuple[NDArray[np.int64], Numbers, list[str]]:
    """Return classes (N,), probabilities (N, classes) and patients of rows."""
    truth = np.array([list(names).index(row["truth"]) for row in rows])
    scores = np.array([[float(row[f"p_{name}"]) for name in names] for row in rows])
    return truth, scores, [str(row["patient"]) for row in rows]


def _positives(truth: NDArray[np.int64], names: Sequence[str]) -> list[int]:
    """Return the classes whose AUC is meant: of two the second, of more all that there are."""
    return [1] if len(names) == 2 else [value for value in range(len(names)) if (truth == value).any()]


def _entry(interval: Interval, cases: int) -> dict[str, Any]:
    """Return an interval as an entry of metrics.json."""
    ci95 = None if interval.low is None else [interval.low, interval.high]
    return {"mean": interval.mean, "ci95": ci95, "n": interval.n_patients, "cases": cases}


def _tell(entry: Mapping[str, Any]) -> str:
    """Return an entry of metrics.json as text."""
    if entry["mean"] is None:
        return "undefined"
    bounds = "" if entry["ci95"] is None else f" [{entry['ci95'][0]:.3f}, {entry['ci95'][1]:.3f}]"
    return f"{entry['mean']:.3f}{bounds}"
