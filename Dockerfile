# An image for machines with an NVIDIA GPU, and for those without. PyTorch's wheels bring CUDA: the host needs a driver and the NVIDIA
# container toolkit, nothing else. docs/try.md says how to build and start it.
FROM python:3.11-slim-bookworm AS tools
# Of Debian's packages the newest are wanted, with all security fixes.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ git libfribidi0 make openssh-client \
    && rm -rf /var/lib/apt/lists/*
# The number of the first account on most machines, to whom files in mounted folders then belong.
RUN useradd --create-home --uid 1000 ldm && mkdir /ldm && chown ldm /ldm
USER 1000
WORKDIR /ldm

FROM tools AS ldm
# The environment comes first: an edit of the code leaves it as it is.
COPY --chown=ldm requirements.lock ./
RUN python -m venv .venv && .venv/bin/python -m pip install --no-cache-dir -r requirements.lock
COPY --chown=ldm . .
# What `make setup` does last. Volumes take the owner of the folders below them.
RUN .venv/bin/python -m pip install --no-cache-dir --no-deps --no-build-isolation --editable . \
    && touch .venv/installed && mkdir -p runs .dvc/cache
ENV PATH="/ldm/.venv/bin:$PATH"
CMD ["ldm"]
