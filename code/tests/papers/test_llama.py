"""LLaMA against transformers' Llama with the same weights: values, gradients and generation, padded and cached; and its refusals."""

import pytest
import torch
from torch import nn

from rundoku.papers.grouped_query_attention import kv_cache_bytes
from rundoku.papers.llama import LLAMA_7B, LLAMA_13B, LLAMA_33B, LLAMA_65B, KVCache, Llama, LlamaConfig, from_transformers, generate

TINY = LlamaConfig(vocab_size=31, d_model=12, n_layers=2, n_heads=4, n_kv_heads=2, d_ff=20, d_head=6, max_length=24)
SIZES = [  # vocab_size, d_model, n_layers, n_heads, n_kv_heads, d_ff, d_head, norm_eps, rope_base, tied
    (31, 16, 1, 4, 4, 24, 4, 1e-6, 10_000.0, False),
    (53, 24, 2, 6, 2, 40, 4, 1e-5, 100_000.0, True),
    (29, 18, 3, 3, 1, 32, 10, 1e-2, 500.0, False),  # heads wider than d_model / n_heads
    (41, 8, 2, 8, 4, 12, 2, 1e-5, 10_000.0, True),
]


def transformers_twin(size, seed):
    """Return transformers' model of a size with large random weights, which show every difference."""
    transformers = pytest.importorskip("transformers", reason="transformers is in the test environment only")
    vocab_size, d_model, n_layers, n_heads, n_kv_heads, d_ff, d_head, eps, base, tied = size
    config = transformers.LlamaConfig(
        vocab_size=vocab_size, hidden_size=d_model, num_hidden_layers=n_layers, num_attention_heads=n_heads, head_dim=d_head,
        num_key_value_heads=n_kv_heads, intermediate_size=d_ff, rms_norm_eps=eps, tie_word_embeddings=tied, max_position_embeddings=64,
        rope_parameters={"rope_type": "default", "rope_theta": base}, bos_token_id=None, eos_token_id=None, attn_implementation="eager",
    )  # fmt: skip
    torch.manual_seed(seed)
    model = transformers.LlamaForCausalLM(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.4 + ("norm" in name))
    return model.eval()


def ours_of(theirs):
    """Return our model with copies of the other's weights."""
    state = {name: tensor.clone() for name, tensor in theirs.state_dict().items()}
    return from_transformers(theirs.config.to_dict(), state)


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = Llama(TINY)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.4)
    return model.eval()


def padded(lengths, vocab_size, seed=0):
    """Return ids [B, N] padded on the left to the longest of lengths, and their mask."""
    ids = torch.randint(vocab_size, (len(lengths), max(lengths)), generator=torch.Generator().manual_seed(seed))
    return ids, torch.arange(max(lengths)) >= max(lengths) - torch.tensor(lengths)[:, None]


def gradients(model, loss):
    """Return the gradient of every parameter by name, and None where there is none."""
    names = [name for name, _ in model.named_parameters()]
    return dict(zip(names, torch.autograd.grad(loss, list(model.parameters())), strict=True))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("lengths", [(9, 9), (7, 1, 4)])
def test_values_and_all_gradients_are_those_of_transformers(size, lengths):
    theirs = transformers_twin(size, seed=1)
    ours = ours_of(theirs)
    ids, mask = padded(lengths, size[0])
    logits = [ours(ids, None if mask.all() else mask), theirs(ids, attention_mask=mask.long()).logits]
    torch.testing.assert_close(logits[0][mask], logits[1][mask], rtol=1e-4, atol=2e-4)
    pull = torch.randn(logits[0][mask].shape)
    found, wanted = (gradients(model, (each[mask] * pull).sum()) for model, each in zip((ours, theirs), logits, strict=True))
    assert found.keys() <= set(by_their_names(ours)) and len(found) == len(wanted)
    for name, gradient in found.items():
        other = wanted[by_their_names(ours)[name]]
        assert other.abs().max() > 0
        torch.testing.assert_close(gradient, other, rtol=1e-3, atol=1e-4 * other.abs().max().item(), msg=name)


def by_their_names(model):
    """Return transformers' name for each of the model's parameters, written down apart from `checkpoint.NAMES`."""
    names = {"embedding.weight": "model.embed_tokens.weight", "norm.weight": "model.norm.weight", "head.weight": "lm_head.weight"}
    parts = {
        "attention_norm": "input_layernorm", "feed_forward_norm": "post_attention_layernorm",
        **{f"attention.{part}": f"self_attn.{part[0]}_proj" for part in ("query", "key", "value", "output")},
        **{f"feed_forward.{part}": f"mlp.{part}_proj" for part in ("gate", "up", "down")},
    }  # fmt: skip
    for layer in range(model.config.n_layers):
        names |= {f"blocks.{layer}.{ours}.weight": f"model.layers.{layer}.{theirs}.weight" for ours, theirs in parts.items()}
    return names


@pytest.mark.parametrize("size", SIZES[1:3])
def test_with_its_cache_it_is_transformers_with_its_own(size):
    theirs = transformers_twin(size, seed=2)
    ours = ours_of(theirs)
    ids, mask = padded((6, 3), size[0], seed=3)
    cache, past = KVCache(ours.config, batch_size=2, capacity=9), None
    with torch.no_grad():
        for step in range(4):  # a prompt of different lengths, then one token at a time
            new = ids if step == 0 else ids[:, step : step + 1]
            found = ours(new, mask if step == 0 else None, cache)
            whole = torch.cat([mask, mask.new_ones(2, step)], 1).long()
            wanted = theirs(
                new, attention_mask=whole, position_ids=(whole.cumsum(1) - 1).clamp(0)[:, -new.shape[1] :], past_key_values=past
            )
            past = wanted.past_key_values
            torch.testing.assert_close(found[:, -1], wanted.logits[:, -1], rtol=1e-4, atol=2e-4)
    assert cache.length == 9


@pytest.mark.parametrize("size", SIZES[1:])
def test_greedy_generation_is_that_of_transformers(size):
    theirs = transformers_twin(size, seed=5)
    ids, mask = padded((8, 3, 5), size[0])
    settings = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
    wanted = theirs.generate(ids, attention_mask=mask.long(), **settings)
    found = generate(ours_of(theirs), ids, 12, attn_mask=mask)
    assert found.shape == (3, 20) and torch.equal(found, wanted)
    end = wanted[1, 11].item()  # the second row's fourth new token ends it
    stopped = theirs.generate(ids, attention_mask=mask.long(), eos_token_id=end, **(settings | {"pad_token_id": end}))
    assert torch.equal(generate(ours_of(theirs), ids, 12, attn_mask=mask, eos=end), stopped)


@pytest.mark.parametrize("chunks", [(12,), (1,) * 12, (5, 7), (3, 1, 8)])
@pytest.mark.parametrize("lengths", [(12, 12), (12, 4)])
def test_in_any_chunks_through_the_cache_the_logits_are_the_same(model, chunks, lengths):
    ids, mask = padded(lengths, TINY.vocab_size)
    cache, found, done = KVCache(TINY, batch_size=2), [], 0
    with torch.no_grad():
        for chunk in chunks:
            found.append(model(ids[:, done : done + chunk], mask[:, : done + chunk], cache))
            done += chunk
        wanted = model(ids, mask)
    torch.testing.assert_close(torch.cat(found, 1)[mask], wanted[mask], rtol=1e-4, atol=1e-4)
    assert torch.equal(cache.real[:, :12], mask)


def test_padding_on_the_left_changes_nothing(model):
    ids, mask = padded((5, 11), TINY.vocab_size)
    with torch.no_grad():
        torch.testing.assert_close(model(ids, mask)[:1, 6:], model(ids[:1, 6:]), rtol=1e-4, atol=1e-4)
        other = ids.clone()
        other[0, :6] = (other[0, :6] + 1) % TINY.vocab_size
        assert torch.equal(model(other, mask)[0, 6:], model(ids, mask)[0, 6:])
    logits = model(ids, mask)
    assert logits.isfinite().all()  # padding has nothing to attend to
    logits.square().sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_no_position_sees_a_later_token(model):
    ids = torch.arange(10)[None]
    with torch.no_grad():
        before = model(ids)
        for position in range(10):
            changed = ids.clone()
            changed[0, position] = 30
            moved = (model(changed) - before).abs().amax(-1)[0] > 0
            assert not moved[:position].any() and moved[position:].all()


def test_a_tied_head_is_one_parameter_however_the_model_was_made():
    theirs = transformers_twin(SIZES[1], seed=4)
    for model in (ours_of(theirs), Llama(ours_of(theirs).config)):
        assert model.head.weight is model.embedding.weight
        assert sum(parameter.numel() for parameter in model.parameters()) == sum(parameter.numel() for parameter in theirs.parameters())


def test_the_papers_sizes_are_those_of_the_released_weights():
    counts = []
    for config in (LLAMA_7B, LLAMA_13B, LLAMA_33B, LLAMA_65B):
        with torch.device("meta"):
            counts.append(sum(parameter.numel() for parameter in Llama(config).parameters()))
    assert counts == [6_738_415_616, 13_015_864_320, 32_528_943_616, 65_285_660_672]
    assert [LLAMA_7B.d_ff, LLAMA_13B.d_ff, LLAMA_33B.d_ff, LLAMA_65B.d_ff] == [11_008, 13_824, 17_920, 22_016]


def test_the_cache_has_the_bytes_of_the_formula():
    cache = KVCache(TINY, batch_size=3, capacity=7, dtype=torch.float16)
    assert cache.bytes == kv_cache_bytes(TINY.n_layers, TINY.n_kv_heads, TINY.d_head, 7, batch=3) == cache.states.untyped_storage().nbytes()


def test_it_starts_near_a_uniform_guess():
    torch.manual_seed(0)
    ids = torch.randint(31, (8, 20))
    loss = nn.functional.cross_entropy(Llama(TINY)(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
    assert abs(loss.item() - torch.tensor(31.0).log().item()) < 0.05


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (torch.tensor([[0, 31]]), "ids: values from 0 to 31; expected 0 to 30"),
        (torch.tensor([[-1, 3]]), "ids: values from -1 to 3"),
        (torch.zeros(1, 25, dtype=torch.long), r"ids: 0 \+ 25 tokens; expected at most max_length = 24"),
        (torch.zeros(3, dtype=torch.long), r"ids: got torch.int64 of shape \(3,\)"),
        (torch.zeros(1, 0, dtype=torch.long), "with N at least 1"),
        (torch.zeros(1, 3), "ids: got torch.float32"),
    ],
)
def test_ids_that_do_not_fit_are_refused(model, ids, message):
    with pytest.raises(ValueError, match=message):
        model(ids)


def test_a_cache_or_mask_that_does_not_fit_is_refused(model):
    ids = torch.zeros(2, 3, dtype=torch.long)
    with pytest.raises(ValueError, match="cache: it holds 1 sequences; expected 2"):
        model(ids, cache=KVCache(TINY))
    with pytest.raises(ValueError, match="cache: no gradient passes through it"):
        model(ids, cache=KVCache(TINY, 2))
    with torch.no_grad():
        cache = KVCache(TINY, 2, capacity=4)
        model(ids, cache=cache)
        with pytest.raises(ValueError, match=r"cache: 3 \+ 3 tokens; expected at most its capacity of 4"):
            model(ids, cache=cache)
        with pytest.raises(ValueError, match=r"attn_mask: got torch.bool of shape \(2, 1\); expected bool of shape \(2, 4\)"):
            model(ids[:, :1], torch.ones(2, 1, dtype=torch.bool), cache)
        with pytest.raises(ValueError, match=r"attn_mask: got torch.float32"):
            model(ids, torch.ones(2, 3))
        with pytest.raises(ValueError, match="cache: it has 1 layers; expected 2"):
            model(ids, cache=KVCache(LlamaConfig(31, 12, 1, 4, 2, 20, 6), 2))
        with pytest.raises(ValueError, match=r"cache: it holds torch.float64 on cpu; expected torch.float32 on cpu, as the keys are"):
            model(ids, cache=KVCache(TINY, 2, dtype=torch.float64))
    for arguments, message in (((TINY, 0), "batch_size: got 0"), ((TINY, 1, 25), "capacity: got 25; expected 1 to max_length = 24")):
        with pytest.raises(ValueError, match=message):
            KVCache(*arguments)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"n_kv_heads": 3}, "n_kv_heads: 3 does not divide n_heads = 4"),
        ({"d_head": 5}, "d_head: got 5; expected an even number"),
        ({"n_layers": 0}, "n_layers: got 0; expected at least 1"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(sizes, message):
    with pytest.raises(ValueError, match=message):
        LlamaConfig(**({"vocab_size": 31, "d_model": 12, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "d_ff": 20, "d_head": 6} | sizes))
