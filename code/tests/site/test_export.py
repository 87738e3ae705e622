"""Copies of small made-up rooms: each is imported without `rundoku`, and says the same as the original."""

import ast
import json
import subprocess
import sys

import pytest
import torch

from rundoku.site.export import copies, copy
from rundoku.site.sources import ExportError

RUN = """
import sys
class Without:
    finders = sys.meta_path[:]
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked}:
            return None
        return next((spec for finder in self.finders if (spec := finder.find_spec(name, path, target))), None)
sys.meta_path[:] = [Without()]
sys.path.insert(0, {folder!r})
{code}
"""


@pytest.fixture
def run(tmp_path):
    """Run code in a fresh interpreter that has a folder to import from and cannot import some packages; return what it prints."""

    def run(code, folder, blocked=("rundoku",)):  # -S: no installed packages either
        elsewhere = tmp_path / "elsewhere"
        elsewhere.mkdir(exist_ok=True)
        text = RUN.format(folder=str(folder), code=code, blocked=set(blocked))
        done = subprocess.run([sys.executable, "-I", "-S", "-c", text], cwd=elsewhere, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


@pytest.fixture
def copied(repository, run, tmp_path):
    """Copy the room `main` of made-up modules; compare what an expression gives with it and with the original; return the copy's text."""

    def copied(expression, **files):
        root = repository(**files)
        text = copy("main", root)
        out = tmp_path / "out"
        out.mkdir(exist_ok=True)
        (out / "copied.py").write_text(text, encoding="utf-8")
        code = "import {} as room, json\nprint(json.dumps({}))"
        found = run(code.format("copied", expression), out)
        assert found == run(code.format("rundoku.papers.main", expression), root / "code", blocked=())
        return text

    return copied


def names(text):
    return [node.name for node in ast.parse(text).body if isinstance(node, ast.FunctionDef | ast.ClassDef)]


def test_only_what_the_public_names_need_is_carried_in_the_order_of_the_imports(copied):
    text = copied(
        "[room.top(2), room.__all__]",
        **{
            "rundoku.papers.main": "from rundoku.papers.main.part import top\n__all__ = ['top']\n",
            "rundoku.papers.main.part": """
                import json
                import math
                from rundoku.papers.other import helper

                FACTOR = 3
                UNUSED = json.dumps({})

                def idle(x):
                    return helper(x) + UNUSED

                # Scales and helps.
                def top(x):
                    '''Say how much.'''
                    return math.floor(helper(x) * FACTOR)  # rounded down
            """,
            "rundoku.papers.other": "from .deep import helper as helper, lost\n",
            "rundoku.papers.other.deep": """
                '''Deep down.'''
                BASE = 1.5
                def lost(): return None
                def helper(x): return x + BASE
            """,
            "rundoku.papers.third": "raise RuntimeError('nobody imports this')",
        },
    )
    assert names(text) == ["helper", "top"]
    assert "import json" not in text
    assert text.index("rundoku.papers.other.deep") < text.index("rundoku.papers.main.part")
    assert "# Deep down." in text and "# Scales and helps.\ndef top" in text and "'''Say how much.'''" in text and "# rounded down" in text


def test_a_name_that_two_modules_define_is_renamed_in_one_of_them_everywhere(copied):
    helper = """
        SIZE = {size}
        class _Box:
            def twin(self) -> "_Box":
                return _Box()
        def _check(x: "list[_Box]", _size=SIZE):
            return [{size}, _size, x, f"{{_tag({size})!r:>4}}", type(_Box().twin()).__name__[:4]]
        def _tag(SIZE):
            return SIZE + {size}
        def use_{size}(x):
            return _check(x, _size=SIZE)
    """
    text = copied(
        "[room.use_1(5), room.use_2(6), room.both(7)]",
        **{
            "rundoku.papers.main": "from .one import use_1\nfrom rundoku.papers.two import use_2\nfrom .both import both",
            "rundoku.papers.main.one": helper.format(size=1),
            "rundoku.papers.two": helper.format(size=2),
            "rundoku.papers.main.both": """
                from rundoku.papers.two import _check as _other
                from .one import _check
                def both(x):
                    _check_two = 4
                    return [_check(x), _other(x), _check_two]
            """,
        },
    )
    assert len(set(names(text))) == len(names(text)) == 9


def test_a_module_is_reached_by_every_way_of_naming_it(copied):
    copied(
        "room.answer()",
        **{
            "rundoku.papers.main": "from .part import answer",
            "rundoku.papers.main.part": """
                import rundoku.papers.far.deep
                import rundoku.papers.far as far
                from rundoku.papers import near
                from rundoku.gpu import launch as start
                from . import sibling

                class Answer:
                    near = near.value
                    launch = [start.value(i) for i in range(3)]

                def answer():
                    from rundoku.papers.near import (
                        late,
                    )
                    import rundoku.papers.near as again
                    value = 1
                    return [far.value, rundoku.papers.far.deep.value, Answer.near, Answer.launch, late(value), again.late(2), sibling.VALUE,
                            far.deep.value]
            """,
            "rundoku.papers.main.sibling": "VALUE = 'sibling'",
            "rundoku.papers.far": "from .deep import value as inner\nvalue = ['far', inner]",
            "rundoku.papers.far.deep": "value = 'deep'",
            "rundoku.papers.near": "value = 'near'\ndef late(x): return [x, value]",
            "rundoku.gpu": "",
            "rundoku.gpu.launch": "def value(x): return x * x",
        },
    )


def test_scopes_are_those_of_python(copied):
    copied(
        "[room.a(1), room.b([1]), room.C.read(), room.C.size, room.D().size, room.e(), room.f(), room.counter()]",
        **{
            "rundoku.papers.main": "from .part import a, b, C, D, e, f, counter",
            "rundoku.papers.main.part": """
                from dataclasses import dataclass
                size = 10
                x = 20
                count = 0
                def a(size, *, y=x): return size + y
                def b(x): return [size for size in x] + [x for x in [size]] + [(lambda size: size)(3)]
                class C:
                    size = size + 1
                    def read(): return size
                    if size:
                        def method(): return size
                        again = method
                @dataclass
                class D:
                    size: int = size
                def e():
                    try:
                        raise ValueError(size)
                    except ValueError as x:
                        return str(x)
                def f():
                    def inner():
                        nonlocal size
                        size += 1
                        return size
                    size = 1
                    match [5, 6]:
                        case [x, *rest]:
                            return [inner(), x, rest]
                def counter():
                    global count
                    count += 1
                    global fresh
                    fresh = 3
                    return [count, (total := count + 1), total, fresh]
            """,
        },
    )


def test_statements_that_act_on_what_is_kept_are_kept(copied):
    text = copied(
        "[room.kept(), room.TABLE, room.Kept.extra, os.environ['ON_IMPORT']]".replace("os.", "__import__('os')."),
        **{
            "rundoku.papers.main": "from .part import kept, TABLE, Kept\n__all__ = ['kept', 'TABLE', 'Kept']",
            "rundoku.papers.main.part": """
                import os
                from rundoku.papers.switch import setting
                TABLE = {"a": 1}
                LOST = {}
                LOST["b"] = 1
                TABLE.update(c=3)
                for _key in "de":
                    TABLE[_key] = 4
                TABLE |= {"f": 6}
                def register(name):
                    def put(function):
                        TABLE[name] = function(2)
                        return function
                    return put
                @register("g")
                def _entry(x): return x + setting
                def kept(): return sorted(TABLE)
                class Kept: pass
                Kept.extra = 7
                class Lost: pass
                Lost.extra = 8
                if __name__ == "__main__":
                    print(LOST)
                if os.environ.get("NEVER"):
                    DEBUG = True
                else:
                    DEBUG = False
            """,
            "rundoku.papers.switch": """
                import os
                if "ON_IMPORT" not in os.environ:
                    os.environ["ON_IMPORT"] = "1"
                setting = 5
                def unused(): pass
            """,
        },
    )
    assert not {"LOST", "Lost", "__main__", "DEBUG", "unused"} & {
        word for word in ("LOST", "Lost", "__main__", "DEBUG", "unused") if word in text
    }


OPERATORS = """
    import torch
    from torch import Tensor
    from torch.library import register_fake

    @torch.library.custom_op("made_up::twice", mutates_args=())
    def _twice(x: Tensor) -> Tensor:
        return x * 2

    @_twice.register_fake
    def _(x):
        return torch.empty_like(x)

    def _gradient(ctx, grad):
        return thrice(grad) - grad

    _twice.register_autograd(_gradient)

    @torch.library.custom_op("made_up::thrice", mutates_args=())
    def thrice_(x: Tensor) -> Tensor:
        return x * 3

    @register_fake("made_up::thrice")
    def _fake(x):
        return torch.empty_like(x)

    def thrice(x):
        return torch.ops.made_up.thrice(x)

    @torch.library.custom_op("made_up::unused", mutates_args=())
    def _unused(x: Tensor) -> Tensor:
        return x * 5

    @_unused.register_fake
    def _unused_fake(x):
        return torch.empty_like(x)

    torch.library.register_autograd("made_up::unused", lambda ctx, grad: grad * 5)

    def twice(x):
        return _twice(x)
"""


def test_an_operator_brings_what_is_registered_for_it_and_no_other(repository, tmp_path):
    text = copy("main", repository(**{"rundoku.papers.main": "from .part import twice", "rundoku.papers.main.part": OPERATORS}))
    assert set(names(text)) == {"_twice", "_", "_gradient", "thrice_", "_fake", "thrice", "twice"} and "unused" not in text
    namespace = {"__name__": "copied"}
    exec(compile(text, "copied.py", "exec"), namespace)
    x = torch.tensor([1.0, 4.0], requires_grad=True)
    torch.library.opcheck(torch.ops.made_up.twice.default, (x,), test_utils=("test_schema", "test_faketensor"))
    y = namespace["twice"](x)
    y.sum().backward()
    assert y.tolist() == [2.0, 8.0] and x.grad.tolist() == [2.0, 2.0]


@pytest.mark.parametrize(
    "way",
    [
        "def fast(x):\n    from rundoku.papers.main.kernel import fused  # only here\n    return fused(x)",
        "try:\n    from rundoku.papers.main.kernel import fused as fast\nexcept ImportError:\n    fast = None",
        "fast = None\nfrom importlib.util import find_spec\nif find_spec('triton'):\n    from .kernel import fused\n    fast = fused",
    ],
)
def test_a_copy_needs_triton_only_where_the_original_does(copied, run, tmp_path, way):
    files = {
        "rundoku.papers.main": "from .part import slow, fast\n__all__ = ['slow', 'fast']",
        "rundoku.papers.main.part": f"{way}\ndef slow(x): return x + 1",
        "rundoku.papers.main.kernel": '''
            """The kernel."""
            import rundoku.gpu.launch
            import triton
            import triton.language as tl
            BLOCK: tl.constexpr = 4
            TEXT = """one
            two"""
            @triton.jit
            def _kernel(x):
                """What it
                computes."""
                return x + BLOCK
            def fused(x):
                return [_kernel(x), TEXT]
        ''',
        "rundoku.gpu": "",
        "rundoku.gpu.launch": "import os\nos.environ['SWITCH'] = 'on'",
    }
    text = copied("[room.slow(1), room.fast is None]", **files)
    stand_in = tmp_path / "site"
    (stand_in / "triton").mkdir(parents=True)
    (stand_in / "triton/__init__.py").write_text("import os\njit = lambda f: lambda x: [f(x), SWITCH]\nSWITCH = os.environ['SWITCH']")
    (stand_in / "triton/language.py").write_text("constexpr = int")
    for where, name, blocked in ((tmp_path / "out", "copied", ("rundoku",)), (tmp_path / "code", "rundoku.papers.main", ())):
        code = f"import json; sys.path.append({str(stand_in)!r})\nimport {name} as room\nprint(json.dumps(room.fast(1)))"
        assert json.loads(run(code, where, blocked)) == [[5, "on"], "one\ntwo"]
    assert text.index("os.environ['SWITCH'] = 'on'") < text.index("    import triton\n    import triton.language as tl")
    if way.startswith("def"):
        message = run("import copied\ntry:\n    copied.fast(1)\nexcept ModuleNotFoundError as error:\n    print(error)", tmp_path / "out")
        assert message == "No module named 'triton'\n"


def test_annotations_conditions_and_markers(copied):
    text = copied(
        "[room.build(2), [str(f.type) for f in __import__('dataclasses').fields(room.Config)]]",
        **{
            "rundoku.papers.main": "from __future__ import annotations\nfrom .part import build, Config",
            "rundoku.papers.main.part": """
                '''Parts.

                Axes: B batch.
                '''

                # A legend that stands apart.

                from __future__ import annotations
                from dataclasses import dataclass
                from typing import TYPE_CHECKING, Literal
                if TYPE_CHECKING:
                    from collections.abc import Sequence
                    from .later import Later
                import sys
                if sys.version_info >= (3, 11):
                    def modern(): return "new"
                else:
                    def modern(): return "old"

                @dataclass(frozen=True)
                class Config:
                    mode: Literal["build", "modern"] = "build"  # one of two
                    '''What it does.'''
                    items: Sequence[int] = ()
                # --8<-- [start:build]
                def build(x: Later | None) -> "Config":

                    # --8<-- [start:inner]
                    marker = "# --8<-- is text here"
                    # --8<-- [end:inner]

                    return [x, modern(), Config().mode, marker]
                # --8<-- [end:build]
            """,
            "rundoku.papers.main.later": "class Later: pass",
        },
    )
    assert text.count("--8<--") == 1
    assert "# A legend that stands apart." in text and "# Axes: B batch." in text
    assert text.count("from __future__ import annotations") == 1 and "    '''What it does.'''\n" in text


def test_the_same_bytes_every_time_and_no_import_of_ours_or_unused_ones(repository):
    files = {
        "rundoku.papers.main": "'''A room.'''\nfrom .part import f",
        "rundoku.papers.main.part": """
            import os.path
            import os
            import sys
            from math import pi as PI, e
            def f(): return os.path.join(str(PI), str(e))
        """,
    }
    root = repository(**files)
    (root / "LICENSE").write_text("MIT License\n\nCopyright someone\n")
    (root / "notes/main").mkdir(parents=True)
    (root / "notes/main/paper.yml").write_text('title: "A Paper: On Rooms"\narxiv: "1234.56789"\n')
    text = copy("main", root)
    assert text == copy("main", root)
    assert text.startswith('"""A room.\n\nCopied from Rundoku')
    assert "import os\nimport os.path\nfrom math import e\nfrom math import pi as PI" in text or "from math import e, pi as PI" in text
    assert "import sys" not in text and "# A Paper: On Rooms, arXiv 1234.56789\n# rundoku.papers.main.part\n" in text
    assert text.endswith("# MIT License\n#\n# Copyright someone\n")


@pytest.mark.parametrize(
    ("part", "says"),
    [
        ("import numpy\ndef f(): return numpy.pi", "part.py:2: numpy comes from numpy"),
        ("def f():\n    import matplotlib.pyplot as plt\n    return plt", "part.py:2: matplotlib.pyplot comes from"),
        ("from rundoku.data import load\ndef f(): return load()", "part.py:2: load comes from rundoku.data, which a copy cannot carry"),
        ("from rundoku.papers import other\ndef f(): return vars(other)", "part.py:2: the module rundoku.papers.other is used as a value"),
        ("from rundoku.papers import other\ndef f(): other.x = 2", "part.py:2: other.x is assigned to from outside its module"),
        ("def f(): return open(__file__)", "part.py:1: __file__ says where the original lies"),
        ("def f(): return undefined", "part.py:1: undefined is defined nowhere"),
        ("from rundoku.papers.none import y\ndef f(): return y", "part.py:1: there is no module rundoku.papers.none"),
        ("from rundoku.papers.other import y\ndef f(): return y", "part.py:1: rundoku.papers.other has no name y"),
        ("from rundoku.papers.other import *\ndef f(): return x", "part.py:1: from rundoku.papers.other import *"),
        ("def f(): return __import__('rundoku.papers.other')", "part.py:1: 'rundoku.papers.other' names a module as text"),
        ("from math import pi as f\ndef f(): return 1", "part.py:2: f is both imported and defined"),
        ("import rundoku.papers.other, math\ndef f(): return math", "part.py:1: several modules in one import statement"),
    ],
)
def test_what_cannot_be_copied_is_named_with_file_and_line(repository, part, says):
    root = repository(**{
        "rundoku.papers.main": "from .part import f", "rundoku.papers.main.part": part, "rundoku.papers.other": "x = 1",
        "rundoku.data": "def load(): ...",
    })  # fmt: skip
    with pytest.raises(ExportError) as caught:
        copy("main", root)
    assert str(caught.value).startswith(f"code/rundoku/papers/main/{says}")


def test_an_unknown_room_brings_close_names(repository):
    root = repository(**{"rundoku.papers.llama": "x = 1", "rundoku.papers.lora": "x = 1", "rundoku.concepts.forward_pass": ""})
    with pytest.raises(ExportError, match=r"no room 'lama'; did you mean llama\b"):
        copy("lama", root)
    with pytest.raises(ExportError, match="no room 'zzz'; there are llama, lora, forward-pass"):
        copy("zzz", root)
    with pytest.raises(ExportError, match=r"forward_pass.*no public names"):
        copy("forward_pass", root)
    assert copy("llama", root).count("x = 1") == 1


@pytest.mark.parametrize(
    ("stated", "says"),
    [
        ("['f'] + []", "computed"),
        ("['f']\n__all__ += ['part']", "computed"),
        ("['g']", "has no name g"),
        ("['part']", "public name part is a module"),
    ],
)
def test_public_names_are_plain(repository, stated, says):
    root = repository(**{"rundoku.papers.main": f"from .part import f\n__all__ = {stated}", "rundoku.papers.main.part": "f = 1"})
    with pytest.raises(ExportError, match=says):
        copy("main", root)


def test_what_there_is_to_copy(repository):
    root = repository(**{
        "rundoku.papers.with_both": "from .part import f", "rundoku.papers.with_both.part": "def f(): ...",
        "rundoku.papers.with_both.kernel": "x = 1",
        "rundoku.papers.together": "from .kernel import x", "rundoku.papers.together.kernel": "x = 1",
        "rundoku.concepts.empty": '"Only words."', "rundoku.concepts.empty.note": "x = 1",
    })  # fmt: skip
    found = {slug: copies(slug, root) for slug in ("with-both", "together", "empty")}
    assert found == {"with-both": ("with_both", "with_both.kernel"), "together": ("together",), "empty": ()}


def test_a_part_of_a_room_is_copied_by_itself(repository):
    root = repository(**{
        "rundoku.papers.main": "from .part import f", "rundoku.papers.main.part": "def f(): return 1",
        "rundoku.papers.main.kernel": '"The kernel."\nfrom .part import f\nB = 1\ndef _lost(): ...\ndef a(): return f()',
    })  # fmt: skip
    text = copy("main.kernel", root)
    assert names(text) == ["f", "a"] and '__all__ = ["B", "a"]' in text and text.startswith('"""The kernel.')
    with pytest.raises(ExportError, match="room 'main' has no part 'colonel'; it has kernel, part"):
        copy("main.colonel", root)


def test_a_public_name_that_hides_a_builtin_used_elsewhere_is_refused(repository):
    root = repository(**{
        "rundoku.papers.main": "from .part import sum, mean", "rundoku.papers.main.part": "from .other import mean\ndef sum(x): return x",
        "rundoku.papers.main.other": "def mean(x): return sum(x) / len(x)",
    })  # fmt: skip
    with pytest.raises(ExportError, match=r"other.py:1: the public name sum means something else here"):
        copy("main", root)
