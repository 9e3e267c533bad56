"""vLLM's processes: they end with the one that started them, however it ends, and can be found.

vLLM 0.32 lets an engine core live on when the process before it is killed, and on a GPU it would
keep all its memory. Its two entry points are replaced by functions of this module, which the new
process finds by their names. https://man7.org/linux/man-pages/man2/PR_SET_PDEATHSIG.2const.html
"""

import ctypes
import os
import signal
from typing import Any

_PR_SET_PDEATHSIG = 1
_NAMES = ("LORA_INSTANCE", "LORA_INSTANCE_PART", "LORA_DATA_DIR")
"""By these variables of its environment what is left of an installation is found."""
_ORIGINAL = "_original_main"
"""Where a class keeps the function that was replaced: a forked process inherits both."""


def end_engine_with_this_process() -> None:
    """Have every engine that is started from now on end with the thread that starts it."""
    from vllm.v1.engine.core import EngineCoreProc

    if not hasattr(EngineCoreProc, _ORIGINAL):
        setattr(EngineCoreProc, _ORIGINAL, EngineCoreProc.run_engine_core)
        EngineCoreProc.run_engine_core = staticmethod(run_engine_core)


def run_engine_core(*args: Any, **options: Any) -> None:
    """EngineCoreProc.run_engine_core, in a process that its parent's death ends."""
    from vllm.v1.engine.core import EngineCoreProc
    from vllm.v1.executor.multiproc_executor import WorkerProc

    _end_with_parent()
    keep_name()
    if not hasattr(WorkerProc, _ORIGINAL):
        setattr(WorkerProc, _ORIGINAL, WorkerProc.worker_main)
        WorkerProc.worker_main = staticmethod(run_worker)
    # A spawned process imports vLLM anew, and has the original in its place.
    getattr(EngineCoreProc, _ORIGINAL, EngineCoreProc.run_engine_core)(*args, **options)


def run_worker(*args: Any, **options: Any) -> None:
    """WorkerProc.worker_main, in a process that its parent's death ends."""
    from vllm.v1.executor.multiproc_executor import WorkerProc

    _end_with_parent()
    keep_name()
    getattr(WorkerProc, _ORIGINAL, WorkerProc.worker_main)(*args, **options)


def keep_name() -> None:
    """Keep the installation's name where /proc shows it, though vLLM sets a title.

    A title is written over the environment as far as that is in one piece; a variable that is set
    anew lies elsewhere, so the piece ends before it.
    """
    for name in _NAMES:
        if (value := os.environ.get(name)) is not None:
            os.environ[name] = value


def _end_with_parent() -> None:
    """Have the kernel kill this process when its parent dies; it may have died already."""
    parent = os.getppid()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)
