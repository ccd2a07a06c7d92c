"""Chromium driven over the DevTools protocol: only what these tests need."""

import asyncio
import base64
import contextlib
import itertools
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import aiohttp

CHROMIUM = Path("/usr/bin/chromium")
_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--remote-debugging-port=0",
)


@contextmanager
def chromium(profile: Path) -> Iterator[str]:
    """Run Chromium on an empty profile; yield the address of its DevTools."""
    process = subprocess.Popen(
        [CHROMIUM, *_FLAGS, f"--user-data-dir={profile}", "about:blank"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield _devtools(profile / "DevToolsActivePort", process)
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _devtools(port_file: Path, process: subprocess.Popen[bytes]) -> str:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and process.poll() is None:
        if port_file.exists() and len(parts := port_file.read_text().split()) == 2:
            return f"ws://127.0.0.1:{parts[0]}{parts[1]}"
        time.sleep(0.05)
    raise RuntimeError("Chromium did not offer its DevTools port")


class PageError(AssertionError):
    """The page did not do what the test waited for, or a script in it failed."""


class Page:
    """One tab in a browser context of its own."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.faults: list[str] = []
        """Exceptions, policy violations and console errors, failed loads aside."""
        self._socket = socket
        self._ids = itertools.count(1)
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._session: str | None = None

    async def open(self, width: int, height: int, scheme: str) -> None:
        context = await self.call("Target.createBrowserContext", disposeOnDetach=True)
        target = await self.call(
            "Target.createTarget",
            url="about:blank",
            browserContextId=context["browserContextId"],
        )
        attached = await self.call(
            "Target.attachToTarget", targetId=target["targetId"], flatten=True
        )
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            await self.call(f"{domain}.enable")
        await self.resize(width, height)
        await self.call(
            "Emulation.setEmulatedMedia",
            features=[{"name": "prefers-color-scheme", "value": scheme}],
        )

    async def resize(self, width: int, height: int) -> None:
        await self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )

    async def call(self, method: str, **params: Any) -> dict[str, Any]:
        number = next(self._ids)
        message = {"id": number, "method": method, "params": params}
        if self._session is not None:
            message["sessionId"] = self._session
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[dict[str, Any]] = loop.create_future()
        self._answers[number] = answer
        await self._socket.send_json(message)
        async with asyncio.timeout(30):
            return await answer

    async def listen(self) -> None:
        async for frame in self._socket:
            message = frame.json()
            if (answer := self._answers.pop(message.get("id"), None)) is not None:
                if "error" in message:
                    answer.set_exception(PageError(str(message["error"])))
                else:
                    answer.set_result(message["result"])
            else:
                self._note(message)

    def _note(self, message: dict[str, Any]) -> None:
        params = message.get("params", {})
        match message.get("method"):
            case "Runtime.exceptionThrown":
                self.faults.append(str(params["exceptionDetails"]))
            case "Log.entryAdded" if params["entry"]["source"] != "network":
                self.faults.append(str(params["entry"]))
            case "Runtime.consoleAPICalled" if params["type"] == "error":
                self.faults.append(str(params["args"]))

    async def goto(self, url: str) -> None:
        await self.call("Page.navigate", url=url)

    async def evaluate(self, expression: str) -> Any:
        result = await self.call(
            "Runtime.evaluate",
            expression=expression,
            awaitPromise=True,
            returnByValue=True,
        )
        if "exceptionDetails" in result:
            raise PageError(str(result["exceptionDetails"]))
        return result["result"].get("value")

    async def until(self, expression: str, within_s: float = 30.0) -> Any:
        """Wait until `expression` is true in the page; return its value."""
        deadline = time.monotonic() + within_s
        while time.monotonic() < deadline:
            # A navigation takes the script's world away: that is "not yet".
            with contextlib.suppress(PageError):
                if value := await self.evaluate(expression):
                    return value
            await asyncio.sleep(0.03)
        shown = await self.evaluate("document.body.innerText")
        raise PageError(f"never true: {expression}\n{self.faults}\n{shown}")

    async def click(self, selector: str) -> None:
        """Click the middle of the element with the real mouse."""
        spot = await self.until(
            f"""(() => {{
                const node = document.querySelector({selector!r});
                if (!node || node.disabled || node.offsetParent === null) return null;
                node.scrollIntoView({{block: "center"}});
                const box = node.getBoundingClientRect();
                return [box.x + box.width / 2, box.y + box.height / 2];
            }})()"""
        )
        for kind in ("mousePressed", "mouseReleased"):
            await self.call(
                "Input.dispatchMouseEvent",
                type=kind,
                x=spot[0],
                y=spot[1],
                button="left",
                clickCount=1,
            )

    async def write(self, selector: str, text: str) -> None:
        await self.until(
            f"(document.querySelector({selector!r})?.offsetParent ?? null) !== null"
        )
        await self.evaluate(f"document.querySelector({selector!r}).focus()")
        await self.call("Input.insertText", text=text)

    async def press(self, key: str) -> None:
        text = {"Enter": "\r", " ": " "}.get(key, "")
        code = {"Enter": 13, " ": 32, "Tab": 9}[key]
        for kind in ("keyDown", "keyUp"):
            await self.call(
                "Input.dispatchKeyEvent",
                type=kind,
                key=key,
                text=text if kind == "keyDown" else "",
                windowsVirtualKeyCode=code,
            )

    async def screenshot(self, path: Path, *, full: bool = False) -> None:
        result = await self.call("Page.captureScreenshot", captureBeyondViewport=full)
        path.write_bytes(base64.b64decode(result["data"]))


@asynccontextmanager
async def tab(
    devtools: str, width: int = 1280, height: int = 800, scheme: str = "light"
) -> AsyncIterator[Page]:
    async with (
        aiohttp.ClientSession() as client,
        client.ws_connect(devtools, max_msg_size=0) as socket,
    ):
        page = Page(socket)
        listener = asyncio.create_task(page.listen())
        try:
            await page.open(width, height, scheme)
            yield page
        finally:
            listener.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await listener
