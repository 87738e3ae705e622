# --8<-- [start:setup]
import torch

from rundoku.papers.attention_is_all_you_need import MultiHeadAttention, causal_mask
from rundoku.papers.flash_attention.kernel import flash_attention
from rundoku.papers.grouped_query_attention import convert, experiments, grouped_attention, kv_cache_bytes
from rundoku.show import claim, figure, publish, table
# --8<-- [end:setup]

# --8<-- [start:ends]
torch.manual_seed(0)
query, x = torch.randn(2, 8, 5, 16).double(), torch.randn(2, 5, 128).double()
key, value = torch.randn(2, 2, 5, 16).double()  # one key head and one value head for all, [B, M, D]

# G = 1 against multi-query attention in Shazeer's notation, which scales no scores
weights = torch.einsum("bhnk,bmk->bhnm", query, key).softmax(-1)
mqa = torch.einsum("bhnm,bmv->bhnv", weights, value)
apart = [(grouped_attention(query, key[:, None], value[:, None], scale=1.0) - mqa).abs().max()]

# G = H against multi-head attention
mha = MultiHeadAttention(d_model=128, n_heads=8).double()
gqa = convert(mha, n_kv_heads=8)
apart += [(gqa(x, x, x, causal_mask(5)) - mha(x, x, x, causal_mask(5))).abs().max()]
publish(apart=max(apart).item())
# --8<-- [end:ends]

# --8<-- [start:traffic]
lengths, batches = (4096, 8192, 16_384, 32_768, 65_536, 131_072, 262_144), (1, 4, 16, 64, 256)
size = {"d_model": 8192, "n_heads": 64}
moved = experiments.decoding_traffic(n_kv_heads=(64, 8, 1), lengths=lengths, batches=batches, **size)
with figure("traffic", columns=2, size=(7.2, 3.3), sharey=True) as (left, right):
    for name, heads in (("MHA", "64"), ("GQA-8", "8"), ("MQA", "1")):
        left.loglog(batches, moved[heads].by_batch, marker="o", label=name)
        right.loglog(lengths, moved[heads].by_length, marker="o", label=name)
    left.set(xlabel="Batch size", ylabel="Elements moved per multiply-add")
    right.set(xlabel="Context length")
    left.legend()
publish(context=lengths[0], batch=batches[-1], alone=moved["64"].by_batch[0], floor=moved["64"].by_batch[-1])
publish(far_mha=moved["64"].by_length[-1], far_gqa=moved["8"].by_length[-1], far=lengths[-1])
# --8<-- [end:traffic]

# --8<-- [start:flash]
torch.manual_seed(0)
query, key, value = (torch.randn(1, heads, 70, 16) for heads in (9, 3, 3))
fused = flash_attention(query, key, value, causal=True)
publish(fused_apart=(grouped_attention(query, key, value, causal_mask(70)) - fused).abs().max().item())
# --8<-- [end:flash]

# --8<-- [start:ways]
ways = experiments.ways_to_share(n_kv_heads=8, length=4096, batch=8, **size)
rows = [(name, way.moved / 1e6, way.copied / 1e6) for name, way in ways.items()]
table("ways", columns=("Implementation", "Moved (millions)", "Copied (millions)"), rows=rows, formats=("", ",.0f", ",.0f"))
publish(dearer=ways["repeat_interleave"].moved / ways["folded"].moved)
# --8<-- [end:ways]

# --8<-- [start:cache]
models = experiments.MODELS | {"SmolLM2-135M": experiments.smollm2_sizes()}
rows = []
for name, (layers, heads, kv_heads, width) in models.items():
    one = kv_cache_bytes(layers, kv_heads, width, length=1)
    whole, full = (kv_cache_bytes(layers, each, width, length=4096) for each in (kv_heads, heads))
    rows.append((name, f"{heads} / {kv_heads}", one / 2**10, whole / 2**30, full / 2**30))
columns = ("Model", "Heads: query / key-value", "KiB a token", "GiB at 4,096 tokens", "GiB as MHA")
table("cache", columns=columns, rows=rows, formats=("", "", ",.1f", ".2f", ".2f"))
llama, as_mha = rows[2][3], rows[2][4]
publish(llama=llama, llama_as_mha=as_mha, in_80gb=int(80e9 / (llama * 2**30)), in_80gb_as_mha=int(80e9 / (as_mha * 2**30)))
# --8<-- [end:cache]

# --8<-- [start:uptraining]
shares = (0.0, 0.025, 0.05, 0.1)
runs = experiments.uptraining.each([{"steps": 1000, "shares": shares, "seed": seed} for seed in (0, 1, 2)])
curves = {name: torch.tensor([run.curves[name] for run in runs]) for name in experiments.RUNS}  # [seeds, shares]
with figure("uptraining", columns=2, size=(7.2, 3.4), sharey=True) as panels:
    for axes, names in zip(panels, (("MHA", "GQA-2", "MQA"), ("MQA", "first", "random"))):
        for name in names:
            label = "mean" if axes is panels[1] and name == "MQA" else name
            (line,) = axes.plot(shares, curves[name].mean(0), marker="o", label=label)
            axes.plot(shares, curves[name].T, color=line.get_color(), linewidth=0.7, alpha=0.5)
        axes.set(xlabel="Share α of the training steps", xticks=shares)
        axes.legend()
    panels[0].set_ylabel("Test loss")
lost = {name: (curve - curves["MHA"]).mean(0) for name, curve in curves.items()}  # [shares]
for name, at in (("GQA-2", "gqa"), ("MQA", "mqa"), ("first", "first"), ("random", "random")):
    publish(**{f"{at}_lost": lost[name][0].item(), f"{at}_left": lost[name][2].item()})
publish(base=sum(run.base for run in runs) / len(runs), seeds=len(runs), steps=1000, share=shares[2], more=int(1000 * shares[2]))
# --8<-- [end:uptraining]

# --8<-- [start:alike]
heads = experiments.alike()
publish(key_cosine=heads.k.cosine, value_cosine=heads.v.cosine, key_kept=heads.k.kept, independent=3**-0.5)
# --8<-- [end:alike]

# --8<-- [start:repeat]
wrong = experiments.real_heads()
publish(repeat_error=wrong.repeat, interleave_error=wrong.interleave, same=wrong.same, heads=wrong.heads, tokens=wrong.tokens)
# --8<-- [end:repeat]

# --8<-- [start:flag]
publish(leaking=wrong.leaking, flag_error=wrong.flag, masked=wrong.masked, decode_error=wrong.decode_flag)
# --8<-- [end:flag]

# --8<-- [start:faults]
rows = [(fault, sum(run.faults[fault] for run in runs) / len(runs)) for fault in experiments.FAULTS]
table("faults", columns=("What is pooled", "Test loss"), rows=rows, formats=("", ".2f"))
order = experiments.pooling_order()
publish(order_plain=order.plain, order_normalised=order.normalised)
# --8<-- [end:faults]

# --8<-- [start:ranks]
ranks, names = (1, 2, 4, 8, 16), {"MHA": 64, "GQA-8": 8, "MQA": 1}
sizes = {name: [kv_cache_bytes(80, heads, 128, 4096, ranks=n) / 2**30 for n in ranks] for name, heads in names.items()}
columns = ("Tensor-parallel ranks", *(f"{name}, GiB" for name in names))
table("ranks", columns=columns, rows=list(zip(ranks, *sizes.values())), formats=("", ".2f", ".2f", ".2f"))
# --8<-- [end:ranks]

# --8<-- [start:claims]
claim("ends", ours=max(apart).item(), holds=max(apart).item() < 1e-12, kind="exact", format=".0e")
read = experiments.cache_reads(d_model=1024, n_heads=8, n_kv_heads=(8, 1), length=128, batch=128).read
claim("reads", ours=read[0] / read[1], holds=read[0] / read[1] == 8, kind="exact", format=".0f")
wide = experiments.feed_forward_widening(d_model=1024, n_heads=8, d_ff=(4096, 5440), attentions=18, feed_forwards=12)
claim("widened", ours=wide.added - wide.saved, holds=wide.added == wide.saved, kind="exact", format="d")
waste = sizes["MQA"][3] / sizes["GQA-8"][3]
claim("replicated", ours=waste, holds=waste == 1 and sizes["GQA-8"][3] == sizes["GQA-8"][0], kind="exact", format=".0f")

mean, first, chance = (curves[name][:, 2] for name in ("MQA", "first", "random"))  # at 5 %, by seed
ordered = bool((mean < first).all() and (first < chance).all())
claim("conversion", ours=" < ".join(f"{loss.mean():.2f}" for loss in (mean, first, chance)), holds=ordered, kind="reproduced")
chosen = bool((mean < chance).all() and (first < chance).all())
behind = (chance - torch.maximum(mean, first)).min().item()
claim("not-from-scratch", ours=behind, holds=chosen, kind="reproduced", format=".2f")
after = (lost["GQA-2"][0] / lost["MQA"][0]).item()
claim("after-conversion", ours=after, holds=after < 0.5, kind="reproduced", format=".0%")
gains = {name: (curves[name][:, 0] - curves[name][:, 2], curves[name][:, 2] - curves[name][:, 3]) for name in ("GQA-2", "MQA")}
diminishing = all(bool((early > late).all() and (early > 0).all()) for early, late in gains.values())
early, late = (sum(gain[i].mean().item() for gain in gains.values()) / 2 for i in (0, 1))
claim("five-percent", ours=f"{early:.2f} / {late:.2f}", holds=diminishing, kind="reproduced")
three = [curves[name][:, 2] for name in ("MHA", "GQA-2", "MQA")]
nearer = bool((three[0] < three[1]).all() and (2 * (three[1] - three[0]) < three[2] - three[0]).all())
claim("between", ours=" < ".join(f"{loss.mean():.2f}" for loss in three), holds=nearer, kind="reproduced")
# --8<-- [end:claims]
