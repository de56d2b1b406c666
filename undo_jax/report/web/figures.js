/* Draws a page's figures with uPlot, from the numbers beside each; without it the SVGs stay. */
(() => {
  "use strict";
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const { element, swatch, legible, theme } = drawing;
  const { panelsOf, told, nearest, lastOfAll } = numbers;
  const FONT = "12px system-ui, sans-serif";

  /* One figure: its buttons, a plot for each panel, and a table of models with their values. */
  function draw(figure, data) {
    const panels = panelsOf(data), names = Object.keys(data.styles);
    const marks = panels[0].marks;
    const severalSeeds = panels.some((panel) => panel.lines.some((line) => line.seeds.size > 1));
    const state = {
      hidden: new Set(), focus: null, seeds: false, logX: false,
      logY: panels.map((panel) => panel.log === true),
      x: panels[0].marks ? panels[0].xs[0] : lastOfAll(panels[0]),
    };
    const plots = [];
    const boxes = panels.map((panel) => element("div", {
      class: "plot", tabindex: "0", role: "slider", "aria-label": `${panel.y}: ${panel.x}`,
      "aria-valuemin": panel.xs[0], "aria-valuemax": panel.xs[panel.xs.length - 1],
    }));
    const readout = element("table", { class: "readout" });
    const toggles = names.map((name) => {
      const button = element("button", { type: "button", "aria-pressed": "true" });
      button.addEventListener("click", () => {
        state.hidden.has(name) ? state.hidden.delete(name) : state.hidden.add(name);
        redraw();
      });
      for (const [event, on] of [["pointerenter", true], ["focus", true], ["pointerleave", false],
        ["blur", false]]) button.addEventListener(event, () => emphasise(on ? name : null));
      return button;
    });

    /* The others are faint while a model's button is pointed at. */
    function emphasise(name) {
      if (state.focus === name || state.hidden.has(name)) return;
      state.focus = name;
      for (const plot of plots) {
        const at = plot.series.findIndex((one) => name !== null && one.label === name);
        marks ? plot.redraw(false) : plot.setSeries(at < 0 ? null : at, { focus: true });
      }
    }

    function plotted(index) {
      const panel = panels[index], box = boxes[index], colours = theme();
      const width = Math.floor(box.getBoundingClientRect().width), logY = state.logY[index];
      const tall = panels.length === 1 && names.length > 10;
      const size = { width, tall, font: FONT };
      const known = { panel, state, data, colours, ...size, logY, logX: state.logX };
      const options = (marks ? drawing.marks : drawing.curves)(known);
      options.cursor.move = (u, left, top) =>
        left < 0 ? [u.valToPos(nearest(panel.xs, state.x), "x"), -10] :
          [u.valToPos(panel.xs[u.posToIdx(left)], "x"), top];
      options.hooks.ready = [(u) => place(u, panel)];
      box.replaceChildren();
      return new uPlot(options, options.data, box);
    }

    function choose(x) {
      if (x === state.x) return;
      state.x = x;
      plots.forEach((plot, i) => place(plot, panels[i]));
      tell();
    }

    function place(plot, panel) {
      plot.setCursor({ left: plot.valToPos(nearest(panel.xs, state.x), "x"), top: -10 }, false);
    }

    function redraw() {
      names.forEach((name, i) => {
        const style = data.styles[name], colour = legible(style.colour, theme().page);
        toggles[i].setAttribute("aria-pressed", String(!state.hidden.has(name)));
        const star = style.hollow && !marks ? " *" : "";
        toggles[i].replaceChildren(swatch(style, colour, marks, theme().page), name + star);
      });
      tell();  // before the plots, which take the width that it leaves
      const pointed = state.focus;
      state.focus = null;
      plots.splice(0).forEach((plot) => plot.destroy());
      panels.forEach((_, index) => plots.push(plotted(index)));
      emphasise(pointed);
    }

    function tell() {
      const rows = names.map((name, i) => element("tr", {}, [
        element("th", { scope: "row" }, [toggles[i]]),
        ...told(panels, name, state, marks),
      ]));
      if (!marks) {
        readout.caption.textContent = `${panels[0].x}: ${state.x}`;
      } else {
        const at = panels[0].lines.filter((line) => line.x.mean === state.x).map((l) => l.name);
        rows.forEach((row, i) => row.classList.toggle("at", at.includes(names[i])));
      }
      const kept = document.activeElement;  // a button that moves loses the focus
      readout.tBodies[0].replaceChildren(...rows);
      if (toggles.includes(kept)) kept.focus({ preventScroll: true });
      boxes.forEach((box, i) => {
        const x = nearest(panels[i].xs, state.x);
        box.setAttribute("aria-valuenow", x);
        box.setAttribute("aria-valuetext", numbers.spoken(panels[i], x, state, marks));
      });
    }

    function pressed(button, on) {
      button.setAttribute("aria-pressed", String(on));
      redraw();
    }

    function control(text, on, change) {
      const button = element("button", { type: "button", "aria-pressed": String(on) }, [text]);
      let now = on;
      button.addEventListener("click", () => { now = !now; change(now); pressed(button, now); });
      return button;
    }

    const controls = element("div", { class: "controls" });
    if (severalSeeds) controls.append(control("each seed", false, (on) => { state.seeds = on; }));
    if (!marks && panels[0].xs.length > 3) {
      controls.append(control("log steps", false, (on) => { state.logX = on; }));
    }
    if (panels.some((panel) => panel.log !== null)) {
      controls.append(control("log scale", state.logY.some(Boolean), (on) => {
        state.logY = panels.map((panel) => on && panel.log !== null);
      }));
    }
    if (names.length > 2) {
      const all = element("button", { type: "button" }, ["hide all"]);
      all.addEventListener("click", () => {
        const hide = state.hidden.size < names.length;
        state.hidden = new Set(hide ? names : []);
        all.textContent = hide ? "show all" : "hide all";
        redraw();
      });
      controls.append(all);
    }

    boxes.forEach((box, index) => {
      const panel = panels[index];
      box.addEventListener("keydown", (event) => {
        const at = panel.xs.indexOf(nearest(panel.xs, state.x)), last = panel.xs.length - 1;
        const next = {
          ArrowRight: at + 1, ArrowUp: at + 1, ArrowLeft: at - 1, ArrowDown: at - 1,
          PageUp: at + 10, PageDown: at - 10, Home: 0, End: last,
        }[event.key];
        if (next === undefined) return;
        event.preventDefault();
        choose(panel.xs[Math.min(Math.max(next, 0), last)]);
      });
      const pointed = (event) => {
        const left = event.clientX - plots[index].over.getBoundingClientRect().left;
        choose(panel.xs[plots[index].posToIdx(left)]);
      };
      box.addEventListener("pointerdown", pointed);
      box.addEventListener("pointermove", pointed);
    });

    readout.append(...numbers.heads(panels, marks));
    const live = element("div", { class: "live" }, [controls, element("div", {
      class: panels.length > 1 ? "beside" : "beside one",
    }, [
      element("div", { class: "panels" }, panels.map((panel, i) => element("div", {}, [
        element("p", { class: "axis" }, [panel.y]), boxes[i],
      ]))),
      element("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "values" },
        [readout]),
    ])]);
    figure.querySelector(".static").after(live);
    figure.classList.add("drawn");
    redraw();
    dark.addEventListener("change", redraw);
    let width = live.clientWidth;
    new ResizeObserver(() => {
      if (live.clientWidth && live.clientWidth !== width) {
        width = live.clientWidth;
        redraw();
      }
    }).observe(live);
  }

  for (const figure of document.querySelectorAll("figure")) {
    const found = figure.querySelector("script.numbers");
    const data = found && JSON.parse(found.textContent);
    if (!data?.panels) continue;
    try {
      draw(figure, data);
    } catch (error) {
      figure.classList.remove("drawn");  // the SVG is there
      console.error(error);
    }
  }
})();
