"""How much of the neon style a picture has, told from its pixels alone."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageFilter

_DARK, _LIT = 0.35, 0.6
_STROKE_PX = 7


def score(image: Image.Image) -> float:
    """A number in [0, 1]: near 0 for filled shapes by daylight, near 1 for glowing outlines at night.

    It is the product of three ramps over the brightness (largest channel) of the picture at 128 px:

    - night: the share of dark pixels, from 0 at 30 % to 1 at 70 %;
    - outlines: the share of lit pixels that an opening by a 7 px square removes, since lines are thinner and
      filled shapes wider than it, from 0 at 30 % to 1 at 80 %;
    - presence: the share of lit pixels, from 0 at none to 1 at 0.5 %, so that a black picture scores 0.
    """
    bands = image.convert("RGB").resize((128, 128), Image.Resampling.BOX)
    brightness = np.asarray(bands, dtype=np.float32).max(axis=2) / 255
    lit = brightness > _LIT
    if not lit.any():
        return 0.0
    opened = Image.fromarray(lit.astype(np.uint8) * 255)
    opened = opened.filter(ImageFilter.MinFilter(_STROKE_PX)).filter(ImageFilter.MaxFilter(_STROKE_PX))
    wide = np.asarray(opened) > 0
    night = _ramp(float((brightness < _DARK).mean()), 0.3, 0.7)
    outlines = _ramp(1 - float((wide & lit).sum() / lit.sum()), 0.3, 0.8)
    presence = _ramp(float(lit.mean()), 0.0, 0.005)
    return night * outlines * presence


def _ramp(value: float, low: float, high: float) -> float:
    return min(1.0, max(0.0, (value - low) / (high - low)))
