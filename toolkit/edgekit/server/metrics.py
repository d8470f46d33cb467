"""What Prometheus reads at /metrics."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from edgekit.server.answering import Usage

SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class Metrics:
    """waiting, running: requests in the queue, and at the model."""

    content_type = CONTENT_TYPE_PLAIN_0_0_4

    def __init__(self, waiting: Callable[[], float], running: Callable[[], float]) -> None:
        self._registry = all_of = CollectorRegistry()
        self.requests = Counter("edge_requests", "Requests for answers, by how they ended.", ["endpoint", "status"], registry=all_of)
        self.gone = Counter("edge_disconnects", "Requests whose client left before the end.", registry=all_of)
        self._prompt = Counter("edge_prompt_tokens", "Tokens of prompts.", registry=all_of)
        self._cached = Counter("edge_prompt_tokens_cached", "Tokens of prompts that did not have to be computed.", registry=all_of)
        self._completion = Counter("edge_completion_tokens", "Tokens of answers.", registry=all_of)
        self.first = Histogram("edge_first_part_seconds", "From the request to its first text.", registry=all_of, buckets=SECONDS)
        self.whole = Histogram("edge_answer_seconds", "From the request to its end.", registry=all_of, buckets=SECONDS)
        Gauge("edge_requests_waiting", "Requests in the queue.", registry=all_of).set_function(waiting)
        Gauge("edge_requests_running", "1 while the model is at work.", registry=all_of).set_function(running)

    def used(self, usage: Usage) -> None:
        self._prompt.inc(usage.prompt)
        self._cached.inc(usage.cached)
        self._completion.inc(usage.completion)

    def text(self) -> bytes:
        return generate_latest(self._registry)
