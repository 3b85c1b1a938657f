"""Segment and classify 3D CT and MRI volumes with plain MONAI bundles."""

__version__ = "0.1.0"
