"""The runs behind the note on LLaMA, all but the counting on the real weights of SmolLM2."""

import math
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rundoku.data import human_rights, python_code, shakespeare, smollm2
from rundoku.papers.byte_pair_encoding import ByteLevelBPE
from rundoku.papers.grouped_query_attention import grouped_attention
from rundoku.papers.llama.cache import KVCache
from rundoku.papers.llama.checkpoint import from_gguf
from rundoku.papers.llama.config import LLAMA_7B, LLAMA_13B, LLAMA_33B, LLAMA_65B, LlamaConfig
from rundoku.papers.llama.model import Attention, Llama
from rundoku.papers.llama.sampling import generate
from rundoku.papers.roformer import rotate, to_interleaved
from rundoku.show import experiment

SIZES = {"6.7B": LLAMA_7B, "13.0B": LLAMA_13B, "32.5B": LLAMA_33B, "65.2B": LLAMA_65B}  # Table 2's names
END_OF_TEXT, END_OF_TURN = 0, 2  # SmolLM2's: between documents, after a turn of a conversation


# --8<-- [start:load]
@cache
def smol() -> tuple[Llama, ByteLevelBPE]:
    """Return SmolLM2 and its tokenizer."""
    return from_gguf(*smollm2.read()), ByteLevelBPE(**smollm2.vocabulary(), single_digits=True)
    # --8<-- [end:load]


def tokens(text: str) -> Tensor:
    """Return the ids [1, N] of a text behind the mark that a document begins with, so that its first token is predicted, too."""
    return torch.tensor([[END_OF_TEXT, *smol()[1].encode(text)]])


def passage(name: str) -> str:
    """Return one of the texts that the model is scored on; what is cut, is cut at the beginning of a line."""
    if name in ("en", "ja", "zh"):
        return "\n".join(human_rights.articles(name)[1:5])
    if name == "plays":  # from a scene of Macbeth
        text = shakespeare.plays()
        start = text.index("\n", 2_500_000) + 1
        return text[start : start + 1500]
    if name == "code":
        text = python_code.code()
        start = text.index("\ndef ", 100_000) + 1
        return text[start : start + 1500]
    raise ValueError(f"name: got {name!r}; expected en, ja, zh, plays or code")


# --8<-- [start:score]
@torch.no_grad()
def nats(model: Llama, ids: Tensor) -> Tensor:
    """Return -ln p of every token after the first, [B, N - 1] for ids [B, N]."""
    logits = model(ids[:, :-1])  # [B, N - 1, V]: what the model expects after each token
    return F.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
    # --8<-- [end:score]


# --8<-- [start:count]
@experiment
def sizes() -> dict:
    """Return the parameters of Table 2's models by part, counted on modules that have shapes and no memory."""
    counts = {}
    for name, config in SIZES.items():
        with torch.device("meta"):
            model = Llama(config)
        parts = {"embedding": model.embedding, "blocks": model.blocks, "head": model.head}
        counts[name] = {part: sum(p.numel() for p in module.parameters()) for part, module in parts.items()}
        counts[name]["total"] = sum(p.numel() for p in model.parameters())
    return counts
    # --8<-- [end:count]


@experiment
def model_size() -> dict:
    """Return what SmolLM2 is made of."""
    model = smol()[0]
    config = {name: getattr(model.config, name) for name in LlamaConfig.__dataclass_fields__}
    return {"parameters": sum(p.numel() for p in model.parameters()), **config}


@experiment
def continuations(*, prompt: str, n_new: int, top_p: float, temperature: float, seeds: tuple[int, ...]) -> dict:
    """Return a prompt's greedy continuation, and one drawn with top-p for each seed."""
    model, tokenizer = smol()
    ids = torch.tensor([tokenizer.encode(prompt)])

    def new(**settings: Any) -> str:
        return tokenizer.decode(generate(model, ids, n_new, eos=END_OF_TEXT, **settings)[0, ids.shape[1] :].tolist())

    drawn = [new(temperature=temperature, top_p=top_p, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    return {"greedy": new(), "drawn": drawn}


# --8<-- [start:chat]
SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"  # the file's own default


def conversation(question: str) -> str:
    """Return the form in which SmolLM2 was taught to be asked."""
    turns = (("system", SYSTEM), ("user", question))
    turns = [f"<|im_start|>{who}\n{what}<|im_end|>\n" for who, what in turns]
    return "".join(turns) + "<|im_start|>assistant\n"
    # --8<-- [end:chat]


@experiment
def answers(*, question: str, n_new: int) -> dict:
    """Return the greedy answer to a conversation's first question, by whether its marks were encoded as special tokens or as text."""
    model, tokenizer = smol()
    found = {}
    for form, special in (("special", True), ("text", False)):
        ids = torch.tensor([tokenizer.encode(conversation(question), allow_special=special)])
        answer = generate(model, ids, n_new, eos=END_OF_TURN)[0, ids.shape[1] :].tolist()
        ended = END_OF_TURN in answer
        found[form] = {"tokens": ids.shape[1], "ended": ended, "text": tokenizer.decode(answer[:-1] if ended else answer)}
    return found


@experiment
def scores(*, name: str) -> dict:
    """Return tokens and bytes of a passage, and the model's perplexity, bits a byte and bits in all.

    Besides: how many tokens begin inside a character, which an earlier token began, and the mean bits of these and of the others.
    """
    text, (model, tokenizer) = passage(name), smol()
    ids = tokens(text)
    bits = nats(model, ids)[0].double() / math.log(2)
    inside = torch.tensor([0x80 <= tokenizer.token_bytes(token)[0] < 0xC0 for token in ids[0, 1:].tolist()])
    found = {"tokens": len(bits), "bytes": len(text.encode()), "perplexity": 2 ** bits.mean(), "bits": bits.sum()}
    found |= {"bits_per_byte": bits.sum() / found["bytes"], "inside": inside.double().mean()}
    return found | {"bits_inside": bits[inside].sum() / max(inside.sum(), 1), "bits_outside": bits[~inside].mean()}


@experiment
def surprise(*, text: str) -> dict:
    """Return a text's tokens, the bits that each one cost, and the bits that the model expected it to cost (the entropy)."""
    model, tokenizer = smol()
    ids = tokens(text)
    with torch.no_grad():
        chances = model(ids[:, :-1])[0].double().log_softmax(-1)  # [N - 1, V]
    cost = -chances.gather(1, ids[0, 1:, None])[:, 0]
    expected = -(chances.exp() * chances).sum(-1)
    pieces = [tokenizer.decode([token]) for token in ids[0, 1:].tolist()]
    return {"tokens": pieces, "bits": cost / math.log(2), "expected": expected / math.log(2)}


@experiment
def cached(*, length: int, prompt: int) -> dict:
    """Return how far logits through the cache are from those without, and the multiplications and bytes of either way.

    The first ``prompt`` tokens of the passage are read at once, the others one by one, up to ``length``.
    """
    model = smol()[0]
    ids = tokens(passage("plays"))[:, :length]
    kept = KVCache(model.config, capacity=length)
    with torch.no_grad():
        found = [model(ids[:, :prompt], cache=kept)]
        found += [model(ids[:, at : at + 1], cache=kept) for at in range(prompt, length)]
        difference = (torch.cat(found, 1) - (whole := model(ids))).abs().max()
    again = sum(range(prompt + 1, length + 1))  # without the cache, step t reads t tokens anew
    return {"difference": difference, "largest": whole.abs().max(), "bytes": kept.bytes, "read": length - prompt, "read_again": again}


class Repeating(Attention):
    """The mistake: key-value heads repeated as a whole, so that query head h reads head h mod G."""

    # --8<-- [start:repeat]
    def forward(self, x, cos, sin, allowed, cache, layer):
        """Return what `Attention.forward` returns, from the wrong heads."""
        query, key = self.split(self.query(x)), self.split(self.key(x))
        query, key = rotate(query, cos, sin), rotate(key, cos, sin)
        value = self.split(self.value(x))
        if cache is not None:
            key, value = cache.append(layer, key, value)
        times = query.shape[1] // key.shape[1]
        key = key.repeat(1, times, 1, 1)  # right: key.repeat_interleave(times, 1)
        value = value.repeat(1, times, 1, 1)  # the same mistake
        heads = grouped_attention(query, key, value, allowed)
        return self.output(heads.transpose(1, 2).flatten(2))
        # --8<-- [end:repeat]


class Leaking(Llama):
    """The mistake: a causal mask that is off by one."""

    # --8<-- [start:leak]
    def allowed(self, real, length):
        """Return a mask that lets every token see the next one."""
        column = torch.arange(real.shape[1])
        return (real[:, None] & (column <= column[-length:, None] + 1)).unsqueeze(1)
        # --8<-- [end:leak]


class Moved(Llama):
    """No mistake: every position is 1,000 later."""

    def positions(self, real):
        """Return positions that do not begin at 0."""
        return super().positions(real) + 1000


class Nowhere(Llama):
    """The mistake: every token stands at position 0."""

    def positions(self, real):
        """Return zeros."""
        return torch.zeros_like(real, dtype=torch.long)


def like(kind: type[Llama] = Llama, **changes: Any) -> Llama:
    """Return a model with SmolLM2's own tensors, of another class or configuration; a head that is not tied is drawn at random."""
    source = smol()[0]
    torch.manual_seed(0)
    with torch.device("meta"):
        model = kind(replace(source.config, **changes))
    state = {name: tensor for name, tensor in source.state_dict().items() if name != "head.weight"}
    model.load_state_dict(state, strict=False, assign=True)
    model.head.weight = nn.Parameter(0.02 * torch.randn(source.head.weight.shape))
    model.tie()
    return model.eval()


# --8<-- [start:mistakes]
@torch.no_grad()
def mistaken(mistake: str) -> Llama:
    """Return SmolLM2 with one mistake in it."""
    if mistake == "rope base 10,000":
        return like(rope_base=10_000.0)
    if mistake == "head not tied":
        return like(tied=False)
    classes = {"causal mask off by one": Leaking, "all positions + 1,000": Moved, "no positions": Nowhere}
    model = like(classes.get(mistake, Llama))
    for block in model.blocks:
        attention, network = block.attention, block.feed_forward
        if mistake == "rows left interleaved":
            for part, heads in ((attention.query, model.config.n_heads), (attention.key, model.config.n_kv_heads)):
                part.weight = nn.Parameter(to_interleaved(part.weight, heads))
        elif mistake == "repeat":
            attention.__class__ = Repeating
        elif mistake == "gate and up swapped":
            network.gate, network.up = network.up, network.gate
    return model
    # --8<-- [end:mistakes]


MISTAKES = ("rows left interleaved", "no positions", "rope base 10,000", "repeat", "gate and up swapped", "head not tied",
            "causal mask off by one", "all positions + 1,000")  # fmt: skip


@experiment
def perplexities(*, name: str, length: int, mistakes: tuple[str, ...]) -> dict:
    """Return the perplexity of a passage's first tokens with nothing wrong and with each of the mistakes."""
    ids = tokens(passage(name))[:, :length]
    found = {"none": nats(smol()[0], ids).double().mean().exp()}
    return found | {mistake: nats(mistaken(mistake), ids).double().mean().exp() for mistake in mistakes}


@experiment
def mistaken_text(*, prompt: str, n_new: int, mistakes: tuple[str, ...]) -> dict:
    """Return a prompt's greedy continuation with nothing wrong and with each of the mistakes."""
    tokenizer = smol()[1]
    ids = torch.tensor([tokenizer.encode(prompt)])
    models = {"none": smol()[0]} | {mistake: mistaken(mistake) for mistake in mistakes}
    return {name: tokenizer.decode(generate(model, ids, n_new)[0, ids.shape[1] :].tolist()) for name, model in models.items()}


PROMPT = 64  # tokens that are cached at once before the others follow one by one


# --8<-- [start:cache-mistakes]
def decoding_step(right):
    """Return whether this is one of the tokens that come one by one; right: positions [B, M]."""
    return right.shape[1] > PROMPT


WRONG_POSITIONS = {
    "none": lambda right: right,
    "one too far": lambda right: right + decoding_step(right),
    "stuck at the prompt's end": lambda right: right.clamp(max=PROMPT),
    "starting again at 0": lambda right: right - right[:, -1:] * decoding_step(right),
}
# --8<-- [end:cache-mistakes]


class Misplacing(Llama):
    """The mistakes of WRONG_POSITIONS, the one that is set in ``mistake``."""

    mistake = "none"

    def positions(self, real):
        """Return the positions that the mistake makes of the right ones."""
        return WRONG_POSITIONS[self.mistake](super().positions(real))


@torch.no_grad()
def stepwise(model: Llama, ids: Tensor, mask: Tensor | None, first: int) -> Tensor:
    """Return the perplexity of the tokens from ``first`` on, read one by one behind the cached ones before; mask: [B, first]."""
    kept = KVCache(model.config, len(ids), ids.shape[1])
    logits = [model(ids[:, :first], mask, kept)[:, -1:]]
    logits += [model(ids[:, at : at + 1], cache=kept) for at in range(first, ids.shape[1] - 1)]
    return F.cross_entropy(torch.cat(logits, 1).flatten(0, 1).double(), ids[:, first:].flatten()).exp()


@experiment
def decoding(*, windows: int, new: int, padding: int) -> dict:
    """Return the perplexity of new tokens behind a cached prompt, by what is wrong with their positions or their mask.

    The texts are windows of the plays. The mask's mistake: prompts padded on the left by ``padding`` tokens, and no mask to say so.
    """
    text, encode = shakespeare.plays(), smol()[1].encode
    starts = [len(text) * (2 * window + 1) // (2 * windows) for window in range(windows)]
    ids = torch.tensor([encode(text[start : start + 1000])[: PROMPT + new] for start in starts])
    model, found = like(Misplacing), {}
    for model.mistake in WRONG_POSITIONS:
        found[model.mistake] = stepwise(model, ids, None, PROMPT)
    padded = torch.cat([torch.full((windows, padding), END_OF_TURN), ids], 1)
    real = (torch.arange(padding + PROMPT) >= padding).expand(windows, -1)
    found["padded, with a mask"] = stepwise(smol()[0], padded, real, padding + PROMPT)
    found["padded, without a mask"] = stepwise(smol()[0], padded, None, padding + PROMPT)
    return found
