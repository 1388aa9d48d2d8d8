import os
import sys
import threading
from pathlib import Path

from edgeops_runtime.control import MQTT_VARIABLE
from edgeops_runtime.worker_process import WorkerOrder, WorkerProcess


def test_a_broker_with_its_password_is_no_argument_that_everybody_can_read(tmp_path):
    told, gone = tmp_path / "told", threading.Event()
    script = f"import os, sys; open({str(told)!r}, 'w').write(os.environ[{MQTT_VARIABLE!r}] + ' '.join(sys.argv))"
    order = WorkerOrder(
        bundle=Path("/b"), digest="", version="1.0.0", variant="v", engine="e", mqtt_url="mqtt://u:secret@h/p "
    )
    with Path(os.devnull).open() as null:
        process = WorkerProcess(
            order, listen_fd=null.fileno(), listener=lambda *_: gone.set(), command=(sys.executable, "-c", script)
        )
        assert gone.wait(60)
        process.join(60)
    url, _, arguments = told.read_text().partition(" ")
    assert url == "mqtt://u:secret@h/p"
    assert '"bundle":"/b"' in arguments
    assert "secret" not in arguments
