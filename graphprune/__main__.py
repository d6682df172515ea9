"""The program: ``graphprune`` and ``python -m graphprune``."""

from __future__ import annotations

import os
import signal
import sys
from importlib import import_module

INTERRUPTED = 130


def main() -> None:
    """Run the command line; Ctrl-C ends it with one line and exit code 130, from the first moment on."""
    try:
        # An exception would not do: native modules turn one that comes while they are loaded into an ImportError.
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, _leave)
        cli = import_module("graphprune.cli")
        if signal.getsignal(signal.SIGINT) is _leave:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        cli.main()
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        sys.exit(INTERRUPTED)
    finally:
        # The exit code is settled; while Python shuts down, Ctrl-C would kill it.
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def _leave(*_: object) -> None:
    """End the process at once, while there is nothing yet to clean up."""
    os.write(2, b"interrupted; nothing was written\n")
    os._exit(INTERRUPTED)


if __name__ == "__main__":
    main()
