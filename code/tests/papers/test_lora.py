"""LoRA against peft, against the formula, and where it must refuse."""

import copy
from pathlib import Path
from typing import Literal

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from rundoku.papers.lora import (
    LoRAConfig,
    LoRAEmbedding,
    LoRALinear,
    amplification,
    apply_lora,
    combine_adapters,
    load_lora_state_dict,
    lora_layers,
    lora_state_dict,
    merge_adapters,
    subspace_similarity,
    unmerge_adapters,
    use_adapters,
)

VOCABULARY, WIDTH, HIDDEN = 37, 12, 20


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, WIDTH, padding_idx=0)
        self.block = nn.ModuleDict({"query": nn.Linear(WIDTH, HIDDEN), "value": nn.Linear(HIDDEN, WIDTH, bias=False)})
        self.head = nn.Linear(WIDTH, VOCABULARY)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.tokens(tokens)
        return self.head(x + self.block["value"](torch.tanh(self.block["query"](x))))


TARGETS = ["tokens", "query", "value"]


@pytest.fixture
def model() -> Model:
    torch.manual_seed(0)
    return Model().double()


@pytest.fixture
def tokens() -> torch.Tensor:
    return torch.randint(0, VOCABULARY, (4, 9), generator=torch.Generator().manual_seed(1))


def randomize(model: nn.Module, seed: int) -> None:
    """Give every adapter random values: a fresh one adds nothing, and would hide mistakes."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in lora_layers(model).values():
            for pairs in (layer.lora_A, layer.lora_B):
                for parameter in pairs.values():
                    parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype) / 2)


def peft_twin(model: Model, adapters: dict[str, LoRAConfig]) -> nn.Module:
    """Return peft's model over a copy of the base, with the same adapters and the same A and B."""
    peft = pytest.importorskip("peft", reason="peft is in the test environment only")
    base = copy.deepcopy(model)
    for name, layer in lora_layers(model).items():
        parent, _, last = name.rpartition(".")
        setattr(base.get_submodule(parent), last, copy.deepcopy(layer.base))
    twin = None
    for adapter, config in adapters.items():
        settings = peft.LoraConfig(r=config.rank, lora_alpha=config.alpha, lora_dropout=config.dropout, target_modules=TARGETS)
        twin = peft.get_peft_model(base, settings, adapter) if twin is None else (twin.add_adapter(adapter, settings), twin)[1]
    assert twin is not None
    for adapter in adapters:
        names = {f"base_model.model.{key}": tensor for key, tensor in lora_state_dict(model, adapter).items()}
        result = peft.set_peft_model_state_dict(twin, names, adapter)
        assert not result.unexpected_keys
    return twin


CONFIGS = [
    LoRAConfig(rank=1, alpha=1),
    LoRAConfig(rank=3, alpha=8),
    LoRAConfig(rank=8, alpha=2.5, init="gaussian"),
    LoRAConfig(rank=40, alpha=16),  # wider than the layer itself
]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: f"r{config.rank}-a{config.alpha}")
def test_values_and_gradients_are_pefts(model: Model, tokens: torch.Tensor, config: LoRAConfig) -> None:
    apply_lora(model, TARGETS, config)
    randomize(model, seed=config.rank)
    twin = peft_twin(model, {"default": config})
    ours, theirs = model(tokens), twin(tokens)
    torch.testing.assert_close(ours, theirs)
    weights = torch.randn(ours.shape, generator=torch.Generator().manual_seed(2), dtype=ours.dtype)
    (ours * weights).sum().backward()
    (theirs * weights).sum().backward()
    reference = dict(twin.named_parameters())
    for name, layer in lora_layers(model).items():
        for part, pairs in (("A", layer.lora_A), ("B", layer.lora_B)):
            key = f"lora_embedding_{part}.default" if isinstance(layer, LoRAEmbedding) else f"lora_{part}.default.weight"
            gradient = reference[f"base_model.model.{name}.{key}"].grad
            assert gradient is not None and gradient.abs().max() > 1e-3
            torch.testing.assert_close(pairs["default"].grad, gradient)


def test_merged_weights_are_pefts(model: Model, tokens: torch.Tensor) -> None:
    config = LoRAConfig(rank=3, alpha=8)
    apply_lora(model, TARGETS, config)
    randomize(model, seed=3)
    twin = peft_twin(model, {"default": config}).merge_and_unload()
    merge_adapters(model)
    for name, layer in lora_layers(model).items():
        torch.testing.assert_close(layer.base.weight, twin.get_submodule(name).weight)
    torch.testing.assert_close(model(tokens), twin(tokens))


def test_several_adapters_are_pefts(model: Model, tokens: torch.Tensor) -> None:
    adapters = {"prose": LoRAConfig(rank=2, alpha=4), "verse": LoRAConfig(rank=5, alpha=5)}
    for name, config in adapters.items():
        apply_lora(model, TARGETS, config, name)
    randomize(model, seed=4)
    twin = peft_twin(model, adapters)
    for name in adapters:
        use_adapters(model, {name: 1.0})
        twin.set_adapter(name)
        torch.testing.assert_close(model(tokens), twin(tokens))
    use_adapters(model, dict.fromkeys(adapters, 1.0))
    twin.base_model.set_adapter(list(adapters))
    torch.testing.assert_close(model(tokens), twin(tokens))
    twin.add_weighted_adapter(list(adapters), [0.5, -2.0], "both", combination_type="cat")
    twin.set_adapter("both")
    combine_adapters(model, {"prose": 0.5, "verse": -2.0}, into="both")
    torch.testing.assert_close(model(tokens), twin(tokens))


def test_the_start_is_the_base_model(model: Model, tokens: torch.Tensor) -> None:
    before = model(tokens)
    apply_lora(model, TARGETS, LoRAConfig(rank=4))
    assert torch.equal(model(tokens), before)


@pytest.mark.parametrize("init", ["kaiming", "gaussian"])
def test_how_a_and_b_start(init: Literal["kaiming", "gaussian"]) -> None:
    torch.manual_seed(5)
    layer = LoRALinear(nn.Linear(4096, 8), LoRAConfig(rank=16, init=init))
    a, b = layer.lora_A["default"], layer.lora_B["default"]
    expected = 1 / 16 if init == "gaussian" else 1 / (4096 * 3) ** 0.5  # U(±1/√I) has σ = 1/√(3I)
    assert a.std().item() == pytest.approx(expected, rel=0.02) and not b.any()


def test_an_unseen_token_keeps_its_vector(tokens: torch.Tensor) -> None:
    torch.manual_seed(6)
    layer = LoRAEmbedding(nn.Embedding(VOCABULARY + 1, WIDTH, padding_idx=0), LoRAConfig(rank=4))
    optimizer = torch.optim.AdamW([parameter for parameter in layer.parameters() if parameter.requires_grad], lr=0.1)
    for _ in range(5):
        optimizer.zero_grad()
        layer(tokens).square().sum().backward()
        optimizer.step()
    changed = layer.delta().abs().sum(dim=1) > 0
    seen = torch.zeros(VOCABULARY + 1, dtype=torch.bool)
    seen[tokens.unique()] = True
    seen[0] = False  # padding
    assert torch.equal(changed, seen)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_merged_is_unmerged(model: Model, tokens: torch.Tensor, dtype: torch.dtype) -> None:
    model.to(dtype)
    apply_lora(model, TARGETS, LoRAConfig(rank=4, alpha=9))
    apply_lora(model, TARGETS, LoRAConfig(rank=2, alpha=3), "second")
    randomize(model, seed=7)
    use_adapters(model, {"default": 0.7, "second": -1.5})
    weights = {name: layer.base.weight.clone() for name, layer in lora_layers(model).items()}
    unmerged = model(tokens)
    merge_adapters(model)
    tolerance = {torch.float64: 1e-13, torch.float32: 1e-5}[dtype]
    torch.testing.assert_close(model(tokens), unmerged, rtol=tolerance, atol=tolerance)
    assert all((layer.base.weight - weights[name]).abs().max() > 0.1 for name, layer in lora_layers(model).items())
    unmerge_adapters(model)
    for name, layer in lora_layers(model).items():
        torch.testing.assert_close(layer.base.weight, weights[name], rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(model(tokens), unmerged, rtol=tolerance, atol=tolerance)


def test_merging_rounds_once_in_half_precision() -> None:
    torch.manual_seed(8)
    layer = LoRALinear(nn.Linear(32, 32, bias=False, dtype=torch.bfloat16), LoRAConfig(rank=4))
    assert layer.lora_A["default"].dtype == torch.float32
    randomize(layer, seed=8)
    exact = layer.base.weight.float() + layer.delta()
    layer.merge()
    assert torch.equal(layer.base.weight, exact.bfloat16())


def test_merging_adds_no_work(model: Model, tokens: torch.Tensor) -> None:
    def flops() -> int:
        with FlopCounterMode(display=False) as counter:
            model(tokens)
        return counter.get_total_flops()

    base = flops()
    apply_lora(model, TARGETS, LoRAConfig(rank=4))
    beside = flops()
    merge_adapters(model)
    assert flops() == base < beside


def test_only_adapters_train(model: Model, tokens: torch.Tensor) -> None:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    apply_lora(model, ["query", "value"], LoRAConfig(rank=2))
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {f"block.{name}.lora_{part}.default" for name in ("query", "value") for part in "AB"}
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.5)
    for _ in range(3):
        optimizer.zero_grad()
        model(tokens).square().mean().backward()
        optimizer.step()
    after = {name.replace(".base.", "."): tensor for name, tensor in model.state_dict().items()}
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert all(layer.delta().abs().max() > 0 for layer in lora_layers(model).values())
    state = optimizer.state_dict()["state"]
    assert sum(entry["exp_avg"].numel() for entry in state.values()) == 2 * 2 * (WIDTH + HIDDEN)


def test_inactive_adapters_do_not_train(model: Model) -> None:
    for name in ("first", "second"):
        apply_lora(model, TARGETS, LoRAConfig(rank=2), name)
    trained = {name.rpartition(".")[2] for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {"second"}


def test_dropout_is_on_the_adapters_input_only(model: Model) -> None:
    torch.manual_seed(9)
    layer = LoRALinear(nn.Linear(64, 5).double(), LoRAConfig(rank=2, dropout=0.5))
    randomize(layer, seed=9)
    x = torch.randn(400, 64, dtype=torch.float64)
    layer.train()
    torch.manual_seed(10)
    found = layer(x)
    torch.manual_seed(10)
    kept = nn.functional.dropout(x, 0.5)
    torch.testing.assert_close(found, layer.base(x) + kept @ layer.delta().T)
    layer.eval()
    torch.testing.assert_close(layer(x), layer.base(x) + x @ layer.delta().T)


def test_state_dict_round_trip(model: Model, tokens: torch.Tensor, tmp_path: Path) -> None:
    other = copy.deepcopy(model)
    config = LoRAConfig(rank=3, alpha=5)
    apply_lora(model, TARGETS, config)
    randomize(model, seed=11)
    save_file(lora_state_dict(model), tmp_path / "adapter.safetensors")
    apply_lora(other, TARGETS, config, "loaded")
    load_lora_state_dict(other, load_file(tmp_path / "adapter.safetensors"), "loaded")
    assert torch.equal(other(tokens), model(tokens))
    assert set(lora_state_dict(model)) == {
        *(f"block.{name}.lora_{part}.weight" for name in ("query", "value") for part in "AB"),
        *(f"tokens.lora_embedding_{part}" for part in "AB"),
    }


def test_a_module_in_two_places_stays_one() -> None:
    linear = nn.Linear(6, 6)
    model = nn.ModuleDict({"first": linear, "second": linear})
    apply_lora(model, ["first", "second"], LoRAConfig(rank=1))
    assert isinstance(model["first"], LoRALinear) and model["first"] is model["second"]


def test_train_and_eval_are_kept(model: Model) -> None:
    assert not any(module.training for module in apply_lora(model.eval(), TARGETS, LoRAConfig(dropout=0.5)).modules())


def test_subspace_similarity() -> None:
    torch.manual_seed(12)
    whole = torch.linalg.qr(torch.randn(40, 40, dtype=torch.float64)).Q
    strengths = torch.arange(10, 0, -1, dtype=torch.float64)[:, None]
    first, second = strengths[:4] * whole[:4], strengths * whole[:10]
    torch.testing.assert_close(subspace_similarity(first, second), torch.ones(4, 10, dtype=torch.float64))
    torch.testing.assert_close(subspace_similarity(first, whole[20:30]), torch.zeros(4, 10, dtype=torch.float64))
    turned = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64)).Q @ first  # another basis of the same rows
    assert subspace_similarity(turned, first)[3, 3].item() == pytest.approx(1)
    random = torch.stack([subspace_similarity(torch.randn(3, 40), torch.randn(8, 40)) for _ in range(300)]).mean(0)
    i, j = torch.arange(1, 4)[:, None], torch.arange(1, 9)
    torch.testing.assert_close(random, torch.maximum(i, j).double() / 40, rtol=0.2, atol=0)


def test_amplification() -> None:
    weight = torch.diag(torch.tensor([9.0, 4.0, 1.0, 0.5]))
    delta = torch.diag(torch.tensor([0.0, 0.0, 6.0, 0.0]))
    found = amplification(weight, delta, rank=1)
    assert (found.delta, found.through_delta, found.through_weight) == pytest.approx((6.0, 1.0, 9.0))
    assert found.factor == pytest.approx(6.0) and found.weight == pytest.approx(weight.norm().item())
