"""The command ``edgeops``: a table of commands, each loaded from the part that has it when it is used."""

import logging
import os
import sys

import click

from edgeops import __version__
from edgeops.errors import EdgeOpsError, MissingExtraError
from edgeops.parts import from_part

# command → (module, attribute, extra that brings what it imports, one line of help)
COMMANDS = {
    "convert": (
        "edgeops_converters.cli.convert",
        "convert_command",
        "convert",
        "Compress a model and write a signed bundle.",
    ),
    "compare": ("edgeops_converters.cli.compare", "compare_command", "convert", "Set two bundles side by side."),
    "doctor": (
        "edgeops_converters.cli.doctor",
        "doctor_command",
        "convert",
        "Say what a conversion would meet, and what to change.",
    ),
    "compress": (
        "edgeops_converters.cli.compress",
        "compress_command",
        "convert",
        "Make a model smaller by training it.",
    ),
    "inspect": ("edgeops.inspection", "inspect_command", "", "Show what a bundle or a model file is, and verify it."),
    "keys": ("edgeops.inspection", "keys_group", "", "Make and show signing keys."),
    "serve": ("edgeops_runtime.cli", "serve_command", "device", "Serve bundles over local HTTP."),
    "fleet": ("edgeops_fleet.cli", "fleet_group", "fleet", "Run the server, roll out, watch."),
    "demo": ("edgeops_demo.cli", "demo_command", "dev", "The whole loop on Fashion-MNIST, on this machine."),
}


class PartsGroup(click.Group):
    """A group whose commands are imported on use, so that a device needs neither torch nor a database."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """The commands in the order of the table."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - click's signature
        """Import the part that has the command; a part that is not installed becomes a command that says so."""
        if cmd_name not in COMMANDS:
            return None
        module, attribute, extra, _ = COMMANDS[cmd_name]
        try:
            command = from_part(module, attribute, extra=extra)
        except MissingExtraError as error:
            return _missing(cmd_name, error)
        if not isinstance(command, click.Command):
            raise TypeError(f"{module}.{attribute}: expected a click command")
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 - likewise
        """List the commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, help_text) for name, (_, _, _, help_text) in COMMANDS.items()])


def _missing(name: str, error: MissingExtraError) -> click.Command:
    @click.command(name, context_settings={"ignore_unknown_options": True}, add_help_option=False)
    @click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
    def command(arguments: tuple[str, ...]) -> None:  # noqa: ARG001 - whatever was typed, the answer is the same
        raise error

    return command


@click.command(cls=PartsGroup)
@click.version_option(__version__, prog_name="edgeops")
@click.option("-v", "--verbose", count=True, help="More of the log: once for progress, twice for everything.")
def edgeops(verbose: int) -> None:
    """EdgeOps takes a trained model to a fleet of small devices, and brings back what is needed to train the next one."""
    levels = [logging.WARNING, logging.INFO, logging.DEBUG]
    logging.basicConfig(level=levels[min(verbose, 2)], format="%(asctime)s %(levelname)s %(name)s: %(message)s")


def run(command: click.Command, name: str) -> None:
    """Run a command line: exit code 0 done, 1 a refusal or failure, 2 wrong usage, 130 interrupted."""
    try:
        code = command.main(prog_name=name, standalone_mode=False)
        sys.stdout.flush()
    except EdgeOpsError as error:
        click.echo(f"{name}: {error}", err=True)
        sys.exit(1)
    except click.exceptions.Exit as error:
        sys.exit(error.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo(f"{name}: interrupted", err=True)
        sys.exit(130)
    except BrokenPipeError:
        # The reader of our output went away, as `| head` does.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        # What our own code meets is an EdgeOpsError by now; this is the terminal, or the disk behind `>`.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        click.echo(f"{name}: {error}", err=True)
        sys.exit(1)
    sys.exit(code if isinstance(code, int) else 0)


def main() -> None:
    """Entry point of ``edgeops``."""
    run(edgeops, "edgeops")


if __name__ == "__main__":
    main()
