"""Small cases with known structures, for tests of what is measured in them."""

import nibabel as nib
import numpy as np

OBLIQUE = np.array([[0, -1.2, 0.1, 20], [0.9, 0, 0.2, 7], [-0.1, 0.1, -2.0, 30], [0, 0, 0, 1]])


def make_cases(folder):
    """Return 5 cases of two classes with an image of 0 and 1 of drawn size, on a grid whose axes are turned."""
    rng, made = np.random.default_rng(0), []
    for number in range(5):
        sizes, volume = rng.integers(3, 9, 3), np.zeros((12, 13, 10), np.float32)
        volume[1 : 1 + sizes[0], 2 : 2 + sizes[1], 1 : 1 + sizes[2]] = 1
        volume[4, 5, :] = 1
        path = str(folder / f"case_{number}.nii")
        nib.save(nib.Nifti1Image(volume, OBLIQUE), path)
        made.append({"case": f"case_{number}", "image": path, "mask": path, "label": number % 2})
    return made


def without_masks(entries):
    """Return the entries without what names their masks."""
    return [{key: entry[key] for key in entry if key != "mask"} for entry in entries]
