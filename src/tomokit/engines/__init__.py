"""Engines: what a bundle's config names to train, evaluate and infer with MONAI's engines."""

from tomokit.engines.checkpoints import find_checkpoint, load_weights
from tomokit.engines.evaluation import (
    attach_class_table,
    attach_classification_scores,
    attach_inference,
    attach_segmentation_scores,
)
from tomokit.engines.hardware import (
    PrepareBatch,
    choose_precision,
    distributed_device,
    make_sampler,
    make_validation_sampler,
    place_network,
    set_seed,
)
from tomokit.engines.training import attach_training

__all__ = [
    "PrepareBatch",
    "attach_class_table",
    "attach_classification_scores",
    "attach_inference",
    "attach_segmentation_scores",
    "attach_training",
    "choose_precision",
    "distributed_device",
    "find_checkpoint",
    "load_weights",
    "make_sampler",
    "make_validation_sampler",
    "place_network",
    "set_seed",
]
