"""The kinds of fault that `tomokit check` knows: what each means, how grave it is, what to do about it."""

from typing import NamedTuple

ERROR, WARNING = "error", "warning"


class Kind(NamedTuple):
    """A kind of fault: its severity, when it is found, and the remedy."""

    severity: str
    meaning: str
    remedy: str


class Finding(NamedTuple):
    """One fault of one case, or of the whole set where `case` is None."""

    case: str | None
    kind: str
    evidence: str

    @property
    def severity(self) -> str:
        """Return "error" or "warning"."""
        return KINDS[self.kind].severity

    def as_row(self) -> dict[str, str | None]:
        """Return the finding as the JSON file has it."""
        return {
            "case": self.case,
            "kind": self.kind,
            "severity": self.severity,
            "evidence": self.evidence,
            "remedy": KINDS[self.kind].remedy,
        }


# In the order of the tables: the set, files, grids, intensities, labels, pairs of cases, the split, the record.
KINDS = {
    "unusable": Kind(
        ERROR,
        "there is no dataset.json, it is malformed, or no case can be read (exit 2)",
        "give a folder with a dataset.json in the Decathlon's layout; `tomokit import SOURCE DIR` writes one",
    ),
    "missing_file": Kind(
        ERROR, "dataset.json lists a file that is not there", "restore the file, or remove the case from dataset.json"
    ),
    "orphan": Kind(
        WARNING,
        "an image or label lies in the folder but dataset.json does not list it, or a training image has no label",
        "list image and label in dataset.json, or move the file away",
    ),
    "unreadable": Kind(
        ERROR,
        "a file is truncated, damaged, of no known format, or its voxels are not one number each",
        "copy the file again from its source, or remove the case",
    ),
    "format": Kind(
        ERROR, "a file is not NIfTI, which is what the bundles read", "`tomokit import SOURCE DIR` converts the set"
    ),
    "dimension": Kind(
        ERROR, "a volume has not three axes", "store one 3D volume per channel and list them under `image`"
    ),
    "channel_count": Kind(
        ERROR,
        "a case has more or fewer images than `modality` has kinds",
        "list one image per kind, in the order of `modality`",
    ),
    "modality_absent": Kind(
        WARNING,
        "a case lacks one of its modalities (null in `image`)",
        "train the bundle fusion with modes/modalities.yaml, which does without; other bundles refuse the case",
    ),
    "own_grids": Kind(
        WARNING,
        "the images of a case that has a class lie on grids of their own",
        "train the bundle fusion with modes/modalities.yaml, which brings them to one grid, or resample them; other "
        "bundles refuse the case",
    ),
    "shape_mismatch": Kind(
        ERROR,
        "image and label, or two images of a case, have different sizes in voxels",
        "resample one onto the other's grid (labels by nearest neighbour)",
    ),
    "spacing_mismatch": Kind(
        ERROR,
        "same size in voxels, but spacings differ by more than 0.1 %",
        "correct the header that is wrong, or resample the label onto the image's grid",
    ),
    "orientation_mismatch": Kind(
        ERROR,
        "same size and spacing, but the index axes point elsewhere (by more than 0.1°)",
        "correct the header that is wrong, or reorient the label to the image's axes",
    ),
    "affine_mismatch": Kind(
        ERROR,
        "same size, spacing and axes, but corners of the grids lie more than 0.01 mm apart",
        "correct the origin in the header that is wrong, or resample the label onto the image's grid",
    ),
    "spacing_invalid": Kind(
        ERROR,
        "a header's spacing is zero, negative or not a number",
        "write the true spacing in mm into the header (NIfTI: pixdim, with sform and qform)",
    ),
    "spacing_implausible": Kind(
        WARNING,
        "a spacing is below 0.05 mm or above 15 mm, or the header's unit is not mm",
        "write the true spacing in mm into the header",
    ),
    "header_inconsistent": Kind(
        WARNING,
        "a NIfTI header tells two spacings (pixdim and affine, by more than 1 %) or two places (qform and sform, by "
        "more than half a voxel)",
        "find out which is true and write it to both; the sform counts where there is one",
    ),
    "not_orthogonal": Kind(
        ERROR,
        "the index axes are not at right angles (by more than 0.1°), as with gantry tilt",
        "resample the scan onto an orthogonal grid",
    ),
    "not_finite": Kind(ERROR, "an image has voxels that are NaN or infinite", "replace them, or remove the case"),
    "constant_image": Kind(ERROR, "all voxels of an image have one value", "export the image again"),
    "hu_not_rescaled": Kind(
        ERROR,
        "a CT image holds stored or rescaled values, not HU: hardly a voxel is negative, tissue lies about 1000, or "
        "all values lie within 50",
        "apply the DICOM rescale slope and intercept (most often −1024), or import from DICOM; where no HU are meant, "
        "name the modality otherwise",
    ),
    "hu_out_of_range": Kind(
        WARNING,
        "a CT image has values below −1100 or above 4096 HU: padding, metal, or a wrong rescale",
        "clip in preprocessing (`intensity`), after looking at the case",
    ),
    "intensity_domains": Kind(
        WARNING,
        "an image's range of intensities is orders of magnitude off those of most cases",
        "normalise each image (NormalizeIntensityd), or treat the domains as groups in the split",
    ),
    "label_fractional": Kind(
        ERROR,
        "a label has values that are not whole",
        "resample it by nearest neighbour from its source, store integers",
    ),
    "label_outside_map": Kind(
        ERROR,
        "a label's value, or a case's class, is not in `labels`",
        "add the value to `labels` in dataset.json, or correct the label",
    ),
    "label_empty": Kind(
        WARNING, "a label has no foreground at all", "check that the case is truly without the structure, or label it"
    ),
    "class_missing": Kind(
        WARNING,
        "a case lacks a class that all others have, or no case has a class of `labels`",
        "label the structure, or remove the class from `labels`",
    ),
    "label_islands": Kind(
        WARNING,
        "a structure that is one piece elsewhere has a second piece of at most 8 voxels or 1 % of it",
        "remove stray voxels in the label, after looking at them",
    ),
    "label_does_not_fit": Kind(
        WARNING,
        "a label explains its image's intensities far worse than the other labels do theirs, or better when moved",
        "look at image and label together: a label of another scan, a shift, or a flip",
    ),
    "left_right_swap": Kind(
        ERROR,
        "a label fits its image better when mirrored left to right, or its structures' order is mirrored",
        "mirror the label, or correct the header that is wrong; compare with the source",
    ),
    "lateral_labels": Kind(
        WARNING,
        "labels tell left from right",
        "train without left–right flips: a config that has one is refused for these labels",
    ),
    "duplicate_image": Kind(
        WARNING, "two cases have the same image, voxel for voxel", "remove one of them, or restore its own image"
    ),
    "duplicate_label": Kind(
        WARNING,
        "two cases have the same label, voxel for voxel, on different images",
        "restore the label that belongs to each image",
    ),
    "patient_leak": Kind(
        ERROR,
        "a patient has scans on two sides of a split",
        "make the split again: `tomokit split DIR --overwrite`; where the parts are sections of dataset.json, move the "
        "patient's cases into one",
    ),
    "image_leak": Kind(
        ERROR, "the same image is on two sides of a split", "give both cases one `patient`, then split again"
    ),
    "near_duplicate_leak": Kind(
        ERROR,
        "nearly the same image (rescaled, flipped or encoded otherwise) is on two sides of a split",
        "give both cases one `patient`, then split again",
    ),
    "stale_split": Kind(
        ERROR,
        "splits.json does not fit the cases: it names others, or was made for other patients or classes",
        "make the split again: `tomokit split DIR --overwrite`",
    ),
    "clinical_missing": Kind(
        WARNING,
        "a clinical field is empty for a case though most have it, or for most cases",
        "fill it in, or let the model impute it",
    ),
    "clinical_infinite": Kind(ERROR, "a clinical field is infinite", "find the true value, or leave it empty"),
    "clinical_unit": Kind(
        WARNING,
        "a clinical value is off the set's by a power of ten: most likely another unit",
        "convert it to the unit of the others",
    ),
}


def render_kinds() -> str:
    """Return the table of all kinds, in Markdown."""
    lines = ["| kind | severity | found when | remedy |", "|---|---|---|---|"]
    lines += [f"| `{name}` | {kind.severity} | {kind.meaning} | {kind.remedy} |" for name, kind in KINDS.items()]
    return "\n".join(lines)
