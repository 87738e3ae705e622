"""The interpreter is on before kernels are decorated, and bad arguments are named."""

import subprocess
import sys

import pytest
import torch

from rundoku.gpu.launch import INTERPRETED, Config, expect, expect_tensor, target_of

WITHOUT_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="asks what happens on a machine without a GPU")

KERNEL = """
{first}
import torch
from rundoku.gpu.launch import INTERPRETED, tl, triton

@triton.jit
def softmax_and_more(x, y, n, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    row = tl.load(x + at, mask=at < n, other=float("-inf"))
    kept = tl.where(at < n, row, 0.0)
    tl.store(y + at, tl.softmax(row) + tl.sum(kept, 0) + kept.max(0) + tl.cdiv(n, 4) + tl.cumsum(kept, 0), mask=at < n)

x, y = torch.arange(5) / 10, torch.empty(5)
softmax_and_more[(1,)](x, y, 5, BLOCK=8)
assert INTERPRETED
torch.testing.assert_close(y, x.softmax(0) + x.sum() + x.max() + 2 + x.cumsum(0))
print("right")
"""


def run(folder, source, **environment):
    """Run a file in a fresh process: the interpreter's state is a process's own, and kernels are read from files."""
    path = folder / "kernel.py"
    path.write_text(source)
    variables = {"PYTHONPATH": "code", "PATH": "", "HOME": str(folder), "CUDA_VISIBLE_DEVICES": "", **environment}
    return subprocess.run([sys.executable, str(path)], capture_output=True, text=True, env=variables)


@WITHOUT_GPU
@pytest.mark.parametrize("first", ["", "import triton", "import triton.language, torch._inductor"])
def test_a_kernel_runs_without_a_gpu_whether_triton_was_imported_before_or_not(tmp_path, first):
    done = run(tmp_path, KERNEL.format(first=first))
    assert done.stdout == "right\n", done.stderr


def test_what_the_user_set_stays(tmp_path):
    source = "from rundoku.gpu.launch import INTERPRETED\nprint(INTERPRETED)"
    assert run(tmp_path, source, TRITON_INTERPRET="0").stdout == "False\n"
    assert run(tmp_path, source, TRITON_INTERPRET="1").stdout == "True\n"


def test_without_interpreter_a_cpu_tensor_is_refused_by_name(tmp_path):
    source = "import torch\nfrom rundoku.gpu.launch import expect_tensor\nexpect_tensor('x', torch.ones(2))"
    assert "ValueError: x: got a tensor of shape (2,)" in run(tmp_path, source, TRITON_INTERPRET="0").stderr


def test_messages_name_argument_value_and_expectation():
    with pytest.raises(ValueError, match="eps: got -1, expected a positive number"):
        expect(False, "eps", -1, "a positive number")
    with pytest.raises(
        ValueError, match=r"weight: got a tensor of shape \(2, 3\), strides \(3, 1\), torch.int64, on cpu, expected one of torch.float32"
    ):
        expect_tensor("weight", torch.ones(2, 3, dtype=torch.int64), dtypes=(torch.float32,))
    with pytest.raises(ValueError, match=r"x: got 3, expected a dense torch\.Tensor"):
        expect_tensor("x", 3)
    with pytest.raises(ValueError, match=r"x: got .*, expected a dense torch\.Tensor"):
        expect_tensor("x", torch.eye(2).to_sparse())
    with pytest.raises(ValueError, match=r"bias: got .* on meta, expected the device cpu"):
        expect_tensor("bias", torch.ones(2, device="meta"), like=torch.ones(2))


@pytest.mark.skipif(not INTERPRETED, reason="asks what the interpreter refuses")
def test_the_interpreter_refuses_bfloat16_which_it_computes_wrongly():
    with pytest.raises(ValueError, match="interpreter computes bfloat16 wrongly"):
        expect_tensor("x", torch.ones(2, dtype=torch.bfloat16))
    assert target_of(torch.ones(2)) == "interpreter"


def test_a_configuration_states_fp_contraction():
    assert Config({"BLOCK": 64}, num_warps=8, num_stages=3).launch() == {
        "BLOCK": 64,
        "num_warps": 8,
        "num_stages": 3,
        "enable_fp_fusion": True,
    }
