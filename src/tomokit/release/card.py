"""The page about a release: what it does, how well, how it is used, and what it is not."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from tomokit.checks.ranges import FILE as RANGE
from tomokit.decisions import FILE as DECISION
from tomokit.held_out import FILE as HELD_OUT
from tomokit.postprocessing import FILE as POSTPROCESSING
from tomokit.records import FILE as RECORDS
from tomokit.release.exports import Export
from tomokit.release.finished import FinishedRun
from tomokit.release.metadata import Facts
from tomokit.release.standalone import Config
from tomokit.release.training_data import TrainingData

PLAIN = "inference_monai"
RUN = "python -m monai.bundle run --config_file"
INPUTS = {  # of each way a bundle lists its inputs
    "tomokit.inputs.list_images": "NIfTI, MetaImage or NRRD files, or folders of one DICOM series each: a folder of "
    "them, one, or a list; of several modalities files `a_0000.nii.gz`, `a_0001.nii.gz`, …, or a list per case.",
    "tomokit.inputs.list_cases": "NIfTI, MetaImage or NRRD files: a folder, one file, or a list; of several modalities "
    "files `case_0000.nii.gz`, `case_0001.nii.gz`, …. Records of the cases: `--table records.csv`, a column `case` "
    "and one per field.",
    "tomokit.engines.list_pairs": "Pairs of NIfTI files on one grid: a folder of `case_0000.nii.gz` and "
    "`case_0001.nii.gz`, or `[['first.nii.gz', 'second.nii.gz']]`.",
    "tomokit.engines.list_registrations": "Pairs of files, on any grids: a folder of `case_0000.nii.gz` (fixed) and "
    "`case_0001.nii.gz` (moving), or `[['fixed.nii.gz', 'moving.nii.gz']]`.",
}
RESULTS = {
    "segmentation": "a label map for each case in `<output_dir>`, in its scan's format (DICOM's as NIfTI), on its grid",
    "classification": "`<output_dir>/classes.csv`: of each case the likeliest class and each one's probability",
    "multi_label": "`<output_dir>/labels.csv`: of each case each label's probability, and whether it is there",
    "regression": "`<output_dir>/value.csv`: of each case the value",
    "registration": "in `<output_dir>` for each pair `<case>_moved.nii.gz`, `<case>_displacement.nii.gz` (mm, LPS) and "
    "`<case>_transform.h5`, which SimpleITK applies",
    "pairs": "`<output_dir>/pairs.csv`: of each pair whether it changed, which scan came first, and by how much",
    "anomaly": "`<output_dir>/anomalies.csv`: of each case its score, whether it is flagged and where it is highest; "
    "`<case>_score.nii.gz`: a score of each voxel, on the scan's grid",
}
KINDS = {"ts": "TorchScript, with the configs inside", "onnx": "ONNX, for one image or window of this shape"}
NEEDED = {"SwinUNETR": "einops", "ViT": "einops", "UNETR": "einops"}  # by networks of MONAI
LEARNED = {
    POSTPROCESSING: "which pieces of a structure are removed, chosen on the validation cases",
    DECISION: "temperatures, thresholds or the target's scale, chosen or known from the training",
    RECORDS: "how a record's fields become numbers, fitted on the training cases",
    HELD_OUT: "answers on the validation cases, without names, which label sets and intervals rest on",
    RANGE: "the lowest and highest voxel size, field of view and intensities of the training cases",
}


class Contents(NamedTuple):
    """What a release holds, for its page.

    Attributes:
        name: of the release.
        configs: by the names of their files, without `.json`.
        metadata: as in `metadata.json`.
        learned: the names of the files beside the weights.
        exports: what became of the files of other runtimes; empty where none was asked for.
        obstacle: why there is no config for MONAI alone; "" where there is one.
        differences: what MONAI alone does not do.
        needed: what train.json must be given, since the release does not hold it.
    """

    name: str
    configs: Mapping[str, Config]
    metadata: Mapping[str, Any]
    learned: Sequence[str]
    exports: Sequence[Export]
    obstacle: str
    differences: Sequence[str]
    needed: Sequence[str] = ()

    @property
    def left_out(self) -> list[str]:
        """What is not in the release, and why."""
        missing = [f"{export.name}: {export.reason}" for export in self.exports if export.difference is None]
        missing += [f"{PLAIN}.json: {self.obstacle}"] if self.obstacle else []
        return missing + [f"the weights or run that train.json begins with: give `--{key}`" for key in self.needed]


def write_card(contents: Contents, run: FinishedRun, facts: Facts, data: TrainingData) -> str:
    """Return the text of `docs/README.md`."""
    parts = [
        f"# {contents.name}\n{facts.task}. {facts.network} with {facts.parameters:,} parameters, "
        f"{facts.training}. {contents.metadata['intended_use']}.",
        "\n".join(_usage(contents, run)),
        "\n".join(_tensor_rows(contents.metadata["network_data_format"])),
        "\n".join(_scores(run)),
        "\n".join(_data(run, data)),
        "\n".join(_files(contents)),
        "\n".join(_licences(contents, data)),
    ]
    return "\n\n".join(parts) + "\n"


def _usage(contents: Contents, run: FinishedRun) -> Iterator[str]:
    """Yield how the release is run."""
    name, required = contents.name, contents.metadata["required_packages_version"]
    yield "## Use"
    yield f"With MONAI {contents.metadata['monai_version']} and tomokit {required['tomokit']}, where this folder lies:"
    yield f"```\n{RUN} {name}/configs/inference.json --bundle_root {name} --input scans/ --output_dir out/\n```"
    listed = contents.configs["inference"]["dataset"]
    while isinstance(listed.get("data"), Mapping):
        listed = listed["data"]
    lister = listed.get("_target_")
    yield f"`scans/`: {INPUTS.get(str(lister), 'what `dataset` in configs/inference.json lists.')}"
    result = RESULTS.get(str(run.metrics["task"]))
    yield f"Result: {result}." if result else ""
    if PLAIN in contents.configs:
        network = json.dumps(contents.configs[PLAIN]["network_def"])
        more = "".join(f"{package}, " for name, package in NEEDED.items() if name in network)
        yield f"\nWith MONAI, nibabel, {more}and pytorch-ignite alone, of a folder of NIfTI files:"
        yield f"```\n{RUN} {name}/configs/{PLAIN}.json --bundle_root {name} --input scans/ --output_dir out/\n```"
        yield f"The same network on windows of the same size; it {'; it '.join(contents.differences)}."
    known = contents.configs["train"]["dataset_dir"]
    yield f"\nScore it again, or train anew (`--dataset_dir` is a folder with a `dataset.json`; here `{known}`):"
    yield f"```\n{RUN} {name}/configs/evaluate.json --dataset_dir {known}"
    yield f"{RUN} {name}/configs/train.json --dataset_dir {known} --run_dir runs/{name}\n```"


def _tensor_rows(tensors: Mapping[str, Any]) -> Iterator[str]:
    """Yield a table of what the network takes and gives."""
    yield "## Network"
    yield "| tensor | channels | shape | values |\n|---|---|---|---|"
    for key, tensor in {**tensors["inputs"], **tensors["outputs"]}.items():
        channels = ", ".join(f"{number}: {what}" for number, what in tensor["channel_def"].items())
        shape = " × ".join(map(str, tensor["spatial_shape"])) or "–"
        values = " to ".join(f"{bound:g}" for bound in tensor["value_range"]) or "not bounded"
        yield f"| {key} | {_cell(channels)} | {shape} | {values} |"


def _scores(run: FinishedRun) -> Iterator[str]:
    """Yield the table of measures on the test cases."""
    yield "## Scores"
    yield f"On {run.cases['test']} test cases, which nothing was chosen by ({run.metrics['checkpoint']});"
    yield "in brackets the 95 % interval of a bootstrap by patient.\n"
    yield "| of | measure | value | patients | cases |\n|---|---|---|---|---|"
    yield from _rows("all", run.metrics.get("summary", {}))
    yield from _rows("slices", run.metrics.get("slices", {}))
    for name, own in run.metrics.get("per_class", {}).items():
        yield from _rows(name, own)
    for rival, own in (run.metrics.get("rivals") or {}).items():
        yield from _rows(f"rival: {rival}", own.get("summary", {}))


def _rows(of: str, block: Mapping[str, Any]) -> Iterator[str]:
    """Yield a row for each measure of a block of `metrics.json`."""
    for measure, entry in block.items():
        if not isinstance(entry, Mapping) or entry.get("mean") is None:
            continue
        bounds = entry.get("ci95")
        value = f"{entry['mean']:.3f}" + (f" [{bounds[0]:.3f}, {bounds[1]:.3f}]" if bounds else "")
        yield f"| {_cell(of)} | {measure} | {value} | {entry.get('n', '–')} | {entry.get('cases', '–')} |"


def _data(run: FinishedRun, data: TrainingData) -> Iterator[str]:
    """Yield what is told of the training data."""
    cases = run.cases
    yield "## Data"
    told = data.title or data.told
    yield f"{told[:1].upper()}{told[1:]}{f' ({data.home})' if data.home else ''}."
    yield f"{cases['training']} cases for training, {cases['validation']} for validation, {cases['test']} for the test,"
    yield "disjoint by patient."


def _files(contents: Contents) -> Iterator[str]:
    """Yield what the release holds, and what it does not."""
    yield "## Files"
    yield "| file | what |\n|---|---|"
    yield (
        "| `configs/` | "
        + ", ".join(f"`{name}.json`" for name in contents.configs)
        + ", each by itself; `metadata.json` |"
    )
    yield "| `models/model.pt` | the weights, a state dict of `network` |"
    for file in contents.learned:
        yield f"| `models/{file}` | {LEARNED[file]} |"
    for export in contents.exports:
        if export.difference is not None:
            kind = KINDS[export.name.rpartition(".")[2]]
            yield f"| `models/{export.name}` | {kind}; {tell_agreement(export.difference)} |"
    yield "| `checksums` | SHA-256 of each file: `sha256sum -c checksums` |"
    for line in contents.left_out:
        yield f"\nNot in it: {line}."


def _licences(contents: Contents, data: TrainingData) -> Iterator[str]:
    """Yield who made it, under which licence."""
    metadata = contents.metadata
    yield "## Licence"
    yield f"Configs and weights: {metadata['license']} (`LICENSE`). Authors: {metadata['authors']}."
    told = f"{data.licence} (`docs/data_license.txt`)" if data.licence else "not known; ask who gave it to you"
    yield f"Licence of the training data: {told}."


def tell_agreement(difference: float) -> str:
    """Return how an export agrees with the network, as text."""
    return f"differs from the network by {difference:.0e} of the largest output" if difference else "computes the same"


def _cell(text: str) -> str:
    """Return a text that a table of Markdown takes."""
    return text.replace("|", "\\|").replace("\n", " ")
