"""Every room's copy, imported where `rundoku` cannot be, computes what the original computes: bit for bit."""

import ast
import importlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from rundoku.site.export import copies, copy
from rundoku.site.lineage import rooms
from rundoku.site.sources import ExportError

ROOT = Path(__file__).parents[3]

# A room's example: code that has `room` (the copy or the original) and `torch`, seeded with 0, and puts what it computes into `result`.
EXAMPLES = {
    "attention-is-all-you-need": """
query, key, value = (torch.randn(2, 3, 5, 4, requires_grad=True) for _ in range(3))
module = room.MultiHeadAttention(d_model=8, n_heads=2)
x = torch.randn(2, 5, 8)
out = room.scaled_dot_product_attention(query, key, value, room.causal_mask(5))
out.square().sum().backward()
model = room.Transformer(room.TransformerConfig(vocab_size=13, n_layers=2, d_model=8, d_ff=16, n_heads=2, dropout=0.0)).eval()
source, target = torch.randint(3, 13, (2, 2, 6))
loss = room.label_smoothed_cross_entropy(model(source, target), target)
loss.backward()
with torch.no_grad():
    found, scores = room.translate(model, source, beam_size=2, max_length=4)
result = {"out": out, "grad": [query.grad, key.grad, value.grad], "module": module(x, x, x), "weights": module.weights(x, x),
          "loss": loss, "embedding": model.embedding.weight.grad, "found": found, "scores": scores, "rate": room.learning_rate(5, 8)}
""",
    "byte-pair-encoding": """
words = {"low": 5, "lower": 2, "newest": 6, "widest": 3}
merges = room.learn_merges(words, 10)
learned = room.learn_byte_merges("low lower 12 人権 人", 8, ties="oldest")
made = room.ByteLevelBPE(room.byte_vocabulary(learned, ["<|end|>"]), learned, {"<|end|>": 264}, single_digits=True)
ids = made.encode("lower 人 34<|end|>", allow_special=True)
result = [merges, room.apply_merges("lowest", merges), learned, ids, made.decode(ids), room.split("it's 12 人"), len(room.BYTE_CHARACTERS)]
""",
    "cut-cross-entropy": """
hidden, weight, bias = (torch.randn(*shape, requires_grad=True) for shape in ((9, 6), (20, 6), (20,)))
targets = torch.tensor([3, -100, 19, 0, 7, 7, 1, -100, 5])
loss, lse = room.linear_cross_entropy(hidden, weight, targets, bias, softcap=5.0, filter_eps=1e-3, return_lse=True, block_vocab=8)
(loss + lse.sum()).backward()
order, eps = room.vocabulary_order(hidden.detach(), weight.detach(), bias.detach()), room.threshold("auto", torch.half)
result = {"loss": loss, "lse": lse, "grads": [hidden.grad, weight.grad, bias.grad], "order": order, "eps": eps}
""",
    "cut-cross-entropy.kernel": """
hidden, weight, bias = (torch.randn(*shape, requires_grad=True) for shape in ((2, 9, 6), (40, 6), (40,)))
targets = torch.randint(40, (2, 9))
loss, lse = room.linear_cross_entropy(hidden, weight, targets, bias, softcap=5.0, shift=1, filter_eps=1e-3, return_lse=True)
(loss + lse.sum()).backward()
exact = room.reference(hidden, weight, targets, bias, softcap=5.0, shift=1)
result = {"loss": loss, "lse": lse, "grads": [hidden.grad, weight.grad, bias.grad], "exact": exact}
""",
    "flash-attention": """
q = torch.randn(1, 2, 9, 16, requires_grad=True)
k, v = torch.randn(2, 1, 2, 7, 16)
tiled = room.tiled_attention(q, k, v, causal=True, sram=512)
fused = room.flash_attention(q, k, v, causal=True)
fused.square().sum().backward()
seen = room.absorb(room.nothing_seen(q[0, 0], 16), q[0, 0] @ k[0, 0].T, v[0, 0])
exact = room.attention_reference(q, k, v, causal=True, window_size=(2, 0), softcap=3.0)
decoded = room.flash_decode(q.detach()[:, :, -2:], k, v, torch.tensor([6], dtype=torch.int32), num_splits=2)
result = {"tiled": tiled, "fused": fused, "grad": q.grad, "seen": list(room.finish(seen)), "exact": list(exact), "decoded": decoded}
""",
    "flash-attention.kernel": """
q, k, v = (torch.randn(1, heads, 9, 16, requires_grad=True) for heads in (2, 1, 1))
slopes = torch.tensor([0.5, 0.25])
out, lse = room.flash_attention(q, k, v, slopes, window_size=(3, 1), softcap=2.0, return_lse=True)
(out.square().sum() + lse.sum()).backward()
starts = torch.tensor([0, 4, 4, 9], dtype=torch.int32)
packed = [x.detach()[0].transpose(0, 1).requires_grad_() for x in (q, k, v)]
together = room.flash_attention_varlen(*packed, starts, starts, 5, 5, slopes, causal=True)
grads = torch.autograd.grad(together.square().sum(), packed)
one, cache = q.detach()[:, :, :1], k.detach()
decoded = [room.flash_decode(one, cache, cache, starts[3:], num_splits=splits, return_lse=True) for splits in (1, 3)]
configs = [[*use, *config.tiles.values()] for use, config in room.CONFIGS["interpreter"].items()]
result = {"out": out, "lse": lse, "grads": [q.grad, k.grad, v.grad], "configs": configs, "packed": [together, *grads],
          "decoded": decoded, "splits": room.split_count(8, 10_000, 108)}
""",
    "glu-variants": """
ffn = room.GatedFeedForward(6, room.two_thirds(12), "gelu", bias=True)
x = torch.randn(3, 5, 6, requires_grad=True)
out = ffn(x)
out.square().sum().backward()
gates = {name: room.glu(x, x.flip(-1), name) for name in room.ACTIVATIONS}
result = {"out": out, "grads": [x.grad, ffn.gate.weight.grad, ffn.up.bias.grad], "gates": gates}
""",
    "glu-variants.kernel": """
projected = torch.randn(3, 5, 66, requires_grad=True)
hidden = {name: room.gated(*projected.chunk(2, -1), name) for name in ("silu", "gelu", "gelu_tanh", "relu", "sigmoid", "identity")}
grad, = torch.autograd.grad(sum(h.square().sum() for h in hidden.values()), projected)
result = {"hidden": hidden, "grad": grad}
""",
    "grouped-query-attention": """
attention = room.GroupedQueryAttention(d_model=12, n_heads=6, n_kv_heads=2)
x = torch.randn(2, 5, 12)
allowed = torch.ones(5, 5, dtype=torch.bool).tril()
out = attention(x, x, x, allowed)
out.square().sum().backward()
query, key = torch.randn(2, 6, 3, 4), torch.randn(2, 2, 7, 4)
pooled = room.mean_pool_heads(attention.query.weight.detach(), 6, 3)
result = {"out": out, "grads": [attention.key.weight.grad, attention.value.weight.grad], "pooled": pooled,
          "grouped": room.grouped_attention(query, key, key), "bytes": room.kv_cache_bytes(2, 2, 4, 7)}
""",
    "layer-norm": """
layer, lstm, gru = room.LayerNorm(6), room.LSTM(room.RecurrentConfig(4, 6)), room.GRU(room.RecurrentConfig(4, 6))
x = torch.randn(3, 5, 6, requires_grad=True)
layer(x).pow(3).sum().backward()
steps = torch.randn(3, 5, 4)
result = {"grads": [x.grad, layer.weight.grad], "lstm": list(lstm(steps)[1]), "gru": list(gru(steps))}
""",
    "layer-norm.kernel": """
x, residual = torch.randn(2, 3, 5, 33, requires_grad=True)
weight, bias = torch.randn(2, 33)
y, h = room.add_layer_norm(x, residual, weight, bias)
grad, = torch.autograd.grad((y.square() + h).sum(), x)
result = {"y": y, "h": h, "grad": grad, "alone": room.layer_norm(x.detach(), weight)}
""",
    "llama": """
config = room.LlamaConfig(vocab_size=19, d_model=8, n_layers=2, n_heads=4, n_kv_heads=2, d_ff=12, d_head=4, max_length=16, tied=True)
model, ids = room.Llama(config), torch.randint(19, (2, 6))
mask = torch.arange(6) >= torch.tensor([[0], [2]])
logits = model(ids, mask)
logits.square().sum().backward()
grads = [parameter.grad for parameter in model.parameters()]
cache = room.KVCache(config, batch_size=2)
with torch.no_grad():
    cached = [model(ids[:, :4], mask[:, :4], cache), model(ids[:, 4:], None, cache)]
greedy = room.generate(model, ids, 5, attn_mask=mask)
drawn = room.generate(model, ids, 5, temperature=0.8, top_k=9, top_p=0.9, generator=torch.Generator().manual_seed(0))
metadata = {"general.architecture": "llama", "llama.embedding_length": 2, "llama.block_count": 1, "llama.attention.head_count": 1,
            "llama.feed_forward_length": 3, "llama.attention.layer_norm_rms_epsilon": 1e-5, "llama.context_length": 8}
shapes = {"token_embd": (5, 2), "output_norm": (2,), "blk.0.attn_norm": (2,), "blk.0.ffn_norm": (2,), "blk.0.attn_q": (2, 2),
          "blk.0.attn_k": (2, 2), "blk.0.attn_v": (2, 2), "blk.0.attn_output": (2, 2), "blk.0.ffn_gate": (3, 2), "blk.0.ffn_up": (3, 2),
          "blk.0.ffn_down": (2, 3)}
read = room.from_gguf(metadata, {f"{name}.weight": torch.randn(shape) for name, shape in shapes.items()})
result = {"logits": logits, "grads": grads, "cached": cached, "greedy": greedy, "drawn": drawn, "read": read(torch.arange(5)[None])}
""",
    "lora": """
model = torch.nn.Sequential(torch.nn.Embedding(11, 6), torch.nn.Linear(6, 5))
room.apply_lora(model, targets=("0", "1"), config=room.LoRAConfig(rank=2, init="gaussian"))
for layer in room.lora_layers(model).values():
    torch.nn.init.normal_(layer.lora_B["default"])
tokens = torch.randint(11, (3, 4))
out = model(tokens)
out.square().sum().backward()
grads = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
state = room.lora_state_dict(model)
room.merge_adapters(model)
similar = room.subspace_similarity(torch.randn(3, 8), torch.randn(2, 8))
result = {"out": out, "grads": grads, "state": state, "merged": model(tokens), "similar": similar}
""",
    "lora.kernel": """
x, weight = torch.randn(2, 3, 33, requires_grad=True), torch.randn(20, 33)
a, b, bias = torch.randn(5, 33, requires_grad=True), torch.randn(20, 5, requires_grad=True), torch.randn(20, requires_grad=True)
y = room.lora_linear(x, weight, a, b, 0.5, bias)
grads = torch.autograd.grad(y.square().sum(), (x, a, b, bias))
half = room.lora_linear(x.detach().half(), weight.half(), a.detach(), b.detach(), 2)
result = {"y": y, "grads": list(grads), "half": half, "exact": room.reference(x, weight, a, b, 0.5, bias)}
""",
    "rms-norm": """
layer, part = room.RMSNorm(6), room.RMSNorm(6, partial=0.3)
x = torch.randn(3, 5, 6, requires_grad=True)
layer(part(x)).pow(3).sum().backward()
result = {"grads": [x.grad, layer.weight.grad, part.weight.grad], "half": room.rms_norm(x.half())}
""",
    "rms-norm.kernel": """
x, residual = torch.randn(2, 3, 5, 33, requires_grad=True)
weight = torch.randn(33)
y, h = room.rms_norm(x, weight, residual=residual)
grad, = torch.autograd.grad((y.square() + h).sum(), x)
result = {"y": y, "h": h, "grad": grad, "alone": room.rms_norm(x.detach(), weight)}
""",
    "roformer": """
x, weight = torch.randn(2, 3, 5, 8, requires_grad=True), torch.randn(24, 7)
cos, sin = room.rotary_tables(torch.tensor([0, 1, 5, 900, 100_000]), 8, base=1e5)
turned = [room.rotate(x, cos, sin, layout) for layout in ("half", "interleaved")]
grad, = torch.autograd.grad(sum(one.pow(3).sum() for one in turned), x)
linear = room.rotary_linear_attention(x, x.flip(-1), x, cos, sin)
result = {"turned": turned, "grad": grad, "rows": [room.to_half(weight, 3), room.to_interleaved(weight, 3)], "linear": linear,
          "bound": room.decay_bound(torch.arange(4), 8)}
""",
    "roformer.kernel": """
query, key = (torch.randn(2, heads, 9, 20, requires_grad=True) for heads in (5, 2))
angles = torch.rand(2, 9, 10)
turned = [each for layout in ("half", "interleaved") for each in room.rotary(query, key, angles.cos(), angles.sin(), layout)]
grads = torch.autograd.grad(sum(each.pow(3).sum() for each in turned), (query, key))
result = {"turned": turned, "grads": list(grads)}
""",
    "scaling-laws": """
config = room.DecoderConfig(vocab_size=11, n_ctx=6, n_layers=2, d_model=8, n_heads=2)
model, tokens = room.DecoderOnly(config), torch.randint(11, (2, 6))
model(tokens).square().sum().backward()
sizes = torch.logspace(3, 6, 7, dtype=torch.float64)
loss = (1e9 / sizes) ** 0.1 * (1 + 0.01 * torch.randn(7))
law, draws = room.fit_power_law(sizes, loss, floor=True), room.fit_power_law(sizes, loss, weights=room.resampled(range(7), 20))
curves = room.fit_curves(sizes.repeat(2), torch.arange(1, 15), loss.repeat(2) + 1 / torch.arange(1, 15))
joint = room.fit_joint(sizes.repeat(2), torch.arange(1, 15) * 1e5, loss.repeat(2) + 1 / torch.arange(1, 15))
result = {"grad": model.tokens.weight.grad, "counts": [list(row) for row in room.table_1(config).values()], "law": law(sizes),
          "interval": list(room.interval(draws.exponent)), "flops": room.training_flops(config, 10.0, context=True),
          "best": list(room.efficient_frontier(1e12, curves)), "needed": room.tokens_needed(1e5, joint),
          "over": room.overfitting(1e5, 1e6, joint), "batch": room.minimum_steps(10, 5, room.critical_batch_size(2.0)),
          "compute": room.minimum_compute(10, 5, 3), "early": list(room.versus_convergence(0.1, 0.7)), "N": room.parameters(config)}
""",
    "forward-pass": """
model = room.Llama(room.LlamaConfig(11, 8, 2, 2, 1, d_ff=12, d_head=4, tied=True)).eval()
ids = torch.randint(11, (1, 4))
logits = model(ids).detach()
result = {"logits": logits, "chances": room.next_token_probabilities(logits, top_k=3), "text": room.generate(model, ids, 3)}
""",
    "qkv-attention": """
query, key, value = torch.randn(3, 2, 5, 4)
allowed = room.causal_mask(5)
weights = room.attention_weights(query, key, allowed)
result = {"weights": weights, "out": room.scaled_dot_product_attention(query, key, value, allowed),
          "shared": room.grouped_attention(query[None], key[None, :1], value[None, :1], allowed)}
""",
}


# What is copied, with its module: every room that has public names, and every kernel file.
COPIED = {
    f"{slug}{part}": ".".join(path.relative_to(ROOT / "code").parts) + part
    for slug, path in rooms(ROOT).items()
    for part in ("", ".kernel")
    if ((path / "kernel.py").is_file() if part else path.name in copies(slug, ROOT))
}

# Starts with torch loaded and nothing else, and forks one child a task, so that each imports into a fresh process.
SERVER = """
import json, os, sys, traceback
import torch
torch.set_num_threads(1)

class Without:
    finders, blocked = sys.meta_path[:], ()
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in self.blocked:
            return None
        return next((spec for finder in self.finders if (spec := finder.find_spec(name, path, target))), None)

sys.meta_path[:] = [Without()]
for task in json.loads(sys.argv[1]):
    child = os.fork()
    if child:
        os.waitpid(child, 0)
        continue
    try:
        Without.blocked = task["blocked"]
        sys.path.insert(0, task["folder"])
        room = __import__(task["module"], fromlist=["*"])
        torch.manual_seed(0)
        names = {"room": room, "torch": torch}
        exec(task["code"], names)
        torch.save(names.get("result"), task["save"])
    except BaseException:
        open(task["save"] + ".error", "w").write(traceback.format_exc())
    finally:
        os._exit(0)
"""


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """Run every room's example with its copy, and import copy and original without triton; the results lie in the folder returned."""
    folder = tmp_path_factory.mktemp("copies")
    tasks = []
    for slug, module in COPIED.items():
        name = "copy_of_" + module.replace(".", "_")
        try:
            (folder / f"{name}.py").write_text(copy(slug, ROOT), encoding="utf-8")
        except ExportError as error:
            (folder / f"{slug}-copy.pt.error").write_text(str(error))
            continue
        variants = {
            "copy": (name, folder, ["rundoku"], EXAMPLES.get(slug, "")),
            "copy-without-triton": (name, folder, ["rundoku", "triton"], "result = sorted(room.__all__)"),
            "original-without-triton": (module, ROOT / "code", ["triton"], "result = sorted(room.__all__)"),
        }
        for variant, (imported, where, blocked, code) in variants.items():
            save = str(folder / f"{slug}-{variant}.pt")
            tasks.append({"module": imported, "folder": str(where), "blocked": blocked, "code": code, "save": save})
    done = subprocess.run(
        [sys.executable, "-I", "-c", SERVER, json.dumps(tasks)], cwd=folder, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    return folder


def same(a, b):
    """Return whether two results are equal, tensors bit for bit."""
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return (
            a.dtype == b.dtype and a.shape == b.shape and torch.equal(a.nan_to_num(), b.nan_to_num()) and torch.equal(a.isnan(), b.isnan())
        )
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[name], b[name]) for name in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


@pytest.mark.parametrize("slug", COPIED)
def test_the_copy_computes_what_the_room_does(slug, ran):
    assert slug in EXAMPLES, f"{slug} has no example: add one to EXAMPLES in {Path(__file__).relative_to(ROOT)}"
    error = ran / f"{slug}-copy.pt.error"
    assert not error.exists(), error.read_text()
    found = torch.load(ran / f"{slug}-copy.pt", weights_only=True)
    names = {"room": importlib.import_module(COPIED[slug]), "torch": torch}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    exec(EXAMPLES[slug], names)
    torch.set_num_threads(threads)
    assert found and names["result"], f"the example of room {slug} computes nothing"
    assert same(found, names["result"])


@pytest.mark.parametrize("slug", COPIED)
def test_the_copy_can_be_imported_wherever_the_room_can(slug, ran):
    errors = [(ran / f"{slug}-{side}-without-triton.pt.error") for side in ("copy", "original")]
    assert errors[0].exists() == errors[1].exists(), "".join(error.read_text() for error in errors if error.exists())


@pytest.mark.parametrize("slug", COPIED)
def test_the_copy_imports_nothing_else_and_nothing_unused(slug, ran):
    text = (ran / f"copy_of_{COPIED[slug].replace('.', '_')}.py").read_text(encoding="utf-8")
    tree = ast.parse(text)
    statements = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    modules = [getattr(node, "module", None) or alias.name for node in statements for alias in node.names]
    assert {module.partition(".")[0] for module in modules} <= {"torch", "triton", *sys.stdlib_module_names}
    words = re.findall(r"\w+", text)
    bound = [alias.asname or alias.name.partition(".")[0] for node in statements if node in tree.body for alias in node.names]
    assert not [name for name in bound if words.count(name) < 2 and name != "annotations"]
    assert len(set(bound)) == len({(ast.unparse(node), alias.name) for node in statements if node in tree.body for alias in node.names})


def test_the_comparison_can_fail():
    x = torch.tensor([1.0, float("nan")])
    assert same({"a": [x]}, {"a": [x.clone()]})
    assert not same({"a": [x]}, {"a": [x + 1e-7]}) and not same(x, x.double()) and not same([x], [x, x]) and not same({"a": 1}, {"b": 1})
