"use strict";
// The page of the demo: a question, a step of the attack, and what every model answers then.

const data = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);
const colours = palette(data.models);
const lastStep = Math.max(...data.models.flatMap((m) => m.curve.map((point) => point[0])), 0);
const state = {
  step: data.steps.indexOf(data.first), example: data.examples.length ? data.shown : null,
  free: null, hidden: new Set(), view: data.view,
};
const freeReplies = new Map();  // replies to free prompts, by `freeKey`
const shortNames = labels(data.examples.map((example) => example.prompt));
let curves = null, playing = null, announcing = null;
let lastAnswer = null;  // the right answer that the visitor last gave

/** Returns what is shown side by side: each model, or two of them before and under attack. */
function slots() {
  if (state.view !== "official") {
    return data.models.map((model, i) => ({ model, i, step: state.step, name: model.name }))
      .filter((slot) => !state.hidden.has(slot.i));
  }
  const steps = [...new Set([0, state.step])];
  return steps.flatMap((step) => data.pair.map((i) => ({ model: data.models[i], i, step,
    name: data.models[i].name, when: afterSteps(data.steps[step]) })));
}

function question() {
  return state.free || data.examples[state.example] || null;
}

/** Returns a model's reply; undefined until it has come, null without parameters at the step. */
function replyOf(slot) {
  if (state.free) return freeReplies.get(freeKey(slot.step))?.[slot.i];
  return data.replies[state.example]?.[slot.step][slot.i];
}

function freeKey(step) {
  return JSON.stringify([step, state.free.prompt, state.free.answer]);
}

/** Returns the model's scores at a step: [retain, forget]. */
function scoresAt(model, step) {
  const point = model.curve.find(([pointStep]) => pointStep === data.steps[step]);
  return point ? point.slice(1) : model.scores;
}

function card(slot) {
  const { model, i, step } = slot, reply = replyOf(slot), forget = scoresAt(model, step)[1];
  const head = el("h3", {}, dot(colours[i]), slot.name);
  const text = ROLE[model.role] ? ROLE[model.role](model) : model.role;
  const role = text + (model.curve.length ? "" : "; is not attacked");
  const parts = [head, el("p", { class: "role" }, slot.when || role)];
  if (reply === undefined) parts.push(el("p", { class: "waiting" }, "…"));
  else if (reply === null) parts.push(el("p", { class: "waiting" }, "not kept at this step"));
  else parts.push(answer(reply, `tokens-${i}-${step}`), likelihood(reply));
  parts.push(el("p", { class: "score" }, `${data.forget.label}: `, el("b", {}, score(forget))));
  return el("li", { class: "card", "data-model": model.name, "data-step": data.steps[step] },
    ...parts);
}

/** Returns an answer; on hover and on focus it shows its likeliest first tokens. */
function answer(reply, id) {
  const right = isRight(question(), reply), text = reply.text.trim() || "(nothing)";
  const mark = right === null ? null
    : el("span", { class: right ? "mark yes" : "mark no" }, right ? "✓ right" : "✗ wrong");
  const tokens = el("ol", {}, ...reply.top.map(([token, p]) => el("li", {},
    token === null ? el("em", {}, "the end") : el("code", {}, visible(token)), ` ${percent(p)}`)));
  const tip = el("div", { class: "tip", role: "tooltip", id }, el("p", {}, "Likeliest next tokens"),
    tokens);
  const close = (event) => { if (event.key === "Escape") holder.classList.add("closed"); };
  const open = () => holder.classList.remove("closed");
  const holder = el("div", { class: "answer", onkeydown: close, onmouseenter: open },
    el("button", { type: "button", "aria-describedby": id, onfocus: open, onclick: open },
      el("span", { class: "text" }, text)), ...(mark ? [mark] : []), tip);
  return holder;
}

function likelihood(reply) {
  if (reply.probability === null) return el("p", { class: "likely" }, "");
  const event = question().ends ? "right answer" : "right text, per token";
  const bar = el("span", { class: "bar" }, el("span", { class: `level ${question().part || "free"}`,
    style: `width: ${100 * reply.probability}%` }));
  return el("p", { class: "likely" }, el("span", { class: "what" }, `P(${event})`), bar,
    el("b", {}, percent(reply.probability)));
}

/** Draws all examples: a row each, and a column for each model. */
function drawExamples() {
  const shown = slots(), groups = [["retain", "to keep"], ["forget", "to forget"]];
  const names = shown.map((slot) => el("th", { scope: "col" },
    el("span", {}, dot(colours[slot.i]), slot.when ? `${slot.name}, step ${data.steps[slot.step]}` : slot.name)));
  const bodies = groups.map(([part, name]) => el("tbody", {},
    el("tr", {}, el("th", { class: "group", scope: "rowgroup", colspan: shown.length + 1 }, name)),
    ...data.examples.map((example, at) => [example, at])
      .filter(([example]) => example.part === part).map(([example, at]) => el("tr", { class: at === state.example && !state.free ? "chosen" : "" },
        el("th", { scope: "row" }, el("button", { type: "button", title: example.prompt,
          "aria-pressed": String(at === state.example && !state.free),
          "data-example": at, onclick: () => choose(at) }, el("span", {}, shortNames[at]))),
        ...shown.map((slot) => cell(data.replies[at][slot.step][slot.i], part))))));
  const focused = document.activeElement?.dataset?.example;
  fill($("heat"), el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "question"), ...names)),
    ...bodies);
  if (focused) $("heat").querySelector(`[data-example="${focused}"]`)?.focus();
}

function cell(reply, part) {
  const p = reply?.probability;
  if (p === null || p === undefined) return el("td", {}, MISSING);
  const share = Math.round(100 * p);
  return el("td", { class: part, style: `--share: ${share}%` }, String(share));
}

function drawTable() {
  const shown = data.models.filter((model) => model.curve.length);
  const steps = curves.xs.filter((x) => shown.some((m) => m.curve.some((p) => p[0] === x)));
  const rows = steps.map((step) => el("tr", { class: step === data.steps[state.step] ? "chosen" : "" },
    el("th", { scope: "row" }, step), ...shown.flatMap((model) => {
      const point = model.curve.find((p) => p[0] === step) || [];
      return [el("td", {}, score(point[2])), el("td", {}, score(point[1]))];
    })));
  const names = shown.map((m) => el("th", { scope: "colgroup", colspan: 2 }, m.name));
  const measures = shown.flatMap(() => [el("th", { scope: "col" }, "forget"),
    el("th", { scope: "col" }, "keep")]);
  fill($("table"), el("thead", {}, el("tr", {}, el("td", {}), ...names),
    el("tr", {}, el("th", { scope: "col" }, "step"), ...measures)), el("tbody", {}, ...rows));
}

function drawToggles() {
  fill($("toggles"), ...data.models.map((model, i) => {
    const official = state.view === "official";
    const on = official ? data.pair.includes(i) : !state.hidden.has(i);
    return el("button", { type: "button", class: "toggle", "aria-pressed": String(on),
      disabled: official, onclick: () => {
        if (!state.hidden.delete(i)) state.hidden.add(i);
        show();
        $("toggles").children[i].focus();
      } }, dot(colours[i]), model.name);
  }));
}

function drawViews() {
  const names = [["all", "All models"], ["official", "2 × 2: before and under attack"]];
  $("views").hidden = !data.pair.length;
  fill($("views"), ...names.map(([name, label], at) => el("button", { type: "button",
    "aria-pressed": String(state.view === name), onclick: () => {
      state.view = name;
      show();
      $("views").children[at].focus();
    } }, label)));
}

/** Draws all that depends on the state. */
function show() {
  const shown = question(), step = data.steps[state.step];
  $("step").value = state.step;
  $("step").setAttribute("aria-valuetext", stepName(step, lastStep));
  $("step-told").textContent = stepName(step, lastStep);
  [...$("ticks").children].forEach((tick, i) => tick.classList.toggle("chosen", i === state.step));
  const kinds = { forget: "A question to forget", retain: "A question to keep" };
  $("kind").textContent = shown ? kinds[shown.part] || "Your question" : "";
  $("kind").className = `kind ${shown?.part || ""}`;
  $("asked").textContent = shown ? shown.prompt : "Choose a question";
  $("asked").classList.toggle("long", (shown?.prompt.length || 0) > 24);
  fill($("right"), ...(shown?.answer ? ["right answer: ", el("b", {}, shown.answer.trim())] : []));
  fill($("cards"), ...(shown ? slots().map(card) : []));
  $("cards").className = `cards ${state.view}`;
  drawExamples();
  drawToggles();
  drawViews();
  const others = data.models.map((_, i) => i).filter((i) => !data.pair.includes(i));
  curves.show(step, state.view === "official" ? new Set(others) : state.hidden);
  drawTable();
  clearTimeout(announcing);
  announcing = setTimeout(announce, 400);
}

/** Tells screen readers what has changed. */
function announce() {
  if (!question()) return;
  const replies = slots().map((slot) => {
    const reply = replyOf(slot);
    if (!reply) return `${slot.name} ${reply === null ? "is not kept" : "is asked"}`;
    const right = isRight(question(), reply);
    const verdict = right === null ? "" : right ? ", right" : ", wrong";
    const when = slot.when ? ` ${slot.when}` : "";
    return `${slot.name}${when} answers ${reply.text.trim() || "nothing"}${verdict}`;
  });
  $("status").textContent = `${afterSteps(data.steps[state.step])}: ${replies.join("; ")}.`;
}

function choose(example) {
  state.example = example;
  state.free = null;
  show();
}

function move(to) {
  state.step = to;
  show();
  if (state.free) ask();
}

function play(on) {
  clearInterval(playing);
  playing = null;
  $("play").textContent = on ? "❚❚" : "▶";
  $("play").setAttribute("aria-label", on ? "Pause" : "Play the attack");
  if (!on) return;
  if (state.step === data.steps.length - 1) move(0);
  playing = setInterval(() => {
    if (state.step < data.steps.length - 1) move(state.step + 1);
    if (state.step === data.steps.length - 1) play(false);
  }, 700);
}

/** Asks the server for replies to the visitor's prompt at the steps that are shown. */
async function ask() {
  const free = state.free;
  const steps = new Set(slots().map((slot) => slot.step).filter((step) => !freeReplies.has(freeKey(step))));
  $("free-error").textContent = "";
  try {
    for (const step of steps) {
      const key = freeKey(step);
      const body = { prompt: free.prompt, answer: free.answer, step: data.steps[step] };
      const response = await fetch("answers", { method: "POST", body: JSON.stringify(body),
        headers: { "Content-Type": "application/json" } });
      const content = await response.json();
      if (!response.ok) throw new Error(content.error);
      freeReplies.set(key, content.replies);
    }
  } catch (error) {
    if (state.free !== free) return;
    $("free-error").textContent = error instanceof TypeError ? "The server does not answer."
      : error.message;
    return;
  }
  if (state.free === free) show();
}

function begin() {
  $("lead").textContent = data.lead;
  $("step").max = data.steps.length - 1;
  $("key").textContent = data.examples.every((example) => example.ends)
    ? "the probability of the right answer." : "the probability of the right text, per token.";
  const every = Math.ceil(data.steps.length / 13);
  fill($("ticks"), ...data.steps.map((step, i) => el("span", {}, i % every ? "" : step)));
  $("step").addEventListener("input", () => { play(false); move(Number($("step").value)); });
  $("play").addEventListener("click", () => play(playing === null));
  $("play").disabled = data.steps.length < 2;
  $("free").hidden = !data.live;
  $("free-prompt").addEventListener("input", () => {  // another question has another right answer
    if ($("free-answer").value === lastAnswer) $("free-answer").value = "";
  });
  $("free").addEventListener("submit", (event) => {
    event.preventDefault();
    const prompt = $("free-prompt").value;
    if (!prompt.trim()) { $("free-error").textContent = "Write a prompt first."; return; }
    const space = data.examples.length && data.examples.every((e) => e.answer.startsWith(" "));
    const right = lastAnswer = $("free-answer").value;
    const answer = right && space && !right.startsWith(" ") ? ` ${right}` : right;
    state.free = { prompt, answer, ends: data.ends };
    show();
    ask();
  });
  $("free-note").hidden = data.live;
  fill($("free-note"), "This page holds the answers to these examples. To ask questions of your own: ",
    el("code", {}, data.serve));
  const origin = [`Made by undo_jax ${data.version} on ${data.date}:`, data.command];
  fill($("footer"), ...[...data.notes, origin].map(([text, command]) => el("p", {}, text,
    ...(command ? [" ", el("code", {}, command)] : []))));
  curves = new Curves($("plots"), data, colours, (step) => {
    const distances = data.steps.map((s) => Math.abs(s - step));
    move(distances.indexOf(Math.min(...distances)));
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", show);
  show();
}

begin();
