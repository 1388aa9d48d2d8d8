"""Does a bundle answer on this machine as it did where it was made? ``python golden.py BUNDLE`` asks its golden inputs.

Every variant that this CPU can run is asked on every engine that is installed. Exits with 1 when an answer is beyond the
tolerance of its variant, or when none could be compared. Needs what a device has, and no more.
"""

import sys
from pathlib import Path

import numpy as np

import edgeops_runtime
from edgeops.bundle import open_bundle
from edgeops_runtime.engines import available_engines, choose_variant
from edgeops_runtime.host import cpu_flags


def main(path: Path) -> int:
    """Print a line for each variant and engine; returns the exit code."""
    manifest = open_bundle(path).manifest
    chosen, objections = choose_variant(manifest, available_engines(), cpu=cpu_flags())
    with np.load(path / manifest.golden) as golden:
        feeds = {spec.name: golden[f"input/{spec.name}"] for spec in manifest.inputs}
        expected = {
            variant.name: {spec.name: golden[f"output/{variant.name}/{spec.name}"] for spec in manifest.outputs}
            for variant, _ in chosen
        }
    beyond = 0
    for variant, engine in chosen:
        with edgeops_runtime.load(path, variant=variant.name, engine=engine) as model:
            answers = model.infer(feeds)
        difference = max(float(np.abs(answers[name] - there).max()) for name, there in expected[variant.name].items())
        # Written so that NaN is beyond.
        beyond += not difference <= variant.tolerance
        verdict = "as where it was made" if difference == 0 else f"{difference:.3g} apart at most"
        print(f"  {variant.name:14} on {engine:12} {verdict:24} ({variant.tolerance:.3g} is allowed)", flush=True)
    if objections:
        print(f"  left out: {objections}")
    return int(beyond > 0 or not chosen)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
