"""Two scans brought together: who with whom, where it takes a point, how well that fits."""

from tomokit.registration.displacements import displacement_mm, field_transform, move_volume, moved_labels
from tomokit.registration.pairing import AddImageMaskd, PairedScans, list_scans, neighbouring_images
from tomokit.registration.scores import Likeness, MovedLabelsd, score_registration, summarise_registration

__all__ = [
    "AddImageMaskd",
    "Likeness",
    "MovedLabelsd",
    "PairedScans",
    "displacement_mm",
    "field_transform",
    "list_scans",
    "move_volume",
    "moved_labels",
    "neighbouring_images",
    "score_registration",
    "summarise_registration",
]
