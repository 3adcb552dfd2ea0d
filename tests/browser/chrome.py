"""Headless Chromium for tests: one page, spoken to over a pipe, which tells what it asked for and said."""

import contextlib
import fcntl
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Tab:
    """One page in a browser, spoken to over a pipe: what a person sees and presses."""

    def __init__(self, profile: Path) -> None:
        options = [
            "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--remote-debugging-pipe",
            "--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage",
            f"--user-data-dir={profile}",
        ]  # fmt: skip
        pipes = [os.pipe(), os.pipe()]
        theirs = [fcntl.fcntl(fd, fcntl.F_DUPFD, 20) for fd in (pipes[0][0], pipes[1][1])]  # beyond 3 and 4
        words = ["bash", "-c", f'exec 3<&{theirs[0]} 4>&{theirs[1]} "$@"', "_", str(BROWSER), *options]
        self.process = subprocess.Popen(words, pass_fds=theirs, stderr=subprocess.DEVNULL)
        for fd in (*theirs, pipes[0][0], pipes[1][1]):
            os.close(fd)
        self.out, self.into = os.fdopen(pipes[0][1], "wb"), os.fdopen(pipes[1][0], "rb")
        self.count, self.session, self.buffer = 0, "", b""
        self.events: list[dict[str, Any]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Asks the browser and waits for its answer; events that come before are kept."""
        self.count += 1
        request = {"id": self.count, "method": method, "params": params}
        request |= {"sessionId": self.session} if self.session else {}
        self.out.write(json.dumps(request).encode() + b"\0")
        self.out.flush()
        while (message := self.message()).get("id") != self.count:
            self.events.append(message)
        assert "error" not in message, message
        return message["result"]

    def message(self) -> dict[str, Any]:
        while b"\0" not in self.buffer:
            ready, _, _ = select.select([self.into], [], [], 120)
            part = os.read(self.into.fileno(), 2**20) if ready else b""
            if not part:
                pytest.skip("the browser does not start or does not answer here")
            self.buffer += part
        line, _, self.buffer = self.buffer.partition(b"\0")
        return json.loads(line)

    def wait(self, event: str) -> None:
        while not any(e.get("method") == event for e in self.events):
            self.events.append(self.message())

    def open(
        self, page: Path | str, width: int = 1200, scheme: str = "light", media: str = "screen"
    ) -> "Tab":
        """Loads a file or an address at a width and waits for it."""
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.call("Emulation.setEmulatedMedia", media=media, features=features)
        self.events.clear()
        self.call("Page.navigate", url=page if isinstance(page, str) else page.as_uri())
        self.wait("Page.loadEventFired")
        return self

    def eval(self, script: str) -> Any:
        found = self.call("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def until(self, script: str, seconds: float = 60) -> Any:
        """Returns what a script gives as soon as that is something; between two pages it is nothing."""
        asked, found = f"document.body && ({script})", None
        end = time.monotonic() + seconds
        while not found and time.monotonic() < end:
            with contextlib.suppress(AssertionError):  # the page that was asked has just gone
                found = self.eval(asked)
            time.sleep(0 if found else 0.1)
        return found

    def press(self, key: str) -> None:
        codes = {"Enter": 13, "Tab": 9, " ": 32}
        text = {"Enter": {"text": "\r"}, " ": {"text": " "}}.get(key, {})
        common = {"key": key, "code": "Space" if key == " " else key, "windowsVirtualKeyCode": codes[key]}
        self.call("Input.dispatchKeyEvent", type="keyDown", **common, **text)
        self.call("Input.dispatchKeyEvent", type="keyUp", **common)

    def complaints(self, own: str = "file:") -> list[Any]:
        """What the console said, and every request for something that is neither in the page nor its own."""
        said = ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded")
        found: list[Any] = [e for e in self.events if e.get("method") in said]
        asked = [
            e["params"]["request"]["url"]
            for e in self.events
            if e.get("method") == "Network.requestWillBeSent"
        ]
        return found + [url for url in asked if not url.startswith(("data:", "blob:", own))]

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self.out.close()
        self.into.close()
