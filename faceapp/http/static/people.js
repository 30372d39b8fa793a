// Who is enrolled: the list with a photo of each, a person's photos, and forgetting.

import * as api from "./api.js";

const FILTER_FROM = 8;

const list = document.getElementById("people-list");
const filter = document.getElementById("people-filter");
const dialog = document.getElementById("person-dialog");
const status = document.getElementById("person-status");

let opened = null;

// A photo is fetched when its place comes into sight: a gallery can hold thousands of people.
const showers = new WeakMap();
const sight = new IntersectionObserver((entries) => {
  for (const { target } of entries.filter((each) => each.isIntersecting)) {
    sight.unobserve(target);
    showers.get(target)();
  }
});

function inSight(element, show) {
  showers.set(element, show);
  sight.observe(element);
}

export function setUpPeople() {
  filter.addEventListener("input", applyFilter);
  const confirm = document.getElementById("person-confirm");
  const ask = document.getElementById("person-forget");
  const asking = (on) => {
    confirm.hidden = !on;
    ask.hidden = on;
    (on ? document.getElementById("person-keep") : ask).focus();
  };
  ask.addEventListener("click", () => asking(true));
  document.getElementById("person-keep").addEventListener("click", () => asking(false));
  document.getElementById("person-forget-now").addEventListener("click", () => act(() => api.forget(opened)));
  dialog.addEventListener("close", () => {
    confirm.hidden = true;
    ask.hidden = false;
  });
  dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
  refreshPeople();
}

export async function refreshPeople() {
  let people;
  try {
    people = await api.people();
  } catch (error) {
    return showEmpty(error.message);
  }
  if (people.length) showEmpty("");
  else showEmpty("Nobody is enrolled yet. Drop a photo with a face you know, then give the face its name.");
  document.getElementById("people-count").textContent = people.length || "";
  document.getElementById("names").replaceChildren(
    ...people.map(({ name }) => Object.assign(document.createElement("option"), { value: name })),
  );
  filter.hidden = people.length < FILTER_FROM;
  const rows = new Map([...list.children].map((row) => [row.dataset.key, row]));
  list.replaceChildren(...people.map((each) => rows.get(`${each.photos} ${each.name}`) ?? personRow(each)));
  applyFilter();
}

function showEmpty(sentence) {
  const empty = document.getElementById("people-empty");
  empty.textContent = sentence;
  empty.hidden = !sentence;
}

function personRow({ name, photos }) {
  const row = document.createElement("li");
  row.dataset.name = name;
  row.dataset.key = `${photos} ${name}`;
  const button = document.createElement("button");
  button.type = "button";
  button.className = "person";
  const [face, label, count] = ["span", "span", "span"].map((tag) => document.createElement(tag));
  face.className = "avatar";
  face.setAttribute("aria-hidden", "true");
  face.textContent = [...name][0].toUpperCase();
  label.className = "person-name";
  label.textContent = name;
  count.className = "person-count";
  count.textContent = photos === 1 ? "1 photo" : `${photos} photos`;
  button.append(face, label, count);
  button.addEventListener("click", () => open(name));
  row.append(button);
  inSight(row, () => showFace(row));
  return row;
}

async function showFace(row) {
  try {
    const { photos } = await api.person(row.dataset.name);
    const image = new Image();
    image.alt = "";
    await api.show(image, photos[0]);
    row.querySelector(".avatar").replaceChildren(image);
  } catch {
    // The letter stays: the photo is of a kind that browsers do not show, or the person is gone.
  }
}

function applyFilter() {
  const wanted = filter.hidden ? "" : filter.value.trim().toLocaleLowerCase();
  for (const row of list.children) row.hidden = !row.dataset.name.toLocaleLowerCase().includes(wanted);
  if (list.children.length) showEmpty([...list.children].every((row) => row.hidden) ? "Nobody has such a name." : "");
}

async function open(name) {
  opened = name;
  document.getElementById("person-title").textContent = name;
  document.getElementById("person-photos").replaceChildren();
  status.textContent = "";
  if (!dialog.open) dialog.showModal();
  try {
    const { photos } = await api.person(name);
    const items = photos.map((photo, n) => photoItem(name, photo, n));
    document.getElementById("person-photos").replaceChildren(...items);
  } catch (error) {
    status.textContent = error.message;
  }
}

function photoItem(name, photo, n) {
  const item = document.createElement("li");
  const image = new Image();
  // One that cannot be shown, as of a kind that browsers do not know, is still listed.
  inSight(item, () => api.show(image, photo).catch(() => {}));
  image.alt = `Photo ${n + 1} of ${name}`;
  const button = document.createElement("button");
  button.type = "button";
  button.className = "icon-button";
  button.textContent = "✕";
  button.title = "Forget this photo";
  button.setAttribute("aria-label", `Forget photo ${n + 1} of ${name}`);
  button.addEventListener("click", () => act(() => api.forgetPhoto(photo), item));
  item.append(image, button);
  return item;
}

/** Forget a photo (its item goes) or the person (the dialog closes). */
async function act(forget, item) {
  status.textContent = "";
  try {
    await forget();
  } catch (error) {
    status.textContent = error.message;
    return;
  }
  item?.remove();
  if (!item || !document.getElementById("person-photos").children.length) dialog.close();
  await refreshPeople();
}
