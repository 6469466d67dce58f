"use strict";
(() => {
  const read = (id) => JSON.parse(document.getElementById(id).textContent);
  const figures = read("figures");
  const clocks = read("clocks");
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const touch = matchMedia("(pointer: coarse)").matches;
  const plots = [...document.querySelectorAll(".plot")];
  const config = { responsive: true, displaylogo: false, displayModeBar: false };
  const titles = { batches: "batches", images: "images seen", hours: "hours of training" };

  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  // Colours of a layout's axes, texts and legend, by plotly's dotted names.
  function colours(layout) {
    const [text, line, card] = [css("--text"), css("--line"), css("--card")];
    const told = {
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      "font.color": text, "font.family": getComputedStyle(document.body).fontFamily, "font.size": 12,
      "legend.bgcolor": "rgba(0,0,0,0)",
      "hoverlabel.bgcolor": card, "hoverlabel.bordercolor": line, "hoverlabel.font.color": text,
    };
    for (const axis of Object.keys(layout).filter((name) => /^[xy]axis\d*$/.test(name))) {
      told[`${axis}.gridcolor`] = line;
      told[`${axis}.linecolor`] = line;
      told[`${axis}.zerolinecolor`] = line;
    }
    return told;
  }

  async function draw(plot) {
    if (plot.dataset.drawn) return;
    plot.dataset.drawn = "yes";
    const { data, layout } = figures[plot.dataset.figure];
    // A finger that scrolls the page must not zoom a figure.
    await Plotly.newPlot(plot, data, { ...layout, dragmode: touch ? false : "zoom" }, config);
    await Plotly.relayout(plot, colours(layout));
    await move(plot, document.getElementById("axis").value);
  }

  // Where batch x lies on a run's other clock, between the rows that are known.
  function elsewhere(x, clock, name) {
    const { batches } = clock;
    let after = batches.findIndex((batch) => batch >= x);
    if (after < 0) after = batches.length - 1;
    const before = Math.max(0, after - 1);
    const [from, to] = [clock[name][before], clock[name][after]];
    if (from === null || to === null) return null;
    const gap = batches[after] - batches[before];
    return gap ? from + ((x - batches[before]) / gap) * (to - from) : to;
  }

  async function move(plot, name) {
    if (!plot.dataset.byBatch || (plot.dataset.axis ?? "batches") === name) return;
    plot.dataset.axis = name;
    const { data } = figures[plot.dataset.figure];
    const xs = data.map((trace) => {
      const clock = clocks[trace.meta];
      return name === "batches" || !clock ? trace.x : trace.x.map((x) => elsewhere(x, clock, name));
    });
    await Plotly.restyle(plot, { x: xs });
    await Plotly.relayout(plot, { "xaxis.title.text": titles[name], "xaxis.autorange": true });
  }

  const shown = (plot) => plot.closest("details:not([open])") === null;
  const drawAll = () => Promise.all(plots.filter(shown).map(draw));

  document.getElementById("axis").addEventListener("change", (event) => {
    for (const plot of plots.filter((each) => each.dataset.drawn)) move(plot, event.target.value);
  });
  for (const details of document.querySelectorAll("details")) details.addEventListener("toggle", drawAll);
  dark.addEventListener("change", () => {
    for (const plot of plots.filter((each) => each.dataset.drawn)) Plotly.relayout(plot, colours(plot.layout));
  });
  drawAll().then(() => { document.documentElement.dataset.ready = "yes"; });
})();
