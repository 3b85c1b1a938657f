"""Deterministic CT and MRI phantoms with known truth, as data sets in the Decathlon's layout.

The anatomy is analytic (ellipsoids and tubes, bent by a smooth deformation) and is sampled on each case's own
grid. Arrays depend on `seed`, `size` and the case's number alone. Abdomens and lesions: spacing, orientation and
obliqueness differ, the patient lies the same way in world coordinates, and CT and MRI of the same seed and index
show the same patient on the same grid.
"""

from tomokit.phantoms.abdomens import SEGMENTATION_LABELS, make_segmentation_case, make_segmentation_set
from tomokit.phantoms.bleeds import BLEED_LABELS, make_bleed_case, make_bleed_set
from tomokit.phantoms.followup import (
    FOLLOWUP_LABELS,
    FollowUp,
    make_followup_case,
    make_followup_set,
    simulate_followup_set,
    simulate_pair,
)
from tomokit.phantoms.lesions import (
    CLASSIFICATION_LABELS,
    ELONGATION,
    make_classification_case,
    make_classification_set,
)
from tomokit.phantoms.modalities import (
    MultiModal,
    best_probability_of_modalities,
    make_modalities_case,
    make_modalities_set,
)
from tomokit.phantoms.orders import ORDER_LABELS, make_order_case, make_order_set
from tomokit.phantoms.records import (
    OUTCOME_LABELS,
    Patient,
    best_probability,
    draw_patient,
    make_record_case,
    make_record_set,
)
from tomokit.phantoms.scanner import MODALITIES, NOMINAL_SPACING_MM
from tomokit.phantoms.sets import MINIMUM_SIZE, Phantom

__all__ = [
    "BLEED_LABELS",
    "CLASSIFICATION_LABELS",
    "ELONGATION",
    "FOLLOWUP_LABELS",
    "MINIMUM_SIZE",
    "MODALITIES",
    "NOMINAL_SPACING_MM",
    "ORDER_LABELS",
    "OUTCOME_LABELS",
    "SEGMENTATION_LABELS",
    "FollowUp",
    "MultiModal",
    "Patient",
    "Phantom",
    "best_probability",
    "best_probability_of_modalities",
    "draw_patient",
    "make_bleed_case",
    "make_bleed_set",
    "make_classification_case",
    "make_classification_set",
    "make_followup_case",
    "make_followup_set",
    "make_modalities_case",
    "make_modalities_set",
    "make_order_case",
    "make_order_set",
    "make_record_case",
    "make_record_set",
    "make_segmentation_case",
    "make_segmentation_set",
    "simulate_followup_set",
    "simulate_pair",
]
