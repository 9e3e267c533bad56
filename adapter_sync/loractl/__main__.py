"""`python -m adapter_sync.loractl`."""

import sys

from adapter_sync.loractl import main

if __name__ == "__main__":
    sys.exit(main())
