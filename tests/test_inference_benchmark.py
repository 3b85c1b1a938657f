"""The inference benchmark on tiny scans: label maps on the source's grid, and rows that say what was measured."""

import importlib
import json
import logging
import sys
from importlib.util import find_spec
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from bundle_runs import SMALL_UNET, train
from ignite.engine import Engine

from tomokit.errors import TomokitError

FOLDER = Path(__file__).parents[1] / "benchmarks"
WINDOW = [24, 24, 24]
SPACING = 2.5


@pytest.fixture(scope="module")
def benchmark():
    """Return the benchmark's modules by their name, importable as when one is run."""
    sys.path.append(str(FOLDER))
    names = ("inference", "data", "jobs", "labels", "systems", "tables")
    yield {name: importlib.import_module(name if name == "inference" else f"inference_{name}") for name in names}
    sys.path.remove(str(FOLDER))


@pytest.fixture(scope="module")
def trunk():
    """Return a scan with the public label map's values: (image, labels, affine)."""
    rng = np.random.default_rng(0)
    labels = np.zeros((36, 36, 36), np.int32)
    for number, value in enumerate((5, 1, 20, 52, 77)):
        labels[4 + 6 * number : 9 + 6 * number, 8:28, 8:28] = value
    image = 40.0 * (labels > 0) * (labels % 7) + rng.normal(0, 10, labels.shape) - 100
    return image.astype(np.float32), labels, np.diag([SPACING, SPACING, SPACING, 1.0])


@pytest.fixture(scope="module")
def run(benchmark, trunk, tmp_path_factory):
    """Return a run that was trained for two epochs on a set of the benchmark's."""
    folder = tmp_path_factory.mktemp("inference")
    data = benchmark["data"]
    data.write_training_set(folder / "set", 3, trunk, 40)
    sizes = {"spacing": [SPACING] * 3, "patch_size": WINDOW, "labels": data.label_names(3)}
    return train("segmentation", folder / "run", dataset_dir=str(folder / "set"), network_def=SMALL_UNET, **sizes)


@pytest.fixture(scope="module")
def body(benchmark, trunk, tmp_path_factory):
    """Return the file of a body of 48³ voxels."""
    path = tmp_path_factory.mktemp("body") / "body.nii.gz"
    column = benchmark["data"].make_column([trunk[0], trunk[0][4:-4]])
    benchmark["data"].write_body(path, column, (48, 48, 48), (3.0, 3.0, 2.6))
    return path


# ----------------------------------------------------------------------------------------------------- data


def test_a_body_is_a_scan_in_lps_that_is_the_same_whenever_it_is_made(benchmark, body, trunk, tmp_path):
    data = benchmark["data"]
    image = nibabel.load(body)
    assert nibabel.aff2axcodes(image.affine) == ("L", "P", "S") and image.get_data_dtype() == np.int16
    assert image.shape == (48, 48, 48) and image.header.get_zooms() == pytest.approx((3.0, 3.0, 2.6))
    assert (int(image.header["qform_code"]), int(image.header["sform_code"])) == (1, 1)
    column = data.make_column([trunk[0], trunk[0][4:-4]])
    data.write_body(tmp_path / "again.nii.gz", column, (48, 48, 48), (3.0, 3.0, 2.6))
    again = nibabel.load(tmp_path / "again.nii.gz")
    assert np.array_equal(np.asarray(image.dataobj), np.asarray(again.dataobj))
    volume = nibabel.as_closest_canonical(image).get_fdata()
    assert volume[:3].mean() == pytest.approx(-1000, abs=8)  # beside the body is air, in noise
    middle = volume[24, 24, :20]
    truth = trunk[0][18, 18, :17]
    at = np.interp(np.arange(20) * 2.6, np.arange(17) * 3.0, truth)
    assert np.abs(middle - at).mean() < 40  # the trunk lies in its middle, its foot in the first slice


def test_a_long_body_is_the_column_and_its_mirror_image(benchmark, trunk, tmp_path):
    data = benchmark["data"]
    steps = np.broadcast_to(np.linspace(-900, 900, 10), (12, 12, 10))
    data.write_body(tmp_path / "long.nii.gz", data.make_column([steps]), (8, 8, 40), (3.0, 3.0, 3.0))
    profile = nibabel.load(tmp_path / "long.nii.gz").get_fdata().mean((0, 1))
    assert profile[:10] == pytest.approx(np.linspace(-900, 900, 10), abs=20)
    assert profile[:20] == pytest.approx(profile[39:19:-1], abs=20)
    assert profile[:10] == pytest.approx(profile[19:9:-1], abs=20)


def test_structures_are_merged_with_their_neighbours_and_split_along_their_longest_axis(benchmark):
    data = benchmark["data"]
    labels = np.zeros((30, 6, 6), np.int32)
    for value, (start, stop) in {1: (0, 4), 2: (4, 8), 3: (8, 12), 4: (12, 14), 5: (14, 22)}.items():
        labels[start:stop] = value
    merged = data.choose_structures(labels, 4)
    assert merged[13, 0, 0] == merged[9, 0, 0] == 3 and merged[15, 0, 0] == 4  # 4 is the smallest, 3 is nearest
    split = data.choose_structures(labels, 6)
    assert np.unique(split).tolist() == list(range(7))
    assert split[14:18].max() == split[14:18].min() != split[18:22].min() == split[18:22].max()
    assert np.array_equal(data.choose_structures(labels, 2), np.where(labels <= 2, labels, 0))
    for count in (2, 4, 9):
        chosen = data.choose_structures(labels, count)
        assert np.array_equal(chosen == 1, labels == 1) and np.array_equal(chosen == 2, labels == 2)
        assert np.unique(chosen).tolist() == list(range(count + 1))


def test_a_training_set_has_the_public_scan_and_phantoms_with_liver_and_spleen(run):
    folder = run.parent / "set"
    described = json.loads((folder / "dataset.json").read_text())
    assert described["labels"] == {"0": "background", "1": "liver", "2": "spleen"}
    fold = json.loads((folder / "splits.json").read_text())["folds"][0]
    assert fold["test"] == ["phantom_1"] and len(fold["training"]) == 8 and fold["validation"] == []
    values = [set(np.unique(nibabel.load(folder / entry["label"]).dataobj)) for entry in described["training"]]
    assert values == [{0, 1, 2}] * 9


def test_the_middle_of_a_scan_has_the_wanted_size_on_the_networks_grid(benchmark, write_volume, tmp_path):
    from monai.transforms import Compose, LoadImaged, Orientationd, Spacingd

    data = benchmark["data"]
    source = write_volume("scan.nii.gz", np.zeros((70, 60, 50), np.int16), np.diag([-0.8, -0.8, 1.5, 1]))
    path = data.cut_middle(source, tmp_path / "middle.nii.gz", (31, 24, 40))
    spacing = [data.GRID_MM] * 3
    steps = [LoadImaged("image", ensure_channel_first=True), Orientationd("image", "RAS", labels=None)]
    image = Compose([*steps, Spacingd("image", spacing)])({"image": str(path)})["image"]
    assert image.shape == (1, 31, 24, 40)


# -------------------------------------------------------------------------------------------------- systems


def list_jobs(benchmark, run, body, folder, parts):
    bench = benchmark["inference"]
    return bench.list_jobs(folder, run, [body], [body], WINDOW, parts, "cpu")


def test_every_system_goes_from_file_to_label_map_and_its_rows_say_so(benchmark, run, body, tmp_path, monkeypatch):
    bench, systems, tables = benchmark["inference"], benchmark["systems"], benchmark["tables"]
    monkeypatch.setattr(bench, "run_job", lambda job, _: systems.measure(job))  # here, without a process for each
    jobs = list_jobs(benchmark, run, body, tmp_path / "ct400-3", {"whole field": {"inferer::body_crop": False}})
    assert list(jobs) == ["tomokit", "bare", "monai", "monai-nearest", "nnunet", "parity", "tomokit, whole field"]
    for number in range(2):
        bench.take_turn(jobs, tmp_path / "ct400-3", number, 3, {})
    records = bench.read_records(tmp_path / "ct400-3", 2)
    assert records["bare"][0]["batches"] == records["tomokit"][0]["batches"] and len(records["parity"]) == 1
    source = nibabel.load(body)
    for system in ("tomokit", "monai", "monai-nearest", "whole_field"):
        labels = nibabel.load(tmp_path / "ct400-3" / system / "body.nii.gz")
        assert labels.shape == source.shape and np.allclose(labels.affine, source.affine)

    about = {"hardware": "2 CPU cores", "files_gb": bench.file_gb([str(body)]), "training_seconds": 1.0}
    assert about["files_gb"] == pytest.approx(48**3 * 3e-9)
    rows = bench.make_rows("ct400-3", records, about)
    by_name = {(row["system"], row["metric"]): row for row in rows}
    agreement = by_name["tomokit", "agreement"]
    assert agreement["value"] >= 0.9999 and agreement["lowest_dice_bfloat16"] is not None
    assert by_name["tomokit", "speedup_over_monai"]["value"] == by_name["monai", "tomokit_is_faster_by"]["value"] > 0
    assert by_name["tomokit", "ratio_to_bare"]["value"] > 1 and by_name["tomokit", "seconds"]["n"] == 2
    assert by_name["tomokit, whole field", "agreement"]["beside"] == "tomokit"
    if find_spec("nnunetv2") is None:
        nothing = by_name["nnunet", "seconds"]
        assert (nothing["value"], nothing["note"]) == (None, "nnunetv2 is not installed")
    found = tables.Found(rows, "2 CPU cores")
    assert [line[1] for line in tables.system_lines(found)] == ["tomokit", "bare", "monai", "monai-nearest", "nnunet"]
    assert [line[1] for line in tables.part_lines(found)] == ["as it is", "whole field"]
    heads = (tables.SYSTEM_HEAD, tables.PART_HEAD, tables.PARITY_HEAD, tables.GOAL_HEAD)
    makers = (tables.system_lines, tables.part_lines, tables.parity_lines, tables.goal_lines)
    for head, maker in zip(heads, makers, strict=True):
        lines = maker(found)
        assert lines and {len(line) for line in lines} == {len(head)}
    bench.show(rows)


def test_a_finished_job_is_not_run_again_nor_a_rival_in_a_second_turn(benchmark, run, body, tmp_path, monkeypatch):
    bench = benchmark["inference"]
    jobs = {name: job for name, job in list_jobs(benchmark, run, body, tmp_path, {}).items() if "monai" in name}
    tried = []

    def run_out(job, _):
        tried.append(job.system)
        return {"note": "out of memory at 20 GB"}

    def fail(job, _):
        raise TomokitError("it ended")

    monkeypatch.setattr(bench, "run_job", run_out)
    for number in (0, 0, 1):
        bench.take_turn(jobs, tmp_path, number, 3, {})
    assert tried == ["monai", "monai-nearest"]
    records = bench.read_records(tmp_path, 2)
    assert [len(records[system]) for system in ("tomokit", "monai", "monai-nearest")] == [0, 1, 1]
    assert bench.ratio("monai", "monai-nearest", records) == {"value": None, "note": "monai: out of memory at 20 GB"}
    monkeypatch.setattr(bench, "run_job", fail)
    assert bench.try_job("nnunet", jobs["monai"], "python") == {"note": "ended with an error: it ended"}
    with pytest.raises(TomokitError, match="it ended"):
        bench.try_job("tomokit", jobs["monai"], "python")
    monkeypatch.setattr(bench, "run_job", run_out)
    jobs = {"tomokit": list_jobs(benchmark, run, body, tmp_path, {})["tomokit"]}
    with pytest.raises(TomokitError, match=r"tomokit did not finish on .* \(out of memory at 20 GB\)"):
        bench.take_turn(jobs, tmp_path, 0, 3, {})


def test_passes_in_a_larger_box_are_not_counted_twice(benchmark, caplog):
    systems = benchmark["systems"]
    network = torch.nn.Identity()
    clock = systems.Clock(network, "cpu")
    log = logging.getLogger("tomokit.inference.slab_inferer")

    def step(_engine, number):
        if number == 0:
            network(torch.zeros(1))  # the look
        for count in (2, 1):
            network(torch.zeros(count))
        if number == 1:
            log.info("a structure reaches the body box's face: looking at more")
            network(torch.zeros(4))

    engine = Engine(step)
    systems.watch_growth(clock, engine)
    with caplog.at_level(logging.INFO, log.name):
        engine.run([0, 1, 2])
    assert clock.batches == [1, 2, 1, 4, 2, 1] and clock.record()["windows_again"] == 3


def test_a_process_is_ended_when_it_holds_too_much(benchmark, run, body, tmp_path):
    jobs = list_jobs(benchmark, run, body, tmp_path, {})
    run_job = benchmark["jobs"].run_job
    assert run_job(jobs["tomokit"], limit_gb=0.05) == {"note": "out of memory at 0.05 GB"}
    with pytest.raises(TomokitError, match=r"monai on body\.nii\.gz ended with status 1"):
        run_job(jobs["monai"], python="false")
    record = run_job(jobs["bare"]._replace(batches=[1, 1]))
    assert record["seconds"] > 0 and 0.2 < record["peak_rss_gb"] < 5 and record["batches"] == [1, 1]


def test_nnunet_is_told_the_runs_own_numbers(benchmark):
    plans = importlib.import_module("inference_nnunet").make_plans
    intensity = {"_target_": "ScaleIntensityRanged", "a_min": -160, "a_max": 240, "b_min": -1, "b_max": 1, "clip": True}
    made = plans({"spacing": [1.5] * 3, "intensity": intensity}, WINDOW)
    told = made["foreground_intensity_properties_per_channel"]["0"]
    values = np.array([-500.0, -160.0, 40.0, 100.0, 900.0])
    scaled = (values.clip(told["percentile_00_5"], told["percentile_99_5"]) - told["mean"]) / told["std"]
    assert scaled.tolist() == pytest.approx([-1, -1, 0, 0.3, 1])
    assert made["configurations"]["3d_fullres"]["patch_size"] == WINDOW
    made = plans({"spacing": [1.0] * 3, "intensity": {"_target_": "NormalizeIntensityd", "keys": "image"}}, WINDOW)
    assert made["configurations"]["3d_fullres"]["normalization_schemes"] == ["ZScoreNormalization"]


# --------------------------------------------------------------------------------------------------- labels


def test_agreement_of_label_maps_is_counted_by_pairs(benchmark, write_volume):
    labels = benchmark["labels"]
    first, second = np.zeros((20, 5, 5), np.uint8), np.zeros((20, 5, 5), np.uint8)
    first[:4], second[1:4] = 1, 1
    first[10:12], second[10:12] = 3, 3
    files = [write_volume(f"{number}.nii.gz", map_) for number, map_ in enumerate((first, second))]
    pairs = labels.count_file_pairs(*files, 5)
    assert labels.share_equal(pairs) == 0.95 and labels.lowest_dice(pairs) == pytest.approx(6 / 7)
    assert labels.count_structures(pairs) == 2
    assert labels.lowest_dice(labels.count_pairs(0 * first, 0 * first, 5)) is None
    other = write_volume("other.nii.gz", second, np.diag([2.0, 1, 1, 1]))
    with pytest.raises(TomokitError, match=r"other\.nii\.gz lie on two grids, of \(20, 5, 5\) and \(20, 5, 5\) voxels"):
        labels.count_file_pairs(files[0], other, 5)


# --------------------------------------------------------------------------------------------------- goals


def make_row(dataset, system, metric, value, **more):
    common = {"hardware": "2 CPU cores", "note": "out of memory at 20 GB"}
    return common | {"dataset": dataset, "system": system, "metric": metric, "value": value} | more


def test_goals_are_met_or_missed_by_the_rows(benchmark):
    tables = benchmark["tables"]
    dice = {"lowest_dice": 0.9995, "lowest_dice_bfloat16": 0.99}
    rows = [
        make_row("ct400-118", "tomokit", "ratio_to_bare", 1.9),
        make_row("ct400-118", "tomokit", "peak_rss_gb", 2.5, files_gb=0.3),
        make_row("ct800-118", "tomokit", "peak_rss_gb", 3.5, files_gb=0.6),
        make_row("ct400-118", "monai", "tomokit_is_faster_by", None),
        make_row("ct400-118", "monai-nearest", "tomokit_is_faster_by", 1.5),
        make_row("ct400-118", "tomokit", "agreement", 0.99995, **dice),
        make_row("ct400-118", "tomokit, whole field", "agreement", 0.9, lowest_dice=0.9991),
        make_row("hippocampus", "tomokit", "ratio_to_bare", 1.25),
    ]
    goals = [(goal.dataset, goal.text, goal.verdict) for goal in tables.all_goals(tables.Found(rows, "2 CPU cores"))]
    assert goals == [
        ("hippocampus", "time ≤ 1.2 × the bare network", "missed"),
        ("ct400-118", "time ≤ 2 × the bare network", "met"),
        ("ct400-118", "≥ 2 × faster than monai", "not told"),
        ("ct400-118", "≥ 2 × faster than monai-nearest", "missed"),
        ("ct400-118", "peak ≤ 3 GB", "met"),
        ("ct400-118", "voxels as MONAI's full logits ≥ 99.99%", "met"),
        ("ct400-118", "lowest Dice, float32 ≥ 0.999", "met"),
        ("ct400-118", "lowest Dice, bfloat16 ≥ 0.995", "missed"),
        ("ct400-118", "lowest Dice with and without body crop ≥ 0.999", "met"),
        ("ct800-118", "400 to 800 slices: peak less source and label map ≤ 1.2 ×", "missed"),  # 3.2 / 2.5
    ]
