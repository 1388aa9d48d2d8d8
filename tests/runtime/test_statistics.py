"""What is told about the models: Triton's statistics extension, and Prometheus' text format."""

import re
import time

import msgspec
import numpy as np
import pytest

import edgeops_runtime
from edgeops_runtime.serving.counters import Counters
from edgeops_runtime.serving.http import Request
from edgeops_runtime.serving.protocols import Protocols
from edgeops_runtime.serving.repository import Repository, Served
from edgeops_runtime.serving.statistics import metrics_text, model_statistics

DARK = np.full((2, 1, 28, 28), 0.25, np.float32)
BRIGHT = np.full((1, 1, 28, 28), 0.9, np.float32)


def get(service, path, method=b"GET"):
    return service(Request(method, path.encode(), {}, b"", keep_alive=True))


def infer(service, image):
    tensor = {"name": "image", "datatype": "FP32", "shape": list(image.shape), "data": image.ravel().tolist()}
    body = msgspec.json.encode({"inputs": [tensor]})
    return service(Request(b"POST", b"/v2/models/digits/infer", {}, body, keep_alive=True)).status


@pytest.fixture
def busy(make_bundle):
    """A service whose model answered two requests of two rows, failed on one, and handed over a window in between."""
    with edgeops_runtime.load(make_bundle("1.1.0", "nan", hidden=True).path) as model:
        service = Protocols(Repository(Served(model.loaded)))
        assert infer(service, DARK) == 200
        model.window()
        assert [infer(service, image) for image in (DARK, BRIGHT, BRIGHT[:, :, :5])] == [200, 500, 400]
        yield service


@pytest.mark.parametrize(
    "path", ["/v2/models/stats", "/v2/models/digits/stats", "/v2/models/digits/versions/1.1.0/stats"]
)
def test_statistics_have_the_shape_of_the_extension_and_outlive_windows(busy, path):
    (one,) = msgspec.json.decode(get(busy, path).body[0])["model_stats"]
    assert (one["name"], one["version"]) == ("digits", "1.1.0")
    assert (one["inference_count"], one["execution_count"]) == (4, 2)
    stats = one["inference_stats"]
    assert (stats["success"]["count"], stats["fail"]["count"]) == (2, 1)
    assert stats["success"]["ns"] > stats["fail"]["ns"] > 0
    assert abs(one["last_inference"] / 1000 - time.time()) < 300


def test_a_model_that_was_not_asked_has_no_last_inference(make_bundle):
    with edgeops_runtime.load(make_bundle("1.0.0").path) as model:
        (one,) = model_statistics([Served(model.loaded)])["model_stats"]
    assert (one["last_inference"], one["inference_stats"]["success"]) == (0, {"count": 0, "ns": 0})


def test_statistics_of_an_unknown_model_are_not_found(busy):
    assert get(busy, "/v2/models/other/stats").status == 404
    assert get(busy, "/v2/models/digits/versions/2.0.0/stats").status == 404


def test_metrics_are_prometheus_text(busy):
    response = get(busy, "/metrics")
    text = response.body[0].decode()
    assert response.content_type.startswith("text/plain; version=0.0.4")
    assert get(busy, "/metrics", b"POST").status == 405
    line = re.compile(r"[a-z_]+(\{([a-z]+=\"[^\"\\]*\",?)+\})? [0-9.e+-]+|# (HELP|TYPE) [a-z_]+ .+")
    assert [one for one in text.splitlines() if not line.fullmatch(one)] == []
    labels = '{model="digits",version="1.1.0"}'
    for name, value in (("requests", 3), ("rows", 4), ("request_errors", 1), ("not_finite", 1)):
        assert f"edgeops_{name}_total{labels} {value}\n" in text
    assert f"edgeops_requests_waiting{labels} 0\n" in text
    assert f"edgeops_request_duration_seconds_count{labels} 3\n" in text
    buckets = [int(found) for found in re.findall(r'_bucket\{.*le="[^+].*"\} (\d+)', text)]
    assert buckets == sorted(buckets)
    assert buckets[-1] == 3


class Stub:
    """A served model with counters that were made up."""

    def __init__(self, name, latency):
        self.name, self.version = name, "1.0.0"
        self.model = self.recorders = self.batcher = self.queue = self
        self.tickets = [None]
        self._latency = latency

    def totals(self):
        return Counters(requests=sum(self._latency.values()), latency=self._latency)


def test_the_histogram_is_exact_at_its_edges():
    from edgeops.latency import latency_bucket

    latency = {latency_bucket(16_383): 1, latency_bucket(16_384): 2, latency_bucket(40_000_000_000): 4}
    text = metrics_text([Stub("a", latency)])
    rows = dict(re.findall(r'_bucket\{.*le="(.*)"\} (\d+)', text))
    assert rows["1.6384e-05"] == "1"
    assert rows["3.2768e-05"] == "3"
    assert (rows["8.589934592"], rows["+Inf"]) == ("3", "7")


def test_names_are_escaped():
    assert 'model="a\\"b\\\\c\\n"' in metrics_text([Stub('a"b\\c\n', {})])


def test_readiness_says_whether_requests_are_welcome(make_bundle):
    repository = Repository()
    service = Protocols(repository)
    assert get(service, "/v2/health/ready").status == 503
    assert get(service, "/v2/health/live").status == 200
    with edgeops_runtime.load(make_bundle("1.0.0").path) as model:
        repository.put(Served(model.loaded))
        for path in ("/v2/health/ready", "/v2/models/digits/ready", "/v2/models/digits/versions/1.0.0/ready"):
            assert get(service, path).status == 200
        assert get(service, "/v2/models/digits/versions/2.0.0/ready").status == 404
        repository.leave()
        for path in ("/v2/health/ready", "/v2/models/digits/ready"):
            assert get(service, path).status == 503
        assert infer(service, DARK) == 200
