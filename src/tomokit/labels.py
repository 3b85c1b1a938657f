"""The label map of a segmentation: which voxel value means which structure."""

import re
from collections.abc import Mapping, Sequence

from tomokit.errors import raise_problems

LESIONS = (  # how a word begins that names what is ill
    *("abscess", "adenoma", "aneurysm", "bleed", "cancer", "carcinoma", "glioma", "gtv", "haematoma", "haemorrh"),
    *("hematoma", "hemorrh", "infarct", "lesion", "lymphoma", "melanoma", "meningioma", "metasta", "neoplas", "nodul"),
    *("plaque", "polyp", "sarcoma", "tumo"),
)
WHOLE_LESIONS = {"cyst", "cysts"}  # "cystic" is a duct too
SIDES = {"left": "right", "lt": "rt", "lh": "rh", "l": "r"}


def check_label_map(labels: Mapping[str, str] | Mapping[int, str]) -> dict[int, str]:
    """Return the label map as `{0: "background", 1: "liver", …}`, in the order of its values.

    Keys are voxel values, as whole numbers or text (JSON knows only text keys).

    Raises:
        TomokitError: listing every problem, when values are not 0, 1, 2, …, a name is empty or used twice, or
            there is no structure beside the background.
    """
    names: dict[int, str] = {}
    problems = []
    for key, name in labels.items():
        if not str(key).isdecimal():
            problems.append(f'values must be whole numbers from 0, got {key!r}: {name!r}; write "0": "name"')
        elif int(key) in names:
            problems.append(f"value {int(key)} is given twice, as {names[int(key)]!r} and {name!r}")
        else:
            names[int(key)] = name
    problems += _value_problems(names) if not problems else []
    problems += _name_problems(list(labels.values()))
    raise_problems("the label map (`labels`) is wrong:", problems)
    return dict(sorted(names.items()))


def foreground(labels: Mapping[str, str] | Mapping[int, str]) -> dict[int, str]:
    """Return the structures of a label map, `{1: "liver", …}`: all values but the background's 0.

    Raises:
        TomokitError: when the label map is wrong, as in `check_label_map`.
    """
    return {value: name for value, name in check_label_map(labels).items() if value != 0}


def lateral_names(labels: Mapping[str, str] | Mapping[int, str]) -> list[str]:
    """Return the names of a label map that tell left from right, such as "kidney_left", "LH" or "KidneyL".

    Of short words, such as "l" and "r", both sides must be there: "L1" is a vertebra.
    """
    words = {name: _words(name) for name in labels.values()}
    texts = set(map(tuple, words.values()))
    return [name for name, own in words.items() if _is_lateral(own, texts)]


def find_lesions(labels: Mapping[str, str] | Mapping[int, str]) -> list[str]:
    """Return the names of a label map that tell of lesions, such as "liver_tumour", "LungNodule" or "kidney cyst".

    Of such labels each connected piece is of interest, not only the whole.
    """
    return [name for name in labels.values() if any(map(_is_lesion, _words(name)))]


def _is_lesion(word: str) -> bool:
    """Return whether a word in lower case names a lesion."""
    return word.startswith(LESIONS) or word in WHOLE_LESIONS


def _words(name: str) -> list[str]:
    """Return the words of a name in lower case: "KidneyL" and "kidney_l" are ["kidney", "l"]."""
    parted = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
    return re.findall(r"[a-z]+|[0-9]+", parted.lower())


def _is_lateral(words: Sequence[str], others: set[tuple[str, ...]]) -> bool:
    """Return whether one of the words names a side, by itself or because the other side is named too."""
    for place, word in enumerate(words):
        if word.startswith(("left", "right", "sinist", "dext")):
            return True
        other = SIDES.get(word) or {b: a for a, b in SIDES.items()}.get(word)
        if other and (*words[:place], other, *words[place + 1 :]) in others:
            return True
    return False


def _value_problems(names: Mapping[int, str]) -> list[str]:
    """Return what is wrong with the voxel values."""
    if len(names) < 2:
        return [f"a background (0) and at least one structure are needed, got {dict(names)}"]
    if sorted(names) != list(range(len(names))):
        return [f"values must be 0, 1, 2, … without gaps, got {sorted(names)}"]
    return []


def _name_problems(names: list[str]) -> list[str]:
    """Return what is wrong with the structures' names."""
    problems = [
        f"names must be text that is not empty, got {name!r}"
        for name in names
        if not isinstance(name, str) or not name.strip()
    ]
    twice = dict.fromkeys(name for name in names if isinstance(name, str) and names.count(name) > 1)
    return problems + [f"the name {name!r} is used {names.count(name)} times" for name in twice]
