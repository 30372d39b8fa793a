// The API's description, with the key that this tab has.

import { currentKey, takeKey } from "./stored.js";

takeKey();
const place = document.getElementById("docs");
const ui = SwaggerUIBundle({
  url: place.dataset.url,
  domNode: place,
  deepLinking: true,
  validatorUrl: null,
  onComplete: () => currentKey() && ui.preauthorizeApiKey("key", currentKey()),
});
