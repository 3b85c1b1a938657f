"""Two processes validate their shares of the cases, and get the metric that one process gets."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from bundle_runs import config, layer
from ignite.engine import Engine, Events
from monai.bundle import create_workflow
from monai.networks.nets import UNet
from torch.optim.lr_scheduler import ConstantLR

from tomokit import phantoms
from tomokit.engines import place_network
from tomokit.engines.checkpoints import save
from tomokit.finetuning import UnfreezeAt, load_pretrained

# a batch norm has buffers, which processes share out before a pass of a joined network
NETWORK = {
    "_target_": "UNet",
    "spatial_dims": 3,
    "in_channels": 1,
    "out_channels": 4,
    "channels": [4, 8],
    "strides": [2],
    "norm": ["batch", {"momentum": 0.0}],
}
# at this learning rate the weights stay the first ones, however many processes there are
OPTIONS = {"network_def": NETWORK, "patch_size": [16, 16, 16], "epochs": 1, "learning_rate": 1e-12}
OPTIONS |= {"train::augmentation": {"_target_": "Compose", "transforms": []}, "weight_averaging": 0, "cases#test": []}
SHARES = {"odd": ["case_000", "case_001", "case_002"], "few": ["case_000"]}
SCRIPT = """
import json, sys
from test_two_ranks import finetune, validate
found = [validate(*sys.argv[1:], name, "multi_gpu") for name in ("odd", "few")]
print(json.dumps([*found, finetune(sys.argv[2])]))
"""


def validate(data: str, runs: str, name: str, *layers: str) -> dict[str, float]:
    """Return the metric of one validation, and how many cases this process ran."""
    files = [*config("segmentation", "train"), layer("smoke"), *map(layer, layers)]
    cases = {"cases#training": ["case_003", "case_004"], "cases#validation": SHARES[name]}
    workflow = create_workflow(config_file=files, dataset_dir=data, run_dir=f"{runs}/{name}", **OPTIONS, **cases)
    workflow.run()
    state = workflow.parser.get_parsed_content("validate::evaluator").state
    return {"cases": state.iteration, "metric": state.metrics["val_dice"]}


def finetune(folder: str) -> list[list[float]]:
    """Return the sums of a network's weights at its start and after each epoch; the second trains the body too."""
    rank = torch.distributed.get_rank()
    torch.manual_seed(0)
    path = Path(folder) / f"weights_{rank}.pt"
    network = UNet(**{key: value for key, value in NETWORK.items() if key != "_target_"})
    save(network.state_dict(), path)
    network = load_pretrained(place_network(network, "cpu"), path, freeze="body")
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    sums = [[float(value.double().sum()) for value in network.parameters()]]

    def step(engine: Engine, number: int) -> None:
        optimizer.zero_grad()
        engine.network.train()(torch.rand(1, 1, 8, 8, 8)).square().mean().backward()
        optimizer.step()

    torch.manual_seed(rank)  # each process draws images of its own
    engine = Engine(step)
    engine.network = network
    UnfreezeAt(1, ConstantLR(optimizer, factor=1.0)).attach(engine)
    engine.add_event_handler(
        Events.EPOCH_COMPLETED, lambda _: sums.append([float(value.double().sum()) for value in network.parameters()])
    )
    engine.run([0, 1], max_epochs=2)
    return sums


def test_two_ranks_share_the_validation_and_get_the_metric_of_one(tmp_path):
    data = tmp_path / "data"
    phantoms.make_segmentation_set(data, cases=6, test_cases=1, size=32, progress=False)
    script = tmp_path / "validate.py"
    script.write_text(SCRIPT)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--redirects", "3"]
    command += ["--log_dir", str(tmp_path / "log"), str(script), str(data), str(tmp_path / "two")]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path]),
    }
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    outputs = sorted(tmp_path.glob("log/*/attempt_0/*/stdout.log"))
    odd, few, tuned = zip(*(json.loads(path.read_text().splitlines()[-1]) for path in outputs), strict=True)
    for name, found in (("odd", odd), ("few", few)):
        one = validate(str(data), str(tmp_path / "one"), name)
        assert one["cases"] == len(SHARES[name])
        assert [rank["metric"] for rank in found] == [pytest.approx(one["metric"], abs=1e-7)] * 2
        assert 0 < one["metric"] < 1
    assert [rank["cases"] for rank in odd] == [2, 1]
    assert [rank["cases"] for rank in few] == [1, 1]  # both run it: a process without a case would wait forever
    assert len(tuned[0]) == 3 and tuned[0] == tuned[1]  # the processes' weights stay the same
    start, first, second = tuned[0]
    assert [a != b for a, b in zip(start, first, strict=True)] == [False] * (len(start) - 2) + [True, True]
    moved = [a != b for a, b in zip(first, second, strict=True)]
    assert moved[0] and moved.count(False) == 2  # a bias before a batch norm has no gradient
