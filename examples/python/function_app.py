import json
import logging

import azure.durable_functions as df
import azure.functions as func

from servicebus import send  # or: from ingest import send
from status import TOPIC, Reporter, event, tick

app = df.DFApp()


# The input: {"card": "…", "items": ["…"], "owner": "…", "tenant": "…"}. Whoever starts it takes owner and tenant from
# the caller's verified token: they decide who may read the status.
@app.function_name("OrderFulfilment")
@app.orchestration_trigger(context_name="context")
def order_fulfilment(context: df.DurableOrchestrationContext):
    order = context.get_input()
    reporter = Reporter(context, "OrderFulfilment", {"owner": order["owner"], "tenant": order["tenant"]})
    try:
        yield from reporter.report(kind="snapshot", runtimeStatus="Running", customStatus={"percent": 10, "step": "charge"})
        yield context.call_activity("ChargeCard", order["card"])
        yield from reporter.report(kind="progress", customStatus={"percent": 40, "step": "pack"})
        parcel = yield context.call_activity("PackItems", {"items": order["items"], "position": reporter.position()})
        # Where a bridge reports the lifecycle, leave runtimeStatus and output to it, here and below.
        yield from reporter.report(kind="snapshot", runtimeStatus="Completed", customStatus={"percent": 100, "step": "done"},
                                   output={"parcel": parcel})
        return {"parcel": parcel}
    except Exception as error:
        yield from reporter.report(kind="lifecycle", runtimeStatus="Failed",
                                   failure={"type": type(error).__name__, "message": str(error)})
        raise


@app.function_name("PublishStatus")
@app.activity_trigger(input_name="update")
async def publish_status(update: dict):
    await send(update)


# The other way, without an SDK: the binding sends the body and nothing else. To use it, name it in Reporter.report.
@app.function_name("PublishStatusByBinding")
@app.activity_trigger(input_name="update")
@app.service_bus_topic_output(arg_name="message", connection="ServiceBus", topic_name=TOPIC)
def publish_status_by_binding(update: dict, message: func.Out[str]):
    message.set(json.dumps(event(update)))


@app.function_name("ChargeCard")
@app.activity_trigger(input_name="card")
def charge_card(card: str):
    if card == "declined":
        raise ValueError("card declined")


@app.function_name("PackItems")
@app.activity_trigger(input_name="work")
async def pack_items(work: dict):
    items = work["items"]
    for k in range(1, len(items) + 1):
        # … pack items[k-1] …
        try:
            await send(tick(work["position"], k, {"percent": 40 + 50 * k // len(items), "step": "pack"}))
        except Exception as error:
            logging.warning("no status was sent: %s", type(error).__name__)  # the next one repairs it
    return f"parcel of {len(items)}"
