# One image for each kind of machine: docker build --target=cpu|gpu|tpu --tag=mvlm:gpu .
# The versions are those of constraints.txt and constraints-gpu.txt; docs/launch/containers.md has the rest.

FROM python:3.11-slim-bookworm AS base
ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
# The user may write to the folder, but not change the program in it.
RUN useradd --uid=1000 --create-home mvlm \
    && install --directory --owner=mvlm /mvlm \
    && python -m venv /venv
ENV PATH=/venv/bin:$PATH
WORKDIR /mvlm
# What installs the dependencies stands before the program: a change of the program installs none of them again.
COPY setup.py pyproject.toml constraints.txt constraints-gpu.txt README.md LICENSE ./
COPY mvlm_jax/__init__.py mvlm_jax/
RUN pip install --constraint=constraints.txt --editable=.

FROM base AS gpu-packages
RUN pip install --constraint=constraints.txt --constraint=constraints-gpu.txt --editable='.[gpu]'

FROM base AS tpu-packages
RUN pip install --constraint=constraints.txt --editable='.[tpu]'

FROM gpu-packages AS gpu
COPY . .
USER 1000
CMD ["mvlm", "--help"]

FROM tpu-packages AS tpu
COPY . .
USER 1000
CMD ["mvlm", "--help"]

FROM base AS cpu
COPY . .
USER 1000
CMD ["mvlm", "--help"]
