// Keeps the page's picture of the dyno fresh, orders jobs and follows them to their end.

const { jobsUrl, statusUrl } = document.body.dataset;
const element = (id) => document.getElementById(id);
const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

// Amounts, written as templatetags/amounts.py writes them.

const UNITS = [[86400, "d", 3600, "h"], [3600, "h", 60, "min"], [60, "min", 1, "s"]];

function duration(seconds) {
  if (seconds === null) return "—";
  for (const [size, unit, partSize, part] of UNITS) {
    if (seconds >= size) {
      return `${Math.floor(seconds / size)} ${unit} ${Math.floor((seconds % size) / partSize)} ${part}`;
    }
  }
  return 0 < seconds && seconds < 1 ? `${Math.round(seconds * 1000)} ms` : `${Number(seconds.toFixed(1))} s`;
}

function megabytes(bytes) {
  return bytes === null ? "—" : `${Math.round(bytes / 1024 ** 2)} MB`;
}

function secondsBetween(start, end) {
  return start && end ? (Date.parse(end) - Date.parse(start)) / 1000 : null;
}

// Elements are made from the server's own templates and filled field by field.

function make(template) {
  return element(template).content.firstElementChild.cloneNode(true);
}

function fill(parent, values) {
  for (const [field, value] of Object.entries(values)) {
    const target = parent.querySelector(`[data-field="${field}"]`);
    const text = String(value ?? "—");
    if (target.textContent !== text) target.textContent = text;
    if (field === "state") target.dataset.state = text;
  }
}

function say(news) {
  element("news").textContent = news;
}

async function getJson(url, options) {
  let response;
  try {
    response = await fetch(url, options);
  } catch {
    throw new Error("The dyno doesn’t answer: try again in some seconds.");
  }
  const data = await response.json().catch(() => ({ error: `The dyno answered ${response.status}.` }));
  if (!response.ok) throw new Error(data.error);
  return data;
}

// The dyno

function facts(process) {
  return {
    state: process.state,
    pid: process.pid,
    uptime: duration(process.uptime),
    memory: megabytes(process.memory),
  };
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
  fill(bowl, { name: process.name, what: process.what, restarts: process.restarts, ...facts(process) });
  bowl.querySelector(".restarts").hidden = !process.restarts;
  const below = bowl.querySelector(".below");
  below.hidden = process.children.length === 0;
  fill(below, { count: process.children.length });
  const list = below.querySelector("ul");
  while (list.children.length > process.children.length) list.lastElementChild.remove();
  process.children.forEach((child, index) => {
    const item = list.children[index] ?? list.appendChild(make("child-template"));
    fill(item, { title: child.title, pid: child.pid, memory: megabytes(child.memory) });
  });
}

function showDyno({ boiler, processes, memory }) {
  element("pot").hidden = !boiler;
  element("note").hidden = Boolean(boiler);
  if (!boiler) return;
  element("pot").classList.remove("stale");
  fill(element("boiler"), { ...facts(boiler), total: megabytes(memory) });
  const names = new Set(processes.map((process) => process.name));
  for (const bowl of [...element("processes").children]) {
    if (!names.has(bowl.dataset.name)) bowl.remove();
  }
  processes.forEach(showProcess);
}

async function watchDyno() {
  for (;;) {
    await sleep(2000);
    if (document.hidden) continue;
    try {
      showDyno(await getJson(statusUrl));
    } catch (error) {
      element("pot").classList.add("stale");
      element("note").hidden = false;
      element("note").textContent = error.message;
    }
  }
}

// The jobs

const rows = element("jobs");
const following = new Map(); // the rows of the jobs that have not ended, by id
const SOON = 150;
let pause = SOON; // ms until the next look; longer jobs are looked at less often

function showJob(job) {
  const row = following.get(job.id);
  if (!row) return; // pushed out of the table while the answer was on its way
  const before = row.querySelector(".state").dataset.state;
  fill(row, {
    id: job.id,
    what: `${job.kind} ${duration(job.seconds)}`,
    state: job.state,
    error: job.error ?? "",
    pid: job.pid,
    waited: duration(secondsBetween(job.created, job.started)),
    took: duration(secondsBetween(job.started, job.finished)),
  });
  if (job.state !== before) {
    say(job.state === "running" ? `Job ${job.id} is running in process ${job.pid}.` : `Job ${job.id} is ${job.state}.`);
  }
  if (job.state === "done" || job.state === "failed") following.delete(job.id);
}

function addJob(job) {
  const row = make("job-template");
  row.dataset.id = job.id;
  rows.prepend(row);
  following.set(job.id, row);
  showJob({ ...job, state: "queued", pid: null, error: null });
  while (rows.children.length > Number(rows.dataset.rows)) {
    following.delete(Number(rows.lastElementChild.dataset.id));
    rows.lastElementChild.remove();
  }
  element("none").hidden = true;
  pause = SOON;
}

async function follow() {
  for (;;) {
    await sleep(pause);
    if (following.size === 0 || document.hidden) {
      pause = SOON;
      continue;
    }
    const ids = [...following.keys()];
    try {
      const { jobs } = await getJson(`${jobsUrl}?ids=${ids}`);
      jobs.forEach(showJob);
      const known = new Set(jobs.map((job) => job.id));
      ids.filter((id) => !known.has(id)).forEach((id) => following.delete(id));
      pause = Math.min(pause * 1.2, 600);
    } catch {
      pause = 2000;
    }
  }
}

async function order(event) {
  event.preventDefault();
  const form = new FormData(element("order"));
  const job = { kind: form.get("kind"), seconds: Number(form.get("seconds")) };
  try {
    const { ids } = await getJson(jobsUrl, { method: "POST", body: JSON.stringify(job) });
    element("error").textContent = "";
    ids.forEach((id) => addJob({ ...job, id }));
  } catch (error) {
    element("error").textContent = error.message;
  }
}

for (const row of rows.children) {
  if (["queued", "running"].includes(row.querySelector(".state").dataset.state)) {
    following.set(Number(row.dataset.id), row);
  }
}
element("order").addEventListener("submit", order);
watchDyno();
follow();
