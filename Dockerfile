# The image of the server: `serve`, `migrate` and all other commands. docs/deployment.md describes its use.
#
# It runs as a user without a name and writes to three places only: /var/lib/integration-server/data (SQLite, if it is used),
# /var/lib/integration-server/journal (the refresh journal, which has to outlive the container) and /tmp (sockets of the
# processes). Everything else may be mounted read-only. Nothing in it needs a shell.

FROM python:3.13.16-slim-trixie AS base
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_NO_DEPS=1 \
    PIP_ROOT_USER_ACTION=ignore

# --- the wheel of the project ---------------------------------------------------------------------------------------

FROM base AS wheel
WORKDIR /build
COPY requirements-run.lock ./
RUN python -m pip install --require-hashes --requirement requirements-run.lock
COPY pyproject.toml README.md hatch_build.py ./
COPY protos/integrations.v1.binpb protos/
COPY generated generated
COPY integration_server integration_server
RUN python -m pip wheel --no-build-isolation --wheel-dir dist .

# --- the installed packages -----------------------------------------------------------------------------------------

FROM base AS packages
WORKDIR /build
COPY requirements-image.lock ./
# The environment has no pip of its own: the server installs nothing.
RUN python -m venv --without-pip /opt/integration-server \
    && python -m pip --python /opt/integration-server install --require-hashes --requirement requirements-image.lock
COPY --from=wheel /build/dist dist
# A new volume gets the owner of the folder over which it is mounted.
RUN python -m pip --python /opt/integration-server install --no-index --find-links dist integration-server \
    && install --directory --mode=0700 --owner=10001 --group=10001 /volumes/data /volumes/journal

# --- the image ------------------------------------------------------------------------------------------------------

FROM python:3.13.16-slim-trixie
COPY --from=packages /opt/integration-server /opt/integration-server
COPY --from=packages --chown=10001:10001 /volumes /var/lib/integration-server
ENV PATH=/opt/integration-server/bin:/usr/local/bin:/usr/bin:/bin \
    PYTHONDONTWRITEBYTECODE=1 \
    HOME=/tmp \
    REFRESH_JOURNAL_DIR=/var/lib/integration-server/journal
# Where ./data and .env of the settings are.
WORKDIR /var/lib/integration-server
VOLUME ["/var/lib/integration-server/data", "/var/lib/integration-server/journal"]
USER 10001:10001
EXPOSE 50051 8080 9464
# Readiness, as a load balancer has to know it. An orchestrator that restarts unhealthy containers uses `--live`.
HEALTHCHECK --interval=15s --timeout=5s --start-period=60s --start-interval=2s --retries=3 \
    CMD ["integration-server", "healthcheck"]
ENTRYPOINT ["integration-server"]
CMD ["serve"]
