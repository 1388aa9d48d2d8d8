"""Topics: built and parsed, legal on the large cloud brokers."""

import pytest

from edgeops.errors import MessageError
from edgeops.topics import Topics, Upstream

TOPICS = Topics("plant-7")


@pytest.mark.parametrize("kind", list(Upstream))
def test_upstream_topic_parses_back(kind: Upstream) -> None:
    topic = TOPICS.upstream("camera-1", kind)
    assert TOPICS.parse_upstream(topic) == ("camera-1", kind)
    assert topic.count("/") <= 7


@pytest.mark.parametrize(
    "topic",
    [
        "",
        "edgeops/v1/other/device/a/event",
        "edgeops/v1/plant-7/device/a/desired",
        "edgeops/v1/plant-7/device/a/b/event",
        "edgeops/v1/plant-7/device//event",
        "edgeops/v1/plant-7/group/a/event",
    ],
)
def test_other_topics_are_refused(topic: str) -> None:
    with pytest.raises(MessageError):
        TOPICS.parse_upstream(topic)


@pytest.mark.parametrize("name", ["", "a/b", "+", "#", "a b", "é", "x" * 65, "-a", "$SYS", "a\n"])
def test_names_that_would_break_a_topic_are_refused(name: str) -> None:
    with pytest.raises(MessageError):
        TOPICS.group_desired(name)
