// The picture of jobs on their way: a drop falls from the call into the queue, into a worker's pot, and is done.

const TAU = 0.11; // seconds in which a drop makes two thirds of its way
const STAY = 0.16; // seconds that a drop is seen in a pot, however short its job
const GONE = 2.5; // seconds that the pot of a process that died is still seen
const MOST = 2600; // drops on the way and in the piles

const still = matchMedia("(prefers-reduced-motion: reduce)");
const dark = matchMedia("(prefers-color-scheme: dark)");

export class Line {
  constructor(canvas) {
    this.canvas = canvas;
    this.context = canvas.getContext("2d");
    this.drops = new Map(); // by key: the drops that are not done
    this.served = []; // the done ones, oldest first
    this.pots = new Map(); // by pid: {died, place}
    this.gone = new Set(); // the pids of those that died and are no longer seen
    this.others = 0; // waiting jobs that are not ours
    this.time = performance.now() / 1000;
    new ResizeObserver(() => this.#fit()).observe(canvas);
    dark.addEventListener("change", () => this.#readColours());
    this.#readColours();
    this.#fit();
    requestAnimationFrame(() => this.#frame());
  }

  // What happens to jobs

  sent(key, kind) {
    if (this.drops.size > MOST) return;
    const x = this.left + Math.random() * (this.width - this.left - 2 * this.radius);
    this.drops.set(key, { kind, stage: "sent", x, y: -this.radius, tx: x, ty: this.bands.queue - 14, route: [] });
  }

  refused(key) {
    this.drops.delete(key);
  }

  queued(key, job) {
    const drop = this.drops.get(key);
    if (!drop) return;
    this.drops.delete(key);
    drop.stage = "queued";
    this.drops.set(job, drop);
    this.stale = true;
  }

  running(job, kind, pid) {
    const drop = this.#get(job, kind);
    if (!drop || this.gone.has(pid) || (drop.stage === "running" && drop.pid === pid)) return;
    drop.stage = "running";
    drop.pid = pid;
    this.#pot(pid).seen = this.time;
    this.stale = true;
  }

  ended(job, kind, state, pid) {
    const drop = this.#get(job, kind);
    if (!drop) return;
    this.drops.delete(job);
    const pot = this.#pot(pid);
    pot.seen = this.time;
    if (drop.stage !== "running") drop.route.push(pot);
    Object.assign(drop, { stage: "done", failed: state === "failed", pid: null, stay: this.time });
    this.served.push(drop);
    this.stale = true;
  }

  forget(job) {
    this.drops.delete(job);
    this.stale = true;
  }

  // The processes that cook; one that is gone is shown broken for a moment.
  setPots(pids) {
    for (const pid of pids) {
      this.gone.delete(pid);
      this.#pot(pid).died = null;
    }
    for (const [pid, pot] of this.pots) {
      if (!pids.includes(pid) && pot.died === null && this.time - (pot.seen ?? 0) > 1.5) pot.died = this.time;
      if (pot.died !== null && this.time - pot.died > GONE) this.#clear(pid);
    }
    this.stale = true;
  }

  // What was in the pot of a process that died waits for another.
  #clear(pid) {
    this.pots.delete(pid);
    this.gone.add(pid);
    for (const drop of this.drops.values()) {
      if (drop.stage === "running" && drop.pid === pid) Object.assign(drop, { stage: "queued", pid: null });
    }
  }

  setOthers(number) {
    if (number !== this.others) this.stale = true;
    this.others = number;
  }

  #get(job, kind) {
    let drop = this.drops.get(job);
    if (!drop) {
      if (this.drops.size > MOST) return null;
      const x = this.left + Math.random() * (this.width - this.left);
      drop = { kind, stage: "queued", x, y: this.bands.queue, tx: x, ty: this.bands.queue, route: [], other: true };
      this.drops.set(job, drop);
    }
    return drop;
  }

  #pot(pid) {
    if (!this.pots.has(pid)) this.pots.set(pid, { pid, died: null, born: this.time, load: 0, x: this.left, y: this.bands.pots });
    return this.pots.get(pid);
  }

  // Where things are

  #fit() {
    const { clientWidth, clientHeight } = this.canvas;
    const scale = Math.min(devicePixelRatio || 1, 2);
    this.canvas.width = clientWidth * scale;
    this.canvas.height = clientHeight * scale;
    this.context.setTransform(scale, 0, 0, scale, 0, 0);
    this.width = clientWidth;
    this.height = clientHeight;
    this.left = clientWidth < 480 ? 84 : 120;
    this.radius = clientWidth < 480 ? 3.4 : 4.4; // of a drop
    this.cell = this.radius * 2.7; // from one drop in a pile to the next
    const [sent, queue, pots] = [0.14, 0.44, 0.74].map((share) => clientHeight * share);
    this.bands = { queue: sent, pots: queue, done: pots };
    this.stale = true;
  }

  #readColours() {
    const style = getComputedStyle(this.canvas);
    this.colours = Object.fromEntries(
      ["sleep", "cpu", "io", "copper", "ink", "muted", "bad", "bowl", "fire"].map((name) => [name, style.getPropertyValue(`--${name}`).trim()]),
    );
  }

  // Gives every drop the place where it belongs.
  #arrange() {
    this.stale = false;
    const columns = Math.max(1, Math.floor((this.width - this.left - this.cell) / this.cell));
    const pile = (index, top) => [this.left + this.cell + (index % columns) * this.cell, top + this.cell + Math.floor(index / columns) * this.cell];
    const room = (top, bottom) => columns * Math.max(1, Math.floor((bottom - top - this.cell * 1.5) / this.cell));

    const pots = [...this.pots.values()].sort((a, b) => a.pid - b.pid);
    const space = (this.width - this.left) / Math.max(1, pots.length);
    pots.forEach((pot, index) => {
      pot.x = this.left + space * (index + 0.5);
      pot.y = this.bands.pots + (this.bands.done - this.bands.pots) * 0.42;
      pot.size = Math.min(34, space * 0.34);
      Object.assign(pot, { space, index });
      pot.load = 0;
    });

    const most = room(this.bands.queue, this.bands.pots);
    let index = Math.min(this.others, most); // they were there before, for the most part
    for (const drop of this.drops.values()) {
      if (drop.stage === "queued") {
        [drop.tx, drop.ty] = pile(Math.min(index, most - 1), this.bands.queue);
        index += 1;
      } else if (drop.stage === "running") {
        const pot = this.pots.get(drop.pid) ?? this.#pot(drop.pid);
        [drop.tx, drop.ty] = [pot.x + ((pot.load % 5) - 2) * this.radius * 2.2 * (pot.load > 0), pot.y - (pot.load > 4) * 8];
        pot.load += 1;
      }
    }
    this.pile = pile;

    const kept = room(this.bands.done, this.height);
    while (this.served.length > kept) this.served.shift();
    this.served.forEach((drop, place) => { [drop.tx, drop.ty] = pile(place, this.bands.done); });
  }

  // Drawing

  #frame() {
    const now = performance.now() / 1000;
    const passed = Math.min(now - this.time, 0.1);
    this.time = now;
    if (this.stale) this.#arrange();
    const share = still.matches ? 1 : 1 - Math.exp(-passed / TAU);
    const { context } = this;
    context.clearRect(0, 0, this.width, this.height);
    this.#drawOthers();
    for (const pot of this.pots.values()) this.#drawPot(pot);
    for (const drop of this.served) this.#move(drop, share);
    for (const drop of this.drops.values()) this.#move(drop, share);
    requestAnimationFrame(() => this.#frame());
  }

  #move(drop, share) {
    const stop = drop.route[0];
    const [tx, ty] = stop ? [stop.x, stop.y] : [drop.tx, drop.ty];
    if (drop.stage === "sent") {
      drop.y += still.matches ? ty - drop.y : (ty - drop.y) * share * 0.45;
    } else {
      drop.x += (tx - drop.x) * share;
      drop.y += (ty - drop.y) * share;
    }
    if (stop && Math.abs(drop.x - tx) + Math.abs(drop.y - ty) < 6) {
      drop.arrived ??= this.time;
      if (still.matches || this.time - drop.arrived > STAY) drop.route.shift();
    }
    this.#drawDrop(drop.x, drop.y, drop.failed ? this.colours.bad : this.colours[drop.kind], drop.stage === "sent");
  }

  #drawDrop(x, y, colour, falling = false) {
    const { context } = this;
    context.fillStyle = colour;
    context.beginPath();
    context.arc(x, y, this.radius, 0, Math.PI * 2);
    if (falling) {
      context.moveTo(x - this.radius * 0.85, y - 1.5);
      context.lineTo(x, y - this.radius * 2.6);
      context.lineTo(x + this.radius * 0.85, y - 1.5);
    }
    context.fill();
  }

  #drawOthers() {
    const { context } = this;
    context.save();
    context.globalAlpha = 0.6;
    context.fillStyle = this.colours.muted;
    for (let index = 0; index < this.others; index += 1) {
      const [x, y] = this.pile(index, this.bands.queue);
      if (y > this.bands.pots - this.cell) break;
      context.beginPath();
      context.arc(x, y, this.radius, 0, Math.PI * 2);
      context.fill();
    }
    context.restore();
  }

  #drawPot(pot) {
    const { context, colours } = this;
    const { x, y, size } = pot;
    if (!size) return;
    const broken = pot.died !== null;
    const hot = !broken && (pot.load > 0 || this.time - (pot.seen ?? 0) < 0.4);
    context.save();
    context.globalAlpha = broken ? Math.max(0.15, 1 - (this.time - pot.died) / GONE) : Math.min(1, 0.3 + (this.time - pot.born) * 2);
    if (hot) this.#drawFire(pot);
    context.lineWidth = 2.5;
    context.strokeStyle = broken ? colours.bad : colours.copper;
    context.fillStyle = colours.bowl;
    context.beginPath();
    context.moveTo(x - size, y - size * 0.45);
    context.lineTo(x - size, y + size * 0.1);
    context.quadraticCurveTo(x - size, y + size * 0.62, x - size * 0.5, y + size * 0.62);
    context.lineTo(x + size * 0.5, y + size * 0.62);
    context.quadraticCurveTo(x + size, y + size * 0.62, x + size, y + size * 0.1);
    context.lineTo(x + size, y - size * 0.45);
    context.fill();
    context.stroke();
    context.beginPath();
    context.moveTo(x + size, y - size * 0.2);
    context.lineTo(x + size * 1.45, y - size * 0.2);
    context.lineWidth = 4;
    context.stroke();
    if (broken) {
      context.lineWidth = 2;
      context.beginPath();
      context.moveTo(x - size * 0.2, y - size * 0.45);
      context.lineTo(x + size * 0.1, y - size * 0.1);
      context.lineTo(x - size * 0.12, y + size * 0.2);
      context.lineTo(x + size * 0.15, y + size * 0.6);
      context.stroke();
    } else if (hot && !still.matches) {
      this.#drawSteam(pot);
    }
    context.globalAlpha = broken ? 1 : 0.95;
    context.fillStyle = broken ? colours.bad : colours.muted;
    context.font = "12px system-ui, sans-serif";
    context.textAlign = "center";
    this.#drawLabel(pot, broken);
    context.restore();
  }

  // As much as there is room for; where there is none, in two rows.
  #drawLabel({ pid, x, y, size, space, index }, broken) {
    const { context } = this;
    const fits = (text) => context.measureText(text).width < space - 4;
    const whole = broken ? `${pid} died` : `pid ${pid}`;
    const text = fits(whole) ? whole : String(pid);
    const row = fits(text) ? 0 : index % 2;
    const rightmost = this.width - context.measureText(text).width / 2 - 2;
    context.fillText(text, Math.min(x, rightmost), y + size * 0.62 + 24 + row * 14);
  }

  #drawFire({ x, y, size, pid }) {
    const { context, colours } = this;
    context.fillStyle = colours.fire;
    const base = y + size * 0.62 + 11;
    const apart = Math.min(9, size * 0.38);
    const half = apart / 3;
    for (let flame = -2; flame <= 2; flame += 1) {
      const flicker = still.matches ? 1 : 0.75 + 0.35 * Math.sin(this.time * 11 + flame * 2 + pid);
      const height = (9 - Math.abs(flame)) * flicker;
      const middle = x + flame * apart;
      context.beginPath();
      context.moveTo(middle - half, base);
      context.quadraticCurveTo(middle - half * 0.8, base - height * 0.6, middle, base - height);
      context.quadraticCurveTo(middle + half * 0.8, base - height * 0.6, middle + half, base);
      context.fill();
    }
  }

  #drawSteam({ x, y, size, pid }) {
    const { context, colours } = this;
    context.strokeStyle = colours.muted;
    context.lineWidth = 1.5;
    for (let wisp = -1; wisp <= 1; wisp += 1) {
      const phase = (this.time * 0.9 + wisp * 0.37 + pid * 0.13) % 1;
      context.globalAlpha = 0.5 * (1 - phase);
      const top = y - size * 0.6 - phase * 12;
      context.beginPath();
      context.moveTo(x + wisp * size * 0.5, top);
      context.bezierCurveTo(x + wisp * size * 0.5 + 4, top - 4, x + wisp * size * 0.5 - 4, top - 8, x + wisp * size * 0.5, top - 12);
      context.stroke();
    }
  }
}
