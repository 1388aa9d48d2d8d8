"""What every link promises, over every broker: the same cases for memory, iotcore and mosquitto."""

import queue
import threading
import time
from collections.abc import Callable

import pytest

from edgeops.errors import LinkError
from edgeops.link import Link, Received, Will

NewLink = Callable[[str], Link]


def open_link(link: Link, **hooks: object) -> Link:
    connected = threading.Event()
    link.open(on_connect=connected.set, **hooks)
    assert connected.wait(10), "no connection within 10 s"
    return link


def listen(link: Link, topic_filter: str) -> "queue.Queue[Received]":
    inbox: queue.Queue[Received] = queue.Queue()
    link.subscribe(topic_filter, inbox.put)
    return inbox


def publish(link: Link, topic: str, payload: bytes, *, retain: bool = False) -> None:
    """Publish, waiting while the window is full."""
    deadline = time.monotonic() + 10
    while True:
        try:
            return link.publish(topic, payload, retain=retain)
        except LinkError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.005)


def test_message_reaches_every_matching_subscriber(new_link: NewLink) -> None:
    subscriber, publisher = new_link("subscriber"), new_link("publisher")
    inbox = listen(subscriber, "edgeops/v1/f/device/+/event")
    open_link(subscriber)
    open_link(publisher)
    publish(publisher, "edgeops/v1/f/device/a/event", b"1")
    publish(publisher, "edgeops/v1/f/device/a/telemetry", b"2")
    publish(publisher, "edgeops/v1/f/device/b/event", b"3")
    received = [inbox.get(timeout=10) for _ in range(2)]
    assert [(message.topic[-7:], message.payload) for message in received] == [("a/event", b"1"), ("b/event", b"3")]
    assert inbox.empty()


def test_thousand_messages_arrive_in_order(new_link: NewLink) -> None:
    subscriber, publisher = new_link("subscriber"), new_link("publisher")
    inbox = listen(subscriber, "t")
    open_link(subscriber)
    open_link(publisher)
    for number in range(1000):
        publish(publisher, "t", b"%d" % number)
    assert [int(inbox.get(timeout=10).payload) for _ in range(1000)] == list(range(1000))


def test_retained_message_reaches_who_comes_later_and_an_empty_one_clears_it(new_link: NewLink) -> None:
    publisher = open_link(new_link("publisher"))
    publish(publisher, "group/a/desired", b"old", retain=True)
    publish(publisher, "group/a/desired", b"new", retain=True)
    publisher.close()

    late = new_link("late")
    inbox = listen(late, "group/a/desired")
    open_link(late)
    first = inbox.get(timeout=10)
    assert (first.payload, first.retained) == (b"new", True)
    publish(late, "group/a/desired", b"", retain=True)
    assert inbox.get(timeout=10).payload == b""

    later = new_link("later")
    nothing = listen(later, "group/a/desired")
    marker = listen(later, "marker")
    open_link(later)
    publish(later, "marker", b"!")
    assert marker.get(timeout=10).payload == b"!"
    assert nothing.empty()


def test_subscription_made_after_connecting_holds(new_link: NewLink) -> None:
    link = open_link(new_link("only"))
    inbox = listen(link, "a/#")
    deadline = time.monotonic() + 10
    while inbox.empty() and time.monotonic() < deadline:
        publish(link, "a/b", b"x")
        time.sleep(0.02)
    assert inbox.get(timeout=1).payload == b"x"


def test_orderly_close_publishes_no_will(new_link: NewLink) -> None:
    watcher = new_link("watcher")
    inbox = listen(watcher, "#")
    open_link(watcher)
    leaver = open_link(new_link("leaver"), will=lambda: Will("dead", b"leaver"))
    publish(leaver, "alive", b"leaver")
    leaver.close()
    assert inbox.get(timeout=10).topic == "alive"
    publish(watcher, "marker", b"!")
    assert inbox.get(timeout=10).topic == "marker"


def test_publish_without_connection_is_refused(new_link: NewLink) -> None:
    link = new_link("unopened")
    with pytest.raises(LinkError):
        link.publish("t", b"x")
