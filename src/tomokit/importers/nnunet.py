"""nnU-Net's raw folders: `imagesTr/case_0000.nii.gz`, `labelsTr/case.nii.gz` and a `dataset.json`."""

from collections import defaultdict
from pathlib import Path
from typing import Any

from tomokit.errors import TomokitError
from tomokit.files import read_json
from tomokit.importers.records import Case, Plan, check_strings, file_source
from tomokit.importers.trees import CHANNEL
from tomokit.volumes import SUFFIXES, stem_of

SECTIONS = {"training": ("imagesTr", "labelsTr"), "test": ("imagesTs", "labelsTs")}


def plan_nnunet(root: Path) -> Plan:
    """Return the cases of an nnU-Net raw folder, of its first or second version.

    Raises:
        TomokitError: when `dataset.json` names no channels or labels, or a file ending that tomokit can't read.
    """
    content = read_json(root / "dataset.json")
    where = f"{root / 'dataset.json'}:"
    plan = Plan("nnU-Net raw folder", used={root / "dataset.json"})
    channels = check_strings(content.get("channel_names", content.get("modality")), f"{where} `channel_names`")
    plan.modality = list(channels.values())
    plan.labels = _plain_labels(plan, content.get("labels"), where)
    ending = content.get("file_ending", ".nii.gz")
    if ending not in SUFFIXES:
        raise TomokitError(
            f"{where} `file_ending` is {ending!r}, which tomokit can't read; convert to one of {SUFFIXES}"
        )
    for section, (images, labels) in SECTIONS.items():
        plan.cases += _section_cases(plan, section, root / images, root / labels, ending)
    if not plan.cases:
        raise TomokitError(f"{root / 'imagesTr'} has no case: no file is named like case_0000{ending}")
    return plan


def _plain_labels(plan: Plan, labels: Any, where: str) -> dict[int, str]:
    """Return value -> name of the labels that are one value; regions and the ignore label stay behind."""
    if not isinstance(labels, dict):
        raise TomokitError(f'{where} `labels` must be like {{"background": 0, "liver": 1}}, got {labels!r}; correct it')
    plain = {}
    for key, value in labels.items():
        if isinstance(value, list):
            plan.values_untold = True
            plan.leave("regions of several labels (their values stay in the label files)", f"{key} {value}")
        elif key == "ignore" and isinstance(value, int):
            plan.values_untold = True
            plan.ignored.add(value)
            text = f"value {value}, left as it is in the label files; train with LAYERS=modes/ignore_label and {value}"
            plan.leave("the ignore label, which is no structure", text)
        else:
            plain[key] = value
    return check_strings(plain, f"{where} `labels`")


def _section_cases(plan: Plan, section: str, images: Path, labels: Path, ending: str) -> list[Case]:
    """Return the cases of one folder of images; what lacks a channel or an image is left out."""
    grouped: dict[str, dict[int, Path]] = defaultdict(dict)
    for path in _list(images, ending):
        match = CHANNEL.fullmatch(stem_of(path))
        if match is None:
            plan.leave(f"files not named like case_0000{ending}", f"{images.name}/{path.name}", path)
        else:
            grouped[match[1]][int(match[2])] = path
    of_case = {stem_of(path): path for path in _list(labels, ending)}
    for stem in sorted(set(of_case) - set(grouped)):
        plan.leave("labels without an image", f"{labels.name}/{of_case[stem].name}", of_case[stem])
    numbers = range(len(plan.modality))
    cases = []
    for name, found in sorted(grouped.items()):
        missing = [str(number) for number in numbers if number not in found]
        extra = [str(number) for number in found if number not in numbers]
        files = [*found.values(), *([of_case[name]] if name in of_case else [])]
        if missing or extra:
            text = f"lacks {', '.join(missing)}" if missing else f"has {', '.join(extra)} too"
            plan.leave("cases whose channels are not those of dataset.json", f"{name} ({text})", *files)
            continue
        label = file_source(of_case[name]) if name in of_case else None
        keys = (name, *(path.name for path in found.values()))
        cases.append(Case(name, [file_source(found[number]) for number in numbers], label, section, keys=keys))
    return cases


def _list(folder: Path, ending: str) -> list[Path]:
    """Return the files of a folder with an ending, in order."""
    names = sorted(folder.iterdir()) if folder.is_dir() else []
    return [path for path in names if path.name.endswith(ending) and not path.name.startswith(".")]
