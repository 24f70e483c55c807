// The page: orders jobs, follows them to their end, and shows the dyno as its live feed tells it.

import { duration, megabytes, number, percentile } from "./amounts.js";
import { Bench } from "./bench.js";
import { Rain, getJson, post, sleep } from "./calls.js";
import { Chart } from "./charts.js";
import { Line } from "./line.js";

const { jobsUrl, nowUrl, benchUrl, eventsUrl } = document.body.dataset;
const element = (id) => document.getElementById(id);
const FINAL = ["done", "failed"];

// Elements are made from the server's own templates and filled field by field.

function make(template) {
  return element(template).content.firstElementChild.cloneNode(true);
}

function setText(target, value) {
  const text = String(value ?? "—");
  if (target.textContent !== text) target.textContent = text;
}

function fill(parent, values) {
  for (const [field, value] of Object.entries(values)) {
    const target = parent.querySelector(`[data-field="${field}"]`);
    setText(target, value);
    if (field === "state") target.dataset.state = String(value);
  }
}

function say(news) {
  element("news").textContent = news;
}

// The jobs

const QUIET = 4000; // ms without news of a job until the page asks after it
const REMEMBERED = 3000; // ended jobs, so that late news of them is known to be late
const line = new Line(element("line"));
const jobs = new Map(); // by id: kind, seconds, state, pid, waited, took (s), ours, heard (ms)
const counts = { sent: 0, done: 0, failed: 0, refused: 0 }; // ours
let doneByAll = 0;
const waits = []; // from call to start, of the jobs that started in this second
let ended = 0; // jobs of anybody since the last second
let open = 0; // jobs of ours that have not ended
let sending = 0;
let tableIsStale = false;

function know(id, kind) {
  if (!jobs.has(id)) jobs.set(id, { id, kind, seconds: null, state: "queued", pid: null, waited: null, took: null, error: "", ours: false });
  const job = jobs.get(id);
  job.heard = performance.now();
  tableIsStale = true;
  return job;
}

function isRunning(id, kind, pid) {
  const job = know(id, kind);
  if (FINAL.includes(job.state)) return;
  if (job.ours && job.state !== "running" && open < 4) say(`Job ${id} is running in process ${pid}.`);
  Object.assign(job, { state: "running", pid });
  line.running(id, kind, pid);
}

function hasEnded(id, kind, state, pid, waited, took, error = "") {
  const job = know(id, kind);
  if (FINAL.includes(job.state)) return;
  Object.assign(job, { state, pid, waited, took, error });
  line.ended(id, kind, state, pid ?? 0);
  ended += 1;
  if (state === "done") doneByAll += 1;
  if (waited !== null) waits.push(waited * 1000);
  if (job.ours) countEnd(job);
}

function countEnd(job) {
  counts[job.state] += 1;
  open -= 1;
  if (job.state === "failed") askAfter([job.id]); // for the reason
  if (open < 4) say(`Job ${job.id} is ${job.state}.`);
}

function chosen() {
  const form = new FormData(element("order"));
  return { kind: form.get("kind"), seconds: Number(form.get("seconds")) };
}

// Sends one job; resolves to whether it was taken.
async function send() {
  const order = chosen();
  const key = Symbol("call");
  sending += 1;
  line.sent(key, order.kind);
  try {
    const { ids: [id] } = await post(jobsUrl, order);
    counts.sent += 1;
    element("error").textContent = "";
    taken(key, id, order);
    return true;
  } catch (refusal) {
    counts.refused += 1;
    line.refused(key);
    element("error").textContent = refusal.message;
    if (refusal.status === 400) stopRain();
    else await sleep((refusal.retryAfter ?? 1) * 1000);
    return refusal.status === 400; // the same order would be refused again
  } finally {
    sending -= 1;
  }
}

// The feed may have told of the job before the call was answered.
function taken(key, id, order) {
  const early = jobs.get(id);
  const job = know(id, order.kind);
  Object.assign(job, { ours: true, seconds: order.seconds });
  open += 1;
  if (early) line.refused(key);
  else line.queued(key, id);
  if (FINAL.includes(job.state)) countEnd(job);
  else if (job.state === "running") say(`Job ${id} is running in process ${job.pid}.`);
}

async function askAfter(ids) {
  const { jobs: told } = await getJson(`${jobsUrl}?ids=${ids}`);
  const between = (start, end) => (start && end ? (Date.parse(end) - Date.parse(start)) / 1000 : null);
  for (const { id, kind, state, pid, error, ...at } of told) {
    const job = know(id, kind);
    job.error = error ?? "";
    if (FINAL.includes(state)) hasEnded(id, kind, state, pid, between(at.created, at.started), between(at.started, at.finished), error ?? "");
    else if (state === "running") isRunning(id, kind, pid);
  }
  const known = new Set(told.map((job) => job.id));
  for (const id of ids.filter((one) => !known.has(one))) { // cleared away since
    line.forget(id);
    jobs.delete(id);
  }
}

async function askAfterQuietJobs() {
  for (;;) {
    await sleep(1000);
    const quiet = [...jobs.values()].filter((job) => !FINAL.includes(job.state) && performance.now() - job.heard > QUIET);
    quiet.filter((job) => !job.ours).forEach((job) => { line.forget(job.id); jobs.delete(job.id); });
    const ids = quiet.filter((job) => job.ours).slice(0, 300).map((job) => job.id);
    if (ids.length && !document.hidden) await askAfter(ids).catch(() => {});
    let surplus = jobs.size - REMEMBERED;
    for (const [id, job] of jobs) {
      if (surplus <= 0) break;
      if (FINAL.includes(job.state)) { jobs.delete(id); surplus -= 1; }
    }
  }
}

const rows = element("jobs");
const QUEUED_ROWS = 3;

// The newest jobs; of a long queue only the end, or there would be nothing else.
function showTable() {
  let queued = 0;
  const newest = [...jobs.values()].sort((a, b) => b.id - a.id)
    .filter((job) => job.state !== "queued" || ++queued <= QUEUED_ROWS)
    .slice(0, Number(rows.dataset.rows));
  while (rows.children.length < newest.length) rows.append(make("job-template"));
  newest.forEach((job, index) => {
    const row = rows.children[index];
    row.dataset.id = job.id;
    fill(row, {
      id: job.id,
      what: job.seconds === null ? job.kind : `${job.kind} ${duration(job.seconds)}`,
      state: job.state,
      error: job.error,
      pid: job.pid,
      waited: duration(job.waited),
      took: duration(job.took),
    });
  });
  element("none").hidden = rows.children.length > 0;
  tableIsStale = false;
}

function showCounts() {
  let [queued, cooking] = [0, 0];
  for (const job of jobs.values()) {
    const runs = job.state === "running" && !line.gone.has(job.pid);
    if (runs) cooking += 1;
    else if (!FINAL.includes(job.state)) queued += 1;
  }
  setText(element("sent"), number(counts.sent));
  setText(element("queued"), number(queued + line.others));
  setText(element("cooking"), number(cooking));
  setText(element("done"), number(doneByAll));
  setText(element("ours"), counts.done < doneByAll && counts.sent ? `${number(counts.done)} yours` : "");
  element("empty").hidden = counts.sent + sending > 0 || line.served.length > 0;
  const mishaps = [[counts.failed, "failed"], [counts.refused, "refused, or not answered"]].filter(([many]) => many);
  element("mishaps").hidden = mishaps.length === 0;
  setText(element("mishaps"), mishaps.map(([many, what]) => `${number(many)} ${what}`).join(", "));
  if (tableIsStale) showTable();
}

function readTable() {
  const seconds = (text) => (text ? Number(text) : null);
  for (const { dataset } of [...rows.children].reverse()) {
    const { id, kind, state, error } = dataset;
    const [length, pid, waited, took] = [dataset.seconds, dataset.pid, dataset.waited, dataset.took].map(seconds);
    Object.assign(know(Number(id), kind), { state, error, seconds: length, pid, waited, took });
  }
  tableIsStale = false;
}

// The rain

const rain = new Rain(send);
const cook = element("cook");
const keep = element("keep");
const HOLD = 250; // ms that the button is held until it rains
let holding = null;
let held = false;

const rate = () => Number(element("rate").value);

function startRain() {
  held = true;
  rain.rate = rate();
  cook.classList.add("raining");
}

function stopRain() {
  clearTimeout(holding);
  cook.classList.remove("raining");
  keep.setAttribute("aria-pressed", "false");
  rain.stop();
}

function release() {
  clearTimeout(holding);
  cook.classList.remove("raining");
  if (keep.getAttribute("aria-pressed") === "false") rain.rate = 0;
}

function press(event) {
  if (event.button) return;
  held = false;
  holding = setTimeout(() => { if (element("order").reportValidity()) startRain(); }, HOLD);
}

function pressKey(event) {
  if (event.key !== " " && event.key !== "Enter") return;
  if (!event.repeat) held = false;
  else {
    event.preventDefault(); // or each repeat would be a click
    if (!held && element("order").reportValidity()) startRain();
  }
}

cook.addEventListener("pointerdown", press);
cook.addEventListener("contextmenu", (event) => event.preventDefault()); // what a long touch brings
cook.addEventListener("keydown", pressKey);
cook.addEventListener("keyup", (event) => { if (held) event.preventDefault(); release(); });
cook.addEventListener("blur", release);
for (const end of ["pointerup", "pointercancel"]) addEventListener(end, release);
element("order").addEventListener("submit", (event) => {
  event.preventDefault();
  if (!held) rain.add(1);
  held = false;
});
element("rate").addEventListener("input", () => {
  setText(element("rate-shown"), rate());
  if (rain.rate) rain.rate = rate();
});
keep.addEventListener("click", () => {
  if (keep.getAttribute("aria-pressed") === "true") stopRain();
  else if (element("order").reportValidity()) {
    keep.setAttribute("aria-pressed", "true");
    rain.rate = rate();
  }
});
element("thousand").addEventListener("click", () => { if (element("order").reportValidity()) rain.add(1000); });

// The dyno

const ENDED = 5000; // ms that a process that is gone is still shown

function facts(process) {
  return {
    state: process.state,
    pid: process.pid,
    uptime: duration(process.uptime),
    memory: megabytes(process.memory),
  };
}

function flash(target, name) {
  target.classList.remove(name);
  void target.offsetWidth; // starts the animation anew
  target.classList.add(name);
}

function showProcess(process) {
  const bowls = element("processes");
  let bowl = [...bowls.children].find((child) => child.dataset.name === process.name);
  if (!bowl) {
    bowl = make("process-template");
    bowl.dataset.name = process.name;
    bowls.append(bowl);
  } else if (bowl.querySelector(".state").dataset.state !== process.state) {
    say(`${process.name} is ${process.state}.`);
  }
  if (bowl.dataset.pid && process.pid && bowl.dataset.pid !== String(process.pid)) flash(bowl, "reborn");
  if (process.pid) bowl.dataset.pid = process.pid;
  bowl.classList.toggle("dead", process.pid === null);
  fill(bowl, { name: process.name, what: process.what, restarts: process.restarts, ...facts(process) });
  bowl.querySelector(".restarts").hidden = !process.restarts;
  showChildren(bowl.querySelector(".below"), process);
}

// A child that is gone stays for a moment, crossed out; a new one is marked.
function showChildren(below, process) {
  const list = below.querySelector("ul");
  const isFirst = !below.dataset.seen;
  const now = new Set(process.children.map((child) => String(child.pid)));
  for (const item of [...list.children]) {
    item.dataset.pid ||= item.querySelector("[data-field=pid]").textContent;
    if (!now.has(item.dataset.pid) && !item.classList.contains("gone")) {
      item.classList.add("gone");
      fill(item, { memory: "ended" });
      setTimeout(() => item.remove(), ENDED);
    }
  }
  for (const child of process.children) {
    let item = [...list.children].find((one) => one.dataset.pid === String(child.pid));
    if (!item) {
      item = list.appendChild(make("child-template"));
      item.dataset.pid = child.pid;
      if (!isFirst) flash(item, "new");
    }
    fill(item, { title: child.title, pid: child.pid, memory: megabytes(child.memory) });
  }
  below.dataset.seen = "yes";
  below.hidden = list.children.length === 0;
  fill(below, { count: process.children.length });
}

function showDyno(dyno) {
  element("pot").classList.toggle("stale", dyno === null);
  if (dyno === null) {
    showNote("The boiler doesn’t answer.");
    return;
  }
  const { boiler, processes, memory, limit } = dyno;
  element("pot").hidden = !boiler;
  showNote(boiler ? "" : "This app runs without the boiler, so there is nothing to see in here.");
  if (!boiler) return;
  fill(element("boiler"), { ...facts(boiler), total: limit ? `${megabytes(memory)} of ${megabytes(limit)}` : megabytes(memory) });
  const names = new Set(processes.map((process) => process.name));
  for (const bowl of [...element("processes").children]) {
    if (!names.has(bowl.dataset.name)) bowl.remove();
  }
  processes.forEach(showProcess);
  line.setPots(processes.flatMap((process) => process.children).filter((child) => child.title.includes("pool child")).map((child) => child.pid));
  const parts = Object.fromEntries([["boiler", boiler.memory], ...processes.map((process) => [process.name, process.memory ?? 0])]);
  charts.memory.limit = limit ? limit / 1024 ** 2 : null;
  charts.memory.add(Object.fromEntries(Object.entries(parts).map(([name, bytes]) => [name, bytes / 1024 ** 2])));
}

function showNote(text) {
  setText(element("note"), text);
  element("note").hidden = !text;
}

// The feed

const charts = {
  rates: new Chart(element("chart-rates"), { least: 10 }),
  queue: new Chart(element("chart-queue"), { least: 10 }),
  latency: new Chart(element("chart-latency"), { format: (ms) => duration(ms / 1000), least: 10 }),
  memory: new Chart(element("chart-memory"), { stacked: true, least: 100 }),
};
let pulse = null; // the last frame that told of requests
let after = "";
let heard = 0;

function showFrame(frame) {
  heard = performance.now();
  showLive(frame.trouble ? "failed" : "running", frame.trouble ?? "live");
  if (frame.trouble) return;
  after = frame.after;
  for (const [id, kind, pid] of frame.running) isRunning(id, kind, pid);
  for (const one of frame.ended) hasEnded(...one);
  if ("clock" in frame) showPulse(frame);
}

function showPulse(frame) {
  const ours = [...jobs.values()].filter((job) => job.ours && job.state === "queued").length;
  line.setOthers(Math.max(0, frame.queued - ours));
  charts.queue.add({ jobs: frame.queued });
  const seconds = pulse ? frame.clock - pulse.clock : 0;
  if (seconds > 0 && frame.requests >= pulse.requests) {
    charts.rates.add({ requests: (frame.requests - pulse.requests) / seconds, "jobs done": ended / seconds });
    charts.latency.add({ median: percentile(waits, 50), "95th": percentile(waits, 95), "99th": percentile(waits, 99) });
    ended = waits.length = 0;
  }
  pulse = frame;
  showDyno(frame.dyno);
}

function showLive(state, text) {
  element("live").dataset.state = state;
  setText(element("live"), text);
}

function listen() {
  const events = new EventSource(eventsUrl);
  events.onmessage = (event) => showFrame(JSON.parse(event.data));
  events.onerror = () => {
    showLive("starting", "connecting again");
    element("pot").classList.add("stale");
    if (events.readyState === EventSource.CLOSED) poll(10_000).then(listen);
  };
}

// Where the server can't stream, or has too many streams already: for so many milliseconds.
async function poll(milliseconds = Infinity) {
  const until = performance.now() + milliseconds;
  while (performance.now() < until) {
    if (!document.hidden) {
      try {
        showFrame(await getJson(after ? `${nowUrl}?after=${after}` : nowUrl));
      } catch (refusal) {
        showLive("failed", refusal.message);
        element("pot").classList.add("stale");
      }
    }
    await sleep(1000);
  }
}

readTable();
if (eventsUrl) listen();
else poll();
askAfterQuietJobs();
setInterval(showCounts, 200);
showCounts();
new Bench(element("bench"), benchUrl, jobsUrl, () => ({ memory: pulse?.dyno?.memory, limit: pulse?.dyno?.limit }));
