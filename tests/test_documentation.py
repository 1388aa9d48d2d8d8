"""The documentation keeps up: every command line in it parses, every command and option is in it."""

import itertools
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from edgeops.__main__ import COMMANDS, edgeops
from edgeops_runtime.commands import edgeops_agent

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), ROOT / "benchmarks" / "README.md"]
GUIDES = {
    "convert": "convert.md",
    "compare": "convert.md",
    "doctor": "convert.md",
    "compress": "convert.md",
    "inspect": "convert.md",
    "keys": "convert.md",
    "serve": "serve.md",
    "fleet": "fleet.md",
    "demo": "demo.md",
}


def command_lines() -> Iterator[tuple[str, str]]:
    """Every line of a code block that begins with one of our programs."""
    for page in PAGES:
        text = page.read_text().replace("\\\n", " ")
        for line in text.splitlines():
            match = re.match(r"^\s*(?:\$ )?(?:\.venv/bin/)?(edgeops(?:-agent)? [a-z].*)$", line)
            if match:
                yield str(page.relative_to(ROOT)), match.group(1)


@pytest.mark.parametrize(("page", "line"), sorted(set(command_lines())))
def test_command_line_in_the_documentation_parses(page: str, line: str) -> None:
    words = list(itertools.takewhile(lambda word: word not in {"|", ">", "&", "#"}, shlex.split(line, comments=True)))
    command: click.Command = edgeops_agent if words[0] == "edgeops-agent" else edgeops
    rest = words[1:]
    while isinstance(command, click.Group):
        assert rest, f"{page}: {line}: a command is missing"
        context = click.Context(command, info_name="x")
        found = command.get_command(context, rest[0])
        assert found is not None, f"{page}: {line}: there is no command {rest[0]!r}"
        command, rest = found, rest[1:]
    command.make_context("x", rest, resilient_parsing=True)


def leaves(command: click.Command, path: str) -> Iterator[tuple[str, click.Command]]:
    if isinstance(command, click.Group):
        context = click.Context(command, info_name=path)
        for name in command.list_commands(context):
            child = command.get_command(context, name)
            assert child is not None
            yield from leaves(child, f"{path} {name}")
    else:
        yield path, command


ALL_COMMANDS = [*leaves(edgeops, "edgeops"), *leaves(edgeops_agent, "edgeops-agent")]


@pytest.mark.parametrize(("path", "command"), ALL_COMMANDS, ids=[path for path, _ in ALL_COMMANDS])
def test_every_command_and_option_is_in_its_guide(path: str, command: click.Command) -> None:
    words = path.split()
    guide = "device.md" if words[0] == "edgeops-agent" else GUIDES[words[1]]
    text = (ROOT / "docs" / "guides" / guide).read_text()
    assert words[-1] in text, f"{guide} does not mention {path}"
    missing = [
        parameter.opts[0]
        for parameter in command.params
        if isinstance(parameter, click.Option) and not any(option in text for option in parameter.opts)
    ]
    assert missing == [], f"{guide} does not mention these options of {path}"


def test_table_of_commands_is_what_the_parts_have() -> None:
    assert set(COMMANDS) == set(GUIDES)


def test_every_relative_link_leads_somewhere() -> None:
    broken = [
        f"{page.relative_to(ROOT)}: {target}"
        for page in [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
        for target in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", page.read_text())
        if not (page.parent / target).exists()
    ]
    assert broken == []
