"""Engines: what a bundle's config names to train, evaluate and infer with MONAI's engines."""

from tomokit.engines.adversarial import AdversarialTrainer
from tomokit.engines.anomalies import attach_anomaly_scores, attach_anomaly_table, choose_anomaly_threshold
from tomokit.engines.checkpoints import find_checkpoint, load_weights
from tomokit.engines.enhancement import attach_enhancement_scores
from tomokit.engines.evaluation import (
    attach_class_table,
    attach_classification_scores,
    attach_inference,
)
from tomokit.engines.explanations import attach_explanations, explained_cases, list_explained
from tomokit.engines.hardware import (
    PrepareBatch,
    choose_precision,
    distributed_device,
    make_sampler,
    make_validation_sampler,
    place_network,
    set_seed,
)
from tomokit.engines.measuring import StructureMeasures
from tomokit.engines.pairs import attach_pair_scores, attach_pair_table, choose_pair_decision, list_pairs
from tomokit.engines.registration import (
    PreparePairs,
    attach_registration_files,
    attach_registration_scores,
    list_registrations,
)
from tomokit.engines.restorations import attach_restoration_scores, attach_restorations
from tomokit.engines.sampling import make_balanced_sampler
from tomokit.engines.segmentation import attach_segmentation_scores
from tomokit.engines.sequences import attach_shuffled_scores, attach_slice_scores, attach_slice_table
from tomokit.engines.training import attach_training

__all__ = [
    "AdversarialTrainer",
    "PrepareBatch",
    "PreparePairs",
    "StructureMeasures",
    "attach_anomaly_scores",
    "attach_anomaly_table",
    "attach_class_table",
    "attach_classification_scores",
    "attach_enhancement_scores",
    "attach_explanations",
    "attach_inference",
    "attach_pair_scores",
    "attach_pair_table",
    "attach_registration_files",
    "attach_registration_scores",
    "attach_restoration_scores",
    "attach_restorations",
    "attach_segmentation_scores",
    "attach_shuffled_scores",
    "attach_slice_scores",
    "attach_slice_table",
    "attach_training",
    "choose_anomaly_threshold",
    "choose_pair_decision",
    "choose_precision",
    "distributed_device",
    "explained_cases",
    "find_checkpoint",
    "list_explained",
    "list_pairs",
    "list_registrations",
    "load_weights",
    "make_balanced_sampler",
    "make_sampler",
    "make_validation_sampler",
    "place_network",
    "set_seed",
]
