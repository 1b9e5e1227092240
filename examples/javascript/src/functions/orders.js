"use strict";
const { output } = require("@azure/functions");
const df = require("durable-functions");
const { TOPIC, event, reporter, send, tick } = require("../status");

// The input: {"card": "…", "items": ["…"], "owner": "…", "tenant": "…"}. Whoever starts it takes owner and tenant from
// the caller's verified token: they decide who may read the status.
df.app.orchestration("OrderFulfilment", function* (context) {
  const order = context.df.getInput();
  const { position, report } = reporter(context, "OrderFulfilment", { owner: order.owner, tenant: order.tenant });
  try {
    yield* report({ kind: "snapshot", runtimeStatus: "Running", customStatus: { percent: 10, step: "charge" } });
    yield context.df.callActivity("ChargeCard", order.card);
    yield* report({ kind: "progress", customStatus: { percent: 40, step: "pack" } });
    const parcel = yield context.df.callActivity("PackItems", { items: order.items, position: position() });
    // Where a bridge reports the lifecycle, leave runtimeStatus and output to it, here and below.
    yield* report({ kind: "snapshot", runtimeStatus: "Completed", customStatus: { percent: 100, step: "done" }, output: { parcel } });
    return { parcel };
  } catch (error) {
    yield* report({ kind: "lifecycle", runtimeStatus: "Failed", failure: { type: error.name, message: error.message } });
    throw error;
  }
});

df.app.activity("PublishStatus", { handler: send });

// The other way, without the SDK: the binding sends the body and nothing else. To use it, name it in reporter().
const message = output.serviceBusTopic({ topicName: TOPIC, connection: "ServiceBus" });
df.app.activity("PublishStatusByBinding", {
  extraOutputs: [message],
  handler: (update, context) => context.extraOutputs.set(message, event(update)),
});

df.app.activity("ChargeCard", {
  handler: (card) => {
    if (card === "declined") throw new Error("card declined");
  },
});

df.app.activity("PackItems", {
  handler: async ({ items, position }, context) => {
    for (let k = 1; k <= items.length; k++) {
      // … pack items[k-1] …
      await tick(position, k, { percent: 40 + Math.floor((50 * k) / items.length), step: "pack" }, context);
    }
    return `parcel of ${items.length}`;
  },
});
