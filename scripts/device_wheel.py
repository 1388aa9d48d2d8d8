"""The wheel that a device gets: ``edgeops`` without the parts that run elsewhere, as version ``X+device``.

``python scripts/device_wheel.py DIRECTORY`` writes it and prints its path. It has the same name, so that pip puts one of the two
in a place and never both, and offers only the extras that a device can use.
"""

import base64
import hashlib
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PARTS = ("edgeops", "edgeops_runtime")
EXTRAS = ("device", "device-litert", "device-tflite", "link")
MAX_BYTES = 300_000
"""What the wheel may weigh; the tests hold it."""


def device_wheel(whole: Path, directory: Path) -> Path:
    """Write the device's wheel beside nothing else.

    Args:
        whole: The wheel of everything.
        directory: Where it goes; made when missing.
    """
    with zipfile.ZipFile(whole) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    info = next(name for name in files if name.endswith(".dist-info/METADATA")).rpartition("/")[0]
    ours = f"{info.removesuffix('.dist-info')}+device.dist-info"
    kept = {}
    for name, data in sorted(files.items()):
        top, _, rest = name.partition("/")
        if top in PARTS:
            kept[name] = data
        elif top == info and rest in {"METADATA", "WHEEL", "entry_points.txt", "licenses/LICENSE"}:
            kept[f"{ours}/{rest}"] = _device_metadata(data.decode()).encode() if rest == "METADATA" else data
    directory.mkdir(parents=True, exist_ok=True)
    target = directory / f"{ours.removesuffix('.dist-info')}-py3-none-any.whl"
    record = [f"{name},sha256={_digest(data)},{len(data)}" for name, data in kept.items()]
    kept[f"{ours}/RECORD"] = "\n".join([*record, f"{ours}/RECORD,,", ""]).encode()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name, data in kept.items():
            # A fixed date: the same sources give the same bytes.
            archive.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), data, zipfile.ZIP_DEFLATED)
    return target


def build(directory: Path, *pip_options: str) -> Path:
    """Build the wheel of everything with pip, and the device's of it."""
    with tempfile.TemporaryDirectory() as work:
        pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", *pip_options]
        subprocess.run([*pip, "--wheel-dir", work, str(ROOT)], check=True)
        shutil.rmtree(directory, ignore_errors=True)
        return device_wheel(next(Path(work).glob("edgeops-*.whl")), directory)


def version_of(wheel: Path) -> str:
    """The version in the name of a device's wheel, without ``+device``."""
    return wheel.name.split("-")[1].removesuffix("+device")


def _device_metadata(text: str) -> str:
    head, blank, description = text.partition("\n\n")
    lines = []
    for line in head.splitlines():
        extra = re.match(r"Provides-Extra: (\S+)$|Requires-Dist: .*; extra == ['\"]([\w-]+)['\"]$", line)
        if extra is not None and (extra[1] or extra[2]) not in EXTRAS:
            continue
        if line == "License-File: LICENSE" or not line.startswith("License-File:"):
            lines.append(f"{line}+device" if line.startswith("Version: ") else line)
    return "\n".join(lines) + blank + description


def _digest(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()


if __name__ == "__main__":
    print(build(Path(sys.argv[1]), *sys.argv[2:]))
