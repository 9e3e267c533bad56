"""The code that runs inside Triton's Python backend.

May import vllm, triton_python_backend_utils and, of adapter_sync, only the lora map's format and
the model path's rule. Never the gateway.
"""
