# An image with the command `superpose`:
#
#     docker build -t superpose .
#     mkdir -p runs && docker run --rm --user "$(id -u)" -v "$PWD/runs:/data/runs" superpose compare
#
# It builds without a GPU. PyPI's PyTorch brings CUDA along, and computes on a CPU all the same. For a smaller image for CPUs alone:
#
#     docker build -t superpose --build-arg PIP_EXTRA_INDEX_URL=ADDRESS .     # ADDRESS: PyTorch's index of CPU builds
#
# For GPUs, on a base that brings CUDA and the PyTorch of constraints.txt, which are then kept:
#
#     docker build -t superpose --build-arg BASE=pytorch/pytorch:2.13.0-cudaVERSION-cudnn9-runtime .
#     docker run --rm --gpus all superpose train cpu-tiny --out runs/one --set train.device=cuda
#
# `train.compile` needs a C++ compiler as well, which python:3.13 has and python:3.13-slim has not.
ARG BASE=python:3.13-slim
FROM ${BASE}

ARG PIP_EXTRA_INDEX_URL
ARG EXTRA=report

COPY pyproject.toml setup.py README.md LICENSE constraints.txt /src/
COPY src /src/src
RUN python3 -m venv --system-site-packages /opt/superpose && \
    /opt/superpose/bin/pip install --no-cache-dir -c /src/constraints.txt "/src[${EXTRA}]" && \
    install -d -m 1777 /data

# Any user may write there, one without a name too.
ENV PATH=/opt/superpose/bin:${PATH} HOME=/data USER=superpose
WORKDIR /data
ENTRYPOINT ["superpose"]
CMD ["--help"]
