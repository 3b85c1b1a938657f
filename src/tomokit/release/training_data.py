"""What may be told of the data that a run was trained on: its public name and licence, never its files."""

from pathlib import Path
from typing import NamedTuple

from tomokit.catalogue import read_catalogue
from tomokit.datasets import data_root, find_dataset, read_description
from tomokit.errors import TomokitError


class TrainingData(NamedTuple):
    """A data set as a release tells it; what is not known is "".

    Attributes:
        name: in the catalogue, under which everyone can get it; "" for a set of one's own.
        title: what it is.
        home: its public page.
        licence: of the data.
        citation: what to cite.
    """

    name: str = ""
    title: str = ""
    home: str = ""
    licence: str = ""
    citation: str = ""

    @property
    def told(self) -> str:
        """The name to call it by."""
        return self.name or self.title or "a data set that is not public"


def describe_data(dataset_dir: str) -> TrainingData:
    """Return what is known of the data set that a config names: from the catalogue, or from its own `dataset.json`.

    Of a set that the catalogue does not have, only `name`, `licence` and `reference` of its `dataset.json` are told,
    and only where it gives a licence: without one it is taken for private.
    """
    known = read_catalogue().get(Path(dataset_dir).name)
    own_place = (data_root() / Path(dataset_dir).name).resolve()
    try:
        folder = find_dataset(dataset_dir)
    except TomokitError:  # the data need not be here any more
        folder = own_place if known and dataset_dir == known.name else Path(dataset_dir).resolve()
    if known and folder == own_place:
        return TrainingData(known.name, known.title, known.home, known.licence, known.citation)
    if not (folder / "dataset.json").is_file():
        return TrainingData()
    content = read_description(folder)
    licence = str(content.get("licence") or content.get("license") or "")
    if not licence:
        return TrainingData()
    return TrainingData("", str(content.get("name", "")), "", licence, str(content.get("reference", "")))


def licence_text(data: TrainingData) -> str:
    """Return the text of `docs/data_license.txt`; "" where no licence is known."""
    if not data.licence:
        return ""
    lines = {"Data": data.title or data.name, "Home": data.home, "Licence": data.licence, "Citation": data.citation}
    told = [f"{key}: {value}" for key, value in lines.items() if value]
    return "\n".join(["The weights were trained on data that is not part of this bundle.", "", *told, ""])
