"""A variational autoencoder of whole volumes of one size."""

from monai.networks.nets import VarAutoEncoder
from torch import Tensor


class VolumeVAE(VarAutoEncoder):
    """MONAI's `VarAutoEncoder` for images in any memory order; in use its latent code is the mean.

    It gives the reconstruction (B, C, X, Y[, Z]), 0–1, then mean, log variance and code (B, latent). The size of the
    image is fixed, and what it knows depends on the place in it.

    Source: Kingma and Welling, Auto-encoding variational Bayes, ICLR 2014; Baur et al., Medical Image Analysis 69 (2021).
    """

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

    def encode_forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean and the log variance of the code; MONAI's `view` refuses channels-last features."""
        features = self.intermediate(self.encode(x)).flatten(1)
        return self.mu(features), self.logvar(features)
