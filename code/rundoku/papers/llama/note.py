# --8<-- [start:setup]
import textwrap

from rundoku.data import smollm2
from rundoku.gpu.targets import CARDS
from rundoku.papers.byte_pair_encoding import ByteLevelBPE
from rundoku.papers.grouped_query_attention import kv_cache_bytes
from rundoku.papers.llama import LLAMA_13B
from rundoku.papers.llama import experiments, from_gguf, generate
from rundoku.show import claim, figure, publish, table
# --8<-- [end:setup]

# --8<-- [start:sizes]
counts = experiments.sizes()
configs = experiments.SIZES
total = {name: counts[name].total for name in configs}
table(
    "sizes",
    columns=("Table 2", "Counted", "Embedding and head", "d_model", "Layers", "d_ff"),
    rows=[
        (name, total[name], counts[name].embedding + counts[name].head, config.d_model, config.n_layers, config.d_ff)
        for name, config in configs.items()
    ],
    formats=("", ",", ",", ",", "", ","),
)
widest = max(3 * config.d_ff / (8 * config.d_model) for config in configs.values())
publish(largest=total["65.2B"] / 1e9, widest=widest - 1)
# --8<-- [end:sizes]

# --8<-- [start:load]
import torch

model = from_gguf(*smollm2.read())
tokenizer = ByteLevelBPE(**smollm2.vocabulary(), single_digits=True)

ids = torch.tensor([tokenizer.encode("The capital of France is")])
print(tokenizer.decode(generate(model, ids, n_new=2)[0].tolist()))
# --8<-- [end:load]

# --8<-- [start:model-size]
size = experiments.model_size()
publish(parameters=size.parameters, heads=size.n_heads, kv_heads=size.n_kv_heads)
publish(base=size.rope_base, vocabulary=size.vocab_size, layers=size.n_layers)
# --8<-- [end:model-size]

# --8<-- [start:text]
prompt = "Once upon a time, in a small village by the sea,"
sampling = {"temperature": 0.8, "top_p": 0.9, "seeds": (0, 1)}
text = experiments.continuations(prompt=prompt, n_new=40, **sampling)
named = {"greedy": text.greedy, "seed 0": text.drawn[0], "seed 1": text.drawn[1]}
for name, new in named.items():
    line = f"[{name}] {prompt}{new}".replace("\n\n", " ¶ ")
    print(textwrap.fill(line, 74, subsequent_indent="    "))
# --8<-- [end:text]

# --8<-- [start:perplexity]
PASSAGES = {
    "en": "Human rights, English",
    "ja": "Human rights, Japanese",
    "zh": "Human rights, Chinese",
    "plays": "Macbeth",
    "code": "Python code",
}
scores = {name: experiments.scores(name=name) for name in PASSAGES}
table(
    "perplexity",
    columns=("Text", "Bytes", "Tokens", "Perplexity", "Bits per byte", "Bits, whole text"),
    rows=[
        (title, s.bytes, s.tokens, s.perplexity, s.bits_per_byte, s.bits)
        for title, s in ((PASSAGES[name], scores[name]) for name in PASSAGES)
    ],
    formats=("", ",", ",", ".1f", ".2f", ",.0f"),
)
publish(ja_times=scores["ja"].bits / scores["en"].bits, zh_times=scores["zh"].bits / scores["en"].bits)
publish(en_perplexity=scores["en"].perplexity, ja_perplexity=scores["ja"].perplexity)
publish(ja_tokens=scores["ja"].tokens / scores["en"].tokens, ja_inside=scores["ja"].inside)
publish(ja_bits_inside=scores["ja"].bits_inside, ja_bits_outside=scores["ja"].bits_outside)
# --8<-- [end:perplexity]

# --8<-- [start:surprise]
LINES = {
    "Declaration of Human Rights": "All human beings are born free and equal in dignity and rights."
    " They are endowed with reason and conscience and should act towards one another",
    "Macbeth": "Those of his chamber, as it seem'd, had done't: their hands and faces were all badg'd with blood;",
}
lines = {title: experiments.surprise(text=line) for title, line in LINES.items()}
with figure("surprise", rows=2, size=(7.2, 5.2)) as panels:
    for axes, (title, line) in zip(panels, lines.items(), strict=True):
        places = range(len(line.tokens))
        axes.bar(places, line.bits, color="C0", label="actual token")
        axes.plot(places, line.expected, "o", color="C1", markersize=4, label="entropy")
        axes.set_xticks(places, [token.replace(" ", "·") for token in line.tokens], rotation=60, ha="right", rotation_mode="anchor")
        axes.set(title=title, ylabel="Bits", xlim=(-0.7, len(places) - 0.3))
        axes.grid(visible=False, axis="x")
    panels[0].legend()
mean_bits = {title: sum(line.bits) / len(line.bits) for title, line in lines.items()}
publish(rights_bits=mean_bits["Declaration of Human Rights"], macbeth_bits=mean_bits["Macbeth"])
# --8<-- [end:surprise]

# --8<-- [start:cache]
cache = experiments.cached(length=80, prompt=40)
publish(cache_difference=cache.difference, logit=cache.largest)
publish(cache_read=cache.read, cache_again=cache.read_again)
publish(token_bytes=cache.bytes // 80, saved=size.n_heads / size.n_kv_heads)
# --8<-- [end:cache]

# --8<-- [start:compute]
TOKENS = {"6.7B": 1.0e12, "13.0B": 1.0e12, "32.5B": 1.4e12, "65.2B": 1.4e12}  # Table 2
HOURS = {"6.7B": 82_432, "13.0B": 135_168, "32.5B": 530_432, "65.2B": 1_022_362}  # Table 15
peak = CARDS["NVIDIA A100-SXM4-80GB"].half  # FLOP/s in bfloat16
work = {name: 6 * total[name] * TOKENS[name] for name in TOKENS}
used = {name: work[name] / (HOURS[name] * 3600 * peak) for name in TOKENS}
table(
    "compute",
    columns=("Model", "Training tokens", "Tokens per parameter", "6ND, FLOP", "GPU hours", "Share of the peak"),
    rows=[(n, TOKENS[n], TOKENS[n] / total[n], work[n], HOURS[n], used[n]) for n in TOKENS],
    formats=("", ",.0f", ".0f", ".2e", ",", ".0%"),
)
days = TOKENS["65.2B"] / (2048 * 380) / 86_400
publish(ratio=TOKENS["6.7B"] / total["6.7B"], chinchilla=200 / 10, least=min(used.values()), most=max(used.values()))
# --8<-- [end:compute]

# --8<-- [start:memory]
weights = 2 * total["13.0B"]  # bytes, in half precision
c = LLAMA_13B
kept = kv_cache_bytes(c.n_layers, c.n_kv_heads, c.d_head, length=c.max_length)
V100 = {"16 GB": 16 * 2**30, "32 GB": 32 * 2**30}  # the card was sold with either
publish(weights_gb=weights / 1e9, kept_gb=kept / 1e9, context=c.max_length)
publish(needed=(weights + kept) / 2**30)
# --8<-- [end:memory]

# --8<-- [start:mistakes]
wrong = experiments.perplexities(name="plays", length=256, mistakes=experiments.MISTAKES)
table(
    "mistakes",
    columns=("Mistake", "Perplexity", "Times the right one"),
    rows=[(name, value, value / wrong.none) for name, value in wrong.items()],
    formats=("", ",.1f", ",.4g"),
)
publish(right=wrong.none, interleaved=wrong["rows left interleaved"], nowhere=wrong["no positions"])
publish(leaking=wrong["causal mask off by one"], other_base=wrong["rope base 10,000"])
publish(original_base=LLAMA_13B.rope_base)
# --8<-- [end:mistakes]

# --8<-- [start:mistaken-text]
shown = ("rows left interleaved", "rope base 10,000", "causal mask off by one", "repeat")
texts = experiments.mistaken_text(prompt="The sun is", n_new=24, mistakes=shown)
for mistake, new in texts.items():
    line = f"[{mistake}] The sun is{new}".replace("\n", " ¶ ")
    print(textwrap.fill(line, 74, subsequent_indent="    "))
# --8<-- [end:mistaken-text]

# --8<-- [start:decoding]
late = experiments.decoding(windows=4, new=16, padding=32)
table(
    "decoding",
    columns=("Mistake", "Perplexity", "Times the right one"),
    rows=[(name, value, value / late.none) for name, value in late.items()],
    formats=("", ".1f", ".3f"),
)
# --8<-- [end:decoding]

# --8<-- [start:chat]
question = "What is the capital of Japan?"
answer = experiments.answers(question=question, n_new=40)
for form, found in answer.items():
    end = "" if found.ended else " …"
    line = f"[{form}, {found.tokens} tokens] {found.text}{end}".replace("\n", " ¶ ")
    print(textwrap.fill(line, 74, subsequent_indent="    "))
publish(special=answer.special.tokens, spelled=answer.text.tokens)
# --8<-- [end:chat]

# --8<-- [start:claims]
named = [float(name[:-1]) for name in total]  # Table 2's, in billions
ours = [round(count / 1e9, 1) for count in total.values()]
claim("three-sizes", ours=", ".join(map(str, ours[:3])), holds=ours[:3] == named[:3], kind="exact")
claim("largest-size", ours=total["65.2B"] / 1e9, holds=ours[3] == named[3], kind="exact", format=".2f")
claim("training-days", ours=days, holds=round(days) == 21, kind="exact", format=".1f")
smaller = 175e9 / total["13.0B"]
claim("ten-times-smaller", ours=smaller, holds=smaller >= 10, kind="exact", format=".1f")
claim("one-card", ours=(weights + kept) / 2**30, holds=weights + kept < V100["32 GB"], kind="exact", format=".1f")
moved = wrong["all positions + 1,000"]
claim("no-absolute-positions", ours=abs(moved / wrong.none - 1), holds=abs(moved / wrong.none - 1) < 1e-3, kind="reproduced", format=".0e")
# --8<-- [end:claims]
