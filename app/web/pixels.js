// Everything that looks at all pixels of a picture: decoding, smaller sizes, tiles, differences, thumbnails, zips. Knows not in which thread.
import { zip } from "./zip.js";

const TILE = 512;
const SPOT = 48; // side of the patches among which the noisiest flat one is looked for
const SPOTS = 24; // of them a row and a column

const pictures = new Map(); // id -> [whole, half, quarter, …]
let last = 0;

// Each gives its answer, and what of it can be handed over to another thread.
export const doors = {
  // The picture's size, its levels' sizes, the smallest of them as a bitmap, and where it is flat and noisy.
  async open({ blob, deep }) {
    const levels = [await createImageBitmap(blob)];
    for (let top = levels[0]; deep && Math.max(top.width, top.height) > TILE; levels.push(top)) {
      top = drawn(top, Math.ceil(top.width / 2), Math.ceil(top.height / 2));
    }
    const id = ++last;
    pictures.set(id, levels);
    const bitmap = await createImageBitmap(levels.at(-1));
    const sizes = levels.map(({ width, height }) => ({ width, height }));
    return [{ id, sizes, bitmap, flat: deep ? flat(levels[0]) : null }, [bitmap]];
  },

  async tile({ id, level, x, y }) {
    const source = levelOf(id, level);
    const bitmap = await createImageBitmap(source, x, y, Math.min(TILE, source.width - x), Math.min(TILE, source.height - y));
    return [bitmap, [bitmap]];
  },

  // What was removed, around mid-grey, `gain` times as strong. (dx, dy): where the picture `after` lies in `before`.
  async difference({ before, after, dx, dy, level, x, y, width, height, gain }) {
    const a = read(levelOf(before, level), x, y, width, height);
    const b = read(levelOf(after, level), x - dx, y - dy, width, height);
    for (let i = 0; i < a.data.length; i += 4) {
      for (let c = i; c < i + 3; c++) a.data[c] = 128 + gain * (a.data[c] - b.data[c]);
      a.data[i + 3] = 255;
    }
    const bitmap = await createImageBitmap(a);
    return [bitmap, [bitmap]];
  },

  async thumbnail({ blob, side }) {
    const whole = await createImageBitmap(blob);
    const cut = Math.min(whole.width, whole.height);
    const [x, y] = [(whole.width - cut) / 2, (whole.height - cut) / 2];
    const bitmap = await createImageBitmap(whole, x, y, cut, cut, { resizeWidth: side, resizeHeight: side, resizeQuality: "medium" });
    const size = { width: whole.width, height: whole.height };
    whole.close();
    return [{ bitmap, ...size }, [bitmap]];
  },

  async zip({ files }) {
    return [await zip(files)];
  },

  async close({ id }) {
    pictures.get(id)?.[0].close();
    pictures.delete(id);
    return [];
  },
};

function levelOf(id, level) {
  const levels = pictures.get(id);
  if (!levels) throw new Error("closed");
  return levels[level];
}

function drawn(source, width, height) {
  const canvas = new OffscreenCanvas(width, height);
  canvas.getContext("2d").drawImage(source, 0, 0, width, height);
  return canvas;
}

function read(source, x, y, width, height) {
  const context = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
  context.drawImage(source, x, y, width, height, 0, 0, width, height);
  return context.getImageData(0, 0, width, height);
}

// The middle of the patch with most noise and least structure, where one sees best what denoising does.
function flat(picture) {
  const side = Math.min(SPOT, picture.width, picture.height);
  const middle = { x: picture.width / 2, y: picture.height / 2 };
  if (side < 16) return middle;
  let best = -Infinity;
  let found = middle;
  const columns = Math.min(SPOTS, Math.ceil(picture.width / side));
  const rows = Math.min(SPOTS, Math.ceil(picture.height / side));
  for (let row = 0; row < rows; row++) {
    for (let column = 0; column < columns; column++) {
      const x = Math.round(((picture.width - side) * (column + 0.5)) / columns);
      const y = Math.round(((picture.height - side) * (row + 0.5)) / rows);
      const score = judged(read(picture, x, y, side, side).data, side);
      if (score > best) {
        best = score;
        found = { x: x + side / 2, y: y + side / 2 };
      }
    }
  }
  return found;
}

// Noise by Immerkær's mask (1996), which no plane and few edges answer to; structure by how far means of 8x8 lie apart.
function judged(data, side) {
  const luma = new Float32Array(side * side);
  for (let i = 0; i < luma.length; i++) luma[i] = (data[4 * i] + 2 * data[4 * i + 1] + data[4 * i + 2]) / 4;
  let sum = 0;
  let total = 0;
  for (let y = 1; y < side - 1; y++) {
    for (let x = 1; x < side - 1; x++) {
      const i = y * side + x;
      const crosswise = luma[i - 1] + luma[i + 1] + luma[i - side] + luma[i + side];
      const corners = luma[i - side - 1] + luma[i - side + 1] + luma[i + side - 1] + luma[i + side + 1];
      sum += Math.abs(4 * luma[i] - 2 * crosswise + corners);
      total += luma[i];
    }
  }
  const count = (side - 2) ** 2;
  const noise = (Math.sqrt(Math.PI / 2) / 6) * (sum / count);
  const mean = total / count;
  const means = [];
  for (let y = 0; y + 8 <= side; y += 8) {
    for (let x = 0; x + 8 <= side; x += 8) {
      let block = 0;
      for (let i = 0; i < 64; i++) block += luma[(y + (i >> 3)) * side + x + (i & 7)];
      means.push(block / 64);
    }
  }
  const middle = means.reduce((a, b) => a + b) / means.length;
  const spread = means.reduce((a, b) => a + (b - middle) ** 2, 0) / means.length;
  const structure = Math.sqrt(Math.max(0, spread - (noise / 8) ** 2)); // what noise alone leaves in means of 64
  const seen = mean < 20 || mean > 235 ? 0.1 : 1; // what is nearly black or white shows little noise
  return (seen * noise) / (structure + 2);
}
