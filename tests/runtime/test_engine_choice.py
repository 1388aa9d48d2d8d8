"""Which variant of a bundle runs on which engine of a device, by table."""

import msgspec
import pytest

from edgeops.manifest import FileEntry, Lineage, Manifest, Requires, Variant
from edgeops.tensors import TensorSpec
from edgeops_runtime.engines import choose_variant, is_at_least


def variant(name: str, engines: dict[str, str], **requires) -> Variant:
    return Variant(
        name=name,
        file="f",
        format="onnx" if "onnxruntime" in engines else "tflite",
        engines=engines,
        precision="int8",
        inputs={"x": "x"},
        outputs={"y": "y"},
        tolerance=0.1,
        requires=Requires(**requires),
    )


def manifest(*variants: Variant) -> Manifest:
    tensor = ("FP32", ("batch", 1))
    return Manifest(
        name="m",
        version="1.0.0",
        created="",
        inputs=(TensorSpec("x", *tensor),),
        outputs=(TensorSpec("y", *tensor),),
        variants=variants,
        files={"f": FileEntry(digest="sha256:" + "0" * 64, size_bytes=1)},
        golden="f",
        lineage=Lineage(source="", source_digest="", data_digest=""),
    )


ORT, LITERT = {"onnxruntime": "1.18"}, {"litert": "1.2", "tflite": "2.14"}


@pytest.mark.parametrize(
    ("variants", "engines", "preference", "chosen"),
    [
        (
            (variant("a", ORT), variant("b", LITERT)),
            {"onnxruntime": "1.32.0", "litert": "2.3.0"},
            (),
            ("a", "onnxruntime"),
        ),
        ((variant("a", ORT), variant("b", LITERT)), {"litert": "2.3.0"}, (), ("b", "litert")),
        ((variant("b", LITERT),), {"tflite": "2.14.0"}, (), ("b", "tflite")),
        (
            (variant("a", ORT), variant("b", LITERT)),
            {"onnxruntime": "1.32.0", "litert": "2.3.0"},
            ("litert", "onnxruntime"),
            ("b", "litert"),
        ),
        (
            (variant("a", ORT, cpu=("avx512_vnni",)), variant("b", ORT)),
            {"onnxruntime": "1.32"},
            (),
            ("b", "onnxruntime"),
        ),
        ((variant("a", ORT, memory_mb=4096), variant("b", ORT)), {"onnxruntime": "1.32"}, (), ("b", "onnxruntime")),
        ((variant("a", {"onnxruntime": "1.9"}),), {"onnxruntime": "1.10.0rc1"}, (), ("a", "onnxruntime")),
    ],
)
def test_first_variant_that_the_device_can_run_is_chosen(variants, engines, preference, chosen):
    found, _ = choose_variant(
        manifest(*variants), engines, preference=preference, cpu=frozenset({"avx2"}), memory_bytes=1 << 30
    )
    assert (found[0][0].name, found[0][1]) == chosen


@pytest.mark.parametrize(
    ("made", "engines", "words"),
    [
        (variant("a", ORT), {"onnxruntime": "1.17.3"}, "needs onnxruntime 1.18"),
        (variant("a", ORT), {}, "no engine"),
        (variant("a", ORT, cpu=("neon",)), {"onnxruntime": "1.32"}, "lacks neon"),
        (variant("a", ORT, memory_mb=4096), {"onnxruntime": "1.32"}, "4096 MB"),
    ],
)
def test_where_no_variant_will_do_the_reasons_are_named(made, engines, words):
    found, objections = choose_variant(manifest(made), engines, cpu=frozenset({"avx2"}), memory_bytes=1 << 30)
    assert found == []
    assert words in objections


def test_variants_are_offered_in_the_order_of_the_manifest(small_bundle):
    def chosen(**engines):
        return [(variant.name, engine) for variant, engine in choose_variant(small_bundle.manifest, engines)[0]]

    both = chosen(onnxruntime="1.32.0", tflite="2.14.0", litert="2.3.0")
    assert both == [
        ("onnx-float", "onnxruntime"),
        ("onnx-int8", "onnxruntime"),
        ("tflite-float", "litert"),
        ("tflite-float", "tflite"),
    ]
    assert chosen(tflite="2.14.0") == [("tflite-float", "tflite")]
    assert chosen(onnxruntime="1.9.0") == []
    assert chosen() == []


def test_a_variant_that_needs_another_cpu_is_not_offered(small_bundle):
    first = msgspec.structs.replace(small_bundle.manifest.variants[0], requires=Requires(cpu=("avx512_vnni",)))
    made = msgspec.structs.replace(small_bundle.manifest, variants=(first,))

    def chosen(*flags):
        return choose_variant(made, {"onnxruntime": "1.32.0"}, cpu=frozenset(flags))[0]

    assert chosen("avx2") == []
    assert chosen("avx2", "avx512_vnni") == [(first, "onnxruntime")]
    # A CPU that cannot be read is given the benefit of the doubt; the golden test comes after.
    assert chosen() == [(first, "onnxruntime")]


@pytest.mark.parametrize(
    ("installed", "lowest", "expected"),
    [("1.18", "1.18.0", True), ("1.9.9", "1.18", False), ("2.0.0rc1", "2.0", True), ("1.18.1+cpu", "1.18.1", True)],
)
def test_versions_are_compared_number_by_number(installed, lowest, expected):
    assert is_at_least(installed, lowest) is expected
