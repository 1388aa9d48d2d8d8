import pytest

from edgeops_runtime.lifetimes import volatile_directory


@pytest.fixture(autouse=True)
def no_service(monkeypatch):
    monkeypatch.delenv("RUNTIME_DIRECTORY", raising=False)


def test_what_must_not_reach_the_card_has_a_place_in_memory_of_its_own(tmp_path):
    place = volatile_directory(tmp_path / "data", memory=tmp_path)
    assert place.parent == tmp_path
    assert place.stat().st_mode & 0o777 == 0o700
    assert volatile_directory(tmp_path / "data", memory=tmp_path) == place
    assert volatile_directory(tmp_path / "other", memory=tmp_path) != place


def test_a_service_has_its_runtime_directory(tmp_path, monkeypatch):
    monkeypatch.setenv("RUNTIME_DIRECTORY", f"{tmp_path}/run:{tmp_path}/more")
    assert volatile_directory(tmp_path / "data") == tmp_path / "run"


@pytest.mark.parametrize("trick", ["link", "open to all", "file", "no memory"])
def test_a_place_that_is_not_ours_is_not_used(tmp_path, trick):
    data, memory = tmp_path / "data", tmp_path / "memory"
    if trick != "no memory":
        memory.mkdir()
        place = volatile_directory(data, memory=memory)
        place.rmdir()
        match trick:
            case "link":
                (tmp_path / "elsewhere").mkdir(mode=0o700)
                place.symlink_to(tmp_path / "elsewhere")
            case "open to all":
                place.mkdir()
                place.chmod(0o777)
            case "file":
                place.write_text("")
    assert volatile_directory(data, memory=memory) == data
