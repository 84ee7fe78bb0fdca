"""Open a page in Chromium (Qt's WebEngine, without a screen) and print what a reader would meet, as JSON.

    python -m tests.browser report.html picture.png [width height]

A process of its own, since a browser cannot be started twice in one. Every request that leaves the file is refused, and
listed.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

WIDTH, HEIGHT = 1280, 800
SETTLE_MILLISECONDS, LIMIT_MILLISECONDS = 500, 60_000
FACTS = """JSON.stringify({
  title: document.title,
  text: document.body.innerText,
  bottoms: Object.fromEntries([...document.querySelectorAll('[id]')].map(e => [e.id, e.getBoundingClientRect().bottom])),
  narrowest: Math.min(...[...document.querySelectorAll('td')].filter(e => e.innerText.length > 20)
    .map(e => e.getBoundingClientRect().width)),
  images: [...document.images].map(i => ({complete: i.complete, width: i.naturalWidth})),
  overflow: document.documentElement.scrollWidth - document.documentElement.clientWidth,
  colour: getComputedStyle(document.querySelector('#verdict') ?? document.querySelector('h1')).color,
  anchors: [...document.querySelectorAll('a[href^="#"]')].map(a => document.querySelector(a.getAttribute('href')) !== null),
  agent: navigator.userAgent,
})"""


def main(page_path: Path, picture: Path, width: int = WIDTH, height: int = HEIGHT) -> int:
    """Print the facts and take a picture of the first screen."""
    os.environ["QT_QPA_PLATFORM"] = "offscreen"
    os.environ["QTWEBENGINE_CHROMIUM_FLAGS"] = "--no-sandbox --disable-gpu"
    import shiboken6
    from PySide6.QtCore import QTimer, QUrl
    from PySide6.QtWebEngineCore import QWebEnginePage, QWebEngineProfile, QWebEngineUrlRequestInterceptor
    from PySide6.QtWebEngineWidgets import QWebEngineView
    from PySide6.QtWidgets import QApplication

    requests: list[str] = []
    messages: list[str] = []

    class Listener(QWebEngineUrlRequestInterceptor):
        def interceptRequest(self, info: Any) -> None:  # noqa: N802
            address = info.requestUrl().toString()
            if not address.startswith(("data:", "file:")):
                info.block(True)
            requests.append(address if not address.startswith("data:") else "data:")

    class Page(QWebEnginePage):
        def javaScriptConsoleMessage(self, level: Any, message: str, line: int, source: str) -> None:  # noqa: N802
            messages.append(message)

    application = QApplication([sys.argv[0]])
    profile, listener = QWebEngineProfile(), Listener()
    profile.setUrlRequestInterceptor(listener)
    view = QWebEngineView()
    page = Page(profile, view)
    view.setPage(page)
    view.resize(width, height)
    found: dict[str, Any] = {}

    def look(facts: str) -> None:
        found.update(json.loads(facts))
        view.grab().save(str(picture))
        application.quit()

    def loaded(well: bool) -> None:
        found["loaded"] = well
        QTimer.singleShot(SETTLE_MILLISECONDS, lambda: page.runJavaScript(FACTS, look))

    page.loadFinished.connect(loaded)
    view.load(QUrl.fromLocalFile(str(page_path.resolve())))
    view.show()
    QTimer.singleShot(LIMIT_MILLISECONDS, application.quit)
    application.exec()
    print(json.dumps(found | {"requests": requests, "messages": messages, "height": height}))
    shiboken6.delete(view)
    shiboken6.delete(page)  # before its profile
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2]), *map(int, sys.argv[3:])))
