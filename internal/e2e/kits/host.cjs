// A Functions host for the kit in examples/javascript: it loads the app as the Node.js worker does, and runs one
// orchestration as the Durable Functions extension does, with a history that is replayed from its start at every step.
// The kit, @azure/functions, durable-functions and @azure/service-bus are the real ones (NODE_PATH has them).
//
// What to run comes from the environment, and what came of it is printed, as kits_test.go says.
"use strict";
const Module = require("node:module");
const { APP, NAME, INSTANCE, INPUT, START, PUBLISH, REPEAT, UNREACHABLE } = process.env;

// The worker hands @azure/functions-core to whoever requires it.
const functions = new Map();
let model;
const core = {
  version: "4.0.0",
  hostVersion: "4.0.0",
  registerFunction(metadata, callback) {
    functions.set(metadata.name, { metadata, callback });
    return { dispose() {} };
  },
  registerHook: () => ({ dispose() {} }),
  setProgrammingModel: (m) => (model = m),
  getProgrammingModel: () => model,
  log(level, category, text) {
    process.stderr.write(`${level} ${text}\n`);
  },
};
const { require: real } = Module.prototype;
Module.prototype.require = function (id) {
  return id === "@azure/functions-core" ? core : real.call(this, id);
};
require(APP);

const say = (line) => process.stdout.write(JSON.stringify(line) + "\n");

/** Invokes a function as the worker does, and returns what it sends back to the host. */
async function invoke(name, input) {
  const { metadata, callback } = functions.get(name);
  const [trigger] = Object.entries(metadata.bindings).find(([, b]) => b.type.endsWith("Trigger"));
  const data = typeof input === "string" ? { string: input } : { json: JSON.stringify(input ?? null) };
  const request = { inputData: [{ name: trigger, data }], triggerMetadata: {} };
  const invocation = model.getInvocationModel({
    invocationId: "1",
    metadata,
    request,
    log: (level, category, text) => core.log(level, category, text),
  });
  const { context, inputs } = await invocation.getArguments();
  const response = await invocation.getResponse(context, await invocation.invokeFunction(context, inputs, callback));
  for (const { data } of response.outputData) say({ body: data.json ?? data.string }); // an output binding has just this
  const { returnValue } = response;
  return returnValue?.json ? JSON.parse(returnValue.json) : (returnValue?.string ?? null);
}

let unreachable = Number(UNREACHABLE);
async function activity(name, input) {
  if (name === "PublishStatus" && unreachable > 0) {
    unreachable--;
    throw new Error("no broker");
  }
  if (name === "PublishStatus") name = PUBLISH;
  if (REPEAT) await invoke(name, input); // the host died before it knew
  return invoke(name, input);
}

(async () => {
  let clock = Number(START);
  const history = [];
  const add = (type, event = {}) =>
    history.push({ EventType: type, EventId: -1, IsPlayed: false, Timestamp: new Date(clock).toISOString(), ...event });
  const wake = () => {
    clock += 1234; // a kit that takes a later reading than the first gets another generation
    add(12); // OrchestratorStarted
  };

  add(12);
  add(0, { Name: NAME, Input: INPUT }); // ExecutionStarted
  let ids = 0; // of tasks and timers
  const known = []; // actions, as first asked for
  for (let done = 0, episodes = 1; ; episodes++) {
    let state;
    try {
      state = await invoke(NAME, { history, input: JSON.parse(INPUT), instanceId: INSTANCE, isReplaying: false, parentInstanceId: "",
        upperSchemaVersion: 3, longRunningTimerIntervalDuration: "3.00:00:00", maximumShortTimerDuration: "6.00:00:00",
        defaultHttpAsyncRequestSleepTimeMillseconds: 30000 });
    } catch (error) {
      const [, state] = error.message.split("$OutOfProcData$:");
      return say({ ended: "Failed", error: state ? JSON.parse(state).error : error.stack, episodes });
    }
    if (state.isDone) return say({ ended: "Completed", output: state.output, customStatus: state.customStatus, episodes });
    const actions = state.actions.flat();
    const action = actions[done];
    known[done] = JSON.stringify(action);
    if (JSON.stringify(actions) !== `[${known}]`) throw new Error(`a replay went another way: ${JSON.stringify(actions)} instead of [${known}]`);

    const attempts = action.actionType === 1 ? action.retryOptions.maxNumberOfAttempts : 1;
    for (let attempt = 1; ; attempt++) {
      const id = ids++;
      add(4, { EventId: id, Name: action.functionName }); // TaskScheduled
      add(13); // OrchestratorCompleted
      try {
        const result = await activity(action.functionName, action.input);
        wake();
        add(5, { TaskScheduledId: id, Result: JSON.stringify(result) }); // TaskCompleted
        break;
      } catch (error) {
        wake();
        add(6, { TaskScheduledId: id, Reason: error.message, Details: error.message }); // TaskFailed
        if (action.actionType !== 1) break;
        const timer = ids++; // the host waits after the last attempt as well
        add(10, { EventId: timer }); // TimerCreated
        add(13);
        wake();
        add(11, { TimerId: timer }); // TimerFired
        if (attempt === attempts) break;
      }
    }
    done++;
  }
})().then(
  () => process.exit(), // the SDK's connection is open
  (error) => {
    console.error(error);
    process.exit(1);
  },
);
