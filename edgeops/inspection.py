"""The commands that need nothing but a bundle: ``edgeops inspect`` and ``edgeops keys``.

A model file that is no bundle yet is handed on to the part that reads it, where that is installed.
"""

import json
from pathlib import Path

import click
import msgspec

from edgeops.bundle import Bundle, open_bundle
from edgeops.errors import NotFoundError
from edgeops.manifest import Variant
from edgeops.parts import from_part
from edgeops.signing import PublicKey, SigningKey

_MODEL_FILES = {".onnx", ".tflite"}


@click.command("inspect")
@click.argument("path", type=click.Path(path_type=Path))
@click.option(
    "--key", "keys", multiple=True, help="Public key that must have signed it (base64); several: any of them."
)
@click.option("--json", "as_json", is_flag=True, help="The same as JSON; of a bundle its manifest and digest.")
def inspect_command(path: Path, keys: tuple[str, ...], as_json: bool) -> None:
    """Show what PATH is: a bundle, of which every file is verified, or a model file (.onnx, .tflite)."""
    if path.suffix in _MODEL_FILES and not path.is_dir():
        if keys:
            raise click.UsageError("--key: a model file has no signature; a bundle has")
        if not path.is_file():
            raise NotFoundError(f"{path}: no such file")
        from_part("edgeops_converters.cli.inspect", "show_model_file", extra="convert")(path, as_json=as_json)
        return
    bundle = open_bundle(path, keys=[PublicKey(key) for key in keys] if keys else None)
    if as_json:
        click.echo(json.dumps({"digest": bundle.digest, "manifest": msgspec.to_builtins(bundle.manifest)}, indent=2))
        return
    for line in _describe(bundle, is_signature_checked=bool(keys)):
        click.echo(line)


@click.group("keys")
def keys_group() -> None:
    """Make and show signing keys (Ed25519)."""


@keys_group.command("generate")
@click.argument("file", type=click.Path(path_type=Path))
def generate_command(file: Path) -> None:
    """Write a new private key to FILE (mode 0600) and print its public key."""
    if file.exists():
        raise click.UsageError(f"{file} exists; a key is never overwritten")
    key = SigningKey.generate()
    key.save(file)
    click.echo(key.public.text)


@keys_group.command("show")
@click.argument("file", type=click.Path(path_type=Path, exists=True))
def show_command(file: Path) -> None:
    """Print the public key of the private key in FILE."""
    click.echo(SigningKey.load(file).public.text)


def _describe(bundle: Bundle, *, is_signature_checked: bool) -> list[str]:
    manifest = bundle.manifest
    lines = [
        f"{manifest.name} {manifest.version}  ({manifest.created})",
        f"  digest      {bundle.digest}",
        f"  signature   {'valid' if is_signature_checked else 'not checked; give --key'}",
        f"  files       {len(manifest.files)}, all verified",
        f"  source      {manifest.lineage.source}",
    ]
    for title, specs in (("input", manifest.inputs), ("output", manifest.outputs)):
        lines += [
            f"  {title:<11} {spec.name}: {spec.dtype} {list(spec.shape)} {spec.layout}".rstrip() for spec in specs
        ]
    lines += [f"  labels      {', '.join(manifest.labels)}"] if manifest.labels else []
    lines.append(f"  {'variant':<16}{'size':>10}{'latency':>12}{'accuracy':>27}{'agreement':>11}")
    lines += [_describe_variant(variant, manifest.files[variant.file].size_bytes) for variant in manifest.variants]
    return lines


def _describe_variant(variant: Variant, size_bytes: int) -> str:
    measured = variant.measured
    latency = f"{measured.latency_ms:.3f} ms" if measured.latency_ms is not None else "-"
    accuracy = measured.accuracy
    shown = f"{accuracy.value:.2%} [{accuracy.low:.2%}, {accuracy.high:.2%}]" if accuracy is not None else "-"
    agreement = f"{measured.agreement:.2%}" if measured.agreement is not None else "-"
    return f"  {variant.name:<16}{size_bytes / 1000:>7.1f} kB{latency:>12}{shown:>27}{agreement:>11}"
