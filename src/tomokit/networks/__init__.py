"""Networks that MONAI lacks, and what its own need to take an image of any size."""

from tomokit.networks.attention import ContextAttention, SkipGate, context_attention_unet
from tomokit.networks.autoencoder import VolumeVAE
from tomokit.networks.blocks import Body, InstanceNorm, Segmenter
from tomokit.networks.cnn import PlainCNN
from tomokit.networks.dropout import add_dropout
from tomokit.networks.dynamic import (
    DynamicConvolution,
    SlicewiseDynamicConvolution,
    dynamic_unet,
    slicewise_dynamic_unet,
)
from tomokit.networks.encoder import LeanEncoder
from tomokit.networks.fusion import FusionNetwork
from tomokit.networks.heads import TaskHeads, task_head_unet
from tomokit.networks.inception import Inception, InceptionBlock
from tomokit.networks.measures import MeasuresAdded
from tomokit.networks.padding import MinimumSize, PaddedNetwork
from tomokit.networks.registration import RegistrationPyramid
from tomokit.networks.residual import ResidualStage, slim_vnet
from tomokit.networks.restoration import BiasFreeUNet, Residual
from tomokit.networks.separable import separable_unet
from tomokit.networks.sequence import WindowSequence
from tomokit.networks.siamese import SiameseNetwork
from tomokit.networks.unet import LeanUNet
from tomokit.networks.vit import ViTClassifier
from tomokit.networks.volume import VolumeLogits
from tomokit.networks.whole import WholeVolume

__all__ = [
    "BiasFreeUNet",
    "Body",
    "ContextAttention",
    "DynamicConvolution",
    "FusionNetwork",
    "Inception",
    "InceptionBlock",
    "InstanceNorm",
    "LeanEncoder",
    "LeanUNet",
    "MeasuresAdded",
    "MinimumSize",
    "PaddedNetwork",
    "PlainCNN",
    "RegistrationPyramid",
    "Residual",
    "ResidualStage",
    "Segmenter",
    "SiameseNetwork",
    "SkipGate",
    "SlicewiseDynamicConvolution",
    "TaskHeads",
    "ViTClassifier",
    "VolumeLogits",
    "VolumeVAE",
    "WholeVolume",
    "WindowSequence",
    "add_dropout",
    "context_attention_unet",
    "dynamic_unet",
    "separable_unet",
    "slicewise_dynamic_unet",
    "slim_vnet",
    "task_head_unet",
]
