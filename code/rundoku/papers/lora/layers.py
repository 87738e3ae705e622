"""A linear layer and an embedding with low-rank updates beside their frozen weight (§4.1, Eq. 3).

Axes: B batch, N length, I input width, O output width, V vocabulary, r rank.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class LoRAConfig:
    """How one adapter is shaped and started; it is the same for every layer that the adapter touches."""

    rank: int = 8  # r, the width between A and B
    alpha: float = 8.0  # the update is multiplied by alpha / rank; the paper sets alpha to the first rank tried and leaves it (§4.1)
    dropout: float = 0.0  # on the adapter's input only; an embedding has no use for it
    init: Literal["kaiming", "gaussian"] = "kaiming"  # of A: as nn.Linear starts (the authors' code), or N(0, 1/r²); B starts at zero

    def __post_init__(self) -> None:
        if isinstance(self.rank, bool) or not isinstance(self.rank, int) or self.rank < 1:
            raise ValueError(f"rank: {self.rank!r}; expected a whole number, 1 or more")
        if not (math.isfinite(self.alpha) and self.alpha > 0):
            raise ValueError(f"alpha: {self.alpha!r}; expected a number above 0")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout: {self.dropout!r}; expected a probability of at least 0 and below 1")
        if self.init not in ("kaiming", "gaussian"):
            raise ValueError(f"init: {self.init!r}; expected 'kaiming' or 'gaussian'")

    @property
    def scale(self) -> float:
        """The factor α/r of the update."""
        return self.alpha / self.rank


class _LoRALayer(nn.Module):
    """What both layers share: named pairs (A, B) beside a frozen base, the blend in use, and merging."""

    base: nn.Linear | nn.Embedding

    def __init__(self, base: nn.Linear | nn.Embedding):
        super().__init__()
        self.base = base.requires_grad_(False)
        self.lora_A = nn.ParameterDict()  # name -> [r, I]
        self.lora_B = nn.ParameterDict()  # name -> [O, r]
        self.configs: dict[str, LoRAConfig] = {}
        self.active: dict[str, float] = {}  # name -> weight in the blend
        self.merged: dict[str, float] = {}  # the blend that stands in the base weight; empty when unmerged

    def add_adapter(self, name: str, config: LoRAConfig) -> None:
        """Add an untrained adapter, which changes nothing until it is trained, and make it the active one.

        Raises ValueError when the name is taken or cannot stand in a state dict, or when the layer is merged.
        """
        if name in self.configs:
            raise ValueError(f"name: the layer already has an adapter {name!r}; expected a new name")
        if not name or "." in name:
            raise ValueError(f"name: {name!r}; expected a name without dots, since it stands in the names of a state dict")
        self._refuse_merged("add an adapter")
        weight = self.base.weight
        outputs, inputs = self._shape()
        # At least float32, whatever the base is stored in: an optimizer's small steps vanish in half precision.
        dtype = torch.promote_types(weight.dtype, torch.float32)
        a = torch.empty(config.rank, inputs, dtype=dtype, device=weight.device)  # [r, I]
        b = torch.empty(outputs, config.rank, dtype=dtype, device=weight.device)  # [O, r]
        self._start(a, b, config)
        self.lora_A[name], self.lora_B[name] = nn.Parameter(a), nn.Parameter(b)
        self.configs[name] = config
        self.use({name: 1.0})

    def use(self, blend: Mapping[str, float]) -> None:
        """Add from now on the weighted sum of these adapters; an empty mapping leaves the base alone.

        Raises ValueError for an unknown adapter, or when the layer is merged.
        """
        self._known(*blend)
        self._refuse_merged("use other adapters")
        self.active = {name: float(weight) for name, weight in blend.items()}

    def delta(self, blend: Mapping[str, float] | None = None) -> Tensor:
        """Return ΔW = Σ wᵢ·(α/r)ᵢ·BᵢAᵢ of a blend (the active one unless given), in the shape of the base weight."""
        blend = self.active if blend is None else blend
        self._known(*blend)
        outputs, inputs = self._shape()
        dtype = torch.promote_types(self.base.weight.dtype, torch.float32)
        total = torch.zeros(outputs, inputs, dtype=dtype, device=self.base.weight.device)
        for name, weight in blend.items():
            total = total + weight * self.configs[name].scale * (self.lora_B[name] @ self.lora_A[name])
        return self._as_weight(total)

    @torch.no_grad()
    def merge(self) -> None:
        """Add the active blend to the base weight, so that a forward pass costs what the base alone costs (§4.1).

        The sum is taken in float32 or better and rounded once. Raises ValueError when the layer is merged already.
        """
        self._refuse_merged("merge again")
        if not self.active:
            raise ValueError("merge: no adapter is active; expected a call of use(...) before")
        self.base.weight.copy_(self.base.weight + self.delta())  # copy_ keeps the tensor, so an optimizer or a tied layer sees it
        self.merged = dict(self.active)

    @torch.no_grad()
    def unmerge(self) -> None:
        """Subtract what `merge` added: W₀ up to rounding, not bit for bit. Raises ValueError when the layer is not merged."""
        if not self.merged:
            raise ValueError("unmerge: the layer is not merged")
        self.base.weight.copy_(self.base.weight - self.delta(self.merged))
        self.merged = {}

    def _known(self, *names: str) -> None:
        for name in names:
            if name not in self.configs:
                raise ValueError(f"adapter: {name!r} is unknown; expected one of {', '.join(map(repr, self.configs)) or 'none so far'}")

    def _refuse_merged(self, what: str) -> None:
        if self.merged:
            raise ValueError(f"cannot {what}: {', '.join(self.merged)} is merged into the base weight; expected a call of unmerge() before")

    def _shape(self) -> tuple[int, int]:
        raise NotImplementedError

    def _start(self, a: Tensor, b: Tensor, config: LoRAConfig) -> None:
        raise NotImplementedError

    def _as_weight(self, product: Tensor) -> Tensor:
        raise NotImplementedError

    def extra_repr(self) -> str:
        """Return the adapters and what is in use, for print(model)."""
        parts = [f"{name}: rank {config.rank}, alpha {config.alpha:g}" for name, config in self.configs.items()]
        return "; ".join([*parts, f"{'merged' if self.merged else 'active'}: {', '.join(self.merged or self.active) or 'none'}"])


class LoRALinear(_LoRALayer):
    """A frozen linear layer with trained low-rank updates: h = W₀x + (α/r)·BAx (Eq. 3)."""

    base: nn.Linear

    def __init__(self, base: nn.Linear, config: LoRAConfig | None = None, adapter: str = "default"):
        super().__init__(base)
        if config is not None:
            self.add_adapter(adapter, config)

    # --8<-- [start:forward]
    def forward(self, x: Tensor) -> Tensor:
        """Return [..., O] from x [..., I]."""
        h = self.base(x)  # W₀x + bias: [..., O]
        if self.merged:
            return h  # ΔW already stands in W₀
        for name, weight in self.active.items():
            config, a, b = self.configs[name], self.lora_A[name], self.lora_B[name]
            kept = F.dropout(x, config.dropout, self.training).to(a.dtype)
            thin = F.linear(kept, a)  # Ax: [..., r]
            update = F.linear(thin, b)  # BAx: [..., O]; BA is never formed
            h = h + (weight * config.scale * update).to(h.dtype)  # times α/r
        return h

    # --8<-- [end:forward]

    def _shape(self) -> tuple[int, int]:
        return self.base.out_features, self.base.in_features

    # --8<-- [start:start]
    def _start(self, a: Tensor, b: Tensor, config: LoRAConfig) -> None:
        if config.init == "kaiming":
            nn.init.kaiming_uniform_(a, a=math.sqrt(5))  # U(±1/√I), as nn.Linear starts
        else:
            nn.init.normal_(a, std=1 / config.rank)
        nn.init.zeros_(b)  # BA = 0: training starts from the base model

    # --8<-- [end:start]

    def _as_weight(self, product: Tensor) -> Tensor:
        return product


class LoRAEmbedding(_LoRALayer):
    """A frozen embedding with trained low-rank updates: the vector of token t gains (α/r)·B·(column t of A).

    A starts at zero and B from N(0, 1), the other way round than in a linear layer and as in the authors' code: the column of a
    token that training never meets (or of `padding_idx`) then stays zero, so such a token keeps its vector exactly.
    """

    base: nn.Embedding

    def __init__(self, base: nn.Embedding, config: LoRAConfig | None = None, adapter: str = "default"):
        if base.max_norm is not None:
            raise ValueError(f"base: max_norm = {base.max_norm}; expected None, since renormalising rows undoes the sum W₀ + ΔW")
        super().__init__(base)
        if config is not None:
            self.add_adapter(adapter, config)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return [..., C] from whole numbers tokens [...]."""
        h = self.base(tokens)  # [..., C]
        if self.merged:
            return h
        for name, weight in self.active.items():
            columns = self.lora_A[name].T  # [V, r]
            thin = F.embedding(tokens, columns, self.base.padding_idx, scale_grad_by_freq=self.base.scale_grad_by_freq)  # [..., r]
            h = h + (weight * self.configs[name].scale * F.linear(thin, self.lora_B[name])).to(h.dtype)
        return h

    def _shape(self) -> tuple[int, int]:
        return self.base.embedding_dim, self.base.num_embeddings

    def _start(self, a: Tensor, b: Tensor, config: LoRAConfig) -> None:
        nn.init.zeros_(a)
        nn.init.normal_(b)

    def _as_weight(self, product: Tensor) -> Tensor:
        return product.T  # the table is [V, C]
