"""The runs behind the note: GPT-3's parameters counted on modules without storage, and a small language model adapted to new text."""

import copy
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from rundoku.data import python_code, shakespeare
from rundoku.papers.lora import (
    LoRAConfig,
    amplification,
    apply_lora,
    load_lora_state_dict,
    lora_layers,
    lora_state_dict,
    merge_adapters,
    subspace_similarity,
    unmerge_adapters,
    use_adapters,
)
from rundoku.papers.lora import language_model as lm
from rundoku.show import experiment

LENGTH, SIZE = 64, 16  # characters the model sees, stretches in a batch; adapting takes half as many
ATTENTION = ("query", "value")
EVERY_LINEAR = ("query", "key", "value", "output", "inner", "outer")
ALPHA = 8.0


# --- GPT-3, counted -------------------------------------------------------------------------------------------------------------------


@experiment
def gpt3_counts(*, settings: tuple[tuple[tuple[str, ...], int], ...]) -> dict:
    """Count GPT-3's parameters, and the trainable ones after `apply_lora` for each pair of targets and rank."""
    base = lm.gpt3()
    full = lm.count(base.parameters())
    trained = [lm.count(lm.trainable(apply_lora(copy.deepcopy(base), targets, LoRAConfig(rank=rank)))) for targets, rank in settings]
    return {"full": full, "trained": trained}


@experiment
def gpt3_training_memory(*, targets: tuple[str, ...], rank: int) -> dict:
    """Count the bytes that training GPT-3 in half precision holds besides activations, with all weights trained and with LoRA."""
    adapted = apply_lora(lm.gpt3(), targets, LoRAConfig(rank=rank))
    return {"full": lm.training_bytes(lm.gpt3().half()), "lora": lm.training_bytes(adapted.half())}


# --- a small model, trained on Shakespeare's plays and adapted ------------------------------------------------------------------------


@cache
def _text(domain: str) -> tuple[Tensor, Tensor]:
    """Return the parts of a text to train on and to test on."""
    text = lm.encode({"plays": shakespeare.plays, "poems": shakespeare.poems, "code": python_code.code}[domain]())
    cut = len(text) * 9 // 10
    return text[:cut], text[cut:]


def _model() -> lm.CausalLM:
    return lm.CausalLM(d_model=128, n_layers=2, n_heads=4)


@experiment
def pretrain(*, steps: int, seed: int) -> dict:
    """Train the base model on the plays (some 45 s: in less, there is no language to adapt)."""
    torch.manual_seed(seed)
    model = _model()
    losses = lm.train(model, _text("plays")[0], steps=steps, size=SIZE, length=LENGTH, rate=6e-3, seed=seed)
    zero_shot = {domain: lm.evaluate(model, _text(domain)[1], LENGTH) for domain in ("plays", "poems", "code")}
    return {"losses": losses, "loss": zero_shot, "parameters": lm.count(model.parameters()), "weights": lm.pack(model.state_dict())}


@cache
def _base_weights(steps: int, seed: int) -> dict[str, Tensor]:
    return lm.unpack(pretrain(steps=steps, seed=seed).as_dict()["weights"])


def base_model() -> lm.CausalLM:
    """Return the pre-trained model that every experiment starts from."""
    model = _model()
    model.load_state_dict(_base_weights(steps=1000, seed=0))
    return model


# --8<-- [start:adapt]
RATES = {"full": 3e-3, "head": 1e-2, "lora": 1e-2}  # one a method, as in Table 12


@experiment
def adapt(
    *,
    domain: str,
    method: str,
    targets: tuple[str, ...] = (),
    rank: int = 0,
    seed: int = 1,
) -> dict:
    """Adapt the base model to other text.

    "full" trains everything, "head" the last layer, "lora" updates of the targets.
    """
    model = base_model()
    torch.manual_seed(seed)
    if method == "lora":
        apply_lora(model, targets, LoRAConfig(rank=rank, alpha=ALPHA))
    elif method == "head":
        model.requires_grad_(False).head.requires_grad_(True)
    learning, testing = _text(domain)
    recipe = {"steps": 150, "size": SIZE // 2, "length": LENGTH, "rate": RATES[method]}
    lm.train(model, learning, seed=seed, **recipe)
    return {
        "loss": lm.evaluate(model, testing, LENGTH),
        "trained": lm.count(lm.trainable(model)),
        "adapter": lm.pack(lora_state_dict(model) if method == "lora" else {}),
    }


# --8<-- [end:adapt]


def adapted(domain: str, targets: tuple[str, ...], rank: int, seed: int = 1) -> nn.Module:
    """Return the base model with the adapter that `adapt` trained."""
    found = adapt(domain=domain, method="lora", targets=targets, rank=rank, seed=seed).as_dict()
    model = apply_lora(base_model(), targets, LoRAConfig(rank=rank, alpha=ALPHA))
    load_lora_state_dict(model, lm.unpack(found["adapter"]))
    return model


@experiment
def switching(*, domains: tuple[str, ...], targets: tuple[str, ...], rank: int) -> dict:
    """Put the adapters of several domains beside one base model, and measure each alone, an even blend of all, and the base."""
    # --8<-- [start:switching]
    model = base_model()
    for domain in domains:
        apply_lora(model, targets, LoRAConfig(rank=rank, alpha=ALPHA), adapter=domain)
        found = adapt(domain=domain, method="lora", targets=targets, rank=rank)
        state = lm.unpack(found.as_dict()["adapter"])
        load_lora_state_dict(model, state, adapter=domain)
    blends = {
        "none": {},
        **{domain: {domain: 1.0} for domain in domains},
        "blend": {domain: 1 / len(domains) for domain in domains},
    }
    losses = {}
    for name, blend in blends.items():
        use_adapters(model, blend)
        losses[name] = {d: lm.evaluate(model, _text(d)[1], LENGTH) for d in domains}
    return losses
    # --8<-- [end:switching]


# --- what the updates look like (§7) --------------------------------------------------------------------------------------------------


def _as(model: nn.Module) -> dict[str, Tensor]:
    return {name: layer.lora_A["default"].detach() for name, layer in lora_layers(model).items()}


@experiment
def subspaces(*, domain: str, ranks: tuple[int, int], seeds: tuple[int, int], controls: int) -> dict:
    """Compare the As of two adapters with φ(i, j) of Eq. 4, and random matrices of the same sizes (the mean of `controls` pairs)."""
    first, second = (_as(adapted(domain, ATTENTION, rank, seed)) for rank, seed in zip(ranks, seeds, strict=True))
    trained = {name: subspace_similarity(first[name], second[name]) for name in first}
    generator = torch.Generator().manual_seed(0)
    pairs = [[torch.randn(rank, _model().tokens.embedding_dim, generator=generator) for rank in ranks] for _ in range(controls)]
    return {"trained": trained, "random": torch.stack([subspace_similarity(*pair) for pair in pairs]).mean(0)}


@experiment
def amplified(*, domain: str, ranks: tuple[int, ...], controls: int) -> dict:
    """Compare the update of every adapted layer with its weight, as Table 7 does, for each rank and with many random matrices for one."""
    found: dict[str, dict] = {}
    for rank in ranks:
        for name, layer in lora_layers(adapted(domain, ATTENTION, rank)).items():
            weight, delta = layer.base.weight.detach(), layer.delta().detach()
            draws = [amplification(weight, delta, rank, seed) for seed in range(controls)]
            random = torch.tensor([draw.through_random for draw in draws])
            found.setdefault(name, {})[str(rank)] = {
                "weight": draws[0].weight,
                "delta": draws[0].delta,
                "through": {"delta": draws[0].through_delta, "weight": draws[0].through_weight, "random": random.mean()},
                "highest_random": random.max(),
                "factor": draws[0].factor,
            }
    return found


# --- merging --------------------------------------------------------------------------------------------------------------------------


@experiment
def merging(*, domain: str, targets: tuple[str, ...], rank: int) -> dict:
    """Compare base, adapted and merged model: their logits, their work, and what is left of the update in each number format."""
    tokens = lm.batch(_text(domain)[1], 8, LENGTH, torch.Generator().manual_seed(0))[:, :-1]

    def run(model: nn.Module) -> tuple[Tensor, int]:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            logits = model(tokens)
        return logits, counter.get_total_flops()

    base, model = base_model(), adapted(domain, targets, rank)
    (unadapted, base_work), (apart, adapted_work) = run(base), run(model)
    weights = {name: layer.base.weight.clone() for name, layer in lora_layers(model).items()}
    merge_adapters(model)
    merged, merged_work = run(model)
    unmerge_adapters(model)
    residue = max((layer.base.weight - weights[name]).abs().max().item() for name, layer in lora_layers(model).items())
    return {
        "work": {"base": base_work, "adapted": adapted_work, "merged": merged_work},
        "difference": (merged - apart).abs().max(),
        "effect": (apart - unadapted).abs().max(),
        "residue": residue,
    }


@experiment
def merging_in_half_precision(*, domain: str, targets: tuple[str, ...], rank: int, shares: tuple[float, ...]) -> dict:
    """Merge shares of a trained update into rounded weights; count the weights that do not move and the part of the update that is lost."""
    found: dict[str, dict] = {}
    for name, dtype in (("bfloat16", torch.bfloat16), ("float16", torch.float16), ("float32", torch.float32)):
        still, lost = [], []
        for share in shares:
            model = adapted(domain, targets, rank)
            layers = lora_layers(model).values()
            before = torch.cat([layer.base.weight.to(dtype).flatten() for layer in layers])
            update = torch.cat([share * layer.delta().detach().flatten() for layer in layers])
            after = (before.float() + update).to(dtype)
            still.append((after == before).float().mean())
            lost.append((after.double() - before.double() - update).norm() / update.double().norm())
        found[name] = {"still": torch.stack(still), "lost": torch.stack(lost)}
    return found


@experiment
def starts(*, domain: str, rank: int) -> dict:
    """Give A and B each a zero or a random start: the loss before training, and the gradients that reach A and B."""
    tokens = lm.batch(_text(domain)[0], SIZE, LENGTH, torch.Generator().manual_seed(0))
    found: dict[str, Any] = {"base": lm.loss(base_model(), tokens).item()}
    for name, zero_a, zero_b in (("A random, B zero", False, True), ("both zero", True, True), ("both random", False, False)):
        torch.manual_seed(0)
        model = apply_lora(base_model(), ATTENTION, LoRAConfig(rank=rank, alpha=ALPHA))
        for layer in lora_layers(model).values():
            if not zero_b:
                nn.init.kaiming_uniform_(layer.lora_B["default"], a=5**0.5)
            if zero_a:
                nn.init.zeros_(layer.lora_A["default"])
        start = lm.loss(model, tokens)
        start.backward()
        found[name] = {"loss": start.item()}
        for part in "AB":
            gradients = [p.grad for n, p in model.named_parameters() if f"lora_{part}" in n and p.grad is not None]
            found[name][part] = nn.utils.get_total_norm(gradients)
    return found


@experiment
def scaling(*, domain: str, ranks: tuple[int, ...], steps: int) -> dict:
    """Train some steps with Adam at one learning rate and measure how far the logits move at each rank, for three factors."""
    tokens = lm.batch(_text(domain)[0], SIZE, LENGTH, torch.Generator().manual_seed(9))[:, :-1]
    start = base_model()(tokens).detach()
    found = {}
    for name, alpha in (("α/r", lambda r: ALPHA), ("α/√r", lambda r: ALPHA * r**0.5), ("α", lambda r: ALPHA * r)):
        moved = []
        for rank in ranks:
            torch.manual_seed(0)
            model = apply_lora(base_model(), ATTENTION, LoRAConfig(rank=rank, alpha=alpha(rank)))
            lm.train(model, _text(domain)[0], steps=steps, size=SIZE // 2, length=LENGTH, rate=1e-4, seed=0)
            moved.append((model(tokens).detach() - start).square().mean().sqrt())
        found[name] = torch.stack(moved)
    return found


@experiment
def frozen_too_late(*, domain: str, steps: int, weight_decay: float) -> dict:
    """Freeze the base after its gradients exist and keep them as zeros: AdamW goes on shrinking weights that no gradient moves."""
    found = {}
    for name in ("before the optimizer", "after a first step"):
        model = base_model()
        tokens = lm.batch(_text(domain)[0], SIZE, LENGTH, torch.Generator().manual_seed(0))
        if name == "before the optimizer":
            model.requires_grad_(False).head.requires_grad_(True)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=weight_decay)
        if name == "after a first step":
            lm.loss(model, tokens).backward()
            optimizer.zero_grad(set_to_none=False)
            model.requires_grad_(False).head.requires_grad_(True)
        frozen = model.get_parameter("encoder.layers.0.self_attention.query.weight")
        before = frozen.detach().clone()
        for _ in range(steps):
            optimizer.zero_grad(set_to_none=False)
            lm.loss(model, tokens).backward()
            optimizer.step()
        moments = [entry["exp_avg"] for entry in optimizer.state.values()]
        found[name] = {"kept": (frozen.norm() / before.norm()).item(), "moments": 2 * lm.count(moments)}
    return found
