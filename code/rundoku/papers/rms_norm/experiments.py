"""The runs behind the note on RMSNorm."""

import re
from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from rundoku.data import human_rights, smollm2
from rundoku.data.digits import digits
from rundoku.data.shakespeare import plays
from rundoku.papers.layer_norm import LayerNorm, layer_norm
from rundoku.papers.layer_norm import experiments as before
from rundoku.papers.rms_norm.norm import RMSNorm, rms_norm
from rundoku.show import experiment

SHARE = 0.0625  # the paper's p (§5)
METHODS = (*before.METHODS, "RMSNorm", "pRMSNorm")  # Table 1's rows, in its order


# --8<-- [start:invariances]
def normalised(method: str, weight: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Return the summed inputs W·x, normalised by one of METHODS; weight: [C, D], x: [B, D]; returns [B, C]."""
    if method in before.METHODS:
        return before.normalised(method, weight, x)
    return rms_norm(x @ weight.T, eps=1e-12, partial=SHARE if method == "pRMSNorm" else 1.0)
    # --8<-- [end:invariances]


@experiment
def invariances(*, seed: int) -> dict:
    """Return how far each change of weights or data moves each method's output, as a share of the output's largest value (Table 1)."""
    torch.manual_seed(seed)
    x, weight = digits()[0][:200].double(), torch.randn(48, 64, dtype=torch.float64)
    moved = {}
    for method in METHODS:
        output = normalised(method, weight, x)
        after = {change: normalised(method, *before.changed(change, weight, x)) for change in before.CHANGES}
        moved[method] = {change: (other - output).abs().max() / output.abs().max() for change, other in after.items()}
    return moved


@experiment
def gradients(*, scales: tuple[float, ...], seed: int) -> dict:
    """Return the norm of the gradient of W where W, or the data, are scaled: without a norm and with RMSNorm; 1 at scale 1 (Eq. 9, 10)."""
    torch.manual_seed(seed)
    (x, labels), (weight, output) = digits(), torch.randn(2, 48, 64, dtype=torch.float64) / 8
    ways = {"none": lambda a: a, "rms": lambda a: rms_norm(a, eps=1e-30)}

    def size(way: Callable, by_weight: float, by_data: float) -> torch.Tensor:
        scaled = (by_weight * weight).requires_grad_()
        logits = way((by_data * x.double()) @ scaled.T).relu() @ output[:, :10]
        return torch.autograd.grad(F.cross_entropy(logits, labels), scaled)[0].norm()

    found = {}
    for name, way in ways.items():
        found[name] = {"weight": torch.stack([size(way, scale, 1.0) for scale in scales]) / size(way, 1.0, 1.0)}
        found[name]["data"] = torch.stack([size(way, 1.0, scale) for scale in scales]) / size(way, 1.0, 1.0)
    return found


class _Count(TorchDispatchMode):
    """Counts what every operation that torch executes reads, writes and computes, in elements; a view costs nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.moved = self.operations = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if not any(returned.alias_info for returned in function._schema.returns):
            tensors = [leaf for leaf in tree_leaves((args, result)) if isinstance(leaf, torch.Tensor)]
            self.moved += sum(min(one.numel(), one.untyped_storage().nbytes() // one.element_size()) for one in tensors)
            self.operations += max((one.numel() for one in tensors), default=0)
        return result


@experiment
def traffic(*, rows: int, width: int) -> dict:
    """Return operations, and elements read and written, for each element of x where every operation is a kernel of its own.

    Forward, then forward and backward, for LayerNorm and RMSNorm with a gain and for pRMSNorm, written as their formulas stand.
    """

    def layer(x, weight):
        centred = x - x.mean(-1, keepdim=True)
        return centred * torch.rsqrt(centred.square().mean(-1, keepdim=True) + 1e-5) * weight

    ways = {"LayerNorm": layer, "RMSNorm": rms_norm, "pRMSNorm": partial(rms_norm, partial=SHARE)}
    found = {}
    for name, way in ways.items():
        x, weight = torch.randn(rows, width, requires_grad=True), torch.ones(width, requires_grad=True)
        gradient = torch.randn(rows, width)
        with _Count() as count:
            y = way(x, weight)
            forward = (count.operations / x.numel(), count.moved / x.numel())
            y.backward(gradient)
        found[name] = {"operations": forward[0], "forward": forward[1], "both": count.moved / x.numel()}
    return found


# --8<-- [start:smollm2]
EPS = 1e-5  # SmolLM2's own
NORMS: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "RMSNorm": lambda x, gain: rms_norm(x, gain, EPS),
    "LayerNorm": lambda x, gain: layer_norm(x, gain, eps=EPS),
    "pRMSNorm": lambda x, gain: rms_norm(x, gain, EPS, partial=SHARE),
    "1 + gain": lambda x, gain: rms_norm(x, 1 + gain, EPS),
    "eps added": lambda x, gain: gain * x / (x.square().mean(-1, keepdim=True).sqrt() + EPS),
    **{f"eps {eps:g}": lambda x, gain, eps=eps: rms_norm(x, gain, eps) for eps in (1e-8, 1e-6, 1e-3, 1e-2)},
    "half": lambda x, gain: gain * (x.half() * torch.rsqrt(x.half().square().mean(-1, keepdim=True) + EPS)),
}
# --8<-- [end:smollm2]


def _text(tokens: int) -> torch.Tensor:
    """Return the first tokens of the Declaration's articles in which every word and sign is one token of SmolLM2's vocabulary."""
    known, ids = smollm2.vocabulary()["vocabulary"], []
    for article in human_rights.articles("en"):
        pieces = [piece.replace(" ", "Ġ") for piece in re.findall(r" ?[A-Za-z]+|[^A-Za-z ]", article)]
        if all(piece in known for piece in pieces):
            ids += [known[piece] for piece in pieces]
    return torch.tensor(ids[:tokens])


def _hidden(weights: dict[str, torch.Tensor], ids: torch.Tensor, norm: Callable, seen: list[torch.Tensor]) -> torch.Tensor:
    """Return SmolLM2's last hidden states [N, C] for ids [N] with ``norm`` at every norm, whose inputs are added to ``seen``."""

    def normal(name: str) -> torch.Tensor:
        seen.append(x)
        return norm(x, weights[f"{name}_norm.weight"])

    angles = torch.arange(len(ids))[:, None] * 100_000.0 ** (-torch.arange(32) / 32)
    turn = torch.polar(torch.ones_like(angles), angles)  # rotary positions, over pairs of neighbours as the file has them
    x = weights["token_embd.weight"][ids]  # the residual stream: [N, C]
    for layer in range(30):
        of = {part: weights[f"blk.{layer}.{part}.weight"].T for part in ("attn_q", "attn_k", "attn_v", "attn_output")}
        y = normal(f"blk.{layer}.attn")
        query, key, value = ((y @ of[f"attn_{part}"]).unflatten(-1, (-1, 64)).transpose(0, 1) for part in "qkv")  # [H or G, N, D]
        query, key = (torch.view_as_real(torch.view_as_complex(each.unflatten(-1, (-1, 2))) * turn).flatten(-2) for each in (query, key))
        y = F.scaled_dot_product_attention(query[None], key[None], value[None], is_causal=True, enable_gqa=True)[0]
        x = x + y.transpose(0, 1).flatten(1) @ of["attn_output"]
        gate, up, down = (weights[f"blk.{layer}.ffn_{part}.weight"].T for part in ("gate", "up", "down"))
        y = normal(f"blk.{layer}.ffn")
        x = x + (F.silu(y @ gate) * (y @ up)) @ down
    return normal("output")


@experiment
def real_model(*, tokens: int) -> dict:
    """Return SmolLM2's loss in nats a token by the norm put into it, and for each norm's real inputs and gains, in order:

    the share of a vector's squared length that lies in its mean (over all; first token; quantiles 0.05, 0.5, 0.95 of the others) and in
    the six largest of its 576 units, the largest value (first token; others), and quantiles of the gains (0, 0.05, 0.5, 0.95, 1).
    """
    _, weights = smollm2.read()
    ids, losses = _text(tokens), {}
    inputs: list[torch.Tensor] = []
    with torch.no_grad():
        for name, norm in NORMS.items():
            seen: list[torch.Tensor] = []
            logits = _hidden(weights, ids, norm, seen)[:-1] @ weights["token_embd.weight"].T
            losses[name], inputs = F.cross_entropy(logits, ids[1:]), inputs or seen
    stream = torch.stack(inputs)  # [61, N, C], with the norm that belongs there
    share = stream.mean(-1).square() / stream.square().mean(-1)  # [61, N]
    gains = [weights[f"blk.{layer}.{part}_norm.weight"] for layer in range(30) for part in ("attn", "ffn")]
    quantiles = torch.tensor([0.0, 0.05, 0.5, 0.95, 1.0])
    return {
        "loss": losses,
        "top": (stream.square().topk(6, -1).values.sum(-1) / stream.square().sum(-1)).mean(),
        "first_share": share[:, 0],
        "mean_share": share.mean(),
        "share": share[:, 1:].quantile(quantiles[1:4], 1),
        "first_peak": stream[:, 0].abs().amax(-1),
        "peak": stream[:, 1:].abs().amax((1, 2)),
        "gains": torch.stack([gain.quantile(quantiles) for gain in [*gains, weights["output_norm.weight"]]], 1),
    }


@experiment
def cast_order(*, rows: int) -> dict:
    """Return how SmolLM2's first norm differs in bfloat16 where the gain comes before the cast back (as here) and after it (as in LLaMA).

    The share of elements that differ, each order's mean error against float64, and how many vectors of zeros become NaN in float16
    where 1e-8 is added to the root mean square, as in the authors' code.
    """
    x = smollm2.tensor("token_embd.weight")[:rows].bfloat16()
    gain = smollm2.tensor("blk.0.attn_norm.weight").bfloat16()
    exact = rms_norm(x.double(), gain.double(), EPS)
    early, late = rms_norm(x, gain, EPS), gain * rms_norm(x, None, EPS)
    errors = {name: (found - exact).abs().mean() for name, found in (("early", early), ("late", late))}
    zeros = torch.zeros(1, 8, dtype=torch.float16)
    theirs = zeros / (zeros.norm(2, dim=-1, keepdim=True) * 8**-0.5 + 1e-8)
    return {"differ": (early != late).double().mean(), **errors, "nan": theirs.isnan().double().mean()}


Norm = Literal["none", "layer", "rms", "partial"]


@experiment
def character_model(*, norm: Norm, center: float = 0.0, length: int = 24, steps: int = 140, seed: int) -> dict:
    """Train the layer-norm room's LSTM on Shakespeare with another norm; return the validation loss in nats a character every 20 steps.

    Every norm starts from the same weights and sees the same batches; ``center`` is added to the LSTM's two matrices (§6.1).
    """
    text = plays().lower()[:1_000_000]
    letters = {letter: i for i, letter in enumerate(sorted(set(text)))}
    train, held_out = torch.tensor([letters[letter] for letter in text]).split([900_000, 100_000])
    window = torch.arange(length + 1)
    validation = held_out[(torch.arange(100) * 900)[:, None] + window]  # [100, N + 1]
    torch.manual_seed(seed)
    model = before.CharacterModel(len(letters), "none" if norm == "none" else "layer", d_model=64, length=length)
    if norm in ("rms", "partial"):
        _replace(model, SHARE if norm == "partial" else 1.0)
    with torch.no_grad():
        model.cell.input.weight += center
        model.cell.hidden.weight += center
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3, fused=True)
    draw = torch.Generator().manual_seed(seed)
    losses = []

    def loss(characters: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(model(characters[:, :-1]).flatten(0, 1), characters[:, 1:].flatten())

    for step in range(1, steps + 1):
        optimizer.zero_grad()
        loss(train[torch.randint(len(train) - length, (16,), generator=draw)[:, None] + window]).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 20 == 0:
            with torch.no_grad():
                losses.append(loss(validation))
    return {"steps": range(20, steps + 1, 20), "loss": torch.stack(losses)}


def _replace(model: nn.Module, share: float = 1.0) -> None:
    """Put RMSNorm in the place of every LayerNorm, with gains of 1."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, LayerNorm):
                setattr(parent, name, RMSNorm(len(child.weight), child.eps, share))


@experiment
def loaded(*, epochs: int, seed: int) -> dict:
    """Return the test error of a digit classifier trained with LayerNorm, and with its weights loaded into one with RMSNorm.

    Loaded leniently, the biases have nowhere to go ("dropped"); "kept" adds them back; "centered" also takes the mean over the units out of
    the linear layer before each norm, and "moved" is how far that network's logits then are from the original's.
    """
    images, labels = digits()
    (images, test_images), (labels, test_labels) = images.split([1297, 500]), labels.split([1297, 500])
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(64, 100), LayerNorm(100), nn.ReLU(), nn.Linear(100, 100), LayerNorm(100), nn.ReLU(), nn.Linear(100, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3, fused=True)
    for _ in range(epochs):
        for batch in torch.randperm(len(images)).split(64):
            optimizer.zero_grad()
            F.cross_entropy(model(images[batch]), labels[batch]).backward()
            optimizer.step()
    state = model.double().state_dict()
    other = nn.Sequential(
        nn.Linear(64, 100), RMSNorm(100, 1e-5), nn.ReLU(), nn.Linear(100, 100), RMSNorm(100, 1e-5), nn.ReLU(), nn.Linear(100, 10)
    )
    other.double().load_state_dict(state, strict=False)

    def centered(weight: torch.Tensor) -> torch.Tensor:
        return weight - weight.mean(0)  # over the units: every summed input of the layer then has mean 0

    def logits(prepare: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        x = test_images.double()
        for first in (0, 3):
            x = F.linear(x, prepare(state[f"{first}.weight"]), prepare(state[f"{first}.bias"]))
            x = (rms_norm(x, state[f"{first + 1}.weight"], 1e-5) + state[f"{first + 1}.bias"]).relu()
        return F.linear(x, state["6.weight"], state["6.bias"])

    with torch.no_grad():
        original = model(test_images.double())
        found = {
            "layer": original,
            "dropped": other(test_images.double()),
            "kept": logits(lambda weight: weight),
            "centered": logits(centered),
        }
        errors = {name: (one.argmax(1) != test_labels).double().mean() for name, one in found.items()}
    return {**errors, "moved": (found["centered"] - original).abs().max()}
