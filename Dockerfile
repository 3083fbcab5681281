# A CPU image that runs `steel serve` (the default) or any other command as an unprivileged user.
#
#   docker build -t steel .
#   docker run -p 8000:8000 -e STEEL_TOKEN=change-me -v ./inspector.pt:/data/inspector.pt:ro -v steel-verdicts:/verdicts steel
#
# A CPU-only torch is a tenth of the size: pass the index that has such wheels as --build-arg TORCH_INDEX=URL.
FROM python:3.13-slim AS build
ARG TORCH_INDEX=""
ARG VERSION=0.1.0.dev0
ENV UV_COMPILE_BYTECODE=1 \
    UV_LINK_MODE=copy \
    UV_PYTHON_DOWNLOADS=never \
    SETUPTOOLS_SCM_PRETEND_VERSION=$VERSION
RUN pip install --no-cache-dir "uv>=0.8,<1"
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY conf conf
COPY steel steel
RUN uv venv /opt/steel \
    && uv pip install --no-cache --python /opt/steel/bin/python ${TORCH_INDEX:+--index "$TORCH_INDEX"} ".[serve]"

FROM python:3.13-slim
RUN useradd --uid 10001 --create-home steel \
    && install --directory --owner steel --group steel /data /verdicts /out
COPY --from=build /opt/steel /opt/steel
ENV PATH=/opt/steel/bin:$PATH
# Numeric, so that Kubernetes can verify that it is not root.
USER 10001
WORKDIR /data
VOLUME /verdicts
EXPOSE 8000
HEALTHCHECK --start-period=60s CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8000/healthz', timeout=3)"]
ENTRYPOINT ["steel"]
CMD ["serve", "/data/inspector.pt", "--host", "0.0.0.0", "--verdicts", "/verdicts/verdicts.sqlite"]
