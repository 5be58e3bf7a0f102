// Several models on one image: what each finds, side by side.

import { json } from "./net.js";
import { counted, css, paint, sceneOf } from "./stage.js";

const WIDTH = 480; // of the drawings, in pixels of the page
const MOST_CHIPS = 6; // categories that are named
const find = (id) => document.getElementById(id);
const made = (tag, name = "", text = "") => Object.assign(document.createElement(tag), { className: name, textContent: text });

export class Beside {
  /** `choose` is called with the image as the chosen model saw it. */
  constructor(choose) {
    this.choose = choose;
    this.cells = [];
    find("compare").addEventListener("click", () => this.compare());
  }

  /** Forgets the image. */
  clear() {
    this.cells = [];
    this.turn = {};
    find("beside-list").replaceChildren();
    find("compare").hidden = false;
  }

  /** What is shown now: { image, bitmap, task, models, looks }. */
  async follow(now) {
    const task = this.now?.task;
    this.now = now;
    const names = now.models.map(({ name }) => name);
    find("beside-lead").textContent = this.cells.length
      ? "Each model with its own thresholds. Click one to look at it closely."
      : `The same image with ${names.slice(0, -1).join(", ")} and ${names.at(-1)}.`;
    for (const cell of this.cells) this.mark(cell);
    if (task !== now.task) for (const cell of this.cells) await this.fill(cell);
  }

  /** Asks one model after the other; what was seen already is asked for its result only. */
  async compare() {
    find("compare").hidden = true;
    const turn = (this.turn = {});
    this.cells = this.now.models.map((model) => this.cell(model));
    find("beside-list").replaceChildren(...this.cells.map(({ item }) => item));
    this.follow(this.now);
    for (const cell of this.cells) {
      await this.fill(cell);
      if (this.turn !== turn) return;
    }
  }

  cell(model) {
    const item = document.createElement("li"), button = document.createElement("button"), told = made("p", "told");
    const cell = { model, item, button, facts: made("span", "quiet", "waits …"), chips: made("div", "summary"), image: null };
    button.type = "button";
    button.append(made("div", "wheel"));
    button.setAttribute("aria-label", `Look at the result of ${model.name}`);
    button.addEventListener("click", () => cell.image && this.choose(cell.image));
    told.append(made("b", "", model.name), cell.facts);
    item.append(button, told, cell.chips);
    return cell;
  }

  mark({ model, button }) {
    button.setAttribute("aria-pressed", String(model.name === this.now.image.model));
  }

  async fill(cell) {
    const { model } = cell, now = this.now, turn = this.turn;
    try {
      if (!cell.image) cell.image = model.name === now.image.model ? now.image : await this.saw(model, now.image);
      const task = model.tasks.includes(now.task) ? now.task : model.task;
      const found = await json(`page/images/${cell.image.id}/result?${new URLSearchParams({ task })}`);
      const scene = await sceneOf(found, now.bitmap, this.now.looks);
      if (this.turn !== turn || this.now.task !== now.task) return;
      cell.scene = scene;
      cell.facts.textContent = `${counted(found.segments, scene.boxes)} · ${task}`;
      this.name(cell);
      this.draw(cell);
    } catch (error) {
      cell.button.replaceChildren();
      cell.facts.textContent = error.message;
    }
  }

  saw(model, image) {
    const body = new FormData();
    body.append("model", model.name);
    return json(`page/images/${image.id}/model`, { method: "POST", body });
  }

  /** The categories, the most frequent first. */
  name({ scene, chips }) {
    const groups = new Map();
    for (const one of scene.segments) groups.set(one.category, [...(groups.get(one.category) ?? []), one]);
    const order = [...groups].sort(([, one], [, other]) => other.length - one.length);
    const rest = order.length - MOST_CHIPS;
    chips.replaceChildren(
      ...order.slice(0, MOST_CHIPS).map(([category, members]) => {
        const chip = made("span", "chip"), mark = document.createElement("i");
        mark.style.setProperty("--mark", css(members[0].color));
        chip.append(mark, members.length > 1 ? `${category} × ${members.length}` : category);
        return chip;
      }),
      ...(rest > 0 ? [made("span", "chip", `and ${rest} more`)] : []),
    );
  }

  draw({ scene, button }) {
    const ratio = devicePixelRatio || 1, scale = (WIDTH * ratio) / scene.width;
    const canvas = Object.assign(document.createElement("canvas"), { width: WIDTH * ratio, height: Math.round(scene.height * scale) });
    paint(canvas.getContext("2d"), scene, scale, ratio);
    button.replaceChildren(canvas);
  }

  /** Draws again with another opacity, outlines or labels. */
  look(looks) {
    if (this.now) this.now.looks = looks;
    for (const cell of this.cells.filter(({ scene }) => scene)) {
      Object.assign(cell.scene, looks);
      this.draw(cell);
    }
  }
}
