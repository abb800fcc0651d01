"""One recipe at real size through every stage on a GPU: seconds and peak memory of each.

`python -m benchmarks.full_size --family flux` writes a base of the published widths with random weights
(in bfloat16, as a diffusers folder), some images, and runs ingest, precompute, train and evaluate on them.
Random weights take the time and the memory of trained ones. Needs a CUDA device, and disk for the base: 34 GB
for flux, 16 GB for sd35-medium, 28 GB for sd35-large, 7 GB for sdxl.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn

from eridiff.demo.architecture import LAYOUTS, build_denoiser_on_meta, build_vae, save_random_base
from eridiff.demo.encoders import ClipSize, T5Size
from eridiff.demo.sizes import TINY, BaseSize, FluxSize, Sd3Size, UnetSize, VaeSize
from stages import pipeline

PUBLISHED = BaseSize(
    vae=VaeSize(blocks=(128, 256, 512, 512), layers=2, norm_groups=32),
    clip_l=ClipSize(width=768, heads=12, layers=12, feed_forward=3072, projection=768),
    clip_g=ClipSize(width=1280, heads=20, layers=32, feed_forward=5120, projection=1280),
    t5=T5Size(width=4096, heads=64, head_width=64, layers=24, feed_forward=10240),
    unet=UnetSize(
        blocks=(320, 640, 1280),
        head_width=64,
        transformer_layers=(1, 2, 10),
        norm_groups=32,
        number_features=256,
    ),
    sd3=Sd3Size(layers=24, heads=24, head_width=64, dual_layers=tuple(range(13)), max_side=384),
    flux=FluxSize(double_layers=19, single_layers=38, heads=24, axes=(16, 56, 56)),
)
LARGE = replace(PUBLISHED, sd3=Sd3Size(layers=38, heads=38, head_width=64, dual_layers=(), max_side=192))
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
BASES = {
    "sdxl": ("sdxl", PUBLISHED),
    "sd35-medium": ("sd35", PUBLISHED),
    "sd35-large": ("sd35", LARGE),
    "flux-dev": ("flux", PUBLISHED),
}
"""Recipe to family and widths."""


def main() -> None:
    """Writes the base and the images, runs the stages, prints a row for each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipe", choices=BASES, default="sdxl")
    parser.add_argument("--folder", type=Path, default=Path("full-size"))
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if DEVICE.type != "cuda":
        parser.error("this needs a CUDA device")
    family, size = BASES[options.recipe]
    base, images = options.folder / options.recipe / "base", options.folder / "images"
    rows = [timed("write base", lambda: write_base(family, size, base))]
    write_images(images, options.images)
    recipe = pipeline.load_recipe(
        Path("configs") / f"{options.recipe}.yaml",
        {
            "model.base": str(base),
            "model.variant": None,
            "datasets.0.folder_path": str(images),
            "train.steps": options.steps,
            "sample.prompts": ["a lighthouse at dusk"],
            "sample.seeds": [1],
            "validation.images": 1,
            "ingest.holdout": 0.1,
            "storage.data": str(options.folder / options.recipe / "data"),
            "storage.runs": str(options.folder / options.recipe / "runs"),
        },
    )
    for name in pipeline.NAMES:
        rows.append(timed(name, lambda name=name: pipeline.run_stage(name, recipe)))
    card = torch.cuda.get_device_name()
    for row in rows:
        line = {"recipe": options.recipe, "card": card, **row}
        print(
            json.dumps(line) if options.json else "  ".join(f"{key} {value}" for key, value in line.items())
        )


def timed(name: str, work: Any) -> dict[str, Any]:
    """Runs `work`; its seconds, peak device memory and the process's peak memory so far."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    started = time.monotonic()
    work()
    torch.cuda.synchronize()
    return {
        "stage": name,
        "seconds": round(time.monotonic() - started, 1),
        "peak_gpu_gb": round(torch.cuda.max_memory_allocated() / 1e9, 1),
        "peak_host_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9, 1),
    }


def write_base(family: str, size: BaseSize, folder: Path) -> None:
    """A diffusers folder of the published widths; tokenizers and index are the tiny base's."""
    if (folder / "complete").exists():
        return
    save_random_base(family, folder, size=TINY)
    layout = LAYOUTS[family]
    with torch.device("meta"):
        vae = build_vae(family, size)
    save(build_denoiser_on_meta(family, size), folder / layout.denoiser)
    save(vae, folder / "vae")
    for number, kind in enumerate(layout.text_encoders, start=1):
        suffix = "" if number == 1 else f"_{number}"
        save(text_encoder(kind, folder / f"text_encoder{suffix}", size), folder / f"text_encoder{suffix}")
    (folder / "complete").touch()


def text_encoder(kind: str, tiny: Path, size: BaseSize) -> nn.Module:
    """The encoder of `tiny` at published widths, without weights."""
    import transformers

    widths: dict[str, dict[str, int]] = {
        "CLIP-L": clip_widths(size.clip_l),
        "CLIP-G": clip_widths(size.clip_g),
        "T5": {
            "d_model": size.t5.width,
            "d_kv": size.t5.head_width,
            "d_ff": size.t5.feed_forward,
            "num_layers": size.t5.layers,
            "num_heads": size.t5.heads,
        },
    }
    config = transformers.AutoConfig.from_pretrained(tiny)
    name = config.architectures[0]
    for key, value in widths[kind].items():
        setattr(config, key, value)
    with torch.device("meta"):
        return getattr(transformers, name)(config)


def clip_widths(size: ClipSize) -> dict[str, int]:
    """A CLIP's widths as its config names them."""
    return {
        "hidden_size": size.width,
        "num_attention_heads": size.heads,
        "num_hidden_layers": size.layers,
        "intermediate_size": size.feed_forward,
        "projection_dim": size.projection,
    }


def save(module: nn.Module, folder: Path) -> None:
    """Random bfloat16 weights for a module on the meta device: norms at 1, the rest small."""
    for file in folder.glob("*.safetensors"):
        file.unlink()
    module = module.to(torch.bfloat16).to_empty(device=DEVICE)
    with torch.no_grad():
        for name, weight in module.named_parameters():
            if "norm" in name and name.endswith("weight"):
                weight.fill_(1)
            else:
                weight.normal_(std=0.02)
        for buffer in module.buffers():
            buffer.zero_()
    module.save_pretrained(folder)
    torch.cuda.empty_cache()


def write_images(folder: Path, count: int) -> None:
    """Noisy gradients of three aspects, about one megapixel, with captions of different lengths."""
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        width, height = ((1280, 1280), (1536, 1024), (1024, 1536))[index % 3]
        noise = Image.effect_noise((width, height), 60 + index)
        gradient = Image.linear_gradient("L").resize((width, height))
        Image.merge("RGB", (gradient, noise, gradient.rotate(180))).save(
            folder / f"{index:03}.jpg", quality=90
        )
        (folder / f"{index:03}.txt").write_text("a gradient with grain, " * (1 + index % 5))


if __name__ == "__main__":
    main()
