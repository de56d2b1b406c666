/* Draws a page's figures with uPlot, from the numbers beside each; without it the SVGs stay. */
(() => {
  "use strict";
  const { element } = drawing;
  const { panelsOf, spread, nearest, lastOfAll, format } = numbers;

  /* A cell with the mean of a model's points, and their range or each seed's value. */
  function cell(points, axis, eachSeed) {
    const finite = points.filter((point) => Number.isFinite(point[axis]));
    const values = spread(finite.map((point) => point[axis]));
    if (!values) return element("td", {}, ["–"]);
    if (values.count === 1) return element("td", {}, [format(values.mean)]);
    const seeds = finite.map((point) => `${point.seed}: ${format(point[axis])}`).join(" · ");
    const small = eachSeed ? element("small", { class: "seeds" }, [seeds])
      : element("small", {}, [`[${format(values.low)}, ${format(values.high)}]`]);
    return element("td", {}, [format(values.mean), small]);
  }

  /* One figure: its buttons, a plot for each panel, and a table of models with their values. */
  function draw(figure, data) {
    const panels = panelsOf(data), names = Object.keys(data.styles), { marks } = panels[0];
    const severalSeeds = panels.some(({ lines }) => lines.some(({ seeds }) => seeds.size > 1));
    const state = {
      hidden: new Set(), focus: null, seeds: false, logX: false,
      logY: panels.map((panel) => panel.log === true),
      x: marks ? panels[0].xs[0] : lastOfAll(panels[0]),
    };
    const plots = [];
    const boxes = panels.map((panel) => element("div", {
      class: "plot", tabindex: "0", role: "slider", "aria-label": `${panel.y}: ${panel.x}`,
      "aria-valuemin": panel.xs[0], "aria-valuemax": panel.xs.at(-1),
    }));

    /* ---- drawing ---- */

    function plotted(panel, index) {
      const box = boxes[index], colours = drawing.theme();
      const options = (marks ? drawing.marks : drawing.curves)({
        panel, state, colours, styles: data.styles, paths: data.paths,
        shown: panel.lines.filter((line) => !state.hidden.has(line.name)),
        width: Math.floor(box.getBoundingClientRect().width),
        tall: panels.length === 1 && names.length > 10,
        logX: state.logX, logY: state.logY[index],
      });
      options.cursor.move = (u, left, top) =>
        left < 0 ? [u.valToPos(nearest(panel.xs, state.x), "x"), -10] :
          [u.valToPos(panel.xs[u.posToIdx(left)], "x"), top];
      options.hooks.ready = [(u) => place(u, panel)];
      box.replaceChildren();
      return new uPlot(options, options.data, box);
    }

    function place(plot, panel) {
      plot.setCursor({ left: plot.valToPos(nearest(panel.xs, state.x), "x"), top: -10 }, false);
    }

    function redraw() {
      names.forEach((name, i) => {
        const style = data.styles[name], star = style.hollow && !marks ? " *" : "";
        toggles[i].setAttribute("aria-pressed", String(!state.hidden.has(name)));
        toggles[i].replaceChildren(drawing.swatch(style, marks), name + star);
      });
      write();  // before the plots, which take the width that it leaves
      const focused = state.focus;
      state.focus = null;
      plots.splice(0).forEach((plot) => plot.destroy());
      plots.push(...panels.map(plotted));
      emphasise(focused);
    }

    /* The others are faint while a model's button is pointed at. */
    function emphasise(name) {
      if (state.focus === name || state.hidden.has(name)) return;
      state.focus = name;
      for (const plot of plots) {
        const at = plot.series.findIndex(({ label }) => name !== null && label === name);
        marks ? plot.redraw(false) : plot.setSeries(at < 0 ? null : at, { focus: true });
      }
    }

    /* ---- values as text ---- */

    /* The cells of a model: of curves y in each panel at the chosen x, of marks y and each x. */
    function cells(name) {
      const lines = panels.map((panel) => panel.lines.find((line) => line.name === name));
      const points = lines.map((line) => line?.points ?? []), { seeds } = state;
      if (marks) {
        return [cell(points[0], "y", seeds), ...points.map((own) => cell(own, "x", seeds))];
      }
      return points.map((own, i) => {
        const x = nearest(panels[i].xs, state.x);
        return cell(own.filter((point) => point.x === x), "y", seeds);
      });
    }

    /* What a screen reader says of a chosen x. */
    function spoken(panel, x) {
      const shown = panel.lines.filter((line) => !state.hidden.has(line.name));
      if (marks) {
        const values = shown.filter((line) => line.x.mean === x)
          .map(({ name, y }) => `${name} ${format(y.mean)} at ${format(x)}`);
        return values.join(", ") || format(x);
      }
      const at = panel.xs.indexOf(x), values = shown.filter((line) => line.spreads[at])
        .map((line) => `${line.name} ${format(line.spreads[at].mean)}`);
      return [x, ...values].join(", ");
    }

    function write() {
      const at = marks ? panels[0].lines.filter((line) => line.x.mean === state.x) : [];
      const rows = names.map((name, i) => element("tr", {
        class: at.some((line) => line.name === name) ? "at" : "",
      }, [element("th", { scope: "row" }, [toggles[i]]), ...cells(name)]));
      readout.caption.textContent =
        marks ? "Mean [lowest, highest] over seeds" : `${panels[0].x}: ${state.x}`;
      const focused = document.activeElement;  // a button that moves loses the focus
      readout.tBodies[0].replaceChildren(...rows);
      if (toggles.includes(focused)) focused.focus({ preventScroll: true });
      panels.forEach((panel, i) => {
        const x = nearest(panel.xs, state.x);
        boxes[i].setAttribute("aria-valuenow", x);
        boxes[i].setAttribute("aria-valuetext", spoken(panel, x));
      });
    }

    /* ---- controls ---- */

    function choose(x) {
      if (x === state.x) return;
      state.x = x;
      plots.forEach((plot, i) => place(plot, panels[i]));
      write();
    }

    function button(text, attributes, click) {
      const node = element("button", { type: "button", ...attributes }, [text]);
      node.addEventListener("click", () => { click(node); redraw(); });
      return node;
    }

    const toggles = names.map((name) => {
      const node = button("", {}, () => state.hidden.delete(name) || state.hidden.add(name));
      for (const [event, model] of [["pointerenter", name], ["focus", name], ["pointerleave", null],
        ["blur", null]]) node.addEventListener(event, () => emphasise(model));
      return node;
    });

    const control = (text, on, change) => button(text, { "aria-pressed": String(on) }, (node) => {
      on = !on;
      node.setAttribute("aria-pressed", String(on));
      change(on);
    });
    const controls = [
      severalSeeds && control("each seed", false, (on) => { state.seeds = on; }),
      !marks && panels[0].xs.length > 3
        && control("log steps", false, (on) => { state.logX = on; }),
      panels.some(({ log }) => log !== null) && control("log scale", state.logY.some(Boolean),
        (on) => { state.logY = panels.map(({ log }) => on && log !== null); }),
      names.length > 2 && button("hide all", {}, (node) => {
        const hide = state.hidden.size < names.length;
        state.hidden = new Set(hide ? names : []);
        node.textContent = hide ? "show all" : "hide all";
      }),
    ].filter(Boolean);

    panels.forEach(({ xs }, index) => {
      boxes[index].addEventListener("keydown", (event) => {
        const at = xs.indexOf(nearest(xs, state.x)), last = xs.length - 1;
        const next = {
          ArrowRight: at + 1, ArrowUp: at + 1, ArrowLeft: at - 1, ArrowDown: at - 1,
          PageUp: at + 10, PageDown: at - 10, Home: 0, End: last,
        }[event.key];
        if (next === undefined) return;
        event.preventDefault();
        choose(xs[Math.min(Math.max(next, 0), last)]);
      });
      for (const kind of ["pointerdown", "pointermove"]) {
        boxes[index].addEventListener(kind, (event) => {
          const left = event.clientX - plots[index].over.getBoundingClientRect().left;
          choose(xs[plots[index].posToIdx(left)]);
        });
      }
    });

    /* ---- the page ---- */

    let titles = panels.map((panel) => panel.y);
    if (marks) titles = [titles[0], ...panels.map((panel) => panel.x)];
    else if (panels.length === 1) titles = [severalSeeds ? "mean over seeds" : "one seed"];
    const heads = ["model", ...titles].map((title) => element("th", { scope: "col" }, [title]));
    const readout = element("table", { class: "readout" }, [
      element("caption"), element("thead", {}, [element("tr", {}, heads)]), element("tbody"),
    ]);
    const live = element("div", { class: "live" }, [
      element("div", { class: "controls" }, controls),
      element("div", { class: panels.length > 1 ? "beside" : "beside one" }, [
        element("div", { class: "panels" }, panels.map((panel, i) =>
          element("div", {}, [element("p", { class: "axis" }, [panel.y]), boxes[i]]))),
        element("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "values" },
          [readout]),
      ]),
    ]);
    figure.querySelector(".static").after(live);
    figure.classList.add("drawn");
    redraw();
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
    let width = live.clientWidth;
    new ResizeObserver(() => {
      if (live.clientWidth && live.clientWidth !== width) {
        width = live.clientWidth;
        redraw();
      }
    }).observe(live);
  }

  for (const figure of document.querySelectorAll("figure")) {
    const island = figure.querySelector("script.numbers");
    const data = island && JSON.parse(island.textContent);
    if (!data?.panels) continue;
    try {
      draw(figure, data);
    } catch (error) {
      figure.classList.remove("drawn");  // the SVG is there
      console.error(error);
    }
  }
})();
