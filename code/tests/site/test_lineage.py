from pathlib import Path

from rundoku.show import imports
from rundoku.site.lineage import lineage, modules, room_of, rooms

ROOT = Path(__file__).parents[3]


def test_every_way_of_importing_a_room_is_seen_and_the_note_is_not(repository):
    root = repository(**{
        "rundoku.papers.a": "", "rundoku.papers.a.part": "x = 1",
        "rundoku.papers.b_c": "from rundoku.papers.a import part", "rundoku.papers.b_c.part": "",
        "rundoku.papers.d": "from . import part", "rundoku.papers.d.part": "from ..b_c.part import y",
        "rundoku.papers.e": "", "rundoku.papers.e.part": "def f():\n    import rundoku.papers.d.part as p\n    return p",
        "rundoku.papers.f": "", "rundoku.papers.f.part": "import typing\nif typing.TYPE_CHECKING:\n    from rundoku.papers import e",
        "rundoku.papers.g": "", "rundoku.papers.g.note": "import rundoku.papers.a",
        "rundoku.papers.g.experiments": "import rundoku.papers.f",
        "rundoku.concepts.h": "from rundoku.papers.a import part", "rundoku.concepts.h.part": "",
    })  # fmt: skip
    assert lineage(root) == {
        "a": set(), "b-c": {"a"}, "d": {"b-c"}, "e": {"d"}, "f": {"e"}, "g": {"f"}, "h": {"a"},
    }  # fmt: skip
    assert modules(root, "b-c") == ["rundoku.papers.b_c", "rundoku.papers.b_c.part"]


def test_a_module_belongs_to_its_room():
    assert room_of("rundoku.papers.layer_norm.kernel") == room_of("rundoku.papers.layer_norm") == "layer-norm"
    assert room_of("rundoku.concepts.forward_pass") == "forward-pass"
    assert room_of("rundoku.papers") is room_of("rundoku.gpu.launch") is room_of("torch.papers.x") is None


def test_the_tree_of_this_repository_holds_every_room_and_no_circle():
    tree = lineage(ROOT)
    assert set(tree) == set(rooms(ROOT))
    waiting = dict(tree)
    while waiting:
        free = {slug for slug, needs in waiting.items() if not needs & waiting.keys()}
        assert free, f"these rooms import each other in a circle: {sorted(waiting)}"
        waiting = {slug: needs for slug, needs in waiting.items() if slug not in free}


def test_a_package_wins_over_a_module_of_the_same_name_as_in_python(repository):
    root = repository(**{"rundoku.papers.a": "", "rundoku.papers.a.part": ""})
    (root / "code/rundoku/papers/a.py").write_text("")
    assert imports.path_of("rundoku.papers.a", root / "code") == root / "code/rundoku/papers/a/__init__.py"
