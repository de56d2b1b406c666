"use strict";
// Parts of the demo's page: elements, colours and texts. Texts of models and prompts become text
// nodes, never markup.

const MISSING = "–";
const ROLE = {
  base: () => "before unlearning",
  unlearned: () => "the base after unlearning",
  distilled: (model) => model.alpha === null ? "distilled into a fresh student"
    : `distilled into a student with noise ${model.alpha}`,
  oracle: () => "never saw what is forgotten",
};
const FIXED = {
  base: ["#6f757d", "#a4abb5"],
  unlearned: ["#c93c28", "#ff8a75"],
  fresh: ["#8347a0", "#cf9be6"],
  oracle: ["#111418", "#f2f4f7"],
};
const OTHERS = [["#9a6400", "#e6b04f"], ["#2b6fb3", "#7cb8f0"], ["#7a5230", "#d3a27c"],
  ["#5d6a1d", "#b9c86a"], ["#a03a66", "#f093b8"]];
const RAMP = [["#2f8f70", "#7fe0bd"], ["#20758a", "#5cc3dc"], ["#24397a", "#93a8f5"]];

/** An element with attributes, handlers (onclick, ...) and children: nodes, or texts. */
function el(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (value === true) element.setAttribute(key, "");
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(key, value);
  }
  element.append(...children.map((child) => child instanceof Node ? child : String(child)));
  return element;
}

function fill(parent, ...children) {
  parent.replaceChildren(...children);
}

function isDark() {
  return matchMedia("(prefers-color-scheme: dark)").matches;
}

/** Returns a dot in a colour of `palette`. */
function dot(colour) {
  return el("i", { class: "dot", style: `background: ${colour[isDark() ? 1 : 0]}` });
}

/** Returns a colour for each model: by role, and from light to dark by alpha; [light page, dark page]. */
function palette(models) {
  const fixed = { ...FIXED }, others = OTHERS.slice();
  const noised = models.filter((m) => m.role === "distilled" && m.alpha !== null)
    .map((m) => m.alpha).sort((a, b) => a - b);
  return models.map((model) => {
    if (model.role === "distilled" && model.alpha !== null) {
      const place = noised.length > 1 ? noised.indexOf(model.alpha) / (noised.length - 1) : 0.5;
      return ramp(place);
    }
    const kind = model.role === "distilled" ? "fresh" : model.role;
    const colour = fixed[kind] || others.shift() || FIXED.base;
    delete fixed[kind];
    return colour;
  });
}

function ramp(place) {
  const at = place * (RAMP.length - 1), low = Math.min(Math.floor(at), RAMP.length - 2);
  return [0, 1].map((theme) => mix(RAMP[low][theme], RAMP[low + 1][theme], at - low));
}

function mix(from, to, share) {
  const parts = [1, 3, 5].map((i) => {
    const [a, b] = [from, to].map((colour) => parseInt(colour.slice(i, i + 2), 16));
    return Math.round(a + (b - a) * share).toString(16).padStart(2, "0");
  });
  return `#${parts.join("")}`;
}

/** Returns a probability in percent; below 1 and above 99 with a decimal. */
function percent(p) {
  if (p === null || p === undefined) return MISSING;
  const value = 100 * p;
  if (value < 0.1) return "<0.1 %";
  return `${value < 1 || (value > 99 && value < 100) ? value.toFixed(1) : value.toFixed(0)} %`;
}

function score(value) {
  return value === null || value === undefined ? MISSING : value.toFixed(3);
}

/** Returns a text with marks for white space. */
function visible(text) {
  return text.replaceAll(" ", "␣").replaceAll("\n", "⏎").replaceAll("\t", "⇥");
}

/** Returns whether a reply is the right answer; null if that is not known. */
function isRight(question, reply) {
  if (!question.answer) return null;
  return question.ends ? reply.text === question.answer : reply.text.startsWith(question.answer);
}

function stepName(step, last) {
  return step === 0 ? "not begun" : `${step} of ${last} steps`;
}

function afterSteps(step) {
  return step === 0 ? "before the attack" : `after ${step} ${step === 1 ? "step" : "steps"}`;
}

/** Returns short names of prompts: if some are long, without what all begin and end with. */
function labels(prompts) {
  if (!prompts.length || Math.max(...prompts.map((prompt) => prompt.length)) <= 24) return prompts;
  const commonLength = (texts) => {
    let n = 0;
    while (texts.every((text) => n < text.length && text[n] === texts[0][n])) n += 1;
    return n;
  };
  const reverse = (text) => [...text].reverse().join("");
  const first = commonLength(prompts);
  const last = commonLength(prompts.map((prompt) => reverse(prompt.slice(first))));
  return prompts.map((prompt) => prompt.slice(first, prompt.length - last).trim() || prompt);
}
