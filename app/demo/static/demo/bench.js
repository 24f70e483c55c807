// The mini benchmark: runs the course that the server gives, and makes a card of what came out.
// The jobs' times are the database's: they are asked for by the jobs' ids when a stage is over.

import { duration, megabytes, number, percentile } from "./amounts.js";
import { getJson, post, sleep } from "./calls.js";

const MOST_IDS = 300; // jobs in one question

const ms = (seconds) => (seconds === null ? "–" : duration(Math.max(seconds, 0.001)));

// Calls `once` again and again over so many connections for so many seconds; resolves to how long each call took.
async function load(connections, seconds, once) {
  const latencies = [];
  const began = performance.now();
  const one = async () => {
    while (performance.now() - began < seconds * 1000) {
      const sent = performance.now();
      if (await once()) latencies.push((performance.now() - sent) / 1000);
      else await sleep(100);
    }
  };
  await Promise.all(Array.from({ length: connections }, one));
  return { latencies, seconds: (performance.now() - began) / 1000 };
}

// What the database has on these jobs; times in seconds.
async function look(jobsUrl, ids) {
  const jobs = [];
  for (let from = 0; from < ids.length; from += MOST_IDS) {
    const { jobs: some } = await getJson(`${jobsUrl}?ids=${ids.slice(from, from + MOST_IDS)}`);
    jobs.push(...some);
  }
  const at = (time) => time && Date.parse(time) / 1000;
  return jobs.map((job) => ({ ...job, created: at(job.created), started: at(job.started), finished: at(job.finished) }));
}

// What became of jobs: how many a second from the first call to the last end, and how many ran at once.
export function judge(jobs) {
  const done = jobs.filter((job) => job.state === "done");
  const first = Math.min(...jobs.map((job) => job.created));
  const last = Math.max(...done.map((job) => job.finished));
  const waited = done.map((job) => job.started - job.created);
  const worked = done.reduce((sum, job) => sum + job.finished - job.started, 0);
  return {
    sent: jobs.length,
    done: done.length,
    waiting: jobs.length - done.length,
    rate: done.length ? done.length / (last - first) : 0,
    atOnce: done.length ? worked / (last - Math.min(...done.map((job) => job.started))) : 0,
    median: percentile(waited, 50),
    p99: percentile(waited, 99),
  };
}

export class Bench {
  constructor(section, benchUrl, jobsUrl, memory) {
    Object.assign(this, { section, benchUrl, jobsUrl, memory });
    this.button = section.querySelector("#run-bench");
    this.button.addEventListener("click", () => this.#run());
    section.querySelector("#copy-text").addEventListener("click", (event) => this.#copyText(event.target));
    section.querySelector("#copy-image").addEventListener("click", (event) => this.#copyImage(event.target));
  }

  async #run() {
    const complaint = this.section.querySelector("#bench-error");
    this.button.disabled = true;
    try {
      complaint.textContent = "";
      const course = await post(this.benchUrl, {});
      this.section.querySelector("#stages").hidden = false;
      for (const bar of this.section.querySelectorAll("progress")) bar.value = 0;
      const results = [];
      for (const stage of course.stages) results.push(...(await this.#stage(stage, course)));
      const { memory, limit } = this.memory();
      if (memory) results.push(["Memory of all processes", limit ? `${megabytes(memory)} of ${megabytes(limit)}` : megabytes(memory)]);
      this.#show(results);
    } catch (error) {
      complaint.textContent = error.message;
    } finally {
      this.button.disabled = false;
      this.button.textContent = "Run it again";
    }
  }

  // Runs one stage, its bar moving until its time is over; resolves to lines of the card.
  async #stage(stage, { seconds, connections }) {
    const bar = this.section.querySelector(`[data-stage="${stage.stage}"] progress`);
    const began = performance.now();
    const moving = setInterval(() => { bar.value = (performance.now() - began) / (seconds * 1000); }, 100);
    const over = sleep(seconds * 1000);
    try {
      if (stage.stage === "hello") return await this.#hello(stage, seconds, connections);
      if (stage.stage === "storm") return await this.#storm(stage, connections, over);
      return await this.#jobs(stage, over);
    } finally {
      clearInterval(moving);
      bar.value = 1;
    }
  }

  async #hello(stage, seconds, connections) {
    const call = () => fetch(stage.path, { cache: "no-store" }).then((answer) => answer.ok, () => false);
    const { latencies, seconds: took } = await load(connections, seconds, call);
    return [
      ["Hello", `${number(latencies.length / took)} requests/s`],
      ["Hello, median and 99th percentile", `${ms(percentile(latencies, 50))}, ${ms(percentile(latencies, 99))}`],
    ];
  }

  async #jobs({ stage, order }, over) {
    const { ids } = await post(this.jobsUrl, order);
    await over;
    const jobs = judge(await look(this.jobsUrl, ids));
    const [what, kept] = stage === "io"
      ? ["Jobs that wait", `${jobs.atOnce.toFixed(1)} at once`]
      : ["Jobs that compute", `${(jobs.rate * order.seconds).toFixed(2)} CPUs`];
    return [[what, `${jobs.done} of ${jobs.sent} done, ${number(jobs.rate)} a second, ${kept}`]];
  }

  async #storm(stage, connections, over) {
    const ids = [];
    const call = () => post(this.jobsUrl, stage.order).then((answer) => ids.push(...answer.ids), () => false);
    const { latencies, seconds: took } = await load(connections, stage.sends, call);
    await over;
    const jobs = judge(await look(this.jobsUrl, ids));
    const left = jobs.waiting ? `${number(jobs.waiting)} of ${number(jobs.sent)} still to do` : `all ${number(jobs.sent)}`;
    return [
      ["Storm: AJAX calls taken", `${number(latencies.length / took)} a second`],
      ["Storm: jobs done", `${number(jobs.rate)} a second, ${left}`],
      ["Storm: from call to start", `median ${ms(jobs.median)}, 99th percentile ${ms(jobs.p99)}`],
    ];
  }

  #show(results) {
    this.results = results;
    this.where = `${location.host}, ${new Date().toISOString().slice(0, 16).replace("T", " ")} UTC`;
    this.section.querySelector("#results").replaceChildren(...results.map(([what, value]) => {
      const row = document.createElement("div");
      row.append(document.createElement("dt"), document.createElement("dd"));
      row.firstChild.textContent = what;
      row.lastChild.textContent = value;
      return row;
    }));
    this.section.querySelector("#where").textContent = this.where;
    for (const id of ["#card", "#card-buttons"]) this.section.querySelector(id).hidden = false;
    this.section.querySelector("#card").focus({ preventScroll: true });
  }

  get text() {
    return ["Double Boiler, measured", ...this.results.map(([what, value]) => `${what}: ${value}`), this.where].join("\n");
  }

  async #copyText(button) {
    try {
      await navigator.clipboard.writeText(this.text);
      said(button, "Copied");
    } catch { // no clipboard without https, or not allowed
      this.#offer(button, new Blob([this.text], { type: "text/plain" }), "txt");
    }
  }

  async #copyImage(button) {
    const image = await this.#draw();
    try {
      await navigator.clipboard.write([new ClipboardItem({ "image/png": image })]);
      said(button, "Copied");
    } catch { // no clipboard for pictures, or not allowed
      this.#offer(button, image, "png");
    }
  }

  // Saves a file instead of copying.
  #offer(button, blob, ending) {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(blob);
    link.download = `double-boiler.${ending}`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
    said(button, "Saved");
  }

  #draw() {
    const style = getComputedStyle(this.section);
    const colour = (name) => style.getPropertyValue(`--${name}`).trim();
    const canvas = document.createElement("canvas");
    const line = 62;
    canvas.width = 1200;
    canvas.height = 240 + this.results.length * line;
    const context = canvas.getContext("2d");
    context.fillStyle = colour("ground");
    context.fillRect(0, 0, canvas.width, canvas.height);
    context.fillStyle = colour("copper");
    context.fillRect(0, 0, canvas.width, 14);
    context.font = "600 52px Georgia, serif";
    context.fillText("Double Boiler, measured", 60, 110);
    this.results.forEach(([what, value], index) => {
      const y = 190 + index * line;
      context.font = "28px system-ui, sans-serif";
      context.textAlign = "left";
      context.fillStyle = colour("muted");
      context.fillText(what, 60, y);
      context.textAlign = "right";
      context.fillStyle = colour("ink");
      context.font = "600 28px system-ui, sans-serif";
      context.fillText(value, canvas.width - 60, y);
      context.fillStyle = colour("line");
      context.fillRect(60, y + 20, canvas.width - 120, 1);
    });
    context.textAlign = "left";
    context.fillStyle = colour("muted");
    context.font = "24px system-ui, sans-serif";
    context.fillText(this.where, 60, canvas.height - 40);
    return new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
  }
}

function said(button, text) {
  const before = button.dataset.text ??= button.textContent;
  button.textContent = text;
  setTimeout(() => { button.textContent = before; }, 2000);
}
