"""A headless Chromium, driven through its DevTools pipe, for tests of pages as people see them."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

EXECUTABLE = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
_FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage"),
    *("--autoplay-policy=no-user-gesture-required", "--mute-audio", "--remote-debugging-pipe"),
)


class Browser:
    """One page of one browser."""

    def __init__(self, process: subprocess.Popen[bytes], commands: int, answers: int):
        self._process, self._commands, self._answers = process, commands, answers
        self._buffer = b""
        self._number = 0
        self._session = ""
        self.requests: list[str] = []  # every address that the page asked for
        self.errors: list[str] = []  # exceptions and console errors of the page
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def _message(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            part = os.read(self._answers, 1 << 16)
            if not part:
                raise RuntimeError(f"the browser ended with status {self._process.poll()}")
            self._buffer += part
        line, self._buffer = self._buffer.split(b"\0", 1)
        return json.loads(line)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a DevTools command and wait for its result, noting what the page does meanwhile."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._message()
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']['message']}")
                return answer["result"]
            details = answer.get("params", {})
            if answer.get("method") == "Network.requestWillBeSent":
                self.requests.append(details["request"]["url"])
            elif answer.get("method") == "Runtime.exceptionThrown":
                self.errors.append(json.dumps(details["exceptionDetails"]))
            elif answer.get("method") == "Log.entryAdded" and details["entry"]["level"] == "error":
                self.errors.append(details["entry"]["text"])

    def open(self, address: str) -> None:
        """Go to a page and wait until it is loaded."""
        self.call("Page.navigate", url=address)
        self.until("document.readyState === 'complete' && location.href !== 'about:blank'")

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression (a promise is waited for)."""
        result = self.call(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True, userGesture=True
        )
        if "exceptionDetails" in result:
            raise RuntimeError(result["exceptionDetails"]["exception"].get("description", script))
        return result["result"].get("value")

    def _run_if_there(self, script: str) -> Any:
        """As :meth:`run`, None while the page gives way to another one."""
        try:
            return self.run(script)
        except RuntimeError as error:
            if "navigated or closed" in str(error) or "context" in str(error):
                return None
            raise

    def until(self, condition: str, patience: float = 30.0) -> Any:
        """Wait for an expression to become true; returns its value."""
        end = time.monotonic() + patience
        while not (value := self._run_if_there(condition)):
            if time.monotonic() > end:
                raise AssertionError(f"never true: {condition}; the page's errors: {self.errors}")
            time.sleep(0.05)
        return value

    def click(self, selector: str, x: float = 0.5, y: float = 0.5) -> None:
        """Click inside an element, at a fraction of its box, as a mouse does."""
        box = self.run(
            f"(e => (e.scrollIntoView({{block: 'center'}}), e.getBoundingClientRect().toJSON()))"
            f"(document.querySelector({json.dumps(selector)}))"
        )
        where = {"x": box["x"] + x * box["width"], "y": box["y"] + y * box["height"]}
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, button="left", clickCount=1, **where)

    def key(self, key: str) -> None:
        """Press a key."""
        text = {"Enter": {"text": "\r", "windowsVirtualKeyCode": 13}}.get(key, {})  # without it no button is pressed
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, **text)

    def emulate(self, *, width: int = 1100, height: int = 900, dark: bool = False) -> None:
        """The size of the window and the preferred colours."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def screenshot(self, path: Path) -> None:
        """The whole page as a PNG file."""
        import base64

        picture = self.call("Page.captureScreenshot", captureBeyondViewport=True)["data"]
        path.write_bytes(base64.b64decode(picture))


@contextlib.contextmanager
def browser(profile: Path, language: str = "en") -> Iterator[Browser]:
    """A browser of its own, with an empty profile, that speaks ``language``."""
    assert EXECUTABLE is not None
    commands_in, commands = os.pipe()
    answers, answers_out = os.pipe()
    # The browser reads commands from descriptor 3 and answers on descriptor 4.
    flags = [*_FLAGS, f"--user-data-dir={profile}", f"--accept-lang={language}", "about:blank"]
    shell = f'exec "$0" "$@" 3<&{commands_in} 4>&{answers_out}'
    process = subprocess.Popen(
        ["/bin/bash", "-c", shell, EXECUTABLE, *flags],
        pass_fds=(commands_in, answers_out),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(commands_in)
    os.close(answers_out)
    try:
        page = Browser(process, commands, answers)
        yield page
        page._session = ""
        page.call("Browser.close")
    finally:
        os.close(commands)
        os.close(answers)
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
