"""`python -m engine.serving`: a worker process, see `child`."""

import asyncio
import signal
import sys

if __name__ == "__main__":
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # the supervisor's business
    from engine.serving.child import work  # which takes long: not before that

    sys.exit(0 if asyncio.run(work()) else 1)
