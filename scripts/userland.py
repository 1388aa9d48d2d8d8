"""A Debian userland of another CPU (or of this one) under ``build/``, and commands in it; qemu runs what this CPU cannot.

Everything that is mounted is mounted in a namespace of the command's own, together with its processes: when the command ends,
also by Ctrl-C or SIGKILL, both are gone, and outside of it nothing was ever mounted. So ``rm -rf build`` is safe at any time.
One thing stays until the next boot: the kernel's note that qemu runs the programs of that CPU.

What is run in a userland is decided by ``scripts/arm64`` and ``scripts/deb``.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, NoReturn

ROOT = Path(__file__).resolve().parent.parent
SUITE = "bookworm"
PACKAGES = ("ca-certificates", "libstdc++6", "python3", "python3-venv", "systemd")
"""What is in every userland beside Debian's smallest system: what the agent asks for, what tests need, what boards have."""
_STARTED = time.monotonic()

# PID 1 of the namespace. It stays to reap what loses its parent; what it mounts goes with it. $1: the root, $2: the registration
# of qemu or nothing, $3: "fresh" when changes are to be forgotten, "bare" to mount nothing,
# $4: what /proc/cpuinfo is to say, or nothing; then the command.
_INSIDE = """
set -e
root=$1 qemu=$2 layer=$3 cpuinfo=$4; shift 4
if [ -n "$qemu" ]; then
    mountpoint -q /proc/sys/fs/binfmt_misc || mount -t binfmt_misc binfmt_misc /proc/sys/fs/binfmt_misc
    name=$(echo "$qemu" | cut -d: -f2)
    [ -e "/proc/sys/fs/binfmt_misc/$name" ] || echo "$qemu" > /proc/sys/fs/binfmt_misc/register
fi
if [ "$layer" = fresh ]; then
    work=$(dirname "$root")/layer
    mkdir -p "$work"
    mount -t tmpfs tmpfs "$work"
    mkdir "$work/changes" "$work/work" "$work/root"
    mount -t overlay -o "lowerdir=$root,upperdir=$work/changes,workdir=$work/work" overlay "$work/root"
    root=$work/root
fi
if [ "$layer" != bare ]; then
    mount -t proc proc "$root/proc"
    [ -z "$cpuinfo" ] || mount --bind "$cpuinfo" "$root/proc/cpuinfo"
    mount -t sysfs -o ro sysfs "$root/sys"
    mount --bind /dev "$root/dev"
    mount -t tmpfs -o mode=1777 tmpfs "$root/dev/shm"
    mount -t tmpfs -o mode=0755 tmpfs "$root/run"
    mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
fi
set +e
chroot "$root" "$@"
exit $?
"""
_CLEAN = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "LANG": "C.UTF-8"}


class Cpu(NamedTuple):
    """How one architecture is called by those who have to do with it.

    Attributes:
        machine: By ``uname -m`` and in the names of wheels.
        qemu: By qemu.
    """

    machine: str
    qemu: str


CPUS = {
    "amd64": Cpu("x86_64", "x86_64"),
    "arm64": Cpu("aarch64", "aarch64"),
}
"""Debian's name of an architecture → the others'."""

BOARDS = {
    # Raspberry Pi 4: what a wheel may not take for granted.
    "cortex-a72": ("0xd08", "fp asimd evtstrm crc32 cpuid"),
    # Raspberry Pi 5: half floats and the 8-bit dot product.
    "cortex-a76": (
        "0xd0b",
        "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp",
    ),
}
"""A CPU that qemu can be on arm64 → its part and features in ``/proc/cpuinfo``; the first unless another is asked for."""


class Userland:
    """A userland and what may be done with it.

    Args:
        arch: Debian's name: a key of :data:`CPUS`.
        suite: Which Debian.
    """

    def __init__(self, arch: str, suite: str = SUITE) -> None:
        self.arch = arch
        self.suite = suite
        self.cpu = CPUS[arch]
        self.directory = ROOT / "build" / (arch if suite == SUITE else f"{arch}-{suite}")
        self.root = self.directory / "root"
        self.is_foreign = self.cpu.machine != os.uname().machine

    def make(self) -> None:
        """Install Debian's smallest system and :data:`PACKAGES`, unless they are there: five minutes where qemu has to run it.

        Raises:
            SystemExit: This user or this machine cannot, or a step failed; the message says what to do.
        """
        need_programs(["debootstrap", *([f"qemu-{self.cpu.qemu}-static"] if self.is_foreign else [])])
        wanted = f"{self.suite} {' '.join(PACKAGES)}"
        stamp = self.directory / "made-of"
        if stamp.is_file() and stamp.read_text() == wanted:
            say(f"{self.suite} {self.arch} is there: {self.root.relative_to(ROOT)}")
            return
        say(f"installing {self.suite} {self.arch} into {self.root.relative_to(ROOT)}")
        stamp.unlink(missing_ok=True)
        shutil.rmtree(self.root, ignore_errors=True)
        self.directory.mkdir(parents=True, exist_ok=True)
        log = self.directory / "debootstrap.log"
        first = ["debootstrap", f"--arch={self.arch}", "--variant=minbase", f"--include={','.join(PACKAGES)}"]
        mirror = _mirror()
        with log.open("w") as stream:
            self._step(
                [*first, "--foreign", self.suite, str(self.root), *([mirror] if mirror else [])],
                "unpacking",
                stream.fileno(),
            )
            self._step(
                self._command(["/debootstrap/debootstrap", "--second-stage"], layer="bare"),
                "configuring",
                stream.fileno(),
            )
        stamp.write_text(wanted)

    def run(
        self,
        command: Sequence[str],
        *,
        environment: Mapping[str, str] | None = None,
        fresh: bool = False,
        interactive: bool = False,
        cpu: str = next(iter(BOARDS)),
    ) -> int:
        """Run a command as root in the userland.

        Args:
            command: Program and arguments.
            environment: Added to a clean one.
            fresh: Forget afterwards what the command changed.
            interactive: Leave Ctrl-C to the command.
            cpu: What qemu is to be: a key of :data:`BOARDS`. Engines look, and qemu shows them the x86 of this machine otherwise.

        Returns:
            Its exit code.
        """
        described = self.directory / "cpuinfo"
        if self.is_foreign:
            described.write_text(_cpuinfo(*BOARDS[cpu]))
        outer = self._command(
            command, layer="fresh" if fresh else "kept", cpuinfo=str(described) if self.is_foreign else ""
        )
        inner = {**_CLEAN, **(environment or {}), **({"QEMU_CPU": cpu} if self.is_foreign else {})}
        return call(outer, inner, interactive=interactive)

    def _command(self, command: Sequence[str], *, layer: str, cpuinfo: str = "") -> list[str]:
        registration = (
            Path(f"/usr/lib/binfmt.d/qemu-{self.cpu.qemu}.conf").read_text().strip() if self.is_foreign else ""
        )
        namespaces = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
        return [*namespaces, "sh", "-c", _INSIDE, "userland", str(self.root), registration, layer, cpuinfo, *command]

    def _step(self, command: Sequence[str], what: str, log: int) -> None:
        say(what)
        if call(command, {**os.environ, **_CLEAN}, output=log):
            stop(f"{what} failed; see {self.directory.relative_to(ROOT)}/debootstrap.log")


def call(
    command: Sequence[str], environment: Mapping[str, str], *, output: int | None = None, interactive: bool = False
) -> int:
    """Run a command and return its exit code; when this process has to go, it is killed, and its namespaces with it."""

    def leave(number: int, _frame: object) -> NoReturn:
        raise SystemExit(128 + number)

    process = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
    before = {
        number: signal.signal(number, signal.SIG_IGN if interactive and number == signal.SIGINT else leave)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    }
    try:
        return process.wait()
    finally:
        process.kill()
        process.wait()
        for number, handler in before.items():
            signal.signal(number, handler)


def on_this_machine(command: Sequence[str], directory: Path = ROOT) -> None:
    """Run a command outside of any userland; its output is shown when it fails.

    Raises:
        SystemExit: It failed.
    """
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False)
    if done.returncode:
        print(done.stdout[-4000:], done.stderr[-4000:], sep="\n", file=sys.stderr)
        stop(
            f"failed: {' '.join(command)[:200]}\n(`make setup` makes the environment that this needs: .venv/bin/python)"
        )


def need_programs(programs: Sequence[str]) -> None:
    """See that this is root and that the programs are there; on Debian, install what is missing.

    Raises:
        SystemExit: Not root, or a program is missing and cannot be installed.
    """
    if os.geteuid() != 0:
        stop(
            "this needs root, for debootstrap, chroot and mounts: run it with sudo, or in a container with CAP_SYS_ADMIN"
        )
    packages = {
        "qemu-user-static" if program.startswith("qemu-") else program
        for program in programs
        if shutil.which(program) is None
    }
    if not packages:
        return
    if shutil.which("apt-get") is None:
        stop(f"{', '.join(sorted(packages))}: not installed; install them by the means of this distribution")
    say(f"apt-get install {' '.join(sorted(packages))}")
    quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in (["update"], ["install", "--yes", "--no-install-recommends", *sorted(packages)]):
        if call(["apt-get", "--quiet=2", *command], quiet, output=subprocess.DEVNULL):
            stop(f"apt-get {' '.join(command)} failed; run it by hand to see why")


def say(what: str) -> None:
    """A line of progress, with the time since the start."""
    passed = int(time.monotonic() - _STARTED)
    print(f"[{passed // 60:3d}:{passed % 60:02d}] {what}", flush=True)


def stop(why: str) -> NoReturn:
    """Say why it does not go on, and exit with 1."""
    print(f"{Path(sys.argv[0]).name}: {why}", file=sys.stderr, flush=True)
    raise SystemExit(1)


def _cpuinfo(part: str, features: str) -> str:
    """Like Linux's on arm64, for as many cores as there are."""
    text = f"Features\t: {features}\nCPU implementer\t: 0x41\nCPU architecture: 8\nCPU variant\t: 0x0\nCPU part\t: {part}\n"
    return "".join(f"processor\t: {core}\n{text}CPU revision\t: 3\n\n" for core in range(os.cpu_count() or 1))


def _mirror() -> str | None:
    """Where this machine has its Debian from; otherwise debootstrap knows a place."""
    if shutil.which("apt-get") is None:
        return None
    listed = subprocess.run(
        [
            "apt-get",
            "indextargets",
            "--format",
            "$(COMPONENT) $(CODENAME) $(REPO_URI)",
            "Created-By: Packages",
            "Origin: Debian",
        ],
        capture_output=True,
        text=True,
        check=False,
    ).stdout
    found = [line.split(" ", 2) for line in listed.splitlines()]
    # bookworm, but neither bookworm-updates nor bookworm-security.
    places = [place for component, suite, place in found if component == "main" and "-" not in suite]
    return places[0] if places else None
