"""Captions and conditioning that the tests of families share."""

import torch

from eridiff.families.base import Conditioning

CPU_FP32 = {"device": torch.device("cpu"), "dtype": torch.float32}
CAPTIONS = ("a large red circle above a small blue star", "one white cloud")


def conditioning(prompts, *, size=(128, 64)):
    """Prompts with the geometry of whole images of `size` (height, width) px."""
    height, width = size
    geometry = torch.tensor([[height, width, 0, 0, height, width]], dtype=torch.float32)
    return Conditioning(prompts.text, prompts.pooled, geometry.expand(len(prompts.text), 6))
