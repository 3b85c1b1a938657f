"""The network's outputs of all cases of an evaluator, beside their labels."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from tomokit.engines.hardware import plain


def predict_cases(evaluator: Any) -> tuple[NDArray[np.float64], NDArray[Any]]:
    """Return the network's outputs (cases, C) and the labels of the evaluator's cases, each made as it makes them.

    Of sequences they are those of the volumes.
    """
    loader = evaluator.data_loader
    outputs, labels = [], []
    evaluator.network.eval()
    # in their order, and all of them: of several processes the evaluator's own loader may give a share
    for batch in DataLoader(loader.dataset, loader.batch_size or 1, collate_fn=loader.collate_fn):
        prepared = evaluator.prepare_batch(batch, evaluator.state.device, evaluator.non_blocking, **evaluator.to_kwargs)
        image, label, *more = prepared
        args, kwargs = more or ((), {})
        with torch.inference_mode():
            output = evaluator.inferer(image, evaluator.network, *args, **kwargs)
        if output.ndim == 3:  # (B, C, 1 + T) of a sequence: the volume comes first, then its windows; so in its labels
            output, label = output[..., 0], label[:, 0]
        outputs.append(plain(output).double().cpu())
        labels.append(plain(label).cpu())
    return torch.cat(outputs).numpy(), torch.cat(labels).numpy()
