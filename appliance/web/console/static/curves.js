// Curves of a run during its training, and of several runs over each other. Steps come as
// [step, loss, validation loss, learning rate, gradient norm, seconds, bytes].
"use strict";
(() => {
  const style = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  // A function, which uPlot calls at each drawing: the theme can change, and paper has colours of its own.
  const ink = (name) => () => style(name);
  const drawn = [];
  for (const query of ["(prefers-color-scheme: dark)", "print"]) {
    matchMedia(query).addEventListener("change", () => drawn.forEach((plot) => plot.redraw(false)));
  }

  function draw(node, data, series, height) {
    const rule = { stroke: ink("--line"), width: 1 };
    const axis = { stroke: ink("--quiet"), grid: rule, ticks: rule, font: `12px ${style("--sans")}` };
    const plot = new uPlot({
      width: node.clientWidth, height, legend: { show: false }, scales: { x: { time: false } },
      axes: [{ ...axis, size: 32, incrs: [1, 2, 5].flatMap((n) => [0, 1, 2, 3, 4, 5].map((p) => n * 10 ** p)).sort((a, b) => a - b) }, { ...axis, size: 56, values: (_, all) => all.map(short) }],
      cursor: { points: { size: 6 } },
      series: [{ label: "step" }, ...series],
    }, data, node);
    drawn.push(plot);
    new ResizeObserver(() => plot.setSize({ width: node.clientWidth, height })).observe(node);
    return plot;
  }

  function short(value) {
    if (value === null || value === undefined) return "";
    if (value !== 0 && Math.abs(value) < 0.001) return value.toExponential(2).replace(/\.?0*e/, "e");
    return String(Number(value.toPrecision(4)));
  }

  function line(label, place, more) {
    return { label, stroke: ink(`--c${(place % 6) + 1}`), width: 1.5, spanGaps: true, points: { show: false }, ...more };
  }

  const KINDS = {
    loss: { columns: [1, 2], series: () => [line("loss", 0), line("validation", 1, { points: { show: true, size: 5 } })] },
    rate: { columns: [3], series: () => [line("learning rate", 0)] },
    norm: { columns: [4], series: () => [line("gradient norm", 0)] },
    memory: { columns: [6], series: () => [line("GB", 0)], scale: 1e-9 },
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
      if (points.length) root.querySelectorAll("[data-curves]").forEach((part) => { part.hidden = false; });
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

    function take(progress) {
      if (progress.fresh) points.length = 0;
      const last = points.length ? points[points.length - 1][0] : 0;
      points.push(...progress.points.filter((point) => point[0] > last));
      show("status", progress.status);
      if (root.dataset.underWay === "yes") show("detail", progress.detail || (progress.evaluated ? `evaluated ${progress.evaluated.done} of ${progress.evaluated.total} rows` : ""));
      if (progress.points.length) {
        show("step", progress.step);
        show("steps", progress.steps);
        const loss = progress.points[progress.points.length - 1][1];
        show("loss", loss === null ? "–" : loss.toFixed(3));
        show("pace", progress.tokens_s === null ? "–" : Math.round(progress.tokens_s).toLocaleString("en"));
        memory = Math.max(memory, ...progress.points.map((point) => point[6]));
        show("memory", `${(memory / 1e9).toPrecision(3)} GB`);
        show("left", progress.left_s === null || progress.last ? "–" : age(progress.left_s));
        root.querySelectorAll('[data-show="far"]').forEach((node) => { node.max = progress.steps; node.value = progress.step; });
      }
      paint();
    }

    const source = new EventSource(root.dataset.run);
    source.addEventListener("steps", (event) => {
      const progress = JSON.parse(event.data);
      take(progress);
      if (progress.last) {
        source.close();
        if (root.dataset.underWay === "yes") location.reload();
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
