"""The pages in headless Chromium, on a desktop and on a phone."""

import http.server
import json
import queue
import shutil
import subprocess
import threading

import pytest

from mvlm_jax.cli import prepare as prepare_command
from mvlm_jax.cli import report as report_command

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
# Each frame has the page's own policy, so that a request it makes would be refused and counted.
MEASURE = """<!DOCTYPE html><meta charset="utf-8"><title>wait</title><body>
<script id="page" type="application/json">%s</script>
<script>
const html = JSON.parse(document.getElementById("page").textContent);
const results = [];
for (const width of [1280, 390]) {
  const frame = document.createElement("iframe");
  frame.style.cssText = `width:${width}px;height:900px;border:0`;
  frame.srcdoc = html;
  frame.onload = async () => {
    const inner = frame.contentDocument;
    let refused = 0;
    inner.addEventListener("securitypolicyviolation", () => { refused += 1; });
    await Promise.all([...inner.images].map(image => image.decode().catch(() => {})));
    const root = inner.documentElement;
    results.push({
      width: root.clientWidth, scroll: root.scrollWidth, images: inner.images.length, refused,
      broken: [...inner.images].filter(image => !image.naturalWidth).length,
      requests: frame.contentWindow.performance.getEntriesByType("resource")
        .filter(one => !one.name.startsWith("data:")).length,
      font: frame.contentWindow.getComputedStyle(inner.body).fontSize,
    });
    if (results.length == 2) fetch("/measured", {method: "POST", body: JSON.stringify(results)});
  };
  document.body.append(frame);
}
</script>"""


@pytest.fixture(scope="module", params=["report", "comparison", "preview"])
def page(request, demo_run, demo_dir, tmp_path_factory):
    directory = tmp_path_factory.mktemp(request.param)
    run = directory / "run"
    shutil.copytree(demo_run, run)
    if request.param == "preview":
        flags = [f"--config.data.data_dir={demo_dir}"]
        assert prepare_command.run(["--preview", "--config=demo", f"--report_dir={directory}", *flags]) == 0
        return directory / "preview.html"
    other = [f"--compare={demo_run}"] if request.param == "comparison" else []
    assert report_command.run([f"--workdir={run}", "--examples=2", *other]) == 0
    return run / f"{request.param}.html"


class Measuring(http.server.BaseHTTPRequestHandler):
    """Serves the page that measures, and takes what it has measured."""

    def do_GET(self):
        self._answer(self.server.page if self.path == "/" else b"")

    def do_POST(self):
        self.server.measured.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self._answer(b"")

    def _answer(self, body):
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def in_browser(page, *, profile):
    """What Chromium measures of a page, and what it writes to standard error meanwhile."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Measuring) as server:
        server.page, server.measured = page.encode(), queue.Queue()
        threading.Thread(target=server.serve_forever, daemon=True).start()
        flags = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}", "--enable-logging=stderr"]
        # It stays open as long as somebody may debug it.
        command = [CHROMIUM, *flags, "--remote-debugging-port=0", f"http://127.0.0.1:{server.server_port}/"]
        browser = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        try:
            measured = server.measured.get(timeout=120)
        finally:
            browser.terminate()
            _, errors = browser.communicate()
            server.shutdown()
    return measured, errors


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
def test_a_page_fits_a_desktop_and_a_phone_and_asks_for_nothing(page, tmp_path):
    wrapper = MEASURE % json.dumps(page.read_text()).replace("</", "<\\/")
    measured, errors = in_browser(wrapper, profile=tmp_path / "profile")
    wide, narrow = sorted(measured, key=lambda one: -one["width"])
    for one, width in ((wide, 1280), (narrow, 390)):
        assert width - 20 <= one["width"] <= width and one["scroll"] <= one["width"]
        assert one["images"] > 0 and one["broken"] == one["refused"] == one["requests"] == 0
        assert one["font"] == "16px"
    assert "CONSOLE" not in errors, errors
