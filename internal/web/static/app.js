// The dashboard of development mode. A card is a cell that keeps the newest
// version it has been offered; everything on the page is drawn from the cells.

const PROTOCOL = "status.v1.json";
const HUB = "demo"; // of which everything that the caller may read is shown, as it appears
const FINAL = new Set(["Completed", "Failed", "Canceled", "Terminated"]);
const NOTES = {
  operator: "An operator sees every field of every instance.",
  customer: "Customer u-1001 sees percent, step and message of the instances they own. The rest never reaches their browser.",
};

const cells = new Map(); // "hub/instanceId" → {hub, instanceId, version, status, card, named}
let session; // tokens and samples, from /dev/session.json
let role = "operator";
let pushes = 0;

const $ = (id) => document.getElementById(id);

// --- cells ------------------------------------------------------------------

function cell(hub, instanceId) {
  const key = `${hub}/${instanceId}`;
  if (!cells.has(key)) {
    const card = $("card").content.firstElementChild.cloneNode(true);
    $("cards").append(card);
    cells.set(key, { hub, instanceId, version: 0, status: null, card, named: false });
  }
  return cells.get(key);
}

// named is a cell that the page asks for by its name, and not because a list has it.
function named(hub, instanceId) {
  const c = cell(hub, instanceId);
  c.named = true;
  return c;
}

// offer gives a cell a version; an older one than it has does nothing.
function offer({ hub, instanceId, version }, status) {
  const c = cell(hub, instanceId);
  if (version <= c.version) return;
  c.version = version;
  c.status = status;
  draw(c);
  c.card.classList.remove("pushed");
  void c.card.offsetWidth; // lets the animation start again
  c.card.classList.add("pushed");
}

// forget empties all cells: another caller may see other things.
function forget() {
  for (const c of cells.values()) {
    c.version = 0;
    c.status = null;
    draw(c);
  }
}

// --- drawing ----------------------------------------------------------------

function draw(c) {
  const { card, status } = c;
  const find = (selector) => card.querySelector(selector);
  const custom = status?.customStatus;
  const said = custom && typeof custom === "object" ? custom : {};
  card.dataset.status = status?.runtimeStatus ?? "none";
  find(".name").textContent = status?.name ?? c.hub;
  find(".badge").textContent = status ? status.runtimeStatus + (status.stale ? ", silent" : "") : "Nothing to see";
  find("h2").textContent = c.instanceId;
  find(".message").textContent = message(status, said, custom);
  find(".step").textContent = typeof said.step === "string" ? said.step : "";
  find("pre").textContent = status ? JSON.stringify(status, null, 2) : "Nothing: it does not exist, or not for this caller.";
  drawBar(find(".bar"), percentOf(status, said), segmentsOf(said));
  drawAge(c);
  drawSummary();
}

function message(status, said, custom) {
  if (!status) return "Does not exist, or not for this caller.";
  if (status.failure?.message) return status.failure.message;
  if (typeof said.message === "string") return said.message;
  return typeof custom === "string" ? custom : "";
}

function percentOf(status, said) {
  if (status?.runtimeStatus === "Completed") return 100;
  return Number.isFinite(said.percent) ? Math.min(100, Math.max(0, said.percent)) : 0;
}

// segmentsOf is into how many parts the bar is cut: one, unless the status says
// that the work has a countable number of parts.
function segmentsOf(said) {
  const n = said.parts ?? said.steps;
  return Number.isInteger(n) && n > 1 && n <= 24 ? n : 1;
}

function drawBar(bar, percent, segments) {
  while (bar.childElementCount < segments) bar.append(document.createElement("i"));
  while (bar.childElementCount > segments) bar.lastElementChild.remove();
  [...bar.children].forEach((part, i) => {
    const fill = Math.min(1, Math.max(0, (percent / 100) * segments - i));
    part.style.setProperty("--fill", fill.toFixed(3));
  });
  bar.setAttribute("aria-valuenow", Math.round(percent));
}

// A version is the store's clock in microseconds, or a little more.
function drawAge(c) {
  const time = c.card.querySelector("time");
  if (!c.status) {
    time.textContent = "";
    return;
  }
  const changed = new Date(c.version / 1000);
  const seconds = Math.max(0, (Date.now() - changed) / 1000);
  time.dateTime = changed.toISOString();
  time.textContent = `changed ${age(seconds)} ago`;
}

function age(seconds) {
  if (seconds < 10) return `${seconds.toFixed(1)} s`;
  if (seconds < 90) return `${Math.round(seconds)} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  return `${Math.round(seconds / 3600)} h`;
}

function drawSummary() {
  const states = [...cells.values()].map((c) => c.status?.runtimeStatus).filter(Boolean);
  $("count-completed").textContent = states.filter((s) => s === "Completed").length;
  $("count-failed").textContent = states.filter((s) => s === "Failed").length;
  $("count-running").textContent = states.filter((s) => !FINAL.has(s)).length;
  $("count-pushes").textContent = pushes;
  $("role-note").textContent = NOTES[role];
}

function drawProblem(text) {
  $("problem").textContent = text;
}

function drawConnection(state, text) {
  document.body.dataset.state = state;
  $("connection").dataset.state = state;
  $("connection-text").textContent = text;
}

// --- connection -------------------------------------------------------------

const base64url = (text) => btoa(text).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");

// A relay that is frozen, or a network that swallows everything, closes no
// socket, and a page does not see pings. So it asks when it has heard nothing.
const SILENCE = 15_000; // ms without a frame until the page asks
const ANSWER = 5_000; // ms for the answer

let socket;
let heard = 0; // when the last frame came
let asked = 0; // when the page asked whether anybody is there, 0: it did not
let attempt = 0;
let retry; // timer of the next attempt

const watched = (list) => list.map((c) => ({ hub: c.hub, instanceId: c.instanceId, after: c.version }));

async function connect() {
  clearTimeout(retry);
  drawConnection("connecting", "Connecting");
  try {
    const answer = await fetch("/dev/session.json", { cache: "no-store" });
    session = await answer.json(); // also after a restart, which makes new tokens
  } catch {
    later();
    return;
  }
  for (const s of session.samples) draw(named(s.hub, s.instanceId));
  const url = new URL("/v1/watch", location.href);
  url.protocol = url.protocol === "https:" ? "wss:" : "ws:";
  const ws = new WebSocket(url, [PROTOCOL, `bearer.${base64url(session.tokens[role])}`]);
  socket = ws;
  ws.onmessage = ({ data }) => ws === socket && receive(JSON.parse(data));
  heard = Date.now();
  asked = 0;
  ws.onclose = ({ code }) => ws === socket && later(code);
}

function receive(frame) {
  heard = Date.now();
  asked = 0;
  switch (frame.type) {
    case "welcome":
      attempt = 0;
      drawConnection("live", "Live");
      watch([...cells.values()].filter((c) => c.named));
      socket.send(JSON.stringify({ type: "watch", list: HUB, query: { hub: HUB } }));
      break;
    case "status":
      pushes++;
      offer(frame, frame.status);
      break;
    case "gone":
      pushes++;
      offer(frame, null);
      break;
    case "problem":
      drawProblem(`${frame.title} ${frame.field ?? ""} ${frame.detail ?? ""}`);
      break;
  }
}

function watch(list) {
  const most = 100; // instances in one frame
  for (let i = 0; i < list.length; i += most) {
    socket.send(JSON.stringify({ type: "watch", ref: String(i), instances: watched(list.slice(i, i + most)) }));
  }
}

function checkSilence() {
  if (!socket) return;
  const now = Date.now();
  if (asked && now - asked > ANSWER) {
    const silent = socket;
    later("silent");
    silent.close();
  } else if (!asked && now - heard > SILENCE && socket.readyState === WebSocket.OPEN) {
    asked = now;
    socket.send(JSON.stringify({ type: "unwatch", list: "anybody there" })); // answered, and nothing else
  }
}

// later connects again after a random pause that grows: a relay that restarts
// must not meet all its clients at once.
function later(code) {
  socket = undefined;
  const pause = Math.random() * Math.min(15_000, 500 * 2 ** attempt++);
  drawConnection("offline", code ? `Reconnecting (${code})` : "Reconnecting");
  retry = setTimeout(connect, pause);
}

function reconnect() {
  const old = socket;
  socket = undefined;
  old?.close(1000);
  attempt = 0;
  connect();
}

// --- page -------------------------------------------------------------------

document.querySelector(".roles").addEventListener("change", (e) => {
  role = e.target.value;
  forget();
  reconnect();
});

$("add").addEventListener("submit", (e) => {
  e.preventDefault();
  const form = new FormData(e.target);
  drawProblem("");
  const c = named(form.get("hub"), form.get("instanceId").trim());
  draw(c);
  if (socket?.readyState === WebSocket.OPEN) watch([c]);
  c.card.scrollIntoView({ behavior: "smooth", block: "center" });
  e.target.elements.instanceId.value = "";
});

addEventListener("online", reconnect);
setInterval(() => {
  cells.forEach(drawAge);
  checkSilence();
}, 500);
drawSummary();
connect();
