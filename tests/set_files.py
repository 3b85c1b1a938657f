"""A small dataset.json and its entries, for the tests of data sets."""

import json


def write_set(folder, training, test=()):
    folder.mkdir(parents=True, exist_ok=True)
    content = {"labels": {"0": "background", "1": "a"}, "training": list(training), "test": list(test)}
    (folder / "dataset.json").write_text(json.dumps(content))
    return folder


def make_items(count, **more):
    return [{"image": f"./imagesTr/c{i}.nii.gz", "label": f"./labelsTr/c{i}.nii.gz", **more} for i in range(count)]
