"""The import rule: the half that import-linter checks is seen to break, the half that it cannot say is checked here."""

import ast
import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from rundoku.site.lineage import modules, rooms

ROOT = Path(__file__).parents[2]
ALLOWED = {"torch", "triton", *sys.stdlib_module_names}
FREE = {"experiments", "benchmarks", "note"}  # they may show, load, draw and measure


def offences(root):
    """Return what the implementations of a repository's rooms import that is neither allowed, nor a room, nor, in a kernel, gpu.launch."""
    found = []
    for slug in rooms(root):
        for module in modules(root, slug):
            part = module.split(".")[3] if module.count(".") > 2 else ""
            path = root / "code" / Path(*module.split("."))
            path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if part not in FREE else ():
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                if isinstance(node, ast.ImportFrom) and not node.level:
                    names = [f"{node.module}.{alias.name}" for alias in node.names]
                for name in names:
                    room = name.startswith(("rundoku.papers.", "rundoku.concepts."))
                    launch = name.startswith("rundoku.gpu.launch") and part.startswith("kernel")
                    if name.partition(".")[0] not in ALLOWED and not room and not launch:
                        found.append(f"{path.relative_to(root).as_posix()}:{node.lineno}: {name}")
    return found


def test_rooms_import_only_torch_triton_the_standard_library_and_rooms():
    assert rooms(ROOT)
    assert not offences(ROOT)


def test_each_offence_is_found(tmp_path):
    room = tmp_path / "code/rundoku/papers/room"
    room.mkdir(parents=True)
    (room / "__init__.py").write_text("from rundoku.papers.room.part import f\nimport json, torch.nn\n")
    (room / "part.py").write_text(
        "def f():\n    import einops\n    from rundoku.gpu.launch import expect\n    from rundoku.data import words\n"
    )
    (room / "kernel_forward.py").write_text("import triton\nfrom rundoku.gpu.launch import tl\nfrom rundoku.gpu import launch, report\n")
    (room / "experiments.py").write_text("import numpy\nfrom rundoku.show import experiment\n")
    found = [line.removeprefix("code/rundoku/papers/room/") for line in offences(tmp_path)]
    kernel, *part = sorted(found)
    assert kernel == "kernel_forward.py:3: rundoku.gpu.report"
    assert part == ["part.py:2: einops", "part.py:3: rundoku.gpu.launch.expect", "part.py:4: rundoku.data.words"]


BREAKS = {
    "papers/lora/layers.py": ("import rundoku.site.lineage", "nobody on the site BROKEN"),
    "show/record.py": ("import rundoku.papers.lora", "nobody on the site BROKEN"),
    "papers/lora/model.py": ("import rundoku.concepts", "nobody on the site BROKEN"),
    "gpu/launch.py": ("import numpy", "a copy cannot carry BROKEN"),
    "papers/lora/analysis.py": ("from rundoku.show import figure", "a copy cannot carry BROKEN"),
}


@pytest.mark.skipif(importlib.util.find_spec("importlinter") is None, reason="import-linter is in the lint environment only")
def test_the_linter_keeps_the_rule_here_and_sees_it_broken(tmp_path):
    shutil.copytree(ROOT / "code/rundoku", tmp_path / "code/rundoku", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command; lint_imports_command()", "--no-cache"]

    def lint():
        return subprocess.run(command, cwd=tmp_path, env={"PYTHONPATH": "code"}, capture_output=True, text=True, check=False)

    done = lint()
    assert done.returncode == 0, done.stdout + done.stderr
    for name, (line, says) in BREAKS.items():
        path = tmp_path / "code/rundoku" / name
        before = path.read_text(encoding="utf-8")
        path.write_text(f"{before}\n{line}\n", encoding="utf-8")
        done = lint()
        path.write_text(before, encoding="utf-8")
        assert done.returncode == 1 and says in done.stdout, f"{name}: {line}\n{done.stdout}"
