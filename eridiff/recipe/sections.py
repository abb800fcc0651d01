"""Sections of a recipe. Names are ai-toolkit's wherever it has one; defaults stand beside their fields."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
)
from pydantic_core import PydanticCustomError

Positive = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Precision = Literal["fp32", "bf16", "fp16"]

Url = Annotated[str, Field(pattern=r"^[a-z][a-z0-9+.-]*://")]
_SECRETS = re.compile(r"secret|passw|token|credential|access_key|account_key|connection_string|^key$")


def _on_disk(value: object) -> object:
    """Refuses a URL where a folder is wanted."""
    if isinstance(value, str) and "://" in value:
        raise ValueError("a folder on disk; only storage.data can be a URL")
    return value


def _without_secrets(options: dict[str, Any]) -> dict[str, Any]:
    """Refuses what every run would keep a copy of."""
    for name, value in options.items():
        if _SECRETS.search(name):
            raise PydanticCustomError(
                "secret",
                "no {name}: runs keep a copy of their recipe; credentials are read from the environment",
                {"name": name},
            )
        if isinstance(value, dict):
            _without_secrets(value)
    return options


LocalPath = Annotated[Path, BeforeValidator(_on_disk)]

_ONLY_COMFYUI = "ComfyUI reads its files, but diffusers refuses them for these families"
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


class Section(BaseModel):
    """Frozen; an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)


class BaseParts(Section):
    """A base put together from files: each a safetensors file or a diffusers component folder."""

    transformer: Path
    """The denoiser (SDXL's UNet, too), e.g. `flux1-dev.safetensors`."""
    vae: Path | None = None
    """Autoencoder; by default the one inside the denoiser's file."""
    clip_l: Path | None = None
    clip_g: Path | None = None
    t5xxl: Path | None = None


Base = str | BaseParts


class Model(Section):
    """The base model that the LoRA is for."""

    family: str
    """`sdxl`, `sd35` or `flux`."""
    base: Base
    """A hub id, a diffusers folder, one original file, parts, or `builtin:demo-sdxl|demo-sd35|demo-flux`."""
    revision: str | None = None
    """Branch, tag or commit of a hub id."""
    variant: str | None = None
    """Weights variant of a diffusers repository, e.g. `fp16`."""
    tokenizers: Path | None = None
    """Folder with `clip/` and `t5/` tokenizers, for bases that hold none; for sizes that an original file
    does not tell, also with `unet/config.json`, `vae/config.json`, ..."""
    quantize: Literal["none", "int8", "nf4", "fp8"] = "none"
    """What the frozen denoiser's linear layers are kept in while a LoRA is trained and evaluated. `int8` and
    `nf4` save memory, `fp8` (on Ada, Hopper and newer) also time."""
    options: dict[str, Any] = Field(default_factory=dict)
    """The family's own settings."""


class Dataset(Section):
    """A folder of images with captions beside them."""

    folder_path: Path
    """A folder, a webdataset `.tar`, or `builtin:demo-neon`: 48 images that `ingest` draws by itself."""
    caption_ext: tuple[str, ...] = ("txt", "caption")
    """Endings of caption files, in order of preference."""
    default_caption: str | None = None
    """Caption of images without one; without it they are quarantined."""
    caption_lines: bool = False
    """Take each non-empty line of a caption file as one of several captions."""
    trigger_word: str | None = None
    """Overrides the recipe's `trigger_word` for this dataset; an empty string means none."""
    num_repeats: Positive = 1
    """How often an epoch shows each image."""
    resolution: Annotated[int, Field(ge=64)] = 1024
    """Images are scaled to about `resolution`² px, in a bucket of their aspect."""
    flip_x: bool = False
    """Also train on mirrored images."""


class Ingest(Section):
    """How images become shards and a snapshot."""

    bucket_step: Annotated[int, Field(ge=16, multiple_of=16)] = 64
    """Bucket sides are multiples of this many px."""
    holdout: Share = 0.05
    """Share of images kept out of training for the validation loss, chosen by content."""
    shard_samples: Positive = 256
    """Images in a shard."""
    max_quarantine: Share = 0.1
    """Share of unusable images past which a stage stops."""
    max_side_px: Positive = 20_000
    """Images with a longer side are quarantined."""


class Precompute(Section):
    """How latents and text embeddings are made. Only precisions and tiling change what is stored."""

    latent_batch_size: Positive = 4
    text_batch_size: Positive = 16
    text_dtype: Precision = "bf16"
    """Precision of the encoders and of the stored embeddings."""
    vae_dtype: Precision | None = None
    """Precision of the VAE; by default the family's own, fp32, whose products a GPU rounds to TensorFloat-32.
    `fp16` is about as exact and faster there, `bf16` ten times less exact."""
    tile_above_px: Positive = 1536
    """The VAE works in tiles on images with a longer side."""
    part_samples: Positive = 64
    """Items in a part: what a kill can cost."""
    compile: bool | Literal["auto"] = False
    """Compile the VAE's encoder and T5; `auto` does so on a GPU where thousands of items are missing. Off
    until it has been measured on one."""


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
    """`adamw`, `adamw8bit`, or the import path of an optimizer class, e.g. `torch.optim.SGD`."""
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
    compile: bool | Literal["auto"] = False
    """Compile the denoiser's blocks and record each shape's step as a CUDA graph; `auto` does so on a GPU.
    Off until it has been measured on one: try it on a copy of your recipe."""
    dtype: Literal["fp32", "bf16"] = "bf16"
    """Precision of the frozen base and of its products; the LoRA is float32. (fp16 loses small gradients.)"""
    attention: Literal["auto", "flash", "efficient", "math"] = "auto"
    """Attention on a GPU; whichever is used, its gradients are checked before the first step."""
    ema_config: Ema = Ema()
    seed: int = 42


class Save(Section):
    """Checkpoints and LoRA files."""

    dtype: Precision = "fp16"
    """Precision of the LoRA files; checkpoints keep float32."""
    save_every: Positive = 250
    """Steps between checkpoints."""
    max_step_saves_to_keep: Positive = 4
    """Older checkpoints are deleted; their LoRA files stay."""


class Sample(Section):
    """Sample grids."""

    prompts: tuple[str, ...] = ()
    """`[trigger]` stands for the trigger word."""
    neg: str = ""
    """Negative prompt, for families that take one."""
    width: Annotated[int, Field(ge=64, multiple_of=16)] = 1024
    height: Annotated[int, Field(ge=64, multiple_of=16)] = 1024
    seeds: tuple[int, ...] = (42,)
    guidance_scale: Annotated[float, Field(ge=0)] = 4.0
    sample_steps: Positive = 20
    strengths: tuple[float, ...] = (0.0, 1.0)
    """Multipliers of the LoRA; 0 is the base."""
    checkpoints: Literal["last", "all"] = "last"
    batch_size: Positive = 4
    compile: bool | Literal["auto"] = False
    """Compile the denoiser's blocks while sampling; `auto` does so on a GPU where a hundred images are
    missing. Off until it has been measured on one."""
    thumbnail: bool = True
    """Keep a small picture of the first prompt in the LoRA file's metadata, for programs that show one."""
    metric: str | None = None
    """Import path `module:function` of a score of an image, e.g. `eridiff.demo.style:score`."""


class Validation(Section):
    """The loss on the hold-out, at fixed images, noises and times."""

    images: Count = 64
    """At most this many images of the hold-out; 0 turns validation off."""
    timesteps: Positive = 8
    """Times, evenly spread over (0, 1)."""
    batch_size: Positive = 4
    seed: int = 1234


class Logging(Section):
    """Where metrics go besides `metrics.jsonl`."""

    log_every: Positive = 10
    """Steps between lines."""
    tensorboard: bool = False
    wandb_project: str | None = None


class Publish(Section):
    """What a LoRA must do to become its name's champion, and where the champion goes."""

    to: Path | None = None
    """Folder that another program loads LoRAs from; the champion is kept there as `<name>.safetensors`."""
    margin: Share = 0.0
    """Promote only if the hold-out loss is lower than the champion's by more than this share of it."""
    keep: Positive = 5
    """Versions whose files stay in the registry, to roll back to."""


class Retrain(Section):
    """How a scheduled retraining begins."""

    start_from: Literal["scratch", "champion"] = "scratch"
    """`champion` begins with the weights that are published now."""


class Storage(Section):
    """Where artifacts lie."""

    data: Annotated[Url | Path, Field(union_mode="left_to_right")] = Path("data")
    """Shards, snapshots, latents and embeddings, shared by all recipes: a folder, or a URL of any storage
    that fsspec knows, e.g. `s3://bucket/prefix`."""
    runs: LocalPath = Path("runs")
    registry: LocalPath = Path("registry")
    """Which LoRA of each name is the champion, and the files of the last ones."""
    cache: LocalPath = Path("cache")
    """Folder on this machine for copies of `data` that lies at a URL."""
    cache_gb: Annotated[float, Field(gt=0)] = 50.0
    """What the copies may take; the least recently used go first."""
    options: Annotated[dict[str, Any], AfterValidator(_without_secrets)] = Field(default_factory=dict)
    """Arguments of fsspec's file system for a URL, e.g. `{endpoint_url: "http://minio:9000"}`. Credentials
    come from the environment (`AWS_PROFILE`, `AWS_ACCESS_KEY_ID`, ...), never from a recipe."""


class Recipe(Section):
    """One run, whole."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    trigger_word: str | None = None
    """Put in front of captions that lack it; `[trigger]` stands for it."""
    profile: Literal["24gb", "16gb", "12gb", "8gb"] | None = None
    """Settings that fit training at 1024² px into a card of that size, the family's own; keys that the recipe
    gives count before them. `eridiff recipe` shows them."""
    model: Model
    datasets: Annotated[tuple[Dataset, ...], Field(min_length=1)]
    ingest: Ingest = Ingest()
    precompute: Precompute = Precompute()
    network: Network = Network()
    train: Train = Train()
    save: Save = Save()
    sample: Sample = Sample()
    validation: Validation = Validation()
    logging: Logging = Logging()
    publish: Publish = Publish()
    retrain: Retrain = Retrain()
    storage: Storage = Storage()
    device: str = "auto"
    """`auto`, `cpu`, `cuda`, `cuda:1`, `mps`."""

    @field_validator("retrain")
    @classmethod
    def _retrains_from_one_start(cls, retrain: Retrain, info: ValidationInfo) -> Retrain:
        network = info.data.get("network")
        if retrain.start_from == "champion" and network is not None and network.starts_from_weights:
            raise PydanticCustomError(
                "contradiction", "start_from: scratch where network.init starts from the base's weights"
            )
        return retrain
