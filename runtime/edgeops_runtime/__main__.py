"""``edgeops-agent``: the way into :mod:`edgeops_runtime.service` when it is to run, else into :mod:`edgeops_runtime.commands`."""

import gc
import sys
from pathlib import Path

from edgeops.errors import EdgeOpsError


def main() -> None:
    """Entry point of ``edgeops-agent``."""
    match sys.argv[1:]:
        case ["run", "--config", config] if config:
            # What services are started with; the library of the command line would stay in memory for months.
            _run(Path(config))
        case _:
            from edgeops_runtime.commands import main as run_command  # noqa: PLC0415 - see above

            run_command()


def _run(config_path: Path) -> None:
    gc.disable()  # The imports make objects that stay; the service has garbage collected again when it runs.
    from edgeops_runtime import service  # noqa: PLC0415 - the other commands need less

    try:
        service.run(config_path)
    except (EdgeOpsError, OSError) as error:
        sys.stderr.write(f"edgeops-agent: {error}\n")
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
