"""Shakespeare's plays and poems, from the package Open Shakespeare.

Licence: the texts are Project Gutenberg's editions of works in the public domain; Open Shakespeare publishes its collection of
them under CC-BY 2.5 and its code, which is not used, under the MIT licence.
"""

from rundoku.data.source import Source

SOURCE = Source(
    title="Shakespeare's plays and poems",
    package="shakespeare",
    version="0.6",
    licence="CC-BY-2.5 (texts in the public domain)",
    url="http://www.openshakespeare.org/",
    name="shakespeare",
)
_FOLDER = "shksprdata/texts"
_POEMS = ("lovers_complaint", "passionate_pilgrim", "phoenix_and_the_turtle", "rape_of_lucrece", "sonnets")


def plays() -> str:
    """Return the 37 plays in modern spelling, one after the other in alphabetical order of their titles.

    Raises MissingData, with the command that brings it, where the package is absent.
    """
    return _read(poems=False)


def poems() -> str:
    """Return the sonnets and four longer poems. Raises MissingData as `plays` does."""
    return _read(poems=True)


def _read(poems: bool) -> str:
    paths = SOURCE.files(_FOLDER, "_gut.txt")
    chosen = [path for path in paths if (path.name.removesuffix("_gut.txt") in _POEMS) == poems]
    return "\n\n".join(path.read_bytes().decode("latin-1").replace("\r\n", "\n").strip() for path in chosen)
