"""`headstart` in a child process that ends with its parent: when stdin closes, it gets the signal to shut down."""

import os
import signal
import threading

from headstart.cli.main import main


def _follow_parent() -> None:
    # Not through `sys.stdin`, whose lock a thread that still waits would hold when Python ends.
    while os.read(0, 1024):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    threading.Thread(target=_follow_parent, daemon=True).start()
    main()
