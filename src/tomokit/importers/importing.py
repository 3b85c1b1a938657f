"""The import of a source: detect its kind, plan its cases, add a table and label files, write, report."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tomokit.errors import TomokitError
from tomokit.importers.decathlon import plan_decathlon
from tomokit.importers.detection import Contents, detect, scan
from tomokit.importers.medmnist import plan_medmnist
from tomokit.importers.nnunet import plan_nnunet
from tomokit.importers.records import Plan, Source, count_of, list_lines, name_cases, shorten
from tomokit.importers.tables import Columns, attach_table, plan_table, read_table
from tomokit.importers.trees import attach_labels, place_labels, plan_tree
from tomokit.importers.writing import Written, write_dataset

SHOWN_LABELS = 20
DATA_OF_HEADERS = (".raw", ".zraw", ".raw.gz")


class ImportReport(NamedTuple):
    """What an import brought in.

    Attributes:
        target: the new data set's folder.
        kind: the source's layout.
        found: lines that say what was found.
        left_out: lines that say what was left out and why.
    """

    target: Path
    kind: str
    found: list[str]
    left_out: list[str]


def import_dataset(
    source: str | Path,
    target: str | Path,
    *,
    labels: str | Path | None = None,
    table: str | Path | None = None,
    label_columns: Sequence[str] = (),
    event_columns: Sequence[str] = (),
    patient_column: str | None = None,
    group_column: str | None = None,
    modality: Sequence[str] = (),
) -> ImportReport:
    """Return what was found in `source` and brought into the new data set `target`, and what was left out.

    The source is read, never changed. Voxels are never interpolated.

    Args:
        source: a folder or file: nnU-Net raw, Decathlon, MedMNIST `.npz`, volumes, DICOM, pictures, a table of paths.
        target: a folder that does not exist yet, or is empty.
        labels: a file or folder of label files that lie elsewhere, matched by name.
        table: a CSV or TSV file; without it the only one in `source` is used.
        label_columns: of the table. One column gives classes, numbered in the order of its values; several columns of
            0 and 1 give lists, whose places the `labels` of `dataset.json` name.
        event_columns: of the table, 1 where they have a value and 0 where they are empty.
        patient_column: of the table; without it one called like `patient_id`, else each case is a patient.
        group_column: of the table, such as the site, kept as `group`.
        modality: the kind of each channel, such as ["CT"]; of DICOM also which series to take.

    Raises:
        TomokitError: when the source is absent, mixes kinds, or is malformed, a column is unfit, the target is not
            empty, or nothing can be imported.
    """
    source, target = Path(source), Path(target).absolute()
    contents = scan(source)
    _check_target(contents, target)
    columns = Columns(label_columns, event_columns, patient_column, group_column)
    plan = _plan(contents, detect(contents), modality, columns)
    name_cases(plan.cases)
    if labels is not None:
        _replace_labels(plan, Path(labels))
    _use_table(plan, contents, Path(table) if table is not None else None, columns)
    _set_modality(plan, modality)
    written = write_dataset(plan, target)
    _leave_others(plan, contents)
    return ImportReport(target, plan.kind, _tell(plan, written), list_lines(plan.left))


def describe_import(report: ImportReport) -> str:
    """Return the report as plain lines for a terminal."""
    lines = [f"{report.target}: {report.kind}", *(f"  {line}" for line in report.found)]
    if report.left_out:
        lines += ["left out:", *(f"  {line}" for line in report.left_out)]
    return "\n".join([*lines, f"next: tomokit check {report.target}"])


def _check_target(contents: Contents, target: Path) -> None:
    """Raise when the target is not new, or lies in the source."""
    if target.is_symlink() or (target.exists() and (not target.is_dir() or any(target.iterdir()))):
        raise TomokitError(f"{target} exists and is not an empty folder; give a new one")
    if contents.given.is_dir() and target.resolve().is_relative_to(contents.given.resolve()):
        raise TomokitError(
            f"{target} lies in {contents.given}, which an import never changes; give a folder outside it"
        )


def _plan(contents: Contents, kind: str, modality: Sequence[str], columns: Columns) -> Plan:
    """Return what the importer of a kind finds."""
    root = contents.root
    if kind == "dicom":
        from tomokit.importers.dicom_folders import plan_dicom  # pydicom takes its time

        return plan_dicom(root, modality)
    if kind == "archives":
        return plan_medmnist(contents.archives)
    if kind == "tables":
        return plan_table(read_table(contents.tables[0]), root, columns)
    if kind in ("volumes", "pictures"):
        named = "folder of volumes" if kind == "volumes" else "folder of pictures, each a volume of one slice"
        return plan_tree(getattr(contents, kind), root, named)
    return plan_nnunet(root) if kind == "nnunet" else plan_decathlon(root)


def _replace_labels(plan: Plan, labels: Path) -> None:
    """Give the cases the label files at `labels`, and no others.

    Raises:
        TomokitError: when there is no volume or picture at `labels`, or none fits a case.
    """
    found = scan(labels)
    files = found.volumes or found.pictures
    if not files:
        raise TomokitError(
            f"{labels} holds no volume or picture; give a label file, or a folder of them, with --labels"
        )
    for case in plan.cases:
        if isinstance(case.label, Source):
            plan.leave("label files of the source, since --labels gives others", case.label.name)
        case.label = None
    attach_labels(plan, place_labels(found.root, files))
    if not any(isinstance(case.label, Source) for case in plan.cases):
        raise TomokitError(
            f"no label in {labels} fits a case by its name: the labels are called "
            f"{shorten([path.name for path in files], 3)}, the cases {shorten([case.name for case in plan.cases], 3)}; "
            "rename copies of the labels like the cases"
        )
    plan.told.append(f"label files from {labels}")


def _use_table(plan: Plan, contents: Contents, given: Path | None, columns: Columns) -> None:
    """Add what a table tells: the given one, or the only one in the source.

    Raises:
        TomokitError: when columns are named and there is no table, or the table is unfit.
    """
    paths = [given] if given else contents.tables
    if len(paths) == 1:
        asked = given is not None or bool(columns.named()) or plan.kind == "table of paths"
        attach_table(plan, read_table(paths[0]), columns, required=asked)
    elif columns.named():
        raise TomokitError(
            f"the columns {', '.join(columns.named())} need a table, and {contents.given} has {len(paths)}; give one "
            "with --table"
        )
    elif paths:
        names = [path.name for path in paths]
        plan.leave("tables, of which one can be used with --table", ", ".join(names), *paths)


def _set_modality(plan: Plan, modality: Sequence[str]) -> None:
    """Take the modality that the user gives, or say that it is not known."""
    if modality:
        plan.modality = list(modality)
    elif not plan.modality:
        plan.told.append(
            "modality not known, and left out of dataset.json; give it with --modality, once for each channel: CT for "
            "volumes in HU, MRI, X-ray …"
        )


def _leave_others(plan: Plan, contents: Contents) -> None:
    """Note the files that nothing else spoke of, by suffix."""
    used = {*plan.used, *contents.dicom, *(path for path in contents.others if path.name.upper() == "DICOMDIR")}
    for case in plan.cases:
        sources: list[Source] = [*case.images, *([case.label] if isinstance(case.label, Source) else [])]
        used.update(source.path for source in sources if source.path)
    used.update(path for path in contents.others if path.name.lower().endswith(DATA_OF_HEADERS) and contents.volumes)
    rest = [path for path in contents.files if path not in used]
    for path in rest:
        plan.leave("other files", path.relative_to(contents.root).as_posix())


def _tell(plan: Plan, written: Written) -> list[str]:
    """Return what was found, line by line."""
    lines = []
    for section, entries in written.entries.items():
        if entries:
            labelled = sum("label" in entry for entry in entries)
            patients = len({entry["patient"] for entry in entries})
            lines.append(
                f"{section}: {count_of(len(entries), 'case')} of {count_of(patients, 'patient')}, {labelled:,} labelled"
            )
    kinds = ", ".join(plan.modality) or (f"{written.channels} of unknown kind" if written.channels > 1 else "not known")
    lines.append(f"{'channels' if written.channels > 1 else 'modality'}: {kinds}")
    lines.append(_tell_labels(written))
    lines.append(f"size: {_ranges(written.sizes)} voxels")
    lines.append(f"spacing: {_ranges(written.spacings)} mm")
    return lines + plan.told + list_lines(plan.noted)


def _tell_labels(written: Written) -> str:
    """Return the label map, or the number of cases of each class."""
    labels = [entry["label"] for entries in written.entries.values() for entry in entries if "label" in entry]
    if not labels:
        return "labels: none; give --labels PATH, or --table CSV with --label COLUMN"
    names = written.labels or {}
    if isinstance(labels[0], str):
        shown = [f"{value} {name}" for value, name in names.items()]
    elif isinstance(labels[0], list):
        counts = Counter(place for label in labels for place, value in enumerate(label) if value)
        shown = [f"{name} ({counts[value]:,})" for value, name in names.items()]
    else:
        counts = Counter(labels)
        shown = [f"{value} {name} ({counts[value]:,})" for value, name in names.items()]
    kind = "several labels per case" if isinstance(labels[0], list) else "labels"
    return f"{kind}: {shorten(shown, SHOWN_LABELS)}"


def _ranges(values: Sequence[tuple[float, ...]]) -> str:
    """Return the range along each axis: "64–128 × 64 × 20"."""
    shown = []
    for axis in zip(*values, strict=True):
        least, most = f"{min(axis):.4g}", f"{max(axis):.4g}"
        shown.append(least if least == most else f"{least}–{most}")
    return " × ".join(shown)
