"""Records: what was measured on a GPU, one JSON file a device in the room's ``records/``, with all that is needed to measure it again."""

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from rundoku.show.experiments import source_digest
from rundoku.show.imports import SOURCE_ROOT


@dataclass(frozen=True)
class Measurement:
    """One provider at one size."""

    case: str
    provider: str  # "rundoku" is ours, every other one a peer
    sizes: dict[str, int]
    dtype: str
    config: dict[str, int]  # tiles, num_warps and num_stages of ours; empty for a peer
    p20_ms: float
    p50_ms: float
    p80_ms: float
    flops: float  # of one call, by formula
    bytes: float  # to and from the GPU's memory in one call, by formula
    flops_per_s: float  # at p50
    bytes_per_s: float
    roofline: float | None  # the card's least time over p50; None where its peaks are not listed


@dataclass(frozen=True)
class Record:
    """One run of a room's benchmarks on one device."""

    module: str  # the kernel's
    source: str  # digest of its code and of all that it imports, without comments
    device: str
    driver: str
    versions: dict[str, str]
    date: str  # YYYY-MM-DD
    measurements: tuple[Measurement, ...]

    @property
    def stale(self) -> bool:
        """Whether the kernel's code is no longer the one that was measured."""
        return source_digest(self.module) != self.source


class RecordError(Exception):
    """A record cannot be read; the message names the file and the field."""


def folder(module: str) -> Path:
    """Return where the records of a kernel module lie."""
    return SOURCE_ROOT.joinpath(*module.split(".")[:-1], "records")


def save(record: Record, where: Path) -> Path:
    """Write a record into a folder, in place of the device's earlier one, and return its path."""
    where.mkdir(parents=True, exist_ok=True)
    path = where / ("-".join(record.device.lower().split()).replace("/", "-") + ".json")
    path.write_text(json.dumps(asdict(record), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


def load(where: Path) -> list[Record]:
    """Return the records of a folder by device name, none where it does not exist; raises RecordError for a damaged file."""
    return [_read(path) for path in sorted(where.glob("*.json"))]


def _read(path: Path) -> Record:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        rows = [_typed(Measurement, row, f"measurements[{i}]") for i, row in enumerate(content["measurements"])]
        return _typed(Record, {**content, "measurements": tuple(rows)}, "the record")
    except (ValueError, KeyError, TypeError) as problem:
        raise RecordError(f"{path.name}: {problem}") from problem


def _typed(kind: Any, content: dict[str, Any], where: str) -> Any:
    """Return a dataclass made of JSON, or raise TypeError naming the first field that is absent, unknown or of another type."""
    kinds: dict[Any, Any] = {str: str, float: (int, float), float | None: (int, float, type(None))}
    for field in fields(kind):
        if field.name not in content:
            raise TypeError(f"{where} has no field {field.name!r}")
        wanted = kinds.get(field.type, getattr(field.type, "__origin__", field.type))
        if not isinstance(content[field.name], wanted):
            raise TypeError(f"{where}: {field.name} is {content[field.name]!r}, expected {field.type}")
    unknown = set(content) - {field.name for field in fields(kind)}
    if unknown:
        raise TypeError(f"{where} has the unknown field {min(unknown)!r}")
    return kind(**content)
