"""What a training step is measured on: published widths, and a batch as it comes from the store."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from benchmarks.device import DEVICE
from eridiff.families.base import Conditioning, ModelFamily
from eridiff.families.frozen.keep import Quantization
from eridiff.training.step import Batch


@dataclass(frozen=True)
class Case:
    """A recipe at a batch size.

    Attributes:
        recipe: a key of `random_bases.BASES`.
        batch_size: samples.
        text: length and width of the prompt embedding.
        pooled: width of the pooled one.
        quantize: in what eridiff's own loop keeps the base.
        side_px: of the square images.
    """

    recipe: str
    batch_size: int
    text: tuple[int, int]
    pooled: int
    quantize: Quantization = "none"
    side_px: int = 1024

    @property
    def name(self) -> str:
        """How it is chosen on the command line."""
        return f"{self.recipe}:{self.batch_size}" + ("" if self.quantize == "none" else f":{self.quantize}")


CASES = (
    Case("sdxl", 1, (77, 2048), 1280),
    Case("sdxl", 4, (77, 2048), 1280),
    Case("sd35-medium", 1, (231, 4096), 2048),
    Case("sd35-large", 1, (231, 4096), 2048),
    Case("flux-dev", 1, (512, 4096), 768),
    Case("flux-dev", 1, (512, 4096), 768, quantize="fp8"),
)
SINGLES = {case.recipe: case for case in CASES if case.batch_size == 1 and case.quantize == "none"}
"""Recipe to its case of one sample."""


def random_batch(case: Case, family: ModelFamily) -> Batch:
    """A batch as it comes from the store, on the device."""
    generator = torch.Generator(DEVICE).manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(case.batch_size, *shape, generator=generator, device=DEVICE)

    side = case.side_px
    cells = side // family.latent.stride
    sizes = torch.tensor([side, side, 0, 0, side, side], dtype=torch.float32, device=DEVICE)
    return Batch(
        sample_ids=tuple(map(str, range(case.batch_size))),
        clean=normal(family.latent.channels, cells, cells),
        noise=normal(family.latent.channels, cells, cells),
        t=torch.full((case.batch_size,), 0.5, device=DEVICE),
        cond=Conditioning(
            normal(*case.text).bfloat16(), normal(case.pooled).bfloat16(), sizes.repeat(case.batch_size, 1)
        ),
    )
