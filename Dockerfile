# The production image: NVIDIA's Triton with its Python backend, and vLLM for CUDA.
#   docker build -t lora-server .
#   docker run --gpus all --shm-size=2g -v lora-data:/data -p 8080:8080 lora-server
# Base models are added once, into the volume: see docs/production.md.
FROM nvcr.io/nvidia/tritonserver:26.07-py3

WORKDIR /opt/lora-server

# The environment changes seldom and is large: a layer of its own, from the list alone.
COPY requirements/cuda.txt requirements/cuda.txt
COPY scripts/setup scripts/setup
ENV LORA_SETUP="--python 3.12 --requirements requirements/cuda.txt --no-triton --no-demo-model"
RUN ["scripts/setup", "--python", "3.12", "--requirements", "requirements/cuda.txt", \
     "--no-triton", "--no-demo-model"]

COPY deploy/image deploy/image
RUN ["deploy/image/prepare-data-folder", "/data", "1000"]

COPY adapter_sync adapter_sync
COPY engine engine
COPY gateway gateway
COPY scripts scripts

# The image's own triton-server user.
USER 1000:1000
ENV HOME=/data \
    HF_HOME=/data/huggingface \
    LORA_DATA_DIR=/data/lora \
    LORA_MODELS_DIR=/data/models \
    MODEL_REPOSITORY=/data/model_repository \
    GATEWAY_HOST=0.0.0.0
VOLUME /data
EXPOSE 8080
ENTRYPOINT ["scripts/serve"]
