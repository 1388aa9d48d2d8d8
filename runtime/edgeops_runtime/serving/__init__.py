"""Answering requests: the worker process, HTTP, and what happens to a request in between; no fleet is known here."""
