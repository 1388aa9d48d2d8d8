"""Where a running server is, and the operator's token: two files in its data folder, which the command line reads."""

from pathlib import Path

import msgspec

from edgeops.errors import ConfigError

SERVER_FILE = "server.json"
TOKEN_FILE = "operator.token"  # noqa: S105 - a file's name


class ServerAddress(msgspec.Struct, frozen=True, kw_only=True):
    """``server.json``: where a running server is; written when it is ready, gone when it stopped in good order."""

    url: str
    broker_host: str
    broker_port: int


def read_token(path: Path) -> str:
    """The operator's token.

    Raises:
        ConfigError: The file cannot be read.
    """
    try:
        return path.read_text().strip()
    except OSError as error:
        raise ConfigError(f"{path}: expected the operator's token: {error.strerror}") from error


def read_address(data: Path) -> ServerAddress:
    """Where the server of a data folder is.

    Raises:
        ConfigError: It is not running, or the file is damaged.
    """
    path = data / SERVER_FILE
    try:
        return msgspec.json.decode(path.read_bytes(), type=ServerAddress)
    except OSError as error:
        raise ConfigError(f"{path}: no server is running there (edgeops fleet up --data {data})") from error
    except msgspec.DecodeError as error:
        raise ConfigError(f"{path}: {error}") from error
