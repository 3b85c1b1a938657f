"""Train and score one hippocampus fold on a GPU within so many minutes: one file, no network, few packages.

Command: python benchmarks/hippocampus_gpu.py DATA [--fold 0] [--minutes 10]

DATA is the folder of the set (imagesTr, labelsTr, splits.json). It needs torch, monai, nibabel, pytorch-ignite, and of
tomokit (PYTHONPATH=src serves) the parts that need no more: network, loss, optimizer, augmentation. All cases lie on
the GPU; patches are cut there, a batch at a time.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import nibabel
import numpy as np
import torch
from monai.inferers import SlidingWindowInferer
from monai.transforms import Compose
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from tomokit.augmentation import (
    BatchRandBrightnessd,
    BatchRandContrastd,
    BatchRandGammad,
    BatchRandGaussianNoised,
    BatchRandGaussianSmoothd,
    BatchRandLowResolutiond,
    BatchRandSpatiald,
)
from tomokit.losses import DeepSupervision, DiceCrossEntropyLoss
from tomokit.networks import LeanUNet
from tomokit.optimizers import Muon

RESULTS = Path(__file__).parent / "results" / "hippocampus_gpu.json"
PATCH = (40, 56, 40)
BATCH = 8
FILTERS = (32, 64, 128, 256)
RATE = 0.01
RESERVE = 0.9  # of the minutes for training; the rest for reading, prediction and scoring
WARM = 20


def read_case(folder: Path, case: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a case's image (1, X, Y, Z), of mean 0 and deviation 1, and its label map (1, X, Y, Z)."""
    image = np.asarray(nibabel.load(folder / "imagesTr" / f"{case}.nii.gz").dataobj, np.float32)
    label = np.asarray(nibabel.load(folder / "labelsTr" / f"{case}.nii.gz").dataobj)
    image = (image - image.mean()) / image.std()
    return torch.from_numpy(image)[None], torch.from_numpy(label.astype(np.float32))[None]


def pad(volume: torch.Tensor) -> torch.Tensor:
    """Return a volume (1, X, Y, Z) that is at least as large as a patch, its edges repeated."""
    missing = [max(0, edge - length) for edge, length in zip(PATCH, volume.shape[1:], strict=True)]
    ends = [end for gap in reversed(missing) for end in (gap // 2, gap - gap // 2)]
    return functional.pad(volume[None], ends, mode="replicate")[0]


def draw_batch(cases: list[tuple[torch.Tensor, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Return a batch of patches at random places of random cases."""
    images, labels = [], []
    for number in torch.randint(len(cases), (BATCH,)).tolist():
        image, label = cases[number]
        starts = [int(torch.randint(n - p + 1, ())) for n, p in zip(image.shape[1:], PATCH, strict=True)]
        place = (slice(None), *(slice(start, start + edge) for start, edge in zip(starts, PATCH, strict=True)))
        images.append(image[place])
        labels.append(label[place])
    return {"image": torch.stack(images), "label": torch.stack(labels)}


def make_augmentation() -> Compose:
    """Return the segmentation bundle's augmentation of a batch."""
    return Compose(
        [
            BatchRandSpatiald(
                ["image", "label"],
                ["bilinear", "nearest"],
                rotate_range=0.26,
                scale_range=(0.85, 1.2),
                elastic_prob=0.1,
            ),
            BatchRandGaussianNoised("image", std_range=(0.0, 0.15)),
            BatchRandGaussianSmoothd("image"),
            BatchRandBrightnessd("image"),
            BatchRandContrastd("image"),
            BatchRandLowResolutiond("image"),
            BatchRandGammad("image"),
        ]
    )


class Training:
    """A network in training on a device, a step at a time."""

    def __init__(self, cases: list[tuple[torch.Tensor, torch.Tensor]], device: torch.device) -> None:
        self.cases, self.device = cases, device
        self.network = LeanUNet(3, 1, 3, FILTERS, [1, 2, 2, 2], [3] * 4, [2] * 4, [2] * 3, heads=2)
        self.network.to(device, memory_format=torch.channels_last_3d)
        self.average = AveragedModel(self.network, multi_avg_fn=get_ema_multi_avg_fn(0.995))
        self.loss = DeepSupervision(DiceCrossEntropyLoss())
        self.optimizer = Muon(self.network.parameters(), RATE)
        self.augmentation = make_augmentation()

    def step(self, done: float) -> None:
        """Take a step at `done` (0–1) of the training; the rate falls as a cosine."""
        self.network.train()
        for group in self.optimizer.param_groups:
            group["lr"] = RATE * min(1.0, 50 * done + 0.01) * 0.5 * (1 + np.cos(np.pi * done))
        batch = self.augmentation(draw_batch(self.cases))
        image = batch["image"].contiguous(memory_format=torch.channels_last_3d)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            logits = self.network(image)
        loss = self.loss([head.float() for head in logits], batch["label"])
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 12.0)
        self.optimizer.step()
        self.average.update_parameters(self.network)


def train(training: Training, seconds: float) -> int:
    """Train for so many seconds and return the number of steps, fixed after the first ones by their time."""
    began = time.perf_counter()
    for _ in range(WARM):
        training.step(0.0)
    synchronise(training.device)
    steps = int(seconds / ((time.perf_counter() - began) / WARM)) - WARM
    for step in range(1, steps + 1):
        now = time.perf_counter() - began
        training.step(max(step / steps, min(now / seconds, 1.0)))
        if now > seconds:
            return WARM + step
    return WARM + steps


def synchronise(device: torch.device) -> None:
    """Wait for what the device has still to do."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def score(network: torch.nn.Module, folder: Path, names: list[str], device: torch.device, out: Path) -> list[float]:
    """Return each case's mean Dice over the two structures; the predictions are written."""
    network.eval()
    inferer = SlidingWindowInferer(PATCH, 4, 0.5, mode="gaussian", padding_mode="replicate")
    out.mkdir(parents=True, exist_ok=True)
    scores = []
    for name in names:
        image, label = read_case(folder, name)
        with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            prediction = inferer(image[None].to(device), network).float().argmax(1)[0].cpu()
        source = nibabel.load(folder / "imagesTr" / f"{name}.nii.gz")
        nibabel.save(nibabel.Nifti1Image(prediction.numpy().astype(np.uint8), source.affine), out / f"{name}.nii.gz")
        pairs = [(prediction == value, label[0] == value) for value in (1, 2)]
        scores.append(statistics.mean(float(2 * (p & t).sum() / (p.sum() + t.sum())) for p, t in pairs))
    return scores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--fold", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--out", type=Path, default=Path("runs/hippocampus-gpu"))
    options = parser.parse_args()
    began = time.perf_counter()
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.backends.cudnn.benchmark = True
    fold = json.loads((options.data / "splits.json").read_text())["folds"][options.fold]
    named = [*fold["training"], *fold["validation"]]
    cases = [read_case(options.data, name) for name in named]
    cases = [(pad(image).to(device), pad(label).to(device)) for image, label in cases]
    training = Training(cases, device)
    steps = train(training, 60 * options.minutes * RESERVE - (time.perf_counter() - began))
    scores = score(training.average.module, options.data, fold["test"], device, options.out / "predictions")
    seconds = time.perf_counter() - began
    name = torch.cuda.get_device_name(0) if device.type == "cuda" else "cpu"
    row = {"system": "unet", "dataset": f"hippocampus fold {options.fold}", "metric": "dice", "ci95": None}
    row |= {"value": statistics.mean(scores), "n": len(scores), "seconds": seconds, "steps": steps, "hardware": name}
    row["peak_rss_gb"] = torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else None
    print(json.dumps(row, indent=1))
    RESULTS.parent.mkdir(exist_ok=True)
    rows = json.loads(RESULTS.read_text())["rows"] if RESULTS.exists() else []
    kept = [old for old in rows if (old["dataset"], old["hardware"]) != (row["dataset"], row["hardware"])]
    RESULTS.write_text(json.dumps({"name": "hippocampus_gpu", "rows": [*kept, row]}, indent=2) + "\n")


if __name__ == "__main__":
    main()
