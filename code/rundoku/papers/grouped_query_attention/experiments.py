"""The runs behind the note: what decoding reads, counted; a small model converted and up-trained; SmolLM2's real heads."""

import copy
import math
from collections.abc import Callable, Sequence
from itertools import combinations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from rundoku.data import human_rights, shakespeare, smollm2
from rundoku.papers.attention_is_all_you_need import (
    Encoder,
    FeedForward,
    MultiHeadAttention,
    TransformerConfig,
    causal_mask,
    learning_rate,
    sinusoidal_positions,
)
from rundoku.papers.grouped_query_attention import GroupedQueryAttention, convert, convert_all, grouped_attention, mean_pool_heads
from rundoku.papers.roformer import rotary_tables, rotate
from rundoku.show import Result, experiment

# Layers with a cache, query heads, key-value heads, head width: T5.1.1-XXL (its decoder) and LLaMA-2 from the configurations published
# with their weights, PaLM (2204.02311, Table 1 and §2) and Mistral (2310.06825, Table 1) from the papers.
MODELS = {
    "LLaMA-2-7B": (32, 32, 32, 128),
    "Mistral-7B": (32, 32, 8, 128),
    "LLaMA-2-70B": (80, 64, 8, 128),
    "PaLM-540B": (118, 48, 1, 256),
    "T5-XXL, GQA-8": (24, 64, 8, 64),
}


def smollm2_sizes() -> tuple[int, int, int, int]:
    """Return the same four sizes of SmolLM2-135M, from the metadata inside its file."""
    found = smollm2.metadata()
    heads = found["llama.attention.head_count"]
    width = found["llama.embedding_length"] // heads
    return found["llama.block_count"], heads, found["llama.attention.head_count_kv"], width


# --- what one decoding step reads and computes, counted -------------------------------------------------------------------------------


class Traffic(TorchDispatchMode):
    """Counts multiply-adds and the elements that matrix products and copies read and write, by the tensor's name."""

    def __init__(self, **named: list[Tensor]) -> None:
        super().__init__()
        self.names = {tensor.untyped_storage()._cdata: name for name, tensors in named.items() for tensor in tensors}
        self.moved = dict.fromkeys([*named, "rest", "copied"], 0)
        self.operations = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        """Run an operation and count it."""
        out = func(*args, **(kwargs or {}))
        product = func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.bmm)
        if product:
            self.operations += out.numel() * args[0].shape[-1]
        if product or func.overloadpacket is torch.ops.aten.clone:
            inputs = [argument for argument in args if isinstance(argument, Tensor)]
            for tensor in (*inputs, out):
                # an axis of stride 0 repeats what is read already
                size = math.prod(length for length, stride in zip(tensor.shape, tensor.stride()) if stride)
                self.moved[self.names.get(tensor.untyped_storage()._cdata, "rest")] += size
            self.moved["copied"] += 0 if product else out.numel()
        return out


def repeated(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Return grouped attention the common way: every key-value head is copied for each query head of its group."""
    repeats = query.shape[-3] // key.shape[-3]
    return grouped_attention(query, key.repeat_interleave(repeats, dim=-3), value.repeat_interleave(repeats, dim=-3))


def broadcast(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Return it with a broadcast axis for the group, which looks free of copies."""
    rows = query.unflatten(-3, (key.shape[-3], -1))  # [B, G, R, N, D]
    scores = rows @ key.unsqueeze(-3).mT / math.sqrt(query.shape[-1])
    return (scores.softmax(-1) @ value.unsqueeze(-3)).flatten(-4, -3)


WAYS: dict[str, Callable[..., Tensor]] = {"folded": grouped_attention, "repeat_interleave": repeated, "broadcast": broadcast}


def decode(d_model: int, n_heads: int, n_kv_heads: int, length: int, batch: int, way: str = "folded") -> Traffic:
    """Count the attention of one decoded token a sequence, on shapes without storage (§2.4 and §3 of Shazeer)."""
    with torch.device("meta"):
        layer = GroupedQueryAttention(d_model, n_heads, n_kv_heads)
        x = torch.empty(batch, 1, d_model)
        key, value = (torch.empty(batch, n_kv_heads, length, layer.d_head) for _ in range(2))
        with torch.no_grad(), Traffic(weights=list(layer.parameters()), cache=[key, value]) as traffic:
            query = layer.split(layer.query(x))
            layer.key(x), layer.value(x)  # what the step adds to the cache
            layer.output(WAYS[way](query, key, value).transpose(-3, -2).flatten(-2))
    return traffic


def per_operation(traffic: Traffic) -> float:
    """Return the elements moved for each multiply-add."""
    return sum(traffic.moved[name] for name in ("weights", "cache", "rest")) / traffic.operations


@experiment
def decoding_traffic(
    *, d_model: int, n_heads: int, n_kv_heads: tuple[int, ...], lengths: tuple[int, ...], batches: tuple[int, ...]
) -> dict:
    """Return the elements moved for each multiply-add, by context length (at the last batch size) and by batch size (at the first)."""
    found = {}
    for heads in n_kv_heads:
        by_length = [per_operation(decode(d_model, n_heads, heads, length, batches[-1])) for length in lengths]
        by_batch = [per_operation(decode(d_model, n_heads, heads, lengths[0], batch)) for batch in batches]
        found[str(heads)] = {"by_length": by_length, "by_batch": by_batch}
    return found


@experiment
def cache_reads(*, d_model: int, n_heads: int, n_kv_heads: tuple[int, ...], length: int, batch: int) -> dict:
    """Return the elements of keys and values that a decoding step reads, by the number of key-value heads."""
    return {"read": [decode(d_model, n_heads, heads, length, batch).moved["cache"] for heads in n_kv_heads]}


@experiment
def ways_to_share(*, d_model: int, n_heads: int, n_kv_heads: int, length: int, batch: int) -> dict:
    """Return what each way to let heads share moves and copies in a decoding step, and how far its result lies from ours."""
    torch.manual_seed(0)
    query, key, value = torch.randn(2, 6, 1, 8), torch.randn(2, 2, 5, 8), torch.randn(2, 2, 5, 8)
    found = {}
    for name, way in WAYS.items():
        traffic = decode(d_model, n_heads, n_kv_heads, length, batch, name)
        apart = (way(query, key, value) - grouped_attention(query, key, value)).abs().max()
        moved = sum(traffic.moved[part] for part in ("weights", "cache", "rest"))
        found[name] = {"moved": moved, "copied": traffic.moved["copied"], "apart": apart}
    return found


@experiment
def feed_forward_widening(*, d_model: int, n_heads: int, d_ff: tuple[int, int], attentions: int, feed_forwards: int) -> dict:
    """Return how many weights multi-query attention saves in a whole model, and how many a wider feed-forward network adds."""
    with torch.device("meta"):
        layers = MultiHeadAttention(d_model, n_heads), GroupedQueryAttention(d_model, n_heads, 1)
        networks = [FeedForward(d_model, width) for width in d_ff]
    multi_head, multi_query = (sum(parameter.numel() for parameter in layer.parameters()) for layer in layers)
    narrow, wide = (sum(parameter.numel() for parameter in network.parameters() if parameter.dim() == 2) for network in networks)
    return {"saved": attentions * (multi_head - multi_query), "added": feed_forwards * (wide - narrow)}


# --- a small character model: trained with four heads, converted, trained on -----------------------------------------------------------

LENGTH, SIZE, WIDTH, HEADS, WARMUP = 64, 8, 64, 4, 200  # characters seen, stretches in a batch, C, H, steps of warm-up


class CharacterModel(nn.Module):
    """Predicts the next of 128 ASCII characters: embedding and positions, two layers that see only the past, a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(128, WIDTH)
        self.layers = Encoder(TransformerConfig(128, n_layers=2, d_model=WIDTH, d_ff=4 * WIDTH, n_heads=HEADS, dropout=0.0))
        self.head = nn.Linear(WIDTH, 128)
        nn.init.normal_(self.tokens.weight, std=WIDTH**-0.5)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return logits [B, N, V] for tokens [B, N]."""
        length = tokens.shape[-1]
        x = self.tokens(tokens) * math.sqrt(WIDTH) + sinusoidal_positions(length, WIDTH)  # [B, N, C]
        return self.head(self.layers(x, causal_mask(length)))


def loss(model: nn.Module, text: Tensor, starts: Tensor) -> Tensor:
    """Return the mean cross-entropy of the next character in nats, over the stretches of ``text`` at ``starts`` [B, 1]."""
    tokens = text[starts + torch.arange(LENGTH + 1)].long()
    return F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())


@torch.no_grad()
def evaluate(model: nn.Module, text: Tensor) -> float:
    """Return the loss over 128 evenly spaced stretches: the same ones for every model."""
    starts = torch.linspace(0, len(text) - LENGTH - 1, 128).long()[:, None]
    return sum(loss(model, text, part).item() for part in starts.split(32)) / 4


def train(model: nn.Module, text: Tensor, test: Tensor, first: int, measure: tuple[int, ...], seed: int) -> list[float]:
    """Train from step ``first`` of the schedule (Eq. 3 of Vaswani et al.) to the last of ``measure``; return the test loss at those.

    A run that resumes starts with empty moments, so its first ten steps are shortened.
    """
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(model.parameters(), betas=(0.9, 0.98), eps=1e-9)
    losses = [evaluate(model, test)] if first in measure else []
    for step in range(first + 1, measure[-1] + 1):
        rate = learning_rate(step, WIDTH, WARMUP) * min(1.0, (step - first) / 10)
        for group in optimizer.param_groups:
            group["lr"] = rate
        found = loss(model, text, torch.randint(len(text) - LENGTH, (SIZE, 1), generator=generator))
        optimizer.zero_grad()
        found.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step in measure:
            losses.append(evaluate(model, test))
    return losses


def attentions(model: CharacterModel) -> list[MultiHeadAttention]:
    """Return the attention of every layer."""
    return [layer.self_attention for layer in model.layers.layers]


def every_other(attention: MultiHeadAttention, n_kv_heads: int) -> GroupedQueryAttention:
    """Convert wrongly: pool heads 0, G, 2G, …, while the attention lets neighbours share."""
    wrong = convert(attention, n_kv_heads)
    for name in ("key", "value"):
        heads = getattr(attention, name).weight.unflatten(0, (attention.n_heads // n_kv_heads, n_kv_heads, -1))  # [R, G, D, C]
        getattr(wrong, name).weight.data = heads.mean(0).flatten(0, 1).detach()
    return wrong


def queries_too(attention: MultiHeadAttention, n_kv_heads: int) -> GroupedQueryAttention:
    """Convert wrongly: pool the queries of a group as well, which makes its heads all the same."""
    wrong = convert(attention, n_kv_heads)
    pooled = mean_pool_heads(attention.query.weight, attention.n_heads, n_kv_heads).unflatten(0, (n_kv_heads, -1))
    wrong.query.weight.data = pooled.repeat_interleave(attention.n_heads // n_kv_heads, dim=0).flatten(0, 1).detach()
    return wrong


FAULTS = {"mean of neighbours": convert, "mean of every other head": every_other, "queries pooled too": queries_too}
RUNS = {"MHA": (HEADS, "mean"), "GQA-2": (2, "mean"), "MQA": (1, "mean"), "first": (1, "first"), "random": (1, "random")}


@experiment
def uptraining(*, steps: int, shares: tuple[float, ...], seed: int) -> dict:
    """Train with multi-head attention, convert, train on for each share of the steps; return test losses in nats a character.

    "MHA" is trained on without being converted, "first" and "random" are conversions to multi-query attention (Fig. 4 and 5).
    """
    text = torch.frombuffer(bytearray(shakespeare.plays().encode("ascii", "replace")), dtype=torch.uint8)
    text, test = text.split([len(text) * 9 // 10, len(text) - len(text) * 9 // 10])
    torch.manual_seed(seed)
    base = CharacterModel()
    before = train(base, text, test, 0, (steps,), seed)[0]
    measure = tuple(steps + round(share * steps) for share in shares)
    curves = {}
    for name, (heads, method) in RUNS.items():
        model = copy.deepcopy(base)
        if name != "MHA":
            convert_all(model, heads, method)
        curves[name] = train(model, text, test, steps, measure, seed + 1000)
    faults = {}
    for name, way in FAULTS.items():
        model = copy.deepcopy(base)
        for layer, attention in zip(model.layers.layers, attentions(base)):
            layer.self_attention = way(attention, 2)
        faults[name] = evaluate(model, test)
    return {"base": before, "curves": curves, "faults": faults}


def by_run(runs: Sequence[Result]) -> dict[str, Tensor]:
    """Return the test losses [seeds, shares] of every model; "mean" is another name of "MQA"."""
    curves = {name: torch.tensor([run.curves[name] for run in runs]) for name in RUNS}
    return curves | {"mean": curves["MQA"]}


def lost(curves: dict[str, Tensor], share: int) -> dict[str, float]:
    """Return how many nats every conversion lies behind the model trained on without one, right away and after a share of the steps."""
    names = {"gqa": "GQA-2", "mean": "MQA", "first": "first", "random": "random"}
    behind = {name: (curves[run] - curves["MHA"]).mean(0) for name, run in names.items()}
    return {f"{name}_{when}": gap[at].item() for name, gap in behind.items() for when, at in (("once", 0), ("left", share))}


# --- SmolLM2's real heads ---------------------------------------------------------------------------------------------------------------


def first_layer() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return query [1, 9, N, 64], key and value [1, 3, N, 64] of SmolLM2's first layer on real words, unrotated, and its output weight."""
    _, heads, kv_heads, width = smollm2_sizes()
    known = smollm2.vocabulary()["vocabulary"]
    words = ["Ġ" + word.strip(".,;") for word in " ".join(human_rights.articles("en")[1:4]).split()]
    ids = torch.tensor([known[word] for word in words if word in known])  # the words that are one token
    x = smollm2.tensor("token_embd.weight")[ids]  # [N, C]
    eps = smollm2.metadata()["llama.attention.layer_norm_rms_epsilon"]
    x = F.rms_norm(x, x.shape[-1:], smollm2.tensor("blk.0.attn_norm.weight"), eps)
    query, key, value = (
        (x @ smollm2.tensor(f"blk.0.attn_{part}.weight").T).unflatten(-1, (count, width)).transpose(0, 1)[None]
        for part, count in (("q", heads), ("k", kv_heads), ("v", kv_heads))
    )
    return query, key, value, smollm2.tensor("blk.0.attn_output.weight")


def rotated(x: Tensor) -> Tensor:
    """Return heads x [..., N, D] turned by SmolLM2's rotary positions, with the pairs as in its file."""
    length, width = x.shape[-2:]
    tables = rotary_tables(torch.arange(length), width, smollm2.metadata()["llama.rope.freq_base"])
    return rotate(x, *tables, layout="interleaved")


@experiment
def real_heads() -> dict:
    """Return what three mistakes do to the attention of SmolLM2's first layer, as relative errors and as heads that go wrong."""
    query, key, value, weight = first_layer()
    query, key = rotated(query), rotated(key)
    heads, length, repeats = query.shape[1], query.shape[2], query.shape[1] // key.shape[1]
    mask = causal_mask(length)

    def project(out: Tensor) -> Tensor:
        return out.transpose(1, 2).flatten(-2) @ weight.T

    def error(wrong: Tensor, right: Tensor) -> Tensor:
        return (wrong - right).norm() / right.norm()

    right = grouped_attention(query, key, value, mask)
    copies = F.scaled_dot_product_attention(
        query, key.repeat_interleave(repeats, dim=1), value.repeat_interleave(repeats, dim=1), attn_mask=mask
    )
    tiled = F.scaled_dot_product_attention(query, key.repeat(1, repeats, 1, 1), value.repeat(1, repeats, 1, 1), attn_mask=mask)
    same = [bool(torch.allclose(tiled[:, head], right[:, head], atol=1e-5)) for head in range(heads)]

    # A group's queries folded into rows, and the flag instead of the mask: it numbers the rows of all heads through.
    rows = query.unflatten(1, (-1, repeats)).flatten(2, 3)  # [1, G, R·N, D]
    changed = value.clone()
    changed[:, :, -1] += 1.0  # only the last token's value
    flagged, seen = (
        F.scaled_dot_product_attention(rows, key, each, is_causal=True).unflatten(2, (repeats, -1)).flatten(1, 2)
        for each in (value, changed)
    )
    leaking = ((seen - flagged)[0, :, 0].abs().amax(-1) > 0).sum()  # heads whose first position sees the last token
    masked = (grouped_attention(query, key, changed, mask) - right)[0, :, 0].abs().max()
    last = query[:, :, -1:]
    alone = F.scaled_dot_product_attention(last, key, value, is_causal=True, enable_gqa=True)
    return {
        "tokens": length,
        "repeat": error(project(tiled), project(right)), "interleave": error(project(copies), project(right)), "same": sum(same),
        "flag": error(project(flagged), project(right)), "leaking": leaking, "masked": masked,
        "decode_flag": error(project(alone), project(right[:, :, -1:])),
        "decode_first_only": (alone - value[:, :, :1].repeat_interleave(repeats, dim=1)).abs().max(),
        "heads": heads,
    }  # fmt: skip


@experiment
def pooling_order() -> dict:
    """Return how far pooling SmolLM2's rotated keys into one head lies from rotating pooled ones, without and with a norm of each head."""
    key = first_layer()[1]  # [1, G, N, D]
    pooled = key.mean(1, keepdim=True)
    ways: dict[str, Callable[[Tensor], Tensor]] = {"plain": rotated, "normalised": lambda x: rotated(F.rms_norm(x, x.shape[-1:]))}
    return {name: (way(key).mean(1, keepdim=True) - way(pooled)).norm() / way(pooled).norm() for name, way in ways.items()}


@experiment
def alike() -> dict:
    """Return how alike SmolLM2's key and value heads are: mean cosine of their weights, and the norm that their mean keeps (30 layers)."""
    layers, _, heads, _ = smollm2_sizes()
    found = {}
    for part in ("k", "v"):
        cosines, kept = [], []
        for layer in range(layers):
            weight = smollm2.tensor(f"blk.{layer}.attn_{part}.weight").unflatten(0, (heads, -1)).flatten(1)  # [G, D·C]
            cosines += [F.cosine_similarity(weight[i], weight[j], dim=0) for i, j in combinations(range(heads), 2)]
            kept.append(weight.mean(0).norm() / weight.norm(dim=1).mean())
        found[part] = {"cosine": torch.stack(cosines).mean(), "kept": torch.stack(kept).mean()}
    return found
