"""The runs behind the note: SmolLM2 traced by hooks from text to probabilities, what its parts cost, and what mistakes do to it."""

import math
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from rundoku.data import smollm2
from rundoku.data.human_rights import articles
from rundoku.papers.byte_pair_encoding import ByteLevelBPE
from rundoku.papers.llama import Llama, LlamaConfig, from_gguf, generate, next_token_probabilities
from rundoku.show import experiment

SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"  # the template's own, where a chat brings none
MISTAKES = ("none", "no shift", "shifted twice", "no final norm", "head reshaped, not transposed", "softmax twice")


@cache
def load() -> tuple[Llama, ByteLevelBPE]:
    """Return SmolLM2 and its tokenizer, once a process."""
    return from_gguf(*smollm2.read()), ByteLevelBPE(**smollm2.vocabulary(), single_digits=True)


# --8<-- [start:hooks]
@torch.no_grad()
def traced(model: nn.Module, ids: Tensor) -> tuple[Tensor, dict[str, tuple[Tensor, Tensor]]]:
    """Return the logits, and by name what went into every module and what came out of it."""
    found: dict[str, tuple[Tensor, Tensor]] = {}

    def keep(name):
        def hook(module, inputs, output):
            found[name] = (inputs[0], output)

        return hook

    handles = [part.register_forward_hook(keep(name)) for name, part in model.named_modules() if name]
    try:
        return model(ids), found
    finally:
        for handle in handles:
            handle.remove()
    # --8<-- [end:hooks]


# --8<-- [start:toy]
def toy(weights: dict[str, Tensor]) -> Llama:
    """Return a one-block model with one head whose matrices are the worked example's, each [in, out].

    Its rotary base is so large that the second pair of a head never turns; queries and keys use only that.
    """
    config = LlamaConfig(4, 4, 1, 1, 1, d_ff=2, d_head=4, norm_eps=1e-12, rope_base=1e30, tied=True)
    model = Llama(config)
    state = {name: weight.T.float() for name, weight in weights.items()}  # nn.Linear keeps [out, in]
    state["embedding.weight"] = weights["embedding.weight"].float()  # but an embedding is [V, C]
    model.load_state_dict(state, strict=False)
    return model.eval()
    # --8<-- [end:toy]


@experiment
def trace(*, text: str) -> dict:
    """Return tokens and bytes of a text, and of its last token every tensor's shape and norm, the stream by layer and the logit lens.

    ``sum_error`` is how far the last block's output is from the embedding plus everything that was added to it, ``logits_error`` how
    far what the hooks saw leave the head is from a run without hooks, both as shares of the largest value.
    """
    model, tokenizer = load()
    ids = tokenizer.encode(text)
    logits, found = traced(model, torch.tensor([ids]))
    with torch.no_grad():
        plain = model(torch.tensor([ids]))
    layers = range(model.config.n_layers)
    stream = [found["embedding"][1], *(found[f"blocks.{layer}"][1] for layer in layers)]  # [1, N, C] each
    added = {part: [found[f"blocks.{layer}.{part}"][1] for layer in layers] for part in ("attention", "feed_forward")}
    total = stream[0] + sum(added["attention"]) + sum(added["feed_forward"])
    with torch.no_grad():
        lens = torch.stack([model.head(model.norm(x))[0, -1] for x in stream]).softmax(-1)  # [L + 1, V]
    final, likely = lens[-1], lens[-1].topk(5)
    named = {name: output for name, (_, output) in found.items() if not name.startswith("blocks.")}
    named |= {f"blocks.0.{name}": found[f"blocks.0.{name}"][1] for name in dict(model.blocks[0].named_modules()) if name}
    named |= {f"blocks.{layer}": found[f"blocks.{layer}"][1] for layer in (0, layers[-1])}
    order = [name for name in found if name in named]  # as they were computed
    return {
        "ids": ids,
        "tokens": [tokenizer.decode([token]) for token in ids],
        "bytes": [tokenizer.token_bytes(token).hex(" ") for token in ids],
        "single_bytes": sorted(
            {tokenizer.token_bytes(token)[0] for token in range(len(tokenizer)) if len(tokenizer.token_bytes(token)) == 1}
        ),
        "digits": [tokenizer.decode([token]) for token in tokenizer.encode("2026")],
        "order": order,
        "shapes": {name: list(named[name].shape[1:]) for name in order},
        "norms": {name: named[name][0, -1].norm() for name in order},
        "parameters": {name: sum(part.numel() for part in module.parameters()) for name, module in model.named_modules() if name in order},
        "first": [x[0, 0].norm() for x in stream],
        "last": [x[0, -1].norm() for x in stream],
        "added": {part: [x[0, -1].norm() for x in outputs] for part, outputs in added.items()},
        "favourite": [tokenizer.decode([int(row.argmax())]) for row in lens],
        "certainty": lens.max(-1).values,
        "answer": lens[:, int(final.argmax())],
        "likely": [[tokenizer.decode([int(token)]), chance] for chance, token in zip(likely.values, likely.indices)],
        "sum_error": (total - stream[-1]).abs().max() / stream[-1].abs().max(),
        "logits_error": (found["head"][1] - plain).abs().max() / plain.abs().max(),
        "same_logits": bool(torch.equal(logits, found["head"][1])),
        "tied": model.head.weight.data_ptr() == model.embedding.weight.data_ptr(),
        "ff_ratio": model.config.d_ff / model.config.d_model,
    }


# --8<-- [start:costs]
def flops(config: LlamaConfig, length: int) -> dict[str, int]:
    """Return the FLOP of a forward pass over ``length`` tokens by part, two for each multiplication and addition."""
    c, h, g, d, f = config.d_model, config.n_heads, config.n_kv_heads, config.d_head, config.d_ff
    a_block = {
        "attention, projections": 2 * length * c * (2 * h * d + 2 * g * d),  # query and output, key and value
        "attention, scores and sums": 2 * length * length * h * d * 2,  # QKᵀ and AV, all pairs
        "feed-forward": 2 * length * 3 * c * f,  # gate, up, down
    }
    blocks = {part: config.n_layers * count for part, count in a_block.items()}
    return {"embedding": 0, **blocks, "head": 2 * length * c * config.vocab_size}
    # --8<-- [end:costs]


def _more_for_scores(config: LlamaConfig, length: int) -> bool:
    """Return whether the scores and sums of attention cost more than the feed-forward networks."""
    found = flops(config, length)
    return found["attention, scores and sums"] > found["feed-forward"]


@experiment
def costs(*, text: str) -> dict:
    """Return parameters and FLOP a token of SmolLM2 by part, and what torch counts for the same text."""
    model, tokenizer = load()
    ids = torch.tensor([tokenizer.encode(text)])
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        model(ids)
    of = {name: parameter.numel() for name, parameter in model.named_parameters()}  # a tied head once
    parameters = {
        "embedding": of["embedding.weight"],
        "attention, projections": sum(size for name, size in of.items() if ".attention." in name),
        "attention, scores and sums": 0,
        "feed-forward": sum(size for name, size in of.items() if ".feed_forward." in name),
        "norms": sum(size for name, size in of.items() if "norm" in name),
        "head": of.get("head.weight", 0),
    }
    ours = flops(model.config, ids.shape[1]) | {"norms": 0}  # element by element: torch does not count them either
    return {
        "length": ids.shape[1],
        "parameters": parameters,
        "flops": {name: ours[name] / ids.shape[1] for name in parameters},
        "total": sum(ours.values()),
        "torch": counter.get_total_flops(),
        "all": sum(of.values()),
        "even": next(n for n in range(1, 10**5) if _more_for_scores(model.config, n)),
    }


# --8<-- [start:mistakes]
def scores(model: Llama, ids: Tensor, mistake: str) -> tuple[Tensor, Tensor]:
    """Return logits and the ids that they are held against, with one of MISTAKES."""
    weight, x = model.head.weight, model.hidden(ids)[0]  # [V, C], [N, C]
    if mistake == "no final norm":
        x = stream(model, ids)
    if mistake == "head reshaped, not transposed":
        logits = x @ weight.reshape(weight.shape[1], weight.shape[0])  # [C, V], and nonsense
    else:
        logits = x @ weight.T
    if mistake == "softmax twice":
        logits = logits.softmax(-1)  # the loss takes the softmax of these again
    ahead = {"no shift": 0, "shifted twice": 2}.get(mistake, 1)
    return logits[: ids.shape[1] - ahead], ids[0, ahead:]
    # --8<-- [end:mistakes]


def stream(model: Llama, ids: Tensor) -> Tensor:
    """Return the last block's output [N, C], which the final norm reads."""
    return traced(model, ids)[1]["norm"][0][0]


@experiment
def mistakes(*, numbers: tuple[int, ...]) -> dict:
    """Return loss in nats and share of right first choices on articles of the Declaration of Human Rights, by mistake."""
    model, tokenizer = load()
    english = articles("en")
    ids = torch.tensor([tokenizer.encode(" ".join(english[number] for number in numbers))])
    found = {}
    for mistake in MISTAKES:
        with torch.no_grad():
            logits, target = scores(model, ids, mistake)
        found[mistake] = {"loss": F.cross_entropy(logits, target), "right": (logits.argmax(-1) == target).double().mean()}
    return {"found": found, "length": ids.shape[1], "uniform": math.log(model.config.vocab_size)}


@experiment
def temperatures(*, text: str, values: tuple[float, ...]) -> dict:
    """Return how probable the likeliest next token is at several temperatures: on the logits, and as people place it after the softmax.

    "too late" divides the probabilities and normalises them again; "on them" takes the softmax of the divided probabilities.
    """
    model, tokenizer = load()
    with torch.no_grad():
        logits = model(torch.tensor([tokenizer.encode(text)]))[0, -1]
    chances = logits.softmax(-1)
    return {
        "right": [next_token_probabilities(logits, temperature=value).max() for value in values],
        "late": [(chances / value / (chances / value).sum()).max() for value in values],
        "twice": [(chances / value).softmax(-1).max() for value in values],
    }


def chat(question: str) -> str:
    """Return a question as SmolLM2's chat template puts it, up to where the answer begins."""
    said = f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n{question}<|im_end|>\n"
    return f"{said}<|im_start|>assistant\n"


@experiment
def prompts(*, question: str, answer: str, n_new: int) -> dict:
    """Return what follows a question asked plainly, through the template, and through the template with its marks spelt out as text.

    ``loss`` is the loss of ``answer`` in nats a token after each.
    """
    model, tokenizer = load()
    cases = {
        "plain": (tokenizer.encode(question), answer),
        "template": (tokenizer.encode(chat(question), allow_special=True), answer.strip()),
        "spelt out": (tokenizer.encode(chat(question)), answer.strip()),
    }
    found = {}
    for name, (ids, wanted) in cases.items():
        told = tokenizer.encode(wanted)
        out = generate(model, torch.tensor([ids]), n_new, eos=smollm2.metadata()["tokenizer.ggml.eos_token_id"])[0, len(ids) :]
        with torch.no_grad():
            logits = model(torch.tensor([ids + told]))[0, len(ids) - 1 : -1]
        loss = F.cross_entropy(logits, torch.tensor(told))
        found[name] = {"tokens": len(ids), "text": tokenizer.decode(out.tolist()), "loss": loss}
    return found
