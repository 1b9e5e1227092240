"""What an orchestration says about itself to statusrelay.

From the orchestrator with a Reporter, from a long activity with tick(). The message is right by its body alone; what
else the Service Bus SDK can set is a help.
"""
import asyncio
import hashlib
import json
import logging
import os
from datetime import datetime, timedelta, timezone

import azure.durable_functions as df
from azure.identity.aio import DefaultAzureCredential
from azure.servicebus import ServiceBusMessage
from azure.servicebus.aio import ServiceBusClient

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


async def send(update):
    """Sends an update with the SDK, which, unlike an output binding, also sets what the broker goes by."""
    body = event(update)
    message = ServiceBusMessage(
        json.dumps(body),
        message_id=_short(body["id"]),  # for duplicate detection
        session_id=_short(f"{update['hub']}/{update['instanceId']}"),
        subject=body["type"],
        content_type="application/cloudevents+json",
        application_properties={"hub": update["hub"], "name": update["name"]},
    )
    async with _turn:
        await _topic().send_messages(message)


async def tick(position, k, custom_status):
    """Sends the k-th update from within an activity. One that is lost is repaired by the next."""
    try:
        await send({**position, "sequence": position["sequence"] + min(k, 999), "kind": "progress", "customStatus": custom_status})
    except Exception as error:
        logging.warning("no status was sent: %s", type(error).__name__)


_sender = None  # one connection per process
_turn = asyncio.Lock()  # of which the SDK wants one user at a time


def _topic():
    global _sender
    if _sender is None:
        connection = os.environ.get("ServiceBus")  # as the bindings read it
        client = (
            ServiceBusClient.from_connection_string(connection, retry_total=1)  # the orchestrator tries again
            if connection
            else ServiceBusClient(os.environ["ServiceBus__fullyQualifiedNamespace"], DefaultAzureCredential(), retry_total=1)
        )
        _sender = client.get_topic_sender(TOPIC)
    return _sender


def _short(text):
    """Service Bus takes ids of up to 128 characters, which it counts in UTF-16."""
    if len(text.encode("utf-16-le")) <= 2 * 128:
        return text
    return hashlib.sha256(text.encode()).hexdigest()
