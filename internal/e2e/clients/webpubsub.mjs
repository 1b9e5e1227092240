// The client of Azure Web PubSub, as a page or a service would use it. LIBRARY is
// the package, PROTOCOL the subprotocol to ask for, empty for the one that the
// library has by default; RELAY and TOKEN are where and as whom. TIMEOUT, if it is
// there, is the time in ms after which the library gives up on a silent server,
// which it pings ten times as often.
import { obey, say } from "./driver.mjs";

const { LIBRARY, PROTOCOL, RELAY, TIMEOUT, TOKEN } = process.env;
const { WebPubSubClient, WebPubSubJsonProtocol } = await import(LIBRARY);

async function getClientAccessUrl() {
  const answer = await fetch(RELAY + "/v1/tickets", { method: "POST", headers: { Authorization: "Bearer " + TOKEN } });
  if (answer.status !== 201) throw new Error(`a ticket: ${answer.status} ${await answer.text()}`);
  const { ticket } = await answer.json();
  return `${RELAY.replace(/^http/, "ws")}/v1/watch?ticket=${encodeURIComponent(ticket)}`;
}

const protocols = { "json.webpubsub.azure.v1": WebPubSubJsonProtocol, "": () => undefined };
const options = { protocol: protocols[PROTOCOL]() };
if (TIMEOUT) {
  options.keepAliveTimeoutInMs = +TIMEOUT;
  options.keepAliveIntervalInMs = +TIMEOUT / 10;
}
const client = new WebPubSubClient({ getClientAccessUrl }, options);

for (const event of ["connected", "disconnected", "stopped", "group-message", "server-message", "rejoin-group-failed"]) {
  client.on(event, (args) => say({ event, ...args }));
}
const stopped = new Promise((resolve) => client.on("stopped", resolve));

await obey(
  {
    start: () => client.start(),
    joinGroup: (group) => client.joinGroup(group),
    leaveGroup: (group) => client.leaveGroup(group),
    sendToGroup: (group, data, options) => client.sendToGroup(group, data, "json", options),
    sendEvent: (event, data, options) => client.sendEvent(event, data, "json", options),
    invokeEvent: (event, data) => client.invokeEvent(event, data, "json"),
    stop: async () => {
      client.stop();
      await stopped;
    },
  },
  () => process.exit(0), // the library's timers would keep it alive for two minutes
);
