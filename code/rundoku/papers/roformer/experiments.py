"""The runs behind the note on rotary position embedding: SmolLM2's first layer, and a character model with two kinds of positions."""

import re
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rundoku.data import human_rights, smollm2
from rundoku.data.shakespeare import plays
from rundoku.papers.attention_is_all_you_need.positions import sinusoidal_positions
from rundoku.papers.roformer.rotary import frequencies, rotary_tables, rotate, to_half
from rundoku.show import experiment

HEADS, KEY_HEADS, WIDTH, BASE = 9, 3, 64, 100_000.0  # SmolLM2-135M; a test compares them with the file's own metadata


class Contents(NamedTuple):
    """What the first layer of SmolLM2 makes of a text before positions come in, in the half layout, and its weights' own order."""

    query: Tensor  # [H, N, D]
    key: Tensor  # [H, N, D]: each key head three times
    value: Tensor  # [H, N, D]
    raw_query: Tensor  # [H, N, D], elements in the file's (interleaved) order
    raw_key: Tensor  # [H, N, D]


# --8<-- [start:contents]
def contents(length: int) -> Contents:
    """Return queries, keys and values of SmolLM2's first layer for the Declaration of Human Rights."""
    vocabulary = smollm2.vocabulary()["vocabulary"]
    parts = re.findall(r"\w+|[^\w\s]", " ".join(human_rights.articles("en")))
    tokens = [part if not part[0].isalnum() else "Ġ" + part for part in parts]
    ids = [vocabulary[token] for token in tokens if token in vocabulary][:length]
    x = smollm2.tensor("token_embd.weight")[ids]  # [N, C]
    x = F.rms_norm(x, x.shape[-1:], smollm2.tensor("blk.0.attn_norm.weight"), 1e-5)
    query, key, value = (smollm2.tensor(f"blk.0.attn_{name}.weight") for name in "qkv")  # [H·D, C]

    def heads(weight: Tensor, n_heads: int) -> Tensor:  # [H, N, D]
        return (x @ weight.T).unflatten(-1, (n_heads, -1)).transpose(0, 1).repeat_interleave(HEADS // n_heads, 0)

    return Contents(
        heads(to_half(query, HEADS), HEADS), heads(to_half(key, KEY_HEADS), KEY_HEADS),
        heads(value, KEY_HEADS), heads(query, HEADS), heads(key, KEY_HEADS),
    )  # fmt: skip
    # --8<-- [end:contents]


# --8<-- [start:ways]
def _ours(positions: Tensor) -> tuple[Tensor, Tensor]:
    return rotary_tables(positions, WIDTH, BASE)


def _float32_angles(positions: Tensor) -> tuple[Tensor, Tensor]:
    angles = positions.float()[:, None] * frequencies(WIDTH, BASE).float()
    return angles.cos(), angles.sin()


def _rounded_tables(positions: Tensor) -> tuple[Tensor, Tensor]:
    cos, sin = _ours(positions)
    return cos.bfloat16().float(), sin.bfloat16().float()


def _bfloat16_angles(positions: Tensor) -> tuple[Tensor, Tensor]:
    angles = positions.bfloat16()[:, None] * frequencies(WIDTH, BASE).bfloat16()
    return angles.cos().float(), angles.sin().float()
    # --8<-- [end:ways]


WAYS: dict[str, Callable[[Tensor], tuple[Tensor, Tensor]]] = {
    "bfloat16 angles": _bfloat16_angles, "bfloat16 tables": _rounded_tables, "float32 angles": _float32_angles, "float64 angles": _ours,
}  # fmt: skip


@experiment
def shifted(*, shifts: tuple[int, ...], length: int = 256) -> dict:
    """Return how far real scores move when the text starts at position ``shift``, by the precision of angles and tables.

    ``error`` is the distance from the exact scores as a share of their size, by way; ``moved`` and ``norm`` are the largest change of a
    score by our float32 tables, as a share of |q|·|k|, and of a vector's length.
    """
    found = contents(length)
    exact = [rotate(x.double(), *(t.double() for t in _angles64(torch.arange(length)))) for x in (found.query, found.key)]
    scores = exact[0] @ exact[1].mT  # [H, N, N]
    sizes = found.query.double().norm(dim=-1)[..., None] * found.key.double().norm(dim=-1)[:, None]
    error: dict[str, list[Tensor]] = {name: [] for name in WAYS}
    moved, norm = [], []
    for shift in shifts:
        for name, way in WAYS.items():
            query, key = (rotate(x, *way(torch.arange(length) + shift)) for x in (found.query, found.key))
            off = (query @ key.mT).double() - scores
            error[name].append(off.norm() / scores.norm())
            if name == "float64 angles":
                moved.append((off / sizes).abs().max())
                norm.append((query.double().norm(dim=-1) / found.query.double().norm(dim=-1) - 1).abs().max())
    return {"error": {name: torch.stack(each) for name, each in error.items()}, "moved": torch.stack(moved), "norm": torch.stack(norm)}


def _angles64(positions: Tensor) -> tuple[Tensor, Tensor]:
    angles = positions.double()[:, None] * frequencies(WIDTH, BASE)
    return angles.cos(), angles.sin()


@experiment
def by_distance(*, distances: tuple[int, ...], length: int = 256) -> dict:
    """Return each head's mean score and mean absolute score by distance, over all pairs of a query's and a key's contents.

    In the first layer contents do not know where they stand, so that every pair can be put at every distance.
    """
    found, mean, size = contents(length), [], []
    for distance in distances:
        query = rotate(found.query, *_ours(torch.full((length,), distance)))  # the keys stay at position 0
        scores = query @ found.key.mT / WIDTH**0.5  # [H, N, N]
        mean.append(scores.mean((1, 2)))
        size.append(scores.abs().mean((1, 2)))
    return {"mean": torch.stack(mean, 1), "size": torch.stack(size, 1)}  # [H, distances]


def _attend(query: Tensor, key: Tensor, value: Tensor, allowed: Tensor) -> tuple[Tensor, Tensor]:
    scores = query @ key.mT / WIDTH**0.5
    weights = scores.masked_fill(~allowed, float("-inf")).softmax(-1)  # [H, N, M]
    return weights, weights @ value


# --8<-- [start:mistakes]
def mistaken(name: str, found: Contents, start: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return query, key and value as an implementation with one mistake makes them for a text that starts at ``start``."""
    positions = torch.arange(found.query.shape[1]) + start
    tables, raw = _ours(positions), "layout" in name
    query, key, value = found.raw_query if raw else found.query, found.raw_key if raw else found.key, found.value
    late = _ours(positions + 1)
    decoded = positions - start >= len(positions) // 2  # one by one, after a prompt that filled the cache
    restart = _ours(torch.where(decoded, 0, positions))
    return {
        "none": (rotate(query, *tables), rotate(key, *tables), value),
        "wrong layout": (rotate(query, *tables), rotate(key, *tables), value),
        "only the key rotated": (query, rotate(key, *tables), value),
        "value rotated too": (rotate(query, *tables), rotate(key, *tables), rotate(value, *tables)),
        "query one position late": (rotate(query, *late), rotate(key, *tables), value),
        "decoding restarts at 0": (rotate(query, *restart), rotate(key, *restart), value),
    }[name]
    # --8<-- [end:mistakes]


MISTAKES = ("none", "wrong layout", "only the key rotated", "query one position late", "decoding restarts at 0", "value rotated too")


@experiment
def mistakes(*, length: int = 256, shift: int = 100) -> dict:
    """Return what each mistake costs in SmolLM2's first layer.

    ``weights``: the share of attention that goes elsewhere (total variation, mean over heads and the later half of the text);
    ``output``: the error of the attention output as a share of its size; ``moves``: how far the output moves with the whole text.
    """
    found, allowed, later = contents(length), torch.ones(length, length).tril().bool(), slice(length // 2, None)
    right_weights, right = _attend(*mistaken("none", found, 0), allowed)
    right_weights, right = right_weights[:, later], right[:, later]
    costs = {}
    for name in MISTAKES:
        weights, output = (each[:, later] for each in _attend(*mistaken(name, found, 0), allowed))
        _, again = _attend(*mistaken(name, found, shift), allowed)
        costs[name] = {
            "weights": (weights - right_weights).abs().sum(-1).mean() / 2,
            "output": (output - right).norm() / right.norm(),
            "moves": (again[:, later] - output).norm() / output.norm(),
        }
    return costs


Positions = Literal["rotary", "sinusoidal"]


class CharacterModel(nn.Module):
    """A small causal Transformer over characters whose positions are rotary, or sinusoidal and added to the embedding."""

    def __init__(self, vocabulary: int, positions: Positions, d_model: int = 96, n_heads: int = 4, n_layers: int = 2) -> None:
        super().__init__()
        self.positions, self.n_heads = positions, n_heads
        self.embedding = nn.Embedding(vocabulary, d_model)
        self.blocks = nn.ModuleList(
            nn.ModuleList(
                [nn.LayerNorm(d_model), nn.Linear(d_model, 3 * d_model), nn.Linear(d_model, d_model), nn.LayerNorm(d_model),
                 nn.Sequential(nn.Linear(d_model, 4 * d_model), nn.GELU(), nn.Linear(4 * d_model, d_model))]
            )
            for _ in range(n_layers)
        )  # fmt: skip
        self.norm, self.output = nn.LayerNorm(d_model), nn.Linear(d_model, vocabulary)

    def forward(self, characters: Tensor, base: float = 10_000.0) -> Tensor:
        """Return the logits [B, N, V] for characters [B, N]."""
        x, length = self.embedding(characters), characters.shape[1]
        if self.positions == "sinusoidal":
            x = x + sinusoidal_positions(length, x.shape[-1])
        tables = rotary_tables(torch.arange(length), x.shape[-1] // self.n_heads, base)
        for norm, project, output, feed_norm, feed_forward in self.blocks:
            query, key, value = project(norm(x)).unflatten(-1, (3, self.n_heads, -1)).permute(2, 0, 3, 1, 4)  # [B, H, N, D] each
            if self.positions == "rotary":
                query, key = rotate(query, *tables), rotate(key, *tables)
            x = x + output(F.scaled_dot_product_attention(query, key, value, is_causal=True).transpose(1, 2).flatten(2))
            x = x + feed_forward(feed_norm(x))
        return self.output(self.norm(x))


@experiment
def character_model(
    *, positions: Positions, bases: tuple[float, ...] = (10_000.0,), length: int = 64, batch_size: int = 16, steps: int = 250, seed: int
) -> dict:
    """Train on windows of ``length`` characters of Shakespeare's plays and return the validation loss in nats a character by step.

    ``by_place``: the final loss by place in windows four times as long, by the base that the trained model is then read with.
    The last tenth of the text is held out.
    """
    text = plays().lower()[:1_000_000]
    letters = sorted(set(text))
    train, held_out = torch.tensor([letters.index(letter) for letter in text]).split([900_000, 100_000])
    long = held_out[(torch.arange(80) * 1200)[:, None] + torch.arange(4 * length + 1)]  # [80, 4N + 1]
    torch.manual_seed(seed)
    model = CharacterModel(len(letters), positions)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    draw = torch.Generator().manual_seed(seed)  # the same batches for every kind of positions
    losses = []
    for step in range(1, steps + 1):
        batch = train[torch.randint(len(train) - length, (batch_size,), generator=draw)[:, None] + torch.arange(length + 1)]
        loss = F.cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 25 == 0:
            with torch.no_grad():
                losses.append(F.cross_entropy(model(long[:, :length]).flatten(0, 1), long[:, 1 : length + 1].flatten()))
    by_place = {}
    for base in bases:
        with torch.no_grad():
            loss = F.cross_entropy(model(long[:, :-1], base).transpose(1, 2), long[:, 1:], reduction="none").mean(0)  # [4N]
        by_place[f"{base:.0f}"] = loss.unflatten(0, (-1, 16)).mean(1)  # of sixteen characters each
    return {"steps": range(25, steps + 1, 25), "loss": torch.stack(losses), "places": range(16, 4 * length + 1, 16), "by_place": by_place}
