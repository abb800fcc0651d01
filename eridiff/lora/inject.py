"""LoRA layers inside a denoiser and its text encoders, by peft: float32 factors beside frozen weights."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from eridiff.diffusion.randomness import generator
from eridiff.errors import ModelError
from eridiff.families.base import ModelFamily
from eridiff.lora.adapters import Adapter, Lora
from eridiff.lora.encoders import NO_ENCODERS, Encoders, choose_in_encoder, parameter_name
from eridiff.lora.principal import offset, start_from_weights, starts
from eridiff.lora.read import read_lora
from eridiff.lora.targets import Layer, Target, choose
from eridiff.lora.warm import started
from eridiff.recipe import Network

ADAPTER = "default"
"""Name of the trained adapter in the denoiser."""
_FACTOR = f".{ADAPTER}"


@dataclass(frozen=True)
class Injected:
    """What was put into a denoiser.

    Attributes:
        targets: the adapted modules, in the denoiser's order.
        structure: counts of the denoiser's blocks.
        component: the denoiser's folder name in diffusers.
        encoder_targets: the adapted modules of text encoders, if any are trained, as a LoRA names them.
        start: where parameters started that count as changes from there, under their names.
    """

    targets: tuple[Target, ...]
    structure: Mapping[str, int]
    component: str
    encoder_targets: tuple[Target, ...] = ()
    start: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def layers(self) -> dict[str, Target]:
        """All adapted modules as a LoRA names them; `Target.name` is what their parameters are called by."""
        own = {f"{self.component}.{target.name}": target for target in self.targets}
        return own | {target.name: target for target in self.encoder_targets}

    def lora(self, state: Mapping[str, Tensor]) -> Lora:
        """The LoRA of trained parameters, named as by `lora_state`."""
        now, start = _adapters(state, self.layers), _adapters(self.start, self.layers)
        changes = {layer: offset(own, start[layer]) if layer in start else own for layer, own in now.items()}
        return Lora(changes, self.structure)


def inject(
    denoiser: nn.Module,
    network: Network,
    family: ModelFamily,
    *,
    seed: int,
    encoders: Encoders = NO_ENCODERS,
) -> Injected:
    """Adds the recipe's LoRA to a frozen denoiser; only its factors are trained.

    `down` is drawn uniformly as by He et al. (2015) with slope sqrt(5), or normally with deviation 1/rank;
    `up` is zero; or both start as a part of the weight (see `principal`). With `network.init_from` the change
    is that file's. Each factor depends on the seed and its module's name alone.

    Args:
        denoiser: from `family.load_denoiser`.
        network: the recipe's section.
        family: has the presets and names.
        seed: decides the draw.
        encoders: the family's trainable text encoders, if they are trained, too.

    Raises:
        RecipeError: the targets match no layers, or do not cover those of `network.init_from`.
        ModelError: `network.init_from` cannot be read, or is of another denoiser.
    """
    names = family.checkpoint.models[family.checkpoint.denoiser].names
    assert names is not None
    structure = names.structure(denoiser.state_dict().keys())
    targets = choose(adaptable(denoiser), network, family)
    put_in(denoiser, targets)
    in_encoders = _put_in_encoders(encoders, network, family)
    parameters = lora_state(denoiser, encoders)
    if network.starts_from_weights:
        for model in (denoiser, *encoders.values()):
            start_from_weights(model, network.init, adapter=ADAPTER, seed=seed)
    else:
        for target in (*targets, *in_encoders):
            down = parameters[f"{target.name}.lora_A.weight"]
            _draw(down, network.init, generator(seed, "lora", target.name))
    start = lora_start(denoiser, encoders)
    injected = Injected(targets, structure, family.checkpoint.denoiser, in_encoders, start)
    if network.init_from is not None:
        path = network.init_from
        lora = read_lora(path, family, structure=structure)
        load_state(denoiser, started(parameters, injected.layers, lora, path=path), encoders)
    return injected


def _put_in_encoders(encoders: Encoders, network: Network, family: ModelFamily) -> tuple[Target, ...]:
    """Wraps modules of text encoders; returns them under the names that a LoRA has for them."""
    named: list[Target] = []
    for encoder in family.trainable_encoders:
        if encoder.name in encoders:
            model = encoders[encoder.name]
            linear = [name for name, kind in adaptable(model).items() if kind == "linear"]
            targets = choose_in_encoder(linear, encoder, network)
            put_in(model, targets)
            named += [replace(target, name=parameter_name(encoder.name, target.name)) for target in targets]
    return tuple(named)


def adaptable(model: nn.Module) -> dict[str, Layer]:
    """Linear layers and convolutions of a model without LoRA, by name."""
    kinds: dict[type[nn.Module], Layer] = {nn.Linear: "linear", nn.Conv2d: "conv"}
    return {
        name: kind
        for name, module in model.named_modules()
        for base, kind in kinds.items()
        if isinstance(module, base)
    }


def put_in(model: nn.Module, targets: tuple[Target, ...]) -> None:
    """Wraps modules in LoRA layers with float32 factors, `up` zero and `down` not yet meaningful."""
    from peft import LoraConfig, inject_adapter_in_model

    (rank, alpha), _ = Counter((target.rank, target.alpha) for target in targets).most_common(1)[0]
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,  # pyright: ignore[reportArgumentType]  # peft only ever divides it by the rank
        target_modules="|".join(re.escape(target.name) for target in targets),
        rank_pattern={_exact(target): target.rank for target in targets if target.rank != rank},
        alpha_pattern={_exact(target): target.alpha for target in targets if target.alpha != alpha},
    )
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        inject_adapter_in_model(config, model, adapter_name=ADAPTER)
    for parameter in lora_state(model).values():
        parameter.data = parameter.data.float()


def lora_state(model: nn.Module, encoders: Encoders = NO_ENCODERS) -> dict[str, nn.Parameter]:
    """The trained parameters: `<module>.lora_A.weight` `[rank, in, ...]` and `<module>.lora_B.weight`.

    Those of text encoders follow, under the names that a LoRA has for their modules.
    """
    own = {
        f"{name.partition(_FACTOR)[0]}.weight": parameter
        for name, parameter in model.named_parameters()
        if ".lora_A." in name or ".lora_B." in name
    }
    for component, encoder in encoders.items():
        own |= {parameter_name(component, name): value for name, value in lora_state(encoder).items()}
    return own


def lora_start(model: nn.Module, encoders: Encoders = NO_ENCODERS) -> dict[str, Tensor]:
    """Where trained parameters started, under their names, for those whose start counts: see `principal`."""
    own = {f"{place.partition(_FACTOR)[0]}.weight": start for place, start in starts(model).items()}
    for component, encoder in encoders.items():
        own |= {parameter_name(component, name): start for name, start in lora_start(encoder).items()}
    return own


@torch.no_grad()
def load_state(model: nn.Module, state: Mapping[str, Tensor], encoders: Encoders = NO_ENCODERS) -> None:
    """Sets the trained parameters, named as by `lora_state`.

    Raises:
        ModelError: the state is of other modules or shapes.
    """
    parameters = lora_state(model, encoders)
    wrong = sorted(parameters.keys() ^ state.keys())
    wrong += [
        name for name in parameters.keys() & state.keys() if parameters[name].shape != state[name].shape
    ]
    if wrong:
        raise ModelError("LoRA weights do not fit the denoiser's", found=", ".join(wrong[:4]))
    for name, parameter in parameters.items():
        parameter.copy_(state[name])


def _adapters(state: Mapping[str, Tensor], targets: Mapping[str, Target]) -> dict[str, Adapter]:
    """Adapters of those modules that have parameters in a state, by the names that a LoRA has for them."""
    factors = {name: value.detach() for name, value in state.items()}
    return {
        layer: Adapter(factors[down], factors[f"{target.name}.lora_B.weight"], target.alpha)
        for layer, target in targets.items()
        if (down := f"{target.name}.lora_A.weight") in factors
    }


@torch.no_grad()
def _draw(down: nn.Parameter, init: str, random: torch.Generator) -> None:
    values = torch.empty(down.shape, dtype=torch.float32)
    if init == "kaiming":
        nn.init.kaiming_uniform_(values, a=math.sqrt(5), generator=random)
    else:
        values.normal_(std=1 / down.shape[0], generator=random)
    down.copy_(values)


def _exact(target: Target) -> str:
    """A pattern for which peft finds this module only."""
    return f"^{re.escape(target.name)}"
