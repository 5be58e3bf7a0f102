// Segments as paths along the edges of their pixels, with the corners rounded off.

const RIGHT = 0, DOWN = 1, LEFT = 2, UP = 3; // each a right turn after the one before
const STEP_X = [1, 0, -1, 0], STEP_Y = [0, 1, 0, -1];

/** A Path2D per segment id, in pixels of the image. The segment lies to the right of every edge. */
export function outlines(layers, width, height) {
  const edges = new Map(); // id -> Map(corner -> bits of the directions that leave it)
  for (const layer of layers) collect(edges, layer, width, height);
  const paths = new Map();
  for (const [id, leaving] of edges) paths.set(id, joined(leaving, width + 1));
  return paths;
}

function collect(edges, layer, width, height) {
  const across = width + 1;
  for (let y = 0, at = 0; y < height; y++) {
    for (let x = 0; x < width; x++, at++) {
      const id = layer[at];
      if (!id) continue;
      const top = y === 0 || layer[at - width] !== id, bottom = y === height - 1 || layer[at + width] !== id;
      const left = x === 0 || layer[at - 1] !== id, right = x === width - 1 || layer[at + 1] !== id;
      if (!(top || bottom || left || right)) continue;
      let leaving = edges.get(id);
      if (!leaving) edges.set(id, (leaving = new Map()));
      const corner = y * across + x;
      if (top) add(leaving, corner, RIGHT);
      if (right) add(leaving, corner + 1, DOWN);
      if (bottom) add(leaving, corner + across + 1, LEFT);
      if (left) add(leaving, corner + across, UP);
    }
  }
}

function add(leaving, corner, direction) {
  leaving.set(corner, (leaving.get(corner) ?? 0) | (1 << direction));
}

function joined(leaving, across) {
  const path = new Path2D();
  const moves = [1, across, -1, -across];
  for (const first of leaving.keys()) {
    while (leaving.get(first)) ring(path, leaving, first, moves, across);
  }
  return path;
}

/** One closed ring: through the middles of the edges, with each corner as the control point of a curve. */
function ring(path, leaving, first, moves, across) {
  const corners = [], directions = [];
  let corner = first, direction = LEFT;
  do {
    const bits = leaving.get(corner);
    if (!bits) break;
    direction = [direction + 1, direction, direction + 3].map((turn) => turn % 4).find((turn) => bits & (1 << turn)) ?? Math.log2(bits & -bits);
    leaving.set(corner, bits & ~(1 << direction));
    corners.push(corner);
    directions.push(direction);
    corner += moves[direction];
  } while (corner !== first);
  const middle = (index) => {
    const at = corners[index], turn = directions[index];
    return [(at % across) + STEP_X[turn] / 2, Math.floor(at / across) + STEP_Y[turn] / 2];
  };
  path.moveTo(...middle(0));
  for (let index = 1; index <= corners.length; index++) {
    const at = index % corners.length;
    if (directions[at] === directions[index - 1]) {
      if (directions[at] !== directions[(index + 1) % corners.length]) path.lineTo(...middle(at));
    } else {
      path.quadraticCurveTo(corners[at] % across, Math.floor(corners[at] / across), ...middle(at));
    }
  }
  path.closePath();
}
