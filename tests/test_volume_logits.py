import torch

from tomokit.networks import VolumeLogits, WindowSequence


def test_the_volumes_logits_are_the_sequences_first_column():
    torch.manual_seed(0)
    encoder = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU())
    sequence = WindowSequence(encoder, 4, 2, hidden=5).eval()
    image = torch.randn(2, 1, 8, 7, 6)
    assert torch.equal(VolumeLogits(sequence)(image), sequence(image)[..., 0])
