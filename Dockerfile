# The package as it is installed, with its commands ctl-train, ctl-embed and so on. Build it in this folder:
#
#   docker build -t centroids-reid .
#   docker build -t centroids-reid --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu130 .
#
# and run it, here on a GPU. It works in /workspace, so ./runs has the weights to start from, in models/, and gets the logs:
#
#   mkdir -p runs && docker run --rm --gpus all --shm-size 8g -v "$PWD/data:/data:ro" -v "$PWD/runs:/workspace" \
#       centroids-reid ctl-train --config_file 256_resnet50.yml DATASETS.NAMES market1501 DATASETS.ROOT_DIR /data
#
# The loader's workers pass images through shared memory, of which a container has 64 MB unless --shm-size gives it more.
# The user has the id 1000. If yours (id -u) is another, build with --build-arg USER_ID=$(id -u): otherwise the container
# cannot write to your folders. scripts/check_dockerfile.sh carries out what follows without docker.
ARG PYTHON=3.12

FROM python:${PYTHON}-slim AS build
WORKDIR /src
COPY . .
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /dist .

FROM python:${PYTHON}-slim
ARG USER_ID=1000
RUN useradd --no-log-init --uid ${USER_ID} --create-home --home-dir /workspace reid
# By itself, for it is large and rarely changes. What it requires is not all on its index, so it comes below.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
COPY constraints.txt /dist/
RUN pip install --no-cache-dir --no-deps --index-url ${TORCH_INDEX} --constraint /dist/constraints.txt torch torchvision
ARG EXTRAS=train,export
COPY --from=build /dist/ /dist/
RUN pip install --no-cache-dir --constraint /dist/constraints.txt "$(ls /dist/*.whl)${EXTRAS:+[${EXTRAS}]}"
ENV PYTHONUNBUFFERED=1
USER ${USER_ID}
WORKDIR /workspace
CMD ["ctl-train", "--help"]
