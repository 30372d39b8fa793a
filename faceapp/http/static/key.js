// The API key, where the service asks for one: a field for it, and where it is kept.
//
// It is kept in this tab's session storage and sent in a header, by this page's own requests. There are no cookies: a
// browser adds nothing by itself to what other sites' pages make it send here, so those requests have no key (no CSRF).

import { currentKey, keep as store, takeKey } from "./stored.js";

export { currentKey };

const form = document.getElementById("key-form");
const field = document.getElementById("key");
const why = document.getElementById("key-why");
const forget = document.getElementById("key-forget");

/** The headers that a request with this key has. */
export const withKey = (key) => (key ? { Authorization: `Bearer ${key}` } : {});

/** A request with `key` was refused because the key is missing or no good: show the field, and why. */
export function keyRefused(key, sentence) {
  // An answer to what was sent before the key was given tells nothing of it.
  if (key !== currentKey()) return;
  keep("");
  if (form.hidden || key) why.textContent = sentence;
  if (!form.hidden) return;
  form.hidden = false;
  field.focus();
}

/** `onGiven` is called with each new key. */
export function setUpKey(onGiven) {
  takeKey();
  // Given in the address of a page that is open already: as if it had been typed.
  addEventListener("hashchange", () => {
    if (!takeKey()) return;
    form.hidden = true;
    forget.hidden = false;
    onGiven();
  });
  forget.hidden = !currentKey();
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    keep(field.value.trim());
    field.value = "";
    form.hidden = true;
    onGiven();
  });
  forget.addEventListener("click", () => {
    keep("");
    // Nothing that was shown with the key stays.
    location.reload();
  });
}

function keep(key) {
  store(key);
  forget.hidden = !key;
}
