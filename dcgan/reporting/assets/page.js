"use strict";
(() => {
  const data = (id) => JSON.parse(document.getElementById(id).textContent);
  const ofPage = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  // Charts: colours are names of the style sheet's, so that light and dark live in one place
  const plots = [...document.querySelectorAll(".plot")];
  const coarse = matchMedia("(pointer: coarse)").matches;
  const coloured = (value) => {
    if (Array.isArray(value)) return value.map(coloured);
    if (value && typeof value === "object") {
      return Object.fromEntries(Object.entries(value).map(([key, inner]) =>
        [key, key === "color" && inner.startsWith("--") ? ofPage(inner) : coloured(inner)]));
    }
    return value;
  };
  const isAxis = (name) => /^[xy]axis\d*$/.test(name);

  function themed(figure) {
    const ink = ofPage("--ink"), quiet = ofPage("--quiet"), rule = ofPage("--rule");
    const layout = coloured(figure.layout);
    for (const name of Object.keys(layout).filter(isAxis)) {
      Object.assign(layout[name], {
        gridcolor: rule, zerolinecolor: rule, linecolor: rule, tickfont: { color: quiet },
        automargin: true,
      });
    }
    layout.xaxis.title.font = { size: 12.5, color: quiet };
    layout.xaxis.title.standoff = 6;
    for (const note of layout.annotations) note.font = { size: 12.5, color: quiet };
    Object.assign(layout, {
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: getComputedStyle(document.body).fontFamily, size: 12.5, color: ink },
      margin: { l: 46, r: 14, t: 26, b: 40 },
      hovermode: "x unified",
      hoverlabel: { bgcolor: ofPage("--raised"), bordercolor: rule, font: { color: ink } },
      legend: { orientation: "h", yref: "container", y: 0, yanchor: "bottom", font: { color: ink } },
      // A finger on a chart scrolls the page; the buttons zoom
      dragmode: coarse ? false : "zoom",
      uirevision: "as it was",
    });
    return { data: coloured(figure.data), layout };
  }

  const figures = new Map(plots.map((plot) => [plot, data(plot.dataset.figure)]));
  const options = { displayModeBar: false, responsive: true, doubleClick: "reset" };
  const draw = (plot) => {
    const { data: traces, layout } = themed(figures.get(plot));
    return Plotly.react(plot, traces, layout, options);
  };
  const range = (plot) => plot.layout.xaxis.range.map(Number);

  function reset(plot) {
    const change = { "xaxis.autorange": true };
    const { layout } = figures.get(plot);
    for (const name of Object.keys(layout).filter((each) => each.startsWith("yaxis"))) {
      if (layout[name].range) change[`${name}.range`] = [...layout[name].range];
      else change[`${name}.autorange`] = true;
    }
    return Plotly.relayout(plot, change);
  }

  function zoom(plot, action) {
    if (action === "reset") return reset(plot);
    const [low, high] = range(plot), width = high - low;
    const [left, right] = {
      in: [0.25, -0.25], out: [-0.5, 0.5], earlier: [-0.25, -0.25], later: [0.25, 0.25],
    }[action];
    return Plotly.relayout(plot, { "xaxis.range": [low + left * width, high + right * width] });
  }

  function follow(plot, event) {
    if (!Object.keys(event).some((key) => key.startsWith("xaxis"))) return;
    const wanted = range(plot);
    for (const other of plots) {
      if (other === plot || !plot.dataset.link || other.dataset.link !== plot.dataset.link) continue;
      if (range(other).some((end, place) => end !== wanted[place])) {
        Plotly.relayout(other, { "xaxis.range": wanted });
      }
    }
  }

  for (const plot of plots) {
    draw(plot);
    plot.on("plotly_relayout", (event) => follow(plot, event));
    for (const button of plot.parentElement.querySelectorAll("[data-zoom]")) {
      button.addEventListener("click", () => zoom(plot, button.dataset.zoom));
    }
  }
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => plots.forEach(draw));

  // The slider through the grids
  const slider = document.getElementById("when");
  if (slider) {
    const image = document.getElementById("grid"), said = document.getElementById("when-said");
    const play = document.getElementById("play");
    const grids = data("grids");
    grids[grids.length - 1].src = image.src; // the page holds it once
    const shown = grids.map(({ src }) => Object.assign(new Image(), { src })); // decoded beforehand
    const show = () => {
      const place = Number(slider.value), { label } = grids[place];
      image.src = shown[place].src;
      image.alt = `Generated images after ${label}`;
      said.textContent = label;
      slider.setAttribute("aria-valuetext", label);
    };
    let timer = 0;
    const stop = () => {
      clearInterval(timer);
      timer = 0;
      play.textContent = "Play";
      play.setAttribute("aria-pressed", "false");
    };
    const start = () => {
      if (slider.value === slider.max) slider.value = 0;
      show();
      play.textContent = "Pause";
      play.setAttribute("aria-pressed", "true");
      timer = setInterval(() => {
        slider.stepUp();
        show();
        if (slider.value === slider.max) stop();
      }, 350);
    };
    slider.addEventListener("input", () => { stop(); show(); });
    play.addEventListener("click", () => (timer ? stop() : start()));
    show(); // a browser may restore the slider's old place
  }

  // The section in view, in the navigation
  const links = new Map([...document.querySelectorAll("nav a")].map((a) => [a.hash.slice(1), a]));
  const mark = () => {
    const passed = [...links.keys()].filter((id) => document.getElementById(id).getBoundingClientRect().top < 120);
    for (const [id, link] of links) {
      if (id === (passed.at(-1) ?? "summary")) link.setAttribute("aria-current", "true");
      else link.removeAttribute("aria-current");
    }
  };
  addEventListener("scroll", mark, { passive: true });
  mark();
})();
