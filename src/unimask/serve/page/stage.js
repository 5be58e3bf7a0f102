// The image with its segments: drawing, and what lies under the pointer.

import { unpack } from "./net.js";
import { outlines } from "./outlines.js";

const HEIGHT_SHARE = 0.72; // of the window, at most
const STUFF = 0.7; // of the opacity of things
const TINT = 0.3; // of the opacity: the inside of boxes
const MOST_NAMES = 8; // of one category; more get numbers
const FONT = "600 {}px system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif";

export const counted = (found, boxes) => `${found.length} ${boxes ? "box" : "segment"}${found.length === 1 ? "" : boxes ? "es" : "s"}`;
export const css = ([red, green, blue], alpha = 1) => `rgb(${red} ${green} ${blue} / ${alpha})`;
const lighter = (color) => color.map((value) => Math.round(value + (255 - value) * 0.35));
const bright = ([red, green, blue]) => 0.299 * red + 0.587 * green + 0.114 * blue > 150;

/** What is drawn: `scene` = { bitmap, width, height, segments, paths, boxes, opacity, outlines, labels, alone }. */
export class Stage {
  constructor(view, glow, frame) {
    this.view = view;
    this.glow = glow;
    this.frame = frame;
    this.scene = null;
    this.lit = 0;
    new ResizeObserver(() => this.fit()).observe(frame);
  }

  show(scene) {
    this.scene = scene;
    this.fit();
  }

  /** The largest size that fits, sharp on every screen. */
  fit() {
    if (!this.scene || this.frame.hidden) return;
    const padding = parseFloat(getComputedStyle(this.frame).paddingLeft) * 2;
    const room = [this.frame.clientWidth - padding, Math.max(260, innerHeight * HEIGHT_SHARE)];
    const { width, height } = this.scene;
    this.scale = Math.min(room[0] / width, room[1] / height);
    const ratio = devicePixelRatio || 1;
    for (const canvas of [this.view, this.glow]) {
      canvas.style.width = `${Math.round(width * this.scale)}px`;
      canvas.style.height = `${Math.round(height * this.scale)}px`;
      canvas.width = Math.round(width * this.scale * ratio);
      canvas.height = Math.round(height * this.scale * ratio);
    }
    this.draw();
  }

  draw() {
    if (!this.scene) return;
    paint(this.view.getContext("2d"), this.scene, this.view.width / this.scene.width, devicePixelRatio || 1);
    this.light(this.lit);
  }

  /** Lights up one segment; 0: none. */
  light(id) {
    this.lit = id;
    const pen = this.glow.getContext("2d");
    pen.setTransform(1, 0, 0, 1, 0, 0);
    pen.clearRect(0, 0, this.glow.width, this.glow.height);
    const segment = this.scene?.segments.find((one) => one.id === id);
    if (!segment) return;
    const scale = this.glow.width / this.scene.width, ratio = devicePixelRatio || 1;
    const path = shape(this.scene, segment);
    pen.setTransform(scale, 0, 0, scale, 0, 0);
    pen.fillStyle = css(lighter(segment.color), 0.35);
    pen.fill(path);
    pen.lineJoin = "round";
    for (const [color, width] of [["rgb(0 0 0 / 55%)", 5], ["#fff", 2.4]]) {
      pen.strokeStyle = color;
      pen.lineWidth = (width * ratio) / scale;
      pen.stroke(path);
    }
  }

  /** The image's pixel (x, y) under the pointer. */
  pixel(event) {
    const place = this.view.getBoundingClientRect();
    return [
      Math.floor(((event.clientX - place.left) / place.width) * this.scene.width),
      Math.floor(((event.clientY - place.top) / place.height) * this.scene.height),
    ];
  }

  /** The segment at a pixel: of several the smallest; 0: none. */
  at([x, y]) {
    const { width, height, segments, layers, boxes, alone } = this.scene;
    if (x < 0 || y < 0 || x >= width || y >= height) return 0;
    const ids = boxes
      ? segments.filter(({ bbox: [left, top, wide, high] }) => x >= left && y >= top && x < left + wide && y < top + high).map(({ id }) => id)
      : layers.map((layer) => layer[y * width + x]).filter(Boolean);
    const found = segments.filter(({ id }) => ids.includes(id) && (!alone || id === alone));
    return found.sort((one, other) => one.area - other.area)[0]?.id ?? 0;
  }

  /** The scene as a PNG, as it is shown, at least 1200 pixels long. */
  async picture() {
    const { width, height } = this.scene;
    const scale = Math.max(1, Math.ceil(1200 / Math.max(width, height)));
    const canvas = document.createElement("canvas");
    canvas.width = width * scale;
    canvas.height = height * scale;
    paint(canvas.getContext("2d"), this.scene, scale, Math.max(1, canvas.width / 900));
    return new Promise((done) => canvas.toBlob(done, "image/png"));
  }
}

/** What is drawn of a result of the server, but for how: `looks` = { opacity, outlines, labels }. */
export async function sceneOf(found, bitmap, looks) {
  const { width, height, segments } = found, size = width * height;
  const ids = found.map ? new Int16Array(await unpack(found.map)) : new Int16Array();
  const layers = Array.from({ length: found.layers }, (_, index) => ids.subarray(index * size, (index + 1) * size));
  const paths = outlines(layers, width, height);
  return { bitmap, width, height, layers, segments, all: segments, paths, boxes: found.kind === "boxes", alone: 0, ...looks };
}

function shape(scene, segment) {
  if (!scene.boxes) return scene.paths.get(segment.id) ?? new Path2D();
  const path = new Path2D();
  path.rect(...segment.bbox);
  return path;
}

export function paint(pen, scene, scale, ratio) {
  const shown = scene.alone ? scene.segments.filter(({ id }) => id === scene.alone) : scene.segments;
  pen.setTransform(scale, 0, 0, scale, 0, 0);
  pen.imageSmoothingQuality = "high";
  pen.drawImage(scene.bitmap, 0, 0, scene.width, scene.height);
  pen.lineJoin = "round";
  if (scene.alone && shown.length) dim(pen, scene, shown[0]);
  const order = [...shown].sort((one, other) => one.thing - other.thing || other.area - one.area);
  if (scene.boxes) tint(pen, scene, shown);
  else {
    for (const segment of order) {
      pen.fillStyle = css(segment.color, scene.opacity * (segment.thing ? 1 : STUFF));
      pen.fill(shape(scene, segment));
    }
  }
  if (scene.outlines) {
    for (const segment of order) {
      pen.strokeStyle = css(lighter(segment.color), segment.thing ? 0.95 : 0.4);
      pen.lineWidth = ((segment.thing ? 1.6 : 1) * ratio) / scale;
      pen.stroke(shape(scene, segment));
    }
  }
  if (scene.labels) names(pen, scene, shown, scale, ratio);
}

/** Boxes of one colour together: where many lie over one another, the image still shows. */
function tint(pen, scene, shown) {
  const paths = new Map();
  for (const box of shown) {
    const color = css(box.color, scene.opacity * TINT);
    if (!paths.has(color)) paths.set(color, new Path2D());
    paths.get(color).rect(...box.bbox);
  }
  for (const [color, path] of paths) {
    pen.fillStyle = color;
    pen.fill(path);
  }
}

/** Everything but one segment in the dark. */
function dim(pen, scene, segment) {
  const path = new Path2D();
  path.rect(0, 0, scene.width, scene.height);
  path.addPath(shape(scene, segment));
  pen.fillStyle = "rgb(0 0 0 / 62%)";
  pen.fill(path, "evenodd");
}

function names(pen, scene, shown, scale, ratio) {
  const counts = new Map();
  for (const { category } of shown) counts.set(category, (counts.get(category) ?? 0) + 1);
  pen.setTransform(1, 0, 0, 1, 0, 0);
  pen.textBaseline = "middle";
  pen.textAlign = "center";
  const taken = [];
  for (const segment of [...shown].sort((one, other) => other.area - one.area)) {
    const many = counts.get(segment.category) > MOST_NAMES;
    const size = (many ? 10.5 : 12.5) * ratio;
    pen.font = FONT.replace("{}", size);
    const text = many ? `${segment.id}` : segment.category.split(",")[0];
    const [x, y, wide, high] = segment.bbox;
    const width = pen.measureText(text).width + size * 0.9, height = size * 1.5;
    if (!scene.boxes && many && (width > wide * scale * 1.15 || height > high * scale * 1.15)) continue;
    const middle = scene.boxes ? [x * scale + width / 2, y * scale + height / 2] : segment.anchor.map((value) => (value + 0.5) * scale);
    const left = Math.min(Math.max(2, middle[0] - width / 2), scene.width * scale - width - 2);
    const above = !scene.boxes && !many && width > wide * scale * 1.1; // it would hide the segment
    const wanted = above ? (y * scale > height + 8 ? y * scale - height - 5 : (y + high) * scale + 5) : middle[1] - height / 2;
    const top = Math.min(Math.max(2, wanted), scene.height * scale - height - 2);
    if (taken.some((one) => left < one[2] && left + width > one[0] && top < one[3] && top + height > one[1])) continue;
    taken.push([left, top, left + width, top + height]);
    pen.fillStyle = css(segment.color, many ? 0.62 : 0.9);
    pen.beginPath();
    pen.roundRect(left, top, width, height, height / 2.6);
    pen.fill();
    pen.fillStyle = bright(segment.color) ? "#10181a" : "#fff";
    pen.fillText(text, left + width / 2, top + height / 2 + size * 0.05);
  }
}
