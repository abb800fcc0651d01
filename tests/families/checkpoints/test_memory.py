"""Loading a part costs little more memory than the part, and touches no other part's bytes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from eridiff import families
from eridiff.families.checkpoints import keys
from eridiff.families.checkpoints.base import resolve
from eridiff.families.checkpoints.facts import fact
from eridiff.families.checkpoints.loading import load_model
from eridiff.families.checkpoints.tensorfile import MappedTensors
from eridiff.recipe import Model

SIZES = {"num_layers": 6, "num_single_layers": 11, "num_attention_heads": 4}
FLUX = families.get("flux")

MEASURE = """
import json, sys
from pathlib import Path
import torch
from eridiff import families
from eridiff.families.checkpoints.base import resolve
from eridiff.families.checkpoints.loading import load_model
from eridiff.families.frozen.keep import Keep
from eridiff.recipe import Model
import diffusers, transformers  # their own weight is no part of the model's
diffusers.FluxTransformer2DModel

def memory(name):
    return int(next(l for l in open("/proc/self/status") if l.startswith(name)).split()[1]) * 1024

base = resolve(Model(family="flux", base=sys.argv[1]), families.get("flux"))
Path("/proc/self/clear_refs").write_text("5")
before = memory("VmRSS")
where = {"device": torch.device("cpu"), "dtype": torch.bfloat16}
model = load_model(base, "transformer", **where, keep=Keep(sys.argv[2], 0.5))
held = [t for t in [*model.parameters(), *model.buffers()] if all(t.stride())]
part = sum(t.nbytes for t in held)
print(json.dumps({"part": part, "peak": memory("VmHWM") - before}))
"""


@pytest.fixture(scope="module")
def big_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Flux of about 200 MB in bfloat16, with another 200 MB beside it that look like a text encoder's."""
    import diffusers

    with torch.device("meta"):
        model = diffusers.FluxTransformer2DModel.from_config(fact("flux_transformer") | SIZES)
    names = FLUX.checkpoint.models["transformer"].names
    assert names is not None
    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    state = {
        f"model.diffusion_model.{key}": torch.zeros(
            keys.assembled_shape(assembly, shapes), dtype=torch.bfloat16
        )
        for key, assembly in keys.to_original(shapes, names).items()
    }
    for index in range(20):
        state[f"text_encoders.t5xxl.transformer.encoder.block.{index}.other"] = torch.zeros(
            5_000_000, dtype=torch.bfloat16
        )
    path = tmp_path_factory.mktemp("big") / "flux.safetensors"
    save_file(state, path)
    return path


@pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="peak memory is read from Linux' /proc"
)
@pytest.mark.parametrize(("quantize", "megabytes"), [("none", 190), ("int8", 95)])
def test_peak_memory_stays_within_a_fifth_of_the_part(big_file: Path, quantize: str, megabytes: int) -> None:
    # Tensors of real sizes are mapped one by one and given back at once, which is asked for here by a limit.
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(big_file), quantize],
        env={**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"},
        capture_output=True,
        text=True,
        check=True,
    )
    measured = json.loads(done.stdout.splitlines()[-1])
    assert megabytes * 1e6 < measured["part"] < 1.2 * megabytes * 1e6
    assert measured["peak"] <= 1.2 * measured["part"] + 20e6, measured


def test_only_the_parts_own_tensors_are_touched(big_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touched: list[str] = []
    view = MappedTensors.view

    def recording(self: MappedTensors, key: str) -> torch.Tensor:
        touched.append(key)
        return view(self, key)

    monkeypatch.setattr(MappedTensors, "view", recording)
    base = resolve(Model(family="flux", base=str(big_file)), FLUX)
    load_model(base, "transformer", device=torch.device("cpu"), dtype=torch.bfloat16)
    assert touched
    assert all(key.startswith("model.diffusion_model.") for key in touched)
