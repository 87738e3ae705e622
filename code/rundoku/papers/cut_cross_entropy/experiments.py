"""The runs behind the figures and numbers of the note."""

import torch

from rundoku.papers.cut_cross_entropy import CutCrossEntropy, CutCrossEntropyConfig
from rundoku.show import experiment


@experiment
def response(*, lengths: tuple[int, ...], seed: int) -> dict:
    """Return the root mean square of the output at each length of the input."""
    torch.manual_seed(seed)
    model = CutCrossEntropy(CutCrossEntropyConfig())
    outputs = [model(torch.randn(2, length, model.config.d_model)) for length in lengths]
    return {"rms": [output.square().mean().sqrt().item() for output in outputs]}
