// One photo on the page: its upload, the wait, the faces drawn on it, and enrolling one of them.

import * as api from "./api.js";
import { waitingFor } from "./scaler.js";

const WAIT_S = 20;
const POLL_MS = 2000;
const WAITING = "Waiting for a worker";
const SCALER_AFTER_S = 0.8; // a photo that a ready worker takes is done by then
const CROP_MARGINS = [0.8, 0.5, 0.3, 0.15];
const CROP_MAX_PX = 1200;
const UNSHOWN_HEIGHT_PX = 320;
const FAR = 1.2; // a distance that draws as an empty bar: strangers are hardly ever further apart
const UNKNOWN = "unknown";
const STAGES = [
  ["queued_s", "in the queue"],
  ["fetch_s", "fetch"],
  ["decode_s", "decode"],
  ["detect_s", "find faces"],
  ["align_s", "align"],
  ["embed_s", "describe"],
  ["search_s", "search"],
];

const seconds = (s) => (s < 0.0995 ? `${Math.round(s * 1000)} ms` : s < 10 ? `${s.toFixed(2)} s` : `${Math.round(s)} s`);
const plural = (n, one, many) => (n === 1 ? one : many);
const pause = (ms, signal) =>
  new Promise((resolve) => {
    const timer = setTimeout(resolve, ms);
    signal.addEventListener("abort", () => (clearTimeout(timer), resolve()));
  });

function fromTemplate(id) {
  return document.getElementById(id).content.firstElementChild.cloneNode(true);
}

export class PhotoCard {
  constructor(file, { onEnrolled, onAgain }) {
    this.file = file;
    this.onEnrolled = onEnrolled;
    this.element = fromTemplate("photo-card");
    this.stop = new AbortController();
    this.find(".file-name").textContent = file.name || "photo";
    this.find(".remove").addEventListener("click", () => this.remove());
    this.find(".again").addEventListener("click", () => onAgain(this));
    this.image = this.find("img");
    this.url = URL.createObjectURL(file);
    this.loaded = new Promise((resolve) => {
      this.image.addEventListener("load", () => resolve(true));
      this.image.addEventListener("error", () => resolve(false));
    });
    this.image.src = this.url;
    this.wait("Waiting for its turn");
  }

  find(selector) {
    return this.element.querySelector(selector);
  }

  remove() {
    this.stop.abort();
    URL.revokeObjectURL(this.url);
    this.element.remove();
  }

  /** Send the photo and show what comes back; never rejects. */
  async run() {
    if (this.stop.signal.aborted) return;
    this.clear();
    const startedMs = performance.now();
    const elapsedS = () => (performance.now() - startedMs) / 1000;
    const ticking = setInterval(() => this.tick(elapsedS()), 250);
    try {
      const item = await this.answer();
      if (item.status === "failed") throw new api.Problem(item.failure);
      await this.show(item, elapsedS());
    } catch (error) {
      if (!this.stop.signal.aborted) this.fail(error);
    } finally {
      clearInterval(ticking);
      this.find(".waiting").hidden = true;
      this.find(".again").hidden = false;
    }
  }

  async answer() {
    this.wait("Uploading");
    let item = await api.recognise(this.file, {
      waitS: WAIT_S,
      signal: this.stop.signal,
      onProgress: (part) => this.wait(`Uploading, ${Math.round(part * 100)} %`),
      onSent: () => this.wait(WAITING),
    });
    while (item.status === "pending" && !this.stop.signal.aborted) {
      await pause(POLL_MS, this.stop.signal);
      item = { ...item, ...(await api.result(item)) };
    }
    return item;
  }

  clear() {
    this.wantsKey = false;
    this.element.classList.remove("failed");
    this.find(".again").hidden = true;
    this.find(".timings").hidden = true;
    this.find(".summary").textContent = "";
    this.find(".faces").replaceChildren();
    this.find(".boxes").replaceChildren();
  }

  wait(sentence) {
    this.find(".waiting").hidden = false;
    this.find(".waiting-for").textContent = sentence;
  }

  tick(elapsedS) {
    this.find(".elapsed").textContent = elapsedS < 1 ? "" : `${Math.floor(elapsedS)} s`;
    const state = this.find(".waiting-for").textContent === WAITING && elapsedS > SCALER_AFTER_S ? waitingFor() : "";
    this.find(".scaler-state").textContent = state;
    this.find(".scaler-state").hidden = !state;
  }

  fail(error) {
    this.wantsKey = Boolean(error.wantsKey);
    this.element.classList.add("failed");
    this.find(".summary").textContent = error.message;
    this.loaded.then((shown) => shown || this.showUnshown("This file cannot be shown."));
  }

  async show(item, tookS) {
    const shown = await this.loaded;
    if (!shown) this.showUnshown(`This browser cannot show ${item.photo.format} photos. The service has read it.`, item.photo);
    const known = item.faces.filter((face) => face.name !== UNKNOWN).map((face) => face.name);
    this.find(".summary").textContent = summary(item.faces.length, known);
    item.faces.forEach((face, n) => this.addFace(item, face, n, shown));
    this.image.alt = `${this.file.name}: ${this.find(".summary").textContent}`;
    this.showTimings(item, tookS);
  }

  showUnshown(sentence, photo) {
    const place = this.find(".unshown");
    this.image.hidden = true;
    place.hidden = false;
    place.textContent = sentence;
    if (!photo) return;
    place.style.aspectRatio = `${photo.width} / ${photo.height}`;
    place.style.width = `${Math.round((UNSHOWN_HEIGHT_PX * photo.width) / photo.height)}px`;
  }

  addFace(item, face, n, shown) {
    const row = new FaceRow(this, item, face, n, shown);
    const box = faceBox(item.photo, face, n);
    const light = (on) => {
      row.element.classList.toggle("lit", on);
      box.classList.toggle("lit", on);
    };
    for (const element of [box, row.element]) {
      element.addEventListener("pointerenter", () => light(true));
      element.addEventListener("pointerleave", () => light(false));
      element.addEventListener("focusin", () => light(true));
      element.addEventListener("focusout", () => light(false));
    }
    box.addEventListener("click", () => row.openEnrol());
    this.find(".boxes").append(box);
    this.find(".faces").append(row.element);
  }

  showTimings(item, tookS) {
    const { timings } = item;
    const place = this.find(".timings");
    place.hidden = false;
    place.querySelector("summary").textContent =
      `${seconds(tookS)}, of which ${seconds(timings.queued_s)} in the queue and ${seconds(timings.total_s)} of work`;
    const whole = STAGES.reduce((sum, [key]) => sum + timings[key], 0) || 1;
    const bar = place.querySelector(".timing-bar");
    const list = place.querySelector(".timing-list");
    bar.replaceChildren();
    list.replaceChildren();
    for (const [key, label] of STAGES) {
      const part = document.createElement("i");
      part.className = key;
      part.style.flexGrow = timings[key] / whole;
      bar.append(part);
      const [term, value] = [document.createElement("dt"), document.createElement("dd")];
      term.className = key;
      term.textContent = label;
      value.textContent = seconds(timings[key]);
      list.append(term, value);
    }
    const { photo, model } = item;
    const [term, value] = [document.createElement("dt"), document.createElement("dd")];
    term.textContent = "photo";
    value.textContent = `${photo.width} × ${photo.height} ${photo.format}${model ? `, read by ${model}` : ""}`;
    list.append(term, value);
  }
}

function summary(faces, known) {
  if (!faces) return "No face found. Very small, turned away or covered faces are missed.";
  const strangers = faces - known.length;
  const names = known.length ? new Intl.ListFormat("en").format(known) : "";
  if (!strangers) return names + ".";
  const others = `${strangers} ${plural(strangers, "face", "faces")} nobody here knows`;
  return names ? `${names}, and ${others}.` : `${others[0].toUpperCase()}${others.slice(1)}.`;
}

/** A button over the face, placed in percent of the upright photo, so that it fits at any size. */
function faceBox(photo, face, n) {
  const [left, top] = [Math.max(0, face.box.left), Math.max(0, face.box.top)];
  const [right, bottom] = [Math.min(photo.width, face.box.right), Math.min(photo.height, face.box.bottom)];
  const box = document.createElement("button");
  box.type = "button";
  box.className = face.name === UNKNOWN ? "box stranger" : "box";
  box.style.left = `${(100 * left) / photo.width}%`;
  box.style.top = `${(100 * top) / photo.height}%`;
  box.style.width = `${(100 * (right - left)) / photo.width}%`;
  box.style.height = `${(100 * (bottom - top)) / photo.height}%`;
  box.setAttribute("aria-label", `Face ${n + 1}: ${face.name}. Enrol it.`);
  const label = document.createElement("span");
  label.className = "label";
  label.classList.toggle("below", top / photo.height < 0.12);
  label.classList.toggle("leftwards", left / photo.width > 0.6);
  label.textContent = face.name;
  box.append(label);
  for (const [x, y] of face.landmarks) {
    const dot = document.createElement("i");
    dot.style.left = `${(100 * (x - left)) / (right - left)}%`;
    dot.style.top = `${(100 * (y - top)) / (bottom - top)}%`;
    box.append(dot);
  }
  return box;
}

class FaceRow {
  constructor(card, item, face, n, shown) {
    Object.assign(this, { card, item, face, shown });
    this.element = fromTemplate("face-row");
    const stranger = face.name === UNKNOWN;
    this.element.classList.toggle("stranger", stranger);
    this.find(".name").textContent = stranger ? "Unknown" : face.name;
    this.find(".verdict").textContent = verdict(face);
    this.find(".facts").textContent = `${Math.round(face.score * 100)} % sure that this is a face`;
    this.find(".candidates").replaceChildren(...face.candidates.slice(0, 3).map(candidateLine));
    this.find(".enrol-open").textContent = stranger ? "Who is this? Enrol …" : "Enrol this face …";
    this.find(".enrol-open").addEventListener("click", () => this.openEnrol());
    const input = this.find(".enrol input");
    input.setAttribute("aria-label", `Name of face ${n + 1}`);
    if (!stranger) input.value = face.name;
    this.find(".enrol").addEventListener("submit", (event) => {
      event.preventDefault();
      this.enrol(input.value.trim());
    });
    if (shown) this.drawCrop();
    else this.showNumber(n + 1);
  }

  find(selector) {
    return this.element.querySelector(selector);
  }

  /** The face with `margin` of its size around it, in pixels of the image as the browser has it. */
  area(margin) {
    const { image } = this.card;
    const scale = image.naturalWidth / this.item.photo.width;
    const { left, top, right, bottom } = this.face.box;
    const side = Math.max(right - left, bottom - top) * (1 + 2 * margin);
    const x = Math.max(0, (left + right - side) / 2) * scale;
    const y = Math.max(0, (top + bottom - side) / 2) * scale;
    const width = Math.min(((left + right + side) / 2) * scale, image.naturalWidth) - x;
    const height = Math.min(((top + bottom + side) / 2) * scale, image.naturalHeight) - y;
    return { x, y, width, height };
  }

  drawCrop() {
    const canvas = this.find(".crop");
    const { x, y, width, height } = this.area(0.25);
    const fit = Math.max(canvas.width / width, canvas.height / height);
    const [w, h] = [width * fit, height * fit];
    const place = [(canvas.width - w) / 2, (canvas.height - h) / 2, w, h];
    canvas.getContext("2d").drawImage(this.card.image, x, y, width, height, ...place);
  }

  /** In place of a crop that cannot be drawn. */
  showNumber(number) {
    const place = document.createElement("span");
    place.className = "crop";
    place.textContent = number;
    this.find(".crop").replaceWith(place);
  }

  /** The most generous crop without another face in it: enrolling takes exactly one. */
  crop() {
    const scale = this.card.image.naturalWidth / this.item.photo.width;
    const others = this.item.faces.filter((face) => face !== this.face).map((face) => face.box);
    const meets = (area) => (box) =>
      box.left * scale < area.x + area.width &&
      box.right * scale > area.x &&
      box.top * scale < area.y + area.height &&
      box.bottom * scale > area.y;
    const areas = CROP_MARGINS.map((margin) => this.area(margin));
    const { x, y, width, height } = areas.find((area) => !others.some(meets(area))) ?? areas.at(-1);
    const shrink = Math.min(1, CROP_MAX_PX / Math.max(width, height));
    const canvas = document.createElement("canvas");
    canvas.width = Math.round(width * shrink);
    canvas.height = Math.round(height * shrink);
    canvas.getContext("2d").drawImage(this.card.image, x, y, width, height, 0, 0, canvas.width, canvas.height);
    return new Promise((resolve) => canvas.toBlob(resolve, "image/jpeg", 0.95));
  }

  openEnrol() {
    this.find(".enrol-open").setAttribute("aria-expanded", "true");
    this.find(".enrol").hidden = false;
    this.find(".enrol input").select();
    this.find(".enrol input").focus();
  }

  async enrol(name) {
    const status = this.find(".enrol-status");
    const button = this.find(".enrol button");
    if (!this.shown && this.item.faces.length > 1) {
      status.textContent = "This browser cannot crop this photo, and it has more than one face: crop it first.";
      return;
    }
    button.disabled = true;
    status.className = "enrol-status";
    status.textContent = "A worker is looking at it …";
    try {
      const photo = this.shown ? await this.crop() : this.card.file;
      const enrolled = await api.enrol(name, photo, this.card.file.name || "photo.jpg");
      const notices = enrolled.notices.map((notice) => notice.detail);
      status.classList.add("good");
      status.textContent = [
        `Enrolled as ${enrolled.name}. New photos find ${enrolled.name} within seconds.`,
        ...notices,
      ].join(" ");
      this.find(".enrol").hidden = true;
      this.find(".enrol-open").setAttribute("aria-expanded", "false");
      this.onDone(enrolled.name);
    } catch (error) {
      status.classList.add("bad");
      status.textContent = error.message;
    } finally {
      button.disabled = false;
    }
  }

  onDone(name) {
    this.card.onEnrolled(name);
    this.find(".enrol-open").focus();
  }
}

function verdict(face) {
  if (face.name !== UNKNOWN) return `at a distance of ${face.distance.toFixed(2)}`;
  return "nobody enrolled is near enough";
}

/** Somebody near: a bar that is the longer, the more alike, and the distance itself. */
function candidateLine({ name, distance }) {
  const line = document.createElement("li");
  const [label, bar, fill, number] = ["span", "span", "i", "span"].map((tag) => document.createElement(tag));
  label.className = "candidate-name";
  label.textContent = name;
  bar.className = "candidate-bar";
  fill.style.width = `${Math.round(100 * Math.max(0, 1 - distance / FAR))}%`;
  bar.append(fill);
  number.className = "candidate-distance";
  number.textContent = distance.toFixed(2);
  number.title = "distance: 0 is the same picture, larger is less alike";
  line.append(label, bar, number);
  return line;
}
