"""Counters of the server, as Prometheus reads them."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

MILLISECONDS = (0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1.0, 5.0)


class Metrics:
    """Counters of one server."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.sessions = Gauge("kinema_sessions", "Open sessions.", registry=self.registry)
        self.queue = Gauge("kinema_queue", "Requests that wait for the networks.", registry=self.registry)
        self.plans = Gauge("kinema_plans", "Plans that are searched for.", registry=self.registry)
        self.opened = Counter("kinema_sessions_opened", "Sessions opened so far.", registry=self.registry)
        self.expired = Counter("kinema_sessions_expired", "Sessions closed unused.", registry=self.registry)
        self.steps = Counter("kinema_steps", "Steps simulated so far.", registry=self.registry)
        self.batch = Histogram(
            "kinema_batch_sessions",
            "Sessions that stepped in one batch.",
            buckets=(1, 2, 4, 8, 16, 32, 64),
            registry=self.registry,
        )
        self.batch_seconds = Histogram(
            "kinema_batch_seconds", "Time of one batch.", buckets=MILLISECONDS, registry=self.registry
        )
        self.wait_seconds = Histogram(
            "kinema_step_seconds",
            "Time from asking for a step to having it.",
            buckets=MILLISECONDS,
            registry=self.registry,
        )
        self.requests = Counter("kinema_requests", "Answers by status.", ["status"], registry=self.registry)
        self.refusals = Counter(
            "kinema_refusals", "Requests refused, by reason.", ["reason"], registry=self.registry
        )

    def text(self) -> bytes:
        """Everything in the format of Prometheus."""
        return generate_latest(self.registry)
