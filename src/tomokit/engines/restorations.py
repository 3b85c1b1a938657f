"""What engines do besides the network's pass where it restores distorted images: measures, tables, pictures."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events

from tomokit.engines.evaluation import (
    PICTURE,
    Entries,
    attach_scoring,
    check_test_cases,
    tell_checkpoint,
    tell_scores,
    write_scores,
)
from tomokit.engines.progress import ProgressBar
from tomokit.restoration import TASK, draw_restorations, measure_restoration, summarise_restoration

MOST_SHOWN = 3


def attach_restoration_scores(
    evaluator: Engine, run_dir: str | Path, checkpoint: str | Path, cases: Mapping[str, Entries]
) -> None:
    """Measure how far each test case is restored; write `cases.csv`, `metrics.json`, `overlay.png` at the end.

    Args:
        evaluator: its output holds `image`, distorted, `label`, the target, and `pred`, each (C, X, Y[, Z]).
        run_dir: the run's folder.
        checkpoint: which weights are scored, told in the measures.
        cases: the split; `test` is scored.

    Raises:
        TomokitError: when there is no test case.
    """
    check_test_cases(cases)
    run_dir = Path(run_dir)
    rows: list[dict[str, Any]] = []
    shown: list[dict[str, Any]] = []
    began = time.perf_counter()

    def score(engine: Any) -> None:
        for item, output in zip(engine.state.batch, engine.state.output, strict=True):
            found = _measure(output)
            rows.append({"case": item["case"], "patient": item["patient"], **found})
            if len(shown) < MOST_SHOWN:
                shown.append(_picture(item["case"], output, found))

    def finish(_: Engine) -> None:
        measures: dict[str, Any] = {"task": TASK, "checkpoint": tell_checkpoint(run_dir, checkpoint)}
        measures |= {"seconds": time.perf_counter() - began, **summarise_restoration(rows), "picture": PICTURE}
        draw_restorations(shown, run_dir / PICTURE)
        write_scores(run_dir, rows, measures)
        tell_scores(run_dir, "case")

    attach_scoring(evaluator, score, finish)


def attach_restorations(evaluator: Engine, output_dir: str | Path) -> None:
    """Draw each input as it was, distorted and restored, to `<output_dir>/<case>.png`.

    Args:
        evaluator: its output holds `image`, distorted, `label`, the target, and `pred`, each (C, X, Y[, Z]).
        output_dir: the folder to write to.
    """
    folder = Path(output_dir)

    def draw(engine: Any) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for item, output in zip(engine.state.batch, engine.state.output, strict=True):
            draw_restorations([_picture(item["case"], output, _measure(output))], folder / f"{item['case']}.png")

    evaluator.add_event_handler(Events.ITERATION_COMPLETED, draw)
    ProgressBar("infer", "case").attach(evaluator)
    evaluator.add_event_handler(Events.COMPLETED, lambda _: print(f"pictures: {output_dir}", flush=True))


def _measure(output: Mapping[str, Any]) -> dict[str, float | None]:
    """Return the measures of one case."""
    restored, distorted, target = (torch.as_tensor(output[key]).float().cpu() for key in ("pred", "image", "label"))
    return measure_restoration(restored, distorted, target)


def _picture(case: str, output: Mapping[str, Any], found: Mapping[str, float | None]) -> dict[str, Any]:
    """Return what is drawn of one case: its first channel."""
    planes = {"clean": "label", "distorted": "image", "restored": "pred"}
    arrays = {name: np.asarray(torch.as_tensor(output[key])[0].float().cpu()) for name, key in planes.items()}
    share = "nothing was distorted" if found["restored"] is None else f"{100 * found['restored']:.0f} % restored"
    return {"title": f"{case}: {share}", **arrays}
