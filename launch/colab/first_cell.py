# @title Set up { display-mode: "form" }
import glob
import html
import importlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

from IPython.display import HTML, display

# The git address of mvlm-jax, or of your fork. It is not used where the notebook lies in a checkout.
REPOSITORY = ""  # @param {type:"string"}


def checkout():
    """The checkout of mvlm-jax around the working directory; None where there is none."""
    here = Path.cwd()
    parts = ("setup.py", "mvlm_jax/__init__.py")
    return next((at for at in (here, *here.parents) if all((at / part).is_file() for part in parts)), None)


def packages(address):
    """What pip is to install for the accelerator of this machine."""
    if glob.glob("/dev/accel*") or glob.glob("/dev/vfio/[0-9]*"):
        return [f"mvlm-jax[tpu] @ {address}"]
    if shutil.which("nvidia-smi"):
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        driver = subprocess.run(query, capture_output=True, text=True).stdout.partition(".")[0].strip()
        if driver.isdecimal() and int(driver) >= 580:  # what CUDA 13 needs, which the extra `gpu` installs
            return [f"mvlm-jax[gpu] @ {address}"]
        if driver.isdecimal():
            return [f"mvlm-jax @ {address}", "jax[cuda12]>=0.10,<0.13"]
    return [f"mvlm-jax @ {address}"]


def mvlm(*words, fields=None):
    """Runs `mvlm …` as in a terminal, but in this process: an accelerator may serve one process only.

    `fields` are those of the config to set, by name.
    """
    from mvlm_jax import cli

    flags = [f"--config.{name}={value}" for name, value in (fields or {}).items()]
    if cli.main([*map(str, words), *flags]):
        sys.exit(f"mvlm {words[0]} failed; its message is above")


def show_page(file, *, height=700):
    """An HTML file, inline."""
    page = html.escape(Path(file).read_text("utf-8"))
    style = f"width: 100%; height: {height}px; border: 1px solid #8884"
    display(HTML(f'<div><iframe title="{html.escape(str(file))}" srcdoc="{page}" style="{style}"></iframe></div>'))


def show_row(pictures):
    """(title, picture) pairs beside each other."""
    import matplotlib.pyplot as plt

    lines = max(title.count("\n") for title, _ in pictures) + 1
    size = (2.4 * len(pictures), 2.5 + 0.18 * lines)
    figure, panels = plt.subplots(1, len(pictures), figsize=size, squeeze=False, layout="constrained")
    for panel, (title, picture) in zip(panels[0], pictures):
        panel.imshow(picture, interpolation="nearest")
        panel.set_title(title, fontsize=9)
        panel.set_axis_off()
    plt.show()


root = checkout()
if root:
    os.chdir(root)  # where `make demo` leaves its run
try:
    import mvlm_jax.inference
except ImportError:
    if not (root or REPOSITORY):
        sys.exit("REPOSITORY is empty; give the git address of mvlm-jax there and run this cell again")
    print("installing mvlm-jax, which takes a few minutes")
    wanted = packages(root.as_uri() if root else f"git+{REPOSITORY}")
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", *wanted, "matplotlib"], check=True)
    importlib.invalidate_caches()
    import mvlm_jax.inference

import jax  # noqa: E402

print(f"mvlm_jax {mvlm_jax.__version__} on {', '.join(map(str, jax.devices()))}; files go to {Path.cwd()}")
