"""What the paper's tables count, taken from modules and graphs: parameters (Table 3), operations, chains and paths of a layer (Table 1).

Axes: N positions, C model width, K kernel width, R window.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import count

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.graph import Node
from torch.utils.flop_counter import FlopCounterMode

from rundoku.papers.attention_is_all_you_need.attention import MultiHeadAttention, scaled_dot_product_attention
from rundoku.papers.attention_is_all_you_need.config import BASE, BIG, TransformerConfig
from rundoku.papers.attention_is_all_you_need.model import Transformer

Layer = Callable[[Tensor], Tensor]  # [N, C] -> [N, C]

# Every row of Table 3 that states a size, with that size in millions of parameters.
TABLE_3 = {
    "base": (BASE, 65),
    "(B) d_k = 16": (replace(BASE, d_k=16), 58),
    "(B) d_k = 32": (replace(BASE, d_k=32), 60),
    "(C) N = 2": (replace(BASE, n_layers=2), 36),
    "(C) N = 4": (replace(BASE, n_layers=4), 50),
    "(C) N = 8": (replace(BASE, n_layers=8), 80),
    "(C) d_model = 256": (replace(BASE, d_model=256, d_k=32, d_v=32), 28),
    "(C) d_model = 1024": (replace(BASE, d_model=1024, d_k=128, d_v=128), 168),
    "(C) d_ff = 1024": (replace(BASE, d_ff=1024), 53),
    "(C) d_ff = 4096": (replace(BASE, d_ff=4096), 90),
    "big": (BIG, 213),
}


def on_meta(config: TransformerConfig) -> Transformer:
    """Return a Transformer that has shapes but no memory."""
    with torch.device("meta"):
        return Transformer(config)


def parameters(config: TransformerConfig) -> int:
    """Return how many parameters a Transformer of this configuration has."""
    return sum(parameter.numel() for parameter in on_meta(config).parameters())


def vocabulary_for(config: TransformerConfig, total: float) -> float:
    """Return the vocabulary size at which a Transformer of these sizes would have `total` parameters."""
    return (total - parameters(replace(config, vocab_size=0))) / config.d_model


def flops(run: Callable[[], object]) -> int:
    """Return the floating-point operations of a run, two for a multiplication with its addition, as torch counts them."""
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def recurrent(x: Tensor, into: Tensor, onward: Tensor) -> Tensor:
    """Return the states h_t = tanh(x_t W + h_{t-1} U), [N, C] -> [N, C]."""
    state, states = x.new_zeros(1, onward.shape[0]), []
    for row in x.split(1):
        state = (row @ into + state @ onward).tanh()
        states.append(state)
    return torch.cat(states)


def lstm(x: Tensor, into: Tensor, onward: Tensor) -> Tensor:
    """Return the states of an LSTM without biases, [N, C] -> [N, C]; its weights are [C, 4·C]."""
    state, cell, states = x.new_zeros(1, onward.shape[0]), x.new_zeros(1, onward.shape[0]), []
    for row in x.split(1):
        enter, keep, new, leave = (row @ into + state @ onward).chunk(4, dim=-1)
        cell = keep.sigmoid() * cell + enter.sigmoid() * new.tanh()
        state = leave.sigmoid() * cell.tanh()
        states.append(state)
    return torch.cat(states)


def convolution(x: Tensor, filters: Tensor, dilation: int = 1) -> Tensor:
    """Return a convolution over positions that looks back only, [N, C] -> [N, C]; filters [C, C, K]."""
    reach = (filters.shape[-1] - 1) * dilation
    return F.conv1d(F.pad(x.T[None], (reach, 0)), filters, dilation=dilation)[0].T


def local_attention(x: Tensor, window: int) -> Tensor:
    """Return attention of every position to itself and the `window` - 1 before it, [N, C] -> [N, C], computing no other score."""
    near = F.pad(x, (0, 0, window - 1, 0)).unfold(0, window, 1).transpose(1, 2)  # [N, R, C]
    steps = torch.arange(window, device=x.device)
    exists = torch.arange(len(x), device=x.device)[:, None] + steps >= window - 1  # [N, R]: not before the first position
    return scaled_dot_product_attention(x[:, None], near, near, exists[:, None])[:, 0]


def layers(width: int, kernel: int = 3, window: int = 9, heads: int = 8, device: str = "meta") -> dict[str, Layer]:
    """Return one layer of each kind in Table 1, and two that the table leaves out: whole multi-head attention, and an LSTM."""

    def weight(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, device=device) / math.sqrt(width)

    w, u, gates, gates_onward = weight(width, width), weight(width, width), weight(width, 4 * width), weight(width, 4 * width)
    filters = weight(width, width, kernel)
    whole = MultiHeadAttention(width, heads).to(device, torch.float64)
    return {
        "self-attention": lambda x: scaled_dot_product_attention(x, x, x),
        "recurrent": lambda x: recurrent(x, w, u),
        "convolutional": lambda x: convolution(x, filters),
        "restricted self-attention": lambda x: local_attention(x, window),
        "multi-head attention, whole": lambda x: whole(x[None], x[None], x[None])[0],
        "LSTM": lambda x: lstm(x, gates, gates_onward),
    }


def layer_flops(kind: str, length: int, width: int, kernel: int = 3, window: int = 9) -> int:
    """Return the floating-point operations of one layer of a kind of `layers` on `length` positions."""
    x = torch.empty(length, width, dtype=torch.float64, device="meta")
    return flops(lambda: layers(width, kernel, window)[kind](x))


PRODUCTS = ("MmBackward", "BmmBackward", "AddmmBackward", "ConvolutionBackward")


def longest_chain(output: Tensor) -> int:
    """Return how many matrix products or convolutions must run one after the other to get `output`, from its autograd graph."""
    if output.grad_fn is None:
        raise ValueError("output: a tensor without an autograd graph; expected one that was computed with gradients")
    depth: dict[Node, int] = {}
    stack: list[Node] = [output.grad_fn]
    while stack:
        node = stack[-1]
        waiting = [before for before, _ in node.next_functions if before is not None and before not in depth]
        if waiting:
            stack += waiting
            continue
        inside = max((depth[before] for before, _ in node.next_functions if before is not None), default=0)
        depth[stack.pop()] = inside + node.name().startswith(PRODUCTS)
    return depth[output.grad_fn]


def path_length(step: Callable[[Tensor, int], Tensor], length: int, width: int) -> int:
    """Return how often `step` must be repeated until the last position depends on the first; it is told how often it ran before."""
    x = torch.randn(length, width, dtype=torch.float64, requires_grad=True)
    y = x
    for done in count():
        y = step(y, done)
        if torch.autograd.grad(y[-1].sum(), x, retain_graph=True)[0][0].any():
            return done + 1
    raise AssertionError("unreachable: count() never ends")


def path_lengths(length: int, width: int, kernel: int, window: int) -> dict[str, int]:
    """Return for each kind of layer how many steps a signal needs from the first position to the last."""
    filters, onward = torch.ones(width, width, kernel, dtype=torch.float64) / (width * kernel), torch.eye(width, dtype=torch.float64)
    whole = MultiHeadAttention(width, 1).double()
    return {
        "self-attention": path_length(lambda x, done: scaled_dot_product_attention(x, x, x), length, width),
        # One step in time, taken at all positions at once: a state learns from the state to its left.
        "recurrent": path_length(lambda x, done: (x + F.pad(x, (0, 0, 1, 0))[:-1] @ onward).tanh(), length, width),
        "convolutional": path_length(lambda x, done: convolution(x, filters, kernel**done), length, width),  # dilated, as in Table 1
        "convolutional, contiguous": path_length(lambda x, done: convolution(x, filters), length, width),
        "restricted self-attention": path_length(lambda x, done: local_attention(x, window), length, width),
        "multi-head attention, whole": path_length(lambda x, done: whole(x[None], x[None], x[None])[0], length, width),
    }


def training_flops(config: TransformerConfig, steps: int, tokens: int, length: int) -> int:
    """Return the operations of a whole training: forward and backward on `tokens` source and as many target tokens a step."""
    model = on_meta(config)
    batch = torch.empty(tokens // length, length, dtype=torch.long, device="meta")
    return steps * flops(lambda: model(batch, batch).sum().backward())
