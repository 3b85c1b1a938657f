"""The catalogue of public sets; no test needs a network but the one inside this machine."""

import hashlib
import io
import json
import re
import shutil
import tarfile
import threading
import time
from functools import partial
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import nibabel
import numpy as np
import pytest
import yaml
from set_files import make_items, write_set
from typer.testing import CliRunner

from tomokit import catalogue, phantoms
from tomokit.catalogue import (
    PHANTOMS,
    SIMULATED,
    catalogue_folder,
    get_dataset,
    print_dataset,
    read_catalogue,
    read_manifest,
    unpack,
    write_manifest,
)
from tomokit.cli import app
from tomokit.datasets import find_dataset, read_description, read_entries, select_cases
from tomokit.errors import TomokitError

FIELDS = {
    "title": "A small set",
    "task": "segmentation",
    "modality": "CT",
    "cases": 6,
    "home": "http://home.example",
    "licence": "CC BY 4.0",
    "citation": "Someone, somewhere",
}


@pytest.fixture(autouse=True)
def sets(tmp_path, monkeypatch):
    """Keep every test's sets in its own folder."""
    monkeypatch.setenv("TOMOKIT_DATA", str(tmp_path / "sets"))
    return tmp_path / "sets"


def write_files(folder, count=6):
    """Write a set whose files hold a few bytes each."""
    write_set(folder, make_items(count), ["./imagesTs/u.nii.gz"])
    for item in make_items(count):
        for path in (folder / item["image"], folder / item["label"]):
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(path.name.encode() * 40)
    return folder


def pack(folder, path):
    """Pack a set as the Decathlon does, with what macOS adds."""
    (folder / "imagesTr" / "._c0.nii.gz").write_bytes(b"macOS")
    with tarfile.open(path, "w") as tar:
        tar.add(folder, folder.name)
    return hashlib.md5(path.read_bytes()).hexdigest()


@pytest.fixture
def listed(tmp_path, monkeypatch):
    """Return a function that makes a catalogue of one set and returns the folder of the catalogue."""
    folder = tmp_path / "data"
    (folder / "manifests").mkdir(parents=True)
    monkeypatch.setattr(catalogue, "catalogue_folder", lambda: folder)

    def write(name="small", **fields):
        content = {"sets": {name: FIELDS | {"layout": "decathlon"} | fields}}
        (folder / "catalogue.yaml").write_text(yaml.safe_dump(content))
        return folder

    return write


# The catalogue itself


def test_every_entry_says_where_it_comes_from_and_under_which_licence():
    known = read_catalogue()
    assert len(known) == 38
    for entry in known.values():
        assert entry.title and entry.task and entry.modality and entry.licence and entry.citation and entry.cases > 0
        assert entry.home.startswith("http") or entry.home == "tomokit.phantoms"
        assert bool(entry.url) == bool(re.fullmatch("[0-9a-f]{32}", entry.md5))
        assert entry.url or entry.manifest or entry.layout in ("phantom", "simulated")
        assert entry.url or entry.size_mb
    assert [name for name, entry in known.items() if entry.layout == "phantom"] == list(PHANTOMS)


def test_the_decathlons_addresses_and_sums_are_monais():
    from monai.apps import DecathlonDataset

    entries = {entry.file.removesuffix(".tar"): entry for entry in read_catalogue().values() if ".tar" in entry.url}
    assert {task: entry.url for task, entry in entries.items()} == DecathlonDataset.resource
    assert {task: entry.md5 for task, entry in entries.items()} == DecathlonDataset.md5


def test_the_six_medmnist_sets_come_in_two_sizes():
    known = read_catalogue()
    names = [name for name, entry in known.items() if entry.layout == "medmnist"]
    organs = "organ nodule adrenal fracture vessel synapse".split()
    assert names == [f"{organ}mnist3d{size}" for organ in organs for size in ("", "_64")]
    assert all(known[name].file == f"{name}.npz" for name in names)


def test_manifests_list_files_inside_the_copy_and_none_is_left_over():
    folder = catalogue_folder() / "manifests"
    of_entry = {entry.manifest: entry for entry in read_catalogue().values() if entry.manifest}
    assert sorted(of_entry) == sorted(path.name for path in folder.iterdir())
    for name, entry in of_entry.items():
        files = read_manifest(folder / name)
        assert files and all(re.fullmatch("[0-9a-f]{64}", listed.sha256) for listed in files.values())
        assert not [path for path in files if path.startswith("/") or ".." in path or "\\" in path]
        assert set(entry.arrange) <= set(files)


def test_an_installation_without_a_catalogue_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(catalogue, "__file__", str(tmp_path / "a" / "b" / "c" / "catalogue.py"))
    monkeypatch.setattr(catalogue, "find_spec", lambda name: None)
    with pytest.raises(TomokitError, match="this installation of tomokit has no data catalogue; install it again"):
        catalogue_folder()


# The commands


def test_the_list_has_a_line_for_each_set_and_for_your_own(sets):
    write_set(sets / "mine", make_items(1))
    write_set(sets / ".partial-mine", make_items(1))
    write_set(sets / "spleen", make_items(1))
    lines = CliRunner().invoke(app, ["data", "list"]).output.splitlines()
    row = {line.split()[0]: line for line in lines}
    assert len(lines) == 1 + len(read_catalogue()) + 1
    assert row["phantom-ct"].endswith("made in seconds")
    assert re.search(r"segmentation, CT +131 +29 GB CC BY-SA 4.0 download$", row["liver"])
    assert row["spleen"].endswith(str(sets / "spleen")) and row["mine"].endswith(str(sets / "mine"))
    assert row["cervical_cord"].endswith("--from FOLDER") and " ? " in row["prostate"]


def test_one_set_is_told_in_full():
    output = CliRunner().invoke(app, ["data", "list", "hippocampus"]).output
    for fact in ("CC BY-SA 4.0", "MD5 9d24", "medicaldecathlon.com", "without the unlabelled", "Antonelli", "--from"):
        assert fact in output
    assert "tomokit data get phantom-ct\n" in CliRunner().invoke(app, ["data", "list", "phantom-ct"]).output
    with pytest.raises(TomokitError, match=r"'hipocampus'; did you mean hippocampus or hippocampus-followup\?"):
        print_dataset("hipocampus")


# Sets that are made


def test_a_set_is_simulated_from_another_one(sets, monkeypatch):
    make = partial(phantoms.make_segmentation_set, modality="MRI", cases=4, test_cases=1, size=16, progress=False)
    simulate = partial(phantoms.simulate_followup_set, pairs=2, change=(0.1, 0.1), progress=False)
    monkeypatch.setattr(catalogue, "PHANTOMS", {"phantom-small": make})
    monkeypatch.setattr(catalogue, "SIMULATED", {"small-followup": ("phantom-small", simulate)})
    folder = get_dataset("small-followup")
    assert folder == sets / "small-followup" and (sets / "phantom-small" / "dataset.json").is_file()
    assert len(read_entries(folder)) == 8


def test_the_simulated_sets_are_those_of_the_catalogue():
    assert [name for name, entry in read_catalogue().items() if entry.layout == "simulated"] == list(SIMULATED)


# Sets that the catalogue does not have


def test_a_phantom_set_is_made_once(sets, monkeypatch):
    def make(to):
        phantoms.make_segmentation_set(to, "MRI", cases=4, test_cases=1, size=16, progress=False)

    monkeypatch.setattr(catalogue, "PHANTOMS", {"phantom-small": make})
    folder = get_dataset("phantom-small")
    stamp = (folder / "dataset.json").stat().st_mtime_ns
    assert get_dataset("phantom-small") == folder == sets / "phantom-small"
    assert (folder / "dataset.json").stat().st_mtime_ns == stamp
    assert len(read_entries(folder)) == 4


def test_a_local_set_is_copied_whole_with_its_folds(tmp_path, sets, caplog):
    source = write_set(tmp_path / "mirror" / "task", make_items(20))
    (source / "imagesTr").mkdir()
    (source / "imagesTr" / "c0.nii.gz").write_bytes(b"x")
    (source / "imagesTr").chmod(0o555)
    folder = get_dataset("task", source=tmp_path / "mirror")
    assert folder == sets / "task" and (folder / "imagesTr" / "c0.nii.gz").read_bytes() == b"x"
    assert (folder / "imagesTr").stat().st_mode & 0o200
    folds = json.loads((folder / "splits.json").read_text())["folds"]
    assert len(folds) == 5 and sorted(sum((fold["test"] for fold in folds), [])) == sorted(f"c{i}" for i in range(20))
    assert not list(folder.parent.glob(".partial*")) and not (source / "splits.json").exists()
    assert "task is not in the catalogue" in caplog.text and "not verified" in caplog.text


@pytest.mark.parametrize(("training", "test"), [(4, 0), (6, 1), (6, 0)])
def test_folds_are_written_only_where_they_can_be_and_do_no_harm(tmp_path, training, test):
    items = make_items(training + test)
    source = write_set(tmp_path / "task", items[:training], items[training:])
    folder = get_dataset("task", tmp_path / "copy", source)
    assert (folder / "splits.json").exists() == ((training, test) == (6, 0))
    assert len(select_cases(folder, "splits.json", 0)["training"]) > 1


def test_a_malformed_set_is_not_copied(tmp_path):
    source = write_set(tmp_path / "task", [{"image": None, "label": 1}])
    with pytest.raises(TomokitError, match=r"`image` must be .* got None"):
        get_dataset("task", tmp_path / "copy", source)
    assert [path.name for path in tmp_path.iterdir()] == ["task"]


def test_a_folder_that_holds_a_set_is_that_set(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = write_set(tmp_path / "some" / "folder", make_items(1))
    assert get_dataset("some/folder") == get_dataset(str(folder)) == find_dataset("some/folder") == folder


def test_getting_what_is_not_there_says_where_to_look(tmp_path):
    with pytest.raises(TomokitError, match=r"no data set 'task'; `tomokit data list` names all.*task --from FOLDER"):
        get_dataset("task")
    with pytest.raises(TomokitError, match=r"neither .*nowhere/task nor .*nowhere has a dataset\.json"):
        get_dataset("task", source=tmp_path / "nowhere")
    with pytest.raises(TomokitError, match=r"cervical_cord can't be downloaded.*sct_testing_data.*--from FOLDER"):
        get_dataset("cervical_cord")


def test_files_that_are_no_set_are_never_overwritten(tmp_path):
    (tmp_path / "to").mkdir()
    (tmp_path / "to" / "thesis.txt").write_text("mine")
    with pytest.raises(TomokitError, match=r"/to is there but is no data set"):
        get_dataset("spleen", tmp_path / "to")
    assert (tmp_path / "to" / "thesis.txt").read_text() == "mine"


def test_a_full_disk_leaves_nothing_behind(tmp_path, sets, monkeypatch):
    def fill(source, target):
        Path(target).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", fill)
    with pytest.raises(TomokitError, match=r"can't put task at .*: .*No space left on device; make room, or choose"):
        get_dataset("task", source=write_files(tmp_path / "task"))
    assert not list(sets.iterdir())


def test_a_folder_that_can_not_be_written_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(TomokitError, match=r"can't put task at .*/file/to: .*Not a directory"):
        get_dataset("task", tmp_path / "file" / "to", write_files(tmp_path / "task"))


# Local copies, verified


def test_a_local_copy_equal_to_the_manifest_is_taken(tmp_path, listed, sets, caplog):
    source = write_files(tmp_path / "mirror" / "small")
    folder = listed(manifest="small.txt")
    write_manifest(source, folder / "manifests" / "small.txt")
    (source / "notes.txt").write_text("further files are left behind")
    assert get_dataset("small", source=tmp_path / "mirror") == sets / "small"
    assert len(read_entries(sets / "small")) == 6 and (sets / "small" / "splits.json").is_file()
    assert not (sets / "small" / "notes.txt").exists() and "notes.txt" in caplog.text
    assert [path.name for path in sets.iterdir()] == ["small"]
    assert get_dataset("small", tmp_path / "direct", source) == tmp_path / "direct"


def test_every_file_that_differs_from_the_manifest_is_named(tmp_path, listed, sets):
    source = write_files(tmp_path / "small")
    folder = listed(manifest="small.txt")
    write_manifest(source, folder / "manifests" / "small.txt")
    (source / "imagesTr" / "c0.nii.gz").unlink()
    (source / "imagesTr" / "c1.nii.gz").write_bytes(b"short")
    content = (source / "imagesTr" / "c2.nii.gz").read_bytes()
    (source / "imagesTr" / "c2.nii.gz").write_bytes(b"X" + content[1:])
    with pytest.raises(TomokitError) as caught:
        get_dataset("small", source=source)
    problems = str(caught.value).splitlines()
    assert "tomokit data get my-small --from" in problems[0]
    assert problems[1:] == [
        "  - imagesTr/c0.nii.gz is missing",
        f"  - imagesTr/c1.nii.gz has 5 bytes, not {len(content)}",
        "  - imagesTr/c2.nii.gz has another SHA-256",
    ]
    assert not list(sets.glob("*")) and not list(sets.glob(".partial*"))


def test_a_download_beside_you_is_verified_by_its_md5(tmp_path, listed, sets):
    archive = tmp_path / "downloads" / "Task99_Small.tar"
    archive.parent.mkdir()
    listed(
        url="http://nowhere.invalid/Task99_Small.tar?download=1", md5=pack(write_files(tmp_path / "Task99"), archive)
    )
    get_dataset("small", source=archive.parent)
    assert len(read_entries(sets / "small")) == 6 and not list((sets / "small").rglob("._*"))
    assert archive.is_file() and [path.name for path in sets.iterdir()] == ["small"]
    archive.write_bytes(archive.read_bytes() + b"x")
    with pytest.raises(
        TomokitError, match=r"Task99_Small\.tar has the MD5 [0-9a-f]{32}, not [0-9a-f]{32}; get it again"
    ):
        get_dataset("small", tmp_path / "again", archive.parent)


def test_an_unpacked_task_without_a_manifest_is_taken_and_said_to_be_unverified(tmp_path, listed, sets, caplog):
    listed(url="http://nowhere.invalid/Task99_Small.tar", md5="0" * 32)
    write_files(tmp_path / "Task99_Small")
    get_dataset("small", source=tmp_path)
    assert len(read_entries(sets / "small")) == 6 and (tmp_path / "Task99_Small").is_dir()
    assert "Task99_Small is not verified" in caplog.text
    with pytest.raises(TomokitError, match=r"neither .*/small nor .* has Task99_Small\.tar or a dataset\.json; get it"):
        get_dataset("small", tmp_path / "to", tmp_path / "nowhere")


def test_other_layouts_go_through_the_importers(tmp_path, listed, sets, write_volume, caplog):
    rng = np.random.default_rng(0)
    for name, label in (("a_scan", 0), ("a_truth", 1), ("b_scan", 0)):
        array = rng.integers(0, 2, (6, 5, 4)).astype(np.uint8) if label else rng.normal(size=(6, 5, 4))
        write_volume(f"mirror/small/{name}.nii.gz", array.astype(np.uint8 if label else np.float32))
    folder = listed(
        layout="volumes",
        manifest="small.txt",
        arrange={"a_scan.nii.gz": "ct/images/a.nii.gz", "a_truth.nii.gz": "ct/labels/a.nii.gz"},
        main="ct",
        **{"import": {"modality": ["CT"]}},
    )
    write_manifest(tmp_path / "mirror" / "small", folder / "manifests" / "small.txt")
    get_dataset("small", source=tmp_path / "mirror")
    content = read_description(sets / "small")
    assert content["name"] == "small" and content["modality"] == ["CT"]
    assert [Path(entry["label"]).is_file() for entry in read_entries(sets / "small")] == [True]
    assert [path.name for path in sets.iterdir()] == ["small"]
    with pytest.raises(TomokitError, match=r"neither .* has the files of data/manifests/small\.txt; get it from"):
        get_dataset("small", tmp_path / "to", tmp_path / "nowhere")


def test_images_with_channels_are_split_into_files_with_folds(tmp_path, listed, sets, write_volume):
    for item in make_items(5):
        array = np.random.default_rng(0).normal(size=(6, 5, 4, 2)).astype(np.float32)
        write_volume(f"Task98_Two/{item['image']}", array)
        write_volume(f"Task98_Two/{item['label']}", (array[..., 0] > 0).astype(np.uint8))
    source = write_set(tmp_path / "Task98_Two", make_items(5))
    content = json.loads((source / "dataset.json").read_text()) | {"modality": {"0": "T2", "1": "ADC"}}
    (source / "dataset.json").write_text(json.dumps(content))
    (tmp_path / "downloads").mkdir()
    md5 = pack(source, tmp_path / "downloads" / "Task98_Two.tar")
    listed(layout="decathlon 4D", url="http://nowhere.invalid/Task98_Two.tar", md5=md5)
    get_dataset("small", source=tmp_path / "downloads")
    entries = read_entries(sets / "small")
    assert [len(entry["image"]) for entry in entries] == [2] * 5
    assert nibabel.load(entries[0]["image"][1]).shape == (6, 5, 4)
    assert read_description(sets / "small")["modality"] == ["T2", "ADC"] and (sets / "small" / "splits.json").is_file()


# Downloads


@pytest.fixture
def server(tmp_path):
    """Serve `tmp_path/served` on this machine; a request of a path in `broken` gets half of the file."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            server.asked.append(self.path)
            file = tmp_path / "served" / self.path.lstrip("/").partition("?")[0]
            if not file.is_file():
                self.send_error(404)
                return
            content = file.read_bytes()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[: len(content) // 2] if self.path in server.broken else content)
            time.sleep(server.stall_s)

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    server.asked, server.broken, server.stall_s = [], set(), 0
    (tmp_path / "served").mkdir()
    server.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def offered(tmp_path, listed, server):
    """Offer the set "small" for download; return its path in the address."""
    archive = tmp_path / "served" / "Task99_Small.tar"
    md5 = pack(write_files(tmp_path / "Task99_Small"), archive)
    listed(url=f"{server.address}/Task99_Small.tar?download=1", md5=md5)
    return "/Task99_Small.tar?download=1"


def test_a_set_is_downloaded_verified_and_unpacked(offered, server, sets, capsys):
    assert get_dataset("small") == sets / "small"
    assert len(read_entries(sets / "small")) == 6 and not list((sets / "small").rglob("._*"))
    assert json.loads((sets / "small" / "splits.json").read_text())["method"] == "nnU-Net's five folds by name"
    assert [path.name for path in sets.iterdir()] == ["small"] and server.asked == [offered]
    get_dataset("small")
    assert server.asked == [offered] and capsys.readouterr().out == ""


def test_an_interrupted_download_leaves_no_set_and_starts_again(offered, server, sets):
    server.broken.add(offered)
    with pytest.raises(
        TomokitError, match=r"can't download http://127\S+ to .*retrieval incomplete.*run the command again"
    ):
        get_dataset("small")
    assert not list(sets.iterdir())
    (sets / ".partial-small-source").mkdir()
    (sets / ".partial-small-source" / "Task99_Small.tar").write_bytes(b"left by a process that was killed")
    server.broken.clear()
    get_dataset("small")
    assert len(read_entries(sets / "small")) == 6 and [path.name for path in sets.iterdir()] == ["small"]


def test_a_server_that_falls_silent_is_not_waited_for(offered, server, monkeypatch):
    monkeypatch.setattr(catalogue, "STALLED_S", 0.1)
    server.broken.add(offered)
    server.stall_s = 0.5
    with pytest.raises(TomokitError, match=r"can't download http://127\S+ to .*timed out; run the command again"):
        get_dataset("small")


def test_a_finished_download_is_not_fetched_again(offered, server, sets, tmp_path):
    staging = sets / ".partial-small-source"
    (staging / "unpacked" / "half").mkdir(parents=True)
    shutil.copy(tmp_path / "served" / "Task99_Small.tar", staging)
    get_dataset("small")
    assert server.asked == [] and [path.name for path in sets.iterdir()] == ["small"]


def test_a_wrong_checksum_and_a_wrong_address_are_told(offered, server, sets, tmp_path):
    archive = tmp_path / "served" / "Task99_Small.tar"
    archive.write_bytes(archive.read_bytes()[:-1] + b"x")
    with pytest.raises(TomokitError, match=r"what came from http://127\S+ does not have the MD5 [0-9a-f]{32}; run"):
        get_dataset("small")
    assert not list(sets.iterdir())
    archive.unlink()
    with pytest.raises(TomokitError, match=r"can't download http://127\S+ .*404.*get it from http://home\.example"):
        get_dataset("small")


def test_an_archive_of_medmnist_is_downloaded_and_imported(tmp_path, listed, server, sets):
    arrays = {}
    for part, count in (("train", 4), ("val", 2), ("test", 2)):
        arrays[f"{part}_images"] = np.random.default_rng(0).integers(0, 255, (count, 8, 8, 8)).astype(np.uint8)
        arrays[f"{part}_labels"] = (np.arange(count) % 2).astype(np.uint8)[:, None]
    path = tmp_path / "served" / "adrenalmnist3d.npz"
    np.savez_compressed(path, **arrays)
    md5 = hashlib.md5(path.read_bytes()).hexdigest()
    listed("adrenalmnist3d", layout="medmnist", url=f"{server.address}/{path.name}?download=1", md5=md5)
    get_dataset("adrenalmnist3d")
    assert read_description(sets / "adrenalmnist3d")["labels"] == {"0": "normal", "1": "hyperplasia"}
    parts = select_cases("adrenalmnist3d", "splits.json", 0)
    assert [len(part) for part in parts.values()] == [4, 2, 2]
    assert [path.name for path in sets.iterdir()] == ["adrenalmnist3d"]


# Unpacking


def write_tar(path, *members, mode="w"):
    """Write a tar of (name, type, size, target) as they are given."""
    with tarfile.open(path, mode) as tar:
        for name, kind, size, target in members:
            member = tarfile.TarInfo(name)
            member.type, member.size, member.linkname = kind, size, target
            tar.addfile(member, io.BytesIO(bytes(size)))
    return path


@pytest.mark.parametrize(
    ("name", "kind", "problem"),
    [
        ("set/../../evil", tarfile.REGTYPE, "lies outside the folder"),
        ("/tmp/evil", tarfile.REGTYPE, "lies outside the folder"),
        ("..\\evil", tarfile.REGTYPE, "lies outside the folder"),
        ("C:/evil", tarfile.REGTYPE, "lies outside the folder"),
        ("set/link", tarfile.SYMTYPE, "is a link or a device"),
        ("set/hard", tarfile.LNKTYPE, "is a link or a device"),
        ("set/device", tarfile.CHRTYPE, "is a link or a device"),
        ("set/pipe", tarfile.FIFOTYPE, "is a link or a device"),
    ],
)
def test_an_unsafe_member_is_named_and_nothing_is_unpacked(tmp_path, name, kind, problem):
    target = "/etc/passwd" if kind in (tarfile.SYMTYPE, tarfile.LNKTYPE) else ""
    path = write_tar(tmp_path / "a.tar", ("set/good", tarfile.REGTYPE, 5, ""), (name, kind, 0, target))
    with pytest.raises(TomokitError, match=rf"(?s)not safe to unpack.*{re.escape(name)} {problem}"):
        unpack(path, tmp_path / "to")
    assert not (tmp_path / "to").exists() and not (tmp_path / "evil").exists()


def test_an_archive_that_would_grow_too_large_is_refused(tmp_path):
    path = write_tar(tmp_path / "a.tar.gz", ("zeros", tarfile.REGTYPE, 1 << 20, ""), mode="w:gz")
    with pytest.raises(TomokitError, match=rf"would unpack to {1 << 20} bytes, more than {4 * path.stat().st_size};"):
        unpack(path, tmp_path / "to")
    assert not (tmp_path / "to").exists()


@pytest.mark.parametrize("content", [b"no archive", b"\x1f\x8b\x08damaged", b""])
def test_a_damaged_archive_is_told(tmp_path, content):
    (tmp_path / "a.tar").write_bytes(content)
    with pytest.raises(TomokitError, match=r"can't unpack .*a\.tar into .*get the archive again"):
        unpack(tmp_path / "a.tar", tmp_path / "to")


def test_an_old_python_is_refused(tmp_path, monkeypatch):
    monkeypatch.delattr(tarfile, "data_filter")
    with pytest.raises(TomokitError, match=r"can't unpack archives safely; use Python 3\.11\.4 or later"):
        unpack(write_tar(tmp_path / "a.tar"), tmp_path / "to")


# The real sets


@pytest.mark.mirror
def test_the_manifests_are_those_of_the_mirror(mirror, tmp_path):
    for entry in read_catalogue().values():
        if entry.manifest:
            folder = next(mirror / name for name in (entry.folder, entry.name) if name and (mirror / name).is_dir())
            write_manifest(folder, tmp_path / entry.manifest)
            there = read_manifest(tmp_path / entry.manifest)
            expected = read_manifest(catalogue_folder() / "manifests" / entry.manifest)
            # the two sizes of a MedMNIST set lie in one folder
            assert there == expected or (entry.layout == "medmnist" and expected.items() <= there.items())


@pytest.mark.mirror
@pytest.mark.parametrize(
    ("name", "channels", "labels"),
    [
        ("reference_ct_mr", ["CT"], 63),
        ("cervical_cord", ["T2"], 2),
        ("multiple_sclerosis", ["FLAIR", "T1", "T1_POST", "T2"], 2),
        ("chest_xray_clinical", None, 2),
        ("dicom_t1_mr", ["MRI"], None),
    ],
)
def test_the_mirrored_sets_become_data_sets(mirror, tmp_path, name, channels, labels):
    folder = get_dataset(name, tmp_path / name, mirror)
    content = read_description(folder)
    assert len(read_entries(folder, labelled=False)) == read_catalogue()[name].cases
    assert content.get("modality") == channels and len(content.get("labels", {})) == (labels or 0)
