// Curves of a run while it goes on, and of several runs over each other. Steps come as
// [step, loss, validation loss, learning rate, gradient norm, seconds, bytes].
"use strict";
(() => {
  const style = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const colour = (place) => style(`--c${(place % 6) + 1}`);

  function draw(node, data, series, height) {
    const axis = { stroke: style("--quiet"), grid: { stroke: style("--line"), width: 1 }, ticks: { stroke: style("--line"), width: 1 }, font: `12px ${style("--sans")}` };
    const plot = new uPlot({
      width: node.clientWidth, height, legend: { show: false }, scales: { x: { time: false } },
      axes: [{ ...axis, size: 32, incrs: [1, 2, 5].flatMap((n) => [0, 1, 2, 3, 4, 5].map((p) => n * 10 ** p)).sort((a, b) => a - b) }, { ...axis, size: 56, values: (_, all) => all.map(short) }],
      cursor: { points: { size: 6 } },
      series: [{ label: "step" }, ...series],
    }, data, node);
    new ResizeObserver(() => plot.setSize({ width: node.clientWidth, height })).observe(node);
    return plot;
  }

  function short(value) {
    if (value === null || value === undefined) return "";
    if (value !== 0 && Math.abs(value) < 0.001) return value.toExponential(0);
    return String(Number(value.toPrecision(4)));
  }

  function line(label, place, more) {
    return { label, stroke: colour(place), width: 1.5, spanGaps: true, points: { show: false }, ...more };
  }

  const KINDS = {
    loss: { columns: [1, 2], series: () => [line("loss", 0), line("validation", 1, { points: { show: true, size: 5 } })] },
    rate: { columns: [3], series: () => [line("learning rate", 0)] },
    norm: { columns: [4], series: () => [line("gradient norm", 0)] },
    memory: { columns: [6], series: () => [line("GiB", 0)], scale: 2 ** -30 },
  };

  function follow(root) {
    const points = [];
    const plots = {};
    let memory = 0;
    const show = (name, text) => root.querySelectorAll(`[data-show="${name}"]`).forEach((node) => { node.textContent = text; });
    const data = (kind) => [
      points.map((point) => point[0]),
      ...kind.columns.map((column) => points.map((point) => (point[column] === null ? null : point[column] * (kind.scale || 1)))),
    ];

    function paint() {
      root.querySelectorAll("[data-plot]").forEach((node) => {
        const kind = KINDS[node.dataset.plot];
        if (plots[node.dataset.plot]) plots[node.dataset.plot].setData(data(kind));
        else if (points.length) plots[node.dataset.plot] = draw(node, data(kind), kind.series(), 176);
      });
    }

    function age(seconds) {
      for (const [most, unit, name] of [[120, 1, "s"], [7200, 60, "min"], [172800, 3600, "h"]]) {
        if (seconds < most) return `${Math.round(seconds / unit)} ${name}`;
      }
      return `${Math.round(seconds / 86400)} days`;
    }

    function take(told) {
      if (told.fresh) points.length = 0;
      const last = points.length ? points[points.length - 1][0] : 0;
      points.push(...told.points.filter((point) => point[0] > last));
      show("status", told.status);
      show("detail", told.detail || (told.evaluated ? `evaluated ${told.evaluated.done} of ${told.evaluated.total} rows` : ""));
      if (told.points.length) {
        show("step", told.step);
        show("steps", told.steps);
        const loss = told.points[told.points.length - 1][1];
        show("loss", loss === null ? "–" : loss.toFixed(3));
        show("pace", told.tokens_s === null ? "–" : Math.round(told.tokens_s).toLocaleString("en"));
        memory = Math.max(memory, ...told.points.map((point) => point[6]));
        show("memory", `${(memory / 2 ** 30).toFixed(1)} GiB`);
        show("left", told.left_s === null || told.last ? "–" : age(told.left_s));
        root.querySelectorAll('[data-show="far"]').forEach((node) => { node.max = told.steps; node.value = told.step; });
      }
      paint();
    }

    const source = new EventSource(root.dataset.run);
    source.addEventListener("steps", (event) => {
      const told = JSON.parse(event.data);
      take(told);
      if (told.last) {
        source.close();
        if (root.dataset.goesOn === "yes") location.reload();
      }
    });
    source.addEventListener("end", () => { source.close(); location.reload(); });
    addEventListener("pagehide", () => source.close());
  }

  async function compare(node) {
    const answer = await fetch(node.dataset.compare, { credentials: "same-origin" });
    if (!answer.ok) return;
    const curves = (await answer.json()).curves.filter((curve) => curve.points.length);
    if (!curves.length) return;
    const tables = curves.map((curve) => [curve.points.map((point) => point[0]), curve.points.map((point) => point[1])]);
    draw(node, uPlot.join(tables), curves.map((curve, place) => line(curve.label, place)), 320);
  }

  document.querySelectorAll("[data-run]").forEach(follow);
  document.querySelectorAll("[data-compare]").forEach(compare);
})();
