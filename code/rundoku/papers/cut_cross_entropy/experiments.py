"""The runs behind the note on cut cross-entropy, most of them on hidden states of SmolLM2 reading real text."""

import re
from collections import Counter
from weakref import finalize

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from rundoku.data.shakespeare import plays
from rundoku.papers.cut_cross_entropy.loss import linear_cross_entropy, vocabulary_order
from rundoku.papers.llama.experiments import passage, smol, tokens
from rundoku.show import experiment

EPS = 2**-12  # the paper's threshold (§4.3)
BLOCK = 128  # tokens and words of a block
MIB = 2**20


# --8<-- [start:states]
@torch.no_grad()
def states(name: str, length: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return SmolLM2's last hidden states [N, C] on a real text, the tokens that follow [N], and the output matrix [V, C]."""
    model, _ = smol()
    ids = tokens(passage(name))[:, : length + 1]
    return model.hidden(ids[:, :-1])[0], ids[0, 1:], model.head.weight
    # --8<-- [end:states]


# --8<-- [start:kept]
def kept(difference: Tensor, order: Tensor, tile: int = BLOCK) -> float:
    """Return the share of blocks that the filter computes, for |softmax − 1 at the target| [N, V] and an order of the vocabulary."""
    largest = F.max_pool2d(difference[None, :, order], tile, ceil_mode=True)
    return (largest >= EPS).double().mean().item()
    # --8<-- [end:kept]


@experiment
def real_text(*, name: str, length: int) -> dict:
    """Return what SmolLM2's softmax is like on a real text, what the filter leaves out of it, and what that does to the gradients."""
    hidden, targets, weight = states(name, length)
    n, v = len(hidden), len(weight)
    logits = hidden @ weight.T
    p = logits.softmax(-1)
    ranked = p.sort(-1, descending=True).values.mean(0)  # [V]: by rank, averaged over tokens
    above = (p >= EPS).double()
    difference = p.clone()
    difference[torch.arange(n), targets] -= 1
    difference.abs_()
    torch.manual_seed(0)
    orders = {
        "natural": torch.arange(v),
        "sorted": vocabulary_order(hidden, weight),
        "shuffled": torch.randperm(v),
        "by rank": p.mean(0).argsort(descending=True),  # what sorting would know if it had the probabilities
    }
    ranks = torch.unique(torch.logspace(0, torch.log10(torch.tensor(float(v))), 120).long().clamp(1, v))
    return {
        "tokens": n,
        "loss": F.cross_entropy(logits, targets),
        "share": above.mean(),
        "each": above.sum(1).mean(),
        "mass": (p * above).sum(1).mean(),
        "rank": (ranked >= EPS).sum(),
        "ranks": ranks,
        "ranked": ranked[ranks - 1],
        "blocks": {way: kept(difference, order) for way, order in orders.items()},
        "elements": {str(tile): kept(difference, orders["sorted"], tile) for tile in (16, 32, 64, 128)},
        "overflow": logits.half().exp().sum(-1).isinf().double().mean(),
        "largest": logits.max(),
    }


@experiment
def gradients(*, name: str, length: int) -> dict:
    """Return how far filtered gradients are from exact ones on a real text, relative to their norm, beside what bfloat16 does to them."""
    hidden, targets, weight = states(name, length)

    def both(**filtering) -> tuple[Tensor, list[Tensor]]:
        own = [one.detach().requires_grad_() for one in (hidden, weight)]
        loss = linear_cross_entropy(*own, targets, block_tokens=BLOCK, block_vocab=BLOCK, **filtering)
        return loss.detach(), list(torch.autograd.grad(loss, own))

    (loss, exact), (_, filtered) = both(), both(filter_eps=EPS)
    logits = hidden @ weight.T
    g = (logits.softmax(-1) - F.one_hot(targets, len(weight))) / len(hidden)
    rounded = g.bfloat16().float()  # what reaches the tensor cores in any implementation in bfloat16
    plain = [rounded @ weight, rounded.T @ hidden]

    def off(found: list[Tensor]) -> list[Tensor]:
        return [(one - truth).norm() / truth.norm() for one, truth in zip(found, exact, strict=True)]

    lost = (filtered[1] == 0).all(-1) & (exact[1] != 0).any(-1)
    return {
        "apart": (loss - F.cross_entropy(logits, targets)).abs(),
        "filtered": off(filtered),
        "rounded": off(plain),
        "rows": lost.double().mean(),
        "lost": exact[1][lost].norm() / exact[1].norm(),
    }


# --8<-- [start:peak]
class Peak(TorchDispatchMode):
    """Counts the bytes of the tensors that torch makes while they live, and the most that live at once."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        given = {one.untyped_storage()._cdata for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor)}
        for one in tree_leaves(result):
            if isinstance(one, Tensor) and (key := one.untyped_storage()._cdata) not in self.known | given:
                self.known.add(key)
                self.now += one.untyped_storage().nbytes()
                finalize(one.untyped_storage(), self._free, key, one.untyped_storage().nbytes())
        self.most = max(self.most, self.now)
        return result

    def _free(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.now -= size
        # --8<-- [end:peak]


@experiment
def memory(*, tokens: int, width: int, vocabularies: tuple[int, ...]) -> dict:
    """Return the most bytes that live at once, for the loss alone and with its gradients: all logits at once, and in blocks of 128."""
    found: dict[str, list[int]] = {"all, loss": [], "all": [], "blocks, loss": [], "blocks": [], "gradients": []}
    ways = {
        "all": lambda hidden, weight, targets: F.cross_entropy(F.linear(hidden, weight), targets),
        "blocks": lambda *made: linear_cross_entropy(*made, block_tokens=BLOCK, block_vocab=BLOCK),
    }
    for v in vocabularies:
        torch.manual_seed(0)
        hidden, weight = torch.randn(tokens, width, requires_grad=True), torch.randn(v, width, requires_grad=True)
        targets = torch.randint(v, (tokens,))
        for name, way in ways.items():
            with Peak() as peak:
                loss = way(hidden, weight, targets)
                found[f"{name}, loss"].append(peak.most)
                grads = torch.autograd.grad(loss, (hidden, weight))
            found[name].append(peak.most)
            del loss, grads
        found["gradients"].append(hidden.nbytes + weight.nbytes)
    return found


def held(*, tokens: int, vocabulary: int, width: int, target: str) -> dict[str, float]:
    """Return what the kernel holds in bfloat16 by its tables, in MiB: for the loss, and for the gradients with these themselves."""
    from rundoku.papers.cut_cross_entropy import kernel  # needs triton

    tiles = {use: kernel.CONFIGS[target][use, 2].tiles for use in ("logsumexp", "hidden", "weight")}
    rows = {use: -(-tokens // tile["BLOCK_N"]) for use, tile in tiles.items()}
    splits = {use: kernel._splits(rows[use], -(-vocabulary // tiles[use]["BLOCK_V"])) for use in rows}
    loss = tokens * (4 * splits["logsumexp"] + 2 * 4 + 2 * 8)  # partial and whole sums, losses, tokens, targets
    grads = 2 * width * (tokens + vocabulary)
    by_hidden = 4 * tokens * width * (splits["hidden"] + (splits["hidden"] > 1))  # and their sum
    by_weight = 4 * width * tiles["weight"]["BLOCK_V"] * kernel.PROGRAMS
    return {"loss": loss / MIB, "gradients": grads / MIB, "both": (loss + grads + max(by_hidden, by_weight)) / MIB}


# --8<-- [start:rare]
def words(count: int) -> tuple[Tensor, Tensor]:
    """Return Shakespeare's plays as numbers of words, rarest last: the first words to train on, and the last to test on."""
    text = re.findall(r"[a-z']+", plays().lower())
    known = {word: i for i, (word, _) in enumerate(Counter(text).most_common(count))}
    ids = torch.tensor([known[word] for word in text if word in known])
    return ids[:-20_000], ids[-20_000:]


@experiment
def from_scratch(*, filtering: str, steps: int, seed: int) -> dict:
    """Return the loss on held-out words of a model that predicts a word from the one before, trained from small random weights.

    ``filtering``: "none", "both" gradients, or "hidden" (the classifier's gradient whole, as CCE-Kahan-FullC has it, §5.3).
    """
    train, held_out = words(8192)
    torch.manual_seed(seed)
    embedding, weight = (torch.randn(8192, 32).mul(0.1).requires_grad_() for _ in range(2))
    optimizer = torch.optim.Adam([embedding, weight], lr=0.01)
    settings = {"filter_eps": None if filtering == "none" else EPS, "filter_weight": filtering == "both"}
    losses = []
    for step in range(steps + 1):
        if step % 30 == 0:
            with torch.no_grad():
                losses.append(F.cross_entropy(embedding[held_out[:2048]] @ weight.T, held_out[1:2049]))
        at = torch.randint(len(train) - 1, (128,))
        optimizer.zero_grad()
        linear_cross_entropy(embedding[train[at]], weight, train[at + 1], block_tokens=BLOCK, block_vocab=BLOCK, **settings).backward()
        optimizer.step()
    return {"steps": range(0, steps + 1, 30), "loss": torch.stack(losses)}
    # --8<-- [end:rare]
