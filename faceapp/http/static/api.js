// The service's API as this page uses it. Every failure is an Error whose message is a sentence for the user.

const UNREACHABLE = "The service does not answer. Is it running?";

export class Problem extends Error {
  constructor(document) {
    super(document.detail);
    this.code = document.code;
    this.errors = document.errors ?? [];
  }
}

function read(status, contentType, text) {
  if (contentType.includes("json")) {
    const document = JSON.parse(text);
    if (status >= 400) throw new Problem(document);
    return document;
  }
  if (status >= 400) throw new Error(`The service answered with status ${status}.`);
  return null;
}

async function ask(method, url, body) {
  let answer;
  try {
    answer = await fetch(url, { method, body, headers: { Accept: "application/json" } });
  } catch {
    throw new Error(UNREACHABLE);
  }
  return read(answer.status, answer.headers.get("Content-Type") ?? "", await answer.text());
}

const personUrl = (name) => `/v1/people/${encodeURIComponent(name)}`;

export const ready = () => ask("GET", "/readyz");
export const scaler = () => ask("GET", "/v1/scaler");
export const people = async () => (await ask("GET", "/v1/people")).people;
export const person = (name) => ask("GET", personUrl(name));
export const forget = (name) => ask("DELETE", personUrl(name));
export const forgetPhoto = (photo) => ask("DELETE", photo.links.self);
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
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open("POST", "/v1/recognitions");
    request.setRequestHeader("Prefer", `wait=${waitS}`);
    request.upload.addEventListener("progress", (event) => onProgress(event.loaded / (event.total || 1)));
    request.upload.addEventListener("load", onSent);
    request.addEventListener("error", () => reject(new Error(UNREACHABLE)));
    request.addEventListener("abort", () => reject(new DOMException("removed", "AbortError")));
    request.addEventListener("load", () => {
      try {
        const document = read(request.status, request.getResponseHeader("Content-Type") ?? "", request.responseText);
        resolve(document.recognitions[0]);
      } catch (error) {
        reject(error);
      }
    });
    signal.addEventListener("abort", () => request.abort());
    request.send(form);
  });
}
