"""Run Triton, adapter_sync and the gateway in the foreground, under supervisord.

supervisord: http://supervisord.org. This process stays above it: it says when the server is
ready, and at the end makes sure that no process is left.
"""

import argparse
import contextlib
import fcntl
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from adapter_sync.settings import Settings

LOOK_PERIOD_S = 1.0
START_TRIES = 3
"""How often supervisord tries to start a program that ends within STARTED_S, in a row."""
STARTED_S = 5
END_S = 15
TRY_AGAIN_S = 10.0
"""When a program is tried again that supervisord has given up."""
CONFIG_FILE = "config.pbtxt"
EPILOG = """\
settings, from the environment or a .env file in the checkout (relative folders count from there):
  LORA_DATA_DIR        registry, blobs, staging, sockets (default: data)
  MODEL_REPOSITORY     Triton's model repository, on the same file system as LORA_DATA_DIR
                       (default: model_repository; a folder that is not there yet is made with
                       the default base model)
  LORA_MODELS_DIR      where a base model's relative path is looked up first
                       (default: .runtime/models)
  LORA_REGISTRY_URL    postgresql+psycopg://USER:PASSWORD@HOST/DATABASE in place of the SQLite file
                       in LORA_DATA_DIR
  LORA_BLOB_TRASH_HOURS
                       how long a deleted adapter's files are kept, so that an older back-up of the
                       registry finds them again (default: 24); they go earlier while the disk is
                       nearly full
  LORA_BLOB_SCRUB_HOURS
                       in how many hours every blob is read and checked once (default: 24)
  LORA_TIERS_FILE      a TOML file of tiers, in place of the built-in ones
  LORA_ADMIN_KEY       opens the admin API below /admin/v1; without it there is none
  LORA_REQUEST_TIMEOUT_S
                       how long a request for tokens may take (default: 1800); a client asks for
                       less in the x-request-timeout header
  LORA_STOP_NOTICE_S   how long a gateway that stops still serves while it says that it is not
                       ready (default: 2)
  LORA_STOP_WITHIN_S   how long requests under way may then take (default: 120)
  LORA_TRITON_KEY      what Triton's own ports ask for in the header lora-triton-key; without it
                       they ask for nothing
  GATEWAY_HOST         default 127.0.0.1
  GATEWAY_PORT         default 8080
  GATEWAY_WORKERS      how many processes share that port (default: 1)
  TRITON_HTTP_PORT     default 8000
  TRITON_GRPC_PORT     default 8001
  TRITON_METRICS_PORT  default 8002
  TRITON_HOST          default 127.0.0.1: Triton's own ports have no authentication
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until Ctrl-C or SIGTERM; 0 after a clean stop."""
    parser = argparse.ArgumentParser(
        prog="scripts/serve",
        description="Run Triton, adapter_sync and the gateway in the foreground; Ctrl-C stops "
        "them. The first token comes about a minute after the start: vLLM has to load.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--control",
        choices=["explicit", "poll"],
        default="explicit",
        help="how Triton learns of a changed repository: `explicit` load calls by adapter_sync, "
        "or its own `poll` (default: explicit)",
    )
    arguments = parser.parse_args(argv)
    try:
        return serve(arguments.control)
    except ServeError as error:
        print(f"serve: {error}", file=sys.stderr)
        return 1


class ServeError(Exception):
    """Serving can't begin; the message says what to do."""


def serve(control: str) -> int:
    """Check, start, say when it is ready, wait, clear away.

    Raises ServeError when a setting, a port or another instance stands in the way.
    """
    from adapter_sync.errors import ConfigurationError
    from adapter_sync.settings import load_settings
    from adapter_sync.tiers import load_tiers
    from stack.installation import (
        INSTANCE_VARIABLE,
        end,
        instance_id,
        leftovers,
        lock,
        taken_ports,
    )

    try:
        settings = load_settings()
        load_tiers(settings.lora_tiers_file)
    except ConfigurationError as error:
        raise ServeError(str(error)) from None
    held = lock(settings)
    if held is None:
        raise ServeError(f"LORA_DATA_DIR {settings.lora_data_dir} is being served already")
    with held:
        check_paths(settings)
        end(leftovers(settings))
        if taken := taken_ports(settings):
            raise ServeError("; ".join(taken))
        check_installation(settings)
        seed_repository(settings)
        hold_repository(settings.model_repository)
        renew_configs(settings)
        append_to_logs()
        settings.socket_folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.environ[INSTANCE_VARIABLE] = instance_id(settings)
        try:
            return supervise(settings, control)
        finally:
            end(leftovers(settings))


def check_installation(settings: "Settings") -> None:
    """Raise ServeError when the registry and the blobs don't belong together."""
    from adapter_sync.errors import ConfigurationError
    from adapter_sync.installation import open_installation
    from adapter_sync.tiers import load_tiers

    try:
        open_installation(settings, load_tiers(settings.lora_tiers_file)).close()
    except ConfigurationError as error:
        raise ServeError(str(error)) from None


def check_paths(settings: "Settings") -> None:
    """Raise ServeError for a path that Triton's Python backend can't start a model from.

    It builds a shell's command line from them, unquoted: python_backend's stub_launcher.cc.
    """
    from stack.installation import ROOT

    for path in (ROOT, settings.model_repository):
        if any(character.isspace() for character in str(path)):
            raise ServeError(
                f"Triton's Python backend can't start models from a path with spaces: '{path}'. "
                "Use another folder."
            )


def hold_repository(repository: Path) -> None:
    """Lock the repository until this process ends. Raises ServeError when another one has it."""
    descriptor = os.open(repository, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ServeError(
            f"MODEL_REPOSITORY {repository} is being served already, with another LORA_DATA_DIR: "
            "give each installation a repository of its own"
        ) from None


def append_to_logs() -> None:
    """Let every process write at the end of a log file: supervisord opens it a second time."""
    for descriptor in (sys.stdout.fileno(), sys.stderr.fileno()):
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
            fcntl.fcntl(descriptor, fcntl.F_SETFL, flags | os.O_APPEND)


def seed_repository(settings: "Settings") -> None:
    """Give a repository that is empty or not there yet the checkout's own base models.

    Only those whose weights are on this machine. Raises ServeError when nothing can be served.
    """
    from adapter_sync.model_path import resolve_model
    from stack.installation import ROOT

    repository = settings.model_repository
    is_empty = not repository.is_dir() or not any(repository.iterdir())
    for engine_arguments in sorted((ROOT / "model_repository").glob("*/1/model.json")):
        model = json.loads(engine_arguments.read_text(encoding="utf-8"))["model"]
        if is_empty and Path(resolve_model(model, settings.lora_models_dir)).is_dir():
            folder = engine_arguments.parent.parent
            repository.mkdir(parents=True, exist_ok=True)
            settings.staging_folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=settings.staging_folder) as stage:
                tree = shutil.copytree(folder, Path(stage) / folder.name)
                tree.rename(repository / folder.name)
            print(f"serve: put the base model {folder.name} into {repository}", file=sys.stderr)
    if not any(repository.glob("*/1/model.json")):
        raise ServeError(
            f"MODEL_REPOSITORY {repository} holds no base model: add one with "
            "scripts/add-base-model NAME --model PATH_OR_HF_ID"
        )


def renew_configs(settings: "Settings") -> None:
    """Give base models that an earlier version wrote the config.pbtxt of this one.

    Its tensors are what the gateway and the engine speak. Triton does not run yet, which would
    start a changed base model anew. One that does not begin as ours do is the operator's.
    """
    from adapter_sync.base_models import base_model_folders
    from adapter_sync.companion_folder import TEMPLATES

    ours = (TEMPLATES / "base" / CONFIG_FILE).read_bytes()
    heading = ours.partition(b"\n")[0]
    for folder in base_model_folders(settings.model_repository):
        config = folder / CONFIG_FILE
        found = config.read_bytes() if config.is_file() else ours
        if found != ours and found.startswith(heading):
            settings.staging_folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=settings.staging_folder) as stage:
                new = Path(stage) / CONFIG_FILE
                new.write_bytes(ours)
                new.replace(config)
            print(f"serve: renewed {config}, an earlier version's", file=sys.stderr)


def supervise(settings: "Settings", control: str) -> int:
    """Run supervisord until it ends; its exit status, or 0 when it was asked to."""
    from stack.installation import end_with_parent

    configuration = settings.lora_data_dir / "supervisord.conf"
    configuration.write_text(supervisord_configuration(settings, control))
    supervisord = subprocess.Popen(
        [sys.executable, "-m", "supervisor.supervisord", "-c", str(configuration)],
        start_new_session=True,
        # Safe: this process has one thread.
        preexec_fn=end_with_parent,  # noqa: PLW1509
    )
    asked: list[int] = []

    def stop(number: int, _: object) -> None:
        # At the second time nothing is waited for any more.
        supervisord.send_signal(signal.SIGKILL if asked else signal.SIGTERM)
        asked.append(number)

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, stop)
    watch = _Watch(settings)
    while True:
        with contextlib.suppress(subprocess.TimeoutExpired):
            status = supervisord.wait(LOOK_PERIOD_S)
            return 0 if asked else status or 1
        if not asked and not watch.look():
            supervisord.send_signal(signal.SIGTERM)
            supervisord.wait()
            return 1


class _Watch:
    """What is looked at every second while supervisord runs the programs."""

    def __init__(self, settings: "Settings") -> None:
        import psutil

        from stack.frozen import Liveness, StoppedProcesses
        from stack.programs import Programs

        self._settings = settings
        self._ready = False
        self._processes = partial(psutil.Process().children, recursive=True)
        self._stopped = StoppedProcesses()
        self._programs = Programs(supervisor_socket(settings))
        self._gateway = Liveness(settings.gateway_host, settings.gateway_port, "/health/live")
        self._tried_at = 0.0

    def look(self) -> bool:
        """Kill what is frozen, try again what was given up; whether to go on."""
        for process in self._stopped.look(self._processes()):
            say(f"killed process {process.pid}, which was stopped")
        if self._gateway.is_lost():
            say("the gateway does not answer any more: killed")
            self._programs.kill("gateway")
        if not self._ready and is_ready(self._settings):
            self._ready = True
            say(f"ready at http://{self._settings.gateway_host}:{self._settings.gateway_port}")
        given_up = self._programs.given_up()
        if not self._ready:
            for program in given_up:
                say(f"{program.name} does not start: {program.reason}")
            return not given_up
        if given_up and time.monotonic() - self._tried_at >= TRY_AGAIN_S:
            self._tried_at = time.monotonic()
            for program in given_up:
                every = f"tried again, and every {TRY_AGAIN_S:g} s"
                say(f"{program.name} keeps ending ({program.reason}): {every}")
                self._programs.start(program.name)
        return True


def say(text: str) -> None:
    """Tell whoever runs this."""
    print(f"serve: {text}", file=sys.stderr, flush=True)


def supervisor_socket(settings: "Settings") -> Path:
    """Where supervisord is asked about its programs: no *.sock, which stack.triton clears away."""
    return settings.socket_folder / "supervisord"


def is_ready(settings: "Settings") -> bool:
    """Whether the gateway says that it can answer."""
    connection = HTTPConnection(settings.gateway_host, settings.gateway_port, timeout=1)
    try:
        connection.request("GET", "/health/ready")
        return connection.getresponse().status == HTTPStatus.OK
    except (OSError, HTTPException):
        return False
    finally:
        connection.close()


def gateway_stop_s(settings: "Settings") -> int:
    """How long the gateway may take to stop, what it writes at its end included."""
    return round(settings.lora_stop_notice_s + settings.lora_stop_within_s) + END_S


def supervisord_configuration(settings: "Settings", control: str) -> str:
    """One program a part; all of them log to this process's own output."""
    folder = str(settings.lora_data_dir).replace("%", "%%")
    # Started in this order and stopped, one after the other, in the reverse.
    programs = {
        "triton": (f"-m stack.triton --control={control}", 60),
        "adapter_sync": (f"-m adapter_sync --control={control}", 20),
        "gateway": ("-m gateway", gateway_stop_s(settings)),
    }
    # Plain HTTP downloads tell how far they are, can be broken off, and name their errors.
    environments = {"adapter_sync": 'environment=HF_HUB_DISABLE_XET="1"\n'}
    # supervisord removes its pidfile at its end: never name a device here.
    supervisord = (
        f"[supervisord]\nnodaemon=true\npidfile={folder}/supervisord.pid\n"
        f"logfile={folder}/supervisord.log\nlogfile_maxbytes=1MB\nlogfile_backups=1\n"
        f"[unix_http_server]\nfile={str(supervisor_socket(settings)).replace('%', '%%')}\n"
        "[rpcinterface:supervisor]\n"
        "supervisor.rpcinterface_factory=supervisor.rpcinterface:make_main_rpcinterface\n"
    )
    python = sys.executable.replace("%", "%%")
    sections = [
        f"[program:{name}]\n"
        f'command="{python}" -P {arguments}\n'
        f"priority={priority}\nautorestart=true\nstartsecs={STARTED_S}\n"
        f"startretries={START_TRIES}\n"
        f"stopwaitsecs={stop_s}\nkillasgroup=true\n{environments.get(name, '')}"
        "redirect_stderr=true\nstdout_logfile=/dev/fd/1\nstdout_logfile_maxbytes=0\n"
        for priority, (name, (arguments, stop_s)) in enumerate(programs.items(), 1)
    ]
    return "\n".join([supervisord, *sections])


if __name__ == "__main__":
    sys.exit(main())
