"""The built site, served from this machine, and a browser that looks at it."""

import functools
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.browser.chrome import BROWSER, Tab
from tests.docs.site import built


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves files with a policy that forbids every other host, to the page and to its search alike."""

    def end_headers(self) -> None:
        self.send_header("Content-Security-Policy", "default-src 'self' 'unsafe-inline' data: blob:")
        super().end_headers()

    def log_message(self, *_: object) -> None:
        """Nothing on the console of the tests."""


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of the built site, and what mkdocs said."""
    return built(tmp_path_factory.mktemp("built") / "site")


@pytest.fixture(scope="session")
def site(made: tuple[Path, str]) -> Iterator[str]:
    """Address of the built site."""
    folder, _ = made
    handler = functools.partial(Handler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@pytest.fixture(scope="session")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    if BROWSER is None:
        pytest.skip("no chromium found")
    tab = Tab(Path(tmp_path_factory.mktemp("browser")) / "profile")
    yield tab
    tab.close()
