"""DICOM folders to volumes: which files make one, whether they are all there, and their voxels in RAS."""

from tomokit.dicom.faults import KINDS, Fault
from tomokit.dicom.series import Series, find_series, read_series

__all__ = ["KINDS", "Fault", "Series", "find_series", "read_series"]
