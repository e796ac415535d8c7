// Parts of a page that are marked data-live are asked for again when something was recorded.
"use strict";
(() => {
  const parts = () => document.querySelectorAll("[data-live]");
  if (!parts().length || !window.EventSource) return;
  // What was recorded since the page was made, also before this connection.
  const source = new EventSource(`/changes/events?since=${encodeURIComponent(document.body.dataset.since)}`);
  source.addEventListener("changed", () => parts().forEach((part) => window.htmx.trigger(part, "changed")));
  source.addEventListener("end", () => { source.close(); location.reload(); });
  addEventListener("pagehide", () => source.close());

  // How far runs are: the rows are looked up each time, since the list may have been replaced meanwhile.
  const board = document.querySelector("[data-progress]");
  if (!board) return;
  const runs = new EventSource(board.dataset.progress);
  const ages = [[120, 1, "s"], [7200, 60, "min"], [172800, 3600, "h"], [Infinity, 86400, "days"]];
  function age(seconds) {
    const [, unit, name] = ages.find(([most]) => seconds < most);
    return `${Math.round(seconds / unit)} ${name}`;
  }
  let last = {};
  function show() {
    for (const [run, progress] of Object.entries(last)) {
      const row = document.querySelector(`[data-of="${CSS.escape(run)}"]`);
      if (!row) continue;
      const put = (name, value, text) => { if (value !== null) row.querySelector(`[data-show="${name}"]`).textContent = text(value); };
      put("step", progress.step, String);
      put("steps", progress.steps, String);
      put("loss", progress.loss, (value) => value.toFixed(3));
      put("pace", progress.tokens_s, (value) => Math.round(value).toLocaleString("en"));
      put("left", progress.left_s, age);
      put("memory", progress.peak_bytes, (value) => `${(value / 1e9).toPrecision(3)} GB`);
      put("detail", progress.detail, String);
      const far = row.querySelector('[data-show="far"]');
      if (progress.steps !== null) { far.max = progress.steps; far.value = progress.step; }
    }
  }
  runs.addEventListener("progress", (event) => { last = JSON.parse(event.data).runs; show(); });
  // A list that replaces another may have been made before the last event.
  document.body.addEventListener("htmx:after:swap", show);
  runs.addEventListener("end", () => runs.close());
  addEventListener("pagehide", () => runs.close());
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
