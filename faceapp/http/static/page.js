// The page: takes photos in (dropped, chosen, taken, pasted) and keeps an eye on the service.

import * as api from "./api.js";
import { setUpKey } from "./key.js";
import { PhotoCard } from "./photo.js";
import { refreshPeople, setUpPeople } from "./people.js";
import { watchScaler } from "./scaler.js";

const AT_ONCE = 4;
const HEALTH_EVERY_MS = 60_000; // each time asks S3 and SQS, which are billed

const results = document.getElementById("results");
const notice = document.getElementById("notice");
const drop = document.getElementById("drop");
const maxBytes = Number(document.body.dataset.maxPhotoBytes);

const queue = [];
const withoutKey = new Set();
let running = 0;

function say(sentence) {
  notice.textContent = sentence;
  notice.hidden = !sentence;
}

function next() {
  while (running < AT_ONCE && queue.length) {
    const card = queue.shift();
    running += 1;
    card.run().finally(() => {
      running -= 1;
      if (card.wantsKey) withoutKey.add(card);
      next();
    });
  }
}

function add(files) {
  say("");
  const tooLarge = files.filter((file) => file.size > maxBytes);
  if (tooLarge.length) {
    const mib = Math.floor(maxBytes / 1048576);
    say(`Larger than ${mib} MiB, so not sent: ${tooLarge.map((file) => file.name).join(", ")}.`);
  }
  const cards = files
    .filter((file) => file.size <= maxBytes)
    .map((file) => new PhotoCard(file, { onEnrolled: refreshPeople, onAgain: enqueue }));
  results.prepend(...cards.map((card) => card.element));
  cards.forEach(enqueue);
  cards[0]?.element.scrollIntoView({ behavior: "smooth", block: "nearest" });
}

function enqueue(card) {
  withoutKey.delete(card);
  queue.push(card);
  next();
}

function setUpIntake() {
  for (const id of ["choose", "camera"]) {
    const input = document.getElementById(id);
    input.addEventListener("change", () => {
      add([...input.files]);
      input.value = "";
    });
  }
  let depth = 0;
  const show = () => drop.classList.toggle("over", depth > 0);
  const carriesFiles = (event) => event.dataTransfer?.types.includes("Files");
  addEventListener("dragenter", (event) => {
    if (carriesFiles(event)) depth += 1;
    show();
  });
  addEventListener("dragleave", (event) => {
    if (carriesFiles(event)) depth = Math.max(0, depth - 1);
    show();
  });
  addEventListener("dragover", (event) => {
    if (carriesFiles(event)) event.preventDefault();
  });
  addEventListener("drop", (event) => {
    if (!carriesFiles(event)) return;
    event.preventDefault();
    depth = 0;
    show();
    add([...event.dataTransfer.files]);
  });
  addEventListener("paste", (event) => {
    const files = [...(event.clipboardData?.files ?? [])];
    if (files.length) add(files);
  });
}

async function watchHealth() {
  setTimeout(watchHealth, HEALTH_EVERY_MS);
  if (document.hidden) return;
  const health = document.getElementById("health");
  let [state, text] = ["ready", "ready"];
  try {
    await api.ready();
  } catch (error) {
    [state, text] = ["down", error.message];
  }
  if (health.dataset.state !== state) {
    health.dataset.state = state;
    health.textContent = text;
  }
}

setUpKey(() => {
  refreshPeople();
  [...withoutKey].forEach(enqueue);
});
setUpIntake();
setUpPeople();
watchHealth();
watchScaler();
