// What a Go test and a client that others wrote say to each other, one JSON
// object per line:
//
//   in   {"id":1,"call":"joinGroup","args":["h/i"]}
//   out  {"id":1,"result":…}  {"id":1,"error":{"name":…,"message":…,"detail":…}}
//   out  {"event":"group-message",…}                     whatever happens meanwhile
//
// Calls run beside each other. The end of the input is the end: the last thing
// to happen is done().
import { createInterface } from "node:readline";

/** Writes one line to the test. */
export function say(line) {
  process.stdout.write(JSON.stringify(line) + "\n");
}

/** Runs the calls of the test until it has no more. */
export async function obey(calls, done = () => {}) {
  for await (const line of createInterface({ input: process.stdin })) {
    const { id, call, args } = JSON.parse(line);
    answer(id, calls[call], args);
  }
  await done();
}

async function answer(id, call, args) {
  try {
    say({ id, result: (await call(...args)) ?? null });
  } catch (error) {
    say({ id, error: { name: error.name, message: error.message, detail: error.errorDetail } });
  }
}
