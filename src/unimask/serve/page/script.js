// The page: what the user does, and what is asked of the server. An image is sent once; results about it
// are read again for every task and threshold, and everything that is only looks happens here.

import { Beside } from "./beside.js";
import { Inside } from "./inside.js";
import { blob, json, onTokenWanted, request } from "./net.js";
import { counted, css, sceneOf, Stage } from "./stage.js";

const find = (id) => document.getElementById(id);
const TASKS = ["panoptic", "instance", "semantic", "detection"];
const THEMES = [["", "as the system", "◐"], ["light", "light", "☀"], ["dark", "dark", "☾"]];
const percent = (value) => `${Math.round(value * 100)} %`;
const exact = (value) => `${(value * 100).toFixed(1)} %`;
const capital = (text) => text[0].toUpperCase() + text.slice(1);
const state = { models: [], limits: {}, formats: {}, image: null, bitmap: null, task: "", thresholds: {}, scene: null, pending: null };

const stage = new Stage(find("view"), find("glow"), find("stage"));
const inside = new Inside(fail);
const beside = new Beside((image) => trying(() => arrive(image)));

// what is said

function fail(sentence) {
  find("error-text").textContent = sentence;
  find("error").hidden = false;
}

function say(sentence) {
  find("status").textContent = sentence;
}

function wait(text) {
  find("busy").hidden = !text;
  find("busy-text").textContent = text;
  find("stage").setAttribute("aria-busy", String(Boolean(text)));
  if (text) say(text);
}

/** Runs something that may fail; then the sentence is on the page. */
async function trying(work) {
  try {
    return await work();
  } catch (error) {
    if (error.name !== "AbortError") fail(error.message);
  }
}

const model = () => state.models.find(({ name }) => name === (state.image?.model ?? find("model").value)) ?? state.models[0];

// an image comes

async function open(file) {
  if (!file) return;
  find("error").hidden = true;
  const most = state.limits.bytes;
  if (most && file.size > most) return fail(`The file has ${(file.size / 2 ** 20).toFixed(1)} MiB, and at most ${most / 2 ** 20} MiB are taken.`);
  const before = find("start").hidden;
  wait("Looking at the image …");
  if (!before) await preview(file);
  beside.clear();
  const body = new FormData();
  body.append("image", file, file.name || "pasted.png");
  body.append("model", find("model").value);
  const done = await trying(async () => arrive(await json("page/images", { method: "POST", body })));
  wait("");
  if (!done && !before) leave();
}

/** The local image, while the model works; formats that the browser does not know wait unseen. */
async function preview(file) {
  enter();
  try {
    const bitmap = await createImageBitmap(file);
    stage.show({ bitmap, width: bitmap.width, height: bitmap.height, segments: [], paths: new Map(), layers: [], opacity: 0 });
  } catch {
    stage.scene = null;
  }
}

async function arrive(image) {
  state.image = image;
  state.bitmap = await createImageBitmap(await blob(`page/images/${image.id}/image.png`));
  state.thresholds = structuredClone(model().thresholds);
  find("model").value = image.model;
  if (!model().tasks.includes(state.task)) state.task = model().task;
  find("report").hidden = !model().report;
  if (model().report) find("report").href = model().report;
  enter();
  find("side").hidden = find("bar").hidden = find("keys").hidden = find("inside").hidden = false;
  find("what").textContent = image.name;
  find("beside").hidden = state.models.length < 2;
  offerTasks();
  await ask();
  return true;
}

function enter() {
  find("start").hidden = true;
  find("stage").hidden = find("again").hidden = false;
}

function leave() {
  state.image = null;
  stage.scene = null;
  find("start").hidden = false;
  for (const id of ["stage", "again", "side", "bar", "keys", "inside", "beside", "report"]) find(id).hidden = true;
  find("what").textContent = "An image becomes segments";
  find("file").value = "";
  find("choose").focus();
}

// the result

function question() {
  const own = state.thresholds[state.task] ?? {};
  return { task: state.task, ...own };
}

/** Reads the result of the task with its thresholds; only the latest question counts. */
async function ask() {
  state.pending?.abort();
  const pending = (state.pending = new AbortController());
  const asked = question();
  await trying(async () => {
    const found = await json(`page/images/${state.image.id}/result?${new URLSearchParams(asked)}`, { signal: pending.signal });
    await receive(found, asked);
    await beside.follow({ image: state.image, bitmap: state.bitmap, task: state.task, models: state.models, looks: looks() });
  });
  if (state.pending === pending) state.pending = null;
}

async function receive(found, asked) {
  const { width, height } = found;
  state.scene = await sceneOf(found, state.bitmap, looks());
  stage.lit = 0;
  stage.show(state.scene);
  list();
  sliders();
  offerFormats();
  follow(0, asked);
  const tiles = state.image.views > 1 ? [`seen in ${state.image.views} tiles`] : [];
  find("facts").textContent = [`${width} × ${height}`, ...tiles, ...state.image.notes].join(" · ");
  say(`${state.task}: ${counted(found.segments, state.scene.boxes)}`);
}

/** Lets "how it saw it" follow a segment; without one the surest large thing. */
function follow(id, asked = question()) {
  const { segments } = state.scene;
  const chosen = segments.find((one) => one.id === id) ?? [...segments].sort((one, other) => other.thing - one.thing || other.area - one.area)[0];
  const none = segments.length ? "" : "Nothing was found, so there is no query to watch.";
  inside.follow(chosen && { image: state.image, bitmap: state.bitmap, question: asked, segment: chosen }, state.image.layers_reason || none);
}

function looks() {
  return { opacity: Number(find("opacity").value), outlines: find("outlines").checked, labels: find("labels").checked };
}

// tasks, thresholds

function offerTasks() {
  const offered = model();
  find("tasks").replaceChildren(
    find("tasks").firstElementChild,
    ...TASKS.filter((task) => offered.tasks.includes(task)).map((task) => {
      const label = document.createElement("label"), input = document.createElement("input"), text = document.createElement("span");
      Object.assign(input, { type: "radio", name: "task", value: task, checked: task === state.task });
      text.textContent = capital(task);
      input.addEventListener("change", () => {
        state.task = task;
        offerFormats();
        ask();
      });
      label.append(input, text);
      return label;
    }),
  );
  find("tasks-off").hidden = TASKS.every((task) => offered.tasks.includes(task));
  find("tasks-off").textContent = whyOff(offered.reasons);
}

/** Which tasks a model does not have, and why; those of one reason together. */
function whyOff(reasons) {
  const groups = new Map();
  for (const task of TASKS.filter((one) => one in reasons)) groups.set(reasons[task], [...(groups.get(reasons[task]) ?? []), task]);
  return [...groups].map(([reason, tasks]) => {
    const last = tasks.at(-1), named = tasks.length > 1 ? `${tasks.slice(0, -1).join(", ")} and ${last} are` : `${last} is`;
    return `${capital(named)} off: ${reason[0].toLowerCase()}${reason.slice(1)}`;
  }).join(" ");
}

function sliders() {
  const own = state.thresholds[state.task] ?? {};
  for (const name of ["score", "overlap"]) {
    find(`${name}-field`).hidden = !(name in own);
    if (name in own) show(name, own[name]);
  }
  find("no-thresholds").hidden = Object.keys(own).length > 0;
}

function show(name, value) {
  find(name).value = value;
  find(`${name}-value`).textContent = percent(value);
  find(name).setAttribute("aria-valuetext", percent(value));
}

/** The list and the image answer at once; the exact result follows. */
function threshold(name) {
  const value = Number(find(name).value);
  state.thresholds[state.task][name] = value;
  show(name, value);
  if (name === "score" && state.scene) {
    state.scene.segments = state.scene.all.filter(({ score }) => score >= value);
    if (!state.scene.segments.some(({ id }) => id === state.scene.alone)) state.scene.alone = 0;
    stage.draw();
    list();
  }
  clearTimeout(state.timer);
  state.timer = setTimeout(ask, 40);
}

// the list

function list() {
  const { segments } = state.scene;
  find("list-title").textContent = counted(segments, state.scene.boxes);
  const groups = new Map();
  for (const one of segments) groups.set(one.category, [...(groups.get(one.category) ?? []), one]);
  find("summary").replaceChildren(...[...groups].map(([name, members]) => {
    const chip = document.createElement("span"), mark = document.createElement("i");
    chip.className = "chip";
    mark.style.setProperty("--mark", css(members[0].color));
    chip.append(mark, members.length > 1 ? `${name} × ${members.length}` : name);
    return chip;
  }));
  find("list").replaceChildren(...segments.map(row));
  if (!segments.length) {
    const none = document.createElement("li");
    none.className = "none";
    none.textContent = "Nothing is above this threshold. Move the slider to the left.";
    find("list").append(none);
  }
  find("all").hidden = !state.scene.alone;
}

function row(segment) {
  const item = document.createElement("li"), button = document.createElement("button");
  const part = (name, text = "") => Object.assign(document.createElement("span"), { className: name, textContent: text });
  const mark = document.createElement("i"), meter = part("meter"), bar = document.createElement("b");
  button.type = "button";
  button.className = "row";
  button.dataset.id = segment.id;
  button.style.setProperty("--mark", css(segment.color));
  button.setAttribute("aria-pressed", String(state.scene.alone === segment.id));
  button.setAttribute("aria-label", `${segment.category} ${segment.id}, score ${exact(segment.score)}, ${Math.round(segment.area)} pixels`);
  bar.style.width = percent(segment.score).replace(" ", "");
  meter.append(bar);
  button.append(mark, part("number", segment.id), part("name", segment.category), meter, part("score", exact(segment.score)), part("area", area(segment.area)));
  button.addEventListener("pointerenter", () => light(segment.id));
  button.addEventListener("pointerleave", () => light(0));
  button.addEventListener("focus", () => light(segment.id));
  button.addEventListener("blur", () => light(0));
  button.addEventListener("click", () => isolate(segment.id));
  item.append(button);
  return item;
}

const area = (value) => (value < 10000 ? `${Math.round(value)} px` : value < 1e6 ? `${(value / 1000).toFixed(value < 1e5 ? 1 : 0)}k px` : `${(value / 1e6).toFixed(1)}M px`);

// one segment

/** Lights up a segment in the image and in the list; 0: none. */
function light(id, place = null) {
  stage.light(id);
  for (const lit of find("list").querySelectorAll(".lit")) lit.classList.remove("lit");
  const button = find("list").querySelector(`[data-id="${id}"]`);
  button?.classList.add("lit");
  if (button && place) reveal(button);
  tip(id, place);
}

/** Scrolls the list, and nothing else, until a row shows. */
function reveal(button) {
  const box = find("list"), top = button.offsetTop - box.offsetTop;
  if (top < box.scrollTop) box.scrollTop = top;
  else if (top + button.offsetHeight > box.scrollTop + box.clientHeight) box.scrollTop = top + button.offsetHeight - box.clientHeight;
}

function tip(id, place) {
  const segment = state.scene?.segments.find((one) => one.id === id);
  find("tip").hidden = !(segment && place);
  if (!segment || !place) return;
  find("tip-name").textContent = segment.category;
  find("tip-facts").textContent = `${exact(segment.score)} · ${area(segment.area)}`;
  find("tip").style.setProperty("--mark", css(segment.color));
  const frame = find("stage").getBoundingClientRect(), own = find("tip").getBoundingClientRect();
  const left = Math.min(Math.max(6, place[0] - frame.left + 14), frame.width - own.width - 6);
  const top = place[1] - frame.top + 18 + own.height > frame.height ? place[1] - frame.top - own.height - 12 : place[1] - frame.top + 18;
  find("tip").style.transform = `translate(${Math.round(left)}px, ${Math.round(top)}px)`;
}

function isolate(id) {
  if (!state.scene) return;
  state.scene.alone = state.scene.alone === id ? 0 : id;
  stage.draw();
  for (const button of find("list").querySelectorAll(".row")) button.setAttribute("aria-pressed", String(Number(button.dataset.id) === state.scene.alone));
  find("all").hidden = !state.scene.alone;
  if (state.scene.alone) follow(id);
  const one = state.scene.segments.find((segment) => segment.id === state.scene.alone);
  say(one ? `Only ${one.category} ${one.id} is shown` : "All segments are shown");
}

function step(by) {
  const { segments } = state.scene;
  if (!segments.length) return;
  const at = segments.findIndex(({ id }) => id === stage.lit);
  const next = segments[(at + by + segments.length) % segments.length] ?? segments[0];
  light(next.id);
  const button = find("list").querySelector(`[data-id="${next.id}"]`);
  reveal(button);
  say(button.getAttribute("aria-label"));
}

// downloads

function save(content, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(content);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  say(`Saved ${link.download}`);
}

/** Those that have room for results of the task; the chosen one stays chosen where it can. */
function offerFormats() {
  const offered = state.formats[state.task] ?? [], chosen = find("format").value;
  find("format").replaceChildren(...offered.map(({ name }) => new Option(name, name, false, name === chosen)));
  explainFormat();
}

function explainFormat() {
  const one = (state.formats[state.task] ?? []).find(({ name }) => name === find("format").value);
  find("format-help").textContent = one?.help.replaceAll("NAME", state.image.name) ?? "";
}

/** Saves the result in the chosen format, under the name that the server gives the file. */
async function saveFormat() {
  const answer = await request(`page/images/${state.image.id}/files/${find("format").value}?${new URLSearchParams(question())}`);
  const name = decodeURIComponent(answer.headers.get("Content-Disposition").split("''")[1]);
  save(await answer.blob(), name);
}

// wiring

find("choose").addEventListener("click", () => find("file").click());
find("file").addEventListener("change", () => open(find("file").files[0]));
find("again").addEventListener("click", leave);
find("error-close").addEventListener("click", () => (find("error").hidden = true));
find("all").addEventListener("click", () => isolate(state.scene.alone));
for (const name of ["score", "overlap"]) find(name).addEventListener("input", () => threshold(name));
for (const name of ["opacity", "outlines", "labels"]) {
  find(name).addEventListener("input", () => {
    find("opacity-value").textContent = percent(Number(find("opacity").value));
    if (!state.scene) return;
    Object.assign(state.scene, looks());
    stage.draw();
    beside.look(looks());
  });
}
find("save-overlay").addEventListener("click", () => trying(async () => save(await stage.picture(), `${state.image.name}.overlay.png`)));
find("save-format").addEventListener("click", () => trying(saveFormat));
find("format").addEventListener("change", explainFormat);

find("view").addEventListener("pointermove", (event) => {
  if (state.scene && find("busy").hidden) light(stage.at(stage.pixel(event)), [event.clientX, event.clientY]);
});
find("view").addEventListener("pointerleave", () => light(0));
find("view").addEventListener("click", (event) => {
  if (!state.scene) return;
  const id = stage.at(stage.pixel(event));
  if (id) isolate(id);
  else if (state.scene.alone) isolate(state.scene.alone);
});
find("stage").addEventListener("keydown", (event) => {
  if (!state.scene) return;
  const by = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
  if (by) step(by);
  else if ((event.key === "Enter" || event.key === " ") && stage.lit) isolate(stage.lit);
  else return;
  event.preventDefault();
});
addEventListener("keydown", (event) => {
  if (event.key === "Escape" && state.scene?.alone) isolate(state.scene.alone);
});

for (const kind of ["dragover", "dragenter"]) {
  addEventListener(kind, (event) => {
    event.preventDefault();
    document.body.classList.add("dragging");
  });
}
addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) document.body.classList.remove("dragging");
});
addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("dragging");
  const file = event.dataTransfer.files[0];
  if (file) open(file);
  else fail("That was no file. Save the image and drop the file here.");
});
addEventListener("paste", (event) => {
  const file = [...event.clipboardData.files][0];
  if (file) open(file);
});

find("model").addEventListener("change", () => {
  if (!state.image) return;
  const body = new FormData();
  body.append("model", find("model").value);
  wait("Another model looks at the image …");
  trying(async () => arrive(await json(`page/images/${state.image.id}/model`, { method: "POST", body }))).finally(() => wait(""));
});

let theme = Math.max(0, THEMES.findIndex(([name]) => name === localStorage.getItem("unimask-theme")));
function setTheme() {
  const [name, words, sign] = THEMES[theme];
  if (name) document.documentElement.dataset.theme = name;
  else delete document.documentElement.dataset.theme;
  localStorage.setItem("unimask-theme", name);
  find("theme").setAttribute("aria-label", `Colours: ${words}`);
  find("theme").firstElementChild.textContent = sign;
}
find("theme").addEventListener("click", () => {
  theme = (theme + 1) % THEMES.length;
  setTheme();
});
setTheme();

onTokenWanted(
  () =>
    new Promise((done) => {
      const dialog = find("token-dialog");
      if (!dialog.open) dialog.showModal();
      dialog.addEventListener("close", () => done(find("token").value.trim()), { once: true });
    }),
);

async function begin() {
  find("opacity-value").textContent = percent(Number(find("opacity").value));
  const { models, limits } = await json("v1/models");
  Object.assign(state, { models, limits, formats: await json("page/formats") });
  find("model").replaceChildren(...models.map(({ name }) => new Option(name)));
  find("model-field").hidden = models.length < 2;
  find("allowed").textContent = `PNG, JPEG, WebP, TIFF and others, up to ${limits.bytes / 2 ** 20} MiB and ${(limits.pixels / 1e6).toFixed(0)} megapixels`;
  find("footer").textContent = `${models.length > 1 ? "Models" : "Model"}: ${models.map(({ name, licence }) => `${name}, licence ${licence}`).join("; ")}. Images stay on the machine that serves this page.`;
  const { examples } = await json("page/examples");
  find("examples").hidden = !examples.length;
  for (const name of examples) await example(name);
}

async function example(name) {
  const content = await blob(`page/examples/${encodeURIComponent(name)}`);
  const item = document.createElement("li"), button = document.createElement("button"), text = document.createElement("span");
  const image = Object.assign(document.createElement("img"), { src: URL.createObjectURL(content), alt: "" });
  button.type = "button";
  text.textContent = name;
  button.append(image, text);
  button.addEventListener("click", () => open(new File([content], name, { type: content.type })));
  item.append(button);
  find("example-list").append(item);
}

trying(begin);
