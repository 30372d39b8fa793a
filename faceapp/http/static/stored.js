// Where the API key is kept: in this tab's session storage, for this page and the API's.

const STORED = "faceapp-key";
const GIVEN = /^#key=(fa_[0-9a-f]{8}_[0-9A-Za-z_-]{43})$/;

/** The key; empty while there is none. */
export const currentKey = () => sessionStorage.getItem(STORED) ?? "";

/** Keep `key` instead of the one there was; an empty one is none. */
export function keep(key) {
  if (key) sessionStorage.setItem(STORED, key);
  else sessionStorage.removeItem(STORED);
}

/** Take the key out of the address (#key=..., which no server gets to see), if there is one; whether there was. */
export function takeKey() {
  const given = GIVEN.exec(location.hash);
  if (!given) return false;
  keep(given[1]);
  history.replaceState(null, "", location.pathname + location.search);
  return true;
}
