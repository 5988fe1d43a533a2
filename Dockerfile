# The local engine with the application, for systems that are not Linux: docs/getting-started.md.

# Any image of Linux with Python 3.13 and its venv module will do.
ARG BASE=python:3.13-slim
FROM ${BASE}

COPY . /src
RUN python3.13 -m venv /opt/gradshard \
    && /opt/gradshard/bin/pip install --no-cache-dir --disable-pip-version-check '/src[local]' \
    && mkdir --mode=777 /work

ENV HOME=/work \
    PATH=/opt/gradshard/bin:${PATH} \
    SAM_CLI_TELEMETRY=0
WORKDIR /work
# Functions are processes here: none of them needs to be root.
USER 1000:1000

EXPOSE 4566
# Nothing is to be saved: rounds are in the engine's memory.
STOPSIGNAL SIGKILL
# A published port leads to the container's own address.
CMD ["sh", "-c", "gradshard local up --bind \"$(hostname -i | cut -d ' ' -f 1)\" && exec tail -f .cache/gradshard/engine-4566/engine.log"]
