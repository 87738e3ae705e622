"""The runs behind the note on GLU variants."""

import re
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from rundoku.data import human_rights, smollm2
from rundoku.data.shakespeare import plays
from rundoku.papers.attention_is_all_you_need import MultiHeadAttention, causal_mask
from rundoku.papers.glu_variants.gating import ACTIVATIONS, GatedFeedForward, glu, two_thirds
from rundoku.show import experiment

PLAIN_FFN = {"ReLU": "relu", "GELU": "gelu", "Swish": "silu"}  # the paper's two-matrix networks, by activation
GATED_FFN = {"GLU": "sigmoid", "Bilinear": "identity", "GEGLU": "gelu", "SwiGLU": "silu", "ReGLU": "relu"}  # and its five of three
KINDS = (*PLAIN_FFN, *GATED_FFN)  # Table 1's rows, in its order


class FeedForward(nn.Module):
    """FFN(x) = act(x·W₁)·W₂ without biases, what the paper compares with (Eq. 2 and 3)."""

    def __init__(self, d_model: int, d_ff: int, activation: str) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[activation]
        self.inner = nn.Linear(d_model, d_ff, bias=False)  # W₁
        self.outer = nn.Linear(d_ff, d_model, bias=False)  # W₂

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the output [..., C] for ``x`` [..., C]."""
        return self.outer(self.activation(self.inner(x)))


def feed_forward(kind: str, d_model: int, d_ff: int) -> nn.Module:
    """Return one of KINDS with the parameters of the plain network of width ``d_ff``."""
    if kind in PLAIN_FFN:
        return FeedForward(d_model, d_ff, PLAIN_FFN[kind])
    return GatedFeedForward(d_model, two_thirds(d_ff), GATED_FFN[kind])


@experiment
def cost(*, d_model: int, d_ff: int, gated_width: int) -> dict:
    """Return parameters and floating-point operations a token of the plain network and of the gated one, counted on the modules."""
    found = {}
    with torch.device("meta"):
        for name, ffn in (("plain", FeedForward(d_model, d_ff, "relu")), ("gated", GatedFeedForward(d_model, gated_width))):
            with FlopCounterMode(display=False) as counter:  # counts the products of matrices
                ffn(torch.empty(1, d_model))
            parameters = sum(parameter.numel() for parameter in ffn.parameters())
            found[name] = {"parameters": parameters, "flops": counter.get_total_flops()}
    return found


class LanguageModel(nn.Module):
    """Predicts the next character: pre-norm Transformer blocks around one kind of feed-forward network."""

    def __init__(self, vocabulary: int, kind: str, d_model: int, d_ff: int, n_layers: int, length: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, d_model)
        self.position = nn.Parameter(0.02 * torch.randn(length, d_model))
        self.attention = nn.ModuleList(MultiHeadAttention(d_model, n_heads=4) for _ in range(n_layers))
        self.norms = nn.ModuleList(nn.RMSNorm(d_model) for _ in range(2 * n_layers + 1))
        self.head = nn.Linear(d_model, vocabulary, bias=False)
        self.feed_forward = nn.ModuleList(feed_forward(kind, d_model, d_ff) for _ in range(n_layers))  # last: the rest starts alike
        self.register_buffer("mask", causal_mask(length))

    def forward(self, characters: torch.Tensor) -> torch.Tensor:
        """Return the logits [B, N, V] for characters [B, N]."""
        x = self.embedding(characters) + self.position  # [B, N, C]
        for i, (attention, ffn) in enumerate(zip(self.attention, self.feed_forward)):
            normal = self.norms[2 * i](x)
            x = x + attention(normal, normal, normal, self.mask)
            x = x + ffn(self.norms[2 * i + 1](x))
        return self.head(self.norms[-1](x))


@experiment
def language_model(*, kind: str, seed: int, steps: int = 300, d_model: int = 48, d_ff: int = 192, n_layers: int = 1) -> dict:
    """Train on Shakespeare's plays; return the held-out log-perplexity, in nats a character, and the number of parameters.

    A seed gives every kind the same batches and the same first values outside the feed-forward networks.
    """
    length, batch_size, warm_up = 32, 16, 30
    text = torch.frombuffer(bytearray(plays()[:2_000_000].encode("latin-1")), dtype=torch.uint8).long()
    letters = text.bincount() > 0
    train, held_out = (letters.cumsum(0) - 1)[text].split([1_800_000, 200_000])
    window = torch.arange(length + 1)
    validation = held_out[(torch.arange(512) * 390)[:, None] + window]  # [512, N + 1]
    torch.manual_seed(seed)
    model = LanguageModel(int(letters.sum()), kind, d_model, d_ff, n_layers, length)
    optimizer = torch.optim.AdamW(model.parameters(), lr=6e-3, weight_decay=0.0, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min((step + 1) / warm_up, 1 - step / steps))
    draw = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        batch = train[torch.randint(len(train) - length, (batch_size,), generator=draw)[:, None] + window]
        loss = F.cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        held = F.cross_entropy(model(validation[:, :-1]).flatten(0, 1), validation[:, 1:].flatten())
    return {"loss": held, "parameters": sum(parameter.numel() for parameter in model.parameters())}


def declaration_tokens(count: int) -> torch.Tensor:
    """Return the first tokens of articles 15 to 30 of the Declaration of Human Rights in SmolLM2's vocabulary.

    Words are cut into the longest tokens there are, which for these articles is what the model's own tokenizer does.
    """
    ids, found = smollm2.vocabulary()["vocabulary"], []
    text = "\n".join(human_rights.articles("en")[15:]).replace("‐", "-")
    for word in re.findall(r" ?[A-Za-z]+| ?[^\w\s]+|\s", text):
        rest = word.replace(" ", "Ġ").replace("\n", "Ċ")  # as the vocabulary writes them
        while rest:
            size = next(size for size in range(len(rest), 0, -1) if rest[:size] in ids)
            found.append(ids[rest[:size]])
            rest = rest[size:]
    return torch.tensor(found[:count])


def smollm2_layers(tokens: torch.Tensor) -> Iterator[tuple[torch.Tensor, GatedFeedForward]]:
    """Yield for every layer of SmolLM2 the input [N, C] of its feed-forward network and the network itself, given tokens [N]."""
    told = smollm2.metadata()
    heads, groups = told["llama.attention.head_count"], told["llama.attention.head_count_kv"]
    eps, width, length = told["llama.attention.layer_norm_rms_epsilon"], told["llama.feed_forward_length"], len(tokens)
    x = smollm2.tensor("token_embd.weight")[tokens]  # [N, C]
    pairs = x.shape[1] // heads // 2
    angle = torch.arange(length)[:, None] * told["llama.rope.freq_base"] ** (-torch.arange(pairs) / pairs)  # [N, D/2]
    turn = torch.polar(torch.ones_like(angle), angle)  # rotary positions: neighbours are one complex number
    for layer in range(told["llama.block_count"]):
        weight = {name: smollm2.tensor(f"blk.{layer}.{name}.weight") for name in LAYER}
        normal = F.rms_norm(x, x.shape[-1:], weight["attn_norm"], eps)
        query, key, value = ((normal @ weight[f"attn_{name}"].T).unflatten(1, (-1, 2 * pairs)).transpose(0, 1) for name in "qkv")
        query, key = (torch.view_as_real(torch.view_as_complex(part.unflatten(-1, (-1, 2))) * turn).flatten(-2) for part in (query, key))
        key, value = (part.repeat_interleave(heads // groups, 0) for part in (key, value))
        mixed = F.scaled_dot_product_attention(query[None], key[None], value[None], is_causal=True)[0]  # [H, N, D]
        x = x + mixed.transpose(0, 1).flatten(1) @ weight["attn_output"].T
        normal = F.rms_norm(x, x.shape[-1:], weight["ffn_norm"], eps)
        with torch.device("meta"):
            ffn = GatedFeedForward(x.shape[1], width)
        ffn.load_state_dict({f"{part}.weight": weight[f"ffn_{part}"] for part in ("gate", "up", "down")}, assign=True)
        yield normal, ffn.requires_grad_(False)
        x = x + ffn(normal)


LAYER = ("attn_norm", "attn_q", "attn_k", "attn_v", "attn_output", "ffn_norm", "ffn_gate", "ffn_up", "ffn_down")
MISTAKES: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "gate and up swapped": lambda gate, up: glu(up, gate),
    "F.glu of both": lambda gate, up: F.glu(torch.cat([gate, up], -1)),
    "sigmoid for SiLU": partial(glu, activation="sigmoid"),
    "ReLU for SiLU": partial(glu, activation="relu"),
    "GELU for SiLU": partial(glu, activation="gelu"),
}


@experiment
def real_gates(*, tokens: int) -> dict:
    """Return what the gates of SmolLM2 do on real text, layer by layer: how far shut, how much they carry, and what mistakes cost."""
    edges = torch.linspace(-0.3, 1.2, 76)
    found: dict = {"edges": edges, "shut": [], "carry": [], "largest": [], "lowest": [], "mistakes": {name: [] for name in MISTAKES}}
    for layer, (x, ffn) in enumerate(smollm2_layers(declaration_tokens(tokens))):
        gate, up = ffn.gate(x), ffn.up(x)  # [N, F]
        hidden = glu(gate, up)
        if layer == 0:
            opened = F.silu(gate).flatten()
            found["histogram"] = torch.histc(opened, 75, -0.3, 1.2) / opened.numel()
            found["above"] = (opened > 1.2).double().mean()
        energy = hidden.square().sort(descending=True).values.cumsum(-1)  # of a token's units, the strongest first
        found["shut"].append((gate < 0).double().mean())
        found["carry"].append((energy < 0.9 * energy[:, -1:]).double().mean())
        found["largest"].append(hidden.abs().max())
        found["lowest"].append(gate.min())
        right = ffn.down(hidden)
        for name, wrong in MISTAKES.items():
            found["mistakes"][name].append((ffn.down(wrong(gate, up)) - right).norm() / right.norm())
    return found


@experiment
def gelu_gap(*, tokens: int) -> dict:
    """Return how far apart the two GELUs are: at most, and as a share of a layer's output when layer 0's real weights gate with them."""
    grid = torch.linspace(-8, 8, 160_001, dtype=torch.float64)
    apart = (F.gelu(grid) - F.gelu(grid, approximate="tanh")).abs()
    x, ffn = next(smollm2_layers(declaration_tokens(tokens)))
    outputs = [ffn.down(glu(ffn.gate(x), ffn.up(x), name)) for name in ("gelu", "gelu_tanh")]
    return {"most": apart.max(), "at": grid[apart.argmax()].abs(), "share": (outputs[1] - outputs[0]).norm() / outputs[0].norm()}


@experiment
def half_precision(*, gates: tuple[float, ...]) -> dict:
    """Return, for float16 gates, the gradient of SiLU written out as g / (1 + exp(−g)) and as torch has it; NaN is left out as None."""
    found: dict = {"written out": [], "torch": []}
    for gate in gates:
        for name, way in (("written out", lambda g: g / (1 + torch.exp(-g))), ("torch", F.silu)):
            leaf = torch.tensor(gate, dtype=torch.float16, requires_grad=True)
            (gradient,) = torch.autograd.grad(way(leaf), leaf)
            found[name].append(None if gradient.isnan() else gradient.double())
    return found
