"""Sends updates with the Service Bus SDK, which, unlike an output binding, also sets what the broker goes by."""
import asyncio
import hashlib
import json
import os

from azure.identity.aio import DefaultAzureCredential
from azure.servicebus import ServiceBusMessage
from azure.servicebus.aio import ServiceBusClient

from status import TOPIC, event

_sender = None  # one connection per process
_turn = asyncio.Lock()  # of which the SDK wants one user at a time


async def send(update):
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
