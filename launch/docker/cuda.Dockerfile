# pcls for NVIDIA GPUs. CUDA and cuDNN come as wheels with jax[cuda12]; the host needs the driver and NVIDIA's container toolkit.
# docker build --file launch/docker/cuda.Dockerfile --tag pcls:cuda .
#
# The base is pinned by version. A tag can be moved: for a build that is the same for ever, write the digest that
# `docker buildx imagetools inspect python:3.13.9-slim-bookworm` shows behind it, as in @sha256:...
FROM python:3.13.9-slim-bookworm

# No root: who may write a volume is then a matter of its group, which pcls launch sets on Kubernetes (fsGroup 10001).
RUN groupadd --gid 10001 pcls && useradd --uid 10001 --gid 10001 --create-home pcls

WORKDIR /opt/pcls
COPY pyproject.toml ./
COPY constraints constraints
COPY configs configs
COPY pcls pcls
# One layer, without pip's cache. What constraints do not name, jax's own requirements pin: its plugins.
RUN pip install --no-cache-dir --constraint constraints/py3.13.txt ".[cuda,gcs]"

USER pcls
WORKDIR /home/pcls
# Signals reach pcls itself; whoever starts the container names the verb.
CMD ["pcls", "--help"]
