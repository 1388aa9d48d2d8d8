"""Appends events to an outbox until it is killed, and says each one's text once ``append`` has returned."""

import itertools
import sys
from pathlib import Path

from edgeops.messages import Notice
from edgeops_runtime.outbox import Outbox, Stamp, Stream

if __name__ == "__main__":
    stamp = Stamp(boot=1, time=0.0, uptime_s=0.0, clock_trusted=True)
    outbox = Outbox(Path(sys.argv[1]), quota_bytes=1 << 24, stamp=lambda: stamp)
    for number in itertools.count():
        text = f"{sys.argv[2]}-{number}"
        base = {"epoch": outbox.epoch, "stream": "event", "boot": 1, "time": 0.0, "uptime_s": 0.0}
        outbox.append(
            Stream.EVENT, lambda sequence, text=text, base=base: Notice(**base, sequence=sequence, kind="k", text=text)
        )
        sys.stdout.write(text + "\n")
        sys.stdout.flush()
