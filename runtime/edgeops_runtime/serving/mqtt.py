"""Inference requests over MQTT 5: a topic is the protocol's path below a prefix, a message its body, and the answer likewise.

``PREFIX/v2/models/fashion/infer`` is what ``POST /v2/models/fashion/infer`` is over HTTP. The connection, its bounds and its
deadlines are :mod:`edgeops.mqtt_requests`'s matter.
"""

from collections.abc import Mapping

from edgeops.mqtt_requests import Answered, Asked, MqttRequests, parse_broker_url
from edgeops_runtime.serving.http import Handler, Request, Response, error_response
from edgeops_runtime.serving.statistics import Metric, Metrics

TOPICS = ("v2/models/+/infer", "v2/models/+/versions/+/infer")
_SHARE = "edgeops"
_LENGTH = "inference-header-content-length"
_OVERLOAD = error_response(503, "too many requests wait already; try again", headers=(("Retry-After", "1"),))


def open_mqtt(url: str, handler: Handler, metrics: dict[str, Metrics]) -> MqttRequests:
    """Answer requests that come over a broker from now on, and tell of them in the metrics.

    Args:
        url: ``mqtt://[user[:password]@]host[:port]/prefix``.
        handler: Answers. Other processes that serve below the same prefix get their part of the requests.
        metrics: Of :class:`~edgeops_runtime.serving.protocols.Protocols`.

    Raises:
        ConfigError: The URL is none.
    """

    def answer(asked: Asked) -> Answered:
        return _answered(handler(_request(asked)))

    requests = MqttRequests(parse_broker_url(url), TOPICS, answer, overload=_answered(_OVERLOAD), share=_SHARE)
    metrics["mqtt"] = lambda: mqtt_metrics(requests)
    requests.open()
    return requests


def mqtt_metrics(requests: MqttRequests) -> list[Metric]:
    """What became of the requests, for Prometheus."""
    tally = requests.tally
    counted = (
        ("answered", "Requests over MQTT that were answered, errors included.", tally.answered),
        ("late", "Requests over MQTT that were dropped, since their time was over.", tally.late),
        ("refused", "Requests over MQTT that were refused, since too many waited.", tally.refused),
        (
            "unanswerable",
            "Requests over MQTT that were dropped, since they named no topic for an answer.",
            tally.unanswerable,
        ),
        ("unsent", "Answers over MQTT that found no connection.", tally.unsent),
    )
    return [
        Metric("edgeops_mqtt_waiting", "gauge", "Requests over MQTT that wait for their turn.", requests.waiting),
        *(Metric(f"edgeops_mqtt_{name}_total", "counter", text, value) for name, text, value in counted),
    ]


def _request(asked: Asked) -> Request:
    headers = {b"content-type": asked.content_type.encode()} if asked.content_type else {}
    headers |= _length(asked.properties)
    path = f"/{asked.topic}".encode("latin-1", "replace")
    return Request(b"POST", path, headers, asked.payload, keep_alive=True, deadline=asked.deadline)


def _length(properties: Mapping[str, str]) -> dict[bytes, bytes]:
    length = properties.get(_LENGTH)
    return {} if length is None else {_LENGTH.encode(): length.encode("latin-1", "replace")}


def _answered(response: Response) -> Answered:
    properties = [("status", str(response.status)), *((name.lower(), value) for name, value in response.headers)]
    return Answered(b"".join(response.body), response.content_type, properties, response.after)
