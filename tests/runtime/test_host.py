"""What is known of the machine; None where it cannot be read."""

import os

import msgspec

from edgeops_runtime import host


def test_this_machine_can_be_read(tmp_path):
    metrics = host.read_metrics(tmp_path, worker_rss_bytes=7, outbox_bytes=9)
    assert metrics.agent_rss_bytes > 1 << 20
    assert metrics.available_memory_bytes > 1 << 20
    assert metrics.free_disk_bytes > 0
    assert metrics.load >= 0
    assert (metrics.worker_rss_bytes, metrics.outbox_bytes) == (7, 9)
    assert host.rss_bytes(os.getpid()) > 1 << 20


def test_machine_that_shows_nothing_gives_nothing(tmp_path):
    empty = tmp_path / "none"
    assert host.cpu_flags(empty) == frozenset()
    assert host.available_memory_bytes(empty) is None
    assert host.rss_bytes(1, empty) is None
    assert host.load_average(empty) is None
    assert host.temperature_c(empty) is None
    assert host.free_disk_bytes(empty) is None


def test_flags_are_read_on_both_kinds_of_cpu(tmp_path):
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nflags\t\t: fpu avx2 fma\n")
    assert host.cpu_flags(tmp_path) == {"fpu", "avx2", "fma"}
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nFeatures\t: fp asimd asimddp\n")
    assert "asimddp" in host.cpu_flags(tmp_path)


def test_hottest_zone_counts_and_nonsense_does_not(tmp_path):
    for number, text in enumerate(["41000\n", "57500\n", "hot\n"]):
        (tmp_path / f"thermal_zone{number}").mkdir()
        (tmp_path / f"thermal_zone{number}" / "temp").write_text(text)
    assert host.temperature_c(tmp_path) == 57.5


def write(root, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_machine_that_shows_nothing_has_no_figures_rather_than_zeros(tmp_path):
    empty = tmp_path / "none"
    metrics = host.read_metrics(empty, worker_rss_bytes=None, outbox_bytes=None, proc=empty, sys=empty)
    assert set(msgspec.structs.asdict(metrics).values()) == {None}


def test_a_board_that_shows_everything(tmp_path):
    proc, sys = tmp_path / "proc", tmp_path / "sys"
    write(
        proc,
        {
            "meminfo": "MemTotal: 4000 kB\nMemAvailable: 1000 kB\n",
            "loadavg": "0.50 0.40 0.30 1/100 42\n",
            "self/status": "VmRSS: 30 kB\n",
            "self/io": "rchar: 1\nwrite_bytes: 8192\n",
            "self/cgroup": "1:name=systemd:/x\n0::/system.slice/agent.service\n",
            "pressure/cpu": "some avg10=12.50 avg60=1.00 avg300=0.00 total=1\n",
            "pressure/memory": "some avg10=0.25 avg60=1.00 avg300=0.00 total=1\nfull avg10=9.0 total=1\n",
            "pressure/io": "some avg10=oops\n",
        },
    )
    write(
        sys,
        {
            "class/thermal/thermal_zone0/temp": "48500\n",
            "devices/platform/soc/soc:firmware/get_throttled": "70002\n",
            "devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": "600000\n",
            "devices/system/cpu/cpu1/cpufreq/scaling_cur_freq": "900000\n",
            "devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq": "1800000\n",
            "block/mmcblk0/device/life_time": "0x02 0x03\n",
            "fs/cgroup/system.slice/memory.max": "900\n",
            "fs/cgroup/system.slice/agent.service/memory.max": "max\n",
            "fs/cgroup/system.slice/agent.service/memory.current": "700\n",
            "fs/cgroup/system.slice/agent.service/memory.stat": "anon 1\ninactive_file 200\n",
            "fs/cgroup/system.slice/agent.service/memory.events": "low 0\noom_kill 3\n",
        },
    )
    metrics = host.read_metrics(tmp_path, worker_rss_bytes=1, outbox_bytes=2, rung="no-shadow", proc=proc, sys=sys)
    found = msgspec.structs.asdict(metrics)
    del found["free_disk_bytes"]
    assert found == {
        "agent_rss_bytes": 30 << 10,
        "worker_rss_bytes": 1,
        "available_memory_bytes": 1000 << 10,
        "load": 0.5,
        "temperature_c": 48.5,
        "outbox_bytes": 2,
        "rung": "no-shadow",
        "throttled": 2,
        "throttled_since_boot": 7,
        "cpu_mhz": 900.0,
        "cpu_max_mhz": 1800.0,
        "cpu_pressure": 12.5,
        "memory_pressure": 0.25,
        "io_pressure": None,
        "total_memory_bytes": 4000 << 10,
        "cgroup_limit_bytes": 900,
        "cgroup_used_bytes": 500,
        "cgroup_oom_kills": 3,
        "agent_written_bytes": 8192,
        "flash_wear_percent": 30,
    }


def test_a_container_sees_its_group_as_the_root(tmp_path):
    write(tmp_path / "proc", {"self/cgroup": "0::/\n"})
    assert host.cgroup_memory(tmp_path / "proc", tmp_path / "sys") is None  # The machine's own root.
    write(tmp_path / "sys" / "fs" / "cgroup", {"memory.current": "70\n", "memory.max": "100\n"})
    found = host.cgroup_memory(tmp_path / "proc", tmp_path / "sys")
    assert (found.limit_bytes, found.used_bytes, found.oom_kills) == (100, 70, None)


def test_a_zone_that_is_switched_off_is_no_fire(tmp_path):
    write(
        tmp_path, {"thermal_zone0/temp": "255000\n", "thermal_zone1/temp": "44000\n", "thermal_zone2/temp": "-274000\n"}
    )
    assert host.temperature_c(tmp_path) == 44.0


def test_cpus_have_names_on_both_kinds(tmp_path):
    write(tmp_path, {"cpuinfo": "processor\t: 0\nmodel name\t: A CPU\nprocessor\t: 1\nmodel name\t: A CPU\n"})
    assert host.cpu_name(tmp_path) == "A CPU"
    write(tmp_path, {"cpuinfo": "CPU implementer\t: 0x41\nCPU part\t: 0xd08\nCPU revision\t: 3\n"})
    assert host.cpu_name(tmp_path) == "0x41/0xd08/3"
    assert host.cpu_name(tmp_path / "none") is None
