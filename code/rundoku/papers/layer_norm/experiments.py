"""The runs behind the note on layer normalisation."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import nn
from torch.nn import functional as F

from rundoku.data.digits import digits
from rundoku.data.shakespeare import plays
from rundoku.papers.layer_norm.norm import LayerNorm, layer_norm
from rundoku.papers.layer_norm.recurrent import LSTM, RecurrentConfig
from rundoku.show import experiment

Norm = Literal["none", "layer", "batch"]
METHODS = ("Batch norm", "Weight norm", "Layer norm")  # Table 1's rows and columns, in its order
CHANGES = (
    "Weight matrix re-scaling", "Weight matrix re-centering", "Weight vector re-scaling",
    "Dataset re-scaling", "Dataset re-centering", "Single case re-scaling",
)  # fmt: skip


# --8<-- [start:invariances]
def normalised(method: str, weight: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Return the summed inputs W·x, normalised by one of METHODS; weight: [C, D], x: [B, D]; returns [B, C]."""
    summed = x @ weight.T
    if method == "Batch norm":  # over the cases, for each unit
        return F.batch_norm(summed, None, None, training=True, eps=1e-12)
    if method == "Layer norm":  # over the units, for each case
        return layer_norm(summed, eps=1e-12)
    return summed / weight.norm(dim=1)  # weight norm: μ = 0 and σ = ‖w‖


def changed(change: str, weight: torch.Tensor, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return weight and data after one of CHANGES."""
    one, shift = torch.arange(len(weight)) == 3, torch.linspace(-1, 2, x.shape[1], dtype=x.dtype)
    case = torch.arange(len(x)) == 5
    return {
        "Weight matrix re-scaling": (2.5 * weight, x),
        "Weight matrix re-centering": (weight + shift, x),  # the same shift for every unit's incoming weights
        "Weight vector re-scaling": (torch.where(one[:, None], 2.5 * weight, weight), x),
        "Dataset re-scaling": (weight, 2.5 * x),
        "Dataset re-centering": (weight, x + shift),
        "Single case re-scaling": (weight, torch.where(case[:, None], 2.5 * x, x)),
    }[change]
    # --8<-- [end:invariances]


@experiment
def invariances(*, seed: int) -> dict:
    """Return how far each change of weights or data moves each method's output, as a share of the output's largest value (Table 1)."""
    torch.manual_seed(seed)
    x, weight = digits()[0][:200].double(), torch.randn(48, 64, dtype=torch.float64)
    moved = {}
    for method in METHODS:
        before = normalised(method, weight, x)
        after = {change: normalised(method, *changed(change, weight, x)) for change in CHANGES}
        moved[method] = {change: (output - before).abs().max() / before.abs().max() for change, output in after.items()}
    return moved


class BatchNormLSTM(LSTM):
    """The recurrent batch normalisation that the paper compares with (Cooijmans et al., 1603.09025): statistics of each step's own."""

    def __init__(self, config: RecurrentConfig, length: int) -> None:
        super().__init__(config)
        width = config.d_model
        self.steps = [_StepNorm(each, length) for each in (4 * width, 4 * width, width)]
        self.norm_hidden, self.norm_input, self.norm_cell = self.steps

    def forward(self, x, state=None):
        """Return what ``LSTM.forward`` returns, for sequences of at most ``length`` steps."""
        for norm in self.steps:
            norm.time = 0  # the next step's place in its statistics
        return super().forward(x, state)


class _StepNorm(nn.Module):
    """torch's batch normalisation, with one gain and bias for all steps and running statistics for each."""

    mean: torch.Tensor
    variance: torch.Tensor

    def __init__(self, width: int, length: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.full((width,), 0.1))  # 0.1: the choice of Cooijmans et al.
        self.bias = nn.Parameter(torch.zeros(width))
        self.register_buffer("mean", torch.zeros(length, width))
        self.register_buffer("variance", torch.ones(length, width))
        self.time = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.dim() == 3:  # the inputs of all steps at once
            return torch.stack([self.forward(step) for step in x.unbind(1)], 1)
        at, self.time = self.time, self.time + 1
        return F.batch_norm(x, self.mean[at], self.variance[at], self.gain, self.bias, self.training)


class CharacterModel(nn.Module):
    """Predicts the next character with one recurrent layer."""

    def __init__(self, vocabulary: int, norm: Norm, d_model: int, length: int) -> None:
        super().__init__()
        config = RecurrentConfig(d_input=32, d_model=d_model, norm=norm == "layer")
        self.embedding = nn.Embedding(vocabulary, 32)
        self.cell = BatchNormLSTM(config, length) if norm == "batch" else LSTM(config)
        self.output = nn.Linear(d_model, vocabulary)

    def forward(self, characters: torch.Tensor) -> torch.Tensor:
        """Return the logits [B, N, V] for characters [B, N]."""
        return self.output(self.cell(self.embedding(characters))[0])


@experiment
def character_model(*, norm: Norm, batch_size: int = 16, d_model: int = 96, length: int = 40, steps: int = 300, seed: int) -> dict:
    """Train on Shakespeare's plays and return the validation loss in nats a character every 20 steps; the last tenth is held out."""
    text = plays().lower()[:1_000_000]
    letters = sorted(set(text))
    train, held_out = torch.tensor([letters.index(letter) for letter in text]).split([900_000, 100_000])
    window = torch.arange(length + 1)
    validation = held_out[(torch.arange(100) * 900)[:, None] + window]  # [100, N + 1]
    torch.manual_seed(seed)
    model = CharacterModel(len(letters), norm, d_model, length)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    draw = torch.Generator().manual_seed(seed)  # the same batches for every norm
    losses = []
    for step in range(1, steps + 1):
        characters = train[torch.randint(len(train) - length, (batch_size,), generator=draw)[:, None] + window]
        loss = F.cross_entropy(model(characters[:, :-1]).flatten(0, 1), characters[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 20 == 0:
            model.eval()
            with torch.no_grad():
                losses.append(F.cross_entropy(model(validation[:, :-1]).flatten(0, 1), validation[:, 1:].flatten()))
            model.train()
    return {"steps": range(20, steps + 1, 20), "loss": torch.stack(losses)}


NORMS: dict[str, Callable[[int], nn.Module]] = {"none": lambda width: nn.Identity(), "layer": LayerNorm, "batch": nn.BatchNorm1d}


@experiment
def digit_classifier(*, norm: Norm, batch_size: int, epochs: int = 8, seeds: tuple[int, ...]) -> dict:
    """Train a two-layer classifier of digits and return training loss and test error by epoch, means over seeds (Fig. 6)."""
    images, labels = digits()
    (images, test_images), (labels, test_labels) = images.split([1297, 500]), labels.split([1297, 500])
    losses, errors = torch.zeros(2, len(seeds), epochs)
    for i, seed in enumerate(seeds):
        torch.manual_seed(seed)
        hidden = [part for width in (64, 100) for part in (nn.Linear(width, 100), NORMS[norm](100), nn.ReLU())]
        model = nn.Sequential(*hidden, nn.Linear(100, 10))
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        for epoch in range(epochs):
            model.train()
            for batch in torch.randperm(len(images))[:1280].split(batch_size):  # whole batches: of one case there is no variance
                loss = F.cross_entropy(model(images[batch]), labels[batch])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                losses[i, epoch] += loss.item() * len(batch) / 1280
            model.eval()
            with torch.no_grad():
                errors[i, epoch] = (model(test_images).argmax(1) != test_labels).float().mean()
    return {"loss": losses.mean(0), "error": errors.mean(0)}


@experiment
def train_test_gap(*, batch_size: int, seed: int) -> dict:
    """Return how far a trained layer's output for one case moves between training and test mode, by method, as a share of its size."""
    torch.manual_seed(seed)
    summed, gap = nn.Linear(64, 100)(digits()[0]).detach(), {}
    for name, norm in (("layer", LayerNorm(100)), ("batch", nn.BatchNorm1d(100))):
        for batch in summed[torch.randperm(len(summed))[: len(summed) // batch_size * batch_size]].split(batch_size):
            training = norm(batch)
        gap[name] = (norm.eval()(batch) - training).abs().max() / training.abs().max()
    return gap


@experiment
def epsilon(*, scales: tuple[float, ...], eps: float = 1e-5) -> dict:
    """Return the deviation of a normalised row by the scale of its input, with eps below the root and added to σ."""
    torch.manual_seed(0)
    x = torch.randn(256, 512, dtype=torch.float64)
    centred, sigma = x - x.mean(-1, keepdim=True), x.std(-1, correction=0, keepdim=True)
    below = [layer_norm(scale * x, eps=eps).std(correction=0) for scale in scales]
    added = [(scale * centred / (scale * sigma + eps)).std(correction=0) for scale in scales]
    return {"below": torch.stack(below), "added": torch.stack(added)}


@experiment
def unbiased(*, widths: tuple[int, ...]) -> dict:
    """Return by how much dividing the squares by C − 1 instead of C shrinks the output, by width C."""
    x = {width: torch.randn(64, width, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) for width in widths}
    shrink = [1 - ((row - row.mean(-1, keepdim=True)) / row.std(-1, keepdim=True)).std(-1, correction=0).mean() for row in x.values()]
    return {"shrink": torch.stack(shrink)}


@experiment
def one_pass(*, means: tuple[float, ...]) -> dict:
    """Return the largest error of normalised float32 rows of deviation 1 by their mean, with the variance as E[x²] − μ² and as here.

    Rows whose variance comes out negative are counted apart; so is what squares in float16 make of rows of deviation 300.
    """
    torch.manual_seed(0)
    x = torch.randn(500, 512)
    naive, ours, lost = [], [], []
    for mean in means:
        row = x + mean
        exact = layer_norm(row.double(), eps=1e-5)
        centred, variance = row - row.mean(-1, keepdim=True), row.square().mean(-1, keepdim=True) - row.mean(-1, keepdim=True).square()
        good = (variance > 0).squeeze(-1)
        normal = centred * torch.rsqrt(variance + 1e-5)
        naive.append((normal - exact)[good].abs().max())
        ours.append((layer_norm(row) - exact).abs().max())
        lost.append((~good).double().mean())
    half = (300 * x).half()
    overflow = half * torch.rsqrt(half.square().mean(-1, keepdim=True) + 1e-5)
    return {"naive": torch.stack(naive), "ours": torch.stack(ours), "lost": torch.stack(lost), "zero": (overflow == 0).double().mean()}


@experiment
def leak(*, seed: int) -> dict:
    """Return how far the first position's output moves when only the last position's input changes, by the axes normalised over."""
    torch.manual_seed(seed)
    x = torch.randn(2, 16, 64)  # [B, N, C]
    later = x.clone()
    later[:, -1] += 3.0
    ways = {"C": layer_norm, "N and C": lambda row: F.layer_norm(row, (16, 64)), "N": lambda row: layer_norm(row.mT).mT}
    return {axes: (way(later) - way(x))[:, 0].abs().max() for axes, way in ways.items()}


@experiment
def swapped_initialisation(*, seed: int) -> dict:
    """Return how much an LSTM's output depends on its input, and the gradient that reaches its weights, by the gains' first value."""
    found = {}
    for name, gain, bias in (("one", 1.0, 0.0), ("zero", 0.0, 1.0)):
        torch.manual_seed(seed)
        model, x = LSTM(RecurrentConfig(8, 32)), torch.randn(64, 10, 8)
        for part in model.modules():
            if isinstance(part, LayerNorm) and part.bias is not None:
                nn.init.constant_(part.weight, gain)
                nn.init.constant_(part.bias, bias)
        output = model(x)[0][:, -1]
        (gradient,) = torch.autograd.grad(output.square().sum(), model.input.weight)
        found[name] = {"spread": output.std(0).max(), "gradient": gradient.abs().max()}
    return found
