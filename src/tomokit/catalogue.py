"""The catalogue of public data sets: listed, downloaded or taken from a local copy, verified, brought in."""

import contextlib
import difflib
import hashlib
import logging
import shutil
import socket
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial
from http.client import HTTPException
from importlib.util import find_spec
from pathlib import Path, PurePosixPath, PureWindowsPath
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar
from urllib.parse import urlparse

import yaml
from rich.console import Console
from rich.progress import track
from rich.table import Table

from tomokit import phantoms
from tomokit.datasets import data_root, read_entries, read_sections
from tomokit.errors import TomokitError, raise_problems
from tomokit.files import write_text
from tomokit.splits import INNER_VALIDATION_SHARE, NNUNET_FOLDS, NNUNET_METHOD, Split, draw_nnunet_folds, write_split

logger = logging.getLogger(__name__)

PHANTOMS: Mapping[str, Callable[[Path], object]] = {
    "phantom-ct": partial(phantoms.make_segmentation_set, modality="CT"),
    "phantom-mri": partial(phantoms.make_segmentation_set, modality="MRI"),
    "phantom-ct-classes": partial(phantoms.make_classification_set, modality="CT"),
    "phantom-mri-classes": partial(phantoms.make_classification_set, modality="MRI"),
    "phantom-bleeds": phantoms.make_bleed_set,
    "phantom-order": phantoms.make_order_set,
    "phantom-ct-records": partial(phantoms.make_record_set, missing=0.0),
    "phantom-ct-records-gaps": partial(phantoms.make_record_set, missing=0.5),
    "phantom-modalities": phantoms.make_modalities_set,
    "phantom-followup": phantoms.make_followup_set,
}
# what is simulated from another set: that one's name, and the call that takes the new folder and the other's
SIMULATED: Mapping[str, tuple[str, Callable[[Path, Path], object]]] = {
    "hippocampus-followup": ("hippocampus", partial(phantoms.simulate_followup_set, pairs=8, change=(0.02, 0.2))),
}
UNPACKED_RATIO = 4  # the volumes in the archives are compressed already, so they hardly grow
STALLED_S = 60.0  # a server that sends nothing for so long has gone
PIPED_WIDTH = 1000
SHOWN_FILES = 3
Item = TypeVar("Item")


class DataSet(NamedTuple):
    """One entry of `data/catalogue.yaml`.

    Attributes:
        name: under which `tomokit data get` knows it.
        layout: of the source: "phantom", "simulated" (from another set), "decathlon", "decathlon 4D" (channels in one
            file), or an importer's.
        size_mb: of the download or the local copy, in 10⁶ bytes; None where it is not known.
        url: of the one file that holds the set, with its `md5`; "" where there is only the home page.
        manifest: the file in `data/manifests/` that lists the files of a local copy; "" where there is none.
        folder: of a local copy, where it is not called `name`.
        arrange: file of a local copy -> the name under which it is imported, so that images and labels fit.
        main: the file or folder in a local copy that is imported, where it is not the whole copy.
        reduced: how a local copy differs from the public set.
        options: of `import_dataset`; `import` in the file.
    """

    name: str
    title: str
    task: str
    modality: str
    cases: int
    layout: str
    home: str
    licence: str
    citation: str
    size_mb: float | None = None
    url: str = ""
    md5: str = ""
    manifest: str = ""
    folder: str = ""
    main: str = ""
    reduced: str = ""
    arrange: Mapping[str, str] = MappingProxyType({})
    options: Mapping[str, Any] = MappingProxyType({})

    @property
    def file(self) -> str:
        """The name of the file behind `url`."""
        return PurePosixPath(urlparse(self.url).path).name


class Listed(NamedTuple):
    """One line of a manifest: a file's size in bytes and its SHA-256."""

    size: int
    sha256: str


def catalogue_folder() -> Path:
    """Return the folder of the catalogue: the checkout's `data/`, or the one installed with the package.

    Raises:
        TomokitError: when the installation has none.
    """
    folders = [Path(__file__).resolve().parents[2] / "data"]
    installed = find_spec("tomokit._data")
    folders += map(Path, (installed.submodule_search_locations or []) if installed else [])
    for folder in folders:
        if (folder / "catalogue.yaml").is_file():
            return folder
    raise TomokitError(
        "this installation of tomokit has no data catalogue; install it again from a release or a checkout"
    )


def read_catalogue() -> dict[str, DataSet]:
    """Return the public data sets by name, in the order of `data/catalogue.yaml`."""
    content = yaml.safe_load((catalogue_folder() / "catalogue.yaml").read_text(encoding="utf-8"))
    sets = content["sets"].items()
    return {name: DataSet(name, options=entry.pop("import", {}), **entry) for name, entry in sets}


def get_dataset(name: str, to: str | Path | None = None, source: str | Path | None = None) -> Path:
    """Return the folder of data set `name`; when absent it is made, downloaded, or taken from the folder `source`.

    `name` may be the folder of a data set itself. A set of the catalogue is verified, by the checksum of its
    download or file by file; any other set in `source` is copied as it is. The folder is `to`, or `name`
    under `data_root()`, and appears only when it is whole.

    Raises:
        TomokitError: when the set is unknown, can't be downloaded, or differs from the catalogue's.
    """
    given = Path(name).expanduser()
    if to is None and source is None and (given / "dataset.json").is_file():
        logger.info("%s is already there", given)
        return given.resolve()
    target = Path(to).expanduser() if to else data_root() / name
    if (target / "dataset.json").is_file():
        if to is not None:
            raise TomokitError(f"{target} holds a data set already; give another folder, or delete this one")
        logger.info("%s is already there", target)
    elif name in PHANTOMS:
        PHANTOMS[name](target)
    elif name in SIMULATED:
        origin, simulate = SIMULATED[name]
        simulate(target, get_dataset(origin, source=source))
    else:
        _bring(name, target, Path(source).expanduser() if source else None)
    return target


def write_manifest(folder: str | Path, path: str | Path) -> None:
    """Write the manifest of a folder: a line "SHA-256, size in bytes, path" for each file in it."""
    lines = [
        f"{_digest(Path(folder) / name, 'sha256')} {(Path(folder) / name).stat().st_size} {name}\n"
        for name in _files_in(Path(folder))
    ]
    write_text(path, "".join(lines))


def read_manifest(path: str | Path) -> dict[str, Listed]:
    """Return the files of a manifest by their path."""
    rows = (line.split(maxsplit=2) for line in Path(path).read_text(encoding="utf-8").splitlines())
    return {name: Listed(int(size), sha256) for sha256, size, name in rows}


def unpack(archive: str | Path, target: str | Path) -> None:
    """Unpack a tar archive into the new folder `target`; macOS's `._*` files are left out.

    Raises:
        TomokitError: before anything is written, when the archive is damaged, holds anything but files and
            folders under `target`, or would take more than 4 times its own size; it lists every such member.
    """
    if not hasattr(tarfile, "data_filter"):
        raise TomokitError("this Python can't unpack archives safely; use Python 3.11.4 or later")
    limit = UNPACKED_RATIO * Path(archive).stat().st_size
    try:
        with tarfile.open(archive) as tar:
            members = [member for member in tar if not PurePosixPath(member.name).name.startswith("._")]
            problems = [problem for member in members if (problem := _member_problem(member))]
            raise_problems(f"{archive} is not safe to unpack; report it to where it comes from", problems)
            if (size := sum(member.size for member in members)) > limit:
                raise TomokitError(
                    f"{archive} would unpack to {size} bytes, more than {limit}; it is not what it claims"
                )
            for member in _progress(members, "unpacking"):
                tar.extract(member, target, filter="data")
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        why = str(error).partition(":\n")[0]
        raise TomokitError(
            f"can't unpack {archive} into {target}: {why}; make room if the disk is full, else get the archive again"
        ) from error


def print_catalogue() -> None:
    """Print a line for each set of the catalogue and each further one under `data_root()`."""
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold")
    for column in ("name", "kind", "cases", "size", "licence", "where"):
        table.add_column(column, justify="right" if column in {"cases", "size"} else "left", overflow="fold")
    known = read_catalogue()
    for entry in known.values():
        kind = f"{entry.task}, {entry.modality}"
        table.add_row(entry.name, kind, str(entry.cases), _size(entry), entry.licence, _where(entry))
    for path in sorted(data_root().glob("[!.]*/dataset.json")):
        if path.parent.name not in known:
            table.add_row(path.parent.name, "your own", "", "", "", _short(path.parent))
    _show(table)


def print_dataset(name: str) -> None:
    """Print all that the catalogue says of a set, and the command that gets it.

    Raises:
        TomokitError: when the catalogue has no such set; it gives the nearest names.
    """
    known = read_catalogue()
    if name not in known:
        raise TomokitError(_explain_unknown(name, known))
    entry = known[name]
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="bold")
    manifest = _short(catalogue_folder() / "manifests" / entry.manifest)
    facts = {
        "name": name,
        "what": entry.title,
        "kind": f"{entry.task}, {entry.modality}",
        "cases": str(entry.cases),
        "size": _size(entry),
        "licence": entry.licence,
        "home page": entry.home,
        "download": entry.url,
        "checksum": f"MD5 {entry.md5}" if entry.md5 else "",
        "local copy": f"verified by size and SHA-256, {manifest}" if entry.manifest else "",
        "reduced": entry.reduced,
        "cite": entry.citation,
        "where": _where(entry),
        "get it": _command(entry),
    }
    for key, value in facts.items():
        if value:
            table.add_row(key, value)
    _show(table)


def _bring(name: str, target: Path, source: Path | None) -> None:
    """Download a set or take it from `source`, verify it, and put it at `target` when it is whole."""
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise TomokitError(f"{target} is there but is no data set; move it away, or choose another folder with --to")
    known = read_catalogue()
    try:
        if name in known:
            _bring_known(known[name], target, source)
        elif source:
            found = _find_set([source / name, source])
            logger.warning("%s is not in the catalogue: %s is copied as it is, not verified", name, found)
            _settle(found, target)
        else:
            raise TomokitError(_explain_unknown(name, known))
    except OSError as error:
        raise TomokitError(
            f"can't put {name} at {target}: {error}; make room, or choose another folder with --to"
        ) from error


def _bring_known(entry: DataSet, target: Path, source: Path | None) -> None:
    """Bring a set of the catalogue by way of a folder beside `target`, kept after a failure if it holds a download."""
    staging = target.with_name(f".partial-{target.name}-source")
    try:
        raw = _take(entry, source, staging) if source else _download(entry, staging)
        _bring_in(entry, raw, target, staging)
    finally:
        if source or (target / "dataset.json").is_file() or not (staging / entry.file).is_file():
            shutil.rmtree(staging, ignore_errors=True)


def _bring_in(entry: DataSet, raw: Path, target: Path, staging: Path) -> None:
    """Put what was downloaded or copied at `target`, in the layout of all data sets."""
    if entry.layout == "decathlon":
        _settle(raw, target, move=raw.is_relative_to(staging))
        return
    from tomokit.importers import import_dataset

    imported = staging / "imported" / entry.name
    shutil.rmtree(imported, ignore_errors=True)
    report = import_dataset(raw / entry.main, imported, **entry.options)
    for line in report.left_out:
        logger.warning("%s: left out: %s", entry.name, line)
    _settle(imported, target, move=True, folds=entry.layout == "decathlon 4D")


def _settle(found: Path, target: Path, move: bool = False, folds: bool = True) -> None:
    """Move or copy a data set to `target` under a temporary name first, with nnU-Net's folds where they fit."""
    partial = target.with_name(f".partial-{target.name}")
    shutil.rmtree(partial, ignore_errors=True)
    if folds:
        read_entries(found)  # a malformed set is not copied
    try:
        if move:
            found.rename(partial)
        else:
            for path in _progress(_files_in(found), "copying"):
                _copy_file(found / path, partial / path)
        if folds:
            _write_folds(partial)
        partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    logger.info("%s from %s", target, found)


def _write_folds(folder: Path) -> None:
    """Write nnU-Net's five folds, unless the set has parts or splits of its own or too few patients."""
    path, sections = folder / "splits.json", read_sections(folder)
    entries = sections["training"]
    enough = len({entry["patient"] for entry in entries}) >= NNUNET_FOLDS
    if enough and not (sections["validation"] or sections["test"] or path.exists()):
        folds = draw_nnunet_folds(entries, INNER_VALIDATION_SHARE, seed=0)
        write_split(path, Split(NNUNET_METHOD, 0, None, folds), entries)


def _download(entry: DataSet, staging: Path) -> Path:
    """Return the folder or file that a set's address holds, verified; a finished download is not fetched again."""
    if not entry.url:
        raise TomokitError(
            f"{entry.name} can't be downloaded from here; get it from {entry.home}, "
            f"then `tomokit data get {entry.name} --from FOLDER`"
        )
    archive = staging / entry.file
    if not (archive.is_file() and _digest(archive, "md5") == entry.md5):
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
        _fetch(entry, archive)
    return _open(archive, staging)


def _fetch(entry: DataSet, archive: Path) -> None:
    """Download `entry.url` to `archive` and verify it."""
    from monai.apps.utils import HashCheckError, download_url

    again = f"run the command again, or get it from {entry.home} and give its folder with --from"
    bar = Console(stderr=True).is_terminal
    try:
        with _downloading_into(archive.parent):
            download_url(entry.url, archive, hash_val=entry.md5, hash_type="md5", progress=bar)
    except HashCheckError as error:
        raise TomokitError(f"what came from {entry.url} does not have the MD5 {entry.md5}; {again}") from error
    except (OSError, RuntimeError, HTTPException) as error:
        raise TomokitError(f"can't download {entry.url} to {archive.parent}: {error}; {again}") from error


@contextlib.contextmanager
def _downloading_into(folder: Path) -> Iterator[None]:
    """Keep MONAI's temporary file in `folder`, since `/tmp` may be small, its log off the output, and don't wait."""
    monai_logger = logging.getLogger("monai.apps")
    level, temporary, timeout_s = monai_logger.level, tempfile.tempdir, socket.getdefaulttimeout()
    monai_logger.setLevel(logging.CRITICAL)
    tempfile.tempdir = str(folder)
    socket.setdefaulttimeout(STALLED_S)
    try:
        yield
    finally:
        monai_logger.setLevel(level)
        tempfile.tempdir = temporary
        socket.setdefaulttimeout(timeout_s)


def _take(entry: DataSet, source: Path, staging: Path) -> Path:
    """Return the folder or file of a set in a local copy, verified where the catalogue can tell."""
    shutil.rmtree(staging, ignore_errors=True)
    names = dict.fromkeys((entry.name, entry.folder, PurePosixPath(entry.file).stem, ""))
    folders = list(dict.fromkeys(source / name for name in names))
    manifest = read_manifest(catalogue_folder() / "manifests" / entry.manifest) if entry.manifest else {}
    for folder in folders:
        if any((folder / path).is_file() for path in manifest):
            return _copy_verified(entry, folder, manifest, staging)
    for folder in folders:
        if entry.file and (folder / entry.file).is_file():
            _check_md5(entry, folder / entry.file)
            return _open(folder / entry.file, staging)
    decathlon = entry.layout.startswith("decathlon")
    found = next((folder for folder in folders if decathlon and (folder / "dataset.json").is_file()), None)
    if found is None:
        wanted = entry.file or f"the files of data/manifests/{entry.manifest}"
        raise TomokitError(
            f"neither {' nor '.join(map(str, folders))} has {wanted}{' or a dataset.json' if decathlon else ''}; "
            f"get it from {entry.home}, and give its folder or the one above with --from"
        )
    logger.warning("%s: the catalogue has no list of its files, so %s is not verified", entry.name, found)
    return found


def _copy_verified(entry: DataSet, folder: Path, manifest: Mapping[str, Listed], staging: Path) -> Path:
    """Return a copy of the files of `manifest`, each read once and compared.

    Raises:
        TomokitError: that names every file that is missing or differs.
    """
    problems, copy = [], staging / entry.name
    for path, listed in _progress(manifest.items(), "verifying"):
        if not (folder / path).is_file():
            problems.append(f"{path} is missing")
        elif (size := (folder / path).stat().st_size) != listed.size:
            problems.append(f"{path} has {size} bytes, not {listed.size}")
        else:
            taken = copy / entry.arrange.get(path, path)
            _copy_file(folder / path, taken)
            if _digest(taken, "sha256") != listed.sha256:
                problems.append(f"{path} has another SHA-256")
    unverified = f", or take it as it is: `tomokit data get my-{entry.name} --from {folder}`"
    advice = f"get it again from {entry.home}{unverified if entry.layout == 'decathlon' else ''}"
    raise_problems(f"{folder} differs from the catalogue's {entry.name}; {advice}", problems)
    if more := [path for path in _files_in(folder) if path not in manifest]:
        shown = ", ".join(more[:SHOWN_FILES])
        logger.warning("%s: left out files that the catalogue does not list (%d): %s", folder, len(more), shown)
    return copy


def _check_md5(entry: DataSet, path: Path) -> None:
    """Raise when a file is not the one that the catalogue lists."""
    if (md5 := _digest(path, "md5")) != entry.md5:
        raise TomokitError(f"{path} has the MD5 {md5}, not {entry.md5}; get it again from {entry.home}")


def _open(path: Path, staging: Path) -> Path:
    """Return a file as it is, or the folder of the data set in an archive."""
    if path.suffix != ".tar":
        return path
    unpacked = staging / "unpacked"
    shutil.rmtree(unpacked, ignore_errors=True)
    unpack(path, unpacked)
    return _find_set([*sorted(folder for folder in unpacked.iterdir() if folder.is_dir()), unpacked])


def _find_set(folders: Sequence[Path]) -> Path:
    """Return the first of the folders that has a dataset.json."""
    for folder in folders:
        if (folder / "dataset.json").is_file():
            return folder
    raise TomokitError(
        f"neither {' nor '.join(map(str, folders))} has a dataset.json; --from takes a set's folder or the one above"
    )


def _member_problem(member: tarfile.TarInfo) -> str | None:
    """Return what is unsafe about a member of an archive, also for a system where `\\` parts a path."""
    path = PureWindowsPath(member.name)
    if path.anchor or ".." in path.parts:
        return f"{member.name} lies outside the folder"
    if not (member.isfile() or member.isdir()):
        return f"{member.name} is a link or a device"
    return None


def _files_in(folder: Path) -> list[str]:
    """Return the paths of all files in a folder, but macOS's `._*`."""
    paths = (path for path in sorted(folder.rglob("*")) if path.is_file() and not path.name.startswith("._"))
    return [path.relative_to(folder).as_posix() for path in paths]


def _copy_file(source: Path, target: Path) -> None:
    """Copy a file's bytes; rights stay behind, since a read-only folder could not be completed."""
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def _digest(path: Path, algorithm: str) -> str:
    """Return the checksum of a file in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.new(algorithm, usedforsecurity=False)).hexdigest()


def _progress(items: Collection[Item], text: str) -> Iterable[Item]:
    """Return the items, with a bar on the terminal that goes away at the end."""
    console = Console(stderr=True)
    return track(items, text, console=console, transient=True, disable=not console.is_terminal)


def _show(table: Table) -> None:
    """Print a table; where the output is no terminal, each row is one line."""
    console = Console(highlight=False, markup=False)
    if console.is_terminal:
        console.print(table)
        return
    wide = Console(highlight=False, markup=False, width=PIPED_WIDTH)
    with wide.capture() as captured:
        wide.print(table)
    print("\n".join(line.rstrip() for line in captured.get().splitlines()))


def _size(entry: DataSet) -> str:
    """Return the size in MB or GB, "?" where it is not known."""
    if entry.size_mb is None:
        return "?"
    return f"{entry.size_mb:.3g} MB" if entry.size_mb < 1000 else f"{entry.size_mb / 1000:.3g} GB"


def _where(entry: DataSet) -> str:
    """Return the set's folder where it is there, else how it comes."""
    folder = data_root() / entry.name
    if (folder / "dataset.json").is_file():
        return _short(folder)
    if entry.layout == "phantom":
        return "made in seconds"
    if entry.name in SIMULATED:
        return f"made from {SIMULATED[entry.name][0]}"
    return "download" if entry.url else "--from FOLDER"


def _command(entry: DataSet) -> str:
    """Return the command that gets a set."""
    command = f"tomokit data get {entry.name}"
    if not entry.url and entry.layout not in ("phantom", "simulated"):
        return f"{command} --from FOLDER"
    return f"{command} [--from FOLDER]" if entry.url else command


def _short(path: Path) -> str:
    """Return a path from here, where it lies below."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def _explain_unknown(name: str, known: Iterable[str]) -> str:
    """Return what to do about a name that the catalogue does not have."""
    near = difflib.get_close_matches(name, list(known), n=3)
    nearest = f"; did you mean {' or '.join(near)}?" if near else ";"
    return (
        f"the catalogue has no data set {name!r}{nearest} `tomokit data list` names all; "
        f"take a set of your own with `tomokit data get {name} --from FOLDER`"
    )
