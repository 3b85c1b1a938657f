"""A variational autoencoder of whole volumes of one size."""

import torch
from monai.networks.nets import VarAutoEncoder
from torch import Tensor

REMEMBERED = 0.98  # of the usual error, at each step


class VolumeVAE(VarAutoEncoder):
    """MONAI's `VarAutoEncoder` for images in any memory order, which keeps how far it is usually off at each voxel.

    In training it gives the reconstruction (B, C, X, Y[, Z]), 0–1, then mean, log variance and code (B, latent); in use
    the reconstruction alone, from the mean. The size of the image is fixed, and what it knows depends on the place in
    it. `spread`, of one channel, is the moving average of the training images' distances from their reconstructions.

    Source: Kingma and Welling, Auto-encoding variational Bayes, ICLR 2014.
    """

    spread: Tensor

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        image_size: tuple[int, ...],
        latent_size: int,
        channels: tuple[int, ...],
        strides: tuple[int, ...],
    ) -> None:
        super().__init__(
            spatial_dims=spatial_dims,
            in_shape=(in_channels, *image_size),
            out_channels=in_channels,
            latent_size=latent_size,
            channels=channels,
            strides=strides,
            use_mean_at_inference=True,
        )
        self.register_buffer("spread", torch.ones(1, 1, *image_size))

    def encode_forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean and the log variance of the code; MONAI's `view` refuses channels-last features."""
        features = self.intermediate(self.encode(x)).flatten(1)
        return self.mu(features), self.logvar(features)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return what is made of images (B, C, X, Y[, Z]) of the one size; in training what the loss takes beside."""
        output: tuple[Tensor, Tensor, Tensor, Tensor] = super().forward(x)
        if not self.training:
            return output[0]
        errors = (x - output[0].detach().float()).abs().mean((0, 1), keepdim=True)
        self.spread.lerp_(errors, 1 - REMEMBERED)
        return output
