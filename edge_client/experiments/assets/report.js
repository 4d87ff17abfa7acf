"use strict";
// Draws the plots that plots.py describes with Chart.js, in the page's own colours.
(() => {
  const plots = JSON.parse(document.getElementById("plots").textContent);
  const root = document.documentElement;
  const colour = (name) => getComputedStyle(root).getPropertyValue(`--${name}`).trim();
  const drawn = [];
  Chart.defaults.font.family = getComputedStyle(document.body).fontFamily;

  // The 95 % interval of each bar, as a line across its end.
  const whiskers = {
    id: "whiskers",
    afterDatasetsDraw(chart) {
      const flat = chart.options.indexAxis === "y";
      const scale = chart.scales[flat ? "x" : "y"];
      const pen = chart.ctx;
      pen.save();
      pen.strokeStyle = colour("rule");
      pen.lineWidth = 1.5;
      chart.data.datasets.forEach((set, number) => {
        if (!set.intervals || !chart.isDatasetVisible(number)) return;
        chart.getDatasetMeta(number).data.forEach((bar, index) => {
          const interval = set.intervals[index];
          if (!interval) return;
          const [low, high] = interval.map((value) => scale.getPixelForValue(value));
          pen.beginPath();
          if (flat) { pen.moveTo(low, bar.y); pen.lineTo(high, bar.y); }
          else { pen.moveTo(bar.x, low); pen.lineTo(bar.x, high); }
          pen.stroke();
        });
      });
      pen.restore();
    },
  };

  const number = (value) => Number(value).toLocaleString("en", { maximumSignificantDigits: 3 });

  function said(item) {
    const set = item.dataset;
    const bar = item.chart.config.type === "bar";
    const value = bar ? item.parsed[item.chart.options.indexAxis === "y" ? "x" : "y"] : null;
    if (!bar) {
      const where = set.hints ? `${set.hints[item.dataIndex]}: ` : "";
      return `${set.label}, ${where}${number(item.parsed.x)} → ${number(item.parsed.y)}`;
    }
    const interval = set.intervals && set.intervals[item.dataIndex];
    const range = interval ? ` (95 % ${interval.map(number).join(" to ")})` : "";
    return `${set.label}: ${number(value)}${range}`;
  }

  function dataset(series, plot) {
    const inks = [].concat(series.colour).map(colour);
    const ink = inks.length > 1 ? inks : inks[0];
    const set = { label: series.name, borderColor: ink, backgroundColor: ink };
    if (plot.kind === "bar") {
      return { ...set, data: series.values, intervals: series.intervals, borderWidth: 0, maxBarThickness: 42 };
    }
    const points = plot.kind === "scatter";
    return {
      ...set, data: series.points, hints: series.hints, showLine: !points, stepped: !points && "before",
      borderWidth: 2, pointRadius: points ? 2.5 : 0, pointHitRadius: 8,
    };
  }

  // The end of the longest interval, which the library does not know of.
  function reach(plot) {
    const ends = plot.series.flatMap((series) => series.intervals || []).filter(Boolean);
    return ends.length ? Math.max(...ends.map(([, high]) => high)) : undefined;
  }

  function axis(title, plot, which) {
    const grid = colour("line"), soft = colour("soft");
    const measured = which === (plot.flat ? "x" : "y");
    return {
      suggestedMax: measured ? reach(plot) : undefined,
      title: { display: Boolean(title), text: title, color: soft },
      ticks: { color: soft, maxRotation: 50, autoSkip: measured || plot.kind !== "bar" },
      grid: { color: grid }, border: { color: grid },
      beginAtZero: plot.kind === "bar" || which === "y", stacked: Boolean(plot.stacked),
    };
  }

  function draw(plot) {
    const ink = colour("ink");
    const bars = plot.kind === "bar";
    const scales = { x: axis(plot.x, plot, "x"), y: axis(plot.y, plot, "y") };
    if (!bars) scales.x.type = "linear";
    return new Chart(document.getElementById(plot.id), {
      type: bars ? "bar" : plot.kind,
      data: { labels: plot.labels, datasets: plot.series.map((series) => dataset(series, plot)) },
      options: {
        animation: false, responsive: true, maintainAspectRatio: false,
        indexAxis: plot.flat ? "y" : "x", scales,
        interaction: { mode: bars ? "index" : "nearest", intersect: false, axis: plot.flat ? "y" : "x" },
        plugins: {
          legend: { display: plot.series.length > 1, position: "bottom", labels: { color: ink, boxWidth: 12 } },
          tooltip: { callbacks: { label: said } },
        },
      },
      plugins: [whiskers],
    });
  }

  function redraw() {
    drawn.splice(0).forEach((chart) => chart.destroy());
    plots.forEach((plot) => drawn.push(draw(plot)));
    root.dataset.plots = String(drawn.length);
  }

  redraw();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
})();
