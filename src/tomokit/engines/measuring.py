"""The measures of each structure and lesion, beside the label maps of an inference or an evaluation."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events

from tomokit.engines.evaluation import write_before_errors
from tomokit.errors import TomokitError
from tomokit.files import write_json, write_table
from tomokit.inference import first_image
from tomokit.labels import find_lesions
from tomokit.measure import COLUMNS, measure_structures
from tomokit.reading import read_scan
from tomokit.runs import is_main_process

UNITS = {"CT": "HU"}  # of a modality's values; those of others have none
CSV, JSON = "measures.csv", "measures.json"


class StructureMeasures:
    """Measures the label map of each scan, and writes `measures.csv` and `measures.json` of all of them at the end.

    Both hold the rows of `tomokit.measure.measure_structures`; the density is of the scan as it is stored, of several
    modalities the first one. After an error the CSV holds the scans before it.

    Args:
        labels: the label map, `{"0": "background", …}`.
        output_dir: the folder of the two files.
        modality: the kind of each channel; values of CT are told to be in HU.
        lesions: the names of those labels whose pieces are measured too; None takes those that name lesions.
        pred_key: of an output, the label map (1, X, Y, Z) on the source's grid.
    """

    def __init__(
        self,
        labels: Mapping[str, str],
        output_dir: str | Path,
        modality: Sequence[str] = (),
        lesions: Sequence[str] | None = None,
        pred_key: str = "pred",
    ) -> None:
        self.labels = labels
        self.output_dir = Path(output_dir)
        self.unit = UNITS.get(modality[0].upper(), "") if modality else ""
        self.lesions = lesions
        self.pred_key = pred_key
        self.rows: list[dict[str, Any]] = []
        self.found: dict[str, list[dict[str, Any]]] = {}

    def attach(self, engine: Engine) -> None:
        """Follow an engine whose batches hold `case` and `image`, in the process that writes."""
        if is_main_process():
            engine.add_event_handler(Events.ITERATION_COMPLETED, self.measure)
            engine.add_event_handler(Events.COMPLETED, self.write)
            write_before_errors(engine, self.output_dir / CSV, self.rows, "row")

    def measure(self, engine: Any) -> None:
        """Measure the label maps of a batch.

        Raises:
            TomokitError: when a label map does not lie on its source's grid, or can't be measured; the case is named.
        """
        for item, output in zip(engine.state.batch, engine.state.output, strict=True):
            label_map = np.asarray(torch.as_tensor(output[self.pred_key]).cpu())[0]
            scan = read_scan(first_image(item["image"].meta["filename_or_obj"]))
            image = scan.array if scan.array.ndim == 3 else scan.array[..., 0]
            try:
                found = measure_structures(label_map, self.labels, scan.affine, image, self.lesions, self.unit)
            except TomokitError as error:
                raise TomokitError(f"{item['case']} can't be measured: {error}") from error
            self.found[item["case"]] = found
            self.rows += [
                {"case": item["case"], **{key: _as_cell(value) for key, value in row.items()}} for row in found
            ]

    def write(self, _: Engine) -> None:
        """Write the two files and say where they are."""
        lesions = find_lesions(self.labels) if self.lesions is None else list(self.lesions)
        write_json(self.output_dir / JSON, {"columns": COLUMNS, "lesions": lesions, "cases": self.found})
        write_table(self.output_dir / CSV, self.rows)
        print(f"measures: {self.output_dir / CSV}", flush=True)


def _as_cell(value: Any) -> Any:
    """Return a value as a cell of a table: points as "x y z", several as "x y z; x y z"."""
    if not isinstance(value, list):
        return value
    if value and isinstance(value[0], list):
        return "; ".join(_as_cell(point) for point in value)
    return " ".join(f"{number:.7g}" for number in value)
