"""Python source code, from the package mpmath: a library of arithmetic with arbitrary precision.

Licence: BSD-3-Clause, by Fredrik Johansson and mpmath contributors. The standard library would be a larger sample, but changes with every
release of Python, and with it every number that rests on it.
"""

from rundoku.data.source import Source

SOURCE = Source(
    title="Python source code: the library mpmath",
    package="mpmath",
    version="1.3.0",
    licence="BSD-3-Clause",
    url="https://mpmath.org/",
    name="python_code",
)


def code() -> str:
    """Return the library's modules without its tests and its tables of documentation, one after the other in order of their paths.

    Raises MissingData, with the command that brings it, where the package is absent.
    """
    paths = [path for path in SOURCE.files("mpmath", ".py") if path.parent.name != "tests" and path.name != "function_docs.py"]
    return "\n\n".join(path.read_text(encoding="utf-8").strip() for path in paths)
