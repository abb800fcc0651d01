"""Sections of a training: the LoRA, how it learns, and what is kept of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from eridiff.recipe.fields import Count, Positive, Precision, Section, Share

OPTIMIZERS: Mapping[str, str] = {
    "adamw": "torch.optim.AdamW",
    "adam": "torch.optim.Adam",
    "sgd": "torch.optim.SGD",
    "adafactor": "torch.optim.Adafactor",
    "adamw8bit": "bitsandbytes.optim.AdamW8bit",
    "prodigy": "prodigyopt.Prodigy",
}
"""Short names of optimizers, and the paths that they are imported from."""
_ONLY_COMFYUI = "ComfyUI reads its files, but diffusers loads none of them for these families"
_OTHER_NETWORKS = {
    "dora": "ComfyUI divides by the norm of W, training by that of W + change; diffusers drops the scale",
    "lokr": _ONLY_COMFYUI,
    "loha": _ONLY_COMFYUI,
    "locon": "set network.conv for it",
}
"""Kinds of adapters that people know, and why they are not trained here."""


def _known_network(kind: object) -> object:
    """Refuses by name, with the reason, what no file can say exactly to every program."""
    if isinstance(kind, str) and (reason := _OTHER_NETWORKS.get(kind.lower())):
        raise PydanticCustomError("network", "'lora'; not {kind}: {reason}", {"kind": kind, "reason": reason})
    return kind


class Network(Section):
    """The LoRA."""

    type: Annotated[Literal["lora"], BeforeValidator(_known_network)] = "lora"
    """The one kind whose files are exact in every program that reads them; LoCon is `conv`."""
    linear: Positive = 16
    """Rank of linear layers."""
    linear_alpha: Annotated[float, Field(gt=0)] = 16
    """The change of a weight is `alpha / rank * B @ A`."""
    conv: Positive | None = None
    """Rank of convolutions; none are adapted by default."""
    conv_alpha: Annotated[float, Field(gt=0)] | None = None
    """Alpha of convolutions; `conv` by default."""
    targets: str | tuple[str, ...] = "attn-mlp"
    """`attn`, `attn-mlp`, `all`, or patterns of module names, e.g. `transformer_blocks.*.attn.to_q`."""
    ranks: dict[str, Positive] = Field(default_factory=dict)
    """Ranks of modules whose name matches a pattern; alpha keeps its ratio to the rank."""
    text_encoder_linear: Positive | None = None
    """Rank in text encoders, where `train.train_text_encoder` trains them; by default `linear`. Alpha keeps
    its ratio to the rank."""
    text_encoder_targets: Literal["attn", "attn-mlp"] = "attn-mlp"
    """Layers of text encoders that are adapted: of their attention, or of their feed-forwards, too."""
    rslora: bool = False
    """Divide alpha by the root of the rank, not by the rank (Kalajdzievski 2023); files hold the alpha that
    gives the same change."""
    init: Annotated[str, Field(pattern=r"^(kaiming|gaussian|pissa|pissa_niter_[1-9]\d*|olora)$")] = "kaiming"
    """`kaiming` or `gaussian`: A drawn so, B zero. `pissa` (Meng et al. 2024): the principal part of each
    weight; `pissa_niter_16`: nearly that, in seconds instead of minutes; `olora`: of its QR decomposition.
    From weights, files have twice the rank: they hold the change of the untouched base."""
    init_from: Path | None = None
    """A LoRA file to start from."""
    format: Literal["auto", "kohya", "diffusers"] = "auto"
    """Names in the file: `auto` is what most programs load for the family."""

    @property
    def starts_from_weights(self) -> bool:
        """Whether the LoRA starts as a part of the base's weights."""
        return self.init.startswith(("pissa", "olora"))

    @field_validator("init")
    @classmethod
    def _of_linear_layers(cls, init: str, info: ValidationInfo) -> str:
        if init.startswith(("pissa", "olora")) and info.data.get("conv") is not None:
            raise PydanticCustomError(
                "contradiction",
                "a start that convolutions can have, such as kaiming; or network.conv left out",
            )
        return init

    @field_validator("init_from")
    @classmethod
    def _one_start(cls, path: Path | None, info: ValidationInfo) -> Path | None:
        if path is not None and str(info.data.get("init")).startswith(("pissa", "olora")):
            raise PydanticCustomError(
                "contradiction", "no file where network.init starts from the base's weights"
            )
        return path


class Ema(Section):
    """A moving average of the LoRA, used for what is exported."""

    use_ema: bool = False
    ema_decay: Annotated[float, Field(gt=0, lt=1)] = 0.99


class Train(Section):
    """How the LoRA is trained."""

    batch_size: Positive = 1
    """Samples of a step over all devices: the result does not depend on their number."""
    gradient_accumulation_steps: Positive = 1
    """Batches a step, one after the other."""
    steps: Positive = 2000
    lr: Annotated[float, Field(gt=0)] = 1e-4
    loraplus_lr_ratio: Annotated[float, Field(ge=1)] = 1.0
    """Learning rate of the LoRA's B as a multiple of A's `lr`: LoRA+ (Hayou et al. 2024), who advise 16 and a
    lower `lr`."""
    train_text_encoder: bool = False
    """Also train a LoRA of CLIP-L and CLIP-G, whichever the family has; T5 is never trained. Their embeddings
    then are not cached: captions are encoded anew in every step, so the encoders' files are needed and lie on
    the device, in `precompute.text_dtype`."""
    text_encoder_lr: Annotated[float, Field(gt=0)] | None = None
    """Learning rate of the text encoders' LoRA; by default `lr`. Half of `lr` or less is usual."""
    lr_scheduler: Literal["constant", "cosine", "linear"] = "constant"
    lr_warmup_steps: Count = 0
    optimizer: str = "adamw"
    """`adamw`, `adamw8bit`, `adafactor`, `prodigy`, `adam`, `sgd`, or the import path of an optimizer class,
    e.g. `torch.optim.SGD`."""
    optimizer_params: dict[str, Any] = Field(default_factory=dict)
    max_grad_norm: Annotated[float, Field(ge=0)] = 1.0
    """Gradients are clipped to this norm; 0 does not clip."""
    caption_dropout_rate: Share = 0.05
    """Share of samples trained with the empty prompt."""
    caption_dropout_pooled: bool = True
    """Whether dropout empties the pooled embedding, too."""
    gradient_checkpointing: bool | Literal["auto"] = "auto"
    """Save memory by computing activations twice; `auto` does so once a step does not fit without."""
    offload: Share = 0.0
    """Share of the denoiser's blocks whose weights stay in system memory and come to the GPU when they
    compute; 1 for all. Costs time, changes no result."""
    shard_base: bool = False
    """Under torchrun, each GPU of a machine keeps a part of every block of the denoiser, and fetches the
    other parts when the block computes. For a base that no GPU holds whole; changes no result."""
    compile: bool | Literal["auto"] = "auto"
    """Compile the denoiser's blocks and record each shape's step as a CUDA graph; `auto` does so on a GPU for
    100 steps or more. Compiling takes half a minute to one and a half."""
    dtype: Literal["fp32", "bf16"] = "bf16"
    """Precision of the frozen base and of its products; the LoRA is float32. (fp16 loses small gradients.)"""
    attention: Literal["auto", "cudnn", "flash", "flash3", "flash4", "efficient", "math"] = "auto"
    """Attention on a GPU; `auto` is the fastest that takes the tensors, on Hopper cuDNN's. `flash3` and
    `flash4` are packages to install. Gradients are checked before the first step, whichever it is."""
    ema_config: Ema = Ema()
    seed: int = 42

    @field_validator("optimizer")
    @classmethod
    def _named_or_imported(cls, optimizer: str) -> str:
        if optimizer not in OPTIMIZERS and "." not in optimizer:
            raise PydanticCustomError(
                "unknown",
                "one of {names}, or an import path such as torch.optim.SGD",
                {"names": ", ".join(OPTIMIZERS)},
            )
        return optimizer

    @field_validator("shard_base")
    @classmethod
    def _one_place(cls, shard_base: bool, info: ValidationInfo) -> bool:
        if shard_base and info.data.get("offload"):
            raise PydanticCustomError("contradiction", "false where train.offload keeps blocks away")
        return shard_base


class Save(Section):
    """Checkpoints and LoRA files."""

    dtype: Precision = "fp16"
    """Precision of the LoRA files; checkpoints keep float32."""
    save_every: Positive = 250
    """Steps between checkpoints."""
    max_step_saves_to_keep: Positive = 4
    """Older checkpoints are deleted; their LoRA files stay."""


class Logging(Section):
    """Where metrics go besides `metrics.jsonl`."""

    log_every: Positive = 10
    """Steps between lines."""
    tensorboard: bool = False
    wandb_project: str | None = None
