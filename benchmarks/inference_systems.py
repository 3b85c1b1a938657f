"""The systems of the inference benchmark: from files of scans to files of label maps, a process for each.

Command: python benchmarks/inference_systems.py JOB.json RECORD.json (inference.py runs it)

All get the same run: its network, weights, preprocessing and windows. `tomokit` is the bundle's inference as it is;
`monai` and `monai-nearest` are the evaluator, inferer and transforms of the Model Zoo's configs, in float32 on a CPU,
in float16 on a GPU, with one process that reads ahead; `nnunet` is nnU-Net's own reader, preprocessing, predictor and
export; `bare` is the network alone, on as many windows as `tomokit` needed, in the same batches and precision: what
`tomokit` looked at again, since a structure reached the body box's face, is not among them. `parity` compares labels,
not time. Seconds begin when torch, MONAI and nnU-Net have been imported. GB are 10⁹ bytes.
"""

import importlib
import importlib.util
import logging
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from ignite.engine import Events
from inference_labels import count_pairs, count_structures, lowest_dice, share_equal
from inference_nnunet import predict_by_nnunet
from monai.bundle import ConfigParser, ConfigWorkflow
from monai.data import DataLoader, Dataset, MetaTensor, decollate_batch, list_data_collate
from monai.engines import SupervisedEvaluator
from monai.inferers import SlidingWindowInferer, sliding_window_inference
from monai.transforms import AsDiscreted, Compose, Invertd, SaveImaged
from torch import nn

from tomokit.bundles import find_bundle
from tomokit.engines import choose_precision, load_weights, place_network
from tomokit.engines.hardware import to_channels_last
from tomokit.files import read_json, write_json
from tomokit.inference import SlabInferer, slab_inferer
from tomokit.inference.windows import place_windows
from tomokit.memory import lacks_memory
from tomokit.release.plain_monai import with_monais_parts
from tomokit.runs import peak_memory_gb

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
Record = dict[str, Any]


class Job(NamedTuple):
    """What one process does.

    Attributes:
        system: one of `SYSTEMS`.
        run_dir: of the trained network.
        sources: the scans' files.
        output_dir: of the label maps.
        window: (X, Y, Z) in voxels.
        overlap: of neighbouring windows, as part of their edge.
        device: "cpu" or "cuda".
        overrides: of the bundle's inference, for `tomokit`.
        batches: windows of each call of the network, for `bare`.
    """

    system: str
    run_dir: str
    sources: list[str]
    output_dir: str
    window: list[int]
    overlap: float
    device: str
    overrides: dict[str, Any] = {}  # noqa: RUF012  # never changed
    batches: list[int] = []  # noqa: RUF012


class Clock:
    """Counts the calls of a network: the windows of each, and on a CPU the seconds spent in them.

    Args:
        network: what is counted.
        device: a GPU works on behind a call, so its seconds would not be the network's.
    """

    def __init__(self, network: nn.Module, device: str) -> None:
        self.batches: list[int] = []
        self.again: list[int] = []  # of passes that were done once more
        self.seconds = 0.0 if device == "cpu" else None
        self._began = 0.0
        network.register_forward_pre_hook(self._begin)
        network.register_forward_hook(self._end)

    def _begin(self, _network: nn.Module, given: tuple[torch.Tensor, ...]) -> None:
        self.batches.append(len(given[0]))
        self._began = time.perf_counter()

    def _end(self, *_: Any) -> None:
        if self.seconds is not None:
            self.seconds += time.perf_counter() - self._began

    def record(self) -> Record:
        """Return what a record keeps of it."""
        return {"batches": self.batches, "windows_again": sum(self.again), "network_seconds": self.seconds}


def watch_growth(clock: Clock, evaluator: SupervisedEvaluator) -> None:
    """Let a clock tell the windows of passes that are done once more, in a larger box of the body."""
    first = 1  # behind the look at the network

    def begin(_: Any) -> None:
        nonlocal first
        first = max(1, len(clock.batches))

    def see(record: logging.LogRecord) -> bool:
        if "body box's face" in record.getMessage():
            clock.again += clock.batches[first:]
            del clock.batches[first:]
        return True

    evaluator.add_event_handler(Events.ITERATION_STARTED, begin)
    logging.getLogger(slab_inferer.__name__).addFilter(see)


# --------------------------------------------------------------------------------------------------- systems


def run_tomokit(job: Job) -> Record:
    """Segment as `python -m monai.bundle run` on the run's config and the bundle's inference.yaml does."""
    files = [Path(job.run_dir) / "configs" / "train.yaml", find_bundle("segmentation") / "configs" / "inference.yaml"]
    given = {"input": job.sources, "output_dir": job.output_dir, "checkpoint": "last", "run_dir": job.run_dir}
    given |= {"device": f"$torch.device('{job.device}')", "overlap": job.overlap}
    given |= {"inferer::roi_size": job.window, "inferer::sw_batch_size": 1}
    workflow = ConfigWorkflow([str(file) for file in files], **{**given, **job.overrides})
    workflow.initialize()
    clock = Clock(workflow.parser.get_parsed_content("network"), job.device)
    watch_growth(clock, workflow.parser.get_parsed_content("evaluator"))
    workflow.run()
    # the first call is a look at the network, no window of the scan
    precision = workflow.parser.get_parsed_content("inference_precision")
    return clock.record() | {"batches": clock.batches[1:], "precision": name_of(precision)}


def run_monai(job: Job, nearest: bool) -> Record:
    """Segment as the zoo's bundles do: logits inverted and then discrete, or, as whole bodies, the other way round."""
    preprocessing, network = read_run(job)
    discrete = AsDiscreted("pred", argmax=True)
    back = Invertd("pred", preprocessing, orig_keys="image", nearest_interp=nearest)
    save = SaveImaged(
        "pred", output_dir=job.output_dir, output_postfix="", separate_folder=False, print_log=False, resample=False
    )
    entries = [{"image": source} for source in job.sources]
    torch.backends.cudnn.benchmark = True  # so do the zoo's
    clock = Clock(network.to(job.device), job.device)
    evaluator = SupervisedEvaluator(
        device=torch.device(job.device),
        val_data_loader=DataLoader(Dataset(entries, preprocessing), batch_size=1, num_workers=1),  # as the whole body's
        network=network,
        inferer=SlidingWindowInferer(job.window, sw_batch_size=1, overlap=job.overlap, mode="gaussian"),
        postprocessing=Compose([discrete, back, save] if nearest else [back, discrete, save]),
        amp=job.device == "cuda",  # the zoo's configs ask for it; on a CPU MONAI's evaluator has none
    )
    evaluator.run()
    return clock.record() | {"precision": "float16" if job.device == "cuda" else "float32"}


def run_nnunet(job: Job) -> Record:
    """Segment as nnU-Net predicts and exports, without mirroring, in one process."""
    if importlib.util.find_spec("nnunetv2") is None:
        return {"note": "nnunetv2 is not installed"}
    importlib.import_module("nnunetv2.inference.predict_from_raw_data")
    began = wait(job.device)
    _, network = read_run(job)
    clock = Clock(network, job.device)
    predict_by_nnunet(network, run_config(job), job)
    seconds = wait(job.device) - began
    return clock.record() | {"seconds": seconds, "precision": "float32" if job.device == "cpu" else "float16"}


def run_bare(job: Job) -> Record:
    """Call the network as often as `tomokit` did, on windows of noise; the first call is a warm-up."""
    _, network = read_run(job)
    network = place_network(network, job.device).eval()
    windows = torch.randn(max(job.batches), 1, *job.window, generator=torch.Generator().manual_seed(0))
    windows = to_channels_last(windows.to(job.device))
    dtype = choose_precision(job.device, amp=True, training=False)
    with torch.inference_mode(), torch.autocast(job.device, dtype, enabled=dtype != torch.float32):
        network(windows[:1])
        began = wait(job.device)
        for count in job.batches:
            network(windows[:count])
        seconds = wait(job.device) - began
    return {"seconds": seconds, "batches": job.batches, "network_seconds": seconds, "precision": name_of(dtype)}


def run_parity(job: Job) -> Record:
    """Compare labels with MONAI's full logits, inverted: the same windows and weights where windows tile the scan."""
    preprocessing, network = read_run(job)
    network.to(job.device).eval()
    classes = len(run_config(job)["labels"])
    pairs = {name: np.zeros((classes, classes), np.int64) for name in PRECISIONS}
    for source in job.sources:
        image = list_data_collate([preprocessing({"image": source})])["image"].to(job.device)
        truth = _full_logits_labels(image, network, preprocessing, job)
        for name, dtype in PRECISIONS.items():
            inferer = SlabInferer(job.window, overlap=job.overlap, grid="source", dtype=dtype)
            labels = inferer(image, network)[0, 0].cpu().numpy()
            pairs[name] += count_pairs(truth, labels, classes)
    return {
        name: {"share": share_equal(counts), "lowest_dice": lowest_dice(counts), "structures": count_structures(counts)}
        for name, counts in pairs.items()
    }


def _full_logits_labels(image: MetaTensor, network: nn.Module, preprocessing: Compose, job: Job) -> np.ndarray:
    """Return the labels (X, Y, Z) on the source's grid by MONAI, from the logits of the whole volume."""
    one, two, three = place_windows(job.window, job.window, job.overlap, "gaussian").weights
    weights = (one[:, None, None] * two[:, None] * three).to(job.device)
    with torch.no_grad():
        logits = sliding_window_inference(
            image, job.window, 1, network, overlap=job.overlap, mode="constant", roi_weight_map=weights
        )
    item = decollate_batch({"image": image, "pred": logits})[0]
    item = Invertd("pred", preprocessing, orig_keys="image", nearest_interp=False)(item)
    return torch.as_tensor(item["pred"]).argmax(0).cpu().numpy()


SYSTEMS: dict[str, Callable[[Job], Record]] = {
    "tomokit": run_tomokit,
    "monai": lambda job: run_monai(job, nearest=False),
    "monai-nearest": lambda job: run_monai(job, nearest=True),
    "nnunet": run_nnunet,
    "bare": run_bare,
    "parity": run_parity,
}


# ------------------------------------------------------------------------------------------------ their parts


def run_config(job: Job) -> Record:
    """Return the run's config as it was merged and run."""
    return dict(ConfigParser.load_config_file(Path(job.run_dir) / "configs" / "train.yaml"))


def read_run(job: Job) -> tuple[Compose, nn.Module]:
    """Return the run's preprocessing, by MONAI's own reader and resampling, and its network with the last weights."""
    parser = ConfigParser(with_monais_parts(run_config(job)))
    network = parser.get_parsed_content("network_def")
    load_weights(network, job.run_dir, "last")
    return parser.get_parsed_content("preprocessing"), network


def name_of(dtype: torch.dtype) -> str:
    """Return the name of a precision."""
    return str(dtype).removeprefix("torch.")


def wait(device: str) -> float:
    """Return the time, in seconds, when the device has done what it was given."""
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def peak_rss_gb() -> float:
    """Return the most memory that this process has held, in 10⁹ bytes.

    On Linux from its own status: `getrusage` counts what the process that started it held, too.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024 / 1e9
    return peak_memory_gb() * 2**30 / 1e9


def measure(job: Job) -> Record:
    """Return what a system took: `seconds`, `peak_rss_gb`, windows; a `note` where it could not finish."""
    began = wait(job.device)
    try:
        record = {"seconds": None} | SYSTEMS[job.system](job)
    except (RuntimeError, MemoryError) as error:
        if lacks_memory(error):
            return {"note": f"out of memory on {'the GPU' if job.device == 'cuda' else 'the CPU'}"}
        raise
    if "note" not in record and record["seconds"] is None:
        record["seconds"] = wait(job.device) - began
    record["peak_rss_gb"] = peak_rss_gb()
    if job.device == "cuda":
        record["peak_gpu_gb"] = torch.cuda.max_memory_allocated() / 1e9
    return record


def main() -> None:
    job, record = sys.argv[1:]
    write_json(record, measure(Job(**read_json(job))))


if __name__ == "__main__":
    main()
