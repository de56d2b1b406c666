/* The numbers of a figure: read from its CSV text, summed up over seeds, and told in words. */
const numbers = (() => {
  "use strict";

  /* Rows of a CSV text, after its header. */
  function parse(csv) {
    const rows = [];
    let row = [], cell = "", quoted = false;
    for (let i = 0; i < csv.length; i++) {
      const c = csv[i];
      if (quoted && c === '"' && csv[i + 1] === '"') { cell += c; i++; }
      else if (c === '"') quoted = !quoted;
      else if (quoted || (c !== "," && c !== "\n")) cell += c;
      else {
        row.push(cell);
        cell = "";
        if (c === "\n") { rows.push(row); row = []; }
      }
    }
    return rows.slice(1);
  }

  /* Mean, lowest and highest of the finite values; null without any. */
  function spread(values) {
    const finite = values.filter(Number.isFinite);
    if (!finite.length) return null;
    const mean = finite.reduce((sum, value) => sum + value, 0) / finite.length;
    const low = Math.min(...finite), high = Math.max(...finite);
    return { mean: Math.min(Math.max(mean, low), high), low, high, count: finite.length };
  }

  /* The panels with their lines: of curves a spread at each x, of marks one of x and one of y. */
  function panelsOf(data) {
    const rows = parse(data.csv).map(([panel, model, seed, x, y]) =>
      ({ panel, model, seed, x: Number(x), y: Number(y) }));
    const found = data.panels.map((panel) => {
      const own = rows.filter((row) => row.panel === panel.name);
      const lines = (panel.marks ? marksOf : curvesOf)(own, Object.keys(data.styles));
      const xs = panel.marks ? lines.map((line) => line.x.mean) : own.map((row) => row.x);
      return { ...panel, lines, xs: [...new Set(xs)].sort((a, b) => a - b) };
    });
    for (const panel of found.filter((one) => !one.marks)) {
      for (const line of panel.lines) {
        const of = [...line.seeds.values()];
        line.spreads = panel.xs.map((x) => spread(of.map((curve) => curve.get(x) ?? NaN)));
      }
    }
    return found.filter((panel) => panel.xs.length);
  }

  function bySeed(rows, name) {
    const seeds = new Map();
    for (const row of rows.filter((one) => one.model === name)) {
      if (!seeds.has(row.seed)) seeds.set(row.seed, new Map());
      seeds.get(row.seed).set(row.x, row.y);
    }
    return seeds;
  }

  const curvesOf = (rows, names) => names
    .map((name) => ({ name, seeds: bySeed(rows, name) }))
    .filter((line) => line.seeds.size);

  const marksOf = (rows, names) => names.map((name) => {
    const points = rows.filter((row) => row.model === name);
    const seeds = new Map(points.map((point) => [point.seed, point]));
    const [x, y] = ["x", "y"].map((axis) => spread(points.map((point) => point[axis])));
    return { name, seeds, x, y };
  }).filter((line) => line.x && line.y);

  const nearest = (xs, x) =>
    xs.reduce((best, one) => (Math.abs(one - x) < Math.abs(best - x) ? one : best), xs[0]);

  /* The last x at which every curve still has a value. */
  function lastOfAll(panel) {
    const ends = panel.lines.map((line) => line.spreads.findLastIndex(Boolean));
    return panel.xs[Math.max(0, Math.min(...ends))];
  }

  /* Three digits; a whole number whole, and no exponent where that is short. */
  function plain(value) {
    const size = Math.abs(value);
    const whole = Number.isInteger(value) || (size >= 1000 && size < 1e6);
    const text = whole && size < 1e6 ? String(Math.round(value)) : value.toPrecision(3);
    return text.replace("-", "−").replace("e+", "e");
  }

  function cell(found, seeds) {
    const made = document.createElement("td");
    if (!found) { made.append("–"); return made; }
    made.append(plain(found.mean));
    if (seeds || found.count > 1) {
      const small = document.createElement("small");
      if (seeds) small.className = "seeds";
      small.append(seeds ?? `[${plain(found.low)}, ${plain(found.high)}]`);
      made.append(small);
    }
    return made;
  }

  const each = (seeds, value) => [...seeds].map(([seed, of]) => [seed, value(of)])
    .filter(([, x]) => Number.isFinite(x)).map(([seed, x]) => `${seed}: ${plain(x)}`).join(" · ");

  /* The cells of a model: its value in each panel at the chosen x; of marks y, and each x. */
  function told(panels, name, state, marks) {
    const lines = panels.map((panel) => panel.lines.find((line) => line.name === name));
    const list = (line, value) =>
      state.seeds && line && line.seeds.size > 1 ? each(line.seeds, value) : null;
    if (marks) {
      const y = cell(lines[0]?.y, list(lines[0], (point) => point.y));
      return [y, ...lines.map((line) => cell(line?.x, list(line, (point) => point.x)))];
    }
    return lines.map((line, i) => {
      const x = nearest(panels[i].xs, state.x);
      return cell(line?.spreads[panels[i].xs.indexOf(x)], list(line, (curve) => curve.get(x)));
    });
  }

  /* What a screen reader says of a chosen x. */
  function spoken(panel, x, state, marks) {
    const shown = panel.lines.filter((line) => !state.hidden.has(line.name));
    if (marks) {
      return shown.filter((line) => line.x.mean === x)
        .map((line) => `${line.name} ${plain(line.y.mean)} at ${plain(x)}`).join(", ") || plain(x);
    }
    const at = panel.xs.indexOf(x);
    const values = shown.filter((line) => line.spreads[at])
      .map((line) => `${line.name} ${plain(line.spreads[at].mean)}`);
    return [x, ...values].join(", ");
  }

  /* Caption, header and an empty body of the table of values. */
  function heads(panels, marks) {
    const [caption, head, body] =
      ["caption", "thead", "tbody"].map((tag) => document.createElement(tag));
    const several = panels.length > 1;
    const titles = marks
      ? [panels[0].y, ...panels.map((panel) => panel.x)]
      : panels.map((panel) => (several ? panel.y : "mean over seeds"));
    if (!marks && !several && !panels[0].lines.some((line) => line.seeds.size > 1)) {
      titles[0] = "one seed";
    }
    const row = document.createElement("tr");
    for (const title of ["model", ...titles]) {
      const cellOf = document.createElement("th");
      cellOf.scope = "col";
      cellOf.textContent = title;
      row.append(cellOf);
    }
    head.append(row);
    if (marks) caption.textContent = "Mean [lowest, highest] over seeds";
    return [caption, head, body];
  }

  return { panelsOf, told, spoken, heads, nearest, lastOfAll };
})();
