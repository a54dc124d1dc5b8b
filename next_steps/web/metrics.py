"""What /metrics tells."""

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from next_steps.web.live import Live


class Metrics(Collector):
    """Figures of this process, and of the state that all pages show."""

    def __init__(self, live: Live) -> None:
        self._live = live
        self.registry = CollectorRegistry()
        self.confirmed = Histogram(
            "orders_confirmed_seconds", "From a request to Kafka's confirmation of its order", registry=self.registry
        )
        self.registry.register(self)

    def collect(self) -> Iterator[Metric]:
        """Yield what is read at the time."""
        live = self._live
        yield GaugeMetricFamily("orders_kafka_up", "Whether a broker answers", live.broker.up)
        yield GaugeMetricFamily("orders_database_up", "Whether the database answers", live.trouble is None)
        yield GaugeMetricFamily("orders_live_pages", "Open streams of events", live.streams)
        of_status = GaugeMetricFamily("orders_stored", "Orders in the database", labels=["status"])
        for status, number in live.counts.items():
            of_status.add_metric([status], number)
        yield of_status
        lag = GaugeMetricFamily("orders_store_lag", "Records that are not stored yet", labels=["partition"])
        for partition, number in live.lag.items():
            lag.add_metric([partition], number)
        yield lag
