"""Where a bundle comes from: the Git revision of the user's code and the versions of the tools."""

import shutil
import subprocess
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

TOOLS = (
    "edgeops", "numpy", "torch", "onnx", "onnxscript", "onnxruntime", "litert-torch", "ai-edge-quantizer", "ai-edge-litert"
)  # fmt: skip
_TIMEOUT_S = 10


def git_revision(directory: Path) -> str | None:
    """The revision of the work tree that a directory is in, ``-dirty`` with local changes; ``None`` where there is none."""
    git = shutil.which("git")
    if git is None:
        return None
    try:
        revision = _git(git, directory, "rev-parse", "HEAD")
        changes = _git(git, directory, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return None
    return f"{revision}-dirty" if changes else revision


def tool_versions(names: Iterable[str] = TOOLS) -> dict[str, str]:
    """Package → version, of those that are installed."""
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _git(git: str, directory: Path, *arguments: str) -> str:
    done = subprocess.run(  # noqa: S603 - fixed arguments, no shell
        [git, *arguments], cwd=directory, capture_output=True, text=True, timeout=_TIMEOUT_S, check=True
    )
    return done.stdout.strip()
