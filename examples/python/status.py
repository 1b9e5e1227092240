"""What an orchestration says about itself to statusrelay.

From the orchestrator with a Reporter, from a long activity with tick(). servicebus.py and ingest.py are two ways to send
it; an output binding is a third.
"""
from datetime import datetime, timedelta, timezone

import azure.durable_functions as df

HUB = "orders"  # extensions.durableTask.hubName in host.json
TOPIC = "status"
RETRY = df.RetryOptions(first_retry_interval_in_milliseconds=1000, max_number_of_attempts=3)
EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)


class Reporter:
    """The reports of one execution. Make it before the first yield.

    The generation is the first reading of the orchestration's own clock, and the counter is a variable of the
    orchestrator, so every replay finds the same ones.
    """

    def __init__(self, context, name, labels):
        self._context, self._name, self._labels, self._calls = context, name, labels, 0
        self._generation = (context.current_utc_datetime - EPOCH) // timedelta(milliseconds=1)

    def position(self):
        """The place of the next report; what an activity is given it may count on from, up to 999."""
        self._calls += 1
        return {"hub": HUB, "instanceId": self._context.instance_id, "name": self._name, "generation": self._generation,
                "sequence": self._calls * 1000, "labels": self._labels}

    def report(self, **fields):
        """Publishes and waits for it: yield from reporter.report(…)."""
        if "customStatus" in fields:
            self._context.set_custom_status(fields["customStatus"])  # for the built-in API
        try:
            yield self._context.call_activity_with_retry("PublishStatus", RETRY, {**self.position(), **fields})
        except Exception:
            pass  # Nobody was told, and the order goes on: the next report says it all again.


def tick(position, k, custom_status):
    """The k-th update from within an activity."""
    return {**position, "sequence": position["sequence"] + min(k, 999), "kind": "progress", "customStatus": custom_status}


def event(update):
    """The message: a CloudEvent around the update."""
    now = datetime.now(timezone.utc).isoformat()
    return {
        "specversion": "1.0",
        "type": "durable.status.v1",
        "source": f"/hubs/{update['hub']}/activity",
        "subject": update["instanceId"],
        # A repeated activity says the same again.
        "id": "{hub}/{instanceId}/{generation}/{kind}/{sequence}".format(**update),
        "time": now,
        "datacontenttype": "application/json",
        "data": {**update, "lastUpdatedTime": now},
    }
