"""Whatever keeps the preprocessed cases gives the same items, and nothing stale."""

import functools
import json
import logging
import os
import platform
import re
import signal
import subprocess
import sys
import time
import types
from collections import namedtuple
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from bundle_runs import SMALL_UNET, same_weights, train, weights
from monai.data import CacheDataset, DataLoader, Dataset, PersistentDataset
from monai.data.utils import set_rnd
from monai.transforms import (
    Compose,
    CropForegroundd,
    Lambdad,
    LoadImaged,
    MapTransform,
    NormalizeIntensityd,
    Orientationd,
    RandCropByPosNegLabeld,
    RandGaussianNoised,
    RandSpatialCropd,
    ResizeWithPadOrCropd,
    ScaleIntensityRanged,
    Spacingd,
    SpatialPadd,
)
from test_files import on_a_small_disk

from tomokit import caching, phantoms
from tomokit.caching import (
    DiskDataset,
    EntryHash,
    cache_root,
    cached_dataset,
    count_bytes,
    describe,
    estimate_bytes,
    free_memory,
    hash_transforms,
    preprocess,
)
from tomokit.errors import TomokitError
from tomokit.transforms import RandPatchByLabelClassesd

KEYS = ["image", "label"]
GIB = 1 << 30


def load() -> LoadImaged:
    return LoadImaged(KEYS, reader="NibabelReader", ensure_channel_first=True)


def make_transform(spacing: float = 2.0, crop: int = 8) -> Compose:
    return Compose(
        [
            load(),
            Orientationd(KEYS, axcodes="RAS", labels=None),
            Spacingd(KEYS, pixdim=[spacing] * 3, mode=["bilinear", "nearest"]),
            ScaleIntensityRanged("image", a_min=-1, a_max=1, b_min=0, b_max=1, clip=True),
            SpatialPadd(KEYS, spatial_size=[crop] * 3),
            RandCropByPosNegLabeld(KEYS, label_key="label", spatial_size=[crop] * 3, num_samples=2),
            RandGaussianNoised("image", prob=0.5),
        ]
    )


@pytest.fixture
def write_cases(write_volume):
    """Return a function that writes cases of the given shapes (voxels) and spacings (mm) and returns their entries."""

    def write(sizes: list[tuple[tuple[int, int, int], tuple[float, float, float]]]) -> list[dict]:
        rng = np.random.default_rng(0)
        entries = []
        for number, (shape, spacing) in enumerate(sizes):
            affine = np.diag([-spacing[0], *spacing[1:], 1.0])
            image = rng.normal(size=shape).astype(np.float32)
            paths = [
                write_volume(f"{key}s/c{number}.nii", a, affine)
                for key, a in zip(KEYS, (image, (image > 1).astype(np.uint8)), strict=True)
            ]
            entries.append({"case": f"c{number}", "patient": f"p{number}", **dict(zip(KEYS, paths, strict=True))})
        return entries

    return write


@pytest.fixture
def cases(write_cases) -> list[dict]:
    return write_cases([((12 + i, 14, 10), (2.0, 2.0, 3.0 - 0.3 * i)) for i in range(4)])


def rewrite(path: str, change) -> None:
    """Change a volume's voxels, its file's size and time of change as they were."""
    before = Path(path).stat()
    image = nibabel.load(path)
    content = change(np.asarray(image.dataobj).copy())  # not the mapped file that is overwritten
    nibabel.save(nibabel.Nifti1Image(content, image.affine, image.header), path)
    assert Path(path).stat().st_size == before.st_size
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def told_by(caplog) -> list[str]:
    return [record.message for record in caplog.records if record.name == "tomokit.caching"]


def draw(dataset: Dataset, seed: int = 5) -> list[dict]:
    set_rnd(dataset, seed=seed)
    torch.manual_seed(seed)
    return [item for index in range(len(dataset)) for item in dataset[index]]


def assert_same(ours: list[dict], theirs: list[dict]) -> None:
    assert len(ours) == len(theirs) > 0
    for a, b in zip(ours, theirs, strict=True):
        assert a.keys() == b.keys() and a["case"] == b["case"]
        for key in KEYS:
            assert type(a[key]) is type(b[key]) and a[key].dtype == b[key].dtype
            assert torch.equal(a[key], b[key]) and torch.equal(a[key].affine, b[key].affine)
            assert a[key].meta.keys() == b[key].meta.keys()
            assert len(a[key].applied_operations) == len(b[key].applied_operations)
            assert a[key].meta["filename_or_obj"] == b[key].meta["filename_or_obj"]


# What is given


def test_three_ways_give_the_same_items_bit_by_bit(cases, tmp_path):
    expected = draw(cached_dataset(cases, make_transform(), "none"))
    assert not torch.equal(expected[0]["image"], draw(cached_dataset(cases, make_transform(), "none"), 6)[0]["image"])
    for cache, kind in (("memory", CacheDataset), ("disk", PersistentDataset), ("disk", PersistentDataset)):
        dataset = cached_dataset(cases, make_transform(), cache, tmp_path / "cache")
        assert isinstance(dataset, kind)
        assert_same(draw(dataset), expected)
        assert_same(draw(dataset), expected)  # a later epoch
    assert len(list((tmp_path / "cache").iterdir())) == len(cases)


def test_steps_in_a_nested_compose_are_kept_too(cases):
    made: list[str] = []

    def load(path: str) -> np.ndarray:
        made.append(path)
        return np.asarray(nibabel.load(path).dataobj)

    steps = Compose([Compose([Lambdad("image", load)]), RandGaussianNoised("image", prob=1.0)])
    dataset = cached_dataset(cases, steps, "memory")
    for _ in range(2):  # epochs
        assert len([dataset[number] for number in range(len(cases))]) == len(cases)
    assert len(made) == len(cases)


def test_workers_read_what_is_kept(cases, tmp_path):
    dataset = cached_dataset(cases, make_transform(), "disk", tmp_path)
    first = list(DataLoader(dataset, batch_size=1, num_workers=2))
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.pt")}
    assert len(kept) == len(cases) == len(first)
    list(DataLoader(dataset, batch_size=1, num_workers=2))
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.pt")} == kept


def test_a_run_ends_with_the_same_weights_whatever_keeps_its_cases(tmp_path, monkeypatch):
    monkeypatch.setenv("TOMOKIT_CACHE", str(tmp_path / "cache"))
    phantoms.make_segmentation_set(tmp_path / "data", cases=5, test_cases=1, size=32, progress=False)
    options = {"dataset_dir": str(tmp_path / "data"), "network_def": SMALL_UNET}
    options |= {"patch_size": [32] * 3, "minimum_size": [32] * 3}
    runs = [train("segmentation", tmp_path / cache, **options, cache=cache) for cache in ("memory", "disk", "none")]
    assert all(same_weights(weights(runs[0]), weights(run)) for run in runs)
    assert list((tmp_path / "cache").glob("*.pt"))
    train("segmentation", runs[0], **options, cache="none", resume=True)  # no other run


def test_no_case_is_no_work(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    assert len(cached_dataset([], make_transform(), "disk", tmp_path / "none")) == 0
    assert not (tmp_path / "none").exists() and told_by(caplog) == []


# How much, and where


def draw_sizes(seed: int, count: int = 24) -> list[tuple[tuple[int, int, int], tuple[float, float, float]]]:
    rng = np.random.default_rng(seed)
    spacings = rng.choice([(1.0, 1.0, 1.0), (0.8, 0.8, 2.5), (1.5, 1.5, 4.0)], count)
    extents = rng.uniform([15, 15, 20], [50, 50, 70], (count, 3))
    return [
        (tuple(np.maximum(np.rint(extent / spacing), 4).astype(int).tolist()), tuple(spacing.tolist()))
        for extent, spacing in zip(extents, spacings, strict=True)
    ]


@pytest.mark.parametrize(
    "steps",
    [
        [Spacingd(KEYS, pixdim=[1.0] * 3, mode=["bilinear", "nearest"])],
        [Spacingd(KEYS, pixdim=[2.0, 2.0, 4.0], mode=["bilinear", "nearest"]), NormalizeIntensityd("image")],
        [NormalizeIntensityd("image")],
        [ResizeWithPadOrCropd(KEYS, spatial_size=[24] * 3)],
        [Spacingd(KEYS, pixdim=[1.5] * 3), SpatialPadd(KEYS, spatial_size=[16] * 3)],
    ],
    ids=["resampled", "coarse", "as stored", "one size", "padded"],
)
def test_the_estimate_is_right_within_a_fifth(steps, write_cases):
    for seed in range(3):
        entries = write_cases(draw_sizes(seed))
        transform = Compose([load(), *steps, RandSpatialCropd(KEYS, roi_size=[4] * 3)])
        estimate, made = estimate_bytes(entries, transform)
        assert len(made) <= 3
        true = sum(count_bytes(preprocess(entry, transform)) for entry in entries)
        assert 0.8 < estimate / true < 1.2


def test_the_estimate_needs_no_volumes():
    data = [{"x": torch.zeros(number)} for number in (3, 3, 3)]
    estimate, made = estimate_bytes(data, Compose([]))
    assert estimate == 36 and count_bytes([{"a": np.zeros(2)}, (torch.zeros(1), "text")]) == 20
    assert {number: item["x"].numel() for number, item in made.items()} == {0: 3, 1: 3, 2: 3}


Usage = namedtuple("Usage", "total used free")


def test_a_case_is_copied_unless_the_first_random_transform_returns_what_is_its_own(write_cases):
    cases = write_cases([((12, 11, 10), (2.0, 2.0, 2.0))] * 2)
    names = {"keys": KEYS, "label_key": "label", "spatial_size": [8] * 3, "num_classes": 2}
    patches = Compose([*make_transform().transforms[:5], RandPatchByLabelClassesd(**names)])
    copied, own = (cached_dataset(cases, transform, "memory") for transform in (make_transform(), patches))
    assert copied.copy_cache and not own.copy_cache
    before = own._cache[0]["image"].clone()
    for patch in own[0]:
        patch["image"].zero_()
    assert torch.equal(own._cache[0]["image"], before)


@pytest.mark.parametrize(
    ("memory", "disk", "kind", "told"),
    [
        (GIB, GIB, CacheDataset, r"1.0 GiB of memory free: kept in memory \(chosen by size; `cache: disk` or `none`"),
        (
            50_000,
            GIB,
            PersistentDataset,
            r"of memory free: kept on the disk in .*1.0 GiB free there, 0.\d MiB held already \(chosen",
        ),
        (50_000, 60_000, Dataset, "of memory free: read and preprocessed anew each time, since they do not fit on"),
    ],
)
def test_auto_takes_what_fits_and_says_so(memory, disk, kind, told, cases, tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(caching, "free_memory", lambda: memory)
    monkeypatch.setattr(caching.shutil, "disk_usage", lambda _: Usage(0, 0, disk))
    dataset = cached_dataset(cases, make_transform(), cache_dir=tmp_path)
    assert type(dataset).__mro__[0 if kind is Dataset else 1] is kind
    (line,) = told_by(caplog)
    assert re.match(rf"4 cases, \d+\.\d MiB when preprocessed, .*{told}", line)


def test_what_is_kept_needs_no_room_again(cases, tmp_path, monkeypatch):
    monkeypatch.setattr(caching, "free_memory", lambda: 0)
    draw(cached_dataset(cases, make_transform(), "disk", tmp_path))
    monkeypatch.setattr(caching.shutil, "disk_usage", lambda _: Usage(0, 0, 0))
    assert isinstance(cached_dataset(cases, make_transform(), "auto", tmp_path), DiskDataset)
    assert type(cached_dataset(cases, make_transform(3.0), "auto", tmp_path)) is Dataset


def test_a_choice_by_hand_is_obeyed_with_a_warning(cases, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(caching, "free_memory", lambda: 1000)
    monkeypatch.setattr(caching.shutil, "disk_usage", lambda _: Usage(0, 0, 1000))
    assert isinstance(cached_dataset(cases, make_transform(), "memory"), CacheDataset)
    assert isinstance(cached_dataset(cases, make_transform(), "disk", tmp_path), DiskDataset)
    assert [record.levelname for record in caplog.records if record.name == "tomokit.caching"] == ["WARNING"] * 2
    memory, disk = told_by(caplog)
    assert memory.endswith("in memory, as set, where they may not fit; `cache: disk` or `none` chooses otherwise")
    assert disk.endswith("held already, as set, where they may not fit; `cache: memory` or `none` chooses otherwise")


def test_only_one_of_several_processes_says_it(cases, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    monkeypatch.setenv("RANK", "1")
    cached_dataset(cases, make_transform(), "none")
    assert told_by(caplog) == []
    monkeypatch.setenv("RANK", "0")
    cached_dataset(cases, make_transform(), "none")
    assert told_by(caplog) == ["4 cases: read and preprocessed anew each time, as set"]


@pytest.mark.parametrize("cache", ["ram", None, 1.0])
def test_an_unknown_choice_is_refused(cache):
    with pytest.raises(TomokitError, match=rf"`cache` must be one of auto, memory, disk, none, got {cache!r}"):
        cached_dataset([], make_transform(), cache)


def test_the_folder_is_set_or_beside_the_data_sets(tmp_path, monkeypatch):
    monkeypatch.delenv("TOMOKIT_CACHE", raising=False)
    monkeypatch.setenv("TOMOKIT_DATA", str(tmp_path / "data" / "sets"))
    assert cache_root() == tmp_path / "data" / "cache"
    monkeypatch.setenv("TOMOKIT_CACHE", str(tmp_path / "fast"))
    assert cache_root() == tmp_path / "fast"


def write_group(folder: Path, version: int, limit: str, used: int, reclaimable: int) -> None:
    names = ("memory.max", "memory.current", "inactive_file")
    if version == 1:
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / names[0]).write_text(f"{limit}\n")
    (folder / names[1]).write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 5\n{names[2]} {reclaimable}\n")


KEEPING = """
import numpy, psutil
from tomokit.memory import free_memory, keep_freed_memory
held = lambda: psutil.Process().memory_info().rss
keeps = keep_freed_memory()
before = held()
for megabytes in (40, 400):
    block = numpy.ones(megabytes << 17)
    del block
    print(keeps, (held() - before) >> 20)
free_memory(wanted=0)
print(keeps, (held() - before) >> 20)
free_memory()
print(keeps, (held() - before) >> 20)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no such setting")
@pytest.mark.parametrize(("environment", "kept"), [({}, True), ({"MALLOC_ARENA_MAX": "4"}, False)])
def test_freed_blocks_are_kept_for_the_next_call_until_memory_is_asked_for(environment, kept):
    command, inherited = [sys.executable, "-c", KEEPING], {k: v for k, v in os.environ.items() if "MALLOC_" not in k}
    done = subprocess.run(command, capture_output=True, text=True, env=inherited | environment)
    told = [line.split() for line in done.stdout.splitlines()]
    assert [line[0] for line in told] == [str(kept)] * 4, done
    small, large, enough, asked = (int(line[1]) for line in told)
    assert (small > 35) == (large > 35) == kept  # 40 MB stay, 400 MB do not
    assert large < 100
    assert abs(enough - large) < 5  # there is as much as is wanted without them
    assert asked < 5


def test_free_memory_is_what_the_control_groups_leave(tmp_path, monkeypatch):
    group_file = tmp_path / "cgroup"
    whole = free_memory(group_file, tmp_path)
    group_file.write_text("0::/job/step\n")
    assert abs(free_memory(group_file, tmp_path) - whole) < 0.2 * whole  # no limit stands there
    write_group(tmp_path / "job", 2, "5000", 3000, 500)
    write_group(tmp_path / "job" / "step", 2, "max", 3000, 500)
    assert free_memory(group_file, tmp_path) == 2500
    write_group(tmp_path / "job" / "step", 2, "4000", 3000, 500)
    assert free_memory(group_file, tmp_path) == 1500
    group_file.write_text("9:name=systemd:/\n4:cpu,memory:/docker/abc\n")
    write_group(tmp_path / "memory", 1, "7000", 8000, 500)  # as seen from inside a container
    assert free_memory(group_file, tmp_path) == 0
    write_group(tmp_path / "memory", 1, "9000", 8000, 500)
    assert free_memory(group_file, tmp_path) == 1500
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    assert free_memory(group_file, tmp_path) == 500


# Nothing stale


def test_a_changed_file_is_read_again_though_its_size_and_time_are_the_same(cases, tmp_path):
    dataset = cached_dataset(cases, make_transform(), "disk", tmp_path)
    before = draw(dataset)
    rewrite(cases[1]["label"], lambda label: label[::-1])
    expected = draw(cached_dataset(cases, make_transform(), "none"))
    assert not torch.equal(before[2]["label"], expected[2]["label"])
    assert_same(draw(cached_dataset(cases, make_transform(), "disk", tmp_path)), expected)
    assert_same(draw(dataset), expected)  # within a run too
    assert len(list(tmp_path.glob("*.pt"))) == len(cases) + 1


def test_a_file_that_changes_while_it_is_read_is_not_kept(cases, tmp_path):
    class Disturb(MapTransform):
        def __call__(self, data):
            rewrite(cases[0]["image"], lambda image: image[::-1])
            return data

    steps = [load(), Disturb("image")]
    dataset = DiskDataset(cases[:1], Compose(steps), tmp_path)
    dataset[0]
    assert list(tmp_path.glob("*.pt")) == []


def test_an_entry_is_its_values_and_its_files(cases, tmp_path, monkeypatch):
    hashed = EntryHash()
    key = hashed(cases[0])
    assert len(key) == 32 and hashed(dict(reversed(cases[0].items()))) == key == EntryHash()(cases[0])
    assert hashed({**cases[0], "label": 1}) != hashed({**cases[0], "label": 0}) != key
    assert hashed({**cases[0], "clinical": {"age": 50.0}}) != hashed({**cases[0], "clinical": {"age": 50.5}})
    assert hashed({**cases[0], "image": [cases[0]["image"]]}) != key
    series = tmp_path / "series"
    series.mkdir()
    (series / "1.dcm").write_bytes(b"a")
    first = hashed({"image": str(series)})
    (series / "1.dcm").write_bytes(b"b")
    second = hashed({"image": str(series)})
    (series / "2.dcm").write_bytes(b"b")
    assert len({first, second, hashed({"image": str(series)})}) == 3
    monkeypatch.chdir(tmp_path)
    assert len(hashed.known) == 5  # two volumes, the first slice before and after, and the second slice
    hashed({"patient": "series", "note": "x" * 5000 + "/" + "y" * 5000})  # names, not paths
    assert len(hashed.known) == 5


def test_the_data_file_of_a_text_header_counts(tmp_path):
    header = "ObjectType = Image\nNDims = 3\nDimSize = 2 2 2\nElementType = MET_UCHAR\nElementDataFile = a.raw\n"
    (tmp_path / "a.mhd").write_text(header)
    (tmp_path / "a.raw").write_bytes(bytes(8))
    before = EntryHash()({"image": str(tmp_path / "a.mhd")})
    (tmp_path / "a.raw").write_bytes(bytes(7) + b"1")
    assert EntryHash()({"image": str(tmp_path / "a.mhd")}) != before


def test_every_parameter_of_every_kept_step_counts():
    key = hash_transforms(make_transform())
    assert key == hash_transforms(make_transform()) and len(key) == 32
    assert key == hash_transforms(Compose([*make_transform().transforms[:-1]]))  # random steps are not kept
    variants = [make_transform(2.5), make_transform(crop=9), Compose(make_transform().transforms[:4])]
    for change in (
        lambda steps: setattr(steps[0]._loader.readers[0], "squeeze_non_spatial_dims", True),
        lambda steps: setattr(steps[3].scaler, "a_min", -1.5),
        lambda steps: setattr(steps[2], "mode", ("bilinear", "bilinear")),
    ):
        transform = make_transform()
        change(transform.transforms)
        variants.append(transform)
    first, *rest = make_transform().transforms
    steps = (Orientationd(KEYS, axcodes="RAS", labels=None), Orientationd(KEYS, axcodes="LPS", labels=None))
    steps += (Lambdad("image", lambda x: x + 1), Lambdad("image", lambda x: x + 2))
    variants += [Compose([first, step, *rest]) for step in steps]
    variants.append(Compose(make_transform().transforms, map_items=False))
    assert len({key, *map(hash_transforms, variants)}) == len(variants) + 1


def test_a_key_does_not_depend_on_use(cases):
    steps = [load(), CropForegroundd(KEYS, source_key="label"), NormalizeIntensityd("image")]
    for transform in (make_transform(), Compose(steps)):
        key = hash_transforms(transform)
        for entry in cases:
            transform(entry)
        assert hash_transforms(transform) == key


def test_a_key_is_the_same_in_another_process(cases):
    program = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import json\nfrom test_caching import make_transform\nfrom tomokit.caching import EntryHash, hash_transforms\n"
        "entry = json.loads(sys.argv[2])\nprint('key', EntryHash()(entry).decode() + hash_transforms(make_transform()))"
    )
    command = [sys.executable, "-c", program, str(Path(__file__).parent), json.dumps(cases[0])]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONHASHSEED": "7"})
    assert done.returncode == 0, done.stderr
    assert f"key {EntryHash()(cases[0]).decode()}{hash_transforms(make_transform())}" in done.stdout


class Plain:
    def __init__(self, **state):
        self.__dict__.update(state)

    def method(self):
        return 1


class Slotted:
    __slots__ = ("a",)


def make_slotted(a: int) -> Slotted:
    slotted = Slotted()
    slotted.a = a
    return slotted


def adder(number: int):
    return lambda x: x + number


def nested(x, step=(lambda y: y)):
    return [step(i) for i in x]


PAIRS = [
    (1, True),
    (1, 1.0),
    ("1", 1),
    ((1, 2), [1, 2]),
    ({"a": 1}, {"a": 2}),
    ({1, 2}, frozenset({1, 2})),
    (b"a", "a"),
    (np.float32(1), np.float64(1)),
    (np.zeros(3), np.zeros((3, 1))),
    (np.zeros(3), torch.zeros(3, dtype=torch.float64)),
    (torch.zeros(2, dtype=torch.bfloat16), torch.ones(2, dtype=torch.bfloat16)),
    (np.array([None, 1], object), np.array([None, 2], object)),
    (torch.float32, torch.float64),
    (np.dtype("int8"), np.dtype("int16")),
    (np.float32, np.float64),
    (slice(1, 2), range(1, 2)),
    (Path("a"), Path("b")),
    (signal.SIGINT, signal.SIGTERM),
    (Plain(a=1), Plain(a=2)),
    (make_slotted(1), make_slotted(2)),
    (Plain(a=1).method, Plain(a=2).method),
    (adder(1), adder(2)),
    (functools.partial(adder, 1), functools.partial(adder, 2)),
    (np.add, np.subtract),
    (torch.add, torch.sub),
    (len, print),
    (torch.nn.ReLU(), torch.nn.ReLU(inplace=True)),
    (nested, adder),
]


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: str(type(pair[0]).__name__))
def test_two_values_are_told_apart(pair):
    texts = [json.dumps(describe(value)) for value in pair]
    assert texts[0] != texts[1]
    assert texts == [json.dumps(describe(value)) for value in pair] and "0x" not in "".join(texts)


def test_equal_objects_are_told_alike():
    assert describe(Plain(a=[1], b={"x", "y", "z"})) == describe(Plain(a=[1], b={"z", "y", "x"}))
    assert describe({"a": 1, "b": 2}) == describe({"b": 2, "a": 1})
    assert describe(adder(1)) == describe(adder(1))
    own = Plain()
    own.me = own
    other = Plain()
    other.me = other
    assert describe(own) == describe(other)


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (object(), "builtins.object"),
        (re.compile("a"), "re.Pattern"),
        (types, "builtins.module"),
        (iter([1]).__next__, "builtins.method-wrapper"),
        ([1].append, "builtins.builtin_function_or_method"),
    ],
)
def test_what_hides_its_state_is_refused(value, name, cases, tmp_path, caplog, monkeypatch):
    caplog.set_level(logging.INFO)
    message = rf"a {re.escape(name)} among the transforms' parameters hides what it is"
    with pytest.raises(TomokitError, match=message):
        describe({"a": [value]})
    step = NormalizeIntensityd("image")
    step.hidden = value
    with pytest.raises(TomokitError, match=message):
        cached_dataset(cases, Compose([load(), step]), "disk", tmp_path)
    monkeypatch.setattr(caching, "free_memory", lambda: 0)
    assert type(cached_dataset(cases, Compose([load(), step]), "auto", tmp_path)) is Dataset
    assert re.search(f"anew each time, since the disk can't keep them: {message}", caplog.text)


# Nothing half


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[:2],
        lambda content: content[:1000],
        lambda content: content[:-1],
        lambda content: content[:3000] + bytes([content[3000] ^ 1]) + content[3001:],
        lambda content: b"\x89PNG" + content,
    ],
)
def test_a_damaged_file_is_made_again(damage, cases, tmp_path, caplog):
    dataset = cached_dataset(cases, make_transform(), "disk", tmp_path)
    expected = draw(dataset)
    path = dataset.paths[2]
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    assert_same(draw(dataset), expected)
    assert f"{path} is damaged; it is made again" in caplog.text
    caplog.clear()
    assert_same(draw(dataset), expected)
    assert caplog.text == "" and len(path.read_bytes()) == len(whole)


def test_a_full_disk_is_one_clear_text(cases, tmp_path):
    def fill():
        dataset = DiskDataset(cases, make_transform(), tmp_path / "cache")
        with pytest.raises(
            TomokitError, match=r"(?s)can't write .*preprocessed cases are kept there: set `cache: none`"
        ):
            dataset[0]

    assert on_a_small_disk(fill)
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_killed_process_leaves_no_half_file(tmp_path):
    child = os.fork()
    if child == 0:
        number = 0
        while True:
            caching._write(tmp_path / f"{number % 7}.pt", {"image": torch.full((200_000,), float(number))})
            number += 1
    time.sleep(0.7)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    kept = list(tmp_path.glob("[!.]*.pt"))  # a half file has a hidden name
    assert kept and all(caching._read(path)["image"].unique().numel() == 1 for path in kept)


@pytest.mark.skipif(not Path("/proc/self/maps").is_file(), reason="the system does not list mapped files")
def test_a_patch_is_read_without_its_whole_volume(tmp_path):
    path = tmp_path / "case.pt"
    caching._write(path, {"image": torch.arange(1 << 20).float().reshape(1, 64, 128, 128)})
    first = caching._read(path)["image"]
    again = caching._read(path)["image"]
    assert str(path) in Path("/proc/self/maps").read_text()
    assert torch.equal(first, again) and again[0, 3, 2, 1] == (3 * 128 + 2) * 128 + 1
    again += 1  # what is done to an item never reaches the file
    assert torch.equal(caching._read(path)["image"], first)


def test_what_a_killed_process_left_is_cleared_later(cases, tmp_path):
    for name, age in (("old", 7200), ("young", 60)):
        (tmp_path / f".partial-1-{name}.pt").touch()
        os.utime(tmp_path / f".partial-1-{name}.pt", (time.time() - age,) * 2)
    DiskDataset(cases, make_transform(), tmp_path)
    assert [path.name for path in tmp_path.glob(".partial-*")] == [".partial-1-young.pt"]


def test_other_entries_delete_nothing(cases, tmp_path):
    dataset = cached_dataset(cases, make_transform(), "disk", tmp_path)
    draw(dataset)
    kept = set(tmp_path.iterdir())
    dataset.set_data(cases[:1])
    assert len(dataset) == 1 and dataset.count_missing() == 0 and set(tmp_path.iterdir()) == kept


def test_items_that_are_not_read_back_are_refused(cases, tmp_path):
    def put(value):
        return Compose([load(), Lambdad("case", lambda _: value)])

    for value, message in (
        (Path("a"), "hold objects that are not read back as they were"),
        (adder(1), r"hold what can't be stored \(.*\); set `cache: none`"),
    ):
        transform = put(value)
        with pytest.raises(TomokitError, match=message):
            cached_dataset(cases, transform, "disk", tmp_path)


def test_a_file_or_folder_that_can_not_be_used_is_named(cases, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(TomokitError, match=r"can't make the cache folder .*file.*; set TOMOKIT_CACHE"):
        cached_dataset(cases, make_transform(), "disk", tmp_path / "file")
    with pytest.raises(TomokitError, match=r"absent\.nii can't be read \(No such file or directory\); restore it"):
        EntryHash().digest(tmp_path / "absent.nii")
    dataset = DiskDataset(cases, make_transform(), tmp_path / "cache")
    dataset.paths[0].mkdir()
    with pytest.raises(TomokitError, match=r"\.pt can't be read \(Is a directory\); delete it, or set `cache: none`"):
        dataset[0]
