"""Layer Normalization (Ba, Kiros & Hinton, 2016, https://arxiv.org/abs/1607.06450).

Each training case is normalised over the units of a layer, with statistics of its own, so that nothing depends on the batch and
a recurrent network can be normalised at every step. The fused Triton kernels stand in ``kernel``, which needs triton.
"""

from rundoku.papers.layer_norm.norm import LayerNorm, layer_norm
from rundoku.papers.layer_norm.recurrent import GRU, LSTM, RecurrentConfig

__all__ = ["GRU", "LSTM", "LayerNorm", "RecurrentConfig", "layer_norm"]
