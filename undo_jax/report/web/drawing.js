/* What uPlot is told: axes, curves with bands, marks with bars, and colours for light and dark. */
const drawing = (() => {
  "use strict";
  const SVG = "http://www.w3.org/2000/svg";

  function element(tag, attributes = {}, children = []) {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    made.append(...children);
    return made;
  }

  /* Colours of the page, light or dark. */
  function theme() {
    const style = getComputedStyle(document.documentElement);
    const of = (name) => style.getPropertyValue(`--${name}`).trim();
    return { ink: of("ink"), muted: of("muted"), line: of("line"), page: of("page") };
  }

  const parts = (colour) => [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16));

  function luminance(rgb) {
    const [r, g, b] = rgb.map((part) => {
      const x = part / 255;
      return x <= 0.03928 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  }

  /* The colour, or one of its hue with a contrast of at least 3 to the page; black as white. */
  function legible(colour, page) {
    const ground = luminance(parts(page)), end = ground < 0.5 ? 255 : 0;
    let rgb = parts(colour);
    if (end && Math.max(...rgb) < 32) rgb = rgb.map((part) => 255 - part);
    for (let i = 0; i < 20; i++) {
      const own = luminance(rgb);
      if ((Math.max(own, ground) + 0.05) / (Math.min(own, ground) + 0.05) >= 3) break;
      rgb = rgb.map((part) => Math.round(part + 0.1 * (end - part)));
    }
    return `#${rgb.map((part) => part.toString(16).padStart(2, "0")).join("")}`;
  }

  const faint = (colour, share) =>
    `${colour}${Math.round(255 * share).toString(16).padStart(2, "0")}`;

  /* A path of a mark with this radius, around (x, y). */
  function outline(mark, x, y, radius) {
    const made = new Path2D();
    if (mark === "circle") made.arc(x, y, radius, 0, 2 * Math.PI);
    else {
      const corners = mark === "star" ? 10 : 4, out = 1.35 * radius;
      for (let i = 0; i < corners; i++) {
        const turn = (2 * Math.PI * i) / corners - Math.PI / 2;
        const reach = mark === "star" ? (i % 2 ? 0.45 * out : 1.15 * out) : out;
        made.lineTo(x + reach * Math.cos(turn), y + reach * Math.sin(turn));
      }
      made.closePath();
    }
    return made;
  }

  /* A piece of the line, or the mark, for the legend. */
  function swatch(style, colour, marks, page) {
    const svg = document.createElementNS(SVG, "svg");
    const set = (node, values) =>
      Object.entries(values).forEach(([name, value]) => node.setAttribute(name, value));
    set(svg, { width: 26, height: 16, "aria-hidden": "true" });
    const shape = document.createElementNS(SVG, marks ? "path" : "line");
    if (marks) {
      const around = { circle: "M13 3a5 5 0 1 0 .01 0z", diamond: "M13 1.5 19.5 8 13 14.5 6.5 8z",
        star: "M13 1l2.2 4.6 5 .7-3.6 3.5.9 5-4.5-2.4-4.5 2.4.9-5L5.8 6.3l5-.7z" };
      set(shape, { d: around[style.mark], fill: style.hollow ? page : colour, stroke: colour,
        "stroke-width": 1.5 });
    } else {
      set(shape, { x1: 1, x2: 25, y1: 8, y2: 8, stroke: colour, "stroke-width": 2.5,
        "stroke-dasharray": style.dashes.map((one) => 2 * one).join(" ") });
    }
    svg.append(shape);
    return svg;
  }

  /* What both kinds of plots share. */
  function frame({ panel, colours, width, tall, logX, logY, font }) {
    const axis = { stroke: colours.ink, font, ticks: { show: false }, labelFont: font, gap: 6 };
    const grid = { stroke: colours.line, width: 1 };
    const range = (u, low, high) => {
      if (low == null) return logY ? [0.1, 1] : [0, 1];
      if (logY) return uPlot.rangeLog(low, high, 10, false);  // its ticks need round ends
      const pad = 0.04 * (high - low) || 0.05;
      if (!panel.limits) return [low - pad, high + pad];
      return [Math.min(panel.limits[0], low) - 0.03, Math.max(panel.limits[1], high) + 0.03];
    };
    return {
      width, height: Math.round(Math.min(Math.max(0.62 * width, 250), tall ? 480 : 360)),
      legend: { show: false }, focus: { alpha: 0.15 }, hooks: {}, padding: [8, 12, 0, 0],
      cursor: { y: false, drag: { x: false, y: false } },
      scales: {
        x: { time: false, ...(logX ? { distr: 4, asinh: 1 } : {}) },
        y: { range, ...(logY ? { distr: 3, log: 10 } : {}) },
      },
      axes: [
        { ...axis, label: panel.x, labelSize: 22, size: 28, grid: { show: false }, space: 45 },
        { ...axis, size: 46, grid, space: 34 },
      ],
    };
  }

  /* Means as lines, from the lowest to the highest seed as bands, and each seed if asked for. */
  function curves(known) {
    const { panel, state, data, colours, logY } = known;
    const options = frame(known), columns = [panel.xs], series = [{}], bands = [];
    const shown = panel.lines.filter((line) => !state.hidden.has(line.name));
    const column = (values, made) => {
      columns.push(values.map((y) => (Number.isFinite(y) && (y > 0 || !logY) ? y : null)));
      return series.push({ spanGaps: true, points: { show: false }, ...made }) - 1;
    };
    const tint = Math.max(0.05, Math.min(0.16, 0.7 / Math.max(shown.length, 1)));
    for (const line of shown) {
      const colour = legible(data.styles[line.name].colour, colours.page);
      const edge = { stroke: "transparent", width: 0 };
      if (line.seeds.size > 1 && !state.seeds) {
        const low = column(line.spreads.map((one) => one?.low), edge);
        const high = column(line.spreads.map((one) => one?.high), edge);
        bands.push({ series: [high, low], fill: faint(colour, tint) });
      }
      for (const [, curve] of state.seeds && line.seeds.size > 1 ? line.seeds : []) {
        column(panel.xs.map((x) => curve.get(x)), { stroke: faint(colour, 0.5), width: 1 });
      }
    }
    for (const line of shown) {  // above all bands
      const { colour, dashes } = data.styles[line.name];
      const dash = dashes.map((length) => 2.2 * length);
      const single = panel.xs.length === 1 ? { points: { show: true } } : {};
      column(line.spreads.map((one) => one?.mean),
        { label: line.name, stroke: legible(colour, colours.page), width: 2.2, dash, ...single });
    }
    const last = panel.xs[panel.xs.length - 1], first = panel.xs[0];
    options.scales.x.range = () => (last > first ? [Math.min(first, known.logX ? first : 0), last]
      : [first - 1, last + 1]);
    return { ...options, series, bands, data: columns };
  }

  /* A mark at each model's means, bars from the lowest to the highest seed, or each seed. */
  function marks(known) {
    const { panel, state, data, colours } = known;
    const options = frame(known), shown = panel.lines.filter((l) => !state.hidden.has(l.name));
    const ys = panel.lines.flatMap((line) => [line.y.low, line.y.high]);
    const far = Math.max(...panel.lines.map((line) => line.x.high));
    const low = Math.min(0, ...ys), high = Math.max(...ys);
    options.scales.x.range = () => [0, 1.08 * far];
    options.scales.y.range = () => [low - 0.05 * (high - low), high + 0.09 * (high - low)];
    options.cursor.points = { show: false };
    options.hooks.draw = [(u) => {
      const at = (x, y) => [u.valToPos(x, "x", true), u.valToPos(y, "y", true)];
      const ratio = devicePixelRatio, context = u.ctx;
      const stroke = (from, to) => {
        context.beginPath();
        context.moveTo(...from);
        context.lineTo(...to);
        context.stroke();
      };
      context.save();
      for (const path of data.paths) {
        const places = path.map((name) => shown.find((line) => line.name === name)).filter(Boolean)
          .map((line) => at(line.x.mean, line.y.mean));
        [context.strokeStyle, context.lineWidth] = [colours.line, 1.5 * ratio];
        places.slice(1).forEach((place, i) => stroke(places[i], place));
      }
      for (const line of shown) {
        const style = data.styles[line.name], colour = legible(style.colour, colours.page);
        context.globalAlpha = state.focus === null || state.focus === line.name ? 1 : 0.15;
        [context.strokeStyle, context.fillStyle] = [faint(colour, 0.7), faint(colour, 0.5)];
        context.lineWidth = 1.5 * ratio;
        if (state.seeds) {
          for (const [, { x, y }] of line.seeds.size > 1 ? line.seeds : []) {
            if (Number.isFinite(x + y)) context.fill(outline(style.mark, ...at(x, y), 3 * ratio));
          }
        } else {
          stroke(at(line.x.low, line.y.mean), at(line.x.high, line.y.mean));
          stroke(at(line.x.mean, line.y.low), at(line.x.mean, line.y.high));
        }
        const shape = outline(style.mark, ...at(line.x.mean, line.y.mean), 5 * ratio);
        context.fillStyle = style.hollow ? colours.page : colour;
        [context.strokeStyle, context.lineWidth] = [colour, 1.8 * ratio];
        context.fill(shape);
        context.stroke(shape);
      }
      context.restore();
    }];
    const blank = panel.xs.map(() => null);
    return { ...options, series: [{}, { paths: () => null, points: { show: false } }],
      data: [panel.xs, blank] };
  }

  return { element, swatch, legible, theme, curves, marks };
})();
