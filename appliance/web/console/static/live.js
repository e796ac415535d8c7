// Parts of a page that are marked data-live are asked for again when something was recorded.
"use strict";
(() => {
  const parts = () => document.querySelectorAll("[data-live]");
  if (!parts().length || !window.EventSource) return;
  const source = new EventSource("/changes/events");
  let told = false;
  source.addEventListener("changed", () => {
    // The first one says where the count is; the page is as new as that.
    if (told) parts().forEach((part) => window.htmx.trigger(part, "changed"));
    told = true;
  });
  source.addEventListener("end", () => { source.close(); location.reload(); });
  addEventListener("pagehide", () => source.close());
})();
