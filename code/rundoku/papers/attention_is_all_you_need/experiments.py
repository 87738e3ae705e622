"""The runs behind the note: the counts of the paper's tables, small measurements, and a translation from number words to numerals."""

import math
import random
from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from rundoku.data import number_words
from rundoku.papers.attention_is_all_you_need import (
    BASE,
    BIG,
    MultiHeadAttention,
    Transformer,
    TransformerConfig,
    attention_weights,
    average_checkpoints,
    counts,
    cross_attention_maps,
    label_smoothed_cross_entropy,
    learning_rate,
    paper_optimizer,
    sinusoidal_positions,
    translate,
    translate_greedily,
)
from rundoku.show import experiment

TOKENS = ("<pad>", "<bos>", "<eos>", "<ja>", "<zh>", *number_words.WORDS, *number_words.CHARACTERS)
IDS = {token: i for i, token in enumerate(TOKENS)}
SPELL = {"<ja>": number_words.japanese, "<zh>": number_words.chinese}


# ---- Counted without training ----


@experiment
def table_3() -> dict:
    """Count every model of Table 3 that states a size, and the vocabulary sizes at which it would round to what the paper states."""
    rows = {}
    for name, (config, millions) in counts.TABLE_3.items():
        fits = [counts.vocabulary_for(config, (millions + half) * 1e6) for half in (-0.5, 0.5)]
        rows[name] = {"counted": counts.parameters(config), "paper": millions, "fits": fits}
    return rows


@experiment
def table_1(*, size: int, lengths: tuple[int, ...], kernel: int, window: int) -> dict:
    """Measure every kind of layer: the powers of n, d, k and r in its operations, by doubling, and chains and paths at some lengths."""
    found: dict[str, dict] = {}
    start = {"n": size, "d": size, "k": kernel, "r": window}
    for kind in counts.layers(size):
        here = counts.layer_flops(kind, *start.values())
        doubled = {name: counts.layer_flops(kind, *(start | {name: 2 * value}).values()) for name, value in start.items()}
        chains = []
        for length in lengths:
            x = torch.randn(length, 8, dtype=torch.float64, requires_grad=True)
            chains.append(counts.longest_chain(counts.layers(8, kernel, window, heads=2, device="cpu")[kind](x)))
        found[kind] = {"powers": {name: math.log2(there / here) for name, there in doubled.items()}, "chains": chains}
    paths = [counts.path_lengths(length, 4, kernel, window) for length in lengths]
    return {"layers": found, "paths": {kind: [path[kind] for path in paths] for kind in paths[0]}}


@experiment
def cost_by_length(*, width: int, lengths: tuple[int, ...], kinds: tuple[str, ...]) -> dict:
    """Count the operations of one layer, by kind, for sequences of several lengths."""
    return {kind: [counts.layer_flops(kind, length, width) for length in lengths] for kind in kinds}


@experiment
def cost_by_heads(*, width: int, length: int, heads: tuple[int, ...]) -> dict:
    """Count the operations of multi-head attention for several numbers of heads that share one width."""
    x = torch.empty(length, width, dtype=torch.float64, device="meta")
    layers = [counts.layers(width, heads=h)["multi-head attention, whole"] for h in heads]
    return {"flops": [counts.flops(partial(layer, x)) for layer in layers]}


@experiment
def training_cost(*, tokens: int, length: int) -> dict:
    """Count what the two trainings of the paper cost: 100,000 steps of the base model, 300,000 of the big one (§5.2)."""
    steps = {"base": (BASE, 100_000), "big": (BIG, 300_000)}
    return {name: counts.training_flops(config, number, tokens, length) for name, (config, number) in steps.items()}


# ---- Measured without training ----


@experiment
def saturation(*, widths: tuple[int, ...], keys: int, queries: int, seed: int) -> dict:
    """Attend from unit-variance queries to unit-variance keys, with and without 1/√d_k: what softmax gives and lets through.

    Returned are the variance of the scores and, for the median query, the largest weight and the Frobenius norm of the Jacobian.
    """
    generator = torch.Generator().manual_seed(seed)
    found: dict[str, list[float]] = {name: [] for name in ("variance", "largest_scaled", "largest_raw", "gradient_scaled", "gradient_raw")}
    for width in widths:
        query, key = (torch.randn(n, width, generator=generator, dtype=torch.float64) for n in (queries, keys))
        found["variance"].append((query @ key.T).var().item())
        for how, scale in (("scaled", None), ("raw", 1.0)):
            weights = attention_weights(query, key, scale=scale)  # [queries, keys]
            found[f"largest_{how}"].append(weights.max(dim=-1).values.median().item())
            # The Jacobian of a softmax, diag(p) - ppᵀ, has this squared norm.
            squares = weights.square().sum(-1)
            jacobian = squares - 2 * weights.pow(3).sum(-1) + squares.square()
            found[f"gradient_{how}"].append(jacobian.clamp(min=0).sqrt().median().item())
    return found


@experiment
def position_properties(*, length: int, d_model: int, offsets: tuple[int, ...]) -> dict:
    """Return the encodings, how alike two of them are by distance, and how exactly a rotation maps PE(pos) to PE(pos + k)."""
    positions = sinusoidal_positions(length, d_model)
    pairs = positions.double().unflatten(-1, (-1, 2))  # [N, C/2, 2]: the sine and cosine of each frequency
    frequency = 10_000 ** -(torch.arange(0, d_model, 2, dtype=torch.float64) / d_model)
    worst = 0.0
    for k in offsets:
        sine, cosine = (k * frequency).sin(), (k * frequency).cos()
        # One 2×2 rotation a frequency, [C/2, 2, 2], the same for every pos.
        rotation = torch.stack((torch.stack((cosine, sine), -1), torch.stack((-sine, cosine), -1)), -2)
        moved = torch.einsum("cij,ncj->nci", rotation, pairs[:-k])
        worst = max(worst, (moved - pairs[k:]).abs().max().item())
    return {"encodings": positions, "products": positions @ positions[length // 2], "worst": worst}


# ---- The translation run ----


def numerals(rng: random.Random, size: int, *, digits: int, words: tuple[int, int], held_out: bool) -> tuple[Tensor, Tensor]:
    """Return sources [B, M], a language tag and so many English words, and targets [B, N], bos, the numeral and eos."""
    sources: list[list[str]] = []
    targets: list[list[str]] = []
    while len(sources) < size:
        number, tag = number_words.draw(rng, digits), rng.choice(tuple(SPELL))
        if number_words.held_out(number) == held_out and words[0] <= len(spelled := number_words.english(number)) <= words[1]:
            sources.append([tag, *spelled])
            targets.append(["<bos>", *SPELL[tag](number), "<eos>"])
    return padded(sources), padded(targets)


def padded(rows: list[list[str]]) -> Tensor:
    """Return rows of tokens as ids [B, N], filled up with padding."""
    return torch.nn.utils.rnn.pad_sequence([torch.tensor([IDS[token] for token in row]) for row in rows], batch_first=True)


def text(tokens: Tensor) -> str:
    """Return what a row of ids says, without bos and up to eos."""
    words = [TOKENS[i] for i in tokens.tolist()][1:]
    return "".join(words[: words.index("<eos>")] if "<eos>" in words else words)


def loss_floor(smoothing: float) -> float:
    """Return the entropy of a smoothed target over our tokens: no loss can be lower."""
    other = smoothing / len(TOKENS)
    right = 1 - smoothing + other
    return -right * math.log(right) - (len(TOKENS) - 1) * other * math.log(other)


def exact_match(model: Transformer, source: Tensor, target: Tensor) -> float:
    """Return the share of sources that greedy search translates without a wrong character."""
    found = translate_greedily(model, source, max_length=target.shape[1])  # long enough for what is right
    return sum(text(ours) == text(theirs) for ours, theirs in zip(found, target)) / len(target)


@torch.no_grad()
def cross_entropy(model: Transformer, source: Tensor, target: Tensor) -> float:
    """Return the mean cross-entropy of a right token in nats, without smoothing: the logarithm of the perplexity."""
    return label_smoothed_cross_entropy(model(source, target[:, :-1]), target[:, 1:], 0.0, ignore_index=model.config.pad).item()


def train(
    model: Transformer, batches: Iterator[tuple[Tensor, Tensor]], *, steps: int, warmup: int, smoothing: float, keep_every: int,
    ramp: bool = True, shift: bool = True,
) -> tuple[list[float], list[dict[str, Tensor]]]:  # fmt: skip
    """Train by the paper's recipe and return the loss of every step and the kept checkpoints; without `ramp` or `shift` it is broken."""
    width = model.config.d_model
    optimizer, schedule = paper_optimizer(list(model.parameters()), width, warmup)
    if not ramp:  # start at the peak, then decay as before
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda done: learning_rate(max(done + 1, warmup), width, warmup))
    losses, checkpoints = [], []
    for step, (source, target) in zip(range(1, steps + 1), batches):
        seen = target[:, :-1] if shift else target[:, 1:]  # the decoder reads "bos a b c" where it has to say "a b c eos"
        loss = label_smoothed_cross_entropy(model(source, seen), target[:, 1:], smoothing, ignore_index=model.config.pad)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        if step % keep_every == 0:
            checkpoints.append({name: value.clone() for name, value in model.state_dict().items()})
    return losses, checkpoints


def alignment(model: Transformer, sources: Tensor, targets: Tensor) -> Tensor:
    """Return for each layer and head [L, H] how often a digit is written with the eye on the very word that carries it.

    Counted are digits from two to nine that stand in only one word of the source. The row of a map that writes a token is the row of the
    token before it.
    """
    hits, asked = torch.zeros(()), 0
    for source, target in zip(sources, targets):
        source, target = source[source != 0][None], target[target != 0][None]
        eyes = cross_attention_maps(model, source, target[:, :-1])[:, 0].argmax(dim=-1)  # [L, H, N]
        carried = [_digit(TOKENS[token]) for token in source[0]]
        for row, token in enumerate(target[0, 1:].tolist()):
            if carried.count(TOKENS[token]) == 1 and TOKENS[token] in number_words.DIGITS[2:]:
                hits, asked = hits + (eyes[..., row] == carried.index(TOKENS[token])), asked + 1
    return hits / asked


def _digit(word: str) -> str | None:
    """Return the character of the digit that an English word carries: 四 for four, fourteen and forty."""
    if word in number_words.TENS:
        return number_words.DIGITS[number_words.TENS.index(word) + 2]
    return number_words.DIGITS[number_words.SMALL.index(word) % 10] if word in number_words.SMALL else None


@experiment
def translation(*, steps: int, warmup: int, smoothing: float, digits: int, longest: int, example: int, seed: int) -> dict:
    """Train a small Transformer on numbers of at most `longest` English words; test it on unseen numbers, longer ones too."""
    torch.manual_seed(seed)
    rng = random.Random(seed)
    model = Transformer(TransformerConfig(len(TOKENS), n_layers=2, d_model=64, d_ff=256, n_heads=4, dropout=0.0))
    batches = iter(lambda: numerals(rng, 64, digits=digits, words=(1, longest), held_out=False), None)
    losses, checkpoints = train(model, batches, steps=steps, warmup=warmup, smoothing=smoothing, keep_every=40)
    model.eval()

    test = random.Random(seed + 1)
    unseen = numerals(test, 500, digits=digits, words=(1, longest), held_out=True)
    by_length = [numerals(test, 60, digits=digits, words=(n, n), held_out=True) for n in range(1, longest + 5)]
    accuracy: dict[str, float | list[float]] = {}
    for name, chosen in (("last", checkpoints[-1:]), ("mean", checkpoints[-5:])):
        model.load_state_dict(average_checkpoints(chosen))
        accuracy[name] = exact_match(model, *unseen)
        accuracy[f"{name}_by_length"] = [exact_match(model, *pairs) for pairs in by_length]
    found, _ = translate(model, unseen[0])
    accuracy["beam"] = sum(text(ours) == text(theirs) for ours, theirs in zip(found[:, 0], unseen[1])) / len(found)

    shown = {}
    for tag, spell in SPELL.items():
        words, characters = [tag, *number_words.english(example)], [*spell(example), "<eos>"]
        source, target = padded([words]), padded([["<bos>", *characters]])
        beams, scores = translate(model, source)
        maps = cross_attention_maps(model, source, target[:, :-1])[:, 0]
        shown[tag] = {"source": words, "target": characters, "beams": [text(beam) for beam in beams[0]], "scores": scores[0], "maps": maps}
    aligned = alignment(model, unseen[0][:200], unseen[1][:200])
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return {"losses": losses, "accuracy": accuracy, "examples": shown, "alignment": aligned, "parameters": parameters}


FAULTS = (
    *("none", "scores not scaled", "embeddings not scaled", "no warm-up"),
    *("padding mask inverted", "causal mask inverted", "targets not shifted"),
)


def spoil(model: Transformer, fault: str) -> None:
    """Build a common mistake into a model by hooks; those of `train` are not here."""

    def invert(_: MultiHeadAttention, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (*inputs[:3], ~inputs[3])

    width = model.config.d_model
    attentions = [module for module in model.modules() if isinstance(module, MultiHeadAttention)]
    own = [layer.self_attention for layer in model.decoder.layers]
    for attention in attentions:
        if fault == "scores not scaled":
            attention.query.register_forward_hook(lambda module, inputs, output: output * math.sqrt(width // model.config.n_heads))
        if (fault == "causal mask inverted" and attention in own) or (fault == "padding mask inverted" and attention not in own):
            attention.register_forward_pre_hook(invert)
    if fault == "embeddings not scaled":
        model.embedding.register_forward_hook(lambda module, inputs, output: output / math.sqrt(width))


@experiment
def small_run(*, fault: str, smoothing: float, layers: int, steps: int, seed: int) -> dict:
    """Train a smaller model on numbers of up to five digits, with one mistake built in, and test it on unseen ones.

    Returned are the loss over the last 20 steps, and of held-out numbers the cross-entropy per token and the share translated exactly.
    """
    if fault not in FAULTS:
        raise ValueError(f"fault: {fault!r}; expected one of {', '.join(FAULTS)}")
    torch.manual_seed(seed)
    rng = random.Random(seed)
    model = Transformer(TransformerConfig(len(TOKENS), n_layers=layers, d_model=32, d_ff=128, n_heads=2, dropout=0.0))
    spoil(model, fault)
    batches = iter(partial(numerals, rng, 32, digits=5, words=(1, 12), held_out=False), None)
    kept = {"ramp": fault != "no warm-up", "shift": fault != "targets not shifted"}
    losses, checkpoints = train(model, batches, steps=steps, warmup=100, smoothing=smoothing, keep_every=20, **kept)
    model.load_state_dict(average_checkpoints(checkpoints[-5:]))
    model.eval()
    unseen = numerals(random.Random(seed + 1), 300, digits=5, words=(1, 12), held_out=True)
    return {"loss": sum(losses[-20:]) / 20, "nll": cross_entropy(model, *unseen), "accuracy": exact_match(model, *unseen)}
