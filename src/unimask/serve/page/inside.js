// "How it saw it": where a query may attend, where it attends and what it predicts, layer by layer.

import { json, unpack } from "./net.js";
import { css } from "./stage.js";

const RAMP = [[0, 0, 4], [86, 16, 110], [187, 55, 84], [249, 140, 10], [252, 255, 164]];
const SECONDS_PER_STEP = 0.9;
const percent = (value) => (value > 0 && value < 0.01 ? "less than 1 %" : `${Math.round(value * 100)} %`);

function heat(value) {
  const place = Math.min(0.9999, value) * (RAMP.length - 1), index = Math.floor(place), part = place - index;
  return RAMP[index].map((low, channel) => low + (RAMP[index + 1][channel] - low) * part);
}

const find = (id) => document.getElementById(id);

export class Inside {
  /** `fail` is told of errors. */
  constructor(fail) {
    this.fail = fail;
    this.wanted = null;
    this.visible = false;
    this.told = null;
    this.timer = 0;
    new IntersectionObserver((entries) => {
      this.visible = entries.at(-1).isIntersecting;
      this.load();
    }).observe(find("inside"));
    find("layer").addEventListener("input", () => this.go(Number(find("layer").value)));
    find("query").addEventListener("change", () => this.choose(Number(find("query").value)));
    find("play").addEventListener("click", () => (this.timer ? this.stop() : this.play()));
  }

  /** The segment whose query is to be watched: { image, bitmap, question, segment }, or none with a reason. */
  follow(wanted, reason = "") {
    this.because(reason);
    if (!reason && wanted.image.id !== this.shown) this.told = null; // nothing to show of this image yet
    this.wanted = reason ? null : wanted;
    this.wait(!reason);
    this.query = -1;
    this.stop();
    this.load();
  }

  /** Says why nothing is shown; without a reason everything is. */
  because(reason) {
    find("inside-reason").hidden = !reason;
    find("inside-reason").textContent = reason;
    find("inside-body").hidden = find("inside-lead").hidden = find("query-field").hidden = Boolean(reason);
  }

  /** While layers are computed: a wheel, or what is there already, pale. */
  wait(waiting) {
    const nothing = waiting && !this.told;
    find("inside-wait").hidden = !nothing;
    if (nothing) find("inside-body").hidden = find("inside-lead").hidden = find("query-field").hidden = true;
    find("inside-body").classList.toggle("stale", waiting && !nothing);
    find("inside").setAttribute("aria-busy", String(waiting));
  }

  choose(query) {
    this.query = query;
    this.load(true);
  }

  async load(again = false) {
    const wanted = this.wanted;
    if (!wanted || !this.visible || (this.loaded === wanted && !again)) return;
    this.loaded = wanted;
    this.wait(true);
    this.abort?.abort();
    this.abort = new AbortController();
    try {
      const question = new URLSearchParams({ ...wanted.question, segment: wanted.segment.id, query: this.query });
      const told = await json(`page/images/${wanted.image.id}/layers?${question}`, { signal: this.abort.signal });
      for (const step of told.steps) {
        for (const name of ["mask", "visible", "attention"]) step[name].values = new Uint8Array(await unpack(step[name].data));
      }
      if (this.wanted === wanted) this.show(told, wanted);
    } catch (error) {
      if (error.name === "AbortError" || this.wanted !== wanted) return;
      this.wait(false);
      if (!this.told) this.because("The layers could not be computed.");
      this.loaded = null;
      this.fail(error.message);
    }
  }

  show(told, wanted) {
    const fresh = !this.told;
    this.told = told;
    this.shown = wanted.image.id;
    this.because("");
    this.wait(false);
    this.crop = wanted.bitmap;
    this.gain = this.brightening();
    this.color = wanted.segment.color;
    const last = told.steps.length - 1;
    find("layer").max = last;
    find("looks-name").textContent = told.masked ? "Where it may attend" : "Where it attends";
    find("hidden-legend").hidden = !told.masked;
    const select = find("query");
    select.replaceChildren(...told.queries.map(({ query, category, score }) => new Option(`${query} · ${category} ${Math.round(score * 100)} %`, query, false, query === told.query)));
    const whole = told.views === 1;
    find("inside-lead").textContent =
      `Query ${told.query} made the ${wanted.segment.category} ${wanted.segment.id}. ` +
      (told.masked ? "In each decoder layer it may attend only to the foreground of its last mask." : "In this model it may attend everywhere in each decoder layer.") +
      (whole ? "" : ` The model sees this image in ${told.views} tiles; this is the one around the segment.`) +
      (this.gain > 1.2 ? " Shown brighter than it is." : "");
    this.film();
    this.go(fresh ? last : Math.min(this.step, last));
  }

  film() {
    const { steps } = this.told;
    find("film").replaceChildren(
      ...steps.map((step, index) => {
        const button = document.createElement("button"), two = [this.drawLook, this.drawMask];
        button.type = "button";
        for (const draw of two) {
          const canvas = Object.assign(document.createElement("canvas"), { width: 132, height: 132 });
          draw.call(this, canvas, step);
          button.append(canvas);
        }
        button.append(this.title(index));
        button.addEventListener("click", () => this.go(index));
        return button;
      }),
    );
  }

  title(index) {
    const { steps } = this.told;
    const before = steps[0].stride === 0;
    if (before && index === 0) return "Before";
    return `Layer ${before ? index : index + 1}`;
  }

  go(index) {
    if (!this.told) return;
    this.step = index;
    const step = this.told.steps[index], slider = find("layer");
    slider.value = index;
    slider.setAttribute("aria-valuetext", this.title(index));
    [...find("film").children].forEach((one, at) => one.setAttribute("aria-current", String(at === index)));
    this.drawLook(find("looks"), step);
    this.drawMask(find("says"), step);
    this.tell(step, index);
  }

  tell(step, index) {
    const share = step.mask.values.reduce((sum, value) => sum + (value >= 128), 0) / step.mask.values.length;
    const everywhere = step.seen > 0.999;
    find("step-title").textContent = step.stride ? this.title(index) : "Before the first layer";
    const cells = `in cells of stride ${step.stride}`;
    find("looks-text").textContent = !step.stride ? "nothing yet" : this.told.masked ? `${percent(step.seen)} of the view, ${cells}` : cells;
    find("says-text").textContent = `${percent(share)} of the view`;
    find("step-text").textContent = !step.stride
      ? "The query has not attended to the image yet. What it predicts comes from training alone."
      : everywhere && !this.told.masked
        ? "It may attend everywhere. Bright is where its attention goes."
      : everywhere
        ? `It may attend everywhere: its last mask is empty or covers the whole view at stride ${step.stride}. Bright is where its attention goes.`
        : "It may attend only to the foreground of its last mask. Bright is where its attention goes.";
    find("looks").setAttribute("aria-label", `${find("step-title").textContent}: ${find("looks-text").textContent}`);
    find("says").setAttribute("aria-label", `Mask after it: ${find("says-text").textContent}`);
    find("classes").replaceChildren(
      ...step.classes.map(([name, value]) => {
        const item = document.createElement("li"), label = document.createElement("span"), number = document.createElement("span");
        const meter = document.createElement("span"), bar = document.createElement("b");
        label.textContent = name;
        number.textContent = percent(value);
        meter.className = "meter";
        bar.style.width = `${value * 100}%`;
        meter.append(bar);
        item.append(label, number, meter);
        return item;
      }),
    );
  }

  play() {
    const steps = this.told?.steps.length;
    if (!steps) return;
    find("play").setAttribute("aria-label", "Stop");
    find("play").firstElementChild.textContent = "■";
    this.go(0);
    this.timer = setInterval(() => (this.step + 1 < steps ? this.go(this.step + 1) : this.stop()), 1000 * SECONDS_PER_STEP);
  }

  stop() {
    clearInterval(this.timer);
    this.timer = 0;
    find("play").setAttribute("aria-label", "Play the layers");
    find("play").firstElementChild.textContent = "▶";
  }

  /** How much brighter dark views are shown, so that what lies below the colours can be seen. */
  brightening() {
    const [x, y, width, height] = this.told.window, canvas = document.createElement("canvas");
    canvas.width = canvas.height = 64;
    const pen = canvas.getContext("2d", { willReadFrequently: true });
    pen.drawImage(this.crop, x, y, width, height, 0, 0, 64, 64);
    const values = pen.getImageData(0, 0, 64, 64).data.filter((_, at) => at % 4 === 1).sort();
    return Math.min(3, Math.max(1, 200 / Math.max(1, values[Math.floor(0.98 * values.length)])));
  }

  /** The view of the image on a square canvas; gives a pen whose unit square is the model's canvas. */
  ground(canvas, light) {
    const [x, y, width, height] = this.told.window;
    const pen = canvas.getContext("2d"), side = canvas.width / Math.max(width, height);
    pen.setTransform(1, 0, 0, 1, 0, 0);
    pen.clearRect(0, 0, canvas.width, canvas.height);
    const left = (canvas.width - width * side) / 2, top = (canvas.height - height * side) / 2;
    pen.save();
    pen.beginPath();
    pen.rect(left, top, width * side, height * side);
    pen.clip();
    pen.filter = `brightness(${light * this.gain})`;
    pen.drawImage(this.crop, x, y, width, height, left, top, width * side, height * side);
    pen.filter = "none";
    return { pen, place: [left, top, width * side * this.told.extent[0], height * side * this.told.extent[1]] };
  }

  drawLook(canvas, step) {
    const { pen, place } = this.ground(canvas, step.stride ? 0.9 : 0.3);
    if (step.stride) {
      const strong = step.attention.values.map((value) => Math.sqrt(255 * value)); // one cell may take most of it
      pen.imageSmoothingEnabled = false;
      pen.drawImage(
        pixels(step.visible, (value, at) => (value ? [...heat(0.12 + 0.88 * (strong[at] / 255)), 60 + 150 * (strong[at] / 255)] : [6, 9, 11, 178])),
        ...place,
      );
      pen.imageSmoothingEnabled = true;
    }
    pen.restore();
  }

  drawMask(canvas, step) {
    const { pen, place } = this.ground(canvas, 0.8);
    const [red, green, blue] = this.color.map((value) => Math.round(value + (255 - value) * 0.25));
    pen.imageSmoothingQuality = "high";
    pen.drawImage(pixels(step.mask, (value) => [red, green, blue, value * 0.6]), ...place);
    const { rows, columns, values } = step.mask;
    pen.translate(place[0], place[1]);
    pen.scale(place[2] / columns, place[3] / rows);
    pen.lineWidth = (2 * columns) / place[2];
    pen.strokeStyle = css([255, 255, 255], 0.95);
    pen.stroke(contour(values, rows, columns, 127.5));
    pen.restore();
  }
}

/** A canvas with a pixel per cell. */
function pixels({ rows, columns, values }, color) {
  const canvas = document.createElement("canvas");
  canvas.width = columns;
  canvas.height = rows;
  const image = new ImageData(columns, rows);
  values.forEach((value, at) => image.data.set(color(value, at), at * 4));
  canvas.getContext("2d").putImageData(image, 0, 0);
  return canvas;
}

/** The line where a map crosses a level, between the middles of its cells (marching squares). */
function contour(values, rows, columns, level) {
  const path = new Path2D();
  for (let y = 0; y + 1 < rows; y++) {
    for (let x = 0; x + 1 < columns; x++) {
      const corner = [values[y * columns + x], values[y * columns + x + 1], values[(y + 1) * columns + x + 1], values[(y + 1) * columns + x]];
      const places = [[0.5, 0.5], [1.5, 0.5], [1.5, 1.5], [0.5, 1.5]], cuts = [];
      for (let side = 0; side < 4; side++) {
        const from = corner[side], to = corner[(side + 1) % 4];
        if (from < level === to < level) continue;
        const part = (level - from) / (to - from), [a, b] = [places[side], places[(side + 1) % 4]];
        cuts.push([x + a[0] + (b[0] - a[0]) * part, y + a[1] + (b[1] - a[1]) * part]);
      }
      for (let index = 0; index + 1 < cuts.length; index += 2) {
        path.moveTo(...cuts[index]);
        path.lineTo(...cuts[index + 1]);
      }
    }
  }
  return path;
}
