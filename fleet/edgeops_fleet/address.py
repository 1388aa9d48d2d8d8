"""Where a running server is, and the operator's token: two files in its data folder, which the command line reads."""

import fcntl
from pathlib import Path
from typing import IO

import msgspec

from edgeops.errors import ConfigError

SERVER_FILE = "server.json"
LOCK_FILE = "lock"
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


def claim(data: Path) -> IO[bytes]:
    """Take the data folder for this process, until the returned file is closed or the process ends, however it ends.

    Raises:
        ConfigError: Another server has it, or it cannot be made or written.
    """
    try:
        data.mkdir(parents=True, exist_ok=True)
        file = (data / LOCK_FILE).open("ab")
    except OSError as error:
        raise ConfigError(f"data folder {data}: expected a folder that can be written: {error.strerror}") from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        raise ConfigError(
            f"data folder {data}: another server has it; stop that one, or choose another --data"
        ) from error
    return file
