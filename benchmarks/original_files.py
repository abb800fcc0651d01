"""Full-size original files with random weights, and what loading them costs.

python -m benchmarks.original_files write flux-dev FOLDER     # 34 GB: flux1-dev, ae, clip_l, t5xxl
python -m benchmarks.original_files load flux-dev FOLDER      # seconds, peak memory, of each part
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import torch

from eridiff import families
from eridiff.devices import find_device
from eridiff.families.base import ModelFamily
from eridiff.families.checkpoints import keys
from eridiff.families.checkpoints.base import Base, resolve
from eridiff.families.checkpoints.facts import fact
from eridiff.families.checkpoints.keys import Shape
from eridiff.families.checkpoints.layout import ModelSpec
from eridiff.families.checkpoints.loading import load_model
from eridiff.recipe import BaseParts, Model

FILES = {
    "flux-dev": (
        "flux",
        {"transformer": "flux1-dev", "vae": "ae", "clip_l": "clip_l", "t5xxl": "t5xxl_fp16"},
    ),
    "sd35-medium": (
        "sd35",
        {"transformer": "mmdit", "vae": "vae", "clip_l": "clip_l", "clip_g": "clip_g", "t5xxl": "t5xxl_fp16"},
    ),
    "sdxl": ("sdxl", {"transformer": "unet", "vae": "vae", "clip_l": "clip_l", "clip_g": "clip_g"}),
}
"""Recipe to family and the names of its parts' files."""

_POOL = 1 << 25
"""Random numbers that all weights are cut from: drawing 12 billion would take longer than writing them."""


def write(name: str, folder: Path) -> BaseParts:
    """The parts of a base as original files, in bfloat16; files that are there already are kept."""
    family_name, files = FILES[name]
    layout = families.get(family_name).checkpoint
    folder.mkdir(parents=True, exist_ok=True)
    pool = 0.02 * torch.randn(_POOL, generator=torch.Generator().manual_seed(0))
    for component, spec in layout.models.items():
        path = folder / f"{files[spec.kind]}.safetensors"
        if not path.exists():
            aside = path.with_suffix(".tmp")
            with aside.open("wb") as file:
                _write_file(file, original_shapes(spec), pool.bfloat16())
            aside.rename(path)
            print(f"{component}: {path}, {path.stat().st_size / 1e9:.2f} GB", flush=True)
    return parts(name, folder)


def parts(name: str, folder: Path) -> BaseParts:
    """The recipe's `model.base` of those files."""
    return BaseParts.model_validate(
        {kind: folder / f"{file}.safetensors" for kind, file in FILES[name][1].items()}
    )


def original_shapes(spec: ModelSpec) -> dict[str, Shape]:
    """Keys and shapes of a component's original file at the published size."""
    import diffusers
    import transformers

    with torch.device("meta"):
        if hasattr(transformers, spec.class_name):
            kind: Any = getattr(transformers, spec.class_name)
            model = kind(kind.config_class.from_dict(fact(spec.facts)))
        else:
            model = getattr(diffusers, spec.class_name).from_config(fact(spec.facts))
    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    if spec.kind == "clip_l":
        shapes = {
            key if key.startswith("text_") else f"text_model.{key}": shape for key, shape in shapes.items()
        }
        shapes.pop("text_projection.weight", None)
    if spec.names is None or spec.kind == "clip_g":
        return shapes
    plan = keys.to_original(shapes, spec.names)
    return {key: keys.assembled_shape(assembly, shapes) for key, assembly in plan.items()}


def _write_file(file: IO[bytes], shapes: Mapping[str, Shape], pool: torch.Tensor) -> None:
    fields, end = {}, 0
    for key, shape in shapes.items():
        stop = end + 2 * math.prod(shape)
        fields[key] = {"dtype": "BF16", "shape": shape, "data_offsets": [end, stop]}
        end = stop
    text = json.dumps(fields).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    for index, (key, shape) in enumerate(shapes.items()):
        for piece in _values(key, math.prod(shape), pool, index):
            file.write(piece.view(torch.uint8).numpy().data)


def _values(key: str, count: int, pool: torch.Tensor, index: int) -> Iterator[torch.Tensor]:
    """Norms at 1, biases at 0, the rest small and random; each weight starts at another place of the pool."""
    if "norm" in key.lower() and not key.endswith("bias"):
        yield torch.ones(count, dtype=torch.bfloat16)
    elif key.endswith("bias"):
        yield torch.zeros(count, dtype=torch.bfloat16)
    else:
        start = (index * 1_000_003) % (len(pool) // 2)
        while count:
            piece = pool[start : start + count]
            yield piece
            count, start = count - len(piece), 0


def load(name: str, folder: Path, device: torch.device) -> None:
    """Loads each part as the stages do, one after the other, and prints what it cost."""
    family = families.get(FILES[name][0])
    base = resolve(Model(family=family.name, base=parts(name, folder)), family)
    for component in family.checkpoint.models:
        print(json.dumps(measured(base, component, family, device)), flush=True)


def measured(base: Base, component: str, family: ModelFamily, device: torch.device) -> dict[str, object]:
    """Seconds and peak memory of loading one component in bfloat16, and of its bytes."""
    Path("/proc/self/clear_refs").write_text("5")
    before, started = _status("VmRSS"), time.perf_counter()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    model = load_model(base, component, device=device, dtype=torch.bfloat16)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    seconds = time.perf_counter() - started
    nbytes = sum(weight.numel() * weight.element_size() for weight in model.parameters())
    found = {
        "component": component,
        "gb": round(nbytes / 1e9, 3),
        "seconds": round(seconds, 2),
        "gb_per_s": round(nbytes / 1e9 / seconds, 2),
        "peak_rss_gb": round((_status("VmHWM") - before) / 1e9, 3),
    }
    if device.type == "cuda":
        found["peak_vram_gb"] = round(torch.cuda.max_memory_allocated(device) / 1e9, 3)
        del model
        torch.cuda.empty_cache()
    return found


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(name)).split()[1])


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["write", "load"])
    parser.add_argument("name", choices=list(FILES))
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    if arguments.what == "write":
        print(write(arguments.name, arguments.folder).model_dump_json(indent=1))
    else:
        load(arguments.name, arguments.folder, find_device("auto"))


if __name__ == "__main__":
    main()
