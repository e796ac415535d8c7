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

  // How far runs are: the rows are looked up at each event, since the list may have been replaced meanwhile.
  const board = document.querySelector("[data-progress]");
  if (!board) return;
  const progress = new EventSource(board.dataset.progress);
  const ages = [[120, 1, "s"], [7200, 60, "min"], [172800, 3600, "h"], [Infinity, 86400, "days"]];
  function age(seconds) {
    const [, unit, name] = ages.find(([most]) => seconds < most);
    return `${Math.round(seconds / unit)} ${name}`;
  }
  progress.addEventListener("progress", (event) => {
    for (const [run, told] of Object.entries(JSON.parse(event.data).runs)) {
      const row = document.querySelector(`[data-of="${CSS.escape(run)}"]`);
      if (!row) continue;
      const show = (name, value, text) => { if (value !== null) row.querySelector(`[data-show="${name}"]`).textContent = text(value); };
      show("step", told.step, String);
      show("steps", told.steps, String);
      show("loss", told.loss, (value) => value.toFixed(3));
      show("pace", told.tokens_s, (value) => Math.round(value).toLocaleString("en"));
      show("left", told.left_s, age);
      show("memory", told.peak_bytes, (value) => `${(value / 2 ** 30).toFixed(1)} GiB`);
      show("detail", told.detail, String);
      const far = row.querySelector('[data-show="far"]');
      if (told.steps !== null) { far.max = told.steps; far.value = told.step; }
    }
  });
  progress.addEventListener("end", () => progress.close());
  addEventListener("pagehide", () => progress.close());
})();

// A form whose answer takes long says so, and is sent once.
addEventListener("submit", (event) => {
  const note = event.target.querySelector("[data-waits]");
  if (!note) return;
  note.hidden = false;
  for (const button of event.target.querySelectorAll("button[type=submit]")) button.disabled = true;
});
addEventListener("pageshow", (event) => {
  if (!event.persisted) return;
  for (const note of document.querySelectorAll("[data-waits]")) {
    note.hidden = true;
    for (const button of note.closest("form").querySelectorAll("button[type=submit]")) button.disabled = false;
  }
});
