"""Whole runs on two GPUs by torchrun: what comes of them is what one GPU makes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from eridiff import recipe as recipes
from eridiff.demo.architecture import save_random_base
from eridiff.training import checkpoint
from eridiff.training.shelf import folder_of
from stages import evaluate, ingest, precompute, train
from tests.stages.test_on_a_gpu import on_gpu
from tests.stages.test_train import ROOT, run_of, write_images

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.timeout(600),
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices"),
]


@pytest.mark.parametrize(
    "how", [{}, {"shard_base": True}, {"shard_base": True, "compile": True}, {"offload": 0.5}], ids=str
)
@pytest.mark.parametrize("family", ["sdxl", "flux"])
def test_two_gpus_make_the_run_of_one(tmp_path: Path, family: str, how: dict[str, Any]) -> None:
    write_images(tmp_path / "images")
    save_random_base(family, tmp_path / "base")
    settings = {"batch_size": 3, "dtype": "fp32"}
    alone = on_gpu(tmp_path, family, train=settings)
    pair = on_gpu(tmp_path, family, train={**settings, **how}).model_copy(update={"name": "pair"})
    ingest.run(alone)
    precompute.run(alone)
    train.run(alone)
    path = tmp_path / "pair.yaml"
    path.write_text(recipes.dump(pair))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*command, "-m", "stages.train", str(path)], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Producer process has been terminated" not in done.stderr
    assert run_of(pair).sealed
    one, other = (checkpoint.load(folder_of(run_of(each), 6)).lora for each in (alone, pair))
    learnt = [name for name in one if "lora_B" in name]  # which began at zero
    apart = torch.cat([(one[name] - other[name]).flatten() for name in learnt])
    assert apart.norm() < 0.02 * torch.cat([one[name].flatten() for name in learnt]).norm()
    evaluate.run(pair)
    assert list(run_of(pair).evaluation.glob("*.json"))
