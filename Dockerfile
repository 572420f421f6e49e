# The server. torch's wheels bring CUDA's libraries, so that the base is a plain Python; the machine brings the driver.
#
#     docker build -t nninteractive-ws .
#
# BASE: an image of the Debian family with Python 3.11 or newer and its venv module.
ARG BASE=python:3.12-slim

# ---- the packages: gigabytes that stay as they are while only the code changes -----------------------------
FROM ${BASE} AS packages
RUN python3 -m venv /opt/nninteractive-ws
WORKDIR /source
COPY pyproject.toml hatch_build.py ./
# A package without code or README has the same requirements. The secret "pip" is a pip.conf for this build alone, where
# packages come from somewhere else: a mirror of the house, or torch's index for an image without CUDA.
RUN --mount=type=secret,id=pip,target=/etc/pip.conf \
    mkdir nninteractive_ws && touch nninteractive_ws/__init__.py README.md LICENSE \
    && /opt/nninteractive-ws/bin/pip install --no-cache-dir --disable-pip-version-check '.[server]' \
    && /opt/nninteractive-ws/bin/pip uninstall --yes nninteractive-ws

# ---- our own package, as a wheel ---------------------------------------------------------------------------
FROM packages AS wheel
# The base has no Node.js, so pip downloads it to build the web page. "require" makes it an error if that is not possible,
# "skip" builds an image without the page.
ARG NNINTERACTIVE_WS_PAGE=
COPY README.md LICENSE ./
COPY web web
COPY nninteractive_ws nninteractive_ws
RUN --mount=type=secret,id=pip,target=/etc/pip.conf \
    /opt/nninteractive-ws/bin/pip wheel --no-cache-dir --disable-pip-version-check --no-deps --wheel-dir /wheel .

# ---- what runs ---------------------------------------------------------------------------------------------
FROM ${BASE}
LABEL org.opencontainers.image.title="nninteractive-ws" \
      org.opencontainers.image.licenses="Apache-2.0"
# A number that does not change: files on the host that the server is to read are given to it.
RUN useradd --uid 10001 --user-group --create-home nninteractive \
    && install -d -o nninteractive -g nninteractive /models
COPY --from=packages /opt/nninteractive-ws /opt/nninteractive-ws
RUN --mount=type=bind,from=wheel,source=/wheel,target=/wheel \
    /opt/nninteractive-ws/bin/pip install --no-cache-dir --disable-pip-version-check --no-deps --no-index /wheel/*.whl
COPY docker/healthcheck.py /opt/nninteractive-ws/healthcheck.py

ENV PATH=/opt/nninteractive-ws/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    NNINTERACTIVE_MODEL_DIR=/models \
    HF_HOME=/models/huggingface \
    MPLCONFIGDIR=/tmp/matplotlib
USER nninteractive
WORKDIR /home/nninteractive
# Downloaded models. While there are none, the embedded one is served.
VOLUME /models
EXPOSE 1528
# Loading a model takes seconds, downloading one minutes.
HEALTHCHECK --interval=30s --timeout=15s --start-period=5m --retries=3 \
    CMD ["python3", "/opt/nninteractive-ws/healthcheck.py"]
ENTRYPOINT ["nninteractive-ws"]
# Without tokens this says that they are missing, and ends: add --token-file, as compose.yaml does; or --insecure where
# the port is published on the host's loopback alone.
CMD ["serve", "--host", "0.0.0.0"]
