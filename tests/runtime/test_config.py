"""agent.toml: what is wrong is named."""

from pathlib import Path

import pytest

from edgeops.errors import ConfigError
from edgeops_runtime.config import Config, load_config, parse_listen


def test_settings_are_read(tmp_path):
    path = tmp_path / "agent.toml"
    path.write_text('data = "d"\nlisten = "unix:/run/x.sock"\nengines = ["litert"]\n[attributes]\nsite = "north"\n')
    config = load_config(path)
    assert (config.engines, config.attributes, config.telemetry_window_s) == (("litert",), {"site": "north"}, 60.0)
    assert config.capture is False
    assert config.directory.is_absolute()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('data = "d"\nlissten = "x"', "lissten"),
        ("", "data"),
        ('data = "d"\nthreads = 0', "threads"),
        ('data = "d"\nthreads = "two"', "threads"),
        ('data = "d"\nlisten = "nowhere"', "listen"),
        ('data = "d"\nlisten = "127.0.0.1:99999"', "listen"),
        ('data = "d"\ntelemetry_window_s = 0', "telemetry_window_s"),
        ('data = "d"\noutbox_bytes = 5', "outbox_bytes"),
        ('data = "d"\nlog_level = "loud"', "log_level"),
        ('data = "d"\nhot_c = 20', "hot_c"),
        ('data = "d"\nmqtt_requests = "mqtt://host"', "expected mqtt://host:port/prefix"),
        ('data = "d"\nmodel = "a/b"', "model"),
        ("data = ", "TOML|line|Invalid"),
    ],
)
def test_what_is_wrong_is_named_with_its_file(tmp_path, text, words):
    path = tmp_path / "agent.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=words) as raised:
        load_config(path)
    assert str(path) in str(raised.value)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"nothing\.toml"):
        load_config(tmp_path / "nothing.toml")


def test_listen_addresses():
    assert parse_listen("127.0.0.1:0") == ("127.0.0.1", 0)
    assert parse_listen("[::1]:80") == ("::1", 80)
    assert str(parse_listen("unix:/run/x")) == "/run/x"


def test_default_address_is_a_socket_in_the_runtime_directory_or_with_the_data():
    config = Config(data="/var/lib/edgeops")
    assert config.serving_address({}) == "unix:/var/lib/edgeops/serve.sock"
    assert config.serving_address({"RUNTIME_DIRECTORY": "/run/edgeops:/run/other"}) == "unix:/run/edgeops/serve.sock"
    chosen = Config(data="/var/lib/edgeops", listen="127.0.0.1:8101")
    assert chosen.serving_address({"RUNTIME_DIRECTORY": "/run/edgeops"}) == "127.0.0.1:8101"


def test_every_setting_is_in_the_guide():
    guide = (Path(__file__).resolve().parents[2] / "docs" / "guides" / "device.md").read_text()
    assert [key for key in Config.__struct_fields__ if f"`{key}`" not in guide] == []
