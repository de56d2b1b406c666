/* The numbers of a figure, from its CSV text: panels of lines with their spreads over seeds. */
const numbers = (() => {
  "use strict";

  /* The rows of a CSV text, without its header. */
  function parse(csv) {
    const rows = [[]];
    for (const [, quoted, bare, end] of csv.matchAll(/(?:"((?:[^"]|"")*)"|([^",\n]*))(,|\n)/g)) {
      rows.at(-1).push(quoted === undefined ? bare : quoted.replaceAll('""', '"'));
      if (end === "\n") rows.push([]);
    }
    return rows.slice(1, -1);
  }

  /* Mean, lowest and highest of the finite values; null without any. */
  function spread(values) {
    const finite = values.filter(Number.isFinite);
    if (!finite.length) return null;
    const mean = finite.reduce((sum, value) => sum + value, 0) / finite.length;
    const low = Math.min(...finite), high = Math.max(...finite);
    return { mean: Math.min(Math.max(mean, low), high), low, high, count: finite.length };
  }

  /* The panels that have points. Each has its `lines`, one for each model, and `xs`, which can be
     chosen. A line has its points, also by seed, and its spread at each x; as a mark, x and y. */
  function panelsOf({ csv, panels, styles }) {
    const points = parse(csv).map(([panel, model, seed, x, y]) =>
      ({ panel, model, seed, x: Number(x), y: Number(y) }));
    return panels.map((panel) => {
      const byModel = Map.groupBy(points.filter((p) => p.panel === panel.name), (p) => p.model);
      const lines = Object.keys(styles).filter((name) => byModel.has(name)).map((name) => {
        const own = byModel.get(name), seeds = Map.groupBy(own, (p) => p.seed);
        const [x, y] = ["x", "y"].map((axis) => spread(own.map((p) => p[axis])));
        return { name, points: own, seeds, x, y };
      }).filter((line) => line.x && line.y);
      const places = lines.flatMap(({ x, points: own }) =>
        (panel.marks ? x.mean : own.map((p) => p.x)));
      const xs = [...new Set(places)].sort((a, b) => a - b);
      for (const line of lines) {
        const byX = Map.groupBy(line.points, (p) => p.x);
        line.spreads = xs.map((x) => spread((byX.get(x) ?? []).map((p) => p.y)));
      }
      return { ...panel, lines, xs };
    }).filter((panel) => panel.xs.length);
  }

  const nearest = (xs, x) =>
    xs.reduce((best, other) => (Math.abs(other - x) < Math.abs(best - x) ? other : best), xs[0]);

  /* The last x at which every curve still has a value. */
  function lastOfAll(panel) {
    const ends = panel.lines.map((line) => line.spreads.findLastIndex(Boolean));
    return panel.xs[Math.max(0, Math.min(...ends))];
  }

  /* Three digits; a whole number whole, and no exponent where that is short. */
  function format(value) {
    const size = Math.abs(value);
    const whole = Number.isInteger(value) || (size >= 1000 && size < 1e6);
    const text = whole && size < 1e6 ? String(Math.round(value)) : value.toPrecision(3);
    return text.replace("-", "−").replace("e+", "e");
  }

  return { panelsOf, spread, nearest, lastOfAll, format };
})();
