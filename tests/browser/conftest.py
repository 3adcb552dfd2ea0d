"""The built site, served from this machine, and a browser that looks at it."""

import functools
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.browser.chrome import Tab
from tests.docs.site import built


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves files with a policy that forbids every other host, to the page and to its search alike."""

    def end_headers(self) -> None:
        self.send_header("Content-Security-Policy", "default-src 'self' 'unsafe-inline' data: blob:")
        super().end_headers()

    def log_message(self, *_: object) -> None:
        """Nothing on the console of the tests."""


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of the built site."""
    folder, _ = built(tmp_path_factory.mktemp("built") / "site")
    handler = functools.partial(Handler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@pytest.fixture(scope="session")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    tab = Tab(Path(tmp_path_factory.mktemp("browser")) / "profile")
    yield tab
    tab.close()
