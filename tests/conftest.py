import os
from pathlib import Path

import nibabel
import numpy as np
import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # two workers run the tests, one core each
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")


@pytest.fixture
def write_volume(tmp_path):
    """Return a function that writes an array as NIfTI under `tmp_path` and returns its path."""

    def write(name: str, array: np.ndarray, affine: np.ndarray | None = None) -> str:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        nibabel.save(nibabel.Nifti1Image(array, np.eye(4) if affine is None else affine), path)
        return str(path)

    return write


@pytest.fixture(scope="session")
def mirror() -> Path:
    """Return the folder of the real data sets, or skip: TOMOKIT_MIRROR says where it is."""
    if "TOMOKIT_MIRROR" not in os.environ:
        pytest.skip("set TOMOKIT_MIRROR to a folder with the real data sets to run this test")
    return Path(os.environ["TOMOKIT_MIRROR"])
