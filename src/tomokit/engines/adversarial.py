"""MONAI's adversarial trainer, for images that are mended: what it lacks to be trained, saved and resumed as others."""

from typing import Any

import torch
from monai.engines import AdversarialTrainer as MonaiAdversarialTrainer
from monai.engines import IterationEvents
from monai.utils import AdversarialIterationEvents, AdversarialKeys, CommonKeys
from torch import nn

from tomokit.engines.hardware import unwrap


class AdversarialTrainer(MonaiAdversarialTrainer):
    """Trains a network to mend images that a second one, the discriminator, can't tell from clean ones.

    MONAI's shows the discriminator the network's input as the real image, as for an autoencoder; here the clean image,
    the label, is the real one. It takes MONAI's arguments. To the handlers the network and its optimizer are those of
    any trainer; the discriminator's state is saved and restored beside them.

    Source: Isola et al., Image-to-image translation with conditional adversarial networks, CVPR 2017.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.scaler = self.state.g_scaler
        self.register_events(*IterationEvents)
        self.add_event_handler(AdversarialIterationEvents.GENERATOR_FORWARD_COMPLETED, _show_clean_images)
        self.add_event_handler(AdversarialIterationEvents.GENERATOR_BACKWARD_COMPLETED, _complete_backward)

    @property
    def network(self) -> nn.Module:
        """The network that mends."""
        return self.state.g_network

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """Its optimizer."""
        return self.state.g_optimizer

    @property
    def companions(self) -> dict[str, Any]:
        """What else is trained, by name, and is saved and restored with it."""
        found = {"discriminator": unwrap(self.state.d_network), "discriminator_optimizer": self.state.d_optimizer}
        return found | ({} if self.state.d_scaler is None else {"discriminator_scaler": self.state.d_scaler})


def _show_clean_images(engine: Any) -> None:
    """Make the clean images the real ones."""
    engine.state.output[AdversarialKeys.REALS] = engine.state.output[CommonKeys.LABEL]


def _complete_backward(engine: Any) -> None:
    """Tell the loss, and fire the event of every other trainer."""
    output = engine.state.output
    loss = output[AdversarialKeys.RECONSTRUCTION_LOSS] + output[AdversarialKeys.GENERATOR_LOSS]
    output[CommonKeys.LOSS] = loss.detach()
    engine.fire_event(IterationEvents.BACKWARD_COMPLETED)
