"""Folders of volumes or pictures, whose layout is told by the names of folders and files alone.

Three layouts are known: folders side by side (`train/a.mhd` with `label/a.mhd`, `imagesTr` with `labelsTr`), pairs in
one folder (`t2.nii.gz` with `t2_seg-manual.nii.gz`), and a folder per case with a file per channel
(`patient07/{flair,t1,t2,lesions}.nii.gz`).
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tomokit.importers.records import FOLDERS, Case, Plan, file_source, words
from tomokit.volumes import PICTURES, stem_of, suffix_of

GENERIC_LABEL_WORDS = frozenset(
    words(
        "seg segs segmentation segmentations mask masks msk label labels labelmap labelmaps gt truth groundtruth "
        "annotation annotations roi rois contour contours consensus manual"
    )
)
LABEL_WORDS = GENERIC_LABEL_WORDS | {"lesion", "lesions"}
IMAGE_WORDS = frozenset(words("image images img imgs scan scans volume volumes vol raw data"))
SECTION_WORDS = {
    "training": frozenset(("train", "training", "tr")),
    "validation": frozenset(("val", "valid", "validation")),
    "test": frozenset(("test", "testing", "ts")),
}
ROLE_WORDS = LABEL_WORDS | IMAGE_WORDS | frozenset().union(*SECTION_WORDS.values())
PASSED_OVER = frozenset(("anat", "dwi", "perf", "rawdata", "derivatives"))  # BIDS has them above or below the subject
KINDS = {"ct": "CT", "mr": "MRI", "mri": "MRI", "pet": "PET"} | {
    name: name.upper() for name in words("t1 t2 t1w t2w t1c t1ce t1gd t1n t2f flair adc dwi swi pd")
}
CHANNEL = re.compile(r"(.+)_(\d{4})")  # nnU-Net's case_0000
MOST_CHANNELS = 20
MOST_CLASS_FOLDERS = 50
SEVERAL = "cases with several label files, of which none was taken (give --labels FOLDER with one per case)"


@dataclass(frozen=True)
class Place:
    """A file and what its name and folders say.

    Attributes:
        name: the path below the source.
        stem: the file name without its format and without the names of its folders: "flair".
        folders: those that name a case or a site, not a role.
    """

    path: Path
    name: str
    stem: str
    folders: tuple[str, ...]
    section: str | None
    role: str | None


def plan_tree(paths: Sequence[Path], root: Path, kind: str) -> Plan:
    """Return the cases that volumes or pictures below `root` make up, with the labels that fit them."""
    plan = Plan(kind)
    places = [_place(path, root) for path in paths]
    by_folder = any(place.role == "label" for place in places)
    labels = [place for place in places if (place.role == "label" if by_folder else _is_label(place))]
    images = [place for place in places if place not in set(labels)]
    pictures = all(suffix_of(image.path) in PICTURES for image in images)
    channels = [] if pictures else _folder_channels(images, labels)
    if pictures and not labels and (classes := _class_folders(images)):
        plan.cases = _cases_by_class(plan, images, classes)
    elif channels:
        plan.cases = _cases_by_folder(plan, images, channels, root)
    else:
        plan.cases = _cases_by_file(plan, images, labels)
    plan.cases.sort(key=lambda case: list(FOLDERS).index(case.section))
    attach_labels(plan, labels)
    plan.modality = _tell_modality(channels, images)
    plan.structure = _tell_structure(labels) if channels else None
    return plan


def place_labels(root: Path, paths: Sequence[Path]) -> list[Place]:
    """Return what the names and folders of label files below `root` say."""
    return [_place(path, root) for path in paths]


def attach_labels(plan: Plan, labels: Sequence[Place]) -> None:
    """Give each case the label file whose name or folder fits it; leave out, with the reason, those that fit none."""
    chosen = _fit(plan.cases, labels)
    shared = Counter(label for found in chosen if len(found) == 1 for label in found)
    for case, found in zip(plan.cases, chosen, strict=True):
        if len(found) > 1:
            plan.leave(SEVERAL, f"{case.name} ({', '.join(label.name for label in found)})")
        elif found and shared[found[0]] > 1:
            plan.leave("labels that fit several images, taken for none", f"{case.name} ({found[0].name})")
        elif found:
            case.label = file_source(found[0].path)
    fitted = {label for found in chosen for label in found}
    for label in labels:
        if label not in fitted:
            plan.leave("labels without an image", label.name)
    plan.used.update(label.path for label in labels)


def group_channels(stems: Iterable[str]) -> dict[str, list[int]] | None:
    """Return case -> channels for nnU-Net's names `case_0000`, or None when the names are others."""
    grouped: dict[str, list[int]] = defaultdict(list)
    for stem in stems:
        match = CHANNEL.fullmatch(stem)
        if match is None:
            return None
        grouped[match[1]].append(int(match[2]))
    return dict(grouped)


def _place(path: Path, root: Path) -> Place:
    """Return what a file's folders and name say."""
    relative = path.relative_to(root)
    section = role = None
    folders = []
    for folder in relative.parts[:-1]:
        found = set(words(folder))
        if not found <= ROLE_WORDS:
            folders.append(folder)
            continue
        section = next((name for name, known in SECTION_WORDS.items() if found & known), section)
        role = "label" if found & LABEL_WORDS else "image" if found & IMAGE_WORDS else role
    named = tuple(folder for folder in folders if folder.lower() not in PASSED_OVER)
    stem = stem_of(path)
    for folder in named:
        stem = re.sub(rf"^{re.escape(folder)}(?:[_.-]+|$)", "", stem)
    return Place(path, relative.as_posix(), stem, named, section, role)


def _is_label(place: Place) -> bool:
    """Return whether a file's own name calls it a label."""
    return any(word.rstrip("0123456789") in LABEL_WORDS for word in words(place.stem))


def _bare(stem: str) -> str:
    """Return a file name without the words for roles, so that `volume-12` and `segmentation-12` are the same."""
    kept = []
    for word in words(stem):
        letters = word.rstrip("0123456789")
        kept.append(word.removeprefix(letters) if letters in LABEL_WORDS | IMAGE_WORDS else word)
    return "_".join(word for word in kept if word)


def _folder_channels(images: Sequence[Place], labels: Sequence[Place]) -> list[str]:
    """Return the file names common to the cases when each case has a folder, else an empty list.

    A name is common that stands in more than half of the folders. Numbers count cases, not channels. A single
    folder is a case when all its images are named after kinds of scans.
    """
    of_folder: dict[tuple[str | None, tuple[str, ...]], set[str]] = defaultdict(set)
    for image in images:
        of_folder[image.section, image.folders].add(image.stem)
    if len(of_folder) == 1:
        stems = sorted(next(iter(of_folder.values())))
        return stems if len(stems) > 1 and all(stem.lower().split("_")[0] in KINDS for stem in stems) else []
    if not images or not all(image.folders for image in images):
        return []
    counts = Counter(stem for stems in of_folder.values() for stem in stems)
    common = sorted(stem for stem, count in counts.items() if 2 * count > len(of_folder))
    numbered = all(re.search(r"\d{2,}$", stem) for stem in common)
    own_labels = {(label.folders, _bare(label.stem)) for label in labels}
    paired = sum((image.folders, _bare(image.stem)) in own_labels for image in images)
    if numbered or (len(common) > 1 and 2 * paired > len(images)):
        return []
    return common


def _cases_by_folder(plan: Plan, images: Sequence[Place], channels: list[str], root: Path) -> list[Case]:
    """Return a case per folder, whose images are the channels in alphabetical order."""
    grouped: dict[tuple[str | None, tuple[str, ...]], dict[str, Place]] = defaultdict(dict)
    for image in images:
        if image.stem in channels:
            grouped[image.section, image.folders][image.stem] = image
        else:
            plan.leave("images that most cases lack", image.name, image.path)
    patients = _patients(images)
    cases = []
    for (section, folders), found in grouped.items():
        name = "_".join(folders) or root.resolve().name
        missing = [channel for channel in channels if channel not in found]
        if missing:
            files = [image.path for image in found.values()]
            plan.leave("cases without all channels", f"{name} (lacks {', '.join(missing)})", *files)
            continue
        sources = [file_source(found[channel].path) for channel in channels]
        patient = patients.get(folders, name)
        keys = (name, "/".join(folders), *folders, *(image.name for image in found.values()))
        cases.append(Case(name, sources, None, section or "training", patient, folders=folders, keys=keys))
    if len(channels) > 1:
        plan.told.append(f"a folder per case; channels in alphabetical order: {', '.join(channels)}")
    return cases


def _patients(images: Sequence[Place]) -> dict[tuple[str, ...], str]:
    """Return the patient of each folder that is a case: `sub-1` of sub-1/ses-2 and of HGG/sub-1.

    The folder that the file names begin with is the patient; else the innermost, unless its name, such as a session's,
    stands in several folders.
    """
    parents: dict[str, set[tuple[str, ...]]] = defaultdict(set)
    for image in images:
        if image.folders:
            parents[image.folders[-1]].add(image.folders[:-1])
    patients = {}
    for image in images:
        if image.folders:
            inner = image.folders[-1] if len(parents[image.folders[-1]]) == 1 else "_".join(image.folders[:-1])
            patients[image.folders] = _named_folder(image) or inner
    return patients


def _named_folder(image: Place) -> str | None:
    """Return the outermost folder that the file's name begins with."""
    return next((folder for folder in image.folders if stem_of(image.path).startswith(folder)), None)


def _cases_by_file(plan: Plan, images: Sequence[Place], labels: Sequence[Place]) -> list[Case]:
    """Return a case per file, or per group of files named `case_0000`, `case_0001`."""
    grouped = group_channels(image.stem for image in images)
    own = {label.stem for label in labels}
    if grouped is None or any(0 not in numbers or max(numbers) > MOST_CHANNELS for numbers in grouped.values()):
        return _one_per_file(images)
    if any(image.stem in own for image in images) or (len(grouped) == 1 and len(images) > 1 and not own & set(grouped)):
        return _one_per_file(images)
    whole = max(len(numbers) for numbers in grouped.values())
    by_case: dict[tuple[str | None, tuple[str, ...], str], list[Place]] = defaultdict(list)
    for image in sorted(images, key=lambda image: image.stem):
        by_case[image.section, image.folders, image.stem[:-5]].append(image)
    cases = []
    for (section, folders, stem), found in by_case.items():
        if len(found) < whole:
            plan.leave("cases without all channels", f"{stem} ({len(found)} of {whole})", *(i.path for i in found))
            continue
        keys = (stem, *(image.name for image in found))
        sources = [file_source(image.path) for image in found]
        cases.append(Case(stem, sources, None, section or "training", folders=folders, keys=keys))
    return cases


def _class_folders(images: Sequence[Place]) -> list[str]:
    """Return the names of the folders when they are classes, as in benign/ and malignant/, else an empty list.

    They are when each picture lies in one folder beside parts and roles, and there are two and at most 50 of them,
    whose names hold no number other than as a whole ("0", "1") or after "class".
    """
    names = sorted({image.folders[0] for image in images if len(image.folders) == 1})
    plain = all(name.isdecimal() or name.lower().startswith("class") or not re.search(r"\d", name) for name in names)
    alone = all(len(image.folders) == 1 for image in images)
    return names if alone and plain and 2 <= len(names) <= MOST_CLASS_FOLDERS and len(images) > len(names) else []


def _cases_by_class(plan: Plan, images: Sequence[Place], classes: Sequence[str]) -> list[Case]:
    """Return a case per picture, whose class is its folder; patients are not known."""
    cases = _one_per_file(images)
    for case in cases:
        case.label, case.patient = classes.index(case.folders[0]), None
    plan.labels = dict(enumerate(classes))
    plan.told.append(f"classes are the folders: {', '.join(classes)}")
    return cases


def _one_per_file(images: Sequence[Place]) -> list[Case]:
    """Return a case per file, named after the file, and after its folders too where names meet again."""
    count = Counter(image.path.name for image in images)
    cases = []
    for image in images:
        stem = stem_of(image.path)
        name = stem if count[image.path.name] == 1 else "_".join([*image.folders, image.stem or stem])
        keys = (stem, image.name, image.path.name, image.stem)
        section, patient = image.section or "training", _named_folder(image)
        cases.append(Case(name, [file_source(image.path)], None, section, patient, folders=image.folders, keys=keys))
    return cases


def _fit(cases: Sequence[Case], labels: Sequence[Place]) -> list[list[Place]]:
    """Return the label files that fit each case best.

    Names fit when they are equal, or else equal without the words for roles; in the case's own folder, or else in
    folders that hold no image. Else a case that is alone in a folder of its own takes the folder's labels, and the
    only case of a source its only label.
    """
    if len(cases) == len(labels) == 1:
        return [list(labels)]
    named: dict[str, list[Place]] = defaultdict(list)
    for label in labels:
        for key in {label.stem.lower(), stem_of(label.path).lower(), f"bare {_bare(label.stem)}"}:
            named[key].append(label)
    in_folder = Counter((case.section, case.folders) for case in cases)
    with_images = {case.folders for case in cases}
    chosen = []
    for case in cases:
        stems = [key for key in (case.name, *case.keys) if not suffix_of(key)]
        exact = [label for key in {stem.lower() for stem in stems} for label in named[key]]
        bare = [label for key in {f"bare {_bare(stem)}" for stem in stems} for label in named[key]]
        alone = case.folders and in_folder[case.section, case.folders] == 1
        pools = (
            [label for label in exact if label.folders == case.folders],
            [label for label in bare if label.folders == case.folders],
            [label for label in exact if label.folders not in with_images],
            [label for label in bare if label.folders not in with_images],
            [label for label in labels if alone and label.folders == case.folders],
        )
        fitting = ([label for label in pool if label.section in (None, case.section)] for pool in pools)
        chosen.append(list(dict.fromkeys(next(filter(None, fitting), []))))
    return chosen


def _tell_modality(channels: Sequence[str], images: Sequence[Place]) -> list[str]:
    """Return the kind of each channel as the file names tell it, or an empty list."""
    if len(channels) > 1:
        return [name.upper() if words(name)[0] in KINDS else name for name in channels]
    told = [{KINDS[word] for word in words(image.name) if word in KINDS} for image in images]
    common = set.intersection(*told) if told else set()
    special = common - {"MRI"} or common
    return sorted(special) if len(special) == 1 else []


def _tell_structure(labels: Sequence[Place]) -> str | None:
    """Return the one structure's name where the label files' names tell it: `lesions.nii.gz`."""
    generic = GENERIC_LABEL_WORDS | set(KINDS)
    names = {"_".join(word for word in words(label.stem) if word not in generic) for label in labels}
    return names.pop() or None if len(names) == 1 else None
