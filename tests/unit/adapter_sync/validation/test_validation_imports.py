"""What the validation may not bring into the gateway's process."""

import subprocess
import sys


def test_neither_torch_nor_vllm_is_imported() -> None:
    script = (
        "import sys, adapter_sync.validation, adapter_sync.base_models, adapter_sync.intake; "
        "print(sorted({'torch', 'vllm', 'peft', 'transformers', 'gateway', 'engine'} "
        "& sys.modules.keys()))"
    )

    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60
    )

    assert done.stdout == "[]\n"
