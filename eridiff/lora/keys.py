"""The keys of a LoRA file, put together module by module; whoever wrote it."""

from __future__ import annotations

from dataclasses import dataclass

from eridiff.errors import ModelError
from eridiff.families.checkpoints.tensorfile import Header

_DOWN = (
    ".lora_down.weight", ".lora_A.weight", ".lora_A.default.weight", "_lora.down.weight", ".lora.down.weight",
    ".lora_linear_layer.down.weight", ".lora_A",
)  # fmt: skip
_UP = (
    ".lora_up.weight", ".lora_B.weight", ".lora_B.default.weight", "_lora.up.weight", ".lora.up.weight",
    ".lora_linear_layer.up.weight", ".lora_B",
)  # fmt: skip
_ENDINGS = {**dict.fromkeys(_DOWN, "down"), **dict.fromkeys(_UP, "up"), ".alpha": "alpha"}
_OTHER_KINDS = {
    ".dora_scale": "DoRA", ".lora_magnitude_vector": "DoRA", ".lora_mid.weight": "a Tucker decomposition",
    ".hada_w1_a": "LoHa", ".lokr_w1": "LoKr", ".lokr_w1_a": "LoKr", ".lokr_w2": "LoKr", ".oft_blocks": "OFT",
    ".oft_diag": "BOFT", ".diff": "full differences", ".diff_b": "differences of biases",
    ".reshape_weight": "a reshaped weight", ".a1.weight": "GLoRA", ".w_norm": "differences of norms",
    ".b_norm": "differences of norms", ".set_weight": "whole weights",
}  # fmt: skip


@dataclass(frozen=True)
class ModuleKeys:
    """Keys of one module's tensors, where the file has them."""

    down: str | None = None
    up: str | None = None
    alpha: str | None = None

    def present(self) -> tuple[str, ...]:
        """Those that are there."""
        return tuple(key for key in (self.down, self.up, self.alpha) if key is not None)


def grouped(header: Header) -> dict[str, ModuleKeys]:
    """Keys by module, under the names that the file has for modules.

    Raises:
        ModelError: the file holds something else than a LoRA, or names a weight twice.
    """
    modules: dict[str, dict[str, str]] = {}
    for key in header.tensors:
        _refuse_other_kinds(header, key)
        ending = next((ending for ending in _ENDINGS if key.endswith(ending)), None)
        if ending is None:
            raise ModelError("a file holds more than a LoRA", where=header.path, found=key)
        keys = modules.setdefault(key.removesuffix(ending), {})
        if _ENDINGS[ending] in keys:
            raise ModelError("a LoRA file names a weight twice", where=header.path, found=key)
        keys[_ENDINGS[ending]] = key
    if not modules:
        raise ModelError("a file holds no LoRA", where=header.path)
    return {name: ModuleKeys(**keys) for name, keys in modules.items()}


def _refuse_other_kinds(header: Header, key: str) -> None:
    for ending, kind in _OTHER_KINDS.items():
        if key.endswith(ending):
            raise ModelError(f"this file holds {kind}, which is not read here", where=header.path, found=key)
