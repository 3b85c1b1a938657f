"""nnU-Net's prediction of a network that was trained elsewhere: the plans that make it see the same scans."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from tomokit.datasets import case_name

NORMALISATION = {"ScaleIntensityRanged": "CTNormalization", "NormalizeIntensityd": "ZScoreNormalization"}


def predict_by_nnunet(network: nn.Module, config: dict[str, Any], job: Any) -> None:
    """Write the label maps of the job's scans by nnU-Net's own path from file to file, one after the other.

    Its reader turns a scan to RAS, its preprocessing resamples and normalises it, its predictor weighs windows by a
    Gaussian, its export resamples the logits class by class. There is no mirroring. The image is resampled linearly, as
    in the run's own preprocessing, where nnU-Net's default is cubic and slower.
    """
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    predictor = nnUNetPredictor(
        tile_step_size=1 - job.overlap,
        use_mirroring=False,
        perform_everything_on_device=job.device == "cuda",
        device=torch.device(job.device),
        allow_tqdm=False,
    )
    plans = PlansManager(make_plans(config, job.window))
    labels = {name: int(value) for value, name in config["labels"].items()}
    described = {"labels": labels, "channel_names": {"0": config["modality"][0]}, "file_ending": ".nii.gz"}
    configuration = plans.get_configuration("3d_fullres")
    predictor.manual_initialization(network, plans, configuration, [network.state_dict()], described, "none", None)
    output_dir = Path(job.output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    targets = [str(output_dir / case_name(source)) for source in job.sources]
    predictor.predict_from_files_sequential([[source] for source in job.sources], targets)


def make_plans(config: dict[str, Any], window: list[int]) -> dict[str, Any]:
    """Return plans, as nnU-Net reads them, of a run's spacing, normalisation and windows of (X, Y, Z) voxels.

    nnU-Net reads a scan as (Z, Y, X); its transposition gives (X, Y, Z), in which the network was trained.
    """
    intensity = config["intensity"]
    resampling = {"is_seg": False, "order": 1, "order_z": 0, "force_separate_z": None}
    configuration = {
        "preprocessor_name": "DefaultPreprocessor",
        "patch_size": list(window),
        "spacing": list(config["spacing"]),
        "normalization_schemes": [NORMALISATION[intensity["_target_"]]],
        "use_mask_for_norm": [False],
        "resampling_fn_data": "resample_data_or_seg_to_shape",
        "resampling_fn_data_kwargs": resampling,
        "resampling_fn_seg": "resample_data_or_seg_to_shape",
        "resampling_fn_seg_kwargs": resampling | {"is_seg": True},
        "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
        "resampling_fn_probabilities_kwargs": resampling,
        "architecture": {},
    }
    return {
        "dataset_name": "benchmark",
        "plans_name": "benchmark",
        "transpose_forward": [2, 1, 0],
        "transpose_backward": [2, 1, 0],
        "image_reader_writer": "NibabelIOWithReorient",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {"0": _clipping(intensity)},
        "configurations": {"3d_fullres": configuration},
    }


def _clipping(intensity: dict[str, Any]) -> dict[str, float]:
    """Return how nnU-Net clips and scales HU to what `ScaleIntensityRanged` makes of them; 0 and 1 for others."""
    if "a_min" not in intensity:
        return {"mean": 0.0, "std": 1.0, "percentile_00_5": 0.0, "percentile_99_5": 1.0}
    low, high = intensity["a_min"], intensity["a_max"]
    scale = (high - low) / (intensity["b_max"] - intensity["b_min"])
    mean = low - intensity["b_min"] * scale
    return {"mean": mean, "std": scale, "percentile_00_5": low, "percentile_99_5": high}
