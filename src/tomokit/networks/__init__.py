"""Networks that MONAI lacks, and what its own need to take an image of any size."""

from tomokit.networks.attention import ContextAttention, SkipGate, context_attention_unet
from tomokit.networks.blocks import Body, InstanceNorm, Segmenter
from tomokit.networks.dropout import add_dropout
from tomokit.networks.dynamic import (
    DynamicConvolution,
    SlicewiseDynamicConvolution,
    dynamic_unet,
    slicewise_dynamic_unet,
)
from tomokit.networks.heads import TaskHeads, task_head_unet
from tomokit.networks.padding import PaddedNetwork
from tomokit.networks.residual import ResidualStage, slim_vnet
from tomokit.networks.separable import separable_unet
from tomokit.networks.unet import LeanUNet

__all__ = [
    "Body",
    "ContextAttention",
    "DynamicConvolution",
    "InstanceNorm",
    "LeanUNet",
    "PaddedNetwork",
    "ResidualStage",
    "Segmenter",
    "SkipGate",
    "SlicewiseDynamicConvolution",
    "TaskHeads",
    "add_dropout",
    "context_attention_unet",
    "dynamic_unet",
    "separable_unet",
    "slicewise_dynamic_unet",
    "slim_vnet",
    "task_head_unet",
]
