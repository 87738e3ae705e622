"""Cut cross-entropy in plain torch: F.cross_entropy's values and gradients in every option, and what the filter leaves out."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from rundoku.papers.cut_cross_entropy import linear_cross_entropy, threshold, vocabulary_order


def make(n, c, v, *, dtype=torch.float64, seed=0, ignored=0.2, bias=True):
    generator = torch.Generator().manual_seed(seed)
    hidden, weight, offset = (torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((n, c), (v, c), (v,)))
    targets = torch.randint(v, (n,), generator=generator)
    targets[torch.rand(n, generator=generator) < ignored] = -100
    return hidden.to(dtype), weight.to(dtype), targets, offset.to(dtype) if bias else None


def theirs(hidden, weight, targets, bias=None, *, softcap=0.0, **settings):
    logits = F.linear(hidden, weight, bias)
    return F.cross_entropy(softcap * torch.tanh(logits / softcap) if softcap else logits, targets, **settings)


def both(inputs, **options):
    """Return outputs and gradients, ours and torch's; unreduced losses are summed with weights of their own."""
    hidden, weight, targets, bias = inputs
    found = []
    for way in (linear_cross_entropy, theirs):
        own = [None if one is None else one.clone().requires_grad_() for one in (hidden, weight, bias)]
        blocks = options if way is linear_cross_entropy else {k: v for k, v in options.items() if not k.startswith(("block", "filter"))}
        loss = way(own[0], own[1], targets, own[2], **blocks)
        (loss * torch.linspace(0.5, 2, loss.numel(), dtype=loss.dtype).view(loss.shape)).sum().backward()
        found.append([loss.detach(), *(one.grad for one in own if one is not None)])
    return found


@settings(max_examples=40, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 9), st.integers(1, 7), st.integers(1, 23)),
    softcap=st.sampled_from([0.0, 0.5, 30.0]),
    reduction=st.sampled_from(["mean", "sum", "none"]),
    blocks=st.tuples(st.integers(1, 10), st.integers(1, 30)),
    bias=st.booleans(),
    eps=st.sampled_from([None, 0.0, 1e-300]),
    seed=st.integers(0, 1000),
)
def test_it_is_the_cross_entropy_of_the_logits(shape, softcap, reduction, blocks, bias, eps, seed):
    inputs = make(*shape, seed=seed, bias=bias)
    ours, torchs = both(
        inputs, softcap=softcap, reduction=reduction, block_tokens=blocks[0], block_vocab=blocks[1], filter_eps=eps
    )  # fmt: skip
    torch.testing.assert_close(ours, torchs, equal_nan=True)


def test_all_ignored_gives_what_torch_gives():
    for reduction in ("mean", "sum", "none"):
        ours, torchs = both(make(4, 3, 5, ignored=2.0), reduction=reduction)
        torch.testing.assert_close(ours, torchs, equal_nan=True)
    assert linear_cross_entropy(*make(4, 3, 5, ignored=2.0)).isnan()


def test_no_tokens():
    hidden, weight, targets, bias = make(0, 3, 5)
    assert linear_cross_entropy(hidden, weight, targets, bias, reduction="sum") == 0
    assert linear_cross_entropy(hidden, weight, targets, bias).isnan()
    assert linear_cross_entropy(hidden, weight, targets, bias, reduction="none").shape == (0,)


def test_shift_is_the_next_token_and_the_lse_is_torchs():
    hidden, weight, _, bias = make(24, 5, 11)
    targets = torch.randint(11, (2, 12))
    targets[0, 3] = -100
    loss, lse = linear_cross_entropy(hidden.view(2, 12, 5), weight, targets, bias, shift=2, reduction="none", return_lse=True)
    logits = F.linear(hidden, weight, bias).view(2, 12, 11)[:, :-2]
    torch.testing.assert_close(loss, F.cross_entropy(logits.transpose(1, 2), targets[:, 2:], reduction="none"))
    torch.testing.assert_close(lse, logits.logsumexp(-1).masked_fill(targets[:, 2:] == -100, 0.0))
    mean = linear_cross_entropy(hidden.view(2, 12, 5), weight, targets, bias, shift=2)
    torch.testing.assert_close(mean, F.cross_entropy(logits.transpose(1, 2), targets[:, 2:]))


def test_the_gradient_through_the_lse():
    hidden, weight, targets, bias = (one.requires_grad_() if one.is_floating_point() else one for one in make(7, 4, 9))
    loss, lse = linear_cross_entropy(hidden, weight, targets, bias, return_lse=True, softcap=2.0)
    ours = torch.autograd.grad(loss + lse.square().sum(), (hidden, weight, bias))
    z = 2 * torch.tanh(F.linear(hidden, weight, bias) / 2)
    total = F.cross_entropy(z, targets) + (z.logsumexp(-1) * (targets != -100)).square().sum()
    torch.testing.assert_close(ours, torch.autograd.grad(total, (hidden, weight, bias)))


def test_gradcheck():
    hidden, weight, targets, bias = (one.requires_grad_() if one.is_floating_point() else one for one in make(4, 3, 5))
    for softcap in (0.0, 1.5):
        assert torch.autograd.gradcheck(
            lambda h, w, b, cap=softcap: linear_cross_entropy(h, w, targets, b, softcap=cap, return_lse=True, block_vocab=2),
            (hidden, weight, bias),
        )


def test_half_precision_is_computed_in_float32():
    hidden, weight, targets, bias = make(30, 40, 50, dtype=torch.bfloat16)
    loss = linear_cross_entropy(hidden, weight, targets, bias)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, theirs(hidden.float(), weight.float(), targets, bias.float()))


def test_nothing_of_the_size_of_the_logits_is_kept():
    hidden, weight, targets, _ = make(64, 4, 512, dtype=torch.float32)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x):
        linear_cross_entropy(hidden.requires_grad_(), weight.requires_grad_(), targets).backward()
    assert max(kept) == weight.numel() < 64 * 512


def test_the_threshold_is_the_papers_in_bfloat16():
    assert threshold("auto", torch.bfloat16) == 2**-12
    assert [threshold(eps, torch.float32) for eps in (None, 0, 0.25)] == [0.0, 0.0, 0.25]


def test_the_order_is_that_of_the_average_logit():
    hidden, weight, _, bias = make(20, 6, 40)
    for offset in (None, bias):
        average = F.linear(hidden, weight, offset).mean(0)
        assert torch.equal(vocabulary_order(hidden, weight, offset), average.argsort(descending=True))


def test_the_filter_leaves_out_whole_blocks_below_the_threshold():
    # two blocks of two words; the second has probabilities of 1e-4 and no target, the first has all the rest
    logits = torch.log(torch.tensor([[0.5, 0.4998, 1e-4, 1e-4]], dtype=torch.float64))
    hidden, weight, targets = torch.ones(1, 1, dtype=torch.float64), logits.T.clone(), torch.tensor([0])

    def gradients(**filtering):
        own = [one.clone().requires_grad_() for one in (hidden, weight)]
        return torch.autograd.grad(linear_cross_entropy(*own, targets, block_vocab=2, **filtering), own)

    exact = (logits.exp() - F.one_hot(targets, 4)).T
    torch.testing.assert_close(gradients()[1], exact)
    filtered = gradients(filter_eps=2**-12)
    assert torch.equal(filtered[1][2:], torch.zeros(2, 1, dtype=torch.float64))
    torch.testing.assert_close(filtered[1][:2], exact[:2])
    torch.testing.assert_close(filtered[0], exact[:2].T @ weight[:2])
    torch.testing.assert_close(gradients(filter_eps=1e-5)[1], exact)
    partly = gradients(filter_eps=2**-12, filter_weight=False)
    torch.testing.assert_close(partly[1], exact)
    torch.testing.assert_close(partly[0], filtered[0])


@pytest.mark.parametrize("eps", [None, 0.9])
def test_what_is_not_finite_is_never_left_out(eps):
    hidden, weight = torch.ones(3, 4), torch.ones(5, 4, requires_grad=True)
    hidden[1, 2] = float("nan")
    hidden.requires_grad_()
    loss = linear_cross_entropy(hidden, weight, torch.tensor([0, 1, 2]), filter_eps=eps)
    assert loss.isnan()
    grad_hidden, grad_weight = torch.autograd.grad(loss, (hidden, weight))
    assert grad_hidden.isnan().all(-1)[1]
    assert grad_weight.isnan().all()


HIDDEN, WEIGHT, TARGETS = torch.ones(3, 4), torch.ones(5, 4), torch.zeros(3, dtype=torch.int64)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden": torch.ones(4)}, r"hidden: got torch.float32 of shape \(4,\), expected floating point \[\.\.\., C\]"),
        ({"hidden": torch.ones(3, 0)}, r"hidden: got .*\(3, 0\)"),
        ({"hidden": torch.ones(3, 4, dtype=torch.int64)}, "hidden: got torch.int64"),
        ({"weight": torch.ones(5, 3)}, r"weight: got .*\(5, 3\), expected torch.float32 of shape \[V, 4\]"),
        ({"weight": torch.ones(0, 4)}, r"weight: got .*\(0, 4\)"),
        ({"weight": torch.ones(5, 4).double()}, "weight: got torch.float64"),
        ({"targets": torch.zeros(2, dtype=torch.int64)}, r"targets: got .*\(2,\), expected .*\(3,\)"),
        ({"targets": torch.zeros(3)}, "targets: got torch.float32"),
        ({"targets": torch.tensor([0, 5, 1])}, r"targets: got 5, expected -100 \(ignored\) or a token from 0 to 4"),
        ({"targets": torch.tensor([0, -1, 1])}, "targets: got -1"),
        ({"bias": torch.ones(4)}, r"bias: got .*\(4,\), expected floating point of shape \(5,\)"),
        ({"softcap": -1.0}, "softcap: got -1.0"),
        ({"softcap": float("nan")}, "softcap: got nan"),
        ({"reduction": "average"}, "reduction: got 'average'"),
        ({"ignore_index": None}, "ignore_index: got None"),
        ({"shift": 4}, "shift: got 4"),
        ({"shift": -1}, "shift: got -1"),
        ({"filter_eps": "off"}, "filter_eps: got 'off'"),
        ({"filter_eps": 1.0}, "filter_eps: got 1.0"),
        ({"filter_eps": True}, "filter_eps: got True"),
        ({"block_vocab": 0}, "block_tokens, block_vocab: got 1024 and 0"),
    ],
)
def test_what_it_refuses(change, message):
    with pytest.raises(ValueError, match=message):
        linear_cross_entropy(**{"hidden": HIDDEN, "weight": WEIGHT, "targets": TARGETS, **change})
