"""Each fault planted in a copy of a small clean set is found, with its case named, and nothing else is."""

import gzip
import json
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest

from tomokit import phantoms
from tomokit.check_report import print_report, summarise, write_page
from tomokit.checks import KINDS, check_dataset, render_kinds
from tomokit.datasets import read_entries
from tomokit.splits import Split, write_split
from tomokit.volumes import write_volume

CASES = 10
DOCS = Path(__file__).parents[1] / "docs" / "findings.md"


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """Return a folder with a small clean CT set, an MRI set, and a set of two classes."""
    root = tmp_path_factory.mktemp("sets")
    phantoms.make_segmentation_set(root / "ct", "CT", cases=CASES, test_cases=2, size=32, progress=False)
    phantoms.make_segmentation_set(root / "mri", "MRI", cases=CASES, test_cases=2, size=32, progress=False)
    phantoms.make_classification_set(root / "classes", "CT", cases=CASES, test_cases=2, size=24, progress=False)
    return root


class Plant:
    """A copy of a clean set, with helpers to damage it."""

    def __init__(self, folder):
        self.folder = folder

    def path(self, case=3, kind="images"):
        return next(self.folder.glob(f"{kind}*/case_{case:03d}.nii.gz"))

    def load(self, case=3, kind="images"):
        image = nibabel.load(self.path(case, kind))
        return np.asarray(image.dataobj), image.affine

    def save(self, array, affine, case=3, kind="images"):
        write_volume(self.path(case, kind), array, affine)

    def change(self, edit, case=3, kind="images"):
        array, affine = self.load(case, kind)
        self.save(edit(array), affine, case, kind)

    def move(self, edit, case=3, kinds=("labels",)):
        for kind in kinds:
            array, affine = self.load(case, kind)
            self.save(array, edit(affine.copy()), case, kind)

    def describe(self, edit, name="dataset.json"):
        content = json.loads((self.folder / name).read_text())
        edit(content)
        (self.folder / name).write_text(json.dumps(content))

    def entry(self, content, case=3):
        entries = content["training"] + content["test"]
        return next(entry for entry in entries if f"case_{case:03d}" in entry["image"])

    def set_header(self, case=3, kind="images", **fields):
        path = self.path(case, kind)
        raw = bytearray(gzip.decompress(path.read_bytes()))
        header = nibabel.Nifti1Header(bytes(raw[:348]), check=False)
        for name, value in fields.items():
            header[name] = value
        raw[:348] = header.binaryblock
        path.write_bytes(gzip.compress(bytes(raw)))

    def add_records(self, change):
        rng = np.random.default_rng(0)
        records = [{"weight_kg": float(rng.normal(75, 8)), "crp": float(rng.lognormal(1, 0.4))} for _ in range(CASES)]

        def edit(content):
            for number, record in enumerate(records):
                self.entry(content, number)["clinical"] = change(number, record)

        self.describe(edit)


@pytest.fixture
def plant(sets, tmp_path):
    def copy(name="ct"):
        shutil.copytree(sets / name, tmp_path / name)
        return Plant(tmp_path / name)

    return copy


def found(folder):
    return {(finding.case, finding.kind) for finding in check_dataset(folder, progress=False).findings}


@pytest.mark.parametrize(("modality", "size", "seed"), [("MRI", 24, 0), ("CT", 24, 1), ("MRI", 28, 2), ("CT", 16, 0)])
def test_small_volumes_have_no_finding_by_chance(tmp_path, modality, size, seed):
    phantoms.make_segmentation_set(tmp_path, modality, cases=12, test_cases=3, size=size, seed=seed, progress=False)
    assert check_dataset(tmp_path, progress=False).findings == []


@pytest.mark.parametrize("name", ["ct", "mri", "classes"])
def test_a_clean_phantom_set_has_no_finding(sets, name):
    report = check_dataset(sets / name, progress=False)
    assert len(report.cases) == CASES and report.exit_code == 0
    assert report.findings == []


def shear(affine):
    affine[:3, 2] += 0.1 * affine[:3, 1]
    return affine


def flip_axis(affine):
    affine[:3, 0] *= -1
    return affine


def shift(affine):
    affine[0, 3] += 7
    return affine


def scale(factor):
    def edit(affine):
        affine[:3, :3] *= factor
        return affine

    return edit


def add_island(label):
    label = label.copy()
    label[label == 3] = 1
    label[0, 0, 0] = 1
    return label


def mirror(array, affine):
    """Mirror an array left to right in the patient, whatever its axes are."""
    world_x = int(np.abs(affine[0, :3]).argmax())
    return np.flip(array, world_x)


def truncate(plant):
    path = plant.path()
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip_bits(plant):
    path = plant.path(kind="labels")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(bytes(content))


def swap_label(plant):
    array, affine = plant.load(kind="labels")
    plant.save(mirror(array, affine), affine, kind="labels")


def roll_label(plant):
    plant.change(lambda a: np.roll(a, 5, 0), kind="labels")


def exchange_labels(plant):
    for case, other in ((3, 5), (5, 3)):
        plant.path(case, "labels").rename(plant.folder / f"{other}.tmp")
    for case in (3, 5):
        (plant.folder / f"{case}.tmp").rename(plant.folder / "labelsTr" / f"case_{case:03d}.nii.gz")
    for case in (3, 5):
        array, _ = plant.load(case, "labels")
        plant.save(array, plant.load(case)[1], case, "labels")


def copy_image(plant, source, target):
    array, affine = plant.load(source)
    label, _ = plant.load(source, "labels")
    plant.save(array, affine, target)
    plant.save(np.where(label == 3, 1, label).astype(np.uint8), affine, target, "labels")


def encode_otherwise(plant, source, target):
    array, affine = plant.load(source)
    label, _ = plant.load(source, "labels")
    turned = np.flip(array * np.float32(0.5) - 100, 1)  # another scale, mirrored, stored as float32
    plant.save(turned.astype(np.float32), affine, target)
    plant.save(np.flip(np.where(label == 3, 1, label).astype(np.uint8), 1), affine, target, "labels")


def no_lesions(plant):
    for case in range(CASES):
        plant.change(lambda a: np.where(a == 3, 1, a).astype(np.uint8), case, "labels")


def leave_out(content):
    content["training"] = [entry for entry in content["training"] if "case_003" not in entry["image"]]


def set_key(key, value, case=3):
    def edit(plant):
        plant.describe(lambda content: plant.entry(content, case).__setitem__(key, value))

    return edit


FAULTS = {
    "missing image": (lambda p: p.path().unlink(), {("case_003", "missing_file")}),
    "missing label": (lambda p: p.path(kind="labels").unlink(), {("case_003", "missing_file")}),
    "stray file": (
        lambda p: shutil.copy(p.path(), p.folder / "imagesTr" / "case_900.nii.gz"),
        {("case_900", "orphan")},
    ),
    "entry lost": (
        lambda p: (p.describe(leave_out), (p.folder / "splits.json").unlink()),
        {("case_003", "orphan")},
    ),
    "label not listed": (
        lambda p: p.describe(lambda content: p.entry(content).pop("label")),
        {("case_003", "orphan")},
    ),
    "truncated": (truncate, {("case_003", "unreadable")}),
    "flipped bits": (flip_bits, {("case_003", "unreadable")}),
    "not an image": (lambda p: p.path().write_bytes(b"no image"), {("case_003", "unreadable")}),
    "complex": (lambda p: p.change(lambda a: a.astype(np.complex64)), {("case_003", "unreadable")}),
    "another format": (
        lambda p: (
            __import__("SimpleITK").WriteImage(
                __import__("SimpleITK").ReadImage(str(p.path())), str(p.folder / "imagesTr" / "case_003.mha")
            ),
            p.path().unlink(),
            set_key("image", "imagesTr/case_003.mha")(p),
        ),
        {("case_003", "format")},
    ),
    "four axes": (lambda p: p.change(lambda a: np.stack([a, a], -1)), {("case_003", "dimension")}),
    "two axes": (lambda p: p.change(lambda a: a[0]), {("case_003", "dimension")}),
    "a channel too many": (
        set_key("image", ["imagesTr/case_003.nii.gz", "imagesTr/case_003.nii.gz"]),
        {("case_003", "channel_count")},
    ),
    "cut label": (lambda p: p.change(lambda a: a[:-1], kind="labels"), {("case_003", "shape_mismatch")}),
    "label of another spacing": (lambda p: p.move(scale(1.01)), {("case_003", "spacing_mismatch")}),
    "label of another orientation": (lambda p: p.move(flip_axis), {("case_003", "orientation_mismatch")}),
    "label elsewhere": (lambda p: p.move(shift), {("case_003", "affine_mismatch")}),
    "pixdim of zero": (lambda p: p.set_header(pixdim=[1, 2, 0, 2, 0, 0, 0, 0]), {("case_003", "spacing_invalid")}),
    "negative pixdim": (lambda p: p.set_header(pixdim=[1, 2, -2, 2, 0, 0, 0, 0]), {("case_003", "spacing_invalid")}),
    "singular affine": (lambda p: p.set_header(srow_x=[0, 0, 0, 0]), {("case_003", "spacing_invalid")}),
    "50 mm": (lambda p: p.move(scale(20), kinds=("images", "labels")), {("case_003", "spacing_implausible")}),
    "in metres": (lambda p: p.set_header(xyzt_units=1), {("case_003", "spacing_implausible")}),
    "pixdim against affine": (
        lambda p: p.set_header(pixdim=[1, 3.9, 3.9, 3.9, 0, 0, 0, 0]),
        {("case_003", "header_inconsistent")},
    ),
    "gantry tilt": (lambda p: p.move(shear, kinds=("images", "labels")), {("case_003", "not_orthogonal")}),
    "NaN": (
        lambda p: p.change(lambda a: np.where(a > 300, np.nan, a.astype(np.float32))),
        {("case_003", "not_finite")},
    ),
    "infinity": (
        lambda p: p.change(lambda a: np.where(a > 300, np.inf, a.astype(np.float32))),
        {("case_003", "not_finite")},
    ),
    "constant": (lambda p: p.change(lambda a: np.full_like(a, 40)), {("case_003", "constant_image")}),
    "stored values": (lambda p: p.change(lambda a: a + 1024), {("case_003", "hu_not_rescaled")}),
    "stored values with an odd voxel": (
        lambda p: p.change(lambda a: np.where(np.arange(a.size).reshape(a.shape) == 5, -3, a + 1024)),
        {("case_003", "hu_not_rescaled")},
    ),
    "shifted by 1000": (lambda p: p.change(lambda a: a + 1000), {("case_003", "hu_not_rescaled")}),
    "scaled to 1": (lambda p: p.change(lambda a: (a / 1000).astype(np.float32)), {("case_003", "hu_not_rescaled")}),
    "qform elsewhere": (
        lambda p: p.set_header(qoffset_x=40.0),
        {("case_003", "header_inconsistent")},
    ),
    "grey values": (
        lambda p: p.change(lambda a: np.clip((a + 160) / 400 * 255, 0, 255).astype(np.uint8)),
        {("case_003", "hu_not_rescaled")},
    ),
    "padding": (
        lambda p: p.change(lambda a: np.where(np.indices(a.shape)[0] < 1, -3024, a)),
        {("case_003", "hu_out_of_range")},
    ),
    "resampled label": (
        lambda p: p.change(lambda a: a * np.float32(0.5), kind="labels"),
        {("case_003", "label_fractional")},
    ),
    "value outside": (
        lambda p: p.change(lambda a: np.where(a == 3, 7, a).astype(np.uint8), kind="labels"),
        {("case_003", "label_outside_map")},
    ),
    "negative value": (
        lambda p: p.change(lambda a: np.where(a == 3, -1, a).astype(np.int16), kind="labels"),
        {("case_003", "label_outside_map")},
    ),
    "empty label": (lambda p: p.change(np.zeros_like, kind="labels"), {("case_003", "label_empty")}),
    "no lesion drawn": (
        lambda p: p.change(lambda a: np.where(a == 3, 1, a).astype(np.uint8), kind="labels"),
        {("case_003", "class_missing")},
    ),
    "nobody has a lesion": (no_lesions, {(None, "class_missing")}),
    "stray voxel": (
        lambda p: (no_lesions(p), p.change(add_island, kind="labels")),
        {(None, "class_missing"), ("case_003", "label_islands")},
    ),
    "mirrored label": (swap_label, {("case_003", "left_right_swap")}),
    "moved label": (roll_label, {("case_003", "label_does_not_fit")}),
    "exchanged labels": (
        exchange_labels,
        {("case_003", "label_does_not_fit"), ("case_005", "label_does_not_fit")},
    ),
    "lateral names": (
        lambda p: p.describe(lambda content: content["labels"].update({"1": "left lobe", "2": "right_lobe"})),
        {(None, "lateral_labels")},
    ),
    "same label": (
        lambda p: p.save(p.load(4, "labels")[0], p.load()[1], kind="labels"),
        {("case_003", "duplicate_label"), ("case_004", "duplicate_label")},
    ),
    "patient on two sides": (
        set_key("patient", "patient_009"),
        {("case_003", "patient_leak"), ("case_009", "patient_leak")},
    ),
    "split names a lost case": (
        lambda p: p.describe(lambda content: content["folds"][0]["training"].append("case_077"), "splits.json"),
        {(None, "stale_split")},
    ),
    "split is no split": (lambda p: (p.folder / "splits.json").write_text("{}"), {(None, "stale_split")}),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_found_and_nothing_else(plant, name):
    edit, expected = FAULTS[name]
    copy = plant()
    edit(copy)
    assert found(copy.folder) == expected


def two_of_a_part(folder, same):
    """Return two cases on one side of the split, or on two."""
    fold = json.loads((folder / "splits.json").read_text())["folds"][0]
    training = sorted(fold["training"])
    names = (training[0], training[1]) if same else (training[0], sorted(fold["test"])[0])
    return [int(name.removeprefix("case_")) for name in names]


def test_a_copied_image_is_a_duplicate_on_one_side_and_a_leak_across(plant, sets):
    def pair_of(kind):
        return {(f"case_{case:03d}", kind) for case in (one, other)}

    one, other = two_of_a_part(sets / "ct", same=True)
    copy = plant()
    copy_image(copy, one, other)
    assert {pair for pair in found(copy.folder) if pair[1] != "class_missing"} == pair_of("duplicate_image")
    one, other = two_of_a_part(sets / "ct", same=False)
    shutil.rmtree(copy.folder)
    copy = plant()
    copy_image(copy, one, other)
    assert {pair for pair in found(copy.folder) if pair[1] != "class_missing"} == pair_of("image_leak")


def test_a_disguised_copy_across_a_split_is_a_leak(plant, sets):
    one, other = two_of_a_part(sets / "mri", same=False)
    copy = plant("mri")
    encode_otherwise(copy, one, other)
    kinds = {pair for pair in found(copy.folder) if pair[1] not in ("class_missing", "left_right_swap")}
    assert kinds == {(f"case_{case:03d}", "near_duplicate_leak") for case in (one, other)}


def test_another_range_of_intensities_is_another_domain(plant):
    copy = plant("mri")
    copy.change(lambda a: a.astype(np.float32) * 1e4)
    assert found(copy.folder) == {("case_003", "intensity_domains")}


def test_a_missing_class_is_seen_beside_an_empty_label(plant):
    copy = plant()
    copy.change(np.zeros_like, 0, "labels")
    copy.change(lambda a: np.where(a == 3, 1, a).astype(np.uint8), kind="labels")
    assert found(copy.folder) == {("case_000", "label_empty"), ("case_003", "class_missing")}


def test_a_copy_is_a_leak_whatever_became_of_its_intensities(plant, sets):
    one, other = two_of_a_part(sets / "ct", same=False)
    copy = plant()
    copy_image(copy, one, other)
    copy.change(lambda a: a + 1024, other)
    kinds = {kind for case, kind in found(copy.folder) if case in (f"case_{one:03d}", f"case_{other:03d}")}
    assert kinds - {"class_missing"} == {"hu_not_rescaled", "near_duplicate_leak"}


def test_a_copy_in_the_robustness_set_is_a_leak(plant):
    copy = plant()
    copy.describe(lambda content: copy.entry(content, 3).update(group="b"))
    entries = read_entries(copy.folder)
    fold = json.loads((copy.folder / "splits.json").read_text())["folds"][0]
    fold = {part: [name for name in names if name != "case_003"] for part, names in fold.items()}
    write_split(copy.folder / "splits.json", Split("by hand", 0, None, [fold], ["case_003"]), entries)
    assert found(copy.folder) == set()
    other = int(fold["training"][0].removeprefix("case_"))
    copy_image(copy, other, 3)
    leaks = {pair for pair in found(copy.folder) if pair[1] == "image_leak"}
    assert leaks == {("case_003", "image_leak"), (f"case_{other:03d}", "image_leak")}


def test_the_second_channel_is_compared_too(plant):
    copy = plant("mri")

    def add_channel(content):
        for case in range(CASES):
            entry = copy.entry(content, case)
            array, affine = copy.load(case)
            second = array + np.random.default_rng(case).normal(0, np.ptp(array) / 4, array.shape)
            path = entry["image"].replace(".nii.gz", "_0001.nii.gz")
            write_volume(copy.folder / path, second.astype(np.float32), affine)
            entry["image"] = [entry["image"], path]
        content["modality"] = {"0": "T1", "1": "T2"}

    copy.describe(add_channel)
    assert found(copy.folder) == set()
    folder = copy.folder / "imagesTr"
    nibabel_image = nibabel.load(folder / "case_001_0001.nii.gz")
    write_volume(folder / "case_003_0001.nii.gz", np.asarray(nibabel_image.dataobj), copy.load(3)[1])
    kinds = {pair for pair in found(copy.folder) if pair[1] in ("duplicate_image", "image_leak")}
    assert {case for case, _ in kinds} == {"case_001", "case_003"}
    shutil.copy(folder / "case_004.nii.gz", folder / "case_004_0001.nii.gz")
    assert ("case_004", "duplicate_image") in found(copy.folder)


def test_a_class_nobody_has_and_a_split_drawn_for_other_classes(plant):
    copy = plant("classes")
    own = json.loads((copy.folder / "dataset.json").read_text())["training"][3]["label"]
    copy.describe(lambda content: content["labels"].update({"2": "round"}))
    assert found(copy.folder) == {(None, "class_missing")}
    copy.describe(lambda content: content["labels"].pop("2"))
    set_key("label", 1 - own)(copy)
    assert found(copy.folder) == {(None, "stale_split")}


def test_a_class_outside_the_map_is_named(plant):
    copy = plant("classes")
    set_key("label", 5)(copy)
    assert found(copy.folder) == {("case_003", "label_outside_map")}
    set_key("label", [1, 0, 1])(copy)
    assert ("case_003", "label_outside_map") in found(copy.folder)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda number, record: record, set()),
        (lambda number, record: {**record, "crp": None} if number == 3 else record, {("case_003", "clinical_missing")}),
        (
            lambda number, record: {**record, "crp": float("nan")} if number == 3 else record,
            {("case_003", "clinical_missing")},
        ),
        (lambda number, record: {} if number == 3 else record, {("case_003", "clinical_missing")}),
        (lambda number, record: {**record, "crp": None if number else 1.0}, {(None, "clinical_missing")}),
        (
            lambda number, record: {**record, "crp": "inf"} if number == 3 else record,
            {("case_003", "clinical_infinite")},
        ),
        (
            lambda number, record: {**record, "weight_kg": record["weight_kg"] * 1000} if number == 3 else record,
            {("case_003", "clinical_unit")},
        ),
    ],
)
def test_clinical_fields_are_compared(plant, change, expected):
    copy = plant("classes")
    copy.add_records(change)
    assert found(copy.folder) == expected


def test_a_reversed_order_of_structures_is_a_swap(plant):
    copy = plant()
    for kind in ("images", "labels"):  # the whole scan mirrored: the label fits, the liver lies on the left
        array, affine = copy.load(kind=kind)
        copy.save(mirror(array, affine), affine, kind=kind)
    assert found(copy.folder) == {("case_003", "left_right_swap")}


def test_every_kind_is_planted():
    planted = {kind for _, expected in FAULTS.values() for _, kind in expected}
    elsewhere = {"duplicate_image", "image_leak", "near_duplicate_leak", "intensity_domains", "unusable"}
    clinical = {"clinical_missing", "clinical_infinite", "clinical_unit"}
    modalities = {"modality_absent", "own_grids"}  # test_modalities
    assert planted | elsewhere | clinical | modalities == set(KINDS)


def test_an_unusable_set_is_told_with_exit_2(plant, tmp_path):
    report = check_dataset(tmp_path / "nowhere", progress=False)
    assert report.exit_code == 2 and report.as_json()["cases"] == 0
    assert "no data set" in report.findings[0].evidence
    copy = plant()
    for path in copy.folder.glob("images*/*"):
        path.write_bytes(b"")
    report = check_dataset(copy.folder, progress=False)
    assert report.exit_code == 2 and report.findings[0] == (None, "unusable", "none of 10 cases could be read")
    (copy.folder / "dataset.json").write_text("{")
    assert found(copy.folder) == {(None, "unusable")}


def test_the_command_writes_json_and_a_page_and_exits_by_the_gravest(plant, tmp_path):
    copy = plant()
    truncate(copy)
    json_path, page = tmp_path / "found.json", tmp_path / "page.html"
    command = [str(Path(sys.executable).with_name("tomokit")), "check", str(copy.folder), "--json", str(json_path)]
    run = subprocess.run([*command, "--html", str(page)], capture_output=True, text=True, check=False)
    assert run.returncode == 1, run.stderr
    assert "error unreadable" in run.stdout and "1 error and 0 warnings in 1 case" in run.stdout
    content = json.loads(json_path.read_text())
    assert content["cases"] == CASES
    assert [set(row) for row in content["findings"]] == [{"case", "kind", "severity", "evidence", "remedy"}]
    text = page.read_text()
    assert text.count('<div class="card') == CASES and text.index("case_003") < text.index("case_000")
    assert text.count("data:image/png;base64") == CASES - 1 and text.count("<svg") == 4


def test_the_page_escapes_what_a_data_set_says(plant, tmp_path):
    copy = plant()
    copy.describe(lambda content: content.update(name="<script>alert(1)</script>"))
    write_page(check_dataset(copy.folder, progress=False), tmp_path / "page.html")
    assert "<script>" not in (tmp_path / "page.html").read_text()


def test_many_findings_of_a_kind_are_shortened(plant, capsys):
    copy = plant()
    for case in range(8):
        copy.change(lambda a: a + 1024, case)
    report = check_dataset(copy.folder, progress=False)
    print_report(report)
    shown = capsys.readouterr().out
    assert "error hu_not_rescaled × 8" in shown and "… and 4 more: case_004, case_005" in shown
    assert summarise(report).startswith("phantom-ct: 10 cases, 8 errors and 0 warnings in 8 cases")


def test_the_documented_kinds_are_the_known_ones():
    assert render_kinds() in DOCS.read_text()


@pytest.mark.parametrize(
    "entry",
    [
        {},
        {"patient": "p"},
        {"image": "a.nii.gz", "label": {"a": 1}},
        {"image": "a.nii.gz", "label": [[1], [0]]},
        {"image": "a.nii.gz", "clinical": [1]},
        {"image": "a\0b.nii.gz", "label": 1},
    ],
)
def test_a_malformed_entry_makes_a_set_unusable_without_a_traceback(plant, entry):
    copy = plant()
    copy.describe(lambda content: content["training"].append(entry))
    (finding,) = check_dataset(copy.folder, progress=False).findings
    assert finding.kind == "unusable" and "`training` entry 8" in finding.evidence


def test_names_too_long_and_lists_of_another_length_are_findings(plant):
    copy = plant("classes")
    set_key("label", [1, 0, 1])(copy)
    copy.describe(lambda content: content.update(labels={"1": "a", "2": "b"}))
    assert ("case_003", "label_outside_map") in found(copy.folder)
    copy = plant("ct")
    set_key("image", f"imagesTr/{'x' * 300}.nii.gz")(copy)
    assert ("x" * 300, "unreadable") in found(copy.folder)


def test_a_huge_label_value_takes_no_memory(plant):
    copy = plant()
    copy.describe(lambda content: content.pop("labels"))
    copy.change(lambda a: np.where(a == 3, np.uint32(2_000_000_000), a.astype(np.uint32)), kind="labels")
    assert found(copy.folder) == {("case_003", "label_outside_map")}
