/* Options of uPlot: axes, curves with bands, marks with bars, and colours for light and dark. */
const drawing = (() => {
  "use strict";
  const SVG = "http://www.w3.org/2000/svg";

  function element(tag, attributes = {}, children = [], namespace = document.body.namespaceURI) {
    const node = document.createElementNS(namespace, tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    node.append(...children);
    return node;
  }

  /* Colours of the page, light or dark. */
  function theme() {
    const style = getComputedStyle(document.documentElement);
    const colour = (name) => style.getPropertyValue(`--${name}`).trim();
    return { ink: colour("ink"), line: colour("line"), page: colour("page") };
  }

  const channels = (colour) => [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16));
  const luminance = (rgb) => rgb.map((channel) => channel / 255)
    .map((x) => (x <= 0.03928 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4))
    .reduce((sum, x, i) => sum + [0.2126, 0.7152, 0.0722][i] * x, 0);

  /* The colour, or one of its hue with a contrast of at least 3 to the page; black as white. */
  function legible(colour, page) {
    const ground = luminance(channels(page)), end = ground < 0.5 ? 255 : 0;
    let rgb = channels(colour);
    if (end && Math.max(...rgb) < 32) rgb = rgb.map((channel) => 255 - channel);
    for (let i = 0; i < 20; i++) {
      const light = luminance(rgb);
      if ((Math.max(light, ground) + 0.05) / (Math.min(light, ground) + 0.05) >= 3) break;
      rgb = rgb.map((channel) => Math.round(channel + 0.1 * (end - channel)));
    }
    return `#${rgb.map((channel) => channel.toString(16).padStart(2, "0")).join("")}`;
  }

  const faint = (colour, share) =>
    `${colour}${Math.round(255 * share).toString(16).padStart(2, "0")}`;

  /* The path of a mark with this radius around (x, y), in SVG's words. */
  function outline(mark, x, y, radius) {
    if (mark === "circle") {
      const arc = `a${radius} ${radius} 0 1 0`;
      return `M${x - radius} ${y}${arc} ${2 * radius} 0${arc} ${-2 * radius} 0z`;
    }
    const reaches = mark === "star" ? [1.55, 0.61] : [1.35], count = mark === "star" ? 10 : 4;
    const corners = Array.from({ length: count }, (_, i) => {
      const turn = (2 * Math.PI * i) / count - Math.PI / 2;
      const reach = radius * reaches[i % reaches.length];
      return `${x + reach * Math.cos(turn)} ${y + reach * Math.sin(turn)}`;
    });
    return `M${corners.join("L")}z`;
  }

  /* A piece of the line, or the mark, for the legend. */
  function swatch(style, marks) {
    const { page } = theme(), colour = legible(style.colour, page);
    const shape = marks
      ? { d: outline(style.mark, 13, 8, 5), fill: style.hollow ? page : colour, "stroke-width": 1.5 }
      : { d: "M1 8h24", "stroke-width": 2.5,
        "stroke-dasharray": style.dashes.map((length) => 2 * length) };
    const path = element("path", { ...shape, stroke: colour }, [], SVG);
    return element("svg", { width: 26, height: 16, "aria-hidden": "true" }, [path], SVG);
  }

  /* The options that both kinds of plots share. */
  function frame({ panel, colours, width, tall, logX, logY }) {
    const font = "12px system-ui, sans-serif";
    const axis = { stroke: colours.ink, font, ticks: { show: false }, labelFont: font, gap: 6 };
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
        { ...axis, size: 46, grid: { stroke: colours.line, width: 1 }, space: 34 },
      ],
    };
  }

  /* Means as lines, from the lowest to the highest seed as bands, or each seed if asked for. */
  function curves(context) {
    const { panel, state, styles, shown, colours, logX, logY } = context;
    const columns = [panel.xs], series = [{}], bands = [];
    const column = (values, options) => {
      columns.push(values.map((y) => (Number.isFinite(y) && (y > 0 || !logY) ? y : null)));
      return series.push({ spanGaps: true, points: { show: false }, ...options }) - 1;
    };
    const tint = Math.max(0.05, Math.min(0.16, 0.7 / Math.max(shown.length, 1)));
    for (const line of shown.filter(({ seeds }) => seeds.size > 1)) {
      const colour = legible(styles[line.name].colour, colours.page);
      if (state.seeds) {
        for (const points of line.seeds.values()) {
          const values = new Map(points.map(({ x, y }) => [x, y]));
          column(panel.xs.map((x) => values.get(x)), { stroke: faint(colour, 0.5), width: 1 });
        }
      } else {
        const [high, low] = ["high", "low"].map((end) =>
          column(line.spreads.map((one) => one?.[end]), { stroke: "transparent", width: 0 }));
        bands.push({ series: [high, low], fill: faint(colour, tint) });
      }
    }
    for (const line of shown) {  // above all bands
      const { colour, dashes } = styles[line.name];
      column(line.spreads.map((one) => one?.mean), {
        label: line.name, stroke: legible(colour, colours.page), width: 2.2,
        dash: dashes.map((length) => 2.2 * length), points: { show: panel.xs.length === 1 },
      });
    }
    const options = frame(context), last = panel.xs.at(-1), first = panel.xs[0];
    options.scales.x.range = () => (last > first ? [Math.min(first, logX ? first : 0), last]
      : [first - 1, last + 1]);
    return { ...options, series, bands, data: columns };
  }

  /* A mark at each model's means, bars from the lowest to the highest seed, or each seed. */
  function marks(context) {
    const { panel, state, styles, paths, shown, colours } = context;
    const options = frame(context), ys = panel.lines.flatMap(({ y }) => [y.low, y.high]);
    const low = Math.min(0, ...ys), high = Math.max(...ys);
    options.scales.x.range = () => [0, 1.08 * Math.max(...panel.lines.map(({ x }) => x.high))];
    options.scales.y.range = () => [low - 0.05 * (high - low), high + 0.09 * (high - low)];
    options.cursor.points = { show: false };
    options.hooks.draw = [(u) => {
      const at = (x, y) => [u.valToPos(x, "x", true), u.valToPos(y, "y", true)];
      const ratio = devicePixelRatio, canvas = u.ctx;
      const connect = (colour, ...places) => {
        [canvas.strokeStyle, canvas.lineWidth] = [colour, 1.5 * ratio];
        canvas.stroke(new Path2D(`M${places.map((place) => at(...place).join(" ")).join("L")}`));
      };
      canvas.save();
      for (const path of paths) {
        const places = path.map((name) => shown.find((line) => line.name === name)).filter(Boolean);
        if (places.length) connect(colours.line, ...places.map(({ x, y }) => [x.mean, y.mean]));
      }
      for (const { name, x, y, points } of shown) {
        const { mark, hollow, colour: plain } = styles[name], colour = legible(plain, colours.page);
        canvas.globalAlpha = state.focus === null || state.focus === name ? 1 : 0.15;
        if (!state.seeds) {
          connect(faint(colour, 0.7), [x.low, y.mean], [x.high, y.mean]);
          connect(faint(colour, 0.7), [x.mean, y.low], [x.mean, y.high]);
        } else if (points.length > 1) {
          canvas.fillStyle = faint(colour, 0.5);
          for (const point of points.filter((p) => Number.isFinite(p.x + p.y))) {
            canvas.fill(new Path2D(outline(mark, ...at(point.x, point.y), 3 * ratio)));
          }
        }
        const shape = new Path2D(outline(mark, ...at(x.mean, y.mean), 5 * ratio));
        canvas.fillStyle = hollow ? colours.page : colour;
        [canvas.strokeStyle, canvas.lineWidth] = [colour, 1.8 * ratio];
        canvas.fill(shape);
        canvas.stroke(shape);
      }
      canvas.restore();
    }];
    return { ...options, series: [{}, { paths: () => null, points: { show: false } }],
      data: [panel.xs, panel.xs.map(() => null)] };
  }

  return { element, swatch, theme, curves, marks };
})();
