"""Names of adapted modules in LoRA files, both ways."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping

from eridiff.families.checkpoints.keys import Structure
from eridiff.families.checkpoints.layout import CheckpointLayout
from eridiff.families.checkpoints.loranames import Format
from eridiff.lora.adapters import Adapter
from eridiff.lora.fusion import fuse
from eridiff.lora.resolving import KOHYA_DENOISER, denoiser_links, flat


def named(
    layers: Mapping[str, Adapter], layout: CheckpointLayout, structure: Structure, file_format: Format
) -> dict[str, Adapter]:
    """Adapters under the names that a file gives them.

    Args:
        layers: adapters by component and module.
        layout: the family's names.
        structure: counts of the denoiser's blocks.
        file_format: `kohya` fuses what original models keep in one weight; `diffusers` folds the scale in.
    """
    if file_format == "diffusers":
        return {name: adapter.folded() for name, adapter in layers.items()}
    found = dict(_kohya(layers, layout, structure))
    if not layout.lora.uniform_alpha or not found:
        return found
    (alpha, _), *_ = Counter(adapter.alpha for adapter in found.values()).most_common(1)
    return {name: adapter.with_alpha(alpha) for name, adapter in found.items()}


def _kohya(
    layers: Mapping[str, Adapter], layout: CheckpointLayout, structure: Structure
) -> Iterator[tuple[str, Adapter]]:
    for component, prefix in layout.lora.text_encoders.items():
        for module, adapter in within(layers, component).items():
            yield f"{prefix}_{flat(module)}", adapter
    denoiser = within(layers, layout.denoiser)
    for link in denoiser_links(layout, structure):
        parts = {name: denoiser[name] for name in link.diffusers if name in denoiser}
        if parts:
            yield f"{KOHYA_DENOISER}_{flat(link.original)}", fuse(link, parts)


def within(layers: Mapping[str, Adapter], component: str) -> dict[str, Adapter]:
    """The adapters of one component, by module."""
    start = f"{component}."
    return {name.removeprefix(start): adapter for name, adapter in layers.items() if name.startswith(start)}
