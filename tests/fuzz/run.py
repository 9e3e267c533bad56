"""Fuzz one target, guided by what of our code each input reaches.

    python -m tests.fuzz.run weights CORPUS_FOLDER -max_total_time=600

The arguments after the target are libFuzzer's: https://llvm.org/docs/LibFuzzer.html#options.
An input that breaks something is written to a file, and given as the only argument after the
target it is tried again.
"""

import sys

import atheris

with atheris.instrument_imports(include=["adapter_sync.sources", "adapter_sync.validation"]):
    from tests.fuzz.targets import TARGETS


def main() -> None:
    """Fuzz until the time is over; does not return."""
    program, target, *arguments = sys.argv
    atheris.Setup([program, *arguments], TARGETS[target])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
