"""Where LoRA must refuse, and must have changed nothing when it does."""

import pytest
import torch
from torch import nn

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

WIDTH = 12
TARGETS = ["tokens", "query", "value"]


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(37, WIDTH)
        self.block = nn.ModuleDict({"query": nn.Linear(WIDTH, 20), "value": nn.Linear(20, WIDTH)})
        self.head = nn.Linear(WIDTH, 37)


@pytest.fixture
def model() -> Model:
    torch.manual_seed(0)
    return Model()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": 0}, "rank: 0; expected a whole number, 1 or more"),
        ({"rank": 2.0}, "rank: 2.0"),
        ({"rank": True}, "rank: True"),
        ({"alpha": 0}, "alpha: 0"),
        ({"alpha": float("nan")}, "alpha: nan"),
        ({"dropout": 1.0}, "dropout: 1.0"),
        ({"init": "zeros"}, "init: 'zeros'; expected 'kaiming' or 'gaussian'"),
    ],
)
def test_bad_configurations(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LoRAConfig(**settings)


def test_bad_targets_change_nothing(model: Model) -> None:
    cases = {
        "'key' matches no module; what can be adapted here ends in head, query, tokens, value": ["query", "key"],
        "'block' matches block, a ModuleDict": ["query", "block"],
        "no name given": [],
        "expected a list of names, as \\['query'\\]": "query",
        "'uery' matches no module": ["uery"],
    }
    for message, targets in cases.items():
        with pytest.raises(ValueError, match=message):
            apply_lora(model, targets, LoRAConfig())
    assert all(parameter.requires_grad for parameter in model.parameters())
    with pytest.raises(ValueError, match="no LoRA layer"):
        lora_layers(model)
    with pytest.raises(ValueError, match=r"max_norm = 1.0"):
        LoRAEmbedding(nn.Embedding(3, 3, max_norm=1.0))


def test_refusals(model: Model) -> None:
    apply_lora(model, TARGETS, LoRAConfig(rank=2))
    layer = lora_layers(model)["block.query"]
    with pytest.raises(ValueError, match="unmerge: no layer is merged"):
        unmerge_adapters(model)
    with pytest.raises(ValueError, match="unmerge: the layer is not merged"):
        layer.unmerge()
    with pytest.raises(ValueError, match="already has an adapter 'default'"):
        apply_lora(model, ["query"], LoRAConfig())
    with pytest.raises(ValueError, match="without dots"):
        layer.add_adapter("a.b", LoRAConfig())
    with pytest.raises(ValueError, match="'french' is unknown; expected one of 'default'"):
        use_adapters(model, {"french": 1.0})
    with pytest.raises(ValueError, match="'french' is unknown"):
        lora_state_dict(model, "french")
    with pytest.raises(ValueError, match="'french' is unknown; expected one of 'default'"):
        layer.delta({"french": 1.0})
    state = lora_state_dict(model)
    with pytest.raises(ValueError, match=r"1 names are missing .*value.lora_B.* and 1 are not expected \['other'\]"):
        load_lora_state_dict(model, {"other" if key == "block.value.lora_B.weight" else key: tensor for key, tensor in state.items()})
    with pytest.raises(ValueError, match=r"has shape \(3, 12\); expected \(2, 12\): is the rank the same"):
        load_lora_state_dict(model, {**state, "block.query.lora_A.weight": torch.zeros(3, WIDTH)})
    with pytest.raises(ValueError, match=r"into: .* already has an adapter 'default'"):
        combine_adapters(model, {"default": 1.0}, into="default")
    merge_adapters(model)
    weight = layer.base.weight.clone()
    for refused in (
        lambda: merge_adapters(model),
        layer.merge,
        lambda: use_adapters(model, {}),
        lambda: apply_lora(model, ["head"], LoRAConfig(), "third"),
        lambda: layer.add_adapter("third", LoRAConfig()),
        lambda: load_lora_state_dict(model, state),
        lambda: combine_adapters(model, {"default": 1.0}, into="third"),
    ):
        with pytest.raises(ValueError, match="merged"):
            refused()
    assert torch.equal(layer.base.weight, weight) and not isinstance(model.head, LoRALinear)
    unmerge_adapters(model)
    use_adapters(model, {})
    for refused in (lambda: merge_adapters(model), layer.merge):
        with pytest.raises(ValueError, match="no adapter is active"):
            refused()


def test_a_tied_weight_is_not_merged(model: Model) -> None:
    model.head.weight = model.tokens.weight
    apply_lora(model, ["tokens", "query"], LoRAConfig())
    before = model.block["query"].base.weight.clone()
    with pytest.raises(ValueError, match=r"tokens.base.weight and head.weight are one tensor"):
        merge_adapters(model)
    assert torch.equal(model.block["query"].base.weight, before)


def test_layers_of_other_widths_have_no_common_subspace() -> None:
    with pytest.raises(ValueError, match=r"second: shape \(2, 5\); expected a matrix as wide as first, \(3, 4\)"):
        subspace_similarity(torch.ones(3, 4), torch.ones(2, 5))
    with pytest.raises(ValueError, match=r"delta: shape \(4, 3\)"):
        amplification(torch.ones(3, 4), torch.ones(4, 3), rank=1)
    with pytest.raises(ValueError, match="rank: 4; expected 1 to 3"):
        amplification(torch.ones(3, 4), torch.ones(3, 4), rank=4)
