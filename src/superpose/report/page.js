"use strict";
// Draws the charts that the page carries as JSON, on the axis that is chosen, in the colours of the reader's scheme.
const charts = JSON.parse(document.getElementById("charts").textContent);
const dark = matchMedia("(prefers-color-scheme: dark)");
const narrow = matchMedia("(max-width: 40rem)");

function theme() {
  const style = getComputedStyle(document.documentElement);
  return name => style.getPropertyValue("--" + name).trim();
}

function faded(color) {
  const part = start => parseInt(color.slice(start, start + 2), 16);
  return `rgba(${part(1)},${part(3)},${part(5)},0.4)`;
}

function traces(chart, axis) {
  return chart.series.map(series => {
    const color = dark.matches ? series.dark : series.color;
    const errors = series.low.length > 0 && {
      type: "data", symmetric: false, color: faded(color), thickness: 2, width: 3,
      array: series.y.map((value, i) => (series.high[i] === null ? 0 : series.high[i] - value)),
      arrayminus: series.y.map((value, i) => (series.low[i] === null ? 0 : value - series.low[i])),
    };
    return {
      x: series.x[axis], y: series.y, name: series.name, showlegend: !series.thin,
      mode: [series.lines && "lines", series.dots && "markers"].filter(Boolean).join("+"),
      line: { color: series.thin ? faded(color) : color, width: series.thin ? 1 : 2.5 },
      marker: { color: series.thin ? faded(color) : color, size: series.thin ? 4 : series.points || errors ? 8 : 6 },
      error_y: errors || undefined,
      hovertemplate: "%{y:.4f}<extra>%{fullData.name}</extra>",
    };
  });
}

function layout(chart, axis) {
  const color = theme();
  const lines = { gridcolor: color("line"), zeroline: false, linecolor: color("line"), automargin: true };
  const shapes = chart.marks.map(mark => ({
    type: "line", xref: "x", yref: "paper", x0: mark.x[axis], x1: mark.x[axis], y0: 0, y1: 1,
    line: { color: color("accent"), width: 1.5, dash: "dot" },
  }));
  if (chart.level !== null) {
    shapes.push({
      type: "line", xref: "paper", yref: "y", x0: 0, x1: 1, y0: chart.level, y1: chart.level,
      line: { color: color("soft"), width: 1 },
    });
  }
  return {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    font: { color: color("ink"), size: narrow.matches ? 11 : 13 },
    margin: { l: 10, r: 15, t: 25, b: 10 },
    xaxis: { ...lines, title: { text: chart.axes[axis] }, type: chart.log_x ? "log" : "linear", exponentformat: axis === "flops" ? "power" : "SI", ...chart.ticks[axis] },
    yaxis: { ...lines, title: { text: chart.y_title }, ...(chart.y_range && { range: chart.y_range }) },
    legend: { orientation: "h", y: 1.02, yanchor: "bottom", x: 0 },
    shapes: shapes,
    annotations: chart.marks.map(mark => ({
      x: chart.log_x ? Math.log10(mark.x[axis]) : mark.x[axis], xref: "x", y: 1, yref: "paper", yanchor: "top",
      xanchor: "left", xshift: 3, showarrow: false, text: mark.label, font: { color: color("accent"), size: 12 }, bgcolor: color("paper"),
    })),
    hovermode: "closest",
  };
}

const drawings = charts.map((chart, number) => {
  const place = document.getElementById(`chart-${number}`);
  const buttons = [...document.querySelectorAll(`[data-chart="${number}"]`)];
  let axis = Object.keys(chart.axes)[0];
  const draw = () =>
    Plotly.react(place, traces(chart, axis), layout(chart, axis), { responsive: true, displaylogo: false, displayModeBar: false });
  for (const button of buttons) {
    button.addEventListener("click", () => {
      axis = button.dataset.axis;
      for (const other of buttons) other.setAttribute("aria-pressed", String(other === button));
      draw();
    });
  }
  draw();
  return draw;
});

for (const query of [dark, narrow]) query.addEventListener("change", () => drawings.forEach(draw => draw()));
