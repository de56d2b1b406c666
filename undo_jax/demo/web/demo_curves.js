"use strict";
// Curves of scores over the steps of the attack, drawn by uPlot, with the slider's step in them.

class Curves {
  /** Plots into `place`; `choose(step)` is called for a step that is clicked. */
  constructor(place, data, colours, choose) {
    Object.assign(this, { place, data, colours, choose });
    this.step = data.steps[0];
    this.hidden = new Set();
    const last = Math.max(...data.models.flatMap((m) => m.curve.map((point) => point[0])));
    const steps = new Set([0, last, ...data.models.flatMap((m) => m.curve.map((p) => p[0]))]);
    this.xs = [...steps].sort((a, b) => a - b);
    this.plots = [];
    new ResizeObserver(() => this.resize()).observe(place);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw());
    this.draw();
  }

  /** Returns a model's values at every step: its curve, or a level if it is not attacked. */
  values(model, which) {
    if (!model.curve.length) return this.xs.map(() => model.scores[which]);
    const values = new Map(model.curve.map((point) => [point[0], point[1 + which]]));
    return this.xs.map((x) => values.get(x) ?? null);
  }

  draw() {
    this.plots.forEach((plot) => plot.destroy());
    fill(this.place);
    this.plots = [[1, this.data.forget], [0, this.data.retain]].map(([which, measure]) => {
      const title = `${measure.label} (${which ? "to forget" : "to keep"})`;
      const holder = el("div", { class: "plot", role: "img", "aria-label":
        `Curves of ${title} over the steps of the attack; the numbers are in the table below` });
      this.place.append(el("figure", {}, el("figcaption", {}, title), holder));
      return this.plot(holder, which);
    });
    this.show(this.step, this.hidden);
  }

  plot(holder, which) {
    const theme = isDark() ? 1 : 0, style = getComputedStyle(document.body);
    const ink = style.getPropertyValue("--muted"), faint = style.getPropertyValue("--line");
    const axis = { stroke: ink, grid: { stroke: faint, width: 1 }, ticks: { stroke: faint },
      font: "12px system-ui, sans-serif" };
    const series = this.data.models.map((model, i) => ({
      label: model.name,
      stroke: this.colours[i][theme],
      width: 2,
      dash: { base: [2, 4], oracle: [8, 5] }[model.role],
      spanGaps: true,
      points: { show: false },
    }));
    const hint = el("div", { class: "hint" });
    const options = {
      width: this.width(holder), height: 250, legend: { show: false },
      scales: { x: { time: false } },
      series: [{}, ...series],
      axes: [{ ...axis, label: "steps of the attack", labelSize: 20, labelFont: axis.font, size: 34 },
        { ...axis, size: 54, values: (_, all) => all.map((x) => String(Number(x.toFixed(4)))) }],
      cursor: { y: false, drag: { x: false, y: false } },
      hooks: {
        draw: [(u) => this.mark(u, theme, ink)],
        setCursor: [(u) => this.hover(u, hint)],
        ready: [(u) => {
          u.over.append(hint);
          u.over.addEventListener("click", () => this.click(u));
        }],
      },
    };
    const columns = this.data.models.map((model) => this.values(model, which));
    return new uPlot(options, [this.xs, ...columns], holder);
  }

  /** Draws the slider's step: a line, and a point on every curve. */
  mark(u, theme, ink) {
    const at = this.xs.indexOf(this.step), x = Math.round(u.valToPos(this.step, "x", true));
    const { ctx, bbox } = u, ratio = devicePixelRatio;
    ctx.save();
    ctx.strokeStyle = ink;
    ctx.lineWidth = ratio;
    ctx.setLineDash([]);
    ctx.beginPath();
    ctx.moveTo(x, bbox.top);
    ctx.lineTo(x, bbox.top + bbox.height);
    ctx.stroke();
    this.data.models.forEach((model, i) => {
      const value = u.data[i + 1][at];
      if (value === null || value === undefined || !u.series[i + 1].show) return;
      ctx.fillStyle = this.colours[i][theme];
      ctx.beginPath();
      ctx.arc(x, u.valToPos(value, "y", true), 5 * ratio, 0, 2 * Math.PI);
      ctx.fill();
    });
    ctx.restore();
  }

  /** Shows the values under the mouse, largest first. */
  hover(u, hint) {
    const at = u.cursor.idx;
    hint.hidden = at === null || at === undefined || u.cursor.left < 0;
    if (hint.hidden) return;
    const shown = this.data.models.map((model, i) => [model, i, u.data[i + 1][at]])
      .filter(([, i, value]) => value !== null && u.series[i + 1].show)
      .sort((a, b) => b[2] - a[2]);
    fill(hint, el("strong", {}, `step ${u.data[0][at]}`),
      ...shown.map(([model, i, value]) => el("span", {}, dot(this.colours[i]), `${model.name} `,
        el("b", {}, score(value)))));
    hint.classList.toggle("left", u.cursor.left > u.over.clientWidth / 2);
  }

  click(u) {
    const at = u.cursor.idx;
    if (at !== null && at !== undefined) this.choose(this.xs[at]);
  }

  show(step, hidden) {
    this.step = step;
    this.hidden = hidden;
    for (const plot of this.plots) {
      this.data.models.forEach((_, i) => {
        if (plot.series[i + 1].show === hidden.has(i)) plot.setSeries(i + 1, { show: !hidden.has(i) });
      });
      plot.redraw(false);
    }
  }

  width(holder) {
    return Math.max(holder.clientWidth, 200);
  }

  resize() {
    for (const plot of this.plots) {
      const width = this.width(plot.root.parentElement);
      if (width !== plot.width) plot.setSize({ width, height: plot.height });
    }
  }
}
