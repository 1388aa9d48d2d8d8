"""What is known of the machine; None where it cannot be read."""

import os

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
