// The service's API as this page uses it. Every failure is an Error whose message is a sentence for the user.

import { currentKey, keyRefused, withKey } from "./key.js";

const UNREACHABLE = "The service does not answer. Is it running?";

export class Problem extends Error {
  constructor(document) {
    super(document.detail);
    this.code = document.code;
    this.errors = document.errors ?? [];
    this.wantsKey = document.status === 401;
  }
}

function read(status, contentType, text, key) {
  if (contentType.includes("json")) {
    const document = JSON.parse(text);
    if (status === 401) keyRefused(key, document.detail);
    if (status >= 400) throw new Problem(document);
    return document;
  }
  if (status >= 400) throw new Error(`The service answered with status ${status}.`);
  return null;
}

async function send(method, url, body, key) {
  try {
    return await fetch(url, { method, body, headers: { Accept: "application/json, image/*", ...withKey(key) } });
  } catch {
    throw new Error(UNREACHABLE);
  }
}

async function ask(method, url, body) {
  const key = currentKey();
  const answer = await send(method, url, body, key);
  return read(answer.status, answer.headers.get("Content-Type") ?? "", await answer.text(), key);
}

const personUrl = (name) => `/v1/people/${encodeURIComponent(name)}`;

export const ready = () => ask("GET", "/readyz");
export const scaler = () => ask("GET", "/v1/scaler");
export const people = async () => (await ask("GET", "/v1/people")).people;
export const person = (name) => ask("GET", personUrl(name));
export const forget = (name) => ask("DELETE", personUrl(name));
export const forgetPhoto = (photo) => ask("DELETE", photo.links.self);
/** Show an enrolled photo in an <img>, which cannot send a key by itself. */
export async function show(image, photo) {
  const key = currentKey();
  const answer = await send("GET", photo.links.self, undefined, key);
  if (!answer.ok) read(answer.status, answer.headers.get("Content-Type") ?? "", await answer.text(), key);
  const url = URL.createObjectURL(await answer.blob());
  image.src = url;
  try {
    await image.decode();
  } finally {
    URL.revokeObjectURL(url);
  }
}

export const result = (item) => ask("GET", item.links.self);

export function enrol(name, blob, fileName) {
  const form = new FormData();
  form.append("photo", blob, fileName);
  return ask("PUT", personUrl(name), form);
}

/** Upload one photo and wait up to `waitS` for its result; `onSent` is called when the last byte has left.
 * An XMLHttpRequest, because fetch does not tell how far an upload is. */
export function recognise(file, { waitS, onProgress, onSent, signal }) {
  const form = new FormData();
  form.append("photo", file, file.name || "photo");
  const key = currentKey();
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open("POST", "/v1/recognitions");
    request.setRequestHeader("Prefer", `wait=${waitS}`);
    for (const [name, value] of Object.entries(withKey(key))) request.setRequestHeader(name, value);
    request.upload.addEventListener("progress", (event) => onProgress(event.loaded / (event.total || 1)));
    request.upload.addEventListener("load", onSent);
    request.addEventListener("error", () => reject(new Error(UNREACHABLE)));
    request.addEventListener("abort", () => reject(new DOMException("removed", "AbortError")));
    request.addEventListener("load", () => {
      try {
        const type = request.getResponseHeader("Content-Type") ?? "";
        const document = read(request.status, type, request.responseText, key);
        resolve(document.recognitions[0]);
      } catch (error) {
        reject(error);
      }
    });
    signal.addEventListener("abort", () => request.abort());
    request.send(form);
  });
}
