// Calls to the dyno: AJAX, one job a call, at a pace or as fast as they are answered.

export class Refusal extends Error {
  constructor(message, status, retryAfter) {
    super(message);
    Object.assign(this, { status, retryAfter });
  }
}

// The answer's JSON. Throws a Refusal with the dyno's own sentence, `status` 0 if there was no answer.
export async function getJson(url, options) {
  let response;
  try {
    response = await fetch(url, options);
  } catch {
    throw new Refusal("The dyno doesn’t answer: try again in some seconds.", 0, 1);
  }
  const data = await response.json().catch(() => ({ error: `The dyno answered ${response.status}.` }));
  if (!response.ok) throw new Refusal(data.error, response.status, Number(response.headers.get("Retry-After")) || null);
  return data;
}

export function post(url, body) {
  return getJson(url, { method: "POST", body: JSON.stringify(body) });
}

export const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

const AT_ONCE = 5; // a browser opens six connections to a server; the live feed keeps one
const BEAT = 50; // ms between two looks at the pace

// Sends jobs: `send` is called for each and resolves when it is answered.
export class Rain {
  constructor(send) {
    this.send = send;
    this.rate = 0; // jobs a second
    this.owed = 0; // jobs to be sent as soon as possible
    this.due = 0;
    this.busy = 0;
    setInterval(() => this.#pace(), BEAT);
  }

  add(jobs) {
    this.owed += jobs;
    this.#pump();
  }

  stop() {
    this.rate = this.owed = this.due = 0;
  }

  #pace() {
    if (!this.rate) return;
    // What can't be sent in time is not made up for: the pace would only grow wilder.
    this.due = Math.min(this.due + (this.rate * BEAT) / 1000, Math.max(1, this.rate / 4));
    this.#pump();
  }

  #pump() {
    while (this.busy < AT_ONCE && (this.owed >= 1 || this.due >= 1)) {
      const counted = this.owed >= 1;
      if (counted) this.owed -= 1;
      else this.due -= 1;
      this.busy += 1;
      // A job of a fixed number that was refused is sent again.
      this.send().then((taken) => { if (!taken && counted) this.owed += 1; }).finally(() => {
        this.busy -= 1;
        this.#pump();
      });
    }
  }
}
