"""Segment and classify 3D CT and MRI volumes with plain MONAI bundles."""

import logging
import warnings

__version__ = "0.1.0"

# MONAI looks for a GPU decoder of DICOM each time it builds a loader; the bundles read NIfTI.
warnings.filterwarnings("ignore", message="NvImgCodecPydicomReader")
logging.getLogger("monai.data.nvimgcodec_pydicom_plugin").setLevel(logging.ERROR)
