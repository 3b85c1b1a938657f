import dataclasses
import errno
import json
import math
import re
import shlex
import shutil
from pathlib import Path

import monai.bundle
import nibabel
import numpy as np
import pytest
import torch
import yaml
from monai.bundle import ConfigParser
from monai.data import CacheDataset
from planning_fingerprints import DECATHLON, comparison_table, make_fingerprint, structure
from torch.utils.flop_counter import FlopCounterMode

from tomokit.bundles import bundles_folder, find_bundle
from tomokit.errors import TomokitError
from tomokit.files import read_json
from tomokit.lint import lint_bundle
from tomokit.losses import DeepSupervision, DiceCrossEntropyLoss
from tomokit.networks import LeanUNet
from tomokit.phantoms import make_classification_set, make_segmentation_set
from tomokit.planning import make_plan, print_plan
from tomokit.planning.fingerprint import read_fingerprint
from tomokit.planning.images import choose_image
from tomokit.planning.measuring import default_memory_gb, within_memory
from tomokit.planning.network import CPU_BYTES, image_memory_gb, memory_gb, step_gmacs, stored_values
from tomokit.planning.rules import (
    Budget,
    Choice,
    choose_flips,
    choose_foreground_share,
    choose_geometry,
    choose_intensity,
    choose_learning_rate,
    choose_overlap,
    choose_partial,
    choose_stages,
    coarsest_mm,
    covered,
    explain_network,
    full_spacing,
    halvings,
    is_body,
    is_ct,
    size_at,
)
from tomokit.planning.schedule import (
    LEAST_STEPS,
    VALIDATIONS,
    Timing,
    choose_schedule,
    reserved_seconds,
    step_target_seconds,
    steps_per_epoch,
    wanted_steps,
)
from tomokit.planning.writing import check_target, put_in_place, read_packaged, set_keys, write_bundle

CPU = Budget(8.0, cuda=False, gmacs=25.0)
GPU = Budget(11.0, cuda=True)


# The fingerprint


def write_case(folder, name, shape=(8, 6, 4), sizes=(1.0, 2.0, 3.0), label=None, image=None, codes="RAS"):
    """Write an image and a label map given in RAS, stored in other axes; return the entry."""
    image = np.full(shape, 50, np.int16) if image is None else image
    turn = nibabel.orientations.ornt_transform(
        nibabel.orientations.axcodes2ornt("RAS"), nibabel.orientations.axcodes2ornt(codes)
    )
    entry = {}
    for key, array in (("image", image), ("label", np.zeros(shape, np.uint8) if label is None else label)):
        file = nibabel.Nifti1Image(array, np.diag([*sizes, 1.0])).as_reoriented(turn)
        entry[key] = f"{key}_{name}.nii.gz"
        nibabel.save(file, folder / entry[key])
    return entry


def write_set(folder, training, validation=(), test=(), **more):
    kept = "missing_label.nii.gz" if isinstance(training[0]["label"], str) else 0
    test = test or [{"image": "missing.nii.gz", "label": kept}]  # of which no file may be opened
    content = {"labels": {"0": "background", "1": "organ", "2": "lesion"}, "modality": {"0": "CT"}, **more}
    content |= {"training": list(training), "validation": list(validation), "test": list(test)}
    (folder / "dataset.json").write_text(json.dumps({key: value for key, value in content.items() if value}))
    return folder


@pytest.fixture
def known_set(tmp_path):
    """Return a set of two cases whose volumes, pieces and places are known, and a test case with no file."""
    label = np.zeros((8, 6, 4), np.uint8)
    label[4:8, 0:3, :] = 1
    label[0, 0, 0] = label[2, 5, 3] = 2
    image = np.where(label == 1, 100, np.where(label == 2, 20, -1000)).astype(np.int16)
    training = [write_case(tmp_path, "a", label=label, image=image, codes="PSR")]
    only = np.where(label == 1, label, 0)
    validation = [write_case(tmp_path, "b", label=only, image=image, codes="LPS") | {"labelled": [1]}]
    return write_set(tmp_path, training, validation)


def test_fingerprint_is_told_in_ras_axes_whatever_is_stored(known_set):
    found = read_fingerprint(known_set)
    assert found.shape.median == (8, 6, 4) and found.spacing.median == (1, 2, 3)
    assert found.extent_mm.max == (8, 12, 12) and found.anisotropy == 3
    assert [case["shape"] for case in found.per_case] == [[8, 6, 4]] * 2


def test_fingerprint_counts_structures_as_they_were_made(known_set):
    organ, lesion = read_fingerprint(known_set).structures
    assert (organ.cases, organ.pieces, lesion.cases, lesion.pieces) == (2, 1, 1, 2)
    assert organ.median_ml == pytest.approx(48 * 6 / 1000) and lesion.piece_ml == pytest.approx(0.006)
    assert organ.share == pytest.approx(0.25) and organ.offset == (0.25, -0.25, 0)
    assert organ.upper_share == (1, 0, 0)


def test_fingerprint_takes_intensities_inside_the_structures_each_case_alike(known_set):
    found = read_fingerprint(known_set)
    inside, everywhere = found.inside[0], found.everywhere[0]
    assert (inside.p0_5, inside.p99_5, everywhere.p0_5) == (20, 100, -1000)
    # of case a 48 voxels at 100 and 2 at 20, of case b 48 at 100
    assert inside.mean == pytest.approx((98 * 100 - 2 * 80) / 98, abs=1.0)


def test_fingerprint_opens_no_test_case_and_counts_partly_annotated_ones(known_set):
    found = read_fingerprint(known_set)
    assert found.cases == {"training": 1, "validation": 1, "test": 1} and found.partly_labelled == 1


def test_fingerprint_tells_of_each_case_read(known_set):
    told = []
    read_fingerprint(known_set, progress=lambda done, total: told.append((done, total)))
    assert told == [(1, 2), (2, 2)]


def test_fingerprint_reads_channels_from_several_files_or_one(tmp_path):
    label = np.zeros((8, 6, 4), np.uint8)
    label[:4], label[5] = 1, 2
    entry = write_case(tmp_path, "a", label=label)
    other = write_case(tmp_path, "b", image=np.full((8, 6, 4), 7, np.int16))
    several = {"image": [entry["image"], other["image"]], "label": entry["label"]}
    joined = write_case(tmp_path, "c", label=label, image=np.zeros((8, 6, 4, 2), np.int16) + np.int16([50, 7]))
    write_set(tmp_path, [several], [joined], modality={"0": "T1", "1": "T2"})
    assert [channel.mean for channel in read_fingerprint(tmp_path).inside] == [50, 7]


def test_fingerprint_of_classes_counts_them(tmp_path):
    cases = [{**write_case(tmp_path, name), "label": value} for name, value in (("a", 0), ("b", 1), ("c", 1))]
    write_set(tmp_path, cases[:2], cases[2:], labels={"0": "benign", "1": "malignant"})
    found = read_fingerprint(tmp_path)
    assert (found.task, found.class_counts) == ("classification", {"benign": 1, "malignant": 2})
    assert found.inside == found.everywhere and found.structures == ()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": None}, "`labels` is missing"),
        ({"modality": None}, "`modality` is missing"),
        ({"modality": {"0": "CT", "1": "PET"}}, r"names 2 channels \(CT, PET\)(.|\n)*image_a has 1"),
        (
            {"labels": {"0": "background", "1": "organ", "2": "cyst"}},
            r"no training case holds(.|\n)*cyst \(2\), nor does a validation case",
        ),
    ],
)
def test_fingerprint_explains_what_can_not_be_planned(tmp_path, change, message):
    entry = write_case(tmp_path, "a", label=np.ones((8, 6, 4), np.uint8))
    write_set(tmp_path, [entry], [write_case(tmp_path, "b", label=np.ones((8, 6, 4), np.uint8))], **change)
    with pytest.raises(TomokitError, match=message):
        read_fingerprint(tmp_path)


def test_fingerprint_refuses_files_beside_classes(tmp_path):
    write_set(tmp_path, [write_case(tmp_path, "a")], [write_case(tmp_path, "b") | {"label": 1}])
    with pytest.raises(TomokitError, match="a file in all cases or a class in all cases, got int, str"):
        read_fingerprint(tmp_path)


def test_fingerprint_refuses_a_label_of_another_size(tmp_path):
    entry, other = write_case(tmp_path, "a"), write_case(tmp_path, "b", shape=(8, 6, 5))
    write_set(tmp_path, [entry | {"label": other["label"]}], [other])
    with pytest.raises(TomokitError, match=r"image_a: the image has \(8, 6, 4\) voxels, its label \(8, 6, 5\)"):
        read_fingerprint(tmp_path)


def test_label_values_that_nothing_names_are_all_told(tmp_path):
    label = np.ones((8, 6, 4), np.float32)
    label[0], label[1] = 2, 255
    other = label.copy()
    other[2], other[3], other[4] = -1, 0.5, np.nan
    cases = [write_case(tmp_path, name, label=array) for name, array in (("a", label), ("b", other))]
    write_set(tmp_path, cases[:1], cases[1:])
    text = r"names 0, 1, 2 alone; correct it, or the cases. If .* --dataset_dir .* --ignore_label 255"
    with pytest.raises(TomokitError, match=rf"{text}\n  - image_a has 255\n  - image_b has -1, 0.5, 255, nan$"):
        read_fingerprint(tmp_path)


def test_a_structure_or_class_that_no_training_case_has_is_told(tmp_path):
    label = np.ones((8, 6, 4), np.uint8)
    label[0] = 2
    cases = [write_case(tmp_path, "a", label=np.ones((8, 6, 4), np.uint8)), write_case(tmp_path, "b", label=label)]
    write_set(tmp_path, cases[:1], cases[1:])
    with pytest.raises(TomokitError, match=r"no training case holds(.|\n)*lesion \(2\), which validation cases hold"):
        read_fingerprint(tmp_path)
    classes = [case | {"label": value} for value, case in enumerate(cases)]
    write_set(tmp_path, classes[:1], classes[1:], labels={"0": "a", "1": "b", "2": "c"})
    text = r"b \(1\), which validation cases hold\n  - c \(2\), nor does a validation case"
    with pytest.raises(TomokitError, match=text):
        read_fingerprint(tmp_path)
    write_set(tmp_path, classes[:1], [classes[1] | {"label": 7}], labels={"0": "a", "1": "b"})
    with pytest.raises(TomokitError, match=r"names 0, 1 alone; correct it, or the cases\n  - image_b has 7$"):
        read_fingerprint(tmp_path)


def test_shapes_that_are_no_volume_are_told_with_their_case(tmp_path):
    case, kept = write_case(tmp_path, "a"), write_case(tmp_path, "b")
    nibabel.save(nibabel.Nifti1Image(np.zeros((8, 6), np.int16), np.eye(4)), tmp_path / "image_a.nii.gz")
    write_set(tmp_path, [case], [kept])
    with pytest.raises(TomokitError, match=r"^image_a: .*has the shape \(8, 6\), which is neither.*as \(X, Y, 1\)"):
        read_fingerprint(tmp_path)
    write_case(tmp_path, "a", label=np.zeros((8, 6, 4, 3), np.uint8))
    with pytest.raises(
        TomokitError, match=r"^image_a: its label has 3 channels, shape \(8, 6, 4, 3\); store one label"
    ):
        read_fingerprint(tmp_path)
    write_case(tmp_path, "a", label=np.ones((8, 6, 4, 1), np.uint8))
    with pytest.raises(TomokitError, match="no training case holds"):  # a last axis of one is fine
        read_fingerprint(tmp_path)


def test_fingerprint_refuses_images_without_a_number(tmp_path):
    image, label = np.full((8, 6, 4), np.nan, np.float32), np.ones((8, 6, 4), np.uint8)
    label[0] = 2
    write_set(tmp_path, *([write_case(tmp_path, name, image=image, label=label)] for name in "ab"))
    with pytest.raises(TomokitError, match="no case has a finite voxel in its structures"):
        read_fingerprint(tmp_path)


# The rules against nnU-Net's published plans


@pytest.mark.parametrize("name", DECATHLON)
def test_the_decathlon_is_planned_about_as_nnunet_does(name):
    task = DECATHLON[name]
    found = choose_geometry(task.fingerprint, GPU)
    assert found.spacing.value == pytest.approx(task.spacing)
    ratios = [own / theirs for own, theirs in zip(found.patch_size.value, task.patch, strict=True)]
    assert all(0.8 <= ratio <= 1.25 for ratio in ratios)
    assert 0.85 <= math.prod(ratios) <= 1.25
    assert abs(found.batch_size.value - task.batch) <= 1


def test_the_page_shows_the_comparison_as_the_rules_give_it():
    page = (Path(__file__).parents[1] / "docs" / "planning.md").read_text()
    assert comparison_table(GPU) in page


@pytest.mark.parametrize("name", DECATHLON)
def test_every_patch_can_be_halved_as_often_as_the_network_does(name):
    for budget in (CPU, GPU):
        found = choose_geometry(DECATHLON[name].fingerprint, budget)
        factors = np.prod(found.stages.strides, axis=0)
        assert all(edge % factor == 0 for edge, factor in zip(found.patch_size.value, factors, strict=True))
        assert len(found.stages.strides) == len(found.stages.filters) == len(found.stages.kernels) >= 3


# The grid


def test_spacing_of_a_very_coarse_axis_is_its_finer_tenth():
    made = make_fingerprint(shape=(300, 300, 20), spacing=(0.6, 0.6, 5.0), p10=(0.5, 0.5, 3.0))
    assert full_spacing(made).value == (0.6, 0.6, 3.0)
    assert "z is more than 3 times coarser" in full_spacing(made).reason
    less = make_fingerprint(shape=(300, 300, 20), spacing=(2.0, 2.0, 5.0), p10=(0.5, 0.5, 3.0))
    assert full_spacing(less).value == (2.0, 2.0, 5.0)


def test_a_coarse_axis_is_left_alone_until_the_others_are_as_coarse():
    stages = choose_stages((256, 256, 16), (0.6, 0.6, 3.6), 32, cuda=True)
    assert stages.strides == ((1, 1, 1), (2, 2, 1), (2, 2, 1), (2, 2, 2), (2, 2, 2), (2, 2, 1))
    assert stages.kernels[:3] == ((3, 3, 1), (3, 3, 1), (3, 3, 3))
    assert stages.filters == (32, 64, 128, 256, 320, 320)


def test_each_stage_keeps_four_voxels():
    assert halvings((64, 32, 8), (1, 1, 1), 6) == [(1, 1, 1), (2, 2, 2), (2, 2, 1), (2, 2, 1), (2, 1, 1)]


def test_one_slice_is_planned_in_the_plane():
    slices = make_fingerprint(modality=("CT",), shape=(256, 256, 1), spacing=(1.0, 1.0, 1.0))
    for budget in (CPU, GPU):
        found = choose_geometry(slices, budget)
        assert found.patch_size.value[2] == 1 and found.patch_size.value[0] >= 128
        assert {kernel[2] for kernel in found.stages.kernels} == {1}
        assert {stride[2] for stride in found.stages.strides} == {1}


def test_tiny_volumes_are_padded_to_what_two_halvings_need():
    found = choose_geometry(make_fingerprint(shape=(10, 12, 20)), CPU)
    assert found.patch_size.value == (16, 16, 20)
    coarse = choose_geometry(make_fingerprint(shape=(40, 40, 12), spacing=(1.0, 1.0, 6.0)), CPU)
    assert coarse.patch_size.value == (40, 40, 12)


def test_large_volumes_are_seen_coarser_on_a_cpu_but_never_lose_the_smallest_structure():
    large = make_fingerprint(shape=(512, 512, 300), spacing=(0.8, 0.8, 1.5), structures=(structure(1, "a", 900, 0.03),))
    found = choose_geometry(large, CPU)
    assert covered(large, found) >= 0.25 and min(found.spacing.value) > 1.5
    assert "coarser, so that a patch sees" in found.spacing.reason
    small = dataclasses.replace(large, structures=(structure(1, "nodule", 0.5, 0.0001),))
    limit = coarsest_mm(small)
    assert limit == pytest.approx(2 * (3 * 500 / 4 / math.pi) ** (1 / 3) / 6)
    assert max(choose_geometry(small, CPU).spacing.value[:2]) <= limit + 1e-3
    assert choose_geometry(large, GPU).spacing.value == (0.8, 0.8, 1.5)


@pytest.mark.parametrize("edge", [16, 17, 21, 25, 29, 33])
def test_odd_lengths_get_as_wide_a_network_as_even_ones(edge):
    for shape in ((edge, 40, 40), (edge,) * 3):
        found = choose_geometry(make_fingerprint(shape=shape), CPU)
        assert found.stages.filters[0] == 16 and found.patch_size.value[0] in (edge, edge - 1)


def test_every_volume_has_a_plan():
    for edge in range(1, 70):
        for shape in ((edge, edge, edge), (edge, 50, 7), (200, edge, 2)):
            for budget in (Budget(8), GPU):
                assert choose_geometry(make_fingerprint(shape=shape), budget).batch_size.value >= 2


def test_less_time_or_memory_gives_a_cheaper_step():
    made = make_fingerprint()
    costs = []
    for budget in (Budget(8, gmacs=60.0), Budget(8, gmacs=20.0), Budget(8, gmacs=2.0), Budget(0.2)):
        found = choose_geometry(made, budget)
        cost = step_gmacs(found.patch_size.value, found.stages, found.batch_size.value, 1, 2)
        assert budget.gmacs is None or cost <= budget.gmacs
        assert memory_gb(found.patch_size.value, found.stages, found.batch_size.value, 1, 2, False) <= budget.memory_gb
        costs.append(cost)
    assert costs[:3] == sorted(costs[:3], reverse=True)
    assert choose_geometry(made, Budget(8, gmacs=2.0)).stages.filters[0] == 8


def test_too_little_memory_is_told_with_what_would_do():
    with pytest.raises(TomokitError, match=r"0.001 GB are too few: two patches of 16 × 16 × 16 .* --memory 0\.00"):
        choose_geometry(make_fingerprint(), Budget(0.001))


def test_small_volumes_come_in_larger_batches():
    made = make_fingerprint(shape=(32, 32, 32), training=200)
    assert choose_geometry(made, GPU).batch_size.value == 10  # 5 % of 200 cases that a patch holds whole
    assert choose_geometry(dataclasses.replace(made, cases={**made.cases, "training": 6}), GPU).batch_size.value == 2


def test_reasons_tell_which_bound_held():
    def patch(budget, shape=(128, 128, 128)):
        return choose_geometry(make_fingerprint(shape=shape), budget).patch_size.reason

    assert "as much as the memory allows" in patch(Budget(0.5, gmacs=1e6))
    assert "as much as the time of a step allows" in patch(Budget(64, gmacs=20.0))
    assert "the smallest there is" in patch(Budget(64, gmacs=0.0))
    assert "rounded to what can be halved" in patch(Budget(64), (50, 50, 50))
    assert "a cube of 256³ voxels at the most" in patch(Budget(2000, cuda=True), (300, 300, 1100))
    assert patch(Budget(64)).startswith("the whole of the median volume of 128 × 128 × 128 voxels; two patches")

    def batch(budget, training=200):
        made = make_fingerprint(shape=(32, 32, 32), training=training)
        return choose_geometry(made, budget).batch_size.reason.removeprefix(
            "at least 2, so that a step sees two cases; "
        )

    assert batch(Budget(8)) == "at most 2 on a CPU, where more steps are worth more"
    assert batch(GPU) == "at most 5% of the set's voxels"
    assert batch(GPU, 2000) == "at most 16"
    assert batch(GPU, 6) == "though that is over 5% of the set's voxels"
    assert batch(Budget(0.5, cuda=True)) == "the memory allows no more"
    assert batch(Budget(11, cuda=True, gmacs=15.0)) == "the time of a step allows no more"
    large = make_fingerprint(shape=(512, 512, 512), training=10)
    assert "though" not in choose_geometry(large, Budget(64, cuda=True)).batch_size.reason
    assert (
        "at most a quarter of the 10 training cases" in choose_geometry(large, Budget(64, cuda=True)).batch_size.reason
    )


@pytest.mark.parametrize(
    ("patch", "spacing", "strides", "kernels"),
    [
        ((64, 64, 64), (1, 1, 1), "all alike", "3 along all axes"),
        ((128, 32, 32), (1, 1, 1), "or too short", "3 along all axes"),
        ((64, 64, 16), (1, 1, 4), "twice as coarse as the finest", "1 along an axis that is thin, or coarse"),
        ((64, 64, 1), (1, 1, 1), "or too short", "1 along an axis that is thin"),
    ],
)
def test_the_networks_reasons_fit_its_numbers(patch, spacing, strides, kernels):
    found = explain_network(choose_stages(patch, spacing, 16, cuda=False), cuda=False)
    assert list(found) == ["filters", "strides", "kernel_size"]
    assert strides in found["strides"].reason and kernels in found["kernel_size"].reason


# What a step costs


@pytest.mark.parametrize(
    ("patch", "spacing", "first", "channels", "classes"),
    [((32, 32, 32), (1, 1, 1), 16, 1, 4), ((48, 32, 16), (1, 1, 5), 8, 3, 2), ((64, 48, 1), (1, 1, 1), 16, 1, 3)],
)
def test_cost_of_a_step_is_what_torch_counts(patch, spacing, first, channels, classes):
    stages = choose_stages(patch, spacing, first, cuda=False)
    network = LeanUNet(3, channels, classes, stages.filters, stages.strides, stages.kernels, heads=2)
    loss = DeepSupervision(DiceCrossEntropyLoss())
    image, label = torch.randn(2, channels, *patch), torch.randint(0, classes, (2, 1, *patch)).float()
    stored = {}

    def keep(tensor):
        stored[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with FlopCounterMode(display=False) as counter, torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        loss(network(image), label).backward()
    assert step_gmacs(patch, stages, 2, channels, classes) == pytest.approx(counter.get_total_flops() / 2e9, rel=0.05)
    weights = sum(parameter.nbytes for parameter in network.parameters())
    expected = 2 * 4 * stored_values(patch, stages, channels, classes)
    assert expected == pytest.approx(sum(stored.values()) - weights, rel=0.15)
    own = memory_gb(patch, stages, 0, channels, classes, cuda=False)
    assert own == pytest.approx(4 * weights / 1e9, rel=0.02)


@pytest.mark.parametrize(("first", "channels", "size"), [(16, 1, (32, 24, 16)), (8, 3, (48, 32, 32))])
def test_memory_of_a_classifying_step_is_what_torch_keeps(first, channels, size):
    packaged = read_packaged("classification")["network_def"]["network"]
    packaged |= {"block_inplanes": [first * 2**stage for stage in range(4)], "n_input_channels": channels}
    network = ConfigParser({"labels": {"0": "a", "1": "b"}, "net": packaged}).get_parsed_content("net")
    stored = {}

    def keep(tensor):
        stored[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        network(torch.randn(2, channels, *size))
    weights = sum(parameter.nbytes for parameter in network.parameters())
    own = image_memory_gb(size, 0, first, channels, cuda=False)
    assert own == pytest.approx(4 * weights / 1e9, rel=0.02)
    expected = (image_memory_gb(size, 2, first, channels, cuda=False) - own) * 1e9 / CPU_BYTES * 4
    assert expected == pytest.approx(sum(stored.values()) - weights, rel=0.05)


# Intensities and augmentation


@pytest.mark.parametrize(
    ("kind", "ct", "body"),
    [
        *(
            (kind, True, True)
            for kind in ("CT", "ct", "CTA", "CECT", "CT portal", "NCCT", "CBCT", "low-dose CT", "CT_0")
        ),
        *((kind, False, True) for kind in ("PET/CT", "PET", "SPECT-CT", "MRI", "T1w", "contrast T2", "ADC")),
        *((kind, False, False) for kind in ("OCT", "microscopy", "ultrasound")),
    ],
)
def test_kinds_are_known_by_their_words(kind, ct, body):
    assert (is_ct(kind), is_body(kind)) == (ct, body)
    assert choose_intensity(make_fingerprint(modality=(kind,))).value["_target_"].startswith("Scale" if ct else "Norm")


def test_ct_is_clipped_and_scaled_by_what_the_structures_hold():
    value = choose_intensity(make_fingerprint(window=(100.0, 40.0, -60.0, 220.0))).value
    assert value["_target_"] == "ScaleIntensityRanged" and (value["a_min"], value["a_max"]) == (-60, 220)
    assert (value["b_min"], value["b_max"], value["clip"]) == (-4, 3, True)  # (x - 100) / 40


def test_other_modalities_are_scaled_by_themselves():
    assert choose_intensity(make_fingerprint(modality=("MRI",))).value == {
        "_target_": "NormalizeIntensityd",
        "keys": "image",
    }
    several = choose_intensity(make_fingerprint(modality=("T1", "FLAIR"), zero_share=(0.5, 0.6))).value
    assert several["channel_wise"] and several["nonzero"]
    assert "MRI" not in choose_intensity(make_fingerprint(modality=("PET",))).reason
    mixed = choose_intensity(make_fingerprint(modality=("CT", "PET")))
    assert mixed.value["channel_wise"] and "nonzero" not in mixed.value and "several kinds" in mixed.reason


@pytest.mark.parametrize(
    ("modality", "offset", "upper", "lateral", "axes"),
    [
        (("CT",), 0.0, 0.5, (), [0]),
        (("MRI",), 0.2, 0.5, (), [0]),  # on either side
        (("CT",), 0.2, 1.0, (), []),  # always on the right
        (("CT",), -0.2, 0.0, (), []),
        (("CT",), 0.0, 0.5, ("kidney_left",), []),
        (("microscopy",), 0.0, 0.5, (), [0]),  # sided along y and z
    ],
)
def test_mirror_images_are_used_where_they_could_be_cases(modality, offset, upper, lateral, axes):
    made = make_fingerprint(
        modality=modality, structures=(structure(1, "organ", 10, 0.01, offset, upper),), lateral=lateral
    )
    choice = choose_flips(made)
    assert choice.value == axes and choice.reason
    assert ("20% of the extent off the middle" in choice.reason) == (upper != 0.5)


def test_classes_are_mirrored_where_none_names_a_side():
    classes = make_fingerprint(task="classification", structures=(), labels={"0": "a", "1": "b"})
    assert choose_flips(classes) == (
        [0],
        "no class names a side along x; front and back, head and feet are never alike",
    )
    assert choose_flips(dataclasses.replace(classes, modality=("microscopy",))).value == [0, 1, 2]
    assert choose_flips(dataclasses.replace(classes, lateral=("left",))).value == []


def test_small_structures_get_more_of_the_patches():
    shares = [
        choose_foreground_share(make_fingerprint(structures=(structure(1, "a", 10, share),))).value
        for share in (0.3, 0.1, 0.01, 0.001, 0.00001)
    ]
    assert shares == [0.33, 0.33, 0.5, 0.67, 0.67]
    large, small = (make_fingerprint(structures=(structure(1, "a", 10, share),)) for share in (0.3, 0.001))
    assert "chance meets it often" in choose_foreground_share(large).reason
    assert "chance would seldom meet it" in choose_foreground_share(small).reason


def test_overlap_is_less_where_a_volume_takes_many_windows():
    made = make_fingerprint(shape=(512, 512, 512))
    assert choose_overlap(made, choose_geometry(made, Budget(2, cuda=True))).value == 0.25
    assert choose_overlap(made, choose_geometry(make_fingerprint(), GPU)._replace()).value == 0.5


def test_wide_networks_take_smaller_steps():
    assert choose_learning_rate((32, 320), 0.01).value < choose_learning_rate((16, 128), 0.01).value == 0.01


def test_partly_annotated_cases_are_trained_and_scored_by_what_is_known():
    packaged, layer = read_packaged("segmentation"), read_packaged("segmentation", "modes/partly_labelled")
    used = {"partly_labelled", "mark", "+train::preparation::transforms", "validate::preprocessing"}
    assert set(layer) == used and layer["+train::preparation::transforms"] == ["@mark"]
    assert choose_partial(make_fingerprint(), packaged, layer) == {}
    found = choose_partial(make_fingerprint(partly_labelled=3), packaged, layer)
    assert found["partly_labelled"].value is True
    steps = found["train::preparation::transforms"].value
    assert steps == [*packaged["train"]["preparation"]["transforms"], layer["mark"]]
    assert found["validate::preprocessing"].value == {
        "_target_": "Compose",
        "transforms": f"$list(@preprocessing.transforms) + [@train::preparation::transforms::{len(steps) - 1}]",
    }
    assert all("3 cases" in choice.reason for choice in found.values())


# The schedule


def test_steps_follow_from_the_number_of_cases_within_bounds():
    assert wanted_steps(make_fingerprint(training=100), 2, cuda=False) == 6000
    assert wanted_steps(make_fingerprint(training=5), 2, cuda=False) == 1200
    assert wanted_steps(make_fingerprint(training=5000), 2, cuda=False) == 10_000
    assert wanted_steps(make_fingerprint(training=100), 2, True, seen=0.01) == 60_000


def test_the_plans_own_time_is_reserved():
    made, timing = make_fingerprint(training=40), Timing(0.3, 0.5, 1.0)
    later = timing._replace(planning=50.0)
    assert reserved_seconds(made, later, 5) == reserved_seconds(made, timing, 5) + 50
    first, second = (
        choose_schedule(made, 2, Budget(8, minutes=10), found)["epochs"].value for found in (timing, later)
    )
    assert (first - second) * 20 * 0.3 == pytest.approx(50, abs=6)


def test_an_epoch_has_full_batches_alone_where_one_is_full():
    assert [steps_per_epoch(make_fingerprint(training=count), 4) for count in (3, 4, 11, 12)] == [1, 1, 2, 3]


def test_epochs_fill_the_minutes_and_no_more():
    made = make_fingerprint(training=40)
    timing = Timing(0.3, 0.5, 1.0)
    budget = Budget(8, minutes=6)
    found = choose_schedule(made, 2, budget, timing)
    steps = found["epochs"].value * 20
    validations = math.ceil(found["epochs"].value / found["val_interval"].value)
    assert f"beside {reserved_seconds(made, timing, validations):.0f} s" in found["epochs"].reason
    spent = steps * timing.step + reserved_seconds(made, timing, validations)
    assert steps >= LEAST_STEPS["segmentation"] and 0.8 * 360 < spent <= 360
    assert choose_schedule(made, 2, Budget(8), timing)["epochs"].value == 120
    assert choose_schedule(made, 2, Budget(8, minutes=500), timing)["epochs"].value == 120


def test_no_more_validations_run_than_are_told_and_reserved():
    made, told = make_fingerprint(training=200), set()
    for minutes in range(6, 60):
        found = choose_schedule(made, 2, Budget(8, minutes=minutes), Timing(0.3, 0.1, 0.2))
        epochs, interval = found["epochs"].value, found["val_interval"].value
        run = epochs // interval + (epochs % interval > 0)  # training validates after the last epoch too
        assert run <= VALIDATIONS[0] and found["val_interval"].reason.startswith(f"{run} validations of")
        assert f"reading, {run} validations and" in found["epochs"].reason
        told.add(epochs % interval > 0)
    assert told == {True, False}


def test_what_is_chosen_after_training_is_one_more_pass_over_the_validation_cases():
    timing = Timing(0.3, 0.5, 1.0)
    for task in ("segmentation", "classification"):
        made = dataclasses.replace(make_fingerprint(training=40), task=task)
        extra = reserved_seconds(made, timing._replace(validation_case=2.0), 3) - reserved_seconds(made, timing, 3)
        assert extra == pytest.approx((3 + 1) * made.cases["validation"] + made.cases["test"])


def test_a_whole_epoch_must_fit():
    made, timing = make_fingerprint(training=4000), Timing(0.1, 0.0, 0.0)
    with pytest.raises(
        TomokitError, match=r"3 minutes are too few .* 2000 are needed, for a network and a whole epoch"
    ):
        choose_schedule(made, 2, Budget(8, minutes=3), timing)
    assert choose_schedule(made, 2, Budget(8, minutes=5), timing)["epochs"].value == 1
    assert wanted_steps(make_fingerprint(training=30_000), 2, cuda=False) == 15_000
    assert step_target_seconds(3, made, 60, cuda=False) == pytest.approx((0.92 * 180 - 60) / 2200)


def test_a_step_may_take_what_the_least_steps_leave():
    made = make_fingerprint(training=40)
    assert step_target_seconds(None, made, 0, cuda=True) is None
    assert step_target_seconds(None, made, 0, cuda=False) == 1.0
    assert step_target_seconds(5, made, 60, cuda=False) == pytest.approx((0.92 * 300 - 60) / 1500)
    assert step_target_seconds(2, made, 60, cuda=False) == pytest.approx((0.92 * 120 - 60) / 660)
    assert step_target_seconds(0.1, made, 60, cuda=False) == 0


def test_too_few_minutes_are_told_with_what_would_do():
    made = make_fingerprint(training=40)
    timing = Timing(0.5, 0.5, 1.0)
    with pytest.raises(TomokitError, match="3 minutes are too few for made") as error:
        choose_schedule(made, 2, Budget(8, minutes=3), timing)
    enough = int(re.search(r"--minutes (\d+)", str(error.value)).group(1))
    assert choose_schedule(made, 2, Budget(8, minutes=enough), timing)["epochs"].value >= 30
    with pytest.raises(TomokitError, match="too few"):
        choose_schedule(made, 2, Budget(8, minutes=enough - 2), timing)


# Classification


def test_classified_volumes_are_held_whole_within_the_budget():
    small = make_fingerprint(task="classification", structures=(), labels={"0": "a", "1": "b"}, shape=(32, 30, 5))
    found = choose_image(small, CPU)
    assert found["image_size"].value == (32, 32, 5) and found["spacing"].value == (1, 1, 1)
    large = make_fingerprint(task="classification", structures=(), labels={"0": "a", "1": "b"}, shape=(512, 512, 200))
    sizes = [math.prod(choose_image(large, budget)["image_size"].value) for budget in (GPU, Budget(8), CPU)]
    assert sizes == sorted(sizes, reverse=True) and sizes[0] <= 128**3 and sizes[1] <= 48**3
    assert "whole volumes" in choose_image(large, CPU)["spacing"].reason
    assert choose_image(large, GPU)["network_def::network::block_inplanes"].value == [32, 64, 128, 256]


def test_memory_bounds_what_is_classified():
    made = make_fingerprint(
        task="classification", structures=(), labels={"0": "a", "1": "b"}, shape=(128, 128, 128), training=400
    )
    for memory in (8, 1, 0.1, 0.07):
        found = choose_image(made, Budget(memory, cuda=True))
        size, batch = found["image_size"].value, found["batch_size"].value
        assert image_memory_gb(size, batch, 32, 1, cuda=True) <= memory and batch == 8
        assert f"of {memory:.3g} GB" in found["image_size"].reason
    with pytest.raises(TomokitError, match=r"0.01 GB are too few: two images of 16 × 16 × 16 voxels.*--memory 0\.0"):
        choose_image(made, Budget(0.01, cuda=True))
    few = choose_image(made, Budget(0.062, cuda=True))
    assert 2 <= few["batch_size"].value < 8 and few["batch_size"].reason == "as many as fit into 0.062 GB"


# Writing


TEXT = """# head
epochs: 20
spacing: [2.5, 2.5, 2.5]   # mm
labels:
  "0": background

# about the network
network_def:
  _target_: Net
  filters:
    - 16
    - 32
  # a note
  heads: 2
train:
  loss: {_target_: A, loss: {_target_: B}}
  other: 1
"""


def test_keys_are_replaced_where_they_stand_with_their_reason_above():
    choices = {
        "spacing": Choice((1.0, 1.0, 2.0), "a reason that is told"),
        "labels": Choice({"0": "background", "1": "a: b"}, ""),
        "network_def::filters": Choice((8, 16), "narrow"),
        "train::loss": Choice({"_target_": "C"}, "word " * 40),
    }
    text = set_keys(TEXT, choices)
    content = yaml.safe_load(text)
    assert content["spacing"] == [1, 1, 2] and content["labels"] == {"0": "background", "1": "a: b"}
    assert content["network_def"] == {"_target_": "Net", "filters": [8, 16], "heads": 2}
    assert content["train"] == {"loss": {"_target_": "C"}, "other": 1} and content["epochs"] == 20
    assert "# a reason that is told\nspacing: [1.0, 1.0, 2.0]   # mm\n" in text
    assert "\n  # narrow\n  filters: [8, 16]\n  # a note\n" in text and "\n\n# about the network\n" in text
    assert max(map(len, text.splitlines())) <= 120


def test_keys_that_are_absent_are_all_named():
    with pytest.raises(TomokitError, match=r"lacks these keys(.|\n)*`speed` \(planned: 3\)(.|\n)*`train::rate`"):
        set_keys(TEXT, {"speed": Choice(3, ""), "train::rate": Choice(1, ""), "epochs": Choice(1, "")})


@pytest.mark.parametrize("task", ["segmentation", "classification"])
def test_the_packaged_text_comes_back_with_the_same_content(task):
    packaged = read_packaged(task)
    path = find_bundle(task) / "configs" / "train.yaml"
    keys = ("epochs", "labels", "network_def", "intensity", "train::loss", "train::optimizer", "validate::key_metric")
    value = {}
    for key in keys:
        first, *rest = key.split("::")
        value[key] = Choice(packaged[first][rest[0]] if rest else packaged[first], "same")
    assert yaml.safe_load(set_keys(path.read_text(), value)) == packaged


def test_a_plan_moves_into_an_empty_folder_and_the_folder_stays(tmp_path):
    staged, out = tmp_path / "staged", tmp_path / "out"
    (staged / "configs").mkdir(parents=True)
    (staged / "fingerprint.json").write_text("{}")
    out.mkdir()
    before = out.stat().st_ino  # of a mount point, which can't be renamed
    assert put_in_place(staged, out) is None
    assert out.stat().st_ino == before and (out / "configs").is_dir() and (out / "fingerprint.json").is_file()


def test_an_earlier_plan_that_can_not_be_moved_is_told(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EBUSY, "Device or resource busy")

    (tmp_path / "fingerprint.json").write_text("{}")
    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(TomokitError, match=r"earlier plan .* can't be moved to .*\.1 \(Device or .*give another --out"):
        put_in_place(tmp_path / "staged", tmp_path)


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(TomokitError, match="file is a file; give another --out"):
        check_target(tmp_path / "file")
    with pytest.raises(TomokitError, match="holds no earlier plan"):
        check_target(tmp_path)
    check_target(tmp_path / "new")


# From data to bundle


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sets")
    make_segmentation_set(folder / "ct", "CT", cases=8, test_cases=2, size=24, progress=False)
    make_classification_set(folder / "classes", "MRI", cases=10, test_cases=2, size=16, progress=False)
    return folder


@pytest.fixture(scope="module")
def planned(phantoms):
    return make_plan(phantoms / "ct", phantoms / "plans" / "ct")


def check_bundle(bundle):
    """Assert that a bundle has no finding and that all of its components can be built."""
    assert [finding for finding in lint_bundle(bundle) if finding.severity == "error"] == []
    parser = ConfigParser()
    parser.read_config(str(bundle / "configs" / "train.yaml"))
    for key in ("network", "train::trainer", "validate::evaluator"):
        assert parser.get_parsed_content(key) is not None
    return parser


def test_plan_is_a_whole_bundle(planned):
    files = {path.relative_to(planned.bundle).as_posix() for path in planned.bundle.rglob("*") if path.is_file()}
    stages = {f"configs/{name}.yaml" for name in ("train", "evaluate", "inference")}
    assert files == stages | {
        "configs/metadata.json",
        "configs/logging.conf",
        "docs/README.md",
        "fingerprint.json",
        "plan.json",
    }
    check_bundle(planned.bundle)
    assert not list(planned.bundle.parent.glob(".partial-*"))


def test_plan_stands_in_the_config_with_its_reasons(planned, phantoms):
    text = (planned.bundle / "configs" / "train.yaml").read_text()
    content = yaml.safe_load(text)
    assert content["dataset_dir"] == str(phantoms / "ct") and content["run_dir"] == "runs/ct"
    for key, choice in planned.choices.items():
        value = content
        for part in key.split("::"):
            value = value[part]
        assert value == json.loads(json.dumps(choice.value))
        assert choice.reason[:40] in " ".join(text.replace("# ", "").split())
    assert content["minimum_size"] == content["patch_size"]
    assert set(content) == set(read_packaged("segmentation"))


def test_plan_keeps_what_was_measured(planned):
    content = read_json(planned.bundle / "fingerprint.json")
    assert content["timing"]["seconds_per_step"] > 0
    assert content["timing"]["threads"] == torch.get_num_threads() and "device" in content["timing"]
    assert content["anisotropy"] == planned.fingerprint.anisotropy >= 1
    assert len(content["per_case"]) == 6 and content["structures"][0]["name"] == "liver"
    assert read_json(planned.bundle / "plan.json")["spacing"]["reason"]


def test_the_page_of_a_plan_quotes_commands_that_run_it(planned):
    text = (planned.bundle / "docs" / "README.md").read_text()
    make, run = text.split("```")[1].strip().splitlines()
    assert shlex.split(make) == ["make", "train", f"BUNDLE={planned.bundle}"]
    assert shlex.split(run)[:5] == ["python", "-m", "monai.bundle", "run", "--config_file"]
    assert Path(shlex.split(run)[5]).is_file() and len(shlex.split(run)) == 6


def test_metadata_tells_the_planned_intensity(planned, phantoms):
    content = read_json(planned.bundle / "configs" / "metadata.json")
    value, image = planned.choices["intensity"].value, content["network_data_format"]["inputs"]["image"]
    assert image["value_range"] == [value["b_min"], value["b_max"]] and image["format"] == "hounsfield"
    assert content["image_classes"].startswith(f"1 channel, intensities scaled to [{value['b_min']:g}, ")
    normal = Choice({"_target_": "NormalizeIntensityd", "keys": "image"}, "")
    made = dataclasses.replace(planned.fingerprint, modality=("T1", "T2"))
    write_bundle((phantoms / "mri", phantoms / "mri"), made, {**planned.choices, "intensity": normal}, {})
    content = read_json(phantoms / "mri" / "configs" / "metadata.json")
    image = content["network_data_format"]["inputs"]["image"]
    assert image["value_range"] == [] and image["format"] == "magnitude"
    assert content["image_classes"] == "2 channels, intensities of mean 0 and deviation 1"
    schema = bundles_folder() / "_layers" / "metadata_schema.json"
    monai.bundle.verify_metadata(str(phantoms / "mri" / "configs" / "metadata.json"), filepath=str(schema))


def test_plan_is_printed_with_the_next_command(planned, capsys):
    print_plan(planned)
    text = capsys.readouterr().out
    assert "patch_size: [" in text and f"next: make train BUNDLE={planned.bundle}" in text


def test_an_earlier_plan_is_moved_aside(planned, phantoms):
    out = phantoms / "plans" / "again"
    shutil.copytree(planned.bundle, out)
    (out / "mark").write_text("mine")
    again = make_plan(phantoms / "ct", out)
    assert again.moved == out.with_name("again.1") and (again.moved / "mark").is_file()
    assert not (out / "mark").exists()


def test_classes_are_planned_too(phantoms):
    plan = make_plan(phantoms / "classes", phantoms / "plans" / "classes")
    content = check_bundle(plan.bundle).get()
    assert content["image_size"] == [16, 16, 16] or max(content["image_size"]) <= 24
    assert content["intensity"]["_target_"] == "NormalizeIntensityd" and content["labels"]["1"] == "elongated"
    assert content["flip_axes"] == [0]
    parser = check_bundle(plan.bundle)
    dataset = parser.get_parsed_content("train::dataset")
    assert isinstance(dataset, CacheDataset) and {type(item["image"]) for item in dataset._cache} == {torch.Tensor}
    spatial, flip, noise = parser.get_parsed_content("train::augmentation").transforms
    assert spatial.spacing == tuple(content["spacing"])
    assert flip.axes == [0] and (noise.prob, noise.std_range) == (0.2, (0.0, 0.15))
    assert parser.get_parsed_content("train::trainer").prepare_batch.augmentation.transforms == (spatial, flip, noise)


def test_partly_annotated_cases_make_a_bundle(phantoms, tmp_path):
    shutil.copytree(phantoms / "ct", tmp_path / "part")
    content = read_json(tmp_path / "part" / "dataset.json")
    for entry in content["training"][:2]:
        file = nibabel.load(tmp_path / "part" / entry["label"])
        array = np.asarray(file.dataobj)
        nibabel.save(nibabel.Nifti1Image(np.where(array == 1, array, 0), file.affine), file.get_filename())
        entry["labelled"] = [1]
    (tmp_path / "part" / "dataset.json").write_text(json.dumps(content))
    (tmp_path / "part" / "splits.json").unlink()
    plan = make_plan(tmp_path / "part", tmp_path / "plan")
    assert plan.fingerprint.partly_labelled > 0
    parser = check_bundle(plan.bundle)
    assert parser.get("partly_labelled") is True
    dataset = parser.get_parsed_content("validate::dataset")
    assert isinstance(dataset, CacheDataset) and len(dataset._cache) == len(dataset) > 0
    assert all(isinstance(item["label"], torch.Tensor) for item in dataset._cache)
    assert min(float(item["label"].min()) for item in parser.get_parsed_content("train::dataset")._cache) < 0


def test_a_plan_in_the_folder_where_the_user_is(phantoms, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    plan = make_plan(phantoms / "ct", ".")
    assert plan.bundle == tmp_path / "here" and Path("configs/train.yaml").is_file()
    assert yaml.safe_load(Path("configs/train.yaml").read_text())["run_dir"] == "runs/here"
    assert [path.name for path in tmp_path.iterdir()] == ["here"]


def test_a_step_that_needs_more_memory_than_there_is_is_told(phantoms, tmp_path, monkeypatch):
    def run_out(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB.\nMore.")

    monkeypatch.setattr("tomokit.planning.making.measure_training", run_out)
    text = r"keep to 3 GB ran out of memory \(CUDA out of memory. Tried to allocate 9 GiB.\); give a lower --memory"
    with pytest.raises(TomokitError, match=text):
        make_plan(phantoms / "ct", tmp_path / "plan", memory_gb=3)
    with pytest.raises(TomokitError, match="can't allocate memory"), within_memory(1):
        torch.empty(10**15)
    with pytest.raises(RuntimeError, match="something else"), within_memory(1):
        raise RuntimeError("something else")


def test_too_few_minutes_leave_nothing_behind(phantoms, tmp_path):
    with pytest.raises(TomokitError, match=r"0.1 minutes are too few for .*ct: .* give at least --minutes \d+"):
        make_plan(phantoms / "ct", tmp_path / "plan", minutes=0.1)
    assert list(tmp_path.iterdir()) == []


def test_impossible_arguments_are_refused(phantoms, tmp_path):
    with pytest.raises(TomokitError, match="--memory must be a positive number, got 0"):
        make_plan(phantoms / "ct", tmp_path / "plan", memory_gb=0)
    with pytest.raises(TomokitError, match="--minutes must be a positive number, got nan"):
        make_plan(phantoms / "ct", tmp_path / "plan", minutes=math.nan)
    with pytest.raises(TomokitError, match="no data set 'nothing'"):
        make_plan("nothing", tmp_path / "plan")
    (tmp_path / "plan").mkdir()
    (tmp_path / "plan" / "notes.txt").write_text("")
    with pytest.raises(TomokitError, match="holds no earlier plan"):
        make_plan(phantoms / "ct", tmp_path / "plan")


def test_names_that_a_config_or_make_can_not_hold_are_refused(phantoms, tmp_path):
    (tmp_path / "a#b").mkdir()
    shutil.copy(phantoms / "ct" / "dataset.json", tmp_path / "a#b")  # of which no image is opened
    with pytest.raises(TomokitError, match=r"the data set '.*a#b': a config would read it as '.*a::b'; rename it"):
        make_plan(tmp_path / "a#b", tmp_path / "plan")
    with pytest.raises(TomokitError, match=r"--split 'x#1.json': a config would read it as 'x::1.json'"):
        make_plan(phantoms / "ct", tmp_path / "plan", split="x#1.json")
    for name, sign in (("a#b", "'#'"), ("my plan", "' '"), ("$(x)", r"'\$' '\(' '\)'"), ("it's", '"\'"')):
        with pytest.raises(TomokitError, match=rf"--out .* holds {sign}, which make or a shell would not take"):
            make_plan(phantoms / "ct", tmp_path / "plans" / name)


def test_memory_is_part_of_what_is_free_where_none_is_given(monkeypatch):
    assert 0 < default_memory_gb() < 1000
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (20_000_000_000, 80_000_000_000))
    assert default_memory_gb() == pytest.approx(18)
    assert size_at(make_fingerprint(), (2.0, 2.0, 4.0)) == (64, 64, 32)
