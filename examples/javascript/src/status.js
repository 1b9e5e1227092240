"use strict";
// What an orchestration says about itself to statusrelay: from the orchestrator with reporter(), from a long activity
// with tick(). The message is right by its body alone; what else the Service Bus SDK can set is a help.
const { createHash } = require("node:crypto");
const { ServiceBusClient } = require("@azure/service-bus");
const df = require("durable-functions");

const HUB = "orders"; // extensions.durableTask.hubName in host.json
const TOPIC = "status";
const retry = new df.RetryOptions(1000, 3);

/**
 * The reports of one execution. Call it before the first yield: the generation is the first reading of the
 * orchestration's own clock, and the counter is a variable of the orchestrator, so every replay finds the same ones.
 */
function reporter(context, name, labels) {
  const generation = new Date(context.df.currentUtcDateTime).getTime();
  let calls = 0;
  /** The place of the next report; what an activity is given it may count on from, up to 999. */
  const position = () => ({ hub: HUB, instanceId: context.df.instanceId, name, generation, sequence: ++calls * 1000, labels });
  function* report(fields) {
    if ("customStatus" in fields) context.df.setCustomStatus(fields.customStatus); // for the built-in API
    try {
      yield context.df.callActivityWithRetry("PublishStatus", retry, { ...position(), ...fields });
    } catch {
      // Nobody was told, and the order goes on: the next report says it all again.
    }
  }
  return { position, report };
}

/** The message: a CloudEvent around the update. */
function event(update) {
  const { hub, instanceId, generation, kind, sequence } = update;
  const now = new Date().toISOString();
  return {
    specversion: "1.0",
    type: "durable.status.v1",
    source: `/hubs/${hub}/activity`,
    subject: instanceId,
    id: `${hub}/${instanceId}/${generation}/${kind}/${sequence}`, // a repeated activity says the same again
    time: now,
    datacontenttype: "application/json",
    data: { ...update, lastUpdatedTime: now },
  };
}

/** Sends an update with the SDK, which, unlike an output binding, also sets what the broker goes by. */
async function send(update) {
  const body = event(update);
  await topic().sendMessages({
    body,
    messageId: short(body.id), // for duplicate detection
    sessionId: short(`${update.hub}/${update.instanceId}`),
    subject: body.type,
    contentType: "application/cloudevents+json",
    applicationProperties: { hub: update.hub, name: update.name },
  });
}

/** Sends the k-th update from within an activity. One that is lost is repaired by the next. */
async function tick(position, k, customStatus, context) {
  try {
    await send({ ...position, sequence: position.sequence + Math.min(k, 999), kind: "progress", customStatus });
  } catch (error) {
    context.warn(`no status was sent: ${error.code ?? error.name}`);
  }
}

let sender; // one connection per process
function topic() {
  if (!sender) {
    const { ServiceBus, ServiceBus__fullyQualifiedNamespace: namespace } = process.env; // as the bindings read them
    const options = { retryOptions: { maxRetries: 1, timeoutInMs: 10_000 } }; // the orchestrator tries again
    sender = (ServiceBus
      ? new ServiceBusClient(ServiceBus, options)
      : new ServiceBusClient(namespace, new (require("@azure/identity").DefaultAzureCredential)(), options)
    ).createSender(TOPIC);
  }
  return sender;
}

/** Service Bus takes ids of up to 128 characters. */
const short = (id) => (id.length <= 128 ? id : createHash("sha256").update(id).digest("hex"));

module.exports = { TOPIC, event, reporter, send, tick };
