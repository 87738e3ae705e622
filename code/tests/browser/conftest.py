"""The real site, built under a base path, served on this machine, and a Chromium that asks nobody else for anything."""

import functools
import http.server
import shutil
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from rundoku.show.store import ROOT
from rundoku.site.build import BUILD, build_environment, run
from rundoku.site.catalogue import LANGUAGES

CHROMIUM = next((path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None)
BASE = "/base/"  # the site must work below any path


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed: looked for chromium, chromium-browser and google-chrome")
    with sync_playwright() as playwright:
        options = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync"]
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=options)
        yield started
        started.close()


@pytest.fixture(scope="session")
def served(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """A folder that is served, and the address of the site in it; the site is built for that address, as the theme's script expects."""
    folder = tmp_path_factory.mktemp("served")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield folder, f"http://127.0.0.1:{server.server_port}{BASE}"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="session")
def folder(served: tuple[Path, str]) -> Path:
    """The built site, below the folder that is served."""
    top, address = served
    assert run(ROOT) == 0, "a snippet of the real site is at fault"

    def build(language: str) -> None:
        command = [*BUILD, "--site-dir", str(top / "base")]
        given = {**build_environment(ROOT), "DOCS_LANG": language, "SITE_URL": address}
        done = subprocess.run(command, cwd=ROOT, env=given, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(build, LANGUAGES))
    return top


@pytest.fixture(scope="session")
def home(folder: Path, served: tuple[Path, str]) -> str:
    """The address of the site's root."""
    return served[1]


class Visitor:
    """A page with what went wrong on it: messages of the console, and requests for another host."""

    def __init__(self, page: Page, home: str) -> None:
        self.page, self.home = page, home
        self.faults: list[str] = []
        page.on("console", lambda message: self.faults.append(message.text) if message.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: self.faults.append(str(error)))
        page.on("request", lambda request: self._asked(request.url))

    def _asked(self, url: str) -> None:
        if not url.startswith((self.home.removesuffix(BASE), "data:", "blob:", "about:")):
            self.faults.append(f"a request for {url}")

    def go(self, path: str) -> Page:
        self.page.goto(self.home + path, wait_until="load")
        return self.page


@pytest.fixture
def visitor(browser: Browser, home: str, request: pytest.FixtureRequest) -> Iterator[Visitor]:
    """A visitor; the test's ``visit`` marker sets what its browser is like (viewport, locale, color_scheme, java_script_enabled)."""
    marker = request.node.get_closest_marker("visit")
    context = browser.new_context(**(marker.kwargs if marker else {}))
    context.set_default_timeout(15_000)
    here = Visitor(context.new_page(), home)
    yield here
    context.close()
    assert not here.faults, here.faults
