"""Sends updates to the notifier, with Python's own library: no SDK, and no right to send to Service Bus.

The notifier says with 202 that the broker has them, and sets what the broker goes by. STATUSRELAY_NOTIFIER is its
address, STATUSRELAY_TOKEN an API key that may publish.
"""
import asyncio
import json
import os
from urllib.request import Request, urlopen

from status import event


async def send(update):
    await asyncio.to_thread(_post, json.dumps(event(update)).encode())


def _post(body):
    request = Request(os.environ["STATUSRELAY_NOTIFIER"] + "/v1/updates", body, {
        "Authorization": "Bearer " + os.environ["STATUSRELAY_TOKEN"],
        "Content-Type": "application/cloudevents+json",
    })
    with urlopen(request, timeout=10):  # which raises what is not 2xx; the orchestrator tries again
        pass
