"""Relief: readings become orders to the workers, a word to the deployer, and a notice on each change."""

from edgeops_runtime.control import Ease
from edgeops_runtime.ladder import Ladder, Rung
from edgeops_runtime.loop import Loop
from edgeops_runtime.relief import EVERY_S, SHED_SHARE, Relief, ease_of, read_signals


class Board:
    def __init__(self) -> None:
        self.now = 0.0
        self.signals: dict[str, float | None] = {}
        self.eased: list[Ease] = []
        self.strains: list[bool] = []
        self.notices: list[str] = []
        self.relief = Relief(
            loop=Loop(lambda: self.now),
            uptime=lambda: self.now,
            read=lambda: self.signals,
            ladder=Ladder(),
            ease=self.eased.append,
            strain=self.strains.append,
            notice=lambda kind, text: self.notices.append(f"{kind}: {text}"),
            cores=4,
        )

    def live(self, seconds: float) -> None:
        end = self.now + seconds
        while self.now < end:
            self.relief.look()
            self.now += EVERY_S


def test_each_change_of_rung_is_told_once_to_everybody():
    board = Board()
    board.live(60)
    assert (board.eased, board.strains, board.notices) == ([], [], [])
    board.signals = {"temperature": 84.5}
    board.live(60)
    assert board.relief.rung is Rung.SHED_LOAD
    assert board.eased == [Ease(capture=False, cores=2, shed=SHED_SHARE)]
    assert board.strains == [True]
    assert board.notices == ["load: normal -> shed-load: temperature 84.5 °C"]
    board.signals = {"temperature": 40.0}
    board.live(400)
    assert board.relief.rung is Rung.NORMAL
    assert board.eased[-1] == Ease()
    assert board.strains == [True, True, True, True, False]
    assert board.notices[-1] == "load: no-shadow -> normal: all signals are calm"


def test_a_board_with_one_core_keeps_it():
    assert ease_of(Rung.FEWER_THREADS, cores=1).cores == 1


def test_signals_are_read_from_the_machine_and_from_the_control_group(tmp_path):
    proc, sys = tmp_path / "proc", tmp_path / "sys"
    assert set(read_signals(proc, sys).values()) == {None}
    (proc / "pressure").mkdir(parents=True)
    (proc / "self").mkdir()
    (proc / "pressure" / "memory").write_text("some avg10=1.50 avg60=0 avg300=0 total=9\nfull avg10=0.0 total=0\n")
    (proc / "meminfo").write_text("MemTotal: 1000 kB\nMemAvailable: 400 kB\n")
    (sys / "class" / "thermal" / "thermal_zone0").mkdir(parents=True)
    (sys / "class" / "thermal" / "thermal_zone0" / "temp").write_text("51000\n")
    assert read_signals(proc, sys) == {
        "temperature": 51.0,
        "throttling": None,
        "memory pressure": 1.5,
        "available memory": -40.0,
    }
    (proc / "self" / "cgroup").write_text("0::/a/b\n")
    group = sys / "fs" / "cgroup" / "a" / "b"
    group.mkdir(parents=True)
    for name, text in (
        ("memory.current", "900"),
        ("memory.max", "max"),
        ("memory.stat", "anon 1\ninactive_file 100"),
        ("memory.pressure", "some avg10=33.00 avg60=0 avg300=0 total=9"),
    ):
        (group / name).write_text(f"{text}\n")
    (group.parent / "memory.max").write_text("1000\n")  # The limit of the slice holds for the service in it.
    firmware = sys / "devices" / "platform" / "soc" / "soc:firmware"
    firmware.mkdir(parents=True)
    (firmware / "get_throttled").write_text("80008\n")
    assert read_signals(proc, sys) == {
        "temperature": 51.0,
        "throttling": 2.0,
        "memory pressure": 33.0,
        "available memory": -20.0,
    }
