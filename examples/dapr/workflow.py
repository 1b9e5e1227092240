"""A Dapr Workflow that tells its status through the sidecar's pub/sub component statusrelay.yaml."""
import hashlib
import json
import logging
import os
from datetime import datetime, timedelta, timezone
from urllib.parse import urlencode
from urllib.request import Request, urlopen

import dapr.ext.workflow as wf

HUB = "orders"  # what the relay knows the instances under; Dapr itself has no such name
RETRY = wf.RetryPolicy(first_retry_interval=timedelta(seconds=1), max_number_of_attempts=3)
EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)

runtime = wf.WorkflowRuntime()


class Reporter:
    """The reports of one execution. Make it before the first yield.

    The generation is the first reading of the workflow's own clock, and the counter is a variable of the workflow, so
    every replay finds the same ones.
    """

    def __init__(self, ctx, name, labels):
        self._ctx, self._name, self._labels, self._calls = ctx, name, labels, 0
        self._generation = (ctx.current_utc_datetime.replace(tzinfo=timezone.utc) - EPOCH) // timedelta(milliseconds=1)

    def position(self):
        """The place of the next report; what an activity is given it may count on from, up to 999."""
        self._calls += 1
        return {"hub": HUB, "instanceId": self._ctx.instance_id, "name": self._name, "generation": self._generation,
                "sequence": self._calls * 1000, "labels": self._labels}

    def report(self, **fields):
        """Publishes and waits for it: yield from reporter.report(…)."""
        try:
            yield self._ctx.call_activity(publish_status, input={**self.position(), **fields}, retry_policy=RETRY)
        except Exception:
            pass  # Nobody was told, and the order goes on: the next report says it all again.


# The input: {"card": "…", "items": ["…"], "owner": "…", "tenant": "…"}. Whoever starts it takes owner and tenant from
# the caller's verified token: they decide who may read the status.
@runtime.workflow(name="OrderFulfilment")
def order_fulfilment(ctx: wf.DaprWorkflowContext, order: dict):
    reporter = Reporter(ctx, "OrderFulfilment", {"owner": order["owner"], "tenant": order["tenant"]})
    try:
        yield from reporter.report(kind="snapshot", runtimeStatus="Running", customStatus={"percent": 10, "step": "charge"})
        yield ctx.call_activity(charge_card, input=order["card"])
        yield from reporter.report(kind="progress", customStatus={"percent": 40, "step": "pack"})
        parcel = yield ctx.call_activity(pack_items, input={"items": order["items"], "position": reporter.position()})
        yield from reporter.report(kind="snapshot", runtimeStatus="Completed", customStatus={"percent": 100, "step": "done"},
                                   output={"parcel": parcel})
        return {"parcel": parcel}
    except Exception as error:
        yield from reporter.report(kind="lifecycle", runtimeStatus="Failed",
                                   failure={"type": type(error).__name__, "message": str(error)})
        raise


@runtime.activity(name="PublishStatus")
def publish_status(ctx: wf.WorkflowActivityContext, update: dict):
    send(update)


@runtime.activity(name="ChargeCard")
def charge_card(ctx: wf.WorkflowActivityContext, card: str):
    if card == "declined":
        raise ValueError("card declined")


@runtime.activity(name="PackItems")
def pack_items(ctx: wf.WorkflowActivityContext, work: dict):
    items, position = work["items"], work["position"]
    for k in range(1, len(items) + 1):
        # … pack items[k-1] …
        try:
            send({**position, "sequence": position["sequence"] + min(k, 999), "kind": "progress",
                  "customStatus": {"percent": 40 + 50 * k // len(items), "step": "pack"}})
        except Exception as error:
            logging.warning("no status was sent: %s", type(error).__name__)  # the next one repairs it
    return f"parcel of {len(items)}"


def send(update):
    """Publishes a CloudEvent around the update, which Dapr takes as it is because of its content type."""
    key, now = f"{update['hub']}/{update['instanceId']}", datetime.now(timezone.utc).isoformat()
    event_id = f"{key}/{update['generation']}/{update['kind']}/{update['sequence']}"  # a repeated activity says the same again
    event = {
        "specversion": "1.0",
        "type": "durable.status.v1",
        "source": f"/hubs/{update['hub']}/activity",
        "subject": update["instanceId"],
        "id": event_id,
        "time": now,
        "datacontenttype": "application/json",
        "data": {**update, "lastUpdatedTime": now},
    }
    metadata = urlencode({"metadata.MessageId": _short(event_id), "metadata.SessionId": _short(key)})
    port = os.environ.get("DAPR_HTTP_PORT", "3500")
    request = Request(f"http://127.0.0.1:{port}/v1.0/publish/statusrelay/status?{metadata}", json.dumps(event).encode(),
                      {"Content-Type": "application/cloudevents+json"})
    with urlopen(request, timeout=10):  # which raises what is not 2xx; the workflow tries again
        pass


def _short(text):
    """Service Bus takes ids of up to 128 characters, which it counts in UTF-16."""
    if len(text.encode("utf-16-le")) <= 2 * 128:
        return text
    return hashlib.sha256(text.encode()).hexdigest()
