// What the scaler sees and wants: numbers, its reason, and a plot of the last 15 minutes.

import * as api from "./api.js";

const EVERY_MS = 2000;
const WINDOW_S = 900;
const [WIDTH, HEIGHT, FOOT] = [260, 96, 2];
const [TIME, VISIBLE, IN_FLIGHT, BOOTING, READY, DRAINING] = [0, 1, 2, 3, 4, 5];

const at = (id) => document.getElementById(id);
let latest = null;

export function watchScaler() {
  refresh();
  setInterval(() => document.hidden || refresh(), EVERY_MS);
  document.addEventListener("visibilitychange", () => document.hidden || refresh());
}

/** What a photo that waits is waiting for, as a sentence; empty when nobody knows. */
export function waitingFor() {
  if (!latest) return "";
  const { booting = 0, ready = 0 } = latest.instances;
  if (ready) return `${workers(ready)} at work, ${latest.counts?.visible ?? "some"} photos waiting.`;
  if (booting) return `${workers(booting)} starting; that takes about ${Math.round(latest.boot_p50_s)} s.`;
  return "No worker is running: the scaler starts one for you. The photo is safe meanwhile.";
}

const workers = (n) => (n === 1 ? "1 worker" : `${n} workers`);

async function refresh() {
  try {
    const status = await api.scaler();
    latest = status.running ? status : null; // without a scaler there is nothing to show
  } catch {
    latest = null;
  }
  at("scaler").hidden = !latest;
  if (!latest) return;
  const { counts, instances, history, wanted } = latest;
  at("scaler-policy").textContent = [latest.policy, latest.policy === "work" && latest.mode].filter(Boolean).join(" · ");
  at("scaler-visible").textContent = counts?.visible ?? "–";
  at("scaler-in-flight").textContent = counts?.in_flight ?? "–";
  at("scaler-ready").textContent = instances.ready ?? 0;
  at("scaler-booting").textContent = instances.booting ?? 0;
  const why = `wants ${workers(wanted)}${latest.reason ? `: ${latest.reason}` : ""}`;
  if (at("scaler-why").textContent !== why) at("scaler-why").textContent = why;
  draw(history);
}

function draw(history) {
  const plot = at("scaler-plot");
  if (!history.length) return plot.replaceChildren();
  const end = history.at(-1)[TIME];
  const samples = history.filter((sample) => sample[TIME] > end - WINDOW_S);
  const depth = (sample) => (sample[VISIBLE] ?? 0) + (sample[IN_FLIGHT] ?? 0);
  const up = (sample) => sample[BOOTING] + sample[READY] + sample[DRAINING];
  const [mostDepth, mostUp] = [Math.max(1, ...samples.map(depth)), Math.max(1, ...samples.map(up))];
  const x = (sample) => WIDTH - ((end - sample[TIME]) / WINDOW_S) * WIDTH;
  const y = (part) => HEIGHT - FOOT - part * (HEIGHT - FOOT - 14);
  const steps = (value, most) =>
    samples.map((sample, n) => {
      const [px, py] = [x(sample).toFixed(1), y(value(sample) / most).toFixed(1)];
      return n ? `H${px}V${py}` : `M${px} ${py}`;
    });
  const area = [...steps(depth, mostDepth), `V${HEIGHT}H${x(samples[0]).toFixed(1)}Z`].join("");
  plot.replaceChildren(
    shape("path", { class: "depth", d: area }),
    shape("path", { class: "up", d: steps(up, mostUp).join("") }),
    label(2, "start", "depth", mostDepth > 1 || samples.some(depth) ? `${mostDepth} photos` : ""),
    label(WIDTH - 2, "end", "up", samples.some(up) ? workers(mostUp) : ""),
  );
  plot.setAttribute("aria-label", `At most ${mostDepth} photos and ${workers(mostUp)} in the last 15 minutes`);
}

function shape(name, attributes) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  return element;
}

function label(x, anchor, kind, text) {
  const element = shape("text", { x, y: 10, "text-anchor": anchor, class: kind });
  element.textContent = text;
  return element;
}
