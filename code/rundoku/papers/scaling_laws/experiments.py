"""The sweep behind the note on scaling laws: one stored run for each model, data set and learning rate.

Nothing here fits or draws, and nothing that does is imported, so that only a change of the model or of its training repeats a run.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from rundoku.data.shakespeare import plays
from rundoku.papers.scaling_laws.counts import DecoderConfig
from rundoku.papers.scaling_laws.model import DecoderOnly
from rundoku.show import experiment

CONTEXT, BATCH, PASSAGE = 32, 8, 2048  # tokens seen at once, sequences a step, characters that are shuffled together


def text() -> tuple[Tensor, Tensor, int]:
    """Return Shakespeare's plays as characters' indices, training and test, and the vocabulary's size.

    Passages are shuffled before the last tenth is set aside, so that any first part of the training text is a sample of the whole.
    """
    codes = torch.frombuffer(bytearray(plays().encode("latin-1")), dtype=torch.uint8).long()
    index = torch.bincount(codes, minlength=256).clamp(max=1).cumsum(0) - 1  # only characters that occur count
    tokens = index[codes]
    passages = tokens[: len(tokens) // PASSAGE * PASSAGE].view(-1, PASSAGE)
    order = torch.randperm(len(passages), generator=torch.Generator().manual_seed(0))
    cut = len(passages) * 9 // 10
    return passages[order[:cut]].flatten(), passages[order[cut:]].flatten(), int(index[-1]) + 1


# --8<-- [start:run]
@experiment
def run(*, layers: int, width: int, rate: float, steps: int, data: int = 0, seed: int = 0, points: int = 11) -> dict:
    """Train one model on the first ``data`` characters (0: all) and return its losses in nats a character.

    The rate warms up over a tenth of the steps and falls to zero along a cosine, as in §2.2. ``at`` are the ``points`` steps at which
    the test loss was measured, always on the same sequences.
    """
    train, test, vocabulary = text()
    train = train[:data] if data else train
    torch.manual_seed(seed)
    model = DecoderOnly(DecoderConfig(vocabulary, CONTEXT, layers, width, max(1, width // 16)))
    optimizer = torch.optim.Adam(model.parameters(), lr=rate, betas=(0.9, 0.98), fused=True)
    draw = torch.Generator().manual_seed(seed)  # the same batches for every model
    window = torch.arange(CONTEXT + 1)
    places = torch.linspace(0, len(test) - CONTEXT - 1, 256).long()[:, None] + window
    marks = sorted({max(1, round(steps * 2 ** (-i / 2))) for i in range(points)})
    losses, training, recent = [], [], []
    for step in range(1, steps + 1):
        share = step / steps
        optimizer.param_groups[0]["lr"] = rate * min(share / 0.1, 0.5 + 0.5 * math.cos(math.pi * max(0.0, share - 0.1) / 0.9))
        batch = train[torch.randint(len(train) - CONTEXT, (BATCH, 1), generator=draw) + window]
        loss = F.cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        recent.append(loss.item())
        if step in marks:
            with torch.no_grad():
                losses.append(F.cross_entropy(model(test[places][:, :-1]).flatten(0, 1), test[places][:, 1:].flatten()).item())
            training.append(sum(recent) / len(recent))
            recent = []
    return {"at": marks, "loss": losses, "training": training}
    # --8<-- [end:run]


@experiment
def operations(*, layers: int, width: int, contexts: tuple[int, ...], vocab_size: int = 83) -> dict:
    """Return the operations a token of forward and backward pass that torch counts on the modules, without the output's, by context."""
    counted = []
    for context in contexts:
        with torch.device("meta"), FlopCounterMode(display=False) as counter:
            model = DecoderOnly(DecoderConfig(vocab_size, context, layers, width, max(1, width // 16)))
            model(torch.zeros(1, context, dtype=torch.long)).sum().backward()
        counted.append(counter.get_total_flops() / context - 3 * 2 * width * vocab_size)
    return {"flops": counted}
