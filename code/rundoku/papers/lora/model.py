"""Adapters on a whole model: put in place, switched, blended, merged, saved and loaded."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from rundoku.papers.lora.layers import LoRAConfig, LoRAEmbedding, LoRALinear

LoRALayer = LoRALinear | LoRAEmbedding
ADAPTABLE = (nn.Linear, nn.Embedding, LoRALinear, LoRAEmbedding)


def lora_layers(model: nn.Module, adapter: str | None = None) -> dict[str, LoRALayer]:
    """Return the model's LoRA layers by name, only those that have `adapter` where one is given.

    Raises ValueError when there is none.
    """
    layers = {name: module for name, module in model.named_modules() if isinstance(module, LoRALayer)}
    if not layers:
        raise ValueError("model: it has no LoRA layer; expected a call of apply_lora(...) before")
    if adapter is None:
        return layers
    found = {name: layer for name, layer in layers.items() if adapter in layer.configs}
    if not found:
        known = sorted({name for layer in layers.values() for name in layer.configs})
        raise ValueError(f"adapter: {adapter!r} is unknown; expected one of {', '.join(map(repr, known))}")
    return found


def apply_lora(model: nn.Module, targets: Iterable[str], config: LoRAConfig, adapter: str = "default") -> nn.Module:
    """Freeze `model` and put an adapter beside every linear layer and embedding that `targets` names; returns the same model.

    A target is the end of a module's dotted name: "query" takes layers.0.attention.query and every other query, "layers.0.attention.query"
    that one. Called again with another `adapter`, it adds that one. What else should train (a head, biases) is unfrozen afterwards.
    Raises ValueError, before anything is changed, when a target matches nothing or something that is neither linear nor embedding.
    """
    if isinstance(targets, str):
        raise ValueError(f"targets: the text {targets!r}; expected a list of names, as [{targets!r}]")
    modules = {name: module for name, module in model.named_modules(remove_duplicate=False) if not _inside_lora(model, name)}
    chosen: dict[str, nn.Linear | nn.Embedding | LoRALayer] = {}
    for target in (wanted := list(targets)):
        matches = {name: module for name, module in modules.items() if name == target or name.endswith(f".{target}")}
        if not matches:
            fits = sorted({name.rpartition(".")[2] for name, module in modules.items() if isinstance(module, ADAPTABLE)})
            raise ValueError(f"targets: {target!r} matches no module; what can be adapted here ends in {', '.join(fits) or 'nothing'}")
        for name, module in matches.items():
            if not isinstance(module, ADAPTABLE):
                raise ValueError(f"targets: {target!r} matches {name}, a {type(module).__name__}; expected nn.Linear or nn.Embedding")
            if isinstance(module, LoRALayer) and adapter in module.configs:
                raise ValueError(f"adapter: {name} already has an adapter {adapter!r}; expected a new name")
            chosen[name] = module
    if not wanted:
        raise ValueError("targets: no name given; expected at least one")
    for name, module in modules.items():
        if isinstance(module, LoRALayer) and module.merged:
            raise ValueError(f"model: {name} is merged; expected a call of unmerge_adapters(...) before")
    layers = {id(module): _wrap(module) for module in chosen.values()}  # by identity: a module used in two places stays one module
    for name, module in chosen.items():
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, layers[id(module)])
    model.requires_grad_(False)
    for layer in layers.values():
        layer.add_adapter(adapter, config)
    use_adapters(model, {adapter: 1.0})
    return model


def _wrap(module: nn.Linear | nn.Embedding | LoRALayer) -> LoRALayer:
    if isinstance(module, nn.Linear):
        return LoRALinear(module).train(module.training)
    return LoRAEmbedding(module).train(module.training) if isinstance(module, nn.Embedding) else module


def _inside_lora(model: nn.Module, name: str) -> bool:
    return name.rpartition(".")[2] == "base" and isinstance(model.get_submodule(name.rpartition(".")[0]), LoRALayer)


def use_adapters(model: nn.Module, blend: Mapping[str, float]) -> None:
    """Use the weighted sum of these adapters in every layer that has them, and train these alone; {} gives the base model.

    Raises ValueError for an adapter that no layer has, or when a layer is merged.
    """
    layers = lora_layers(model)
    for name in blend:
        lora_layers(model, name)
    for layer in layers.values():
        layer.use({name: weight for name, weight in blend.items() if name in layer.configs})
        for name in layer.configs:
            layer.lora_A[name].requires_grad_(name in blend)
            layer.lora_B[name].requires_grad_(name in blend)


def combine_adapters(model: nn.Module, blend: Mapping[str, float], into: str) -> None:
    """Store a blend as one adapter whose update is exactly Σ wᵢ·ΔWᵢ: the As stacked, the Bs side by side, rank Σ rᵢ.

    Averaging the As and the Bs instead would also multiply every A with the other adapters' Bs.
    Raises ValueError for unknown adapters, a taken name, or merged layers.
    """
    for name in blend:
        lora_layers(model, name)
    for name, layer in lora_layers(model).items():
        if into in layer.configs or layer.merged:
            state = "is merged" if layer.merged else f"already has an adapter {into!r}"
            raise ValueError(f"into: {name} {state}; expected a new name and unmerged layers")
    for layer in lora_layers(model).values():
        names = [name for name in blend if name in layer.configs]
        if not names:
            continue
        rank = sum(layer.configs[name].rank for name in names)
        layer.add_adapter(into, LoRAConfig(rank=rank, alpha=rank))  # a scale of 1: each part brings its own
        with torch.no_grad():
            layer.lora_A[into].copy_(torch.cat([layer.lora_A[name] for name in names]))
            layer.lora_B[into].copy_(torch.cat([blend[name] * layer.configs[name].scale * layer.lora_B[name] for name in names], dim=1))
    use_adapters(model, {into: 1.0})


def merge_adapters(model: nn.Module) -> None:
    """Add the active blend to the base weights of every layer that has one (§4.1, no additional inference latency).

    Raises ValueError, before anything is changed, when a layer is merged already, nothing is active, or a weight to be changed is tied
    to a parameter elsewhere in the model (an output layer that shares the embedding), which the merge would change as well.
    """
    layers = {name: layer for name, layer in lora_layers(model).items() if layer.active}
    if not layers:
        raise ValueError("merge: no adapter is active; expected a call of use_adapters(...) before")
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    for name, layer in layers.items():
        if layer.merged:
            raise ValueError(f"merge: {name} is merged already; expected a call of unmerge_adapters(...) before")
        shared = names[id(layer.base.weight)]
        if len(shared) > 1:
            raise ValueError(f"merge: {shared[0]} and {shared[1]} are one tensor, so both would change; expected the tie to be cut before")
    for layer in layers.values():
        layer.merge()


def unmerge_adapters(model: nn.Module) -> None:
    """Subtract what `merge_adapters` added. Raises ValueError when nothing is merged."""
    layers = [layer for layer in lora_layers(model).values() if layer.merged]
    if not layers:
        raise ValueError("unmerge: no layer is merged")
    for layer in layers:
        layer.unmerge()


def lora_state_dict(model: nn.Module, adapter: str = "default") -> dict[str, Tensor]:
    """Return one adapter alone, as safetensors takes it: contiguous tensors under `<module>.lora_A.weight` and `<module>.lora_B.weight`.

    The adapter's own name is left out, so that it can be loaded under another; alpha and rank are not in the tensors and must be kept
    beside them. Embeddings use `lora_embedding_A` and `lora_embedding_B`, as peft does.
    Raises ValueError for an unknown adapter.
    """
    state = {}
    for name, layer in lora_layers(model, adapter).items():
        for part, pairs in (("A", layer.lora_A), ("B", layer.lora_B)):
            state[_key(name, layer, part)] = pairs[adapter].detach().clone().contiguous()
    return state


def load_lora_state_dict(model: nn.Module, state: Mapping[str, Tensor], adapter: str = "default") -> None:
    """Load an adapter saved by `lora_state_dict` into `adapter`, which `apply_lora` has put in place with the same targets and rank.

    Raises ValueError, before anything is changed, for names that are missing or not expected, other shapes, or merged layers.
    """
    wanted: dict[str, nn.Parameter] = {}
    for name, layer in lora_layers(model, adapter).items():
        if layer.merged:
            raise ValueError(f"{name} is merged: unmerging would subtract an update that was never added; expected unmerged layers")
        wanted[_key(name, layer, "A")], wanted[_key(name, layer, "B")] = layer.lora_A[adapter], layer.lora_B[adapter]
    missing, extra = sorted(wanted.keys() - state.keys()), sorted(state.keys() - wanted.keys())
    if missing or extra:
        found = f"{len(missing)} names are missing {missing[:3]} and {len(extra)} are not expected {extra[:3]}"
        raise ValueError(f"state: {found}; are the targets the same?")
    for key, parameter in wanted.items():
        if state[key].shape != parameter.shape:
            raise ValueError(f"state: {key} has shape {tuple(state[key].shape)}; expected {tuple(parameter.shape)}: is the rank the same?")
    with torch.no_grad():
        for key, parameter in wanted.items():
            parameter.copy_(state[key])


def _key(name: str, layer: LoRALayer, part: str) -> str:
    ending = f"lora_embedding_{part}" if isinstance(layer, LoRAEmbedding) else f"lora_{part}.weight"
    return f"{name}.{ending}" if name else ending
