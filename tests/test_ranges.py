"""The range of the training cases, and what of a new scan lies outside it."""

import json

import monai.bundle
import numpy as np
import pytest
import torch
from bundle_runs import config
from ignite.engine import Engine
from monai.data import DataLoader, Dataset

from tomokit.checks import check_case, describe_range, find_outside, join_ranges, ranges, read_range, write_range
from tomokit.checks.cases import Expected
from tomokit.engines import attach_class_table
from tomokit.engines.checkpoints import save
from tomokit.errors import TomokitError
from tomokit.volumes import itk_image

EXPECTED = Expected(None, ("CT",))


def make_image(shape=(8, 9, 10), low=-1000, high=200) -> np.ndarray:
    """Return an image of which a half is `low`, and the other goes evenly from 0 to `high`."""
    values = np.concatenate([np.full(np.prod(shape) // 2, low), np.linspace(0, high, -(-np.prod(shape) // 2))])
    return values.reshape(shape).astype(np.int16)


@pytest.fixture
def make_case(write_volume):
    """Return a function that writes a scan and returns its entry."""

    def make(name, spacing=(1.0, 1.0, 2.0), **more):
        path = write_volume(f"{name}.nii.gz", make_image(**more), np.diag([*spacing, 1.0]))
        return {"case": name, "patient": name, "image": path, "label": 0}

    return make


@pytest.fixture
def three(make_case):
    """Return three training cases of spacing 1, 1.5, 2 in x and 2 to 4 in z, of 8 to 12 voxels in x."""
    return [
        make_case("a"),
        make_case("b", (1.5, 1.0, 4.0), shape=(12, 9, 10), high=300),
        make_case("c", (2.0, 1.0, 3.0), high=400),
    ]


@pytest.fixture(autouse=True)
def forget():
    yield
    ranges._noted.clear()


# The range


def test_the_range_is_of_each_axis_and_each_percentile(three):
    found = describe_range(three, ["CT"])
    assert (found["cases"], found["modality"]) == (3, ["CT"])
    assert found["spacing_mm"] == [[1, 2], [1, 1], [2, 4]]
    assert found["voxels"] == [[8, 12], [9, 9], [10, 10]]
    assert found["extent_mm"] == [[8, 18], [9, 9], [20, 40]]
    (intensity,) = found["intensity"]
    assert (intensity["p01"], intensity["p50"]) == ([-1000, -1000], [-500, -500])
    assert intensity["p99"] == pytest.approx([0.98 * 200, 0.98 * 400], abs=2)


def test_the_joined_range_of_two_parts_is_that_of_the_whole(three):
    parts = [describe_range(three[:1], ["CT"]), describe_range(three[1:], ["CT"])]
    assert join_ranges(parts, 3) == describe_range(three, ["CT"])
    unknown = {**parts[1], "intensity": [None]}
    assert join_ranges([parts[0], unknown], 3)["intensity"] == parts[0]["intensity"]
    assert join_ranges([unknown, unknown], 3)["intensity"] == [None]
    with pytest.raises(TomokitError, match="no range to join"):
        join_ranges([], 0)


def test_axes_are_the_patients(make_case, write_volume):
    turned = np.array([[0, 0, -3.0, 50], [1.5, 0, 0, 0], [0, 1.0, 0, 9], [0, 0, 0, 1]])  # file axes: y, z, -x
    entry = {"case": "t", "image": write_volume("t.nii.gz", make_image((4, 5, 6)), turned)}
    found = describe_range([entry], ["CT"])
    assert found["spacing_mm"] == [[3, 3], [1.5, 1.5], [1, 1]]
    assert found["voxels"] == [[6, 6], [4, 4], [5, 5]]
    assert find_outside(found, entry["image"]) == []


def test_what_the_check_has_read_is_not_read_again(three, tmp_path, monkeypatch):
    apart = describe_range(three, ["CT"])
    for entry in three:
        assert check_case(entry, EXPECTED) == []
    monkeypatch.setattr(ranges, "read_scan", None)  # a call would fail
    monkeypatch.setattr(ranges, "read_header", None)
    write_range(tmp_path / "run", three, ["CT"])
    assert read_range(tmp_path / "run") == apart
    with pytest.raises(TypeError):
        describe_range(three, ["CT"])  # and forgotten: files may change


def test_of_many_cases_the_voxels_of_a_part_are_read(three, monkeypatch):
    monkeypatch.setattr(ranges, "MOST_READ", 2)
    read, path_of = [], ranges.read_scan
    monkeypatch.setattr(ranges, "read_scan", lambda path: read.append(path) or path_of(path))
    found = describe_range(three, ["CT"])
    assert read == [three[0]["image"], three[2]["image"]]
    assert found["spacing_mm"] == [[1, 2], [1, 1], [2, 4]]  # headers are read of all
    assert found["intensity"][0]["p99"] == pytest.approx([0.98 * 200, 0.98 * 400], abs=2)


def test_each_modality_has_its_own_intensities(make_case):
    a, b, c = (make_case(name, high=high)["image"] for name, high in (("a", 100), ("b", 200), ("c", 900)))
    found = describe_range([{"image": [a, None, None]}, {"image": [b, c, None]}], ["T1", "CT", "PET"])
    first, second, third = found["intensity"]
    assert first["p99"] == pytest.approx([98, 196], abs=1) and second["p99"] == pytest.approx([882] * 2, abs=5)
    assert third is None
    assert find_outside(found, [None, c, a]) == []
    assert find_outside(found, [c, c, None]) == []  # of an MRI they have no scale
    assert find_outside(found, [c, a, None]) == [
        "99th percentile of the intensities (CT) is 97.81 HU, in training 881.4 HU"
    ]


# New scans


def test_each_quantity_outside_is_named_with_its_value_and_the_range(three, make_case):
    known = describe_range(three, ["CT"])
    assert [find_outside(known, entry["image"]) for entry in three] == [[], [], []]
    other = make_case("d", (2.5, 1.0, 3.0), shape=(16, 9, 5), low=-2000, high=900)
    assert find_outside(known, other["image"]) == [
        "spacing along x is 2.5 mm, in training 1 to 2 mm",
        "field of view along x is 40 mm, in training 8 to 18 mm",
        "field of view along z is 15 mm, in training 20 to 40 mm",
        "number of voxels along x is 16, in training 8 to 12",
        "number of voxels along z is 5, in training 10",
        "1st percentile of the intensities (CT) is -2000 HU, in training -1000 HU",
        "median of the intensities (CT) is -1000 HU, in training -500 HU",
        "99th percentile of the intensities (CT) is 881.4 HU, in training 195.8 to 391.8 HU",
    ]


@pytest.mark.parametrize(
    ("limits", "least", "inside", "outside"),
    [
        ((1.0, 3.0), 0.0, (0.81, 3.19), (0.79, 3.21)),  # a tenth of the range
        ((2.0, 2.0), 0.1, (1.91, 2.09), (1.89, 2.11)),  # all alike
        ((-100.0, 100.0), 30.0, (-129, 129), (-131, 131)),
    ],
)
def test_the_margin(limits, least, inside, outside):
    assert [ranges._compare("x", value, limits, least, "") for value in inside] == [[], []]
    assert [len(ranges._compare("x", value, limits, least, "")) for value in outside] == [1, 1]


def test_other_formats_are_compared_too(three, tmp_path):
    import SimpleITK as sitk

    known = describe_range(three, ["CT"])
    sitk.WriteImage(itk_image(make_image(), np.diag([1.0, 1.0, 2.0, 1.0])), str(tmp_path / "a.mha"))
    assert find_outside(known, tmp_path / "a.mha") == []


# Errors


def test_there_must_be_cases():
    with pytest.raises(TomokitError, match="no training case"):
        describe_range([], ["CT"])


def test_another_number_of_modalities_is_told(three):
    known, image = describe_range(three, ["CT"]), three[0]["image"]
    with pytest.raises(TomokitError, match=r"of 2 modalities, training cases are of 1 \(CT\)"):
        find_outside(known, [image, image])


@pytest.mark.parametrize(
    "change",
    [{"voxels": [[1, 2]]}, {"spacing_mm": None}, {"intensity": []}, {"intensity": [{"p01": [0, 1]}]}, {"intensity": 3}],
)
def test_a_malformed_file_is_told(three, tmp_path, change):
    assert read_range(tmp_path) is None
    content = describe_range(three, ["CT"]) | change
    (tmp_path / "range.json").write_text(json.dumps(content))
    with pytest.raises(TomokitError, match=r"range\.json is malformed; delete it"):
        read_range(tmp_path)


# In use


def test_inference_warns_of_scans_unlike_the_training_cases(three, make_case, tmp_path, capsys):
    run = tmp_path / "run"
    write_range(run, three, ["CT"])
    weights = {"weight": torch.tensor([-1.0, 1.0]).reshape(2, 1, 1, 1, 1), "bias": torch.zeros(2)}
    save(weights, run / "checkpoints" / "best.pt")
    scans = [three[0]["image"], make_case("thick", (1.0, 1.0, 9.0))["image"]]
    given = {"run_dir": str(run), "input": scans, "spacing": [2.0, 2.0, 2.0], "patch_size": [8, 8, 8]}
    network = {"_target_": "torch.nn.Conv3d", "in_channels": 1, "out_channels": 2, "kernel_size": 1}
    monai.bundle.run(
        config_file=config("segmentation", "train", "inference"),
        labels={"0": "background", "1": "a"},
        network_def=network,
        **given,
    )
    assert [line for line in capsys.readouterr().out.splitlines() if "unlike" in line] == [
        "thick is unlike the training cases: spacing along z is 9 mm, in training 2 to 4 mm; "
        "field of view along z is 90 mm, in training 20 to 40 mm"
    ]


def test_a_table_of_classes_warns_too_and_without_a_range_nothing_does(three, tmp_path, caplog):
    write_range(tmp_path / "run", three[:1], ["CT"])

    def step(engine, entry):
        engine.state.batch = [entry]
        return [{"pred": torch.tensor([0.2, 0.8])}]

    for run in ("run", "older"):
        engine = Engine(step)
        engine.data_loader = DataLoader(Dataset(three[:2]))
        attach_class_table(engine, tmp_path / "out", {"0": "a", "1": "b"}, run_dir=tmp_path / run)
        engine.run(three[:2])
    (told,) = [record.getMessage() for record in caplog.records if "unlike" in record.getMessage()]
    assert told.startswith(
        "b is unlike the training cases: spacing along x is 1.5 mm, in training 1 mm; spacing along z"
    )
