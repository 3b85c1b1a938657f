"""A release: gather, check, write to a folder, export, and only then zip."""

import hashlib
import re
import shutil
import tempfile
import zipfile
from collections.abc import Mapping
from importlib import metadata as packages
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from torch import Tensor

from tomokit.bundles import bundles_folder, find_bundle
from tomokit.engines.checkpoints import load, save, weights_of
from tomokit.errors import TomokitError, raise_problems
from tomokit.files import replacing, write_json, write_text
from tomokit.postprocessing import FILE as POSTPROCESSING
from tomokit.postprocessing import read_steps
from tomokit.release.card import PLAIN, Contents, tell_agreement, write_card
from tomokit.release.exports import Export, build_network, export_network
from tomokit.release.finished import LEARNED, FinishedRun, read_run
from tomokit.release.metadata import check_metadata, describe_release, find_facts, is_packaged
from tomokit.release.plain_monai import find_obstacle, list_differences, plain_config, unpad
from tomokit.release.standalone import check_runs, needed_runs, standalone_configs
from tomokit.release.training_data import describe_data, licence_text

CHECKSUMS = "checksums"
NAME = re.compile(r"[A-Za-z0-9][\w.-]*")
OUR_LICENCE = "Apache-2.0"
TEXTS = (".json", ".conf", ".txt", ".md")
SHORTEST_NAME = 5  # of a case: shorter ones are words and numbers that stand for other things


class Release(NamedTuple):
    """A written release.

    Attributes:
        path: of the zip.
        files: in it.
        left_out: what is not, and why.
        exports: the files of other runtimes that are in it.
    """

    path: Path
    files: list[str]
    left_out: list[str]
    exports: list[Export]


def release_run(
    bundle: str | Path, run: str | Path, out: str | Path, overwrite: bool = False, exports: bool = True
) -> Release:
    """Return the release of a trained and scored run as one zip, in the layout of MONAI's Model Zoo.

    Nothing is written before everything was checked: the zip appears whole, or not at all.

    Args:
        bundle: the name or folder of the bundle that the run was trained with.
        run: the run's folder.
        out: the zip; its name without `.zip` is that of the bundle's folder in it.
        overwrite: replace a zip that is there.
        exports: also try TorchScript and ONNX, each of which is kept where it computes what the network does.

    Raises:
        TomokitError: when the zip is there or its name is no folder's, the run is not finished or not of this bundle,
            or a file would tell of the training data or of this machine.
    """
    out, folder = Path(out), find_bundle(bundle)
    name = _check_out(out, overwrite)
    finished = read_run(Path(run))
    with tempfile.TemporaryDirectory() as temporary:
        staged = Path(temporary) / name
        contents = _stage(staged, folder, finished, exports)
        _check_texts(staged, finished)
        _write_checksums(staged)
        files = sorted(path.relative_to(staged).as_posix() for path in staged.rglob("*") if path.is_file())
        _zip(staged, files, out)
    kept = [export for export in contents.exports if export.difference is not None]
    return Release(out, files, contents.left_out, kept)


def print_release(release: Release) -> None:
    """Print what a release holds, what it does not and why, and how it is used."""
    console = Console(highlight=False, markup=False, soft_wrap=True)
    name = release.path.stem
    console.print(f"{release.path}: {release.path.stat().st_size / 1e6:.1f} MB")
    for file in release.files:
        console.print(f"  {name}/{file}")
    for export in release.exports:
        console.print(f"{export.name}: {tell_agreement(export.difference or 0)}")
    for line in release.left_out:
        console.print(f"left out: {line}")
    console.print(
        f"use, once unpacked: python -m monai.bundle run --config_file {name}/configs/inference.json "
        f"--bundle_root {name} --input scans/ --output_dir out/"
    )


def _check_out(out: Path, overwrite: bool) -> str:
    """Return the name of a release.

    Raises:
        TomokitError: when the file is there already, or can't be called so.
    """
    if out.suffix != ".zip" or not NAME.fullmatch(out.stem):
        raise TomokitError(
            f"--out must end in .zip, behind the name of the folder in it, of letters, digits, _, - and .; got {out}"
        )
    if out.exists() and not overwrite:
        raise TomokitError(f"{out} is there already; give another --out, or --overwrite to replace it")
    return out.stem


def _stage(staged: Path, bundle: Path, run: FinishedRun, exports: bool) -> Contents:
    """Write all files of a release but its checksums to a folder of its name, and return what it holds."""
    steps = read_steps(run.folder / POSTPROCESSING)
    data = describe_data(str(run.train.get("dataset_dir", "")))
    configs = standalone_configs(run, bundle, staged.name, data.name, bool(steps))
    configs, weights = unpad(configs, weights_of(load(run.weights)))
    obstacle = find_obstacle(configs["inference"])
    if not obstacle:
        configs = {**configs, PLAIN: plain_config(configs["inference"])}
        check_runs(PLAIN, configs[PLAIN], run.folder, bundle)
    learned = [file for file in LEARNED if (run.folder / file).is_file() and (steps or file != POSTPROCESSING)]
    _write_models(staged / "models", run, weights, learned)
    for stage, config in configs.items():
        write_json(staged / "configs" / f"{stage}.json", config)
    network = build_network(configs["inference"], staged, weights)
    facts = find_facts(run, configs["inference"], network)
    described = describe_release(run, bundle, staged.name, facts, data)
    write_json(staged / "configs" / "metadata.json", described)
    check_metadata(staged / "configs")
    shutil.copy(_logging_config(bundle), staged / "configs" / "logging.conf")
    inside = {stage: configs[stage] for stage in ("inference", PLAIN) if stage in configs}
    made = export_network(network, configs["inference"], staged, described, inside) if exports else []
    differences = list_differences(configs["inference"], steps)
    needed = needed_runs(run.train)
    contents = Contents(staged.name, configs, described, learned, made, obstacle, differences, needed)
    write_text(staged / "docs" / "README.md", write_card(contents, run, facts, data))
    write_text(staged / "LICENSE", _licence(bundle, str(described["license"])))
    if text := licence_text(data):
        write_text(staged / "docs" / "data_license.txt", text)
    return contents


def _write_models(models: Path, run: FinishedRun, weights: Mapping[str, Tensor], learned: list[str]) -> None:
    """Write the weights, and what training chose or fitted."""
    save(dict(weights), models / "model.pt")
    for file in learned:
        shutil.copy(run.folder / file, models / file)


def _logging_config(bundle: Path) -> Path:
    """Return the logging config of a bundle, or where it has none, of the packaged ones."""
    own = bundle / "configs" / "logging.conf"
    return own if own.is_file() else bundles_folder() / "segmentation" / "configs" / "logging.conf"


def _licence(bundle: Path, licence: str) -> str:
    """Return the licence's text: the bundle's own, or tomokit's where it is the same.

    Raises:
        TomokitError: when it is another one without a text.
    """
    own = bundle / "LICENSE"
    if own.is_file() and not is_packaged(bundle):
        return own.read_text(encoding="utf-8")
    if licence != OUR_LICENCE:
        raise TomokitError(f"metadata.json of {bundle} says the licence {licence!r}; put its text into {own}")
    checkout = bundles_folder().parent / "LICENSE"
    text = checkout.read_text(encoding="utf-8") if checkout.is_file() else None
    text = text or packages.distribution("tomokit").read_text("licenses/LICENSE")
    if not text:
        raise TomokitError("this installation of tomokit has no LICENSE; install it again from a release or a checkout")
    return text


def _check_texts(staged: Path, run: FinishedRun) -> None:
    """Raise when a staged text still tells a case, or a folder of this machine.

    Raises:
        TomokitError: that lists where.
    """
    folders = {str(Path.home()), str(run.folder.resolve()), str(Path(str(run.train.get("dataset_dir"))).resolve())}
    names = [name for name in run.names if len(name) >= SHORTEST_NAME]
    problems = []
    for path in sorted(file for file in staged.rglob("*") if file.suffix in TEXTS):
        text = path.read_text(encoding="utf-8")
        found = [folder for folder in folders if len(folder) > 1 and folder in text]
        if path.suffix != ".md":  # the page is made of these, and of examples of names
            found += [name for name in names if re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", text)]
        problems += [f"{path.relative_to(staged)} holds {one!r}" for one in found]
    raise_problems(
        f"the release would tell of the training data or this machine; change the run in {run.folder}", problems
    )


def _write_checksums(staged: Path) -> None:
    """Write the SHA-256 of each file as `sha256sum` does."""
    files = sorted(path for path in staged.rglob("*") if path.is_file())
    lines = [
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(staged).as_posix()}" for path in files
    ]
    write_text(staged / CHECKSUMS, "\n".join(lines) + "\n")


def _zip(staged: Path, files: list[str], out: Path) -> None:
    """Write a folder's files as a zip, whole or not at all."""
    with replacing(out) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in files:
            archive.write(staged / file, f"{staged.name}/{file}")
