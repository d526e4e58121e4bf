# The kernels are compiled where there is a compiler, and only the wheel goes on.
FROM python:3.11-slim AS build
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
WORKDIR /srv/build
COPY pyproject.toml setup.py LICENSE README.md ./
COPY core core
COPY app app
COPY weights weights
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /srv/wheel .

FROM python:3.11-slim

# The heavy layer first: it changes only with the dependencies. torch's Linux wheel brings the CUDA libraries with it.
WORKDIR /srv/clearfold
ENV PATH=/srv/venv/bin:$PATH
RUN python -m venv /srv/venv
COPY pyproject.toml ./
RUN python -c "import tomllib; project = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
    print('\n'.join(project['dependencies'] + project['optional-dependencies']['s3']))" > requirements.txt \
    && pip install --no-cache-dir -r requirements.txt

COPY --from=build /srv/wheel /srv/wheel
RUN pip install --no-cache-dir --no-deps /srv/wheel/*.whl && rm -rf /srv/wheel pyproject.toml requirements.txt

RUN useradd --create-home --uid 1000 clearfold && mkdir /data && chown clearfold /data
USER clearfold
WORKDIR /data

# Open to anyone who reaches the port, with training off, unless CLEARFOLD_API_KEYS is set.
ENV CLEARFOLD_HOST=0.0.0.0 CLEARFOLD_OPEN_TO_ANYONE=true CLEARFOLD_PORT=8000 CLEARFOLD_TRAIN_DIR=/data PYTHONUNBUFFERED=1
EXPOSE 8000
VOLUME /data
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s \
    CMD ["python", "-c", "import os, urllib.request as r; r.urlopen(f'http://127.0.0.1:{os.environ[\"CLEARFOLD_PORT\"]}/readyz', timeout=2)"]
CMD ["clearfold", "serve"]
