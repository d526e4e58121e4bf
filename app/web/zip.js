// A zip of files as they are, not packed: pictures are packed already.

const CRC = Uint32Array.from({ length: 256 }, (_, byte) => {
  let c = byte;
  for (let bit = 0; bit < 8; bit++) c = c & 1 ? 0xedb88320 ^ (c >>> 1) : c >>> 1;
  return c >>> 0;
});

export function crc32(bytes) {
  let c = 0xffffffff;
  for (let i = 0; i < bytes.length; i++) c = CRC[(c ^ bytes[i]) & 255] ^ (c >>> 8);
  return (c ^ 0xffffffff) >>> 0;
}

// A second "cat.png" becomes "cat-2.png".
export function distinct(names) {
  const taken = new Set();
  return names.map((name) => {
    const dot = name.lastIndexOf(".") > 0 ? name.lastIndexOf(".") : name.length;
    let free = name;
    for (let n = 2; taken.has(free); n++) free = `${name.slice(0, dot)}-${n}${name.slice(dot)}`;
    taken.add(free);
    return free;
  });
}

// files: [{name, blob}] -> Blob
export async function zip(files, now = new Date()) {
  const time = (now.getHours() << 11) | (now.getMinutes() << 5) | (now.getSeconds() >> 1);
  const date = ((now.getFullYear() - 1980) << 9) | ((now.getMonth() + 1) << 5) | now.getDate();
  const names = distinct(files.map((file) => file.name));
  const parts = [];
  const directory = [];
  let offset = 0;
  for (const [i, { blob }] of files.entries()) {
    const name = new TextEncoder().encode(names[i]);
    const crc = crc32(new Uint8Array(await blob.arrayBuffer()));
    // version 2.0, names in UTF-8, stored
    const entry = [20, 0x0800, 0, time, date].map((v) => [v, 2]).concat([[crc, 4], [blob.size, 4], [blob.size, 4], [name.length, 2], [0, 2]]);
    const header = packed([[0x04034b50, 4], ...entry]);
    parts.push(header, name, blob);
    directory.push(packed([[0x02014b50, 4], [20, 2], ...entry, [0, 2], [0, 2], [0, 2], [0, 4], [offset, 4]]), name);
    offset += header.length + name.length + blob.size;
  }
  const size = directory.reduce((sum, part) => sum + part.length, 0);
  const end = packed([[0x06054b50, 4], [0, 2], [0, 2], [files.length, 2], [files.length, 2], [size, 4], [offset, 4], [0, 2]]);
  if (offset + size > 0xffffffff || files.length > 0xffff) throw new RangeError("a zip holds at most 4 GiB and 65,535 files");
  return new Blob([...parts, ...directory, end], { type: "application/zip" });
}

function packed(fields) {
  const view = new DataView(new ArrayBuffer(fields.reduce((sum, [, size]) => sum + size, 0)));
  let at = 0;
  for (const [value, size] of fields) {
    if (size === 2) view.setUint16(at, value, true);
    else view.setUint32(at, value, true);
    at += size;
  }
  return new Uint8Array(view.buffer);
}
