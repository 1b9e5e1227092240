// The client of Durable Functions for Node.js, without a Functions host: what the
// host's binding would hand in is made here. RELAY and TOKEN are where and as
// whom, TASK_HUB is the hub that the host's URLs would name. BINDING is the form
// of what is handed in: URL templates (what hosts give to Node.js), or the base
// of an endpoint on the same machine.
//
// The client has no place for a bearer token; axios, which it calls, has.
import assert from "node:assert/strict";
import { createRequire } from "node:module";
import * as durable from "durable-functions";
import { obey } from "./driver.mjs";

const { BINDING, RELAY, TASK_HUB, TOKEN } = process.env;
const axios = createRequire(import.meta.url)("axios"); // the build that the client requires
axios.defaults.headers.common.Authorization = "Bearer " + TOKEN;

const base = RELAY + "/runtime/webhooks/durabletask";
const query = `taskHub=${TASK_HUB}&connection=Storage&code=not-a-key`;
const at = (path) => `${base}/instances/INSTANCEID${path}?${query}`;
const bindings = {
  templates: {
    taskHubName: TASK_HUB,
    creationUrls: {},
    managementUrls: {
      id: "INSTANCEID",
      statusQueryGetUri: at(""),
      sendEventPostUri: at("/raiseEvent/{eventName}"),
      terminatePostUri: at("/terminate") + "&reason={text}",
      purgeHistoryDeleteUri: at(""),
    },
  },
  base: { taskHubName: TASK_HUB, creationUrls: {}, managementUrls: { id: "INSTANCEID" }, rpcBaseUrl: base + "/" },
};
process.env.WEBSITE_HOSTNAME = new URL(RELAY).host; // else the client believes to be on a developer's machine, and goes there
const input = durable.input.durableClient();
const client = durable.getClient({
  options: { extraInputs: [input] },
  extraInputs: new Map([[input, bindings[BINDING]]]),
});

await obey({
  getStatus: async (id, options) => {
    const status = await client.getStatus(id, options);
    for (const time of [status.createdTime, status.lastUpdatedTime]) {
      assert(time instanceof Date && !Number.isNaN(time.getTime()), "a time that is none");
      assert.equal(time.getMilliseconds(), 0, "Durable Functions' times have whole seconds");
    }
    return status;
  },
  waitForCompletion: async (id, options) => {
    const request = { url: RELAY + "/api/orders" }; // that of whoever asked the function to wait
    const answer = await client.waitForCompletionOrCreateCheckStatusResponse(request, id, options);
    return { status: answer.status, headers: Object.fromEntries(answer.headers), body: await answer.json() };
  },
  terminate: (id, reason) => client.terminate(id, reason),
  raiseEvent: (id, name, data) => client.raiseEvent(id, name, data),
  purge: (id) => client.purgeInstanceHistory(id),
});
