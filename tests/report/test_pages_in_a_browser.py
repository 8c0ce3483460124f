"""The pages in headless Chromium, on a desktop and on a phone."""

import json
import re
import shutil
import subprocess

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
    if (results.length == 2) document.body.textContent = "measured " + JSON.stringify(results);
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


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
def test_a_page_fits_a_desktop_and_a_phone_and_asks_for_nothing(page, tmp_path):
    wrapper = tmp_path / "measure.html"
    wrapper.write_text(MEASURE % json.dumps(page.read_text()).replace("</", "<\\/"))
    flags = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={tmp_path}/profile",
        "--enable-logging=stderr",
    ]
    ran = subprocess.run(
        [CHROMIUM, *flags, "--virtual-time-budget=8000", "--dump-dom", wrapper.as_uri()],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    [measured] = re.findall(r"measured (\[.*?\])</body>", ran.stdout)
    wide, narrow = sorted(json.loads(measured), key=lambda one: -one["width"])
    for one, width in ((wide, 1280), (narrow, 390)):
        assert width - 20 <= one["width"] <= width and one["scroll"] <= one["width"]
        assert one["images"] > 0 and one["broken"] == one["refused"] == one["requests"] == 0
        assert one["font"] == "16px"
    assert "CONSOLE" not in ran.stderr, ran.stderr
