"""The command ``rundoku``: what nox, the notes and readers call.

Each command imports what it needs when it is called, so that ``rundoku copy`` does not wait for the site's libraries.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from rundoku.show.store import ROOT


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status: 0, 1 for a fault that the message names, 130 when interrupted."""
    parser = argparse.ArgumentParser(prog="rundoku", description="Paper notes that run.")
    commands = parser.add_subparsers(dest="command", required=True)

    def command(action: Callable[[argparse.Namespace], int], help_text: str) -> argparse.ArgumentParser:
        added = commands.add_parser(action.__name__.strip("_"), help=help_text, description=action.__doc__)
        added.set_defaults(action=action)
        return added

    run = command(_run, "run the snippets whose results are missing")
    run.add_argument("notes", nargs="*", help="the notes to run; all by default")
    build = command(_build, "run what is missing, then build the site into site/")
    for runs in (run, build):
        runs.add_argument("--without", action="append", default=[], help="a data set to do without: smollm2, shakespeare, …")
    build.add_argument("languages", nargs="*", help="en, ja, zh; all of them by default")
    serve = command(_serve, "preview one language and follow every edit")
    serve.add_argument("language", nargs="?", default="en")
    serve.add_argument("--address", default="127.0.0.1:8000")
    command(_lint, "check the notes: structure, translations, numbers, words")
    accept = command(_accept, "record that a note's translations render its English as it stands now")
    accept.add_argument("slug")
    accept.add_argument("languages", nargs="*", help="ja, zh; both by default")
    copy = command(_copy, "write one room as a single file that needs only torch (and triton)")
    copy.add_argument("room", help="lora, flash_attention, …")
    notebook = command(_notebook, "write one note as a Jupyter notebook")
    notebook.add_argument("slug")
    notebook.add_argument("language", nargs="?", default="en")
    for writer in (copy, notebook):
        writer.add_argument("-o", "--output", type=Path, help="the file to write; standard output by default")
    new = command(_new, "start a note: a room, its tests and the three pages")
    new.add_argument("slug")
    new.add_argument("--kind", choices=("paper", "concept"), default="paper")
    bench = command(_bench, "time the kernels on this machine's GPU and record what was measured")
    bench.add_argument("rooms", nargs="*", help="all rooms with a kernel by default")
    tune = command(_tune, "compile what could stand in the kernels' tables, and propose lines")
    tune.add_argument("rooms", nargs="*", help="all rooms with a kernel by default")
    tune.add_argument("--target", action="append", default=[], help="sm_80, sm_90, sm_100, gfx942; all by default")
    given = parser.parse_args(arguments)
    try:
        return given.action(given)
    except KeyboardInterrupt:
        print(f"rundoku {given.command}: interrupted; what had finished is kept", file=sys.stderr)
        return 130
    except Exception as error:
        if not isinstance(error, _expected()):
            raise
        print(f"rundoku {given.command}: {error}", file=sys.stderr)
        return 1


def _expected() -> tuple[type[Exception], ...]:
    """Return the errors whose message says all that a person needs; any other is a fault of ours and keeps its traceback."""
    from rundoku.show.store import StoreError
    from rundoku.site.build import BuildError
    from rundoku.site.catalogue import CatalogueError
    from rundoku.site.snippets import NoteError

    return BuildError, CatalogueError, NoteError, StoreError, ValueError, FileExistsError


def _run(given: argparse.Namespace) -> int:
    """Run every snippet whose result is missing or out of date, in parallel, and say which are at fault."""
    from rundoku.site.build import run, without

    without(given.without)
    return 1 if run(ROOT, notes=given.notes) else 0


def _build(given: argparse.Namespace) -> int:
    """Run what is missing, then build the languages side by side; one that nothing has changed for stays as it is."""
    from rundoku.site.build import build, without
    from rundoku.site.catalogue import LANGUAGES

    without(given.without)
    build(ROOT, languages=given.languages or LANGUAGES)
    return 0


def _serve(given: argparse.Namespace) -> int:
    """Preview one language; an edited note is back in the browser in a moment."""
    from rundoku.site.build import serve

    return serve(given.language, given.address, ROOT)


def _lint(given: argparse.Namespace) -> int:
    """Check the notes and the pages of docs/: structure, translations, numbers, words."""
    from rundoku.site.lint import lint

    problems = lint(ROOT)
    for problem in problems:
        print(problem)
    print(f"{len(problems)} problems")
    return 1 if problems else 0


def _accept(given: argparse.Namespace) -> int:
    """Record in the translations of a note the English sections that they render, once a person has checked them."""
    from rundoku.site.lint import accept

    accept(ROOT, given.slug, given.languages or ("ja", "zh"))
    return 0


def _copy(given: argparse.Namespace) -> int:
    """Write a room's public names, with all that they import from other rooms, as one file."""
    from rundoku.site.export import copy

    return _write(copy(given.room, ROOT), given.output)


def _notebook(given: argparse.Namespace) -> int:
    """Write a note as a Jupyter notebook."""
    from rundoku.site.export import notebook

    return _write(notebook(given.slug, ROOT, given.language), given.output)


def _write(text: str, output: Path | None) -> int:
    if output is None:
        sys.stdout.write(text)
    else:
        output.write_text(text, encoding="utf-8")
    return 0


def _new(given: argparse.Namespace) -> int:
    """Start a note from an empty folder; nothing that exists is touched."""
    from rundoku.site.scaffold import new

    print(new(given.slug, ROOT, given.kind))
    return 0


def _bench(given: argparse.Namespace) -> int:
    """Check each kernel, then time it beside its peers and write the records; needs a GPU."""
    from rundoku.gpu.bench import main as bench

    return bench(given.rooms)


def _tune(given: argparse.Namespace) -> int:
    """Compile each kernel's candidates, measure them where a GPU is at hand, and propose lines; nothing is written to the source."""
    from rundoku.gpu.tune import main as tune

    return tune([*given.rooms, *(f"--target={target}" for target in given.target)])


if __name__ == "__main__":
    sys.exit(main())
