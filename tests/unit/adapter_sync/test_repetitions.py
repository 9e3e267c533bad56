import io
import json
import logging
import subprocess
import sys

from adapter_sync.repetitions import MOST_KINDS, PERIOD_S, OnceAMinute, Repetitions
from tests.stack_process import ROOT

FAILING = """
import structlog
from adapter_sync.logs import configure_logs
configure_logs()
for number in range(3):
    try:
        raise ValueError("no")
    except ValueError:
        structlog.get_logger().exception("pass.failed", number=number)
"""


def test_what_comes_again_is_counted_until_a_minute_is_over() -> None:
    now = [0.0]
    repetitions = Repetitions(clock=lambda: now[0])
    assert repetitions.count("a") == 0
    assert [repetitions.count("a") for _ in range(3)] == [None] * 3
    assert repetitions.count("b") == 0
    now[0] = PERIOD_S
    assert repetitions.count("a") == 3
    assert repetitions.count("a") is None


def test_no_more_kinds_are_remembered_than_there_is_room_for() -> None:
    repetitions = Repetitions()
    for kind in range(MOST_KINDS + 1):
        repetitions.count(kind)
    assert repetitions.count(MOST_KINDS) is None
    assert repetitions.count(0) == 0


def test_only_the_first_traceback_of_a_place_is_told() -> None:
    output = io.StringIO()
    handler = logging.StreamHandler(output)
    handler.addFilter(OnceAMinute())
    log = logging.getLogger("repeated")
    log.addHandler(handler)
    log.propagate = False
    for _ in range(5):
        try:
            int("none")
        except ValueError:
            log.exception("failed")
    log.warning("without a traceback")
    log.warning("without a traceback")
    assert output.getvalue().count("Traceback") == 1
    assert output.getvalue().count("without a traceback") == 2


def test_an_events_lines_stay_and_its_tracebacks_do_not() -> None:
    shown = subprocess.run(
        [sys.executable, "-c", FAILING], cwd=ROOT, capture_output=True, text=True, check=True
    )
    first, *others = map(json.loads, shown.stdout.splitlines())
    assert "Traceback" in first["exception"]
    assert [each["number"] for each in others] == [1, 2]
    assert all("exception" not in each and each["error"] == "ValueError('no')" for each in others)
