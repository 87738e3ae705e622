"""What the experiments adapt: a small causal language model, and GPT-3 without its storage.

Axes: B batch, N length, C model width, V vocabulary (here 128, one token for each ASCII character).
"""

import base64
import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rundoku.papers.attention_is_all_you_need import (
    Encoder,
    FeedForward,
    MultiHeadAttention,
    TransformerConfig,
    causal_mask,
    sinusoidal_positions,
)

VOCABULARY = 128


class CausalLM(nn.Module):
    """Scores for every next character: embedding and positions, encoder layers that see only the past, a linear head."""

    def __init__(self, d_model: int, n_layers: int, n_heads: int):
        super().__init__()
        config = TransformerConfig(VOCABULARY, n_layers, d_model, d_ff=4 * d_model, n_heads=n_heads, dropout=0.0)
        self.tokens = nn.Embedding(VOCABULARY, d_model)
        self.encoder = Encoder(config)
        self.head = nn.Linear(d_model, VOCABULARY)
        nn.init.normal_(self.tokens.weight, std=d_model**-0.5)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return logits [B, N, V] for tokens [B, N]."""
        length, width = tokens.shape[-1], self.tokens.embedding_dim
        x = self.tokens(tokens) * math.sqrt(width) + sinusoidal_positions(length, width, tokens.device)  # [B, N, C]
        return self.head(self.encoder(x, causal_mask(length, tokens.device)))


def gpt3() -> nn.Module:
    """Return the weights of GPT-3 175B as modules on the meta device: real shapes, no storage (Brown et al. 2020, Table 2.1)."""
    d_model, n_layers, n_heads, vocabulary, context = 12_288, 96, 96, 50_257, 2048
    with torch.device("meta"):
        model = nn.ModuleDict({"tokens": nn.Embedding(vocabulary, d_model), "positions": nn.Embedding(context, d_model)})
        model["layers"] = nn.ModuleList(
            nn.ModuleDict(
                {
                    "attention": MultiHeadAttention(d_model, n_heads, bias=True),
                    "feed_forward": FeedForward(d_model, 4 * d_model),
                    "norms": nn.ModuleList(nn.LayerNorm(d_model) for _ in range(2)),
                }
            )
            for _ in range(n_layers)
        )
        model["norm"] = nn.LayerNorm(d_model)
    return model


def encode(text: str) -> Tensor:
    """Return a text's ASCII codes [N]; whatever is not ASCII becomes a question mark."""
    return torch.frombuffer(bytearray(text.encode("ascii", "replace")), dtype=torch.uint8)


def batch(text: Tensor, size: int, length: int, generator: torch.Generator) -> Tensor:
    """Return random stretches of an encoded text, one token longer than the model sees: [size, length + 1]."""
    starts = torch.randint(len(text) - length, (size, 1), generator=generator)
    return text[starts + torch.arange(length + 1)].long()


def loss(model: nn.Module, tokens: Tensor) -> Tensor:
    """Return the mean cross-entropy of the next character in nats, for tokens [B, N + 1]."""
    return F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())


@torch.no_grad()
def evaluate(model: nn.Module, text: Tensor, length: int, count: int = 64) -> float:
    """Return the loss over `count` evenly spaced stretches of an encoded text: the same ones for every model."""
    starts = torch.linspace(0, len(text) - length - 1, count).long()[:, None]
    model.eval()
    return sum(loss(model, text[part + torch.arange(length + 1)].long()).item() for part in starts.split(16)) / math.ceil(count / 16)


def train(
    model: nn.Module, text: Tensor, *, steps: int, size: int, length: int, rate: float, seed: int, weight_decay: float = 0.0
) -> list[float]:
    """Train what requires a gradient with AdamW, a tenth of the steps warming up and a linear fall after; return the loss of each step."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(trainable(model), lr=rate, weight_decay=weight_decay, betas=(0.9, 0.98))
    warm = max(1, steps // 10)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min((step + 1) / warm, (steps - step) / (steps - warm)))
    losses = []
    model.train()
    for _ in range(steps):
        found = loss(model, batch(text, size, length, generator))
        optimizer.zero_grad()
        found.backward()
        nn.utils.clip_grad_norm_(trainable(model), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(found.item())
    return losses


def trainable(model: nn.Module) -> list[nn.Parameter]:
    """Return the parameters that require a gradient."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def count(parameters: Iterable[Tensor]) -> int:
    """Return how many numbers the tensors hold."""
    return sum(parameter.numel() for parameter in parameters)


def training_bytes(model: nn.Module) -> dict[str, int]:
    """Return the bytes of a model's weights, of the gradients of what trains, and of the moments that AdamW itself allocates for it."""
    for parameter in (parameters := trainable(model)):
        parameter.grad = torch.zeros_like(parameter)
    optimizer = torch.optim.AdamW(parameters, lr=0.0, foreach=False)
    optimizer.step()
    found: dict[str, list[Tensor]] = {
        "weights": list(model.parameters()),
        "gradients": [parameter.grad for parameter in parameters if parameter.grad is not None],
        "moments": [entry[name] for entry in optimizer.state.values() for name in ("exp_avg", "exp_avg_sq")],
    }
    return {part: sum(tensor.numel() * tensor.element_size() for tensor in tensors) for part, tensors in found.items()}


def pack(state: Mapping[str, Tensor]) -> dict[str, dict]:
    """Return float32 tensors as text, exactly, so that an experiment's result can hold them."""
    return {
        name: {"shape": list(tensor.shape), "data": base64.b64encode(tensor.contiguous().numpy().tobytes()).decode()}
        for name, tensor in state.items()
    }


def unpack(packed: Mapping[str, Mapping]) -> dict[str, Tensor]:
    """Return what `pack` was given."""
    return {
        name: torch.frombuffer(bytearray(base64.b64decode(entry["data"])), dtype=torch.float32).reshape(entry["shape"])
        for name, entry in packed.items()
    }
