"""Opens pages in a headless Chromium, where one is installed."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.launch import run_command

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: apt-get install chromium")

# What the page itself may load: nothing. The browser writes an error to the console for everything else.
_NOTHING = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"
_REPORT = """
<script>
addEventListener("load", async () => {{
  const after = (act) => new Promise((done) => {{
    addEventListener("hashchange", () => setTimeout(done), {{ once: true }});
    act();
  }});
  const go = (hash) => after(() => (location.hash = hash));
  const seen = await (async () => {{ {script} }})();
  seen.requests = performance.getEntriesByType("resource").map((entry) => entry.name);
  document.body.replaceChildren(Object.assign(document.createElement("pre"), {{ textContent: JSON.stringify(seen) }}));
}});
</script>
"""


def look(page: Path, script: str, fragment: str = "") -> dict[str, Any]:
    """Open a page, and return what a script finds there.

    Args:
        page: the HTML file.
        script: JavaScript that returns an object once the page is there; ``await go("#page=2")`` changes the fragment,
            and ``await after(act)`` waits until what ``act`` does has changed it.
        fragment: that of the address at first.

    Returns:
        The object, with "requests", all that the page has loaded, and "console", what stands in the browser's console.
    """
    copy = page.with_name(f"opened_{page.name}")
    text = page.read_text(encoding="utf-8")
    text = text.replace("<head>", f'<head><meta http-equiv="Content-Security-Policy" content="{_NOTHING}">', 1)
    copy.write_text(text.replace("</body>", _REPORT.format(script=script) + "</body>"), encoding="utf-8")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
    options += ["--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={page.parent / 'profile'}"]
    options += ["--enable-logging=stderr", "--virtual-time-budget=20000", "--window-size=1200,900", "--dump-dom"]
    done = run_command(str(CHROMIUM), *options, copy.as_uri() + fragment)
    assert done.returncode == 0, done.stderr
    found = re.search(r"<pre>(.*)</pre>", done.stdout)
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    assert found is not None, console or done.stdout[-2000:]
    unescaped = found[1].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")
    return {**json.loads(unescaped), "console": console}
