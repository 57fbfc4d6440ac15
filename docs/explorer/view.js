// The explorer's page: boxes that are dragged, resized, typed or moved by keys; the rest follows from `state`.
import { PARAMETERS, LOSSES, evaluate, geometry } from "./family.js";

const WIDTH = 12, HEIGHT = 8, UNIT = 60, SMALLEST = 0.05;
const CORNERS = { nw: [0, 1], ne: [2, 1], sw: [0, 3], se: [2, 3] };
const NUMBERS = ["x1", "y1", "x2", "y2"];
const LABELS = { pred: "Predicted box", target: "Target box" };
const START = { pred: [1.5, 1, 4.5, 3.5], target: [5, 3, 8, 7], kind: "ciou", parameters: { ...PARAMETERS } };

const root = document.getElementById("pair");
const find = (selector) => root.querySelector(selector);
let state = read(location.hash);

function read(hash) {
  const given = new URLSearchParams(hash.slice(1));
  const box = (name) => {
    const numbers = (given.get(name) ?? "").split(",").map(Number);
    return numbers.length === 4 && upright(numbers) ? numbers : START[name];
  };
  const parameters = { ...START.parameters };
  for (const name of Object.keys(parameters)) {
    const value = Number(given.get(name));
    if (given.has(name) && allowed(name, value)) parameters[name] = value;
  }
  const kind = given.get("kind") in LOSSES ? given.get("kind") : START.kind;
  return { pred: box("pred"), target: box("target"), kind, parameters };
}

function upright(box) {
  return box.every(Number.isFinite) && box[2] >= box[0] && box[3] >= box[1];
}

function allowed(name, value) {
  return Number.isFinite(value) && (name === "scale" ? value >= 0 && value <= 16 : value > 0);
}

function link() {
  const shown = { pred: state.pred.join(","), target: state.target.join(","), kind: state.kind };
  const words = Object.entries({ ...shown, ...state.parameters }).map(([name, value]) => `${name}=${value}`);
  return `#${words.join("&")}`;
}

const rounded = (value) => Number(value.toFixed(3));
const shown = (value) => (Math.abs(value) < 5e-7 ? 0 : value).toFixed(6);

function set(name, box) {
  state[name] = box.map(rounded);
  show();
}

function moved(box, dx, dy) {
  return [box[0] + dx, box[1] + dy, box[2] + dx, box[3] + dy];
}

// A corner that passes the opposite one takes over from it, so that boxes stay upright.
function cornerAt(box, [i, j], x, y) {
  const next = box.slice();
  next[i] = x;
  next[j] = y;
  return [Math.min(next[0], next[2]), Math.min(next[1], next[3]), Math.max(next[0], next[2]), Math.max(next[1], next[3])];
}

function svg(tag, attributes, parent) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return parent.appendChild(element);
}

function place(event) {
  const frame = find("svg").getBoundingClientRect();
  return [((event.clientX - frame.left) / frame.width) * WIDTH, ((event.clientY - frame.top) / frame.height) * HEIGHT];
}

function dragged(element, begin) {
  element.addEventListener("pointerdown", (event) => {
    event.preventDefault();
    element.setPointerCapture(event.pointerId);
    const follow = begin(place(event));
    const move = (now) => follow(place(now));
    const end = () => {
      element.removeEventListener("pointermove", move);
      element.removeEventListener("pointerup", end);
      element.removeEventListener("pointercancel", end);
    };
    element.addEventListener("pointermove", move);
    element.addEventListener("pointerup", end);
    element.addEventListener("pointercancel", end);
  });
}

const KEYS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

function buildBox(name) {
  const group = svg("g", { id: name, class: name, tabindex: 0, role: "group" }, find("svg"));
  group.setAttribute("aria-label", `${LABELS[name]}: arrow keys move it, with Shift they size it, with Alt by tenths`);
  const body = svg("rect", { class: "body" }, group);
  dragged(body, ([x0, y0]) => {
    const before = state[name];
    group.focus({ preventScroll: true });
    return ([x, y]) => set(name, moved(before, x - x0, y - y0));
  });
  for (const [corner, indices] of Object.entries(CORNERS)) {
    const handle = svg("circle", { class: `handle ${corner}`, r: 9 }, group);
    dragged(handle, () => {
      const before = state[name];
      return ([x, y]) => set(name, cornerAt(before, indices, x, y));
    });
  }
  group.addEventListener("keydown", (event) => {
    if (!(event.key in KEYS)) return;
    event.preventDefault();
    const [dx, dy] = KEYS[event.key].map((step) => step * (event.altKey ? 0.01 : 0.1));
    const box = state[name];
    if (!event.shiftKey) return set(name, moved(box, dx, dy));
    set(name, [box[0], box[1], Math.max(box[0], box[2] + dx), Math.max(box[1], box[3] + dy)]);
  });
}

function buildInput(parent, label, id, take) {
  const field = parent.appendChild(document.createElement("label"));
  field.textContent = label;
  const input = field.appendChild(document.createElement("input"));
  Object.assign(input, { id, type: "number", step: "any" });
  input.addEventListener("input", () => {
    const accepted = input.value !== "" && take(Number(input.value));
    input.setAttribute("aria-invalid", String(!accepted));
  });
}

function build() {
  find("svg").setAttribute("viewBox", `0 0 ${WIDTH * UNIT} ${HEIGHT * UNIT}`);
  for (let i = 1; i < WIDTH; i++) svg("line", { class: "grid", x1: i * UNIT, x2: i * UNIT, y1: 0, y2: HEIGHT * UNIT }, find("svg"));
  for (let i = 1; i < HEIGHT; i++) svg("line", { class: "grid", y1: i * UNIT, y2: i * UNIT, x1: 0, x2: WIDTH * UNIT }, find("svg"));
  buildBox("target");
  buildBox("pred");
  svg("g", { id: "arrows" }, find("svg"));
  for (const name of ["pred", "target"]) {
    const fields = find(`.numbers .${name}`);
    NUMBERS.forEach((number, i) =>
      buildInput(fields, number, `${name}-${number}`, (value) => {
        const box = state[name].slice();
        box[i] = value;
        if (upright(box)) set(name, box);
        return upright(box);
      }),
    );
  }
  for (const name of Object.keys(PARAMETERS)) {
    buildInput(find(".parameters"), name, name, (value) => {
      if (allowed(name, value)) state.parameters[name] = value;
      show();
      return allowed(name, value);
    });
  }
  for (const kind of Object.keys(LOSSES)) {
    const row = find("tbody").insertRow();
    row.dataset.kind = kind;
    const label = row.appendChild(document.createElement("th")).appendChild(document.createElement("label"));
    const radio = label.appendChild(document.createElement("input"));
    Object.assign(radio, { type: "radio", name: "kind", value: kind });
    label.append(` ${kind}`);
    radio.addEventListener("change", () => {
      state.kind = kind;
      show();
    });
    for (let i = 0; i < 6; i++) row.insertCell();
  }
  find("#step").addEventListener("click", () => walk(1));
  find("#walk").addEventListener("click", () => walk(50));
  find("#reset").addEventListener("click", () => {
    state = read("");
    show();
  });
  window.addEventListener("hashchange", () => {
    state = read(location.hash);
    show();
  });
}

function walk(steps) {
  const { loss, gradient } = evaluate(state.kind, state.pred, state.target, state.parameters);
  const rate = 0.1 * (2 - geometry(state.pred, state.target).iou);
  const box = state.pred.map((value, i) => value - rate * gradient[i]);
  state.pred = [box[0], box[1], Math.max(box[0], box[2]), Math.max(box[1], box[3])];
  show();
  if (steps > 1 && loss > 0.001) requestAnimationFrame(() => walk(steps - 1));
}

function showBox(name) {
  const [x1, y1, x2, y2] = state[name].map((value) => value * UNIT);
  const least = SMALLEST * UNIT;
  const group = find(`#${name}`);
  const place = { x: x1, y: y1, width: Math.max(x2 - x1, least), height: Math.max(y2 - y1, least) };
  for (const [key, value] of Object.entries(place)) group.querySelector(".body").setAttribute(key, value);
  const corners = [x1, y1, x2, y2];
  for (const [corner, [i, j]] of Object.entries(CORNERS)) {
    const handle = group.querySelector(`.${corner}`);
    handle.setAttribute("cx", corners[i]);
    handle.setAttribute("cy", corners[j]);
  }
  NUMBERS.forEach((number, i) => write(find(`#${name}-${number}`), rounded(state[name][i])));
}

function write(input, value) {
  if (document.activeElement !== input) {
    input.value = value;
    input.removeAttribute("aria-invalid");
  }
}

// On the middle of each side, the way gradient descent moves it; the largest derivative is 1.5 units long.
function showArrows(gradient) {
  const group = find("#arrows");
  group.replaceChildren();
  const [x1, y1, x2, y2] = state.pred;
  const middles = [[x1, (y1 + y2) / 2], [(x1 + x2) / 2, y1], [x2, (y1 + y2) / 2], [(x1 + x2) / 2, y2]];
  const strongest = Math.max(...gradient.map(Math.abs));
  gradient.forEach((derivative, i) => {
    if (Math.abs(derivative) < 1e-9) return;
    const length = -1.5 * Math.sign(derivative) * Math.sqrt(Math.abs(derivative) / strongest);
    const [dx, dy] = i % 2 ? [0, length] : [length, 0];
    const [x, y] = middles[i];
    const at = { x1: x * UNIT, y1: y * UNIT, x2: (x + dx) * UNIT, y2: (y + dy) * UNIT };
    svg("line", { ...at, class: "arrow", "marker-end": "url(#head)" }, group);
  });
}

function show() {
  showBox("target");
  showBox("pred");
  for (const [name, value] of Object.entries(state.parameters)) write(find(`#${name}`), value);
  for (const row of find("tbody").rows) {
    const kind = row.dataset.kind;
    const { loss, overlap, terms, gradient } = evaluate(kind, state.pred, state.target, state.parameters);
    const words = Object.entries(terms).map(([name, value]) => `${name} = ${value.toFixed(4)}`);
    row.cells[1].textContent = shown(loss);
    row.cells[2].textContent = [`1 − ${overlap.toFixed(4)}`, ...words].join(" + ");
    gradient.forEach((derivative, i) => (row.cells[3 + i].textContent = shown(derivative)));
    row.classList.toggle("chosen", kind === state.kind);
    row.querySelector("input").checked = kind === state.kind;
    if (kind === state.kind) {
      showArrows(gradient);
      find("output").textContent = `${kind}: loss ${loss.toFixed(4)}, IoU ${geometry(state.pred, state.target).iou.toFixed(4)}`;
    }
  }
  history.replaceState(null, "", link());
}

build();
show();
